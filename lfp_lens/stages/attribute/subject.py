"""The model under examination, and its scalar at any places of any texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.parts.activations import Batch, hidden_states, next_token_log_probs, unembed
from lfp_lens.parts.dictionaries import Dictionary
from lfp_lens.parts.scalars import REWARD_HEAD, SCALARS, Predictions, Scalar, make_scalar
from lfp_lens.parts.screening import predictions

PAIR_SCALAR = "log_p_difference"
LOGITS_AT_ONCE = 2**24
"""Logits held at once (64 MB in fp32, a few times over)."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, its dictionaries and the scalar."""

    model: Any
    """The Hugging Face model (of a reward model the shell) whose features are removed."""
    base: Any | None
    """The base model that dictionaries are read from beside it; None where none is."""
    dictionaries: Mapping[str, Dictionary]
    """By site."""
    scalar: Scalar
    """What is measured."""
    values_V: torch.Tensor | None
    """The lexicon value of every token, where the scalar needs it."""
    log_p_base: Any | None
    """The base model, where the scalar needs its log p."""
    begin: int | None
    """Beginning-of-text token, at which no feature is read."""

    def places(self, batch: Batch) -> "Places":
        """Give what the scalar needs to know of a batch beside the model's logits."""
        base_N = None if self.log_p_base is None else base_log_p(self.log_p_base, batch)
        none_NV = torch.zeros(int(batch.mask_BS.sum()), 0, device=batch.ids_BS.device)
        return Places(self, predictions(batch, none_NV, self.values_V, base_N))


@dataclass(frozen=True, eq=False)
class Places:
    """The real tokens of a batch, numbered text by text, at which the scalar can be measured."""

    subject: Subject
    """Whose scalar."""
    seen: Predictions
    """All but the logits."""

    def measured(self, hidden_ND: torch.Tensor, at_N: torch.Tensor | None = None, *, model: Any = None) -> torch.Tensor:
        """Give the scalar `[N]` of these final hidden states, which stand at the places `at_N` (None: at all, in order)."""
        model = self.subject.model if model is None else model
        at_N = torch.arange(len(hidden_ND), device=hidden_ND.device) if at_N is None else at_N
        found = [hidden_ND.new_zeros(0, dtype=torch.float32)]
        step = max(16, LOGITS_AT_ONCE // model.get_output_embeddings().weight.shape[0])
        for start in range(0, len(hidden_ND), step):
            at = at_N[start : start + step]
            logits_NV = unembed(model, hidden_ND[start : start + step]).float()
            found.append(self.subject.scalar.measure(self._at(at, logits_NV)).float())
            if found[-1].shape != at.shape:
                raise LensError(
                    f"The scalar gave values of shape {tuple(found[-1].shape)} for {len(at)} places: a number per place is "
                    "expected."
                )
        return torch.cat(found)

    def _at(self, at: torch.Tensor, logits_NV: torch.Tensor) -> Predictions:
        base_N = self.seen.base_log_p_N
        return Predictions(
            logits_NV,
            self.seen.next_N[at],
            self.seen.text_N[at],
            self.seen.values_V,
            None if base_N is None else base_N[at],
        )


def scalar_of(scalar: Any, *, is_reward_model: bool, is_pairs: bool) -> tuple[str, Scalar]:
    """Give the scalar and its name. Raises `LensError` for one that this model or these texts do not have."""
    if isinstance(scalar, str) and scalar not in (*SCALARS, PAIR_SCALAR):
        raise unknown("scalar", scalar, (*SCALARS, PAIR_SCALAR))
    name, found = (scalar, SCALARS["log_p"]) if scalar == PAIR_SCALAR else make_scalar(scalar)
    if name == PAIR_SCALAR and not is_pairs:
        raise LensError(
            f"The scalar {PAIR_SCALAR!r} compares chosen with rejected: give preference pairs (prompt, chosen, rejected)."
        )
    if is_reward_model and isinstance(scalar, str) and name != REWARD_HEAD:
        raise LensError(f"A reward model has the scalar {REWARD_HEAD!r}; {name!r} is one of a pair of language models.")
    if not is_reward_model and name == REWARD_HEAD:
        raise LensError(f"The scalar {REWARD_HEAD!r} is that of a reward model: give one, from load_reward_model.")
    return name, found


def base_log_p(base: Any, batch: Batch) -> torch.Tensor:
    """Give log p of the next token under the base at every real token, 0 at a text's last one."""
    with torch.no_grad():
        next_N = predictions(batch, torch.zeros(0), None, None).next_N
        hidden_ND = hidden_states(base, batch)[batch.mask_BS.bool()]
        chunk = max(16, LOGITS_AT_ONCE // base.config.vocab_size)
        found_N = next_token_log_probs(base, hidden_ND, next_N.clamp(min=0), chunk=chunk)
        return found_N.masked_fill(next_N < 0, 0.0)


def text_scalars(subject: Subject, data: Sequence[Batch], n_texts: int, *, model: Any = None) -> torch.Tensor:
    """Give the scalar of every text, summed over its tokens, `[texts]` in fp64; another model may stand in the model's place."""
    model = subject.model if model is None else model
    sums_T = torch.zeros(n_texts, dtype=torch.float64)
    with torch.no_grad():
        for batch in data:
            places = subject.places(batch)
            values_N = places.measured(hidden_states(model, batch)[batch.mask_BS.bool()], model=model)
            sums_T.index_add_(0, places.seen.text_N.cpu(), values_N.double().cpu())
    return sums_T
