"""Shares of independent units, and the difference of two of them, with intervals that hold for small n."""

import math

from scipy import stats

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats.estimates import Estimate


def share_estimate(hits: int, n: int) -> Estimate:
    """Give a share with its 95 % Wilson interval; NaN of nothing.

    Raises `LensError` for more hits than units.

    >>> print(share_estimate(21, 50))
    0.420 [0.294, 0.558], n=50
    """
    if not 0 <= hits <= n:
        raise LensError(f"{hits} of {n} is no share.")
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    interval = stats.binomtest(hits, n).proportion_ci(method="wilson")
    return Estimate(hits / n, float(interval.low), float(interval.high), n)


def share_difference(first: Estimate, second: Estimate) -> Estimate:
    """Give the difference of two shares of unlike units with its 95 % interval: Newcombe (1998), method 10.

    Args:
        first: from `share_estimate`.
        second: what is taken from it.

    Returns an estimate whose n counts the units of both.

    >>> print(share_difference(share_estimate(21, 50), share_estimate(13, 50)))
    0.160 [-0.025, 0.331], n=100
    """
    difference = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(difference, difference - below, difference + above, first.n + second.n)
