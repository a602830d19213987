"""Which features jointly carry a scalar: greedy sets of growing size, and what removing each takes away."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate
from lfp_lens.view import causal_plots, page

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@record
class Joint:
    """Features chosen on one half of the texts, what removing them together takes away on the other half.

    A large share is not proof: removing features also damages the model. `ablate` compares shares at equal damage.
    """

    features: tuple[tuple[str, int], ...]
    """(site, index) in the order of choice: every set is a beginning of this."""
    sizes: Int[np.ndarray, " sizes"]
    """How many features each set has."""
    share: Float[np.ndarray, " sizes"]
    """What removing the set takes away, as a share of `whole`."""
    share_low: Float[np.ndarray, " sizes"]
    """Lower end of its 95 % interval; texts are resampled."""
    share_high: Float[np.ndarray, " sizes"]
    """Upper end."""
    random: Float[np.ndarray, "sizes draws"]
    """The same share for as many random features of the same sites and like firing rates; NaN where there are too few."""
    whole: Estimate
    """What the share is of: the scalar of tuned minus base, or of one model its value, in the unit of the effects."""
    of: str
    """`gain` (tuned minus base) or `value`."""

    @property
    def is_told(self) -> bool:
        """Whether `whole` is told from zero; a share of what may be nothing means nothing."""
        return self.whole.low > 0 or self.whole.high < 0

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per size: the share, its interval, mean, least and largest of the random sets."""
        import pandas as pd

        lacking = ~np.isfinite(self.random).any(1)
        filled = np.where(lacking[:, None], 0.0, self.random)
        drawn = {
            f"random_{name}": np.where(lacking, np.nan, take(filled, axis=1))
            for name, take in (("mean", np.nanmean), ("least", np.nanmin), ("largest", np.nanmax))
        }
        shares = {name: getattr(self, name) for name in ("share", "share_low", "share_high")}
        return pd.DataFrame({"features": self.sizes, **shares, **drawn})

    def plot(self) -> "go.Figure":
        """Draw the share by number of features, beside random sets."""
        return causal_plots.joint(self.to_frame(), self.of)

    def _repr_html_(self) -> str:
        title = f"Share of the {self.of} ({self.whole}) that goes with features removed together"
        return page.table(self.to_frame(), title)
