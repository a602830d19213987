"""The words of the triples: what a probe is fitted to, and what it may read of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lfp_lens.core.errors import GateError
from lfp_lens.parts.activations import encode, word_ids
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.readings import AtWords, aligned, embeddings, random_vectors, word_tokens
from lfp_lens.parts.signals import Signal, activation_delta
from lfp_lens.parts.valence import token_values
from lfp_lens.parts.word_passes import read_words
from lfp_lens.parts.words import stem
from lfp_lens.results.contrast import MEMBERS, Triples
from lfp_lens.stages.probe.grid import Rows, per_word

MIN_TRIPLES = 10
BASE, TUNED = 0, 1
"""Models of the pass that reads signals."""


@dataclass(frozen=True, eq=False)
class TripleRows:
    """The positive and the negative member of every triple whose words align with whole tokens."""

    rows: Rows
    readings: dict[tuple[str, str], np.ndarray]
    """(side, input) -> what is read at the word."""
    deltas: dict[str, dict[str, float]]
    """Side -> word -> the paper's signed distance to the neutral member, where that side has SAEs."""


def read_triples(
    pair: Pair,
    sites: Sequence[str],
    dictionaries: Mapping[tuple[str, str], Mapping[str, Any]],
    triples: Triples,
    signal: Signal | None,
    *,
    stated: Mapping[str, float],
    cache: Any,
    max_tokens: int,
    seed: int,
) -> TripleRows:
    """Read every member at its word. The target of a member is the signal there less the signal at its neutral member.

    Only the left context is encoded, its last `max_tokens` tokens: what follows a word cannot change what a causal model
    computes at it. `signal=None` takes the paper's distance as target.

    Raises:
        GateError: if the words of fewer than 10 triples align with whole tokens.
    """
    room = pair.room(max_tokens)
    encoded = {
        member: encode(pair.tokenizer, triples.up_to_word(member), max_tokens=room, keep_end=True) for member in MEMBERS
    }
    spans = {member: triples.spans(member) for member in MEMBERS}
    usable = sorted(set.intersection(*(set(aligned(encoded[member], spans[member])) for member in MEMBERS)))
    alone = _alone(pair, triples)
    usable = [row for row in usable if all(alone[triples.words(member)[row].lower()] for member in MEMBERS)]
    if len(usable) < MIN_TRIPLES:
        raise GateError(
            f"The words of {len(usable)} of {len(triples)} triples align with whole tokens; {MIN_TRIPLES} are needed."
        )
    texts = [encoded[member][row] for member in MEMBERS for row in usable]
    places = [spans[member][row] for member in MEMBERS for row in usable]
    n = len(usable)
    ends = np.r_[:n, 2 * n : 3 * n]
    words = [triples.words(member)[row].lower() for member in ("positive", "negative") for row in usable]
    # Triples made by hand, or before they told their lemmas, would part word families.
    lemma = [triples.lemmas.get(word) or stem(word) for word in words]
    readings: dict[tuple[str, str], np.ndarray] = {}
    deltas: dict[str, np.ndarray] = {}
    by_word: dict[str, dict[str, float]] = {}
    at_words = AtWords(sites, (BASE, TUNED)) if cache is None and signal is not None else None
    values = None if signal is None else _signal_at(pair, texts, places, signal, stated, triples, at_words)
    for side, model in (("tuned", TUNED), ("base", BASE)):
        if at_words is not None:
            seen = at_words.tokens(model, len(texts), pair.device)
        else:
            seen = word_tokens(pair.hf(side), texts, places, sites, cache=cache, side=side)
        readings[side, "raw"] = seen.raw()[ends]
        for name in ("sae", "random_sae"):
            if (side, name) not in dictionaries:
                continue
            features = seen.features(dict(dictionaries[side, name]))
            readings[side, name] = features[ends]
            if name == "sae":
                up, down = activation_delta(features[:n], features[n : 2 * n], features[2 * n :])
                deltas[side] = np.concatenate([up, down])
                by_word[side] = per_word(deltas[side], words)
    readings["none", "embedding"] = embeddings(pair.base_hf, pair.tokenizer, words)
    readings["none", "random"] = random_vectors(words, seed=seed)
    target = deltas["tuned"]
    if values is not None:
        target = np.concatenate([values[:n] - values[n : 2 * n], values[2 * n :] - values[n : 2 * n]])
    source = np.tile(triples.source[usable], 2)
    return TripleRows(Rows(words, lemma, source, target), readings, by_word)


def _signal_at(
    pair: Pair, texts: Sequence[Any], places: Sequence[tuple[int, int]], signal: Signal, stated: Mapping[str, float],
    triples: Triples, at_words: AtWords | None,
) -> np.ndarray:  # fmt: skip
    """Give the signal at the word of every text, and show the observer the activations of the same pass."""
    worth_V: torch.Tensor | None = None
    if signal.needs_lexicon:
        vocabulary = pair.base_hf.get_output_embeddings().weight.shape[0]
        whole = [text for member in MEMBERS for text in triples.texts(member)]
        worth_V = token_values(pair.tokenizer, stated, whole, vocabulary=vocabulary, device=pair.device)
    observers = [] if at_words is None else [at_words]
    read = read_words(
        pair.base_hf, [pair.tuned_hf], texts, [[place] for place in places], {"signal": signal}, worth_V=worth_V,
        observers=observers,
    )  # fmt: skip
    return read.values["signal"][0]


def _alone(pair: Pair, triples: Triples) -> dict[str, list[int]]:
    """Give the tokens of every word as it stands after another one, empty where it is not made of whole tokens."""
    words = sorted({word.lower() for member in MEMBERS for word in triples.words(member)})
    return dict(zip(words, word_ids(pair.tokenizer, words)))
