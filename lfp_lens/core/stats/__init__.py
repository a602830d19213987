"""The statistics every verb shares: an estimate with its n and interval, rank agreement on values, nulls, many tests.

SciPy computes the statistics; what is here is the clustering by lemma or prompt, the shrinkage and the refusals.
"""

from lfp_lens.core.stats.agreement import (
    RankAgreement,
    auc,
    balanced_sign_accuracy,
    rank_agreement,
    tau_as_published,
    tau_difference,
)
from lfp_lens.core.stats.estimates import Estimate, Means, bootstrap_interval, mean_estimate, mean_intervals
from lfp_lens.core.stats.kappa import cohen_kappa
from lfp_lens.core.stats.multiplicity import discoveries, holm
from lfp_lens.core.stats.nulls import PolarityNull, frequency_deciles, polarity_null
from lfp_lens.core.stats.proportions import share_difference, share_estimate
from lfp_lens.core.stats.shrinkage import Moderated, moderated_variances
from lfp_lens.core.stats.student import StudentNull, student_null

__all__ = [
    "Estimate",
    "Means",
    "Moderated",
    "PolarityNull",
    "RankAgreement",
    "StudentNull",
    "auc",
    "balanced_sign_accuracy",
    "bootstrap_interval",
    "cohen_kappa",
    "discoveries",
    "frequency_deciles",
    "holm",
    "mean_estimate",
    "mean_intervals",
    "moderated_variances",
    "polarity_null",
    "rank_agreement",
    "share_difference",
    "share_estimate",
    "student_null",
    "tau_as_published",
    "tau_difference",
]
