"""From counted suffixes to a trie that predicts: shrunken means, and the nodes that matter.

The value of a suffix is a mean shrunk towards that of the suffix one token shorter, v = (sum + v_parent) / (n + 1): what was
seen once is half believed. To set the levels, each window is predicted from all the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lfp_lens.core.token_trie import ANY, Node, TokenTrie
from lfp_lens.parts.labellers.graph.corpus import Corpus
from lfp_lens.parts.labellers.graph.levels import Seen, fires_level, holds_level

PRIOR = 1.0
"""How many tokens a shorter suffix counts for in the value of a longer one."""
SOFTNESS = 0.05
"""A token counts as strong by a logistic step at the level, this wide as a share of it."""
MAX_KEPT = 800
"""Suffixes kept for what they explain; with those that lead to them a trie stays below four times as many."""
LEAST_GAIN = 1e-9
"""A suffix that explains less is none."""


@dataclass(frozen=True, eq=False)
class _Gap:
    """A suffix with gaps that predicts the tokens it matches better than suffixes without."""

    path: tuple[int, ...]
    is_met_N: np.ndarray
    values_K: np.ndarray


@dataclass(frozen=True, eq=False)
class _Grown:
    """A level of the trie, by node: mean and share of strong tokens, tokens counted, and what it adds to its parent."""

    values_KF: np.ndarray
    counts: np.ndarray
    gains: np.ndarray
    is_counted_N: np.ndarray


@dataclass(frozen=True, eq=False)
class _Goal:
    """What is predicted: activation and strength, with their means and spreads over text as it stands."""

    targets_KN: np.ndarray
    root_K: np.ndarray
    scale_K: np.ndarray


def grow(seen: Seen, gaps: Sequence[Sequence[int]], texts: Mapping[int, str]) -> TokenTrie:
    """Give the trie that predicts a feature best from the suffixes seen.

    Args:
        seen: what the feature does.
        gaps: suffixes with gaps that perturbing found, last token first, `ANY` where the token does not matter. One is taken if
            it predicts the tokens it matches better than the suffixes without gaps do.
        texts: how tokens are spelt.
    """
    corpus, acts_N = seen.corpus, np.clip(seen.acts_N, 0, 1)
    targets_KN = np.stack([acts_N, 1 / (1 + np.exp(-np.clip((acts_N / seen.level - 1) / SOFTNESS, -60, 60)))])
    text_KN = targets_KN[:, seen.is_text_W[corpus.window_N]]
    goal = _Goal(targets_KN, text_KN.mean(1), np.maximum(text_KN.std(1), 1e-6))
    is_free_N = np.ones(len(acts_N), bool)
    levels, kept, predicted_KN = _predicted(corpus, goal, is_free_N)
    taken = [gap for path in gaps if (gap := _gap(corpus, tuple(path), goal, predicted_KN))]
    if taken:
        is_free_N = ~np.logical_or.reduce([gap.is_met_N for gap in taken])
        levels, kept, predicted_KN = _predicted(corpus, goal, is_free_N)
        for gap in taken:
            _left_out_of_gap(corpus.window_N, gap, goal, predicted_KN)
    nodes = _nodes(corpus, levels, kept, goal, taken, is_free_N)
    used = {node.token for node in nodes}
    return TokenTrie(
        tuple(nodes), fires_level(seen, targets_KN[1], predicted_KN[1]), holds_level(seen, predicted_KN[0]),
        {token: text for token, text in texts.items() if token in used},
    )  # fmt: skip


def _predicted(corpus: Corpus, goal: _Goal, is_free_N: np.ndarray) -> tuple[list[_Grown], list[np.ndarray], np.ndarray]:
    """Value the suffixes, choose those to keep and predict every token from all windows but its own."""
    levels = _levels(corpus, goal, is_free_N)
    kept = _kept(corpus, levels)
    return levels, kept, _left_out(corpus, levels, kept, goal)


def _levels(corpus: Corpus, goal: _Goal, is_free_N: np.ndarray) -> list[_Grown]:
    """Value every suffix. Tokens that a gap explains count for no suffix of two tokens or more."""
    grown, above_KF = [], goal.root_K[:, None]
    for depth, level in enumerate(corpus.levels):
        is_counted_N = (level.node_N >= 0) & (is_free_N if depth else True)
        node, n = level.node_N[is_counted_N], len(level.keys)
        counts = np.bincount(node, minlength=n)
        sums_KF = np.stack([np.bincount(node, weights=row[is_counted_N], minlength=n) for row in goal.targets_KN])
        parents_KF = above_KF[:, level.parents]
        values_KF = (sums_KF + PRIOR * parents_KF) / (counts + PRIOR)
        gains = counts * (((values_KF - parents_KF) / goal.scale_K[:, None]) ** 2).sum(0)
        grown.append(_Grown(values_KF, counts, gains, is_counted_N))
        above_KF = values_KF
    return grown


def _kept(corpus: Corpus, levels: Sequence[_Grown]) -> list[np.ndarray]:
    """Mark the nodes of each level that explain most, and those on the way to them."""
    gains = np.concatenate([level.gains for level in levels])
    least = max(np.partition(gains, -MAX_KEPT)[-MAX_KEPT] if len(gains) > MAX_KEPT else 0.0, LEAST_GAIN)
    kept = [level.gains >= least for level in levels]
    for depth in range(len(levels) - 1, 0, -1):
        kept[depth - 1][corpus.levels[depth].parents[kept[depth]]] = True
    return kept


def _left_out(corpus: Corpus, levels: Sequence[_Grown], kept: Sequence[np.ndarray], goal: _Goal) -> np.ndarray:
    predicted_KN = np.repeat(goal.root_K[:, None], goal.targets_KN.shape[1], axis=1)
    for level, grown, is_kept in zip(corpus.levels, levels, kept):
        rows = np.flatnonzero(grown.is_counted_N)
        rows = rows[is_kept[level.node_N[rows]]]
        node, pair = level.node_N[rows], level.pair_N[rows]
        others = grown.counts[node] - np.bincount(pair, minlength=level.n_pairs)[pair]
        for predicted_N, target_N in zip(predicted_KN, goal.targets_KN):
            sums = np.bincount(node, weights=target_N[rows], minlength=len(grown.counts))[node]
            own = np.bincount(pair, weights=target_N[rows], minlength=level.n_pairs)[pair]
            predicted_N[rows] = (sums - own + PRIOR * predicted_N[rows]) / (others + PRIOR)
    return predicted_KN


def _gap(corpus: Corpus, path: tuple[int, ...], goal: _Goal, predicted_KN: np.ndarray) -> _Gap | None:
    """Give a suffix with gaps if its mean is nearer to the tokens it matches than what suffixes without gaps predict."""
    is_met_N = corpus.before_ND[:, len(path) - 1] >= 0
    for back, token in enumerate(path):
        if token != ANY:
            is_met_N &= corpus.before_ND[:, back] == token
    if not is_met_N.any():
        return None
    values_K = (goal.targets_KN[:, is_met_N].sum(1) + PRIOR * goal.root_K) / (is_met_N.sum() + PRIOR)
    gap, left_KN = _Gap(path, is_met_N, values_K), predicted_KN.copy()
    _left_out_of_gap(corpus.window_N, gap, goal, left_KN)
    without, by_gap = (
        (((rows_KN - goal.targets_KN)[:, is_met_N] / goal.scale_K[:, None]) ** 2).sum()
        for rows_KN in (predicted_KN, left_KN)
    )
    return gap if by_gap < without else None


def _left_out_of_gap(window_N: np.ndarray, gap: _Gap, goal: _Goal, predicted_KN: np.ndarray) -> None:
    """Predict the tokens a gap matches by it, from all windows but their own."""
    rows = np.flatnonzero(gap.is_met_N)
    window = window_N[rows]
    others = len(rows) - np.bincount(window)[window]
    for predicted_N, target_N, root in zip(predicted_KN, goal.targets_KN, goal.root_K):
        own = np.bincount(window, weights=target_N[rows])[window]
        predicted_N[rows] = (target_N[rows].sum() - own + PRIOR * root) / (others + PRIOR)


def _nodes(
    corpus: Corpus, levels: Sequence[_Grown], kept: Sequence[np.ndarray], goal: _Goal, gaps: Sequence[_Gap], is_free_N: np.ndarray
) -> list[Node]:  # fmt: skip
    """Give the kept suffixes as nodes, then those with gaps."""
    nodes = [Node(-1, ANY, *goal.root_K.tolist())]
    places: dict[tuple[int, ...], int] = {(): 0}

    def add(path: tuple[int, ...], values_K: np.ndarray) -> None:
        if path not in places:
            places[path] = len(nodes)
            nodes.append(Node(places[path[:-1]], path[-1], *values_K.tolist()))

    above: dict[int, tuple[int, ...]] = {0: ()}
    for level, grown, is_kept in zip(corpus.levels, levels, kept):
        own = np.flatnonzero(is_kept)
        parents, tokens = (row[own].tolist() for row in (level.parents, level.tokens))
        paths = {place: (*above[parent], token) for place, parent, token in zip(own.tolist(), parents, tokens)}
        for path, values_K in zip(paths.values(), grown.values_KF[:, own].T):
            add(path, values_K)
        above = paths
    for gap in gaps:
        for n in range(1, len(gap.path)):
            add(gap.path[:n], _rest(corpus, gap.path[0], is_free_N, goal))
        add(gap.path, gap.values_K)
    return nodes


def _rest(corpus: Corpus, token: int, is_free_N: np.ndarray, goal: _Goal) -> np.ndarray:
    """Give the values of a token where no gap explains it."""
    rows = np.flatnonzero((corpus.before_ND[:, 0] == token) & is_free_N)
    return (goal.targets_KN[:, rows].sum(1) + PRIOR * goal.root_K) / (len(rows) + PRIOR)
