"""Cohen's kappa: how far two judges agree beyond what their habits alone would give."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats.estimates import Estimate, bootstrap_interval

Judgements = Sequence[object] | Shaped[np.ndarray, " n"]


def cohen_kappa(first: Judgements, second: Judgements, *, draws: int = 1000, seed: int = 0) -> Estimate:
    """Give Cohen's kappa (scikit-learn's) with its 95 % percentile interval, judged units resampled.

    1 is full agreement, 0 what the two judges' own shares of each class would give. NaN where there is nothing, or where
    both gave one class only: then kappa has no value, however much they agree.

    Args:
        first: the class each unit was given by one judge.
        second: by the other, in the same order.
        draws: bootstrap draws; those without a value are left out.
        seed: of the draws.

    Raises:
        LensError: if the two judged different numbers of units.

    >>> cohen_kappa(["a", "b", "a", "b"], ["a", "b", "a", "b"]).value
    1.0
    """
    if len(first) != len(second):
        raise LensError(
            f"One judge gave {len(first)} judgements, the other {len(second)}: they must be of the same units."
        )
    codes = np.unique(np.array([*map(str, first), *map(str, second)]), return_inverse=True)[1].reshape(2, -1)
    n = codes.shape[1]
    value = _kappa(codes)
    if math.isnan(value):
        return Estimate(math.nan, math.nan, math.nan, n)
    low, high = bootstrap_interval(lambda rows: _kappa(codes[:, rows]), np.arange(n), draws=draws, seed=seed)
    return Estimate(value, low, high, n)


def _kappa(codes: Shaped[np.ndarray, "2 n"]) -> float:
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(*codes)) if len(np.unique(codes)) > 1 else math.nan
