"""The null of a ranking of layers: two tunings of one base that differ by their seed alone."""

from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from scipy import stats

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.records import record

if TYPE_CHECKING:
    import pandas as pd

ENUMERATED = 8
"""Up to so many layers every order of them is tried; 8 have 40,320."""


@record
class SeedAgreement:
    """How far two tunings that differ by seed agree on which layers moved most, by one measure."""

    measure: str
    """The measure."""
    tau: float
    """Kendall's tau-b between the two rankings of the layers; not a number if one is constant."""
    p_value: float
    """Two-sided p of tau under random orders of the layers: exact up to 8 layers or without ties, else asymptotic."""
    k: int
    """Layers taken from the top of each ranking."""
    shared: int
    """Layers that are among the top k of both."""
    chance: float
    """How many would be, on average, if one ranking were random: k * k / layers."""
    p_shared: float
    """Probability of at least so many shared layers by chance (hypergeometric)."""
    noise_share: float
    """Median over the layers of `SeedNull.noise_share`."""


@record
class SeedNull:
    """A second tuning of the same base, beside the first: what of a layer's movement another seed repeats.

    What it does not show: rankings that agree are no evidence of learning, because the norm of pure noise depends on the layer
    too (on the size of its tensors and of its gradients) and repeats with it; `noise_share` near 1 tells that case. What both
    seeds do share may still be the optimiser or the texts and not the feedback. Two tunings are one draw of the difference
    between seeds. That they differ by nothing else is the caller's word: a record that names another base, method or reward is
    refused, learning rate and steps stand in no record.
    """

    name: str
    """The replicate."""
    sites: tuple[str, ...]
    """The site of each layer."""
    tuned: dict[str, Float[np.ndarray, " layers"]]
    """Measure -> distance of the first tuning to the base."""
    replicate: dict[str, Float[np.ndarray, " layers"]]
    """Measure -> distance of the second tuning to the base."""
    between: dict[str, Float[np.ndarray, " layers"]]
    """Measure -> distance of the two tunings to one another, in the same unit (relative ones relative to the base)."""

    def noise_share(self, by: str = "parameter_l2") -> Float[np.ndarray, " layers"]:
        """Give, per layer, the squared distance between the tunings divided by the sum of their squared distances to the base.

        0: both moved alike; 1: their movements have nothing in common, so that all of it may be seed noise; above 1: they
        moved apart. A cosine distance is a square already. Not a number where neither moved. A sum of norms is no norm, so for
        `parameter_sum` the reading is approximate.
        """
        one, two, apart = (self._known(values, by) for values in (self.tuned, self.replicate, self.between))
        power = 1 if by.endswith("cosine_distance") else 2
        moved = one**power + two**power
        return np.divide(apart**power, moved, out=np.full(len(moved), np.nan), where=moved > 0)

    def agreement(self, by: str = "parameter_sum", k: int | None = None) -> SeedAgreement:
        """Compare the two rankings of the layers; `k` of the top, half of the layers if it is not given."""
        one, two = self._known(self.tuned, by), self._known(self.replicate, by)
        n = len(one)
        top = max(1, n // 2) if k is None else k
        if not 1 <= top <= n:
            raise LensError(f"The top {top} layers were asked for; the model has {n} layers.")
        tau, p_value = rank_test(one, two)
        shared = len(set(_furthest(one)[:top]) & set(_furthest(two)[:top]))
        noise = self.noise_share(by)
        typical = float(np.nanmedian(noise)) if np.isfinite(noise).any() else float("nan")
        p_shared = float(stats.hypergeom.sf(shared - 1, n, top, top))
        return SeedAgreement(by, tau, p_value, top, shared, top * top / n, p_shared, typical)

    def to_frame(self, k: int | None = None) -> "pd.DataFrame":
        """Give one row per measure: agreement of the rankings and the share of noise."""
        import pandas as pd

        return pd.DataFrame([vars(self.agreement(by, k)) for by in self.tuned])

    def layers(self, by: str = "parameter_sum") -> "pd.DataFrame":
        """Give one row per layer: both distances to the base, the distance between the tunings, the share of noise."""
        import pandas as pd

        noise = self.noise_share(by)
        columns = {"tuned": self.tuned[by], "replicate": self.replicate[by], "between": self.between[by]}
        return pd.DataFrame({"site": self.sites, **columns, "noise_share": noise})

    def _known(self, values: dict[str, Float[np.ndarray, " layers"]], by: str) -> Float[np.ndarray, " layers"]:
        if by not in values:
            raise unknown("divergence measure", by, self.tuned)
        return values[by]


def rank_test(one: Float[np.ndarray, " layers"], two: Float[np.ndarray, " layers"]) -> tuple[float, float]:
    """Give tau-b and its two-sided p under random orders; ties stay ties. Not numbers for a constant side.

    >>> tau, p = rank_test(np.array([1.0, 2.0, 3.0, 4.0]), np.array([10.0, 20.0, 30.0, 40.0]))
    >>> round(tau, 6), round(p, 6)  # 2 of the 24 orders agree or disagree throughout
    (1.0, 0.083333)
    """
    if not (np.isfinite(one).all() and np.isfinite(two).all() and np.ptp(one) and np.ptp(two)):
        return float("nan"), float("nan")
    whole = stats.kendalltau(one, two, variant="b")
    if len(one) > ENUMERATED:
        return float(whole.statistic), float(whole.pvalue)
    left, right = np.triu_indices(len(one), 1)
    wanted = np.sign(one[left] - one[right]).astype(int)
    orders = two[np.array(list(permutations(range(len(two)))))]
    concordant = np.abs(np.sign(orders[:, left] - orders[:, right]).astype(int) @ wanted)
    # The first order is the given one.
    return float(whole.statistic), float(np.mean(concordant >= concordant[0]))


def _furthest(values: Float[np.ndarray, " layers"]) -> list[int]:
    return np.argsort(-values, kind="stable").tolist()
