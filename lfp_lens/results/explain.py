"""What `explain` gives: a description of each feature, whether it serves the task, and how well the description holds."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from lfp_lens.core.records import record
from lfp_lens.results.features import FeatureSet
from lfp_lens.results.train_sae import SAESet
from lfp_lens.view import page, plots

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@record
class Example:
    """One text around a feature's strong activation."""

    tokens: tuple[str, ...]
    """The tokens, as the tokenizer spells them."""
    activations: Float[np.ndarray, " tokens"]
    """The feature's activation at each token, divided by the feature's maximum over all texts."""


@record
class Labels:
    """Descriptions are hypotheses: trust one only as far as its detection score beats the shuffled one."""

    saes: SAESet
    """The dictionaries the features belong to."""
    site: tuple[str, ...]
    """Site of each feature."""
    index: Int[np.ndarray, " features"]
    """Index of each feature."""
    description: tuple[str, ...]
    """What the labeller says the feature responds to."""
    is_relevant: Bool[np.ndarray, " features"]
    """Whether the labeller finds the description related to the task."""
    detection: Float[np.ndarray, " features"]
    """Balanced accuracy of the description at telling held-out texts where the feature fires; 0.5 is chance, NaN not scored."""
    detection_shuffled: Float[np.ndarray, " features"]
    """The same when each feature is scored with another feature's description: the control."""
    n_scored: Int[np.ndarray, " features"]
    """Held-out texts behind each score."""
    examples: tuple[tuple[Example, ...], ...]
    """The texts the labeller saw, by feature."""
    labeller: str
    """Who labelled: `lexicon` or `openai:MODEL`."""
    task: str
    """What relevance was judged against."""
    select: str
    """How the features were chosen: `mmcs`, `attribution` or `all`."""
    side: str
    """Whose dictionaries."""
    size: float | None
    """Which size; None is the smallest."""
    skipped: dict[str, str]
    """Site -> why its SAE was not good enough to interpret."""

    @property
    def relevant(self) -> FeatureSet:
        """The features labelled as related to the task: what `ablate` takes."""
        chosen = [(site, int(index)) for site, index, keep in zip(self.site, self.index, self.is_relevant) if keep]
        return FeatureSet(self.saes, tuple(chosen), self.side, self.size)

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per feature."""
        import pandas as pd

        names = ("site", "index", "description", "is_relevant", "detection", "detection_shuffled", "n_scored")
        return pd.DataFrame({name: getattr(self, name) for name in names})

    def plot(self) -> "go.Figure":
        """Draw detection scores, real and shuffled."""
        return plots.detection(self.detection, self.detection_shuffled)

    def _repr_html_(self) -> str:
        title = (
            f"{int(self.is_relevant.sum())} of {len(self.index)} features related to {self.task!r} by {self.labeller}"
        )
        return page.table(self.to_frame(), title)
