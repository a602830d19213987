"""Which words are measured, in which contexts, and which words outside the lexicon define zero."""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.parts.activations import Encoded, encode
from lfp_lens.parts.word_classes import is_function_word
from lfp_lens.parts.words import Occurrence, find_words

MIN_CHARACTERS = 20
"""A word counts only this far into a text, where it has a context."""
MIN_WORDS, MIN_NEUTRAL = 30, 100


@dataclass(frozen=True, eq=False)
class Chosen:
    """The words to measure, each in some of its own contexts."""

    texts: Sequence[str]
    encoded: list[Encoded]
    spots: list[Occurrence]
    """By text, and then by position."""
    spans: list[list[tuple[int, int]]]
    """For each text, the characters of its words, in the same order."""
    counts: Counter[str]
    """How often every word occurs in the texts."""


def choose(
    texts: Sequence[str],
    tokenizer: Any,
    lexicon: Mapping[str, float],
    *,
    contexts: int,
    min_contexts: int,
    max_tokens: int,
    seed: int,
) -> Chosen:
    """Give up to `contexts` occurrences of every word that has enough of them.

    Function words outside the lexicon are left out: their contexts are not those of content words. So are capitals: "Grace"
    is a name, not the lexicon's word. Raises `GateError` if too few lexicon words or too few others remain.
    """
    if not 1 <= min_contexts <= contexts:
        raise LensError(f"min_contexts must lie between 1 and contexts={contexts}; {min_contexts} given.")
    encoded = encode(tokenizer, texts, max_tokens=max_tokens)
    reach = [text.offsets[-1][1] if text.offsets else 0 for text in encoded]
    counts: Counter[str] = Counter()
    found: dict[str, list[Occurrence]] = {}
    for spot in find_words(texts):
        counts[spot.word] += 1
        if not lexicon.get(spot.word) and is_function_word(spot.word):
            continue
        is_lower = texts[spot.text][spot.start : spot.end] == spot.word
        if is_lower and spot.start >= MIN_CHARACTERS and spot.end <= reach[spot.text]:
            found.setdefault(spot.word, []).append(spot)
    kept = [
        spot for word, spots in found.items() if len(spots) >= min_contexts for spot in _drawn(spots, contexts, seed)
    ]
    have = {spot.word for spot in kept}
    n_stated = sum(bool(lexicon.get(word)) for word in have)
    for name, n, least in (
        ("lexicon words", n_stated, MIN_WORDS),
        ("words outside the lexicon", len(have) - n_stated, MIN_NEUTRAL),
    ):
        if n < least:
            raise GateError(
                f"{n} {name} occur at least {min_contexts} times in the {len(texts)} texts; {least} are needed. Give more or "
                "longer texts."
            )
    kept.sort(key=lambda spot: (spot.text, spot.start))
    spans: list[list[tuple[int, int]]] = [[] for _ in texts]
    for spot in kept:
        spans[spot.text].append((spot.start, spot.end))
    return Chosen(texts, encoded, kept, spans, counts)


def _drawn(spots: Sequence[Occurrence], contexts: int, seed: int) -> list[Occurrence]:
    """Draw some occurrences of one word, from as many texts as there are; what is drawn depends on no other word."""
    generator = np.random.default_rng([seed, zlib.crc32(spots[0].word.encode())])
    order = [spots[at] for at in generator.permutation(len(spots))]
    turns: Counter[int] = Counter()
    ranked = []
    for place, spot in enumerate(order):
        ranked.append((turns[spot.text], place))
        turns[spot.text] += 1
    return [order[place] for _, place in sorted(ranked)[:contexts]]


def matched_neutrals(
    log_frequency: Float[np.ndarray, " words"],
    tokens: Int[np.ndarray, " words"],
    is_stated: np.ndarray,
    n: int,
) -> Int[np.ndarray, " neutrals"]:
    """Pick up to n words outside the lexicon whose frequency and token count are like those of the lexicon's words.

    Each round gives every lexicon word its nearest unused neutral of the same token count (3 and more are one class).
    """
    kind = np.minimum(tokens, 3)
    picked: list[int] = []
    for count in np.unique(kind):
        pool = np.flatnonzero(~is_stated & (kind == count))
        wanted = np.flatnonzero(is_stated & (kind == count))
        if not len(pool) or not len(wanted):
            continue
        share = round(n * len(wanted) / is_stated.sum())
        distance = np.abs(log_frequency[pool][:, None] - log_frequency[wanted][None, :])
        # A neutral's rank among those near some lexicon word: the first round takes each word's nearest, and so on.
        rank = distance.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable").min(axis=1)
        picked += pool[np.lexsort((distance.min(axis=1), rank))][:share].tolist()
    return np.array(sorted(picked), dtype=int)
