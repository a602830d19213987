"""Valence: the expected lexicon value of the next word, a scalar of the model's own predictions that needs no sampling.

valence(position) = sum over tokens t of p(t | context) * v(t), where v(t) is the mean lexicon value of the words that begin
with t in given texts, words outside the lexicon counting 0. For a word that is one token, v is its lexicon value; where
several words share a first token, v is what the token promises on average. So every tokenizer has a valence.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lfp_lens.core.errors import GateError
from lfp_lens.parts.activations import Batch, encode, hidden_states, tokens_of_span, unembed
from lfp_lens.parts.words import find_words

MIN_WORDS = 10


def token_values(
    tokenizer: Any, lexicon: Mapping[str, float], texts: Sequence[str], *, vocabulary: int, device: torch.device | str
) -> torch.Tensor:
    """Give v for every token of the vocabulary `[V]`; tokens that begin no word of the texts have 0.

    Raises `GateError` if fewer than 10 different lexicon words occur in the texts.
    """
    sums_V, counts_V = torch.zeros(vocabulary), torch.zeros(vocabulary)
    encoded = encode(tokenizer, texts, max_tokens=10**6)
    seen = set()
    for spot in find_words(texts):
        tokens = tokens_of_span(encoded[spot.text], (spot.start, spot.end))
        if tokens:
            first = encoded[spot.text].ids[tokens[0]]
            counts_V[first] += 1
            if lexicon.get(spot.word):
                sums_V[first] += lexicon[spot.word]
                seen.add(spot.word)
    if len(seen) < MIN_WORDS:
        raise GateError(
            f"{len(seen)} different lexicon words occur in the {len(texts)} texts; {MIN_WORDS} are needed to say what the "
            "next word is worth. Give more texts, or texts with feeling."
        )
    return (sums_V / counts_V.clamp(min=1)).to(device)


def valence(model: Any, batch: Batch, values_V: torch.Tensor) -> torch.Tensor:
    """Give the valence at every real position as `[N]`, in lexicon units, differentiable."""
    hidden_ND = hidden_states(model, batch)[batch.mask_BS.bool()]
    return torch.softmax(unembed(model, hidden_ND).float(), dim=-1) @ values_V
