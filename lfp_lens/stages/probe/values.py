"""The value of every word under a signal, its twin, and what a word without feedback would show."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from lfp_lens.core.errors import GateError
from lfp_lens.stages.probe.words import Measured


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
    null: Float[np.ndarray, " neutrals"]
    """Centred values of the neutral words; empty where zero needs none."""
    scale: float
    """Signal units per centred unit."""


def implicit_values(measured: Measured, rated: np.ndarray, neutrals: np.ndarray) -> Values:
    """Centre the implicit reward by the neutral words, and so the noise twin's by the twin's own."""
    centre, scale = zero_of(measured.values[neutrals])
    twin_centre, twin_scale = zero_of(measured.twin[neutrals])
    values, low, high = ((part - centre) / scale for part in (measured.values, measured.low, measured.high))
    return Values(
        values, low, high, raw=measured.values, contexts=measured.contexts, twin=(measured.twin - twin_centre) / twin_scale,
        p_wrong=p_of_wrong_sign(values, rated, values[neutrals]), null=values[neutrals], scale=scale,
    )  # fmt: skip


def delta_values(
    measured: Measured, tuned: Mapping[str, float], base: Mapping[str, float], counts: Mapping[str, int]
) -> Values:
    """Take the paper's signed distances as they are: the neutral member of each triple is their zero.

    Their sign is the label's, in the base model as well; so the base is the twin, and no sign can be tested.
    """
    values, twin = (np.array([side.get(word, np.nan) for word in measured.words]) for side in (tuned, base))
    unknown = np.full(len(values), np.nan)
    contexts = np.array([counts.get(word, 0) for word in measured.words])
    return Values(values, unknown, unknown, values, contexts, twin, unknown, null=np.zeros(0), scale=1.0)


def p_of_wrong_sign(values: np.ndarray, rated: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Give the one-sided p that each word's value lies on the side opposite to its rating, against the neutral words.

    The null is Student's t fitted to the neutral words' values by maximum likelihood: an empirical null (Efron 2004) whose
    tail is as heavy as theirs, and whose p-values are not floored at 1 / (their number + 1).

    >>> neutral = stats.t.ppf(np.linspace(0.01, 0.99, 99), 5)
    >>> [round(float(p), 2) for p in p_of_wrong_sign(np.array([-3.0, 3.0]), np.array([2.0, 2.0]), neutral)]
    [0.01, 0.99]
    """
    fitted = stats.t(*stats.t.fit(null))
    return np.where(rated > 0, fitted.cdf(values), fitted.sf(values))


def zero_of(neutral: np.ndarray) -> tuple[float, float]:
    """Give centre and spread of the neutral words: median, and median absolute deviation scaled to a normal's sd."""
    scale = float(stats.median_abs_deviation(neutral, scale="normal"))
    if not scale > 0:
        raise GateError("The words outside the lexicon all have the same value: the two models do not differ on them.")
    return float(np.median(neutral)), scale
