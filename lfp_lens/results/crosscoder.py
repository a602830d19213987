"""What one dictionary over both models says of each feature: tuned only, base only, shared, or weaker on one side.

The usual rule reads the norms of a feature's two decoder halves. It calls features exclusive that are shared but weak in
the other model, and those that training shrank or split there. Latent scaling (arXiv 2504.02922, section 2.3) asks the
activations instead: how strongly must the feature's direction be scaled to fit the other model?
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, Shaped

from lfp_lens.core.records import record
from lfp_lens.view import page

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

EXCLUSIVE_NORM = 0.9
"""Relative norm above which the norms claim "tuned only", and below 1 minus which "base only"."""
ABSENT_SCALING = 0.1
"""Latent scaling below which a feature is absent from the other model; its interval must end below too."""
SHARED_SCALING = 0.5
"""Latent scaling from which a feature is in the other model at all but full strength, whatever its norms say."""
MIN_FIRINGS = 30
"""Tokens a feature must fire on to be judged."""
VERDICTS = ("tuned_only", "base_only", "weak", "shared", "unknown")


@record
class Crosscoder:
    """One entry per feature, measured on held-out activations of both models at the same tokens.

    A feature's *owner* is the model in which its decoder half is longer; scalings are of the other model beside the owner.
    It does not show that a tuned-only feature matters to what the model says: `ablate` does.
    """

    base_norm: Float[np.ndarray, " features"]
    """Length of the feature's direction in the base model."""
    tuned_norm: Float[np.ndarray, " features"]
    """Length of its direction in the tuned model."""
    cosine: Float[np.ndarray, " features"]
    """Cosine between the two directions: a shared feature that turned has a low one. NaN where one has no length."""
    scaling: Float[np.ndarray, " features"]
    """Latent scaling on the error: strength of the feature in the other model divided by that in its owner, after all other
    features are taken away. 0 is absent, 1 equally strong; it finds features that training shrank in the other model."""
    scaling_low: Float[np.ndarray, " features"]
    """Lower end of its 95 % bootstrap interval; chunks of tokens are resampled."""
    scaling_high: Float[np.ndarray, " features"]
    """Upper end."""
    reconstruction_scaling: Float[np.ndarray, " features"]
    """The same on the reconstruction by all features: near 1 where other features rebuild it in the other model, so that what
    looks exclusive is a shared feature split in two."""
    firings: Int[np.ndarray, " features"]
    """Tokens on which the feature fires."""
    n_tokens: int
    """Tokens measured."""
    n_chunks: int
    """Chunks of tokens that the intervals resample."""

    @property
    def n_features(self) -> int:
        """Width of the dictionary."""
        return len(self.base_norm)

    @property
    def relative_norm(self) -> Float[np.ndarray, " features"]:
        """Give 0.5 * ((tuned - base) / max(tuned, base) + 1) of the norms: 1 is tuned only, 0 base only, 0.5 equal."""
        longer = np.maximum(self.base_norm, self.tuned_norm)
        with np.errstate(divide="ignore", invalid="ignore"):
            return 0.5 * ((self.tuned_norm - self.base_norm) / longer + 1)

    @property
    def verdict(self) -> Shaped[np.ndarray, " features"]:
        """Give one of `VERDICTS` per feature.

        `tuned_only` and `base_only` need the norms, and both scalings below `ABSENT_SCALING`, that of the error with its
        interval. Of the other features that the norms call exclusive, `shared` are
        those at half strength or more, `weak` those shown to be in the other model at less, and `unknown` those of which
        neither is shown. A feature that fires on fewer than `MIN_FIRINGS` tokens is `unknown` too.
        """
        relative, found = self.relative_norm, np.full(self.n_features, "shared", dtype="U10")
        tuned, base = relative > EXCLUSIVE_NORM, relative < 1 - EXCLUSIVE_NORM
        claimed, split = tuned | base, self.reconstruction_scaling >= SHARED_SCALING
        absent = (np.abs(self.scaling) < ABSENT_SCALING) & (self.scaling_high < ABSENT_SCALING)
        absent &= self.reconstruction_scaling < ABSENT_SCALING
        found[claimed & ~split & (self.scaling < SHARED_SCALING)] = "weak"
        found[claimed & (found == "weak") & ~(self.scaling_low > 0)] = "unknown"
        found[tuned & absent], found[base & absent] = "tuned_only", "base_only"
        judged = np.isfinite(relative) & np.isfinite(self.scaling) & np.isfinite(self.reconstruction_scaling)
        found[~judged | (self.firings < MIN_FIRINGS)] = "unknown"
        return found

    def claimed_by_norm(self, side: str = "tuned") -> Int[np.ndarray, " some"]:
        """Give the features that the norms alone call exclusive to a side: what latent scaling is there to check."""
        relative = self.relative_norm if side == "tuned" else 1 - self.relative_norm
        return np.flatnonzero((relative > EXCLUSIVE_NORM) & (self.firings >= MIN_FIRINGS))

    def tuned_only(self) -> Int[np.ndarray, " some"]:
        """Give the indices of the features that tuning added."""
        return np.flatnonzero(self.verdict == "tuned_only")

    def base_only(self) -> Int[np.ndarray, " some"]:
        """Give the indices of the features that tuning removed."""
        return np.flatnonzero(self.verdict == "base_only")

    def shared(self) -> Int[np.ndarray, " some"]:
        """Give the indices of the features that both models have."""
        return np.flatnonzero(self.verdict == "shared")

    def weak(self) -> Int[np.ndarray, " some"]:
        """Give the indices of the features that the norms call exclusive and that the other model has all the same, weaker."""
        return np.flatnonzero(self.verdict == "weak")

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per feature, the most tuned first."""
        import pandas as pd

        frame = pd.DataFrame({
            "feature": np.arange(self.n_features), "verdict": self.verdict, "relative_norm": self.relative_norm,
            "scaling": self.scaling, "scaling_low": self.scaling_low, "scaling_high": self.scaling_high,
            "reconstruction_scaling": self.reconstruction_scaling, "cosine": self.cosine, "base_norm": self.base_norm,
            "tuned_norm": self.tuned_norm, "firings": self.firings,
        })  # fmt: skip
        return frame.sort_values("relative_norm", ascending=False, kind="stable").reset_index(drop=True)

    def plot(self) -> "go.Figure":
        """Draw how many features there are at each relative norm, coloured by verdict."""
        from lfp_lens.view import crosscoder_plot

        return crosscoder_plot.relative_norms(self.relative_norm, self.verdict, EXCLUSIVE_NORM)

    def _repr_html_(self) -> str:
        counts = ", ".join(f"{int((self.verdict == name).sum())} {name.replace('_', ' ')}" for name in VERDICTS)
        return page.table(self.to_frame(), f"Crosscoder: {counts}; {self.n_tokens} tokens")
