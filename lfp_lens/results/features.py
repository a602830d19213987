"""A set of SAE features, with the SAEs they belong to: what `ablate` takes."""

from numbers import Integral
from typing import TYPE_CHECKING

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.records import record
from lfp_lens.results.train_sae import SIDES, SAERecord, SAESet
from lfp_lens.view import page

if TYPE_CHECKING:
    import pandas as pd


@record
class FeatureSet:
    """Features by (site, index), and the SAEs that define them. Raises `LensError` for a feature that does not exist."""

    saes: SAESet
    """The dictionaries."""
    features: tuple[tuple[str, int], ...]
    """(site, index) of every feature; an empty tuple is allowed and is the no-op control."""
    side: str = "tuned"
    """Whose dictionaries the indices refer to: `tuned`, `base`, `difference` or `both`."""
    size: float | None = None
    """Which size they refer to; None is the smallest at each site."""

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise unknown("side", self.side, SIDES)
        object.__setattr__(self, "features", tuple(dict.fromkeys(_pair(given) for given in self.features)))
        for site, index in self.features:
            width = self.sae(site).n_features
            if not 0 <= index < width:
                raise LensError(f"Feature {index} does not exist at {site}: its SAE has features 0 to {width - 1}.")

    def sae(self, site: str) -> SAERecord:
        """Give the dictionary that this set uses at a site."""
        return self.saes.one(site, side=self.side, size=self.size)

    def by_site(self) -> dict[str, tuple[int, ...]]:
        """Give the indices of each site that has any, in layer order."""
        return {
            site: tuple(index for at, index in self.features if at == site)
            for site in self.saes.sites
            if any(at == site for at, _ in self.features)
        }

    def __len__(self) -> int:
        return len(self.features)

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per feature with its firing rate."""
        import pandas as pd

        rows = [(site, index, float(self.sae(site).firing_rate[index])) for site, index in self.features]
        return pd.DataFrame(rows, columns=["site", "feature", "firing_rate"])

    def _repr_html_(self) -> str:
        return page.table(self.to_frame(), f"{len(self)} features")


def _pair(given: object) -> tuple[str, int]:
    """Give one (site, index) as plain values. Raises `LensError` for anything else."""
    if isinstance(given, (tuple, list)) and len(given) == 2:
        site, index = given
        if isinstance(site, str) and isinstance(index, Integral) and not isinstance(index, bool):
            return str(site), int(index)
    raise LensError(f"A feature is a (site, index) pair such as ('blocks.3.hook_mlp_out', 17); {given!r} given.")
