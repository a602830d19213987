"""Numbers with their intervals: effects per token or text, shares, rank correlations. Units are resampled."""

import numpy as np
from scipy import stats

from lfp_lens.core.stats import Estimate

DRAWS = 500


def ratio_intervals(over_FU: np.ndarray, under_U: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the 95 % interval of sum over units / sum over units of each row; the same units are drawn for all."""
    n = over_FU.shape[1]
    drawn = np.random.default_rng(seed).integers(n, size=(DRAWS, n))
    counts = np.stack([np.bincount(rows, minlength=n) for rows in drawn])
    under = counts @ under_U
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (counts @ over_FU.T) / under[:, None]
    if not len(over_FU) or not np.isfinite(ratios).all():
        return np.full(len(over_FU), np.nan), np.full(len(over_FU), np.nan)
    low, high = np.quantile(ratios, (0.025, 0.975), axis=0)
    return low, high


def ratio_estimate(over_U: np.ndarray, under_U: np.ndarray, seed: int) -> Estimate:
    """Give sum / sum with its interval."""
    low, high = ratio_intervals(over_U[None], under_U, seed)
    return Estimate(float(over_U.sum() / under_U.sum()), float(low[0]), float(high[0]), len(over_U))


def spearman(screen: np.ndarray, exact: np.ndarray, seed: int) -> Estimate:
    """Give the rank correlation of screen and exact; NaN for fewer than 5 features, or where one of them is constant."""
    n = len(screen)
    if n < 5 or np.ptp(exact) == 0 or np.ptp(screen) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), n)
    drawn = np.concatenate([np.arange(n)[None], np.random.default_rng(seed).integers(n, size=(2 * DRAWS, n))])
    left, right = (_centred(stats.rankdata(values[drawn], axis=1)) for values in (screen, exact))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (left * right).sum(1) / np.sqrt((left**2).sum(1) * (right**2).sum(1))
    low, high = np.nanquantile(found[1:], (0.025, 0.975))
    return Estimate(float(found[0]), float(low), float(high), n)


def _centred(ranks: np.ndarray) -> np.ndarray:
    return ranks - ranks.mean(1, keepdims=True)
