"""Windows as a suffix tree: which tokens share their last one, two, three or four tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

DEPTH, REACH = 4, 8
"""Levels of the tree, and how far back the tokens before a token are kept: for suffixes with gaps."""
ONCE_DEPTH = 2
"""Suffixes longer than this count only if a corpus holds them more than once; those of windows added later always do."""
SHIFT = 32
"""Bits of a token id, in a key that holds the parent's place above it."""


@dataclass(frozen=True, eq=False)
class Level:
    """The suffixes of one length."""

    keys: Int[np.ndarray, " nodes"]
    """Place of the parent among the level above, and the token that is added, in one number."""
    node_N: Int[np.ndarray, " tokens"]
    """Node of each token; -1 where the window is too short."""
    pair_N: Int[np.ndarray, " tokens"]
    """Number of the token's (window, node); -1 where there is no node."""
    n_pairs: int
    """How many there are."""

    @property
    def parents(self) -> Int[np.ndarray, " nodes"]:
        """Place of each node's parent."""
        return self.keys >> SHIFT

    @property
    def tokens(self) -> Int[np.ndarray, " nodes"]:
        """The token that each node adds."""
        return self.keys & (2**SHIFT - 1)


@dataclass(frozen=True, eq=False)
class Corpus:
    """The tokens of windows, each with those before it, and the suffix tree over them."""

    before_ND: Int[np.ndarray, "tokens reach"]
    """Each token, the one before it, and so on; -1 before the window's start."""
    window_N: Int[np.ndarray, " tokens"]
    """Window of each token."""
    n_windows: int
    """How many windows."""
    levels: tuple[Level, ...]
    """The suffixes of length 1, 2, 3, 4."""


def corpus_of(windows: Sequence[Sequence[int]]) -> Corpus:
    """Give the suffix tree of windows of token ids; every token of each counts, and of long suffixes those that come again.

    >>> corpus_of([[5, 7], [5, 7]]).levels[1].node_N
    array([-1,  0, -1,  0])
    """
    nothing = Level(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), 0)
    return extended(Corpus(np.zeros((0, REACH), np.int64), np.zeros(0, np.int64), 0, (nothing,) * DEPTH), windows)


def extended(corpus: Corpus, windows: Sequence[Sequence[int]], ends: Sequence[Sequence[int]] = ()) -> Corpus:
    """Give the corpus of `corpus_of` with more windows, and with some of which the last token alone counts.

    Its nodes keep their places, those of new suffixes come after them. What this returns is not extended again.
    """
    rows = [_before(window) for window in windows] + [_before(window)[-1:] for window in ends]
    before_ND = np.concatenate([np.zeros((0, REACH), np.int64), *rows])
    window_N = corpus.n_windows + np.repeat(np.arange(len(rows)), [len(row) for row in rows]).astype(np.int64)
    levels, parent_N = [], np.zeros(len(before_ND), np.int64)
    for depth, old in enumerate(corpus.levels):
        is_in = (before_ND[:, depth] >= 0) & (parent_N >= 0)
        if depth >= ONCE_DEPTH and not corpus.n_windows:
            is_in[is_in] = _comes_again(parent_N[is_in] << SHIFT | before_ND[is_in, depth])
        keys, places = _placed(old.keys, parent_N[is_in] << SHIFT | before_ND[is_in, depth])
        node_N, pair_N = np.full((2, len(before_ND)), -1, np.int64)
        node_N[is_in] = places
        pairs, numbers = np.unique(window_N[is_in] << SHIFT | places, return_inverse=True)
        pair_N[is_in] = old.n_pairs + numbers
        node_N_all, pair_N_all = np.concatenate([old.node_N, node_N]), np.concatenate([old.pair_N, pair_N])
        levels.append(Level(keys, node_N_all, pair_N_all, old.n_pairs + len(pairs)))
        parent_N = node_N
    return Corpus(
        np.concatenate([corpus.before_ND, before_ND]), np.concatenate([corpus.window_N, window_N]),
        corpus.n_windows + len(rows), tuple(levels),
    )  # fmt: skip


def _before(window: Sequence[int]) -> Int[np.ndarray, "tokens reach"]:
    ids = np.asarray(window, np.int64)
    rows = np.full((len(ids), REACH), -1, np.int64)
    for back in range(min(REACH, len(ids))):
        rows[back:, back] = ids[: len(ids) - back]
    return rows


def _comes_again(keys: np.ndarray) -> Bool[np.ndarray, " keys"]:
    _, places, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return counts[places] > 1


def _placed(sorted_keys: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the keys of a level with new ones at its end, and where each of `keys` stands among them."""
    fresh, places = np.unique(keys, return_inverse=True)
    if not len(sorted_keys):
        return fresh, places
    found = np.minimum(np.searchsorted(sorted_keys, fresh), len(sorted_keys) - 1)
    is_new = sorted_keys[found] != fresh
    found[is_new] = len(sorted_keys) + np.arange(int(is_new.sum()))
    return np.concatenate([sorted_keys, fresh[is_new]]), found[places]
