"""Variances of many words from few tunings each, shrunk towards what all words share (Smyth 2004, limma)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import optimize, special

from lfp_lens.core.errors import LensError


class Moderated(NamedTuple):
    """Shrunken variances; an interval is mean +- t(df) * sqrt(variance / tunings)."""

    variances: Float[np.ndarray, " words"]
    """Posterior variance of every word."""
    df: Float[np.ndarray, " words"]
    """Degrees of freedom behind each, its own plus the prior's; infinite where all words share one variance."""


def moderated_variances(variances: Float[np.ndarray, " words"], df: Float[np.ndarray, " words"] | float) -> Moderated:
    """Shrink each word's variance towards the common one, as far as the words' variances agree.

    With 3 tunings a word's own variance has 2 degrees of freedom: its t interval is 4.3 standard errors wide, and words
    that vary little by luck look certain. The prior is a scaled inverse chi-squared fitted by the moments of log s^2.

    Args:
        variances: sample variance of each word, in squared units of its value; ignored where df is 0.
        df: its degrees of freedom (tunings - 1), one number or one per word; 0 (a single tuning) takes the prior alone.

    Raises:
        LensError: for lengths that differ, negative or missing variances, or fewer than 2 positive ones.

    Source: Smyth (2004), section 6.2, equations for d0 and s0^2.

    >>> variances, df = moderated_variances(np.array([0.5, 1.0, 2.0, 1.2]), 2)
    >>> df.tolist()
    [inf, inf, inf, inf]
    """
    variances = np.asarray(variances, float)
    df = np.broadcast_to(np.asarray(df, float), variances.shape)
    known = df > 0
    if variances.ndim != 1 or not (variances[known] >= 0).all() or not np.isfinite(df).all() or (df < 0).any():
        raise LensError("Moderated variances need one variance of at least 0 and finite degrees of freedom per word.")
    if (variances[known] > 0).sum() < 2:
        raise LensError(
            f"{int((variances[known] > 0).sum())} words vary over tunings; at least 2 are needed to know how much they "
            "have in common."
        )
    if not np.isfinite(variances[known]).all():
        raise LensError("A variance is infinite.")
    prior, prior_df = _prior(variances[known], df[known])
    own = np.where(known, variances, 0.0)
    if np.isinf(prior_df):
        return Moderated(np.full(len(own), prior), np.full(len(own), np.inf))
    total = df + prior_df
    return Moderated((df * own + prior_df * prior) / total, total)


def _prior(variances: np.ndarray, df: np.ndarray) -> tuple[float, float]:
    """Give the prior's variance and degrees of freedom from mean and spread of the log variances."""
    # A variance of exactly 0 has no logarithm; limma's floor.
    logs = np.log(np.maximum(variances, 1e-5 * np.median(variances[variances > 0])))
    logs = logs - special.digamma(df / 2) + np.log(df / 2)
    spare = logs.var(ddof=1) - special.polygamma(1, df / 2).mean()
    prior_df = 2 * _inverse_trigamma(spare)
    if np.isinf(prior_df):
        return float(np.exp(logs.mean())), prior_df
    return float(np.exp(logs.mean() + special.digamma(prior_df / 2) - np.log(prior_df / 2))), prior_df


def _inverse_trigamma(value: float) -> float:
    """Give x with trigamma(x) = value; infinite where the value is at most that of a million."""
    reach = 1e6
    if value <= special.polygamma(1, reach):
        return float("inf")
    return float(np.exp(optimize.brentq(lambda x: special.polygamma(1, np.exp(x)) - value, -30, np.log(reach))))
