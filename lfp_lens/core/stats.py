"""The statistics every verb shares: an estimate with its n and interval, rank agreement on values, BH.

SciPy computes the statistics; what is here is the clustering by lemma or prompt and the refusals.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import stats

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import record


@record
class Estimate:
    """A number with what it takes to believe it."""

    value: float
    """The point estimate, in the unit its owner names."""
    low: float
    """Lower end of the 95 % bootstrap interval."""
    high: float
    """Upper end of the 95 % bootstrap interval."""
    n: int
    """How many independent units (texts, words, prompts) it rests on."""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], n={self.n}"


@record
class RankAgreement:
    """Kendall's tau-b between learned and given values of the same words."""

    tau: float
    """tau-b, from -1 to 1; ties are accounted for (VADER has only 73 distinct values)."""
    p_value: float
    """Two-sided p of SciPy's test of tau = 0 (exact without ties in a small sample, else asymptotic)."""
    low: float
    """Lower end of the 95 % interval; words are resampled in whole groups (lemmas)."""
    high: float
    """Upper end of the 95 % interval."""
    n: int
    """Words compared."""
    groups: int
    """Lemmas (or other groups) those words fall into."""

    def __str__(self) -> str:
        return f"tau-b {self.tau:.3f} [{self.low:.3f}, {self.high:.3f}], p={self.p_value:.2g}, n={self.n}"


def rank_agreement(
    learned: Float[np.ndarray, " words"],
    given: Float[np.ndarray, " words"],
    groups: Sequence[str] | Shaped[np.ndarray, " words"] | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> RankAgreement:
    """Tell how well two sets of word values agree in order: tau-b on aligned values, never on word strings.

    Args:
        learned: one value per word.
        given: one value per word, in the same order.
        groups: one label per word (its lemma); the interval resamples whole groups. None: each word its own group.
        draws: bootstrap draws for the percentile interval.
        seed: of the bootstrap.

    Raises:
        LensError: if the lengths differ, fewer than 3 words are given, or one side is constant or not finite.

    The published statistic ranked word strings and measured almost nothing (arXiv 2310.08164, section 4.1). On the
    paper's own 11 words of Table 2:

    >>> table_2_given = np.array([2.5, 2.9, 3.1, 2.7, 2.7, 2.9, -1.7, -1.9, -1.9, -1.6, -2.5])
    >>> table_2_learned = np.array([1.4, 2.0, 1.0, -0.81, 0.64, 1.28, -2.2, -2.2, -2.6, -2.53, -2.29])
    >>> round(rank_agreement(table_2_learned, table_2_given).tau, 4)
    0.585
    """
    learned, given, labels = _aligned(learned, given, groups)
    if len(given) < 3:
        raise LensError(f"Rank agreement needs at least 3 words; {len(given)} given.")
    for name, values in (("learned", learned), ("given", given)):
        if np.ptp(values) == 0:
            raise LensError(f"The {name} values are constant ({values[0]:g}): no order to agree with.")
    whole = stats.kendalltau(learned, given, variant="b")
    low, high = bootstrap_interval(
        lambda rows: stats.kendalltau(learned[rows], given[rows], variant="b").statistic,
        labels,
        draws=draws,
        seed=seed,
    )
    return RankAgreement(float(whole.statistic), float(whole.pvalue), low, high, len(given), len(np.unique(labels)))


def balanced_sign_accuracy(
    learned: Float[np.ndarray, " words"],
    given: Float[np.ndarray, " words"],
    groups: Sequence[str] | Shaped[np.ndarray, " words"] | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Give the mean over both polarities of the share of words learned with the given sign (0.5 is chance).

    Words rated 0 have no sign and are not counted. Raises `LensError` as `rank_agreement` does, or without both
    polarities.

    >>> balanced_sign_accuracy(np.array([1.0, 2.0, -1.0]), np.array([3.0, 1.0, 2.0])).value
    Traceback (most recent call last):
    ...
    lfp_lens.core.errors.LensError: Sign accuracy needs words of both polarities; 3 positive, 0 negative given.
    """
    learned, given, labels = _aligned(learned, given, groups)
    positive, negative = given > 0, given < 0
    if not positive.any() or not negative.any():
        raise LensError(
            "Sign accuracy needs words of both polarities; "
            f"{int(positive.sum())} positive, {int(negative.sum())} negative given."
        )

    def accuracy(rows: np.ndarray) -> float:
        right = np.sign(learned[rows]) == np.sign(given[rows])
        halves = [right[side[rows]] for side in (positive, negative)]
        return float(np.mean([half.mean() for half in halves])) if all(len(half) for half in halves) else float("nan")

    low, high = bootstrap_interval(accuracy, labels, draws=draws, seed=seed)
    return Estimate(accuracy(np.arange(len(given))), low, high, int((positive | negative).sum()))


def _aligned(
    learned: Any, given: Any, groups: Sequence[str] | Shaped[np.ndarray, " words"] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give both sides as floats with one label per word; refuse lengths that differ and values that are not finite."""
    learned, given = np.asarray(learned, float), np.asarray(given, float)
    labels = np.arange(len(given)) if groups is None else np.asarray(groups)
    if not len(learned) == len(given) == len(labels):
        raise LensError(f"Values must be aligned: {len(learned)} learned, {len(given)} given, {len(labels)} groups.")
    for name, values in (("learned", learned), ("given", given)):
        if not np.isfinite(values).all():
            raise LensError(f"{int((~np.isfinite(values)).sum())} {name} values are not finite numbers.")
    return learned, given, labels


def mean_estimate(values: Float[np.ndarray, " n"], *, draws: int = 2000, seed: int = 0) -> Estimate:
    """Give the mean of paired differences (or any independent values) with its bootstrap interval.

    >>> mean_estimate(np.array([1.0, 1.0, 1.0])).low
    1.0
    """
    values = np.asarray(values, float)
    if len(values) < 2 or not np.isfinite(values).all():
        raise LensError(f"A mean with an interval needs at least 2 finite values; {len(values)} given: {values[:5]}.")
    rows = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[rows].mean(axis=1), (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    groups: Shaped[np.ndarray, " rows"],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Give the 95 % percentile interval of `statistic(row_indices)` when whole groups of rows are resampled."""
    names, codes = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(codes == code) for code in range(len(names))]
    generator = np.random.default_rng(seed)
    drawn = [
        statistic(np.concatenate([members[pick] for pick in generator.integers(len(names), size=len(names))]))
        for _ in range(draws)
    ]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def discoveries(p_values: Float[np.ndarray, " tests"], fdr: float) -> Bool[np.ndarray, " tests"]:
    """Mark what Benjamini and Hochberg (1995) keep at this false discovery rate, over everything that was tested.

    >>> discoveries(np.array([0.001, 0.9, 0.02]), fdr=0.1)
    array([ True, False,  True])
    """
    if not 0 < fdr < 1:
        raise LensError(f"fdr must lie between 0 and 1; {fdr} given.")
    p_values = np.asarray(p_values, float)
    wrong = int((~((p_values >= 0) & (p_values <= 1))).sum())
    if wrong:
        raise LensError(f"{wrong} of {len(p_values)} p-values do not lie between 0 and 1: no test stands behind them.")
    return stats.false_discovery_control(p_values, method="bh") <= fdr
