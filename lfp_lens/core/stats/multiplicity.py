"""Many tests at once: Benjamini and Hochberg over all of them, and Holm."""

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from lfp_lens.core.errors import LensError


def discoveries(p_values: Float[np.ndarray, " tests"], fdr: float) -> Bool[np.ndarray, " tests"]:
    """Mark what Benjamini and Hochberg (1995) keep at this false discovery rate, over everything that was tested.

    >>> discoveries(np.array([0.001, 0.9, 0.02]), fdr=0.1)
    array([ True, False,  True])
    """
    if not 0 < fdr < 1:
        raise LensError(f"fdr must lie between 0 and 1; {fdr} given.")
    return stats.false_discovery_control(_checked(p_values), method="bh") <= fdr


def holm(p_values: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Give Holm's (1979) adjusted p-values: those at most alpha keep the chance of any false claim at most alpha.

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    p_values = _checked(p_values)
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted


def _checked(p_values: Float[np.ndarray, " tests"]) -> np.ndarray:
    p_values = np.asarray(p_values, float)
    wrong = int((~((p_values >= 0) & (p_values <= 1))).sum())
    if wrong:
        raise LensError(f"{wrong} of {len(p_values)} p-values do not lie between 0 and 1: no test stands behind them.")
    return p_values
