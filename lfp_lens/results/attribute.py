"""What `attribute` gives: the effect of every feature on a scalar, screened in one pass and confirmed exactly."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from lfp_lens.core.errors import GateError, LensError, unknown
from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate
from lfp_lens.results.effect_examples import EffectExamples, TopExamples, top_examples
from lfp_lens.results.features import FeatureSet
from lfp_lens.results.joint import Joint
from lfp_lens.results.train_sae import SAESet
from lfp_lens.view import causal_plots, page

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MIN_RANK_CORRELATION = 0.7
BY = ("exact", "screen")


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
    """First-order effect, from one backward pass (`steps` of them), on the texts that screen."""
    screen_same: Float[np.ndarray, " features"]
    """The same on the texts of exact confirmation: it tells how good the first order is, and chooses nothing."""
    exact: Float[np.ndarray, " features"]
    """Effect of zeroing the feature, error kept, on the other texts; NaN where it was not run."""
    exact_low: Float[np.ndarray, " features"]
    """Lower end of its 95 % interval over texts (or pairs)."""
    exact_high: Float[np.ndarray, " features"]
    """Upper end of its 95 % interval over texts (or pairs)."""
    consistency: Float[np.ndarray, " features"]
    """Share of the texts where the feature fires whose own effect has the sign of `exact`; NaN where none."""
    fires_in: Int[np.ndarray, " features"]
    """Texts (or pairs) of exact confirmation in which the feature fires; -1 where it was not run."""
    is_random: Bool[np.ndarray, " features"]
    """Whether the feature was drawn at random for the rank correlation (it may be among the strongest as well)."""
    text_effects: Float[np.ndarray, "confirmed texts"]
    """Exact effect on each text or pair, of the confirmed features in their order; a sum over tokens."""
    rank_correlation: Estimate
    """Spearman of screen and exact on features drawn at random among those that fire: what a ranking by the screen is worth
    on texts it did not see."""
    agreement: Estimate
    """The same with both on the same texts: how good the first order is."""
    scalar: str
    """What is attributed, for example `expected_valence`."""
    per: str
    """Unit of effects: `token`, `text` or `pair` (chosen minus rejected)."""
    side: str
    """Whose dictionaries."""
    size: float | None
    """Which size; None is the smallest."""
    steps: int
    """Points of the integrated gradients; 1 is gradient x activation."""
    n_texts: int
    """Texts (or pairs) behind every exact effect; the screen used as many others."""
    n_tokens: int
    """Tokens of those texts."""
    examples: EffectExamples
    """Texts for `top_examples`."""
    joint: Joint | None
    """Which features carry the scalar together; None where it was not asked for, or no feature raises the scalar."""
    skipped: dict[str, str]
    """Site -> why its SAE was not good enough to interpret."""

    def top(self, k: int, *, sign: int = 1, by: str = "exact") -> FeatureSet:
        """Give the k features with the largest effect of this sign.

        Args:
            k: how many; fewer where fewer have an effect of this sign.
            sign: 1 for features whose removal lowers the scalar, -1 for those whose removal raises it.
            by: `exact` ranks the confirmed features by their exact effect; `screen` ranks all by the screen alone.

        Raises:
            GateError: if screen and exact rank features too differently for the screen to have found them.
            LensError: if no feature has an effect of this sign.
        """
        if by not in BY:
            raise unknown("ranking", by, BY)
        if self.rank_correlation.value < MIN_RANK_CORRELATION:
            raise GateError(
                f"The screen does not rank features as exact ablation does (Spearman {self.rank_correlation}, "
                f"{MIN_RANK_CORRELATION} needed): use `.exact` of the confirmed features, or confirm more."
            )
        effect = sign * np.nan_to_num(getattr(self, by), nan=-np.inf * sign)
        chosen = [row for row in np.argsort(-effect, kind="stable") if effect[row] > 0][:k]
        if not chosen:
            raise LensError(
                f"No feature has a {'confirmed' if by == 'exact' else 'screened'} effect of sign {sign:+d}."
            )
        return FeatureSet(
            self.saes, tuple((self.site[row], int(self.index[row])) for row in chosen), self.side, self.size
        )

    def top_examples(self, site: str, index: int, *, by: str = "effect", sign: int = 1, k: int = 5) -> TopExamples:
        """Give the texts (or pairs) where a confirmed feature has its largest effect, or fires most, token by token.

        Args:
            site: where the feature is.
            index: its index there.
            by: `effect` or `activation`.
            sign: by effect: 1 for texts whose scalar falls when the feature is removed, -1 for those whose scalar rises.
            k: how many, at most 5 of each kind are kept.

        Raises `LensError` for a feature that was not confirmed, or that fires on none of the texts.

        >>> effects.top_examples("blocks.3.hook_mlp_out", 7)[0].before  # doctest: +SKIP
        """
        row = self._row(site, index)
        return top_examples(
            self.examples, row, site=site, index=index, by=by, sign=sign, k=k, per_token=self.per == "token"
        )

    def histogram(self, site: str, index: int) -> "go.Figure":
        """Draw the exact effects of a confirmed feature on the single texts (or pairs) where it has any."""
        row = self._row(site, index)
        confirmed = np.flatnonzero(np.isfinite(self.exact)).tolist()
        if row not in confirmed:
            raise LensError(
                f"Feature {index} at {site} was not confirmed exactly. Run attribute with a larger confirm."
            )
        values = self.text_effects[confirmed.index(row)]
        return causal_plots.text_effects(values[values != 0], f"feature {index} at {site}", self.scalar)

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per feature, strongest exact effect first."""
        import pandas as pd

        names = ("index", "screen", "exact", "exact_low", "exact_high", "consistency", "fires_in", "is_random")
        frame = pd.DataFrame({"site": self.site, **{name: getattr(self, name) for name in names}})
        return frame.sort_values("exact", key=abs, ascending=False, ignore_index=True)

    def plot(self) -> "go.Figure":
        """Draw exact against screened effect."""
        return causal_plots.effects(self.to_frame(), self.rank_correlation.value)

    def _row(self, site: str, index: int) -> int:
        found = [row for row, (at, i) in enumerate(zip(self.site, self.index)) if (at, i) == (site, index)]
        if not found:
            raise LensError(
                f"There is no feature {index} at {site} among these. Sites: {', '.join(dict.fromkeys(self.site))}."
            )
        return found[0]

    def _repr_html_(self) -> str:
        title = (
            f"Effects on {self.scalar} per {self.per} ({self.n_texts} texts, {self.n_tokens} tokens); "
            f"Spearman of screen and exact {self.rank_correlation}"
        )
        return page.table(self.to_frame().head(20), title)
