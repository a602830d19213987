"""What `attribute` gives: the effect of every feature on a scalar, screened in one pass and confirmed exactly."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate
from lfp_lens.results.features import FeatureSet
from lfp_lens.results.train_sae import SAESet
from lfp_lens.view import page, plots

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MIN_RANK_CORRELATION = 0.7


@record
class Effects:
    """effect = scalar(original) - scalar(feature zeroed): positive means that removing the feature lowers the scalar.

    The screen is first order; only `exact` is an effect. Where their rank correlation is low the ranking is refused.
    """

    saes: SAESet
    """The dictionaries whose features were screened."""
    site: tuple[str, ...]
    """Site of each feature."""
    index: Int[np.ndarray, " features"]
    """Index of each feature in its SAE."""
    screen: Float[np.ndarray, " features"]
    """First-order effect per token, from one backward pass."""
    exact: Float[np.ndarray, " features"]
    """Effect per token by zeroing the feature, error kept; NaN where it was not run."""
    exact_low: Float[np.ndarray, " features"]
    """Lower end of its 95 % interval over texts."""
    exact_high: Float[np.ndarray, " features"]
    """Upper end of its 95 % interval over texts."""
    rank_correlation: Estimate
    """Spearman of screen and exact on features drawn at random among those that fire."""
    scalar: str
    """What is attributed: `valence` is the expected lexicon value of the next word."""
    side: str
    """Whose dictionaries."""
    size: float | None
    """Which size; None is the smallest."""
    n_texts: int
    """Texts behind every exact effect; the screen used as many others."""
    n_tokens: int
    """Tokens of those texts."""
    skipped: dict[str, str]
    """Site -> why its SAE was not good enough to interpret."""

    def top(self, k: int, *, sign: int = 1) -> FeatureSet:
        """Give the k features with the largest exactly confirmed effect of this sign.

        Raises `GateError` if screen and exact rank features too differently for the screen to have found them.
        """
        if self.rank_correlation.value < MIN_RANK_CORRELATION:
            raise GateError(
                f"The screen does not rank features as exact ablation does (Spearman {self.rank_correlation}, "
                f"{MIN_RANK_CORRELATION} needed): use `.exact` of the confirmed features, or confirm more."
            )
        order = np.argsort(-sign * np.nan_to_num(self.exact, nan=-np.inf * sign), kind="stable")
        chosen = [row for row in order if np.isfinite(self.exact[row]) and sign * self.exact[row] > 0][:k]
        if not chosen:
            raise LensError(f"No feature has a confirmed effect of sign {sign:+d}.")
        return FeatureSet(
            self.saes, tuple((self.site[row], int(self.index[row])) for row in chosen), self.side, self.size
        )

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per feature, strongest exact effect first."""
        import pandas as pd

        names = ("index", "screen", "exact", "exact_low", "exact_high")
        frame = pd.DataFrame({"site": self.site, **{name: getattr(self, name) for name in names}})
        return frame.sort_values("exact", key=abs, ascending=False, ignore_index=True)

    def plot(self) -> "go.Figure":
        """Draw exact against screened effect."""
        return plots.effects(self.to_frame(), self.rank_correlation.value)

    def _repr_html_(self) -> str:
        title = (
            f"Effects on {self.scalar} ({self.n_texts} texts, {self.n_tokens} tokens); "
            f"Spearman of screen and exact {self.rank_correlation}"
        )
        return page.table(self.to_frame().head(20), title)
