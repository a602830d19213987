"""The pair: a base model and its tuned twin, one tokenizer, the same hooks, proved equal to Hugging Face at load."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts import sites
from lfp_lens.parts.activations import unembed
from lfp_lens.parts.hooked import hooked_logits, to_hooked
from lfp_lens.parts.sources import model_path
from lfp_lens.parts.speed import quiet_transformers
from lfp_lens.view import page

TUNING_FILE, ADAPTER_FILE = "lfp_tuning.json", "adapter_config.json"
VOCABULARY_FILES = ("tokenizer.", "vocab", "spiece", "sentencepiece")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
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

    def room(self, max_tokens: int) -> int:
        """Give how many tokens of a text are read: `max_tokens`, or the model's context if that is shorter."""
        if max_tokens < 2:
            raise LensError(f"max_tokens must be at least 2; {max_tokens} given.")
        return min(max_tokens, getattr(self.tuned_hf.config, "max_position_embeddings", None) or max_tokens)

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
    if tokenizer is not None:
        _check_fast(tokenizer, "The given tokenizer")
    tokenizers = [load_tokenizer(source) if tokenizer is None else tokenizer for source in (base, tuned)]
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
        _check_in_memory(source)
        return source.eval()
    from transformers import AutoConfig, AutoModelForCausalLM

    name = str(model_path(str(source)))
    if (Path(name) / ADAPTER_FILE).is_file():
        raise _adapter(f"{name} is an adapter (it holds {ADAPTER_FILE})")
    config = _read(AutoConfig, name, "model")
    _check_config(config, name, getattr(config, "architectures", None) or ())
    options = {"config": config, "dtype": DTYPES[dtype], "use_safetensors": True, "output_loading_info": True}
    model, loaded = _read(AutoModelForCausalLM, name, "model", **options)
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise LensError(
            f"The model {name!r} cannot be loaded: its weights lack {len(missing)} tensors of a {type(model).__name__}, "
            f"first {missing[0]}. A gap would be filled with random numbers; give a complete checkpoint."
        )
    return model.to(device).eval()


def load_tokenizer(source: Any) -> Any:
    """Load the tokenizer beside a checkpoint; a model in memory needs its tokenizer passed in."""
    if not isinstance(source, (str, Path)):
        raise LensError("A model in memory has no tokenizer beside it: pass `tokenizer=`.")
    from transformers import AutoTokenizer

    folder = Path(model_path(str(source)))
    if folder.is_dir() and not any(path.name.startswith(VOCABULARY_FILES) for path in folder.iterdir()):
        # Transformers would make up a tokenizer without words from the architecture's name.
        raise LensError(f"The tokenizer of {str(source)!r} cannot be loaded: the folder has no tokenizer.json.")
    tokenizer = _read(AutoTokenizer, str(model_path(str(source))), "tokenizer")
    _check_fast(tokenizer, str(source))
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
        last = sites.trunk(model)(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).last_hidden_state
        shortcut = unembed(model, last)
        with sites.editing(hooked, {name: lambda acts: acts for name in names}):
            untouched = hooked_logits(hooked, ids_BS)
        acts = sites.activations_at(model, ids_BS, mask_BS, names)
        with sites.watching(hooked, names) as seen:
            given = hooked_logits(hooked, ids_BS)
    allowed = TOLERANCE[model.dtype] * max(1.0, float(wanted.abs().max()))
    gaps = {
        "the unembedding of the last hidden state": shortcut - wanted,
        "logits": given - wanted,
        "logits under a no-op hook": untouched - wanted,
    }
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
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = " ".join(str(error).split())[:300] or type(error).__name__
        raise LensError(
            f"The {what} {name!r} cannot be loaded: {first} Expected a local folder with config.json, safetensors and "
            "tokenizer, or a hub name (with network)."
        ) from error


def _check_in_memory(model: Any) -> None:
    from transformers import PreTrainedModel

    kind = type(model).__name__
    if type(model).__module__.startswith("peft.") or getattr(model, "_hf_peft_config_loaded", False):
        raise _adapter(f"The {kind} is an adapter on a model")
    if not isinstance(model, PreTrainedModel):
        raise _no_causal_lm(kind)
    _check_config(model.config, f"The {kind}", [kind])
    if model.get_output_embeddings() is None:
        raise _no_causal_lm(kind)


def _no_causal_lm(kind: str) -> LensError:
    return LensError(f"A {kind} is no causal LM: expected a hub name, a local folder, or a Hugging Face causal LM.")


def _adapter(what: str) -> LensError:
    return LensError(f"{what}, not a model: merge it into its base (PEFT's `merge_and_unload`) and save the result.")


def _check_fast(tokenizer: Any, name: str) -> None:
    if not tokenizer.is_fast:
        raise LensError(f"{name} has no fast tokenizer: words cannot be aligned to tokens by character offsets.")


def _check_config(config: Any, name: str, kinds: Sequence[str]) -> None:
    if getattr(config, "quantization_config", None):
        raise LensError(f"{name} is quantised: its weights are codes, not values. Load the full-precision checkpoint.")
    if any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise LensError(f"{name} is a sequence classifier ({', '.join(kinds)}); a causal LM is expected here.")


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
    if tokenizers[0] is not tokenizers[1] and _splitting(tokenizers[0]) != _splitting(tokenizers[1]):
        raise LensError("Base and tuned have different tokenizers: word values could not be compared.")
    if len(tokenizers[0].get_vocab()) > base.config.vocab_size:
        raise LensError(
            f"The tokenizer has {len(tokenizers[0].get_vocab())} tokens, the model {base.config.vocab_size}."
        )


def _splitting(tokenizer: Any) -> list[Any]:
    """Give all that decides which tokens a text becomes; what is added around them is ours."""
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    return [tokenizer.get_vocab(), *(written.get(part) for part in ("normalizer", "pre_tokenizer", "model"))]


def tuning_record(tuned: Any) -> dict[str, Any] | None:
    """Give what a checkpoint's folder says about its tuning; None for a model in memory or a folder that says nothing."""
    path = Path(str(model_path(str(tuned)))) / TUNING_FILE if isinstance(tuned, (str, Path)) else None
    if path is None or not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LensError(f"The tuning record {path} is not valid JSON ({error}); remove or repair it.") from error
