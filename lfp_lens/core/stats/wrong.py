"""Was a word learned otherwise than stated? One-sided tests against an empirical null, word by word."""

import numpy as np
from jaxtyping import Float
from scipy import stats

from lfp_lens.core.errors import GateError, unknown
from lfp_lens.core.stats.student import student_null

KINDS = ("flipped", "muted", "inflated")
"""Learned with the opposite sign; with too little of it; with too much."""
MIN_PER_POLARITY = 20


def p_of_wrong_sign(
    values: Float[np.ndarray, " words"], rated: Float[np.ndarray, " words"], null: Float[np.ndarray, " neutrals"]
) -> Float[np.ndarray, " words"]:
    """Give the one-sided p that each word's value lies on the side opposite to its rating, against the neutral words.

    The null is `core.stats.student_null` of the neutral words' values: an empirical null (Efron 2004) whose tail is as heavy as
    theirs, and as uncertain as so few words leave it; its p-values are not floored at 1 / (their number + 1).

    >>> neutral = stats.t.ppf(np.linspace(0.01, 0.99, 99), 5)
    >>> [round(float(p), 2) for p in p_of_wrong_sign(np.array([-3.0, 3.0]), np.array([2.0, 2.0]), neutral)]
    [0.02, 0.98]
    """
    fitted = student_null(null)
    return np.where(rated > 0, fitted.cdf(values), fitted.sf(values))


def p_of_strength(
    values: Float[np.ndarray, " words"], rated: Float[np.ndarray, " words"], kind: str
) -> Float[np.ndarray, " words"]:
    """Give the one-sided p that each word was learned more weakly (`muted`) or more strongly (`inflated`) than words rated alike.

    Within each polarity the value expected at a rating is a Theil-Sen line, which a few odd words do not bend; the null of what
    is left is `core.stats.student_null` of all words of that polarity. So it tells words that stand out from their own kind:
    where most are muted, none is found. Words learned with the wrong sign stand out as muted too.

    Raises:
        GateError: with fewer than 20 words of either polarity.
    """
    if kind not in KINDS[1:]:
        raise unknown("kind of test of strength", kind, KINDS[1:])
    found, rest = np.ones(len(values)), beside_usual(values, rated)
    for sign in (1, -1):
        rows = np.flatnonzero(np.sign(rated) == sign)
        if len(rows) < MIN_PER_POLARITY:
            raise GateError(
                f"{len(rows)} {'positive' if sign > 0 else 'negative'} words were measured; {MIN_PER_POLARITY} are needed to "
                "say what strength is usual for a rating. Give more texts."
            )
        own = rest[rows]
        if not stats.median_abs_deviation(own) > 0:
            raise GateError(
                "More than half of the words of a polarity were learned alike: nothing tells what is usual."
            )
        fitted = student_null(own)
        found[rows] = fitted.cdf(own) if kind == "muted" else fitted.sf(own)
    return found


def beside_usual(
    values: Float[np.ndarray, " words"], rated: Float[np.ndarray, " words"]
) -> Float[np.ndarray, " words"]:
    """Give by how much each word was learned more strongly (above 0) or more weakly than words rated alike.

    Within each polarity what is usual at a rating is a Theil-Sen line; words rated 0 have no polarity and give 0.

    >>> beside_usual(np.array([1.0, 2.0, 3.0, -5.0]), np.array([1.0, 2.0, 3.0, 2.0])).round(1).tolist()
    [0.5, 0.5, 0.5, -6.5]
    """
    rest = np.zeros(len(values))
    for sign in (1, -1):
        rows = np.flatnonzero(np.sign(rated) == sign)
        if not len(rows):
            continue
        strength, learned = np.abs(rated[rows]), sign * values[rows]
        line = stats.theilslopes(learned, strength) if np.ptp(strength) else None
        expected = line.intercept + line.slope * strength if line else np.full(len(rows), np.median(learned))
        rest[rows] = learned - expected
    return rest
