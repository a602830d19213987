"""Resampling whole groups: the BCa interval of a statistic, and permutations that keep groups and strata together.

A bootstrap draw is written as how often each group was drawn, so that a block of draws is a few matrix products.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import stats

Statistic = Callable[[Float[np.ndarray, "draws groups"]], Float[np.ndarray, " draws"]]
"""Gives the value of a statistic for each row of multiplicities; NaN where that draw has none."""
BLOCK = 512
"""Draws computed at a time: bounds memory, changes no number."""


def bca_interval(statistic: Statistic, n_groups: int, *, draws: int, seed: int) -> tuple[float, float]:
    """Give the 95 % bias-corrected and accelerated bootstrap interval (Efron 1987) when whole groups are resampled.

    Args:
        statistic: the statistic as a function of multiplicities; `ones` is the data as they are.
        n_groups: independent groups; the acceleration comes from leaving out each of them once.
        draws: bootstrap draws. Those without a value (one side constant) are left out.
        seed: of the draws.

    Source: Efron and Tibshirani (1993), equations 14.9 to 14.15; draws equal to the estimate count half.
    """
    generator = np.random.default_rng(seed)
    drawn = np.concatenate([
        statistic(_multiplicities(generator, min(BLOCK, draws - start), n_groups)) for start in range(0, draws, BLOCK)
    ])  # fmt: skip
    drawn = np.sort(drawn[np.isfinite(drawn)])
    if not len(drawn):
        return float("nan"), float("nan")
    value = statistic(np.ones((1, n_groups)))[0]
    # Equal values differ by rounding: a statistic that never varies is not above itself.
    slack = 1e-9 * max(1.0, abs(value))
    below, up_to = np.searchsorted(drawn, (value - slack, value + slack))
    bias = stats.norm.ppf(np.clip((below + up_to) / 2, 0.5, len(drawn) - 0.5) / len(drawn))
    pull = _acceleration(statistic, n_groups)
    z = bias + stats.norm.ppf(np.array([0.025, 0.975]))
    low, high = np.quantile(drawn, stats.norm.cdf(bias + z / (1 - pull * z)))
    return float(low), float(high)


def _acceleration(statistic: Statistic, n_groups: int) -> float:
    """Give the skewness of the influence of single groups, over 6, by the jackknife."""
    without = []
    for start in range(0, n_groups, BLOCK):
        rows = np.arange(start, min(start + BLOCK, n_groups))
        multiplicities = np.ones((len(rows), n_groups))
        multiplicities[np.arange(len(rows)), rows] = 0
        without.append(statistic(multiplicities))
    left = np.concatenate(without)
    left = left[np.isfinite(left)]
    gap = left.mean() - left if len(left) else np.zeros(1)
    spread = float((gap**2).sum())
    return float((gap**3).sum() / (6 * spread**1.5)) if spread > 1e-18 else 0.0


def _multiplicities(generator: np.random.Generator, draws: int, n_groups: int) -> Float[np.ndarray, "draws groups"]:
    """Count how often each group is drawn; several times faster than NumPy's multinomial."""
    picks = generator.integers(n_groups, size=(draws, n_groups)) + n_groups * np.arange(draws)[:, None]
    return np.bincount(picks.ravel(), minlength=draws * n_groups).reshape(draws, n_groups).astype(float)


def codes_of(groups: Sequence[str] | Shaped[np.ndarray, " words"] | None, n: int) -> Int[np.ndarray, " words"]:
    """Give each word the number of its group, counted from 0; without groups every word is its own."""
    return np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]


def exchangeable(
    groups: Int[np.ndarray, " words"], *marks: Int[np.ndarray, " words"] | None
) -> list[Int[np.ndarray, "groups members"]]:
    """Sort groups into cells within which they may be exchanged whole: the same size and the same marks, word by word.

    Args:
        groups: each word's group, as `codes_of` gives it.
        marks: what an exchange must keep at each word (its sign, its stratum); None keeps nothing.

    Returns:
        One array of row indices per cell with at least two groups; a group alone in its cell stays where it is.
    """
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    cells: dict[tuple, list[np.ndarray]] = {}
    for rows in members:
        key = (len(rows), *(tuple(mark[rows].tolist()) for mark in marks if mark is not None))
        cells.setdefault(key, []).append(rows)
    return [np.array(cell) for cell in cells.values() if len(cell) > 1]


def median_stratum(
    strata: Shaped[np.ndarray, " words"] | None, groups: Int[np.ndarray, " words"]
) -> Int[np.ndarray, " words"] | None:
    """Give every word the (lower) median stratum of its group: words of one lemma differ in frequency."""
    if strata is None:
        return None
    codes = np.unique(np.asarray(strata), return_inverse=True)[1]
    order = np.lexsort((codes, groups))
    sizes = np.bincount(groups)
    middle = np.cumsum(sizes) - sizes + (sizes - 1) // 2
    return codes[order][middle][groups]


def permutations(
    cells: Sequence[Int[np.ndarray, "groups members"]], n: int, draws: int, generator: np.random.Generator
) -> Int[np.ndarray, "draws words"]:
    """Give `draws` rearrangements of n rows; each moves whole groups within their cells."""
    rows = np.tile(np.arange(n), (draws, 1))
    for cell in cells:
        order = generator.permuted(np.tile(np.arange(len(cell)), (draws, 1)), axis=1)
        rows[:, cell.ravel()] = cell[order].reshape(draws, -1)
    return rows


def rank_p(drawn: Int[np.ndarray, " draws"], found: int, generator: np.random.Generator) -> float:
    """Give p = (b + 1) / (m + 1) of a value among m draws at least as large; its place among equal ones is random.

    Under the null it is exactly uniform on 1/(m+1), 2/(m+1), ..., 1, however many draws are tied.

    >>> rank_p(np.array([1, 2, 3]), 4, np.random.default_rng(0))
    0.25
    """
    above = (drawn > found).sum() + generator.integers((drawn == found).sum() + 1)
    return float((above + 1) / (len(drawn) + 1))
