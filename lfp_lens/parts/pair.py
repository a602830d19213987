"""The pair: a base model and its tuned twin, one tokenizer, the same hooks, proved equal to Hugging Face at load."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts import sites
from lfp_lens.parts.hooked import hooked_logits, to_hooked
from lfp_lens.parts.sources import model_path
from lfp_lens.parts.speed import quiet_transformers
from lfp_lens.view import page

TUNING_FILE = "lfp_tuning.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Largest allowed difference between two implementations, relative to the largest logit (at least 1)."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Base and tuned. `pair.tuned` is a `HookedTransformer`: everything TransformerLens can do works on it."""

    base: Any
    """The base model as a TransformerLens model (weight processing off)."""
    tuned: Any
    """The tuned model, likewise."""
    base_hf: Any
    """The base model as Hugging Face loaded it: bulk work runs on this one."""
    tuned_hf: Any
    """The tuned model, likewise."""
    tokenizer: Any
    """One tokenizer for both."""
    fingerprint: str
    """Hash of both models' weights and of the vocabulary."""
    tuning: dict[str, Any] | None
    """What the tuned checkpoint says about its tuning (method, reward); None if it says nothing."""

    def hf(self, side: str) -> Any:
        """Give one side as a Hugging Face model."""
        if side not in ("base", "tuned"):
            raise LensError(f"A side is 'base' or 'tuned'; {side!r} given.")
        return self.base_hf if side == "base" else self.tuned_hf

    @property
    def sites(self) -> tuple[str, ...]:
        """Every MLP-output site, in layer order."""
        return sites.all_sites(self.tuned_hf)

    @property
    def device(self) -> torch.device:
        """Where both models are."""
        return self.tuned_hf.device

    def _repr_html_(self) -> str:
        config = self.tuned_hf.config
        facts = {
            "architecture": type(self.tuned_hf).__name__,
            "layers, width, vocabulary": f"{len(self.sites)}, {config.hidden_size}, {config.vocab_size}",
            "hooked as": type(self.tuned).__name__,
            "tuned by": (self.tuning or {}).get("method", "unknown"),
            "fingerprint": self.fingerprint,
        }
        return page.card("Pair", facts)


def load_pair(base: Any, tuned: Any, *, tokenizer: Any = None, device: str = "cpu", dtype: str = "float32") -> Pair:
    """Load a base model and its tuned twin, and prove that hooks read what Hugging Face computes.

    Args:
        base: a hub name, a local folder, or a Hugging Face model in memory.
        tuned: likewise, of the same architecture, shape and vocabulary.
        tokenizer: a tokenizer in memory; None loads the one beside `base` (and checks that `tuned` has the same).
        device: `cpu`, `cuda`, ...
        dtype: `float32`, `bfloat16` or `float16`, for models loaded from disk.

    Raises:
        LensError: if a checkpoint is missing, quantised, no causal LM, or the two do not fit together, or if the
            TransformerLens model does not reproduce Hugging Face's logits and activations.

    >>> pair = load_pair(base_model, tuned_model, tokenizer=tokenizer)  # doctest: +SKIP
    >>> logits, cache = pair.tuned.run_with_cache(tokens)  # doctest: +SKIP
    """
    models = [load_causal_lm(source, device=device, dtype=dtype) for source in (base, tuned)]
    tokenizers = [tokenizer or load_tokenizer(source) for source in (base, tuned)]
    _check_twins(models, tokenizers)
    hooked = []
    for model in models:
        twin = to_hooked(model, tokenizers[0])
        prove_parity(model, twin)
        hooked.append(twin)
    content = fingerprint([weights_fingerprint(model) for model in models] + [tokenizers[0].get_vocab()])
    return Pair(hooked[0], hooked[1], models[0], models[1], tokenizers[0], content, tuning_record(tuned))


def load_causal_lm(source: Any, *, device: str = "cpu", dtype: str = "float32") -> Any:
    """Load a causal LM from a hub name or folder (safetensors only), or check one that is in memory."""
    if dtype not in DTYPES:
        raise LensError(f"dtype must be one of {', '.join(DTYPES)}; {dtype!r} given.")
    if not isinstance(source, (str, Path)):
        _check_config(source.config, type(source).__name__)
        return source.eval()
    from transformers import AutoConfig, AutoModelForCausalLM

    name = str(model_path(str(source)))
    config = _read(AutoConfig, name, "model")
    _check_config(config, name)
    model = _read(AutoModelForCausalLM, name, "model", config=config, dtype=DTYPES[dtype], use_safetensors=True)
    return model.to(device).eval()


def load_tokenizer(source: Any) -> Any:
    """Load the tokenizer beside a checkpoint; a model in memory needs its tokenizer passed in."""
    if not isinstance(source, (str, Path)):
        raise LensError("A model in memory has no tokenizer beside it: pass `tokenizer=`.")
    from transformers import AutoTokenizer

    tokenizer = _read(AutoTokenizer, str(model_path(str(source))), "tokenizer")
    if not tokenizer.is_fast:
        raise LensError(f"{source} has no fast tokenizer: words cannot be aligned to tokens by character offsets.")
    return tokenizer


def weights_fingerprint(model: Any) -> str:
    """Hash every tensor of a model: name, dtype, shape and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        # Bytes by view: NumPy knows no bfloat16; flattened, because a scalar cannot be viewed.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def prove_parity(model: Any, hooked: Any) -> None:
    """Raise `LensError` unless hooked logits and sites equal Hugging Face's, a no-op hook included."""
    generator = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(model.config.vocab_size, (2, 12), generator=generator).to(model.device)
    mask_BS = torch.ones_like(ids_BS)
    names = sites.all_sites(model)
    with torch.no_grad():
        wanted = model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).logits
        with sites.editing(hooked, {name: lambda acts: acts for name in names}):
            untouched = hooked_logits(hooked, ids_BS)
        acts = sites.activations_at(model, ids_BS, mask_BS, names)
        with sites.watching(hooked, names) as seen:
            given = hooked_logits(hooked, ids_BS)
    allowed = TOLERANCE[model.dtype] * max(1.0, float(wanted.abs().max()))
    gaps = {"logits": given - wanted, "logits under a no-op hook": untouched - wanted}
    gaps |= {name: seen[name] - acts[name] for name in names}
    for what, gap in gaps.items():
        worst = float(gap.abs().max())
        if not worst <= allowed:
            raise LensError(
                f"TransformerLens and Hugging Face disagree on {what} of {type(model).__name__} by {worst:.2g} "
                f"({allowed:.2g} allowed). Nothing measured through the hooks could be trusted."
            )


def _read(kind: Any, name: str, what: str, **options: Any) -> Any:
    quiet_transformers()
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LensError(
            f"The {what} {name!r} cannot be loaded: {first} Expected a local folder with config.json, safetensors and "
            "tokenizer, or a hub name (with network)."
        ) from error


def _check_config(config: Any, name: str) -> None:
    if getattr(config, "quantization_config", None):
        raise LensError(f"{name} is quantised: its weights are codes, not values. Load the full-precision checkpoint.")
    kinds = getattr(config, "architectures", None) or []
    if any(kind.endswith("ForSequenceClassification") for kind in kinds) or "SequenceClassification" in name:
        raise LensError(f"{name} is a sequence classifier ({', '.join(kinds) or name}); a causal LM is expected here.")


def _check_twins(models: list[Any], tokenizers: list[Any]) -> None:
    base, tuned = models
    if type(base) is not type(tuned):
        raise LensError(
            f"Base is a {type(base).__name__}, tuned a {type(tuned).__name__}: a pair has one architecture."
        )
    shapes = [{name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} for model in models]
    odd = sorted(name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name))
    if odd:
        raise LensError(
            f"Base and tuned differ in {len(odd)} tensors, first {odd[0]}: {shapes[0].get(odd[0])} against "
            f"{shapes[1].get(odd[0])}. A pair has one shape and one vocabulary."
        )
    if tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
        raise LensError("Base and tuned have different tokenizers: word values could not be compared.")
    if len(tokenizers[0].get_vocab()) > base.config.vocab_size:
        raise LensError(
            f"The tokenizer has {len(tokenizers[0].get_vocab())} tokens, the model {base.config.vocab_size}."
        )


def tuning_record(tuned: Any) -> dict[str, Any] | None:
    """Give what a checkpoint's folder says about its tuning; None for a model in memory or a folder that says nothing."""
    path = Path(str(model_path(str(tuned)))) / TUNING_FILE if isinstance(tuned, (str, Path)) else None
    if path is None or not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LensError(f"The tuning record {path} is not valid JSON ({error}); remove or repair it.") from error
