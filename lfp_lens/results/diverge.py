"""What `diverge` gives: how far every layer moved, three ways, and the ranked sites."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.records import record
from lfp_lens.view import page, plots

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MEASURES = (
    "parameter_sum",
    "parameter_l2",
    "parameter_relative",
    "mlp_relative",
    "attention_relative",
    "activation_relative",
    "activation_cosine_distance",
)


@record
class Divergence:
    """Distance between base and tuned, per layer. It says where weights and activations moved, not why."""

    sites: tuple[str, ...]
    """The site of each layer, in layer order: `blocks.0.hook_mlp_out`, ..."""
    parameter_sum: Float[np.ndarray, " layers"]
    """Sum over the block's tensors of the L2 norm of the change: the published measure (section 3.2)."""
    parameter_l2: Float[np.ndarray, " layers"]
    """L2 norm of the whole block's change."""
    parameter_relative: Float[np.ndarray, " layers"]
    """The same divided by the L2 norm of the base block."""
    mlp_relative: Float[np.ndarray, " layers"]
    """Relative change of the MLP's weights only."""
    attention_relative: Float[np.ndarray, " layers"]
    """Relative change of the attention's weights only."""
    activation_relative: Float[np.ndarray, " layers"]
    """||tuned - base|| / ||base|| of the site's activations over all held-out tokens."""
    activation_cosine_distance: Float[np.ndarray, " layers"]
    """1 - mean cosine between base and tuned activations at the same token."""
    kl_by_position: Float[np.ndarray, " positions"]
    """Mean KL(tuned || base) of the next token, in nats, by position in the text."""
    tokens_by_position: Int[np.ndarray, " positions"]
    """Tokens behind each of those means."""
    n_tokens: int
    """Held-out tokens measured, padding left out."""
    n_texts: int
    """Held-out texts measured."""

    def top(self, k: int, by: str = "parameter_sum") -> tuple[str, ...]:
        """Give the k sites that moved most, furthest first."""
        return self._ranked(by)[: self._checked(k)]

    def lowest(self, k: int, by: str = "parameter_sum") -> tuple[str, ...]:
        """Give the k sites that moved least, stillest first."""
        return self._ranked(by)[::-1][: self._checked(k)]

    def random(self, k: int, seed: int = 0) -> tuple[str, ...]:
        """Give k sites drawn at random, in layer order: the control for any choice by divergence."""
        drawn = np.random.default_rng(seed).choice(len(self.sites), size=self._checked(k), replace=False)
        return tuple(self.sites[layer] for layer in sorted(drawn))

    def _ranked(self, by: str) -> tuple[str, ...]:
        if by not in MEASURES:
            raise unknown("divergence measure", by, MEASURES)
        return tuple(self.sites[layer] for layer in np.argsort(-getattr(self, by), kind="stable"))

    def _checked(self, k: int) -> int:
        if not 1 <= k <= len(self.sites):
            raise LensError(f"{k} sites were asked for; the model has {len(self.sites)} layers.")
        return k

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per layer, every measure a column."""
        import pandas as pd

        return pd.DataFrame({"site": self.sites, **{name: getattr(self, name) for name in MEASURES}})

    def plot(self) -> "go.Figure":
        """Draw the paper's Figure 7: divergence by layer, every measure scaled to its own maximum."""
        return plots.divergence({name: getattr(self, name) for name in MEASURES})

    def _repr_html_(self) -> str:
        return page.table(self.to_frame(), f"Divergence by layer ({self.n_texts} texts, {self.n_tokens} tokens)")
