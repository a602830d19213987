"""Agreement of learned with given values: in order (tau-b), in sign, and between two measurements of the same words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import stats

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import record
from lfp_lens.core.stats.estimates import Estimate
from lfp_lens.core.stats.pairs import auc_statistic, concordances, tau_statistic
from lfp_lens.core.stats.resampling import (
    bca_interval,
    codes_of,
    exchangeable,
    median_stratum,
    permutations,
    rank_p,
)

Groups = Sequence[str] | Shaped[np.ndarray, " words"] | None
EXACT_UP_TO = 33
"""SciPy's own limit: up to here, and without ties, the distribution of tau is computed exactly."""


@record
class RankAgreement:
    """Kendall's tau-b between learned and given values of the same words."""

    tau: float
    """tau-b, from -1 to 1; ties are accounted for (VADER has only 73 distinct values)."""
    p_value: float
    """Two-sided p of no association; `test` says of which kind."""
    low: float
    """Lower end of the 95 % interval (BCa); words are resampled in whole groups (lemmas)."""
    high: float
    """Upper end of the 95 % interval."""
    n: int
    """Words compared."""
    groups: int
    """Lemmas (or other groups) those words fall into."""
    test: str
    """`exact` or `asymptotic`: SciPy's test of independent words; `permutation`: whole groups exchanged within strata."""

    def __str__(self) -> str:
        return f"tau-b {self.tau:.3f} [{self.low:.3f}, {self.high:.3f}], p={self.p_value:.2g}, n={self.n}"


def rank_agreement(
    learned: Float[np.ndarray, " words"],
    given: Float[np.ndarray, " words"],
    groups: Groups = None,
    *,
    strata: Shaped[np.ndarray, " words"] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> RankAgreement:
    """Tell how well two sets of word values agree in order: tau-b on aligned values, never on word strings.

    Args:
        learned: one value per word.
        given: one value per word, in the same order.
        groups: one label per word (its lemma); the interval resamples whole groups, and the p-value exchanges whole groups
            of the same number of words. None: each word its own group.
        strata: one label per word (`frequency_deciles`); only groups of the same stratum are exchanged, that of a group
            being the median of its words', so that what frequency alone explains is no evidence. It leaves tau as it is.
        draws: of the bootstrap and, where there are groups or strata, of the permutation.
        seed: of both.

    Returns:
        tau-b with n, interval and p. Where every group is one word and no stratum is given, p is SciPy's; else it is
        (b + 1) / (m + 1) over m permutations, two-sided about their mean (which strata may move from 0), ties broken at
        random. It is 1 where no two groups can be exchanged.

    Raises:
        LensError: if the lengths differ, fewer than 3 words or 2 groups are given, or one side is constant or not finite.

    The published statistic ranked word strings and measured almost nothing (arXiv 2310.08164, section 4.1). Coverage of the
    interval is claimed from 50 lemmas on, and from 100 where every lemma is one word: with 50 of those it is too wide, covering
    97 % (`make bench NAME=calibration`). On the paper's own 11 words of Table 2:

    >>> table_2_given = np.array([2.5, 2.9, 3.1, 2.7, 2.7, 2.9, -1.7, -1.9, -1.9, -1.6, -2.5])
    >>> table_2_learned = np.array([1.4, 2.0, 1.0, -0.81, 0.64, 1.28, -2.2, -2.2, -2.6, -2.53, -2.29])
    >>> round(rank_agreement(table_2_learned, table_2_given).tau, 4)
    0.585
    """
    learned, given, codes = ordered(learned, given, groups)
    n_groups = int(codes.max()) + 1
    statistic = tau_statistic(learned, given, codes)
    low, high = bca_interval(statistic, n_groups, draws=draws, seed=seed)
    if strata is None and n_groups == len(given):
        p_value, test = _scipy_p(learned, given)
    else:
        p_value, test = _permutation_p(learned, given, codes, strata, draws, seed), "permutation"
    tau = float(stats.kendalltau(learned, given, variant="b").statistic)
    return RankAgreement(tau, p_value, low, high, len(given), n_groups, test)


def _scipy_p(learned: np.ndarray, given: np.ndarray) -> tuple[float, str]:
    has_ties = min(len(np.unique(learned)), len(np.unique(given))) < len(given)
    test = "asymptotic" if has_ties or len(given) > EXACT_UP_TO else "exact"
    return float(stats.kendalltau(learned, given, variant="b", method=test).pvalue), test


def _permutation_p(
    learned: np.ndarray, given: np.ndarray, codes: np.ndarray, strata: np.ndarray | None, draws: int, seed: int
) -> float:
    if strata is not None and len(strata) != len(given):
        raise LensError(f"Strata must be aligned with the words: {len(strata)} strata, {len(given)} words.")
    cells = exchangeable(codes, median_stratum(strata, codes))
    if not cells:
        return 1.0
    # The interval draws from `seed` itself.
    generator = np.random.default_rng([seed, 1])
    found, drawn = permuted_concordances(learned, given, cells, draws, generator)
    # Whole numbers, so that equal distances from the mean of all are equal.
    total = int(found + drawn.sum())
    return rank_p(abs((draws + 1) * drawn - total), abs((draws + 1) * found - total), generator)


def permuted_concordances(
    learned: np.ndarray, given: np.ndarray, cells: list[np.ndarray], draws: int, generator: np.random.Generator
) -> tuple[int, np.ndarray]:
    """Give Kendall's S as it is, and with the given values rearranged within `cells`, `draws` times."""
    values, ranks = np.unique(given, return_inverse=True)
    rows = permutations(cells, len(given), draws, generator)
    return int(concordances(learned, ranks[None], len(values))[0]), concordances(learned, ranks[rows], len(values))


def tau_difference(
    first: Float[np.ndarray, " words"],
    second: Float[np.ndarray, " words"],
    given: Float[np.ndarray, " words"],
    groups: Groups = None,
    *,
    second_given: Float[np.ndarray, " words"] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Give tau(first, given) - tau(second, given), both on the same words and the same resampled groups.

    The headline of every control: tuned less base twin, or, with `second_given` (a shuffled lexicon), the selectivity.

    Args:
        first: what is claimed to agree with `given`.
        second: what should not.
        given: the given values of the words.
        groups: as in `rank_agreement`.
        second_given: what `second` is compared with; None: `given`.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The difference with its BCa interval; n counts the words.

    Raises:
        LensError: as `rank_agreement` does, for either side.

    >>> values = np.arange(6.0)
    >>> tau_difference(values, -values, values).value
    2.0
    """
    one, other = (
        tau_statistic(*ordered(values, wanted, groups))
        for values, wanted in ((first, given), (second, given if second_given is None else second_given))
    )
    return _estimate(lambda rows: one(rows) - other(rows), codes_of(groups, len(given)), draws, seed)


def balanced_sign_accuracy(
    learned: Float[np.ndarray, " words"],
    given: Float[np.ndarray, " words"],
    groups: Groups = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Give the mean over both polarities of the share of words learned with the given sign (0.5 is chance).

    Words rated 0 have no sign and are not counted; a learned value of 0 has the wrong one. The interval is BCa over whole
    groups. Raises `LensError` as `rank_agreement` does, or without both polarities.

    >>> balanced_sign_accuracy(np.array([1.0, 2.0, -1.0]), np.array([3.0, 1.0, 2.0])).value
    Traceback (most recent call last):
    ...
    lfp_lens.core.errors.LensError: Sign accuracy needs words of both polarities; 3 positive, 0 negative given.
    """
    learned, given, codes = aligned(learned, given, groups)
    up, down = given > 0, given < 0
    if not up.any() or not down.any():
        raise LensError(
            f"Sign accuracy needs words of both polarities; {int(up.sum())} positive, {int(down.sum())} negative given."
        )
    is_right = np.sign(learned) == np.sign(given)
    counts = [(np.bincount(codes, side & is_right), np.bincount(codes, side)) for side in (up, down)]

    def accuracy(rows: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.mean([(rows @ right) / (rows @ words) for right, words in counts], axis=0)

    found = _estimate(accuracy, codes, draws, seed)
    return Estimate(found.value, found.low, found.high, int((up | down).sum()))


def auc(
    score: Float[np.ndarray, " items"],
    is_positive: Bool[np.ndarray, " items"],
    groups: Groups = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Give the chance that a positive item scores above a negative one (0.5 is chance; equal scores count half).

    The interval is BCa over whole groups (prompts); n counts the items. Raises `LensError` for lengths that differ, scores
    that are not finite, a single class, or fewer than 2 groups.

    >>> auc(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, True])).value
    0.75
    """
    is_positive = np.asarray(is_positive).astype(bool)
    score, side, codes = aligned(score, is_positive, groups, names=("scores", "labels"))
    if not 0 < is_positive.sum() < len(is_positive):
        raise LensError(
            f"AUC needs items of both classes; {int(is_positive.sum())} of {len(is_positive)} are positive."
        )
    return _estimate(auc_statistic(score, side > 0, codes), codes, draws, seed)


def _estimate(statistic: Any, codes: np.ndarray, draws: int, seed: int) -> Estimate:
    n_groups = int(codes.max()) + 1
    low, high = bca_interval(statistic, n_groups, draws=draws, seed=seed)
    return Estimate(float(statistic(np.ones((1, n_groups)))[0]), low, high, len(codes))


def tau_as_published(
    words: Sequence[str], learned: Float[np.ndarray, " words"], given: Float[np.ndarray, " words"]
) -> float:
    """Give the statistic that arXiv 2310.08164 printed, to stand beside the right one; it measures almost nothing.

    The public code sorts the words by each value and hands the two lists of *strings* to Kendall's tau, which ranks them by
    the alphabet (`train_linear_probe.ipynb`, cells 61 and 62).

    >>> tau_as_published(["bad", "fine", "good"], np.array([-1.0, 2.0, 3.0]), np.array([-2.0, 1.0, 2.0]))
    1.0
    """
    learned, given, _ = ordered(learned, given, words)
    alphabet = np.unique(np.asarray(words), return_inverse=True)[1]
    lists = [alphabet[np.argsort(values, kind="stable")] for values in (given, learned)]
    return float(stats.kendalltau(*lists).statistic)


def ordered(learned: Any, given: Any, groups: Groups) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give aligned values and group numbers, and refuse those that have no order to compare."""
    learned, given, codes = aligned(learned, given, groups)
    if len(given) < 3:
        raise LensError(f"Rank agreement needs at least 3 words; {len(given)} given.")
    for name, values in (("learned", learned), ("given", given)):
        if np.ptp(values) == 0:
            raise LensError(f"The {name} values are constant ({values[0]:g}): no order to agree with.")
    return learned, given, codes


def aligned(
    learned: Any, given: Any, groups: Groups, *, names: tuple[str, str] = ("learned", "given")
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give both sides as floats with each word's group number; refuse lengths that differ and values not finite."""
    learned, given = np.asarray(learned, float), np.asarray(given, float)
    n_groups = len(given) if groups is None else len(groups)
    if not len(learned) == len(given) == n_groups:
        sides = f"{len(learned)} {names[0]}, {len(given)} {names[1]}"
        raise LensError(f"Values must be aligned: {sides}, {n_groups} groups.")
    for name, values in zip(names, (learned, given)):
        if not np.isfinite(values).all():
            raise LensError(f"{int((~np.isfinite(values)).sum())} {name} values are not finite numbers.")
    codes = codes_of(groups, len(given))
    if len(codes) > 1 and codes.max() == 0:
        raise LensError(f"All {len(codes)} words belong to one group: nothing independent is left to compare.")
    return learned, given, codes
