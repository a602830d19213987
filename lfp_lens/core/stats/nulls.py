"""What polarity and frequency alone are worth: the null that keeps them, and the strata it needs."""

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import stats

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import record
from lfp_lens.core.stats.agreement import Groups, ordered, permuted_concordances
from lfp_lens.core.stats.estimates import Estimate
from lfp_lens.core.stats.resampling import exchangeable, median_stratum, rank_p


@record
class PolarityNull:
    """tau-b where only the sign of the feedback was learned, not its strength."""

    null: Estimate
    """Mean tau-b of the permutations and their central 95 %; n counts the words."""
    p_value: float
    """One-sided p of a tau-b at least as large as the one found: strength of feedback is claimed where it is small."""

    def __str__(self) -> str:
        return f"by polarity alone {self.null}, p={self.p_value:.2g}"


def polarity_null(
    learned: Float[np.ndarray, " words"],
    given: Float[np.ndarray, " words"],
    strata: Shaped[np.ndarray, " words"] | None = None,
    *,
    groups: Groups = None,
    draws: int = 2000,
    seed: int = 0,
) -> PolarityNull:
    """Permute the given values within each polarity (and stratum), and tell what tau-b is left.

    Args:
        learned: one value per word.
        given: one value per word, in the same order. Words rated 0 are a polarity of their own.
        strata: one label per word (`frequency_deciles`), permuted within.
        groups: one label per word; whole groups are exchanged among those with the same signs. None: single words.
        draws: permutations.
        seed: of the permutations.

    Raises:
        LensError: as `rank_agreement` does, or where no two words share sign and stratum.

    >>> found = polarity_null(np.array([-2.0, -1, 1, 2]), np.array([-1.0, -1, 1, 1]))
    >>> round(found.null.value, 3)
    0.816
    """
    learned, given, codes = ordered(learned, given, groups)
    if strata is not None and len(strata) != len(given):
        raise LensError(f"Strata must be aligned with the words: {len(strata)} strata, {len(given)} words.")
    cells = exchangeable(codes, np.sign(given).astype(int), median_stratum(strata, codes))
    if not cells:
        raise LensError("No two words share sign and stratum: nothing can be permuted. Give fewer strata.")
    generator = np.random.default_rng([seed, 2])
    found, drawn = permuted_concordances(learned, given, cells, draws, generator)
    taus = drawn / np.sqrt(_untied(learned) * _untied(given))
    low, high = np.quantile(taus, (0.025, 0.975))
    null = Estimate(float(taus.mean()), float(low), float(high), len(given))
    return PolarityNull(null, rank_p(drawn, found, generator))


def _untied(values: np.ndarray) -> float:
    sizes = np.unique(values, return_counts=True)[1].astype(float)
    return float((len(values) * (len(values) - 1) - (sizes * (sizes - 1)).sum()) / 2)


def frequency_deciles(log_frequency: Float[np.ndarray, " words"]) -> Int[np.ndarray, " words"]:
    """Give each word the tenth of the words (0 rarest to 9) that its frequency falls into; ties stay together.

    >>> frequency_deciles(np.array([0.0, 0.0, 1.0, 2.0])).tolist()
    [2, 2, 6, 8]
    """
    log_frequency = np.asarray(log_frequency, float)
    if not len(log_frequency) or not np.isfinite(log_frequency).all():
        raise LensError(f"Frequency deciles need finite frequencies; {len(log_frequency)} words given.")
    middle = (stats.rankdata(log_frequency, method="average") - 0.5) / len(log_frequency)
    return np.minimum((10 * middle).astype(int), 9)
