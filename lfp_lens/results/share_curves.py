"""Which share of what tuning gained do features carry, at how much damage: curves, floors beside them, paired intervals."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate
from lfp_lens.view import page, share_plots

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

KL_LIMITS = (0.003, 0.01, 0.03)
"""Nats per token at which curves are compared unless another is asked for."""
SHOWN = (
    "mode",
    "kl",
    "features",
    "is_floor",
    "share",
    "low",
    "high",
    "n",
    "best_floor",
    "lead",
    "lead_low",
    "lead_high",
)
DRAWS = 1000
NAN = float("nan")


@record
class ShareCurves:
    """Shares at equal damage: removing anything that matters moves a reward, so a share says nothing without its KL.

    A point is a set of features (the first k of an order made on other texts) removed once (dose 1: they are set to what the
    mode says) or more or less than once (dose d: moved d times as far). Along the doses of one set, share and KL make a path;
    a curve takes, at each KL, the best of its sets, chosen on one half of the texts and read on the other, both ways.
    """

    name: tuple[str, ...]
    """Whose features each point removes."""
    mode: tuple[str, ...]
    """`zero`, `mean` or `resample`."""
    seed: Int[np.ndarray, " points"]
    """Of the dictionary; several seeds of one name are one curve, and its interval covers them."""
    k: Int[np.ndarray, " points"]
    """Features removed."""
    dose: Float[np.ndarray, " points"]
    """How often they are removed."""
    valence: Float[np.ndarray, "points texts"]
    """Expected lexicon value of the next word, summed over each text's tokens."""
    kl: Float[np.ndarray, "points texts"]
    """KL(changed || untouched), summed over each text's tokens, in nats."""
    tokens: Float[np.ndarray, " texts"]
    """Tokens of each text."""
    tuned: Float[np.ndarray, " texts"]
    """Valence of the untouched tuned model, summed likewise."""
    base: Float[np.ndarray, " texts"]
    """Valence of the base model."""
    floors: tuple[str, ...]
    """What learned no features of the tuned model, or needs none. One without points was asked, and none of its features has a
    positive effect."""
    n_select: int
    """Other texts, on which the orders were made."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, in the order in which they were measured."""
        return tuple(dict.fromkeys(self.name))

    @property
    def gain(self) -> float:
        """Tuned - base valence per token: what a share is a share of."""
        return float((self.tuned - self.base).sum() / self.tokens.sum())

    def share(
        self, name: str, *, mode: str = "zero", kl: float = 0.03, most_dose: float = 1.0, seed: int = 0
    ) -> Estimate:
        """Give the largest share of the gain that a name's features remove at no more than this KL.

        Args:
            name: one of `names`.
            mode: `zero`, `mean` or `resample`.
            kl: KL per token to the untouched model that may be spent, in nats.
            most_dose: 1 is ablation; larger values allow features to be removed more than once, which is steering.
            seed: of the bootstrap over texts. Several seeds of the dictionary widen the interval by Student's t over them.

        Between measured points the share is linear in the root of KL, which understates sets that were measured beyond it only.
        The value is NaN where the mode does not apply to the name (a constant has no mean to be set to), and where the interval
        of the gain does not lie above 0. Raises `LensError` for a name or mode that was not measured.
        """
        return self._estimate(self._at(name, mode, kl, most_dose, self._drawn(seed)))

    def lead(
        self, name: str, *, mode: str = "zero", kl: float = 0.03, most_dose: float = 1.0, seed: int = 0
    ) -> dict[str, Estimate]:
        """Give, for every floor that the mode applies to, the name's share less the floor's, paired by text.

        A floor none of whose features has a positive effect removes nothing: its share is 0.
        """
        drawn = self._drawn(seed)
        own = self._at(name, mode, kl, most_dose, drawn)
        others = {floor: self._at(floor, mode, kl, most_dose, drawn) for floor in self.floors if floor != name}
        return {
            floor: self._estimate(Drawn(own.values - other.values, float(np.hypot(own.by_seed, other.by_seed))))
            for floor, other in others.items()
            if np.isfinite(other.values[0])
        }

    def best_set(
        self, name: str, *, mode: str = "zero", kl: float = 0.03, most_dose: float = 1.0, seed: int = 0
    ) -> tuple[int, float]:
        """Give the number of features and the dose with the largest share at no more than this KL, on all texts.

        `seed` is the dictionary's. For doing the same elsewhere, on sampled text for example: `share` gives the figure.
        """
        mine = self._mine(name, mode, most_dose) & (self.seed == seed)
        if not mine.any():
            raise LensError(f"{name!r} was not measured in mode {mode!r} with seed {seed}.")
        whole = np.ones((1, len(self.tokens)))
        k = max(np.unique(self.k[mine]), key=lambda k: self._path(mine & (self.k == k), kl, whole)[0])
        rows = np.flatnonzero(mine & (self.k == k))
        rows = rows[np.argsort(self.dose[rows])]
        root = np.concatenate([[0.0], np.sqrt(np.maximum(self.kl[rows].sum(1), 0) / self.tokens.sum())])
        dose = np.interp(np.sqrt(kl), np.maximum.accumulate(root), np.concatenate([[0.0], self.dose[rows]]))
        return int(k), float(dose)

    def carries(self, name: str, *, kl: float = 0.03, most_dose: float = 1.0, margin: float = 0.0) -> bool:
        """Tell whether a name's share lies above 0, and above every floor's by `margin` or more, zeroed and set to the mean."""
        for mode in ("zero", "mean"):
            leads = self.lead(name, mode=mode, kl=kl, most_dose=most_dose)
            above = self.share(name, mode=mode, kl=kl, most_dose=most_dose).low > 0
            if not (above and leads and all(one.value >= margin and one.low > 0 for one in leads.values())):
                return False
        return True

    def to_frame(self, kl: tuple[float, ...] = KL_LIMITS, *, most_dose: float = 1.0) -> "pd.DataFrame":
        """Give one row per name, mode and KL: the share, its interval, and the least lead over a floor."""
        import pandas as pd

        rows = []
        for mode in dict.fromkeys(self.mode):
            for name in self.names:
                for limit in kl:
                    share = self.share(name, mode=mode, kl=limit, most_dose=most_dose)
                    if not np.isfinite(share.value):
                        continue
                    row = {"mode": mode, "kl": limit, "features": name, "is_floor": name in self.floors,
                           "share": share.value, "low": share.low, "high": share.high, "n": share.n}  # fmt: skip
                    leads = {} if name in self.floors else self.lead(name, mode=mode, kl=limit, most_dose=most_dose)
                    least = min(leads, key=lambda floor: leads[floor].value, default=None)
                    found = leads[least] if least else None
                    row |= {"best_floor": least or "", "lead": found.value if found else NAN,
                            "lead_low": found.low if found else NAN, "lead_high": found.high if found else NAN}  # fmt: skip
                    rows.append(row)
        return pd.DataFrame(rows, columns=list(SHOWN))

    def points(self) -> "pd.DataFrame":
        """Give one row per point as it was measured: name, mode, seed, k, dose, share and KL per token."""
        import pandas as pd

        gain, tokens = (self.tuned - self.base).sum(), self.tokens.sum()
        return pd.DataFrame({
            "features": self.name, "mode": self.mode, "seed": self.seed, "k": self.k, "dose": self.dose,
            "kl": self.kl.sum(1) / tokens, "share": (self.tuned.sum() - self.valence.sum(1)) / gain,
        })  # fmt: skip

    def plot(self, mode: str = "zero", *, most_dose: float = 1.0) -> "go.Figure":
        """Draw the share removed against the KL spent, one line per name, floors dashed."""
        limits = np.geomspace(3e-4, 0.1, 16)
        whole = np.ones((1, len(self.tokens)))
        lines = {
            name: np.array([self._at(name, mode, limit, most_dose, whole).values[0] for limit in limits])
            for name in self.names
        }
        return share_plots.curves(limits, lines, self.floors, mode)

    def _repr_html_(self) -> str:
        where = f"{len(self.tokens)} texts; sets chosen on {self.n_select} others"
        title = f"Share of the gain ({self.gain:.3f} per token) removed within a KL; {where}"
        return page.table(self.to_frame(), title)

    def _drawn(self, seed: int) -> Float[np.ndarray, "draws texts"]:
        """Give how often each text counts; the first row is the data itself."""
        n = len(self.tokens)
        counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(float)
        return np.concatenate([np.ones((1, n)), counts])

    def _at(self, name: str, mode: str, kl: float, most_dose: float, counts: np.ndarray) -> "Drawn":
        """Give the share at a KL, one number per draw, and how far other seeds of the dictionary might move it."""
        if not kl > 0:
            raise LensError(f"kl is what may be spent, in nats per token, and must be above 0; {kl} given.")
        mine = self._mine(name, mode, most_dose)
        gains = counts @ (self.tuned - self.base)
        is_gain = gains[0] > 0 and (len(gains) == 1 or np.quantile(gains[1:], 0.025) > 0)
        if not is_gain or (not mine.any() and name in self.name):
            return Drawn(np.full(len(counts), NAN), 0.0)
        if not mine.any():
            return Drawn(np.zeros(len(counts)), 0.0)
        seeds = np.unique(self.seed[mine])
        by_seed = np.stack([self._of_seed(mine & (self.seed == seed), kl, counts) for seed in seeds], axis=1)
        half = 0.0
        if len(seeds) > 1:
            spread = by_seed[0].std(ddof=1) / np.sqrt(len(seeds))
            half = float(stats.t.ppf(0.975, len(seeds) - 1) * spread)
        return Drawn(by_seed.mean(1), half)

    def _mine(self, name: str, mode: str, most_dose: float) -> np.ndarray:
        """Mark the points of a name and mode."""
        if name not in (*self.names, *self.floors):
            raise unknown("name", name, self.names)
        if mode not in self.mode:
            raise unknown("mode", mode, tuple(dict.fromkeys(self.mode)))
        mine = np.array([own == name and way == mode for own, way in zip(self.name, self.mode)])
        return mine & (self.dose <= most_dose)

    def _of_seed(self, mine: np.ndarray, kl: float, counts: np.ndarray) -> Float[np.ndarray, " draws"]:
        """Choose the set on one half of the texts, read it on the other, both ways."""
        is_even = np.arange(len(self.tokens)) % 2 == 0
        removed, gained = np.zeros(len(counts)), np.zeros(len(counts))
        for fold in (is_even, ~is_even):
            paths = {k: mine & (self.k == k) for k in np.unique(self.k[mine])}
            best = max(paths, key=lambda k: self._path(paths[k], kl, (~fold)[None].astype(float))[0])
            weights = counts * fold
            gain = weights @ (self.tuned - self.base)
            removed += self._path(paths[best], kl, weights) * gain
            gained += gain
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(gained > 0, removed / gained, NAN)

    def _path(self, own: np.ndarray, kl: float, weights: np.ndarray) -> Float[np.ndarray, " draws"]:
        """Give the largest share of one set within a KL along its doses, linear in the root of KL between them.

        Nothing removed is the first point of every path, so that no share lies below 0.
        """
        rows = np.flatnonzero(own)[np.argsort(self.dose[own], kind="stable")]
        gain, tokens = weights @ (self.tuned - self.base), np.maximum(weights @ self.tokens, 1e-9)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = ((weights @ self.tuned)[:, None] - weights @ self.valence[rows].T) / gain[:, None]
        root = np.maximum.accumulate(np.sqrt(np.maximum(weights @ self.kl[rows].T, 0) / tokens[:, None]), axis=1)
        zeros = np.zeros((len(weights), 1))
        share, root = np.concatenate([zeros, share], axis=1), np.concatenate([zeros, root], axis=1)
        share = np.maximum.accumulate(np.nan_to_num(share), axis=1)
        found, target = share[:, -1].copy(), np.sqrt(kl)
        for end in range(root.shape[1] - 1, 0, -1):
            low, high = root[:, end - 1], root[:, end]
            inside = (low <= target) & (target < high)
            part = np.divide(target - low, high - low, out=np.zeros_like(low), where=high > low)
            found = np.where(inside, share[:, end - 1] + part * (share[:, end] - share[:, end - 1]), found)
        return found

    def _estimate(self, found: "Drawn") -> Estimate:
        """Give the value with its interval: texts resampled, and Student's t over seeds of the dictionary, in quadrature."""
        value = found.values[0]
        if not np.isfinite(value):
            return Estimate(NAN, NAN, NAN, len(self.tokens))
        low, high = np.nanquantile(found.values[1:], (0.025, 0.975))
        ends = value - np.hypot(value - low, found.by_seed), value + np.hypot(high - value, found.by_seed)
        return Estimate(float(value), float(ends[0]), float(ends[1]), len(self.tokens))


class Drawn(NamedTuple):
    """A share over bootstrap draws of texts."""

    values: Float[np.ndarray, " draws"]
    """The first is that of the data itself."""
    by_seed: float
    """Half the width of the 95 % interval over seeds of the dictionary; 0 for one seed."""
