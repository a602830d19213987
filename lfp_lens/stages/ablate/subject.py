"""What `ablate` works on: a pair, a TransformerLens model, or a Hugging Face model, behind one face."""

from dataclasses import dataclass
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts.pair import Pair, load_tokenizer, weights_fingerprint


@dataclass(frozen=True, eq=False)
class Subject:
    """The model whose features are ablated."""

    model: Any
    """It, as Hugging Face or TransformerLens model."""
    base: Any
    """The model it was tuned from; None if only one model is known."""
    tokenizer: Any
    """Its tokenizer."""
    tuning: dict[str, Any]
    """What its tuning record says; empty if there is none."""
    pair: str | None
    """Fingerprint of the pair; None for a single model."""
    fingerprint: str
    """Content hash."""


def subject_of(model: Any) -> Subject:
    """Give the subject for whatever `ablate` was handed. Raises `LensError` for anything else."""
    if isinstance(model, Pair):
        return Subject(
            model.tuned_hf, model.base_hf, model.tokenizer, model.tuning or {}, model.fingerprint, model.fingerprint
        )
    if hasattr(model, "hook_dict") and getattr(model, "tokenizer", None) is not None:
        return Subject(model, None, model.tokenizer, {}, None, weights_fingerprint(model))
    if hasattr(model, "base_model_prefix") and hasattr(model, "config"):
        name = model.config._name_or_path
        if not name:
            raise LensError("This model was made in memory and has no tokenizer beside it: load it with lfp.load_pair.")
        return Subject(model.eval(), None, load_tokenizer(name), {}, None, fingerprint(weights_fingerprint(model)))
    raise LensError(
        f"ablate works on a pair (lfp.load_pair), a HookedTransformer with its tokenizer, or a Hugging Face causal LM; "
        f"{type(model).__name__} given."
    )
