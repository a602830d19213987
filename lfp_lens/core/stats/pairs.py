"""Kendall's pairs: the concordance of every two words, summed by group, and counted for many permutations at once."""

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.core.stats.resampling import Statistic

ROWS = 512
"""Rows of a words x words matrix that are in memory at a time."""


def tau_statistic(
    learned: Float[np.ndarray, " words"], given: Float[np.ndarray, " words"], groups: Int[np.ndarray, " words"]
) -> Statistic:
    """Give tau-b as a function of how often each group was drawn.

    With w the multiplicities and S the sums over two groups' words of sign(x_i - x_j) sign(y_i - y_j), the numerator is
    w'Sw, and each side's denominator w'w less its ties. Copies of one word tie with one another on both sides.
    """
    sizes = np.bincount(groups).astype(float)
    concordance = _between_groups(learned, given, groups)
    tied = [_tied(values, groups) for values in (learned, given)]

    def tau(multiplicities: np.ndarray) -> np.ndarray:
        pairs = (multiplicities @ sizes) ** 2
        untied = [np.maximum(pairs - ties(multiplicities), 0) for ties in tied]
        with np.errstate(invalid="ignore", divide="ignore"):
            return quadratic(concordance, multiplicities) / np.sqrt(untied[0] * untied[1])

    return tau


def auc_statistic(
    score: Float[np.ndarray, " items"], is_positive: np.ndarray, groups: Int[np.ndarray, " items"]
) -> Statistic:
    """Give the area under the ROC curve as a function of how often each group was drawn; equal scores count half."""
    side = is_positive.astype(float)
    concordance = _between_groups(score, side, groups)
    positive, negative = (np.bincount(groups, weight) for weight in (side, 1 - side))

    def area(multiplicities: np.ndarray) -> np.ndarray:
        pairs = (multiplicities @ positive) * (multiplicities @ negative)
        with np.errstate(invalid="ignore", divide="ignore"):
            # Every unordered pair is summed twice.
            return 0.5 + quadratic(concordance, multiplicities) / (4 * pairs)

    return area


def quadratic(matrix: Float[np.ndarray, "groups groups"], rows: np.ndarray) -> Float[np.ndarray, " draws"]:
    """Give w'Aw for every row w. Single precision is exact here: A holds whole numbers, and sums stay below 2^24."""
    return np.einsum("dg,dg->d", (rows.astype(np.float32) @ matrix).astype(float), rows)


def _between_groups(
    x: Float[np.ndarray, " words"], y: Float[np.ndarray, " words"], groups: Int[np.ndarray, " words"]
) -> Float[np.ndarray, "groups groups"]:
    order = np.argsort(groups, kind="stable")
    groups = groups[order]
    # Only the order of values matters, and ranks subtract faster.
    x, y = (np.unique(values, return_inverse=True)[1][order].astype(np.float32) for values in (x, y))
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    summed = np.zeros((len(starts), len(starts)), np.float32)
    for first in range(0, len(x), ROWS):
        rows = slice(first, first + ROWS)
        signs = np.sign(x[rows, None] - x) * np.sign(y[rows, None] - y)
        here = np.flatnonzero(np.diff(groups[rows], prepend=-1))
        by_column = np.add.reduceat(signs, starts, axis=1)
        summed[groups[rows][here]] += np.add.reduceat(by_column, here, axis=0)
    return summed


def _tied(values: Float[np.ndarray, " words"], groups: Int[np.ndarray, " words"]) -> Statistic:
    """Give the number of ordered pairs of drawn words with equal values, a word with itself and its copies included."""
    _, classes, sizes = np.unique(values, return_inverse=True, return_counts=True)
    shared = sizes[classes] > 1
    alone = np.bincount(groups[~shared], minlength=groups.max() + 1).astype(float)
    names, columns = np.unique(classes[shared], return_inverse=True)
    counts = np.zeros((len(alone), len(names)))
    np.add.at(counts, (groups[shared], columns), 1)
    return lambda rows: rows**2 @ alone + ((rows @ counts) ** 2).sum(axis=1)


def concordances(
    learned: Float[np.ndarray, " words"], codes: Int[np.ndarray, "draws words"], n_codes: int
) -> Int[np.ndarray, " draws"]:
    """Give Kendall's S (concordant less discordant pairs) of `learned` with every row of ranked values.

    Args:
        learned: one value per word.
        codes: rearrangements of the other side's values, as their dense ranks from 0.
        n_codes: how many distinct ranks there are.

    Words are put in the order of `learned`. Where that side has ties, the same words in reversed order inside each tie
    have the opposite sum within it, so that the mean of both orders leaves ties out.
    """
    forward = np.argsort(learned, kind="stable")
    backward = np.lexsort((-np.arange(len(learned)), learned))
    orders = [forward] if np.array_equal(forward, backward) else [forward, backward]
    # Pairs within a chunk are compared one by one, and between chunks by histograms: this width balances the two.
    width = int(np.sqrt(6 * n_codes)) + 1
    size = max(1, 4_000_000 // (len(learned) + len(learned) * n_codes // width))
    found = [
        sum(_ascents(codes[start : start + size][:, order], n_codes, width) for order in orders) // len(orders)
        for start in range(0, len(codes), size)
    ]
    return np.concatenate(found)


def _ascents(codes: Int[np.ndarray, "draws words"], n_codes: int, width: int) -> Int[np.ndarray, " draws"]:
    """Count pairs in which the later code is larger, less those in which it is smaller."""
    draws, n = codes.shape
    chunks = -(-n // width)
    padded = np.full((draws, chunks * width), -1, np.int32)
    padded[:, :n] = codes
    inside = padded.reshape(draws, chunks, width)
    found = np.zeros(draws, np.int64)
    for step in range(1, min(width, n)):
        early, late = inside[:, :, :-step], inside[:, :, step:]
        up = (late > early).sum(axis=(1, 2))
        # Padding stands at the end and is smaller than any code: it must not count as a descent.
        down = ((late < early) & (late >= 0)).sum(axis=(1, 2))
        found += up - down
    places = (np.arange(draws)[:, None] * chunks + np.arange(n) // width) * n_codes + codes
    here = np.bincount(places.ravel(), minlength=draws * chunks * n_codes).reshape(draws, chunks, n_codes)
    before = here.cumsum(axis=1) - here
    up_to = before.cumsum(axis=2)
    balance = (up_to - before) - (up_to[:, :, -1:] - up_to)
    return found + np.einsum("dck,dck->d", here, balance)
