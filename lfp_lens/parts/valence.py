"""Valence: the expected lexicon value of the next word, a scalar of the model's own predictions that needs no sampling.

valence(position) = sum over single-token lexicon words w of p(w | context) * value(w). Words of several tokens are left
out, so a tokenizer must hold enough lexicon words whole.
"""

from collections.abc import Mapping
from typing import Any

import torch

from lfp_lens.core.errors import GateError
from lfp_lens.parts.activations import Batch, hidden_states, unembed, word_ids

MIN_WORDS = 20


def token_values(model: Any, tokenizer: Any, lexicon: Mapping[str, float]) -> torch.Tensor:
    """Give the lexicon value of every vocabulary token `[V]`: 0 for tokens that are no whole lexicon word.

    Raises `GateError` if fewer than 20 lexicon words are single tokens.
    """
    values_V = torch.zeros(model.config.vocab_size)
    words = [word for word in lexicon if word.isalpha()]
    whole = {ids[0]: lexicon[word] for ids, word in zip(word_ids(tokenizer, words), words) if len(ids) == 1}
    if len(whole) < MIN_WORDS:
        raise GateError(
            f"Only {len(whole)} lexicon words are single tokens of this tokenizer; valence needs {MIN_WORDS}. Use sampled "
            "rewards for this model."
        )
    for token, value in whole.items():
        values_V[token] = value
    return values_V.to(model.device)


def valence(model: Any, batch: Batch, values_V: torch.Tensor) -> torch.Tensor:
    """Give the valence at every real position as `[N]`, in lexicon units, differentiable."""
    hidden_ND = hidden_states(model, batch)[batch.mask_BS.bool()]
    return torch.softmax(unembed(model, hidden_ND).float(), dim=-1) @ values_V
