"""The value of every word under a signal, its twin, and what a word without feedback would show."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from lfp_lens.core.errors import GateError
from lfp_lens.core.stats import moderated_variances
from lfp_lens.core.stats.wrong import p_of_wrong_sign
from lfp_lens.stages.probe.measure import Measured

WINDOW, LEAST_WINDOW = 300, 50
"""Neutral words that define zero for one word."""


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
    scale: Float[np.ndarray, " words"]
    """Signal units per centred unit."""
    recipe: Float[np.ndarray, "3 words"]
    """Mean over tunings with its interval; NaN without replicates."""
    tunings: Float[np.ndarray, "tunings words"]
    """Centred values of each tuning, the pair's own first."""
    shuffled: Float[np.ndarray, "shuffled words"]
    """Centred values of each tuning on a shuffled reward."""


def signal_values(measured: Measured, rated: np.ndarray, neutrals: np.ndarray) -> Values:
    """Centre every model's values by its own neutral words of like frequency, and test the signs.

    With replicates what is tested is the mean over tunings in units of its standard error: the words' own variance between
    tunings, moderated over all words, beside what the neutral words vary by that tunings share.
    """
    often = measured.log_frequency
    centre, scale = zero_of(measured.values, often, neutrals)
    low, high = ((part - centre) / scale for part in (measured.low, measured.high))
    values, twin, *others = (
        centred(part, often, neutrals)
        for part in (measured.values, measured.twin, *measured.replicates, *measured.shuffled)
    )
    n = len(measured.replicates)
    tunings, shuffled = np.stack([values, *others[:n]]), np.array(others[n:]).reshape(-1, len(values))
    recipe, z = np.full((3, len(values)), np.nan), values
    if n:
        recipe, z = over_tunings(tunings, neutrals)
        z = centred(z, often, neutrals)
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
        values, unknown, unknown, values, contexts, twin, p_wrong=unknown, z=unknown, null=np.zeros(0),
        scale=np.ones(len(values)), recipe=np.stack([unknown] * 3), tunings=values[None], shuffled=np.zeros((0, len(values))),
    )  # fmt: skip


def centred(values: np.ndarray, often: np.ndarray, neutrals: np.ndarray) -> np.ndarray:
    """Give values in units of the spread of neutral words of like frequency, 0 at their median."""
    centre, scale = zero_of(values, often, neutrals)
    return (values - centre) / scale


def zero_of(
    values: Float[np.ndarray, " words"], often: Float[np.ndarray, " words"], neutrals: Int[np.ndarray, " neutrals"]
) -> tuple[Float[np.ndarray, " words"], Float[np.ndarray, " words"]]:
    """Give every word's centre and spread: median, and median absolute deviation scaled to a normal's sd, of its neutrals.

    Its neutrals are the 300 nearest in log frequency, or a quarter of all where that is fewer (at least 50, if there are so
    many). Both follow frequency: rare words without feedback sink and scatter, frequent ones rise and do not.
    """
    order = neutrals[np.argsort(often[neutrals], kind="stable")]
    window = min(len(order), WINDOW, max(LEAST_WINDOW, len(order) // 4))
    places, of_word = np.unique(often, return_inverse=True)
    low, high = (np.searchsorted(often[order], places, side=side) for side in ("left", "right"))
    starts = np.clip((low + high - window) // 2, 0, len(order) - window)
    near = values[order][starts[:, None] + np.arange(window)]
    centre, scale = np.median(near, axis=1), stats.median_abs_deviation(near, axis=1, scale="normal")
    if not (scale > 0).all():
        raise GateError("The words outside the lexicon all have the same value: the two models do not differ on them.")
    return centre[of_word], scale[of_word]
