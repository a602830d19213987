"""Which features of one dictionary another one found again, beside what random dictionaries of the same shapes give."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.core.errors import unknown
from lfp_lens.core.records import record
from lfp_lens.view import sae_plots

if TYPE_CHECKING:
    import plotly.graph_objects as go

RELATIONS = ("sizes", "seeds", "sides")
"""Two dictionaries that differ in size, in seed, or in the model they read (base and tuned), and in nothing else."""


@record
class Match:
    """Two dictionaries of one width, feature by feature: cosines of their decoder rows.

    The mean of the largest cosine of each feature is the measure known as MMCS; the paper's "MMCS" is the mean over a
    one-to-one assignment, a lower bound of it.
    """

    relation: str
    """What they differ in: `sizes` (left is the smaller), `seeds` or `sides` (left is base, right tuned)."""
    left: str
    """`SAERecord.name` of one dictionary."""
    right: str
    """`SAERecord.name` of the other."""
    left_largest: Float[np.ndarray, " left"]
    """Of each left feature, its largest cosine with a right one; a right feature may be the nearest of several."""
    right_largest: Float[np.ndarray, " right"]
    """Of each right feature, its largest cosine with a left one."""
    left_nearest: Int[np.ndarray, " left"]
    """Index of the right feature that gives `left_largest`."""
    right_nearest: Int[np.ndarray, " right"]
    """Index of the left feature that gives `right_largest`."""
    left_assigned: Float[np.ndarray, " left"]
    """Cosine with its partner in the one-to-one assignment that maximises the sum (Hungarian); NaN without a partner."""
    right_assigned: Float[np.ndarray, " right"]
    """Likewise of each right feature."""
    left_partner: Int[np.ndarray, " left"]
    """Index of that partner; -1 where the other dictionary is smaller and had none left."""
    right_partner: Int[np.ndarray, " right"]
    """Likewise of each right feature."""
    left_null: float
    """Mean of `left_largest` between random dictionaries of these shapes."""
    right_null: float
    """Mean of `right_largest` between random dictionaries of these shapes."""
    null_assigned: float
    """Mean assigned cosine between random dictionaries of these shapes."""
    left_null_99: float
    """99 % quantile of `left_largest` between random dictionaries: a cosine above it is no accident of the shapes."""
    right_null_99: float
    """Likewise of `right_largest`."""

    @property
    def mmcs(self) -> float:
        """Mean of the largest cosine of each left feature; compare with `left_null`."""
        return float(self.left_largest.mean())

    @property
    def mmcs_hungarian(self) -> float:
        """Mean of the assigned cosines (the paper's "MMCS"); compare with `null_assigned`."""
        return float(np.nanmean(self.left_assigned)) if np.isfinite(self.left_assigned).any() else float("nan")

    def ranked(self, which: str = "left", *, by: str = "assigned") -> Int[np.ndarray, " features"]:
        """Give the indices of one dictionary's features, best matched first, those without a partner last.

        Args:
            which: `left` or `right`: whose indices. They are never those of the other dictionary.
            by: `assigned` (one-to-one, the paper's) or `largest`.

        Raises `LensError` for another word.
        """
        if which not in ("left", "right"):
            raise unknown("side of a match", which, ("left", "right"))
        if by not in ("assigned", "largest"):
            raise unknown("cosine to rank by", by, ("assigned", "largest"))
        cosines = np.asarray(getattr(self, f"{which}_{by}"))
        return np.argsort(np.where(np.isfinite(cosines), -cosines, np.inf), kind="stable")

    def plot(self) -> "go.Figure":
        """Draw how many left features have which largest cosine, beside where random dictionaries lie."""
        return sae_plots.matching(self.left_largest, self.left_null, self.left_null_99, f"{self.left} in {self.right}")
