"""How far the held-out prediction of each word is from its stated value, and whether frequent words do better."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate, bootstrap_interval

if TYPE_CHECKING:
    import pandas as pd

    from lfp_lens.results.probe import Learned

MIN_WORDS = 10


@record
class AgainstPermuted:
    """A number about held-out predictions beside the same number where predictions are permuted over words."""

    found: Estimate
    """Over words; the interval resamples whole lemmas."""
    permuted: Estimate
    """The control, mean and central 95 % of the permutations: what the stated values and the words alone give."""

    def __str__(self) -> str:
        return f"{self.found} words; predictions permuted {self.permuted.value:.3f}"


def error_frame(learned: "Learned", counts: Mapping[str, int] | None = None) -> "pd.DataFrame":
    """Give one row per word with a held-out prediction: its error, and how often it occurs.

    Args:
        learned: with `rescaled` predictions.
        counts: occurrences by lower-case word, such as in samples of the tuned model (a word that is missing occurs 0
            times); None takes those in the texts that were measured.
    """
    import pandas as pd

    rows = np.flatnonzero(np.isfinite(learned.rescaled))
    words = [learned.words[row] for row in rows]
    measured = np.expm1(learned.log_frequency[rows]).round().astype(int)
    occurrences = measured if counts is None else np.array([counts.get(word, 0) for word in words], int)
    stated, rescaled = learned.stated[rows], learned.rescaled[rows]
    values = {"occurrences": occurrences, "stated": stated, "rescaled": rescaled, "error": np.abs(stated - rescaled)}
    return pd.DataFrame({"word": words, "lemma": [learned.lemma[row] for row in rows], **values})


def frequency_error(frame: "pd.DataFrame", *, draws: int = 1000, seed: int = 0) -> AgainstPermuted:
    """Give Figure 4 as a number: Spearman's correlation of occurrences with error, over the rows of `error_frame`.

    Raises:
        LensError: for fewer than 10 words, or where all occur equally often.
    """
    often = frame["occurrences"].to_numpy()
    if len(frame) >= MIN_WORDS and np.ptp(often) == 0:
        raise LensError(f"All {len(frame)} words occur {often[0]} times: give counts of other texts.")
    return _against_permuted(frame, lambda rows, error: _spearman(often[rows], error), draws, seed)


def mean_error(frame: "pd.DataFrame", *, draws: int = 1000, seed: int = 0) -> AgainstPermuted:
    """Give the mean absolute error over the rows of `error_frame`; raises `LensError` for fewer than 10 words."""
    return _against_permuted(frame, lambda rows, error: float(error.mean()), draws, seed)


def _against_permuted(
    frame: "pd.DataFrame", statistic: Callable[[np.ndarray, np.ndarray], float], draws: int, seed: int
) -> AgainstPermuted:
    if len(frame) < MIN_WORDS:
        raise LensError(f"{len(frame)} words have a held-out prediction; {MIN_WORDS} are needed to measure its error.")
    error, stated, rescaled = (frame[name].to_numpy() for name in ("error", "stated", "rescaled"))
    every = np.arange(len(frame))
    low, high = bootstrap_interval(
        lambda rows: statistic(rows, error[rows]), frame["lemma"].to_numpy(), draws=draws, seed=seed
    )
    generator = np.random.default_rng(seed)
    permuted = [statistic(every, np.abs(stated - generator.permutation(rescaled))) for _ in range(draws)]
    ends = np.quantile(permuted, (0.025, 0.975))
    return AgainstPermuted(
        Estimate(statistic(every, error), low, high, len(frame)),
        Estimate(float(np.mean(permuted)), float(ends[0]), float(ends[1]), len(frame)),
    )


def _spearman(left: Float[np.ndarray, " words"], right: Float[np.ndarray, " words"]) -> float:
    """Give the correlation of ranks; NaN, not a warning, where a resample is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(side) for side in (left, right)]
    if not all(np.ptp(side) for side in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])
