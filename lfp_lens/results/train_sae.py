"""What `train_sae` gives: SAEs by side, site and setting, with their quality, their floors and who matches whom."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from lfp_lens.core.errors import GateError, LensError, nearest, unknown
from lfp_lens.core.records import record
from lfp_lens.results.matching import RELATIONS, Match
from lfp_lens.results.saes import (
    FLOORS,
    MAX_DEAD_SHARE,
    MIN_EXPLAINED_VARIANCE,
    MIN_KL_RECOVERED,
    SIDES,
    Floor,
    SAERecord,
    SAEWeights,
)
from lfp_lens.results.sweeps import sweep
from lfp_lens.view import page, sae_plots

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

__all__ = [
    "FLOORS", "MAX_DEAD_SHARE", "MIN_EXPLAINED_VARIANCE", "MIN_KL_RECOVERED", "RELATIONS", "SIDES", "Floor", "Match",
    "SAERecord", "SAESet", "SAEWeights",
]  # fmt: skip

SHOWN = (
    "side", "site", "size", "architecture", "seed", "l1", "k", "lr", "n_features", "explained_variance",
    "explained_variance_low", "explained_variance_high", "kl_recovered", "kl_recovered_low", "kl_recovered_high",
    "ce_recovered", "l0", "dead_share", "shrinkage", "mse", "n_train_tokens", "n_heldout_tokens", "n_spliced_tokens",
)  # fmt: skip


@record
class SAESet:
    """All dictionaries of a pair. Good reconstruction does not show that a feature is real: see `matches` and their nulls."""

    saes: tuple[SAERecord, ...]
    """One record per side, site, size, architecture, seed and setting."""
    pair: str
    """Fingerprint of the pair they were trained on; other pairs refuse them."""
    matches: tuple[Match, ...]
    """Dictionaries that differ in size, seed or model only, feature by feature; empty where no two do."""
    curve: dict[str, np.ndarray]
    """`SAERecord.name` -> training loss over the steps."""

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites covered, in layer order."""
        return tuple(sorted({sae.site for sae in self.saes}, key=lambda site: (int(site.split(".")[1]), site)))

    def select(
        self, *, side: str | None = None, site: str | None = None, size: float | None = None,
        architecture: str | None = None, seed: int | None = None, l1: float | None = None, k: int | None = None,
        lr: float | None = None,
    ) -> tuple[SAERecord, ...]:  # fmt: skip
        """Give the SAEs that match all that is named, smallest first, then by layer, then in the set's order.

        Raises `LensError` with what there is if none matches.
        """
        wanted = {"side": side, "site": site, "size": size, "architecture": architecture, "seed": seed, "l1": l1, "k": k,
                  "lr": lr}  # fmt: skip
        wanted = {name: value for name, value in wanted.items() if value is not None}
        found = [sae for sae in self.saes if all(getattr(sae, name) == value for name, value in wanted.items())]
        if not found:
            raise self._nothing(wanted)
        return tuple(sorted(found, key=lambda sae: (sae.size, self.sites.index(sae.site))))

    def one(
        self, site: str, *, side: str = "tuned", size: float | None = None, architecture: str | None = None,
        seed: int | None = None,
    ) -> SAERecord:  # fmt: skip
        """Give the SAE of this site; without a size the smallest, as in the paper; of several the first in the set."""
        return self.select(side=side, site=site, size=size, architecture=architecture, seed=seed)[0]

    def passing(self, *, side: str = "tuned", size: float | None = None) -> tuple[str, ...]:
        """Name the sites whose SAE passes the quality gates. Raises `GateError` if none does, with every reason."""
        chosen = [self.one(site, side=side, size=size) for site in self.sites]
        good = tuple(sae.site for sae in chosen if not sae.failures)
        if not good:
            why = "; ".join(f"{sae.site}: {', '.join(sae.failures)}" for sae in chosen)
            raise GateError(
                f"No {side} SAE is good enough to interpret: {why}. Train on more tokens or with another architecture."
            )
        return good

    def match(self, sae: SAERecord, relation: str = "sizes") -> Match:
        """Give the match in which this SAE stands on the left: the smaller, the base's, the earlier seed's.

        Args:
            sae: one of the set.
            relation: `sizes`, `seeds` or `sides`.

        Raises `LensError` if it was matched with none.
        """
        if relation not in RELATIONS:
            raise unknown("relation of two SAEs", relation, RELATIONS)
        found = [match for match in self.matches if (match.relation, match.left) == (relation, sae.name)]
        if not found:
            have = "; ".join(f"{match.left} with {match.right}" for match in self.matches if match.relation == relation)
            raise LensError(f"No match of {relation} begins with {sae.name}. Matched by {relation}: {have or 'none'}.")
        return found[0]

    def floor(self, kind: str) -> "SAESet":
        """Give the dictionaries of a floor in place of the SAEs: what `attribute` and `ablate` find with them is the floor.

        They keep side, site, size and seed, so that the same question finds them; they pass no gate by merit, so use
        them with `gate="warn"`. A `pca` dictionary has two features per component, whatever `size` says.

        Args:
            kind: `untrained` or `pca`.

        Raises `LensError` for another kind, or where none was measured.
        """
        if kind not in FLOORS:
            raise unknown("floor", kind, FLOORS)
        if kind == "random_model":
            raise LensError(
                "The floor 'random_model' reads another model: it has figures (`SAERecord.floors`), no SAE here."
            )
        lacking = [sae.name for sae in self.saes if kind not in sae.floors]
        if lacking or not self.saes:
            raise LensError(f"The floor {kind!r} was not measured for {len(lacking)} of {len(self.saes)} SAEs: "
                            f"{lacking[0] if lacking else 'the set is empty'}.")  # fmt: skip
        return SAESet(tuple(_as_floor(sae, sae.floors[kind]) for sae in self.saes), self.pair, (), {})

    def by(self, name: str, **which: Any) -> "pd.DataFrame":
        """Give mean quality by one setting, with its interval over sites and seeds (Figure 8, Tables 11 and 12).

        Args:
            name: `l1`, `k`, `lr`, `architecture`, `size`, `seed`, `site`, `side` or `n_train_tokens`.
            which: what `select` takes, to leave others out, for example `side="tuned", size=1`.

        Returns one row per value; the columns are those of `lfp_lens.results.sweeps.sweep`.

        >>> saes.by("l1", size=1)  # doctest: +SKIP
        """
        return sweep(self.select(**which), name)

    def plot_sweep(self, name: str, **which: Any) -> "go.Figure":
        """Draw reconstruction loss and sparsity by one setting (the paper's Figure 8); arguments as in `by`."""
        return sae_plots.sweep(self.by(name, **which), name)

    def plot_stability(self, sae: SAERecord) -> "go.Figure":
        """Draw how many features of an SAE other seeds found again, beside what random dictionaries of its shape give.

        Raises `LensError` for an SAE with one seed only.
        """
        found = [one for one in self.matches if one.relation == "seeds" and sae.name in (one.left, one.right)]
        if sae.stability is None or not found:
            raise LensError(f"{sae.name} has no other seed to compare with: train it with replicates=2 or more.")
        null, what = found[0], "largest cosine, mean over seeds"
        return sae_plots.matching(sae.stability, null.left_null, null.left_null_99, sae.name, over=what)

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per SAE with its quality, its floors (NaN where not measured) and what it fails."""
        import pandas as pd

        return pd.DataFrame([
            {name: getattr(sae, name) for name in SHOWN}
            | {f"{kind}_{name}": getattr(sae.floors[kind], name) if kind in sae.floors else float("nan")
               for kind in FLOORS for name in ("explained_variance", "kl_recovered")}
            | {"fails": "; ".join(sae.failures)}
            for sae in self.saes
        ])  # fmt: skip

    def matches_frame(self) -> "pd.DataFrame":
        """Give one row per match: both means, each beside that of random dictionaries of the same shapes."""
        import pandas as pd

        columns = ("relation", "left", "right", "mmcs", "left_null", "mmcs_hungarian", "null_assigned")
        rows = [
            {name: getattr(match, name) for name in columns}
            | {"n": len(match.left_largest),
               "above_null_99": float((match.left_largest > match.left_null_99).mean())}
            for match in self.matches
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=[*columns, "above_null_99", "n"])

    def plot(self) -> "go.Figure":
        """Draw explained variance against L0, one point per SAE, its floors beside."""
        return sae_plots.quality(self.to_frame())

    def _nothing(self, wanted: dict[str, Any]) -> LensError:
        hint = nearest(wanted["site"], self.sites) if "site" in wanted and wanted["site"] not in self.sites else ""
        names = dict.fromkeys(("side", "site", "size", "architecture", "seed", *wanted))
        have = {name: dict.fromkeys(getattr(sae, name) for sae in self.saes) for name in names}
        listed = "; ".join(f"{name}: {', '.join(map(str, found)) or 'none'}" for name, found in have.items())
        asked = ", ".join(f"{name}={value!r}" for name, value in wanted.items()) or "anything"
        return LensError(f"No SAE matches {asked}.{hint} There is {listed}.")

    def _repr_html_(self) -> str:
        return page.table(self.to_frame(), f"{len(self.saes)} SAEs, quality on held-out text")


def _as_floor(sae: SAERecord, floor: Floor) -> SAERecord:
    """Give a floor's dictionary as a record of its own; what a floor does not have (intervals, an mse) is NaN."""
    assert floor.weights is not None and floor.firing_rate is not None, floor.kind
    nan = float("nan")
    measured = {
        name: getattr(floor, name)
        for name in ("explained_variance", "kl_recovered", "ce_recovered", "l0", "dead_share", "shrinkage", "weights",
                     "firing_rate")
    }  # fmt: skip
    return dataclasses.replace(
        sae, **measured, mse=nan, explained_variance_low=nan, explained_variance_high=nan, kl_recovered_low=nan,
        kl_recovered_high=nan, n_train_tokens=0, floors={}, stability=None, crosscoder=None,
        architecture=sae.architecture if floor.kind == "untrained" else floor.kind,
    )  # fmt: skip
