"""The pair: a base model and its tuned twin, one tokenizer, the same hooks, proved equal to Hugging Face at load."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts import sites
from lfp_lens.parts.activations import unembed
from lfp_lens.parts.adapters import Adapter, adapter_folder, is_adapter, read_adapter
from lfp_lens.parts.checkpoints import (
    check_base,
    check_fast,
    has_tokenizer,
    load_causal_lm,
    load_tokenizer,
    shape_differences,
    tuning_record,
    weights_fingerprint,
)
from lfp_lens.parts.hooked import hooked_logits, to_hooked
from lfp_lens.parts.merging import LowRank, adapter_of, merge
from lfp_lens.parts.sources import model_path
from lfp_lens.view import page

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Largest allowed difference between two implementations, relative to the largest logit or activation (at least 1)."""


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
    adapter: dict[str, LowRank] | None = None
    """Parameter name -> (A, B, scaling) where tuned is base + scaling B A (plain LoRA) and nothing else; else None."""

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
            "adapter": "none" if self.adapter is None else f"low rank, {len(self.adapter)} matrices",
            "fingerprint": self.fingerprint,
        }
        return page.card("Pair", facts)


def load_pair(base: Any, tuned: Any, *, tokenizer: Any = None, device: str = "cpu", dtype: str = "float32") -> Pair:
    """Load a base model and its tuned twin, and prove that hooks read what Hugging Face computes.

    Args:
        base: a hub name, a local folder, or a Hugging Face model in memory.
        tuned: likewise, of the same architecture, shape and vocabulary; or an adapter (a folder or hub name with
            `adapter_config.json`, or a PEFT model in memory), which is put on a copy of `base` and merged.
        tokenizer: a tokenizer in memory; None loads the one beside `base` (and checks that `tuned` has the same).
        device: `cpu`, `cuda`, ...
        dtype: `float32`, `bfloat16` or `float16`, for models loaded from disk.

    Raises:
        LensError: if a checkpoint is missing, quantised, no causal LM, or the two do not fit together, or if the
            TransformerLens model does not reproduce Hugging Face's logits and activations.

    >>> pair = load_pair(base_model, tuned_model, tokenizer=tokenizer)  # doctest: +SKIP
    >>> logits, cache = pair.tuned.run_with_cache(tokens)  # doctest: +SKIP
    """
    first = load_causal_lm(base, device=device, dtype=dtype)
    adapter = _adapter(tuned)
    change = None
    if adapter is None:
        second = load_causal_lm(tuned, device=device, dtype=dtype)
    else:
        if adapter.live is None:
            check_base(first, adapter.name, base, dtype)
        second, change = (merged := merge(first, adapter)).model, merged.change
    if tokenizer is None:
        own = tuned if adapter is None or has_tokenizer(tuned) else base
        tokenizers = [load_tokenizer(base), load_tokenizer(own)]
    else:
        check_fast(tokenizer, "The given tokenizer")
        tokenizers = [tokenizer, tokenizer]
    models = [first, second]
    _check_twins(models, tokenizers)
    hooked = []
    for model in models:
        twin = to_hooked(model, tokenizers[0])
        prove_parity(model, twin)
        hooked.append(twin)
    content = fingerprint([weights_fingerprint(model) for model in models] + [tokenizers[0].get_vocab()])
    return Pair(hooked[0], hooked[1], first, second, tokenizers[0], content, tuning_record(tuned), change)


def _adapter(tuned: Any) -> Adapter | None:
    """Read the tuned side if it is an adapter; None for anything else."""
    if not is_adapter(tuned):
        return None
    if not isinstance(tuned, (str, Path)):
        return adapter_of(tuned)
    name = str(model_path(str(tuned)))
    folder = adapter_folder(name)
    return read_adapter(folder, name) if folder is not None else None


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
    largest = max(1.0, float(wanted.abs().max()))
    gaps = {
        "the unembedding of the last hidden state": shortcut - wanted,
        "logits": given - wanted,
        "logits under a no-op hook": untouched - wanted,
    }
    gaps |= {name: seen[name] - acts[name] for name in names}
    for what, gap in gaps.items():
        worst = float(gap.abs().max())
        # A reward is small beside the activations it is read from, which round by their own size.
        allowed = TOLERANCE[model.dtype] * max(largest, float(acts[what].abs().max()) if what in acts else 0.0)
        if not worst <= allowed:
            raise LensError(
                f"TransformerLens and Hugging Face disagree on {what} of {type(model).__name__} by {worst:.2g} "
                f"({allowed:.2g} allowed). Nothing measured through the hooks could be trusted."
            )


def _check_twins(models: list[Any], tokenizers: list[Any]) -> None:
    base, tuned = models
    if type(base) is not type(tuned):
        raise LensError(
            f"Base is a {type(base).__name__}, tuned a {type(tuned).__name__}: a pair has one architecture."
        )
    odd = shape_differences(base, tuned)
    if odd:
        raise LensError(
            f"Base and tuned differ in {len(odd)} tensors, first {odd[0]}. A pair has one shape and one vocabulary."
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
