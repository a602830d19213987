"""What `ablate` works on: a pair, a TransformerLens model, or a Hugging Face model, behind one face."""

from dataclasses import dataclass
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts.checkpoints import load_tokenizer, tuning_record, weights_fingerprint
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.sites import blocks


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
    width: int
    """Width of its sites."""
    n_layers: int
    """Its blocks."""
    context: int | None
    """Longest text it takes, in tokens; None if it does not say."""


def subject_of(model: Any) -> Subject:
    """Give the subject for whatever `ablate` was handed. Raises `LensError` for anything else."""
    if isinstance(model, Pair):
        tuned, key = model.tuned_hf, model.fingerprint
        return Subject(tuned, model.base_hf, model.tokenizer, model.tuning or {}, key, key, *_shape(tuned))
    if hasattr(model, "hook_dict") and getattr(model, "tokenizer", None) is not None:
        key = fingerprint([weights_fingerprint(model), model.tokenizer.get_vocab()])
        return Subject(
            model, None, model.tokenizer, {}, None, key, model.cfg.d_model, model.cfg.n_layers, model.cfg.n_ctx
        )
    if hasattr(model, "base_model_prefix") and hasattr(model, "config"):
        name = model.config._name_or_path
        if not name:
            raise LensError("This model was made in memory and has no tokenizer beside it: load it with lfp.load_pair.")
        tokenizer, tuning = load_tokenizer(name), tuning_record(name) or {}
        key = fingerprint([weights_fingerprint(model), tokenizer.get_vocab()])
        return Subject(model.eval(), None, tokenizer, tuning, None, key, *_shape(model))
    raise LensError(
        f"ablate works on a pair (lfp.load_pair), a HookedTransformer with its tokenizer, or a Hugging Face causal LM; "
        f"{type(model).__name__} given."
    )


def _shape(model: Any) -> tuple[int, int, int | None]:
    """Give width, layers and context of a Hugging Face model."""
    return model.config.hidden_size, len(blocks(model)), getattr(model.config, "max_position_embeddings", None)
