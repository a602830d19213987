"""What the labeller sees of the texts, and what it is tested on: words, example windows, held-out windows."""

import zlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from lfp_lens.parts.words import tokenize
from lfp_lens.results.explain import Example
from lfp_lens.stages.explain.firing import Firing

WINDOW, BEFORE_PEAK = 16, 10
"""Tokens in a window, and how many of them stand before the strongest one."""
STRONG_QUANTILE, TIE = 0.99, 0.999
"""A feature fires strongly on the strongest 1 % of the shown tokens, rounding allowed for among equals."""
MIN_WINDOWS, MAX_WINDOWS = 4, 20
"""Held-out windows of each kind: fewer are no test, more only cost."""


@dataclass(frozen=True, eq=False)
class Words:
    """Which word each shown token belongs to."""

    vocabulary: tuple[str, ...]
    """Lower-cased words and punctuation marks; "" stands for white space."""
    of_token: Int[np.ndarray, " shown"]
    """Place in the vocabulary, by token."""

    def sums(
        self, activations: Float[np.ndarray, " shown"]
    ) -> tuple[Float[np.ndarray, " words"], Int[np.ndarray, " words"]]:
        """Give the sum of activations over each word's tokens, and the number of these tokens."""
        size = len(self.vocabulary)
        total = np.bincount(self.of_token, weights=activations, minlength=size)
        return total, np.bincount(self.of_token, minlength=size)


def words_of(fired: Firing) -> Words:
    """Give the word of every shown token: the one its first character other than white space is in."""
    places: dict[str, int] = {}
    found = [
        places.setdefault(word, len(places))
        for text, spans in zip(fired.texts[: fired.n_shown], fired.spans)
        for word in _aligned(text, spans)
    ]
    return Words(tuple(places), np.array(found, int))


def _aligned(text: str, spans: tuple[tuple[int, int], ...]) -> list[str]:
    held = tokenize(text)
    ends, found = np.array(held.ends, int), []
    for start, end in spans:
        first = start + len(text[start:end]) - len(text[start:end].lstrip())
        at = int(np.searchsorted(ends, first, side="right"))
        is_inside = first < end and at < len(ends) and held.starts[at] <= first
        found.append(held.words[at] if is_inside else "")
    return found


def examples(fired: Firing, activations_N: Float[np.ndarray, " tokens"], n: int) -> tuple[Example, ...]:
    """Give up to `n` windows of different shown texts: 3 in 5 the strongest, the rest from the weaker."""
    peaks = {
        text: int(start + np.argmax(activations_N[start:end]))
        for text, (start, end) in enumerate(zip(fired.starts[: fired.n_shown], fired.starts[1 : fired.n_shown + 1]))
        if end > start and activations_N[start:end].max() > 0
    }
    ranked = sorted(peaks, key=lambda text: (-activations_N[peaks[text]], text))
    n_top = -(-3 * n // 5)
    top, rest = ranked[:n_top], ranked[n_top:]
    n_rest = min(n - n_top, len(rest))
    chosen = top + [rest[(place + 1) * len(rest) // (n_rest + 1)] for place in range(n_rest)]
    return tuple(_example(fired, activations_N, text, peaks[text]) for text in chosen)


def _example(fired: Firing, activations_N: np.ndarray, text: int, peak: int) -> Example:
    low, high = int(fired.starts[text]), int(fired.starts[text + 1])
    start = max(low, min(peak - BEFORE_PEAK, high - WINDOW))
    stop = min(high, start + WINDOW)
    spans = fired.spans[text]
    # Each token takes the characters since the one before it: spaces are kept, and the pieces of one
    # character come once.
    edges = [spans[start - low][0]] + [end for _, end in spans[start - low : stop - low]]
    tokens = tuple(fired.texts[text][left:right] for left, right in pairwise(edges))
    return Example(tokens, activations_N[start:stop].astype(np.float32))


@dataclass(frozen=True, eq=False)
class Heldout:
    """The held-out texts, each cut into windows of nearly equal length."""

    starts: Int[np.ndarray, " windows"]
    """First token of each window, among the held-out tokens."""
    windows: tuple[str, ...]
    """Their characters."""


@dataclass(frozen=True, eq=False)
class Trial:
    """Windows on which one feature's description is tested; none where there are too few of one kind."""

    windows: tuple[str, ...]
    """As many firing as silent ones, mixed."""
    truth: Bool[np.ndarray, " windows"]
    """Whether the feature fires strongly there."""


def heldout(fired: Firing) -> Heldout:
    """Cut the held-out texts into windows of at most 16 tokens."""
    starts: list[int] = []
    windows: list[str] = []
    for text in range(fired.n_shown, len(fired.texts)):
        spans = fired.spans[text]
        for part in np.array_split(np.arange(len(spans)), -(-len(spans) // WINDOW) or 1):
            if len(part):
                starts.append(int(fired.starts[text] - fired.shown_end + part[0]))
                windows.append(fired.texts[text][spans[part[0]][0] : spans[part[-1]][1]])
    return Heldout(np.array(starts, int), tuple(windows))


def strong_level(activations: Float[np.ndarray, " shown"]) -> float:
    """Give the activation from which a feature fires strongly; any at all, for one that fires on fewer tokens.

    Dictionaries of small models are dense: their features are active at some level nearly everywhere, and only the
    strongest activations tell what one of them is about.
    """
    return max(TIE * float(np.quantile(activations, STRONG_QUANTILE)), 1e-6)


def trial(fired: Firing, later: Heldout, row: int, seed: int) -> Trial:
    """Draw a feature's firing and silent windows with the seed; other features do not change the draw."""
    site, index = fired.features[row]
    nothing = Trial((), np.zeros(0, bool))
    if not len(later.starts):
        return nothing
    activations_N = fired.activations(row)
    level = strong_level(activations_N[: fired.shown_end])
    fires = np.maximum.reduceat(activations_N[fired.shown_end :], later.starts) >= level
    n = min(int(fires.sum()), int((~fires).sum()), MAX_WINDOWS)
    if n < MIN_WINDOWS:
        return nothing
    generator = np.random.default_rng((seed, zlib.crc32(site.encode()), index))
    drawn = np.concatenate([generator.choice(np.flatnonzero(kind), n, replace=False) for kind in (fires, ~fires)])
    mixed = generator.permutation(drawn)
    return Trial(tuple(later.windows[at] for at in mixed), fires[mixed])
