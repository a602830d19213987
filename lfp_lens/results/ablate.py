"""What `ablate` gives: the reward before and after, and everything that a lost reward must be told from."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate
from lfp_lens.results import ablate_readings as parts
from lfp_lens.results.ablate_readings import FiringRates, RandomSets, Reading, readings_frame
from lfp_lens.results.ablate_tables import rates_table, rewards_table, verdict
from lfp_lens.results.features import FeatureSet
from lfp_lens.results.share_curves import ShareCurves
from lfp_lens.view import page, plots

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SAMPLED = ("before", "after", "difference", "reward_base", "gain_share")
SHAPES = ("perplexity", "distinct1", "distinct2", "length")


@record
class Ablation:
    """A drop is the features' doing only as far as it exceeds that of matched random features and of every floor at like KL.

    Sampled numbers are of completions; `readings`, `random` and `dose` are teacher-forced on completions of the untouched
    model. Fields that need a base model are None for a single model; `notes` says so.
    """

    features: FeatureSet
    """What was ablated."""
    mode: str
    """`zero`, `mean`, `resample` or `scale`: what sampled completions and the first percentile are of."""
    scale: float
    """The factor of mode `scale`; 0 is ablation."""
    reward: str
    """The reward that scored the completions."""
    before: Estimate
    """Mean reward of sampled completions, untouched model; n counts prompts, which intervals resample."""
    after: Estimate
    """The same prompts and sampling seeds with the features ablated at every step."""
    difference: Estimate
    """after - before, paired by prompt."""
    reward_base: Estimate | None
    """Mean reward of the base model's completions of the same prompts."""
    gain_share: Estimate | None
    """Share of the tuned-minus-base reward on these prompts that the ablation removes."""
    rewards: dict[str, np.ndarray]
    """`before`, `after` and, with a base, `base` -> reward of every completion: two ablations of one call's prompts and seed
    can be compared prompt by prompt."""
    random_rewards: tuple[Estimate, ...]
    """`difference` of a few matched random sets, sampled as the features were."""
    valence_before: float
    """Expected lexicon value of the next word per position of the untouched model's completions: no sampling."""
    valence_gain: Estimate | None
    """Tuned minus base of it on the same texts: what shares are shares of."""
    implicit_reward_before: Estimate | None
    """log p(text) - log p_base(text) of the untouched model's completions, nats per token."""
    implicit_slope_before: Estimate | None
    """Slope of a completion's implicit reward on its reward, nats per unit of reward."""
    readings: tuple[Reading, ...]
    """The features under every mode, each control, and the reverse."""
    random: tuple[RandomSets, ...]
    """Matched random sets by mode, the chosen mode first and with the most sets."""
    dose: tuple[Reading, ...]
    """Zero-reference scalings of the features, by factor: 0 ablates, 2 steers."""
    over_base: Estimate | None
    """Difference in differences: change of valence in the tuned model minus that of the same features in the base."""
    over_base_own: Estimate | None
    """The same against the base's own most effective features, as many of them."""
    rates: FiringRates
    """Table 7 of the paper, with its controls."""
    curves: ShareCurves | None
    """Share of the gain against KL for this kind of dictionary and for floors; None without a pair, and where
    they were not asked for."""
    perplexity_before: float
    """Perplexity of the reference texts, untouched model."""
    perplexity_after: float
    """The same after ablation: a lost reward with a large rise here is broken text."""
    distinct1_before: float
    """Share of distinct tokens in the completions before."""
    distinct1_after: float
    """The same after."""
    distinct2_before: float
    """Share of distinct bigrams in the completions before."""
    distinct2_after: float
    """The same after."""
    length_before: float
    """Mean tokens per completion before."""
    length_after: float
    """The same after."""
    n_texts: int
    """Completions that the teacher-forced numbers rest on."""
    n_tokens: int
    """Predictions in them."""
    samples: tuple[tuple[str, str, str], ...]
    """A few (prompt, completion before, completion after)."""
    notes: tuple[str, ...]
    """What was assumed or could not be measured, and why."""

    def reading(self, what: str = parts.FEATURES, mode: str | None = None) -> Reading:
        """Give one teacher-forced reading; without a mode that of the chosen one, or the only one.

        Raises `LensError` with what there is if it was not measured.
        """
        found = [one for one in self.readings if one.what == what and mode in (None, one.mode)]
        if not found:
            have = ", ".join(f"{one.what} ({one.mode})" for one in self.readings)
            raise LensError(
                f"There is no reading of {what!r} in mode {mode!r}. There is: {have}. {'; '.join(self.notes)}"
            )
        return next((one for one in found if one.mode == self.mode), found[0])

    @property
    def valence_difference(self) -> Estimate:
        """Change of valence in the chosen mode, paired by text."""
        return self.reading().valence

    @property
    def valence_share(self) -> Estimate | None:
        """Share of the gain in valence that is removed in the chosen mode."""
        return self.reading().share

    @property
    def restored(self) -> Estimate | None:
        """Share of the gain in valence that the features restore when patched from tuned into base: sufficiency."""
        return next((one.share for one in self.readings if one.what == parts.RESTORED), None)

    @property
    def kl_nats(self) -> float:
        """KL(ablated || untouched) per token on the reference texts, in the chosen mode."""
        return self.reading().kl.value

    @property
    def random_differences(self) -> Float[np.ndarray, " controls"]:
        """Changes of valence of the matched random sets in the chosen mode."""
        return self.random[0].differences

    @property
    def percentile(self) -> float:
        """Share of random sets whose drop in valence is smaller than that of the features, in the chosen mode."""
        return self.random[0].percentile

    @property
    def verdict(self) -> str:
        """Say whether features of these SAEs carry the gain: only if they remove 10 points more of it than every floor at equal
        KL, in the zero and in the mean reading. The interval is over texts, and over the SAEs' seeds where there are several."""
        return verdict(self.curves)

    @property
    def reconstruction_difference(self) -> Estimate:
        """Change of valence when the sites are replaced by their reconstruction and nothing is ablated."""
        return self.reading(parts.RECONSTRUCTION).valence

    @property
    def base_difference(self) -> Estimate | None:
        """Change of valence of the same features ablated in the base model."""
        return next((one.valence for one in self.readings if one.what == parts.BASE_SAME), None)

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per number, with mode, interval and n where it has them."""
        import pandas as pd

        columns = ["quantity", "mode", "value", "low", "high", "n"]
        rows: list[tuple[Any, ...]] = []

        def add(name: str, number: Estimate | None, mode: str = self.mode) -> None:
            if number is not None:
                rows.append((name, mode, number.value, number.low, number.high, number.n))

        for name in SAMPLED:
            add(name, getattr(self, name), "" if name in ("before", "reward_base") else self.mode)
        for number in self.random_rewards:
            add("difference of a random set", number)
        for name in ("valence_gain", "implicit_reward_before", "implicit_slope_before"):
            add(name, getattr(self, name), "")
        for one in self.readings:
            for name in ("valence", "share", "kl", "implicit_reward", "implicit_slope"):
                add(f"{name}: {one.what}", getattr(one, name), one.mode)
        add("valence: over the same features in the base", self.over_base)
        add("valence: over the base's own features", self.over_base_own)
        rows += [("percentile", one.mode, one.percentile, np.nan, np.nan, len(one.differences)) for one in self.random]
        for name in SHAPES:
            rows += [(f"{name}_{when}", mode, getattr(self, f"{name}_{when}"), np.nan, np.nan, 0)
                     for when, mode in (("before", ""), ("after", self.mode))]  # fmt: skip
        return pd.DataFrame(rows, columns=columns)

    def readings_frame(self) -> "pd.DataFrame":
        """Give one row per teacher-forced reading: the features under every mode, the controls, the reverse."""
        return readings_frame(self.readings)

    def dose_frame(self) -> "pd.DataFrame":
        """Give the dose-response curve: one row per factor, 0 to ablate, 2 to double."""
        return readings_frame(self.dose)

    def table6(self) -> "pd.DataFrame":
        """Give Table 6 of the paper beside ours: reward before and after, with what the paper lacked.

        Columns: the reward before and after, their paired difference with its interval, n, the share of the gain, the mean
        difference of matched random sets and how many there were, KL and perplexity. Rows of the paper are marked PUBLISHED.
        """
        random = self.random_rewards
        return rewards_table({
            "reward": self.reward, "mode": self.mode, "features": len(self.features),
            "before": self.before.value, "before_low": self.before.low, "before_high": self.before.high,
            "after": self.after.value, "after_low": self.after.low, "after_high": self.after.high,
            "difference": self.difference.value, "low": self.difference.low, "high": self.difference.high,
            "n": self.before.n, "base": np.nan if self.reward_base is None else self.reward_base.value,
            "gain_share": np.nan if self.gain_share is None else self.gain_share.value,
            "random_difference": float(np.mean([one.value for one in random])) if random else np.nan,
            "random_sets": len(random), "kl_nats": self.kl_nats, "perplexity_before": self.perplexity_before,
            "perplexity_after": self.perplexity_after,
        })  # fmt: skip

    def table7(self) -> "pd.DataFrame":
        """Give Table 7 of the paper beside ours: how often the features fire on strongly positive rows, in percent.

        Ours adds the other rows, the ratio with its interval over texts, and matched features. Rows of the paper are marked
        PUBLISHED.
        """
        return rates_table(self.rates)

    def plot(self) -> "go.Figure":
        """Draw the effect among those of matched random feature sets."""
        return plots.ablation(self.random[0].effect, self.random_differences)

    def plot_dose(self) -> "go.Figure":
        """Draw the dose-response curve, change of valence and KL against the factor."""
        from lfp_lens.view import causal_plots

        return causal_plots.dose(self.dose_frame())

    def _repr_html_(self) -> str:
        title = f"{len(self.features)} features ablated ({self.mode}); {'; '.join(self.notes)}"
        return page.table(self.to_frame(), title) + page.table(self.readings_frame(), "Teacher-forced, side by side")
