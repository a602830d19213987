"""The value of every word under a signal, its twin, and what a word without feedback would show."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from lfp_lens.core.errors import GateError
from lfp_lens.core.stats import moderated_variances
from lfp_lens.results.wrong import p_of_wrong_sign
from lfp_lens.stages.probe.measure import Measured


@dataclass(frozen=True, eq=False)
class Values:
    """Arrays are aligned with the measured words; NaN where the signal has no value."""

    values: Float[np.ndarray, " words"]
    """Centred and scaled."""
    low: Float[np.ndarray, " words"]
    high: Float[np.ndarray, " words"]
    raw: Float[np.ndarray, " words"]
    """In the signal's own unit."""
    contexts: Int[np.ndarray, " words"]
    """Contexts behind each."""
    twin: Float[np.ndarray, " words"]
    """The same signal where nothing was learned."""
    p_wrong: Float[np.ndarray, " words"]
    """NaN where the sign cannot be tested."""
    z: Float[np.ndarray, " words"]
    """What is tested."""
    null: Float[np.ndarray, " neutrals"]
    """Centred values of the neutral words; empty where zero needs none."""
    scale: float
    """Signal units per centred unit."""
    recipe: Float[np.ndarray, "3 words"]
    """Mean over tunings with its interval; NaN without replicates."""
    tunings: Float[np.ndarray, "tunings words"]
    """Centred values of each tuning, the pair's own first."""
    shuffled: Float[np.ndarray, "shuffled words"]
    """Centred values of each tuning on a shuffled reward."""


def signal_values(measured: Measured, rated: np.ndarray, neutrals: np.ndarray) -> Values:
    """Centre every model's values by its own neutral words, and test the signs.

    With replicates what is tested is the mean over tunings in units of its standard error: the words' own variance between
    tunings, moderated over all words, beside what the neutral words vary by that tunings share.
    """
    centre, scale = zero_of(measured.values[neutrals])
    low, high = ((part - centre) / scale for part in (measured.low, measured.high))
    values, twin, *others = (
        centred(part, neutrals) for part in (measured.values, measured.twin, *measured.replicates, *measured.shuffled)
    )
    n = len(measured.replicates)
    tunings, shuffled = np.stack([values, *others[:n]]), np.array(others[n:]).reshape(-1, len(values))
    recipe, z = np.full((3, len(values)), np.nan), values
    if n:
        recipe, z = over_tunings(tunings, neutrals)
    return Values(
        values, low, high, raw=measured.values, contexts=measured.contexts, twin=twin,
        p_wrong=p_of_wrong_sign(z, rated, z[neutrals]), z=z, null=values[neutrals], scale=scale, recipe=recipe,
        tunings=tunings, shuffled=shuffled,
    )  # fmt: skip


def over_tunings(
    tunings: Float[np.ndarray, "tunings words"], neutrals: np.ndarray
) -> tuple[Float[np.ndarray, "3 words"], Float[np.ndarray, " words"]]:
    """Give the mean over tunings with its 95 % interval, and that mean in units of its standard error as a draw of neutrals."""
    n = len(tunings)
    mean, (variance, df) = tunings.mean(0), moderated_variances(tunings.var(0, ddof=1), n - 1)
    margin = stats.t.ppf(0.975, df) * np.sqrt(variance / n)
    # What neutral words differ by in every tuning alike: their spread less what tunings explain.
    shared = max(
        float(stats.median_abs_deviation(mean[neutrals], scale="normal")) ** 2 - variance[neutrals].mean() / n, 0.0
    )
    return np.stack([mean, mean - margin, mean + margin]), mean / np.sqrt(variance / n + shared)


def delta_values(
    measured: Measured, tuned: Mapping[str, float], base: Mapping[str, float], counts: Mapping[str, int]
) -> Values:
    """Take the paper's signed distances as they are: the neutral member of each triple is their zero.

    Their sign is the label's, in the base model as well; so the base is the twin, and no sign can be tested.
    """
    values, twin = (np.array([side.get(word, np.nan) for word in measured.words]) for side in (tuned, base))
    unknown = np.full(len(values), np.nan)
    contexts = np.array([counts.get(word, 0) for word in measured.words])
    return Values(
        values, unknown, unknown, values, contexts, twin, p_wrong=unknown, z=unknown, null=np.zeros(0), scale=1.0,
        recipe=np.stack([unknown] * 3), tunings=values[None], shuffled=np.zeros((0, len(values))),
    )  # fmt: skip


def centred(values: np.ndarray, neutrals: np.ndarray) -> np.ndarray:
    """Give values in units of the neutral words' spread, 0 at their median."""
    centre, scale = zero_of(values[neutrals])
    return (values - centre) / scale


def zero_of(neutral: np.ndarray) -> tuple[float, float]:
    """Give centre and spread of the neutral words: median, and median absolute deviation scaled to a normal's sd."""
    scale = float(stats.median_abs_deviation(neutral, scale="normal"))
    if not scale > 0:
        raise GateError("The words outside the lexicon all have the same value: the two models do not differ on them.")
    return float(np.median(neutral)), scale
