"""The parts of an `Ablation`: what one edit does to predictions, what random sets do, and how often features fire."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate

if TYPE_CHECKING:
    import pandas as pd

FEATURES, RECONSTRUCTION, NEGATIVE = "the features", "reconstruction only", "most negative effects"
BASE_SAME, BASE_OWN, RESTORED = "same features in the base", "the base's own features", "patched into the base"
FLAGGED, EVERY, MATCHED = "flagged features", "all features", "matched features"


@record
class Reading:
    """What one edit does to predictions on fixed texts: after minus before, paired by text, nothing sampled."""

    what: str
    """`the features`; controls: `reconstruction only`, `most negative effects`, `same features in the base`, `the base's own
    features`; the reverse: `patched into the base`."""
    mode: str
    """What a feature became: `zero`, `mean`, `resample` or `scale`; `none` where the site was reconstructed, `patch`."""
    scale: float
    """What was left of it: 0 is ablation, 1 no change, 2 twice the feature."""
    n_features: int
    """Features that were changed."""
    valence: Estimate
    """Change of the expected lexicon value of the next word, per prediction: the reward without sampling."""
    share: Estimate | None
    """Share of the tuned-minus-base gain in valence that is removed (for `patched into the base`: restored); None without a
    base, without a gain, and for edits of the base."""
    implicit_reward: Estimate
    """Change of log p(completion) - log p_base(completion) of the edited model, nats per token of the completion; p_base is the
    untouched base. On the model's own texts it falls with any damage."""
    implicit_slope: Estimate | None
    """Change of the slope of a text's implicit reward on its reward, nats per unit of reward: below 0, rewarded texts lose
    most. None where all rewards are equal."""
    kl: Estimate
    """KL(edited || untouched) per token, nats: the damage at which all this was had."""
    perplexity: float
    """Of the completions, after the edit."""


@record
class RandomSets:
    """Matched random feature sets under one mode."""

    mode: str
    """`zero`, `mean`, `resample` or `scale`."""
    differences: Float[np.ndarray, " controls"]
    """Change of valence of each set, per prediction."""
    kl: Float[np.ndarray, " controls"]
    """KL(ablated || untouched) per token of each set, nats."""
    effect: float
    """Change of valence of the features themselves on the same texts."""

    @property
    def percentile(self) -> float:
        """Share of random sets whose drop is smaller than that of the features, from 0 to 1; NaN without sets."""
        return float(np.mean(self.differences > self.effect)) if len(self.differences) else float("nan")


@record
class Rate:
    """How often a group of features fires on strongly positive rows and on the others."""

    group: str
    """`flagged features` (those ablated), `all features` of the same dictionaries, `matched features`."""
    high: Estimate | None
    """Mean firing rate on rows of value 3 or more, 0 to 1; None where there is no such row."""
    other: Estimate | None
    """The same on the other rows: the control that the paper computed and left out."""
    ratio: Estimate | None
    """high / other; None where a group of rows is empty or nothing fires on the others."""


@record
class FiringRates:
    """Table 7 with its controls. A row is a token of a word of the texts; intervals resample texts."""

    values: str
    """Whose values decide what strongly positive is."""
    threshold: float
    """Rows of at least this value are strongly positive."""
    n_high: int
    """Strongly positive rows."""
    n_other: int
    """Other rows."""
    n_matched: int
    """Matched random sets behind the third group."""
    rates: tuple[Rate, ...]
    """One for each group."""
    beyond: Estimate | None
    """Rate ratio of the flagged features divided by that of the matched ones: above 1 they prefer positive rows."""

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per group, rates in percent."""
        import pandas as pd

        columns = ["group", *(f"{name}{end}" for name in ("high", "other", "ratio") for end in ("", "_low", "_high"))]
        rows = []
        for rate in self.rates:
            percent = [100 * number for side in (rate.high, rate.other) for number in spread(side)]
            rows.append((rate.group, *percent, *spread(rate.ratio)))
        frame = pd.DataFrame(rows, columns=columns)
        return frame.assign(n_high=self.n_high, n_other=self.n_other, values=self.values)


def spread(estimate: Estimate | None) -> tuple[float, float, float]:
    """Give value and interval; NaN where there is none."""
    nan = float("nan")
    return (nan, nan, nan) if estimate is None else (estimate.value, estimate.low, estimate.high)


def readings_frame(readings: Sequence[Reading]) -> "pd.DataFrame":
    """Give one row per reading."""
    import pandas as pd

    columns = ["what", "mode", "scale", "features"]
    for name in ("valence", "share", "kl", "implicit_reward", "implicit_slope"):
        columns += [name, f"{name}_low", f"{name}_high"]
    rows = [
        (
            one.what, one.mode, one.scale, one.n_features, *spread(one.valence), *spread(one.share), *spread(one.kl),
            *spread(one.implicit_reward), *spread(one.implicit_slope), one.perplexity, one.valence.n,
        )
        for one in readings
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=[*columns, "perplexity", "n"])
