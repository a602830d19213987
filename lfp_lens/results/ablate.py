"""What `ablate` gives: the reward before and after, beside random features, reconstruction alone and the base model."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate
from lfp_lens.results.features import FeatureSet
from lfp_lens.view import page, plots

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@record
class Ablation:
    """A drop is the features' doing only as far as it exceeds that of matched random features at like KL.

    Fields that need a base model are None for a single model; `notes` says so.
    """

    features: FeatureSet
    """What was ablated."""
    mode: str
    """`zero`, `mean`, `resample` or `scale`."""
    reward: str
    """The reward that scored the completions."""
    before: Estimate
    """Mean reward of sampled completions, untouched model."""
    after: Estimate
    """The same prompts and sampling seeds with the features ablated at every step."""
    difference: Estimate
    """after - before, paired by prompt."""
    valence_before: float
    """Expected lexicon value of the next word per position, teacher-forced on the completions before: no sampling."""
    valence_difference: Estimate
    """The same after ablation minus before, paired by text."""
    random_differences: Float[np.ndarray, " controls"]
    """`valence_difference` of random feature sets matched on site, firing rate and decoder norm."""
    percentile: float
    """Share of random sets whose drop is smaller than that of the features, from 0 to 1."""
    reconstruction_difference: Estimate
    """`valence_difference` when the site is replaced by the SAE's reconstruction and nothing is ablated."""
    base_difference: Estimate | None
    """`valence_difference` of the same features ablated in the base model."""
    gain_share: Estimate | None
    """Share of the tuned-minus-base reward on these prompts that the ablation removes."""
    reward_base: Estimate | None
    """Mean reward of the base model's completions of the same prompts."""
    kl_nats: float
    """KL(ablated || untouched) per token on the reference texts."""
    perplexity_before: float
    """Perplexity of the reference texts, untouched model."""
    perplexity_after: float
    """The same after ablation: a lost reward with a large rise here is broken text."""
    distinct2_before: float
    """Share of distinct bigrams in the completions before."""
    distinct2_after: float
    """The same after."""
    length_before: float
    """Mean tokens per completion before."""
    length_after: float
    """The same after."""
    samples: tuple[tuple[str, str, str], ...]
    """A few (prompt, completion before, completion after)."""
    notes: tuple[str, ...]
    """What was assumed or could not be measured, and why."""

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per number, with interval and n where it has them."""
        import pandas as pd

        rows = []
        for name in ("before", "after", "difference", "valence_difference", "reconstruction_difference",
                     "base_difference", "gain_share", "reward_base"):  # fmt: skip
            estimate = getattr(self, name)
            if estimate is not None:
                rows.append((name, estimate.value, estimate.low, estimate.high, estimate.n))
        for name in ("percentile", "kl_nats", "perplexity_before", "perplexity_after", "distinct2_before",
                     "distinct2_after", "length_before", "length_after"):  # fmt: skip
            rows.append((name, getattr(self, name), np.nan, np.nan, 0))
        return pd.DataFrame(rows, columns=["quantity", "value", "low", "high", "n"])

    def plot(self) -> "go.Figure":
        """Draw the effect among those of matched random feature sets."""
        return plots.ablation(self.valence_difference.value, self.random_differences)

    def _repr_html_(self) -> str:
        title = f"{len(self.features)} features ablated ({self.mode}); {'; '.join(self.notes)}"
        return page.table(self.to_frame(), title)
