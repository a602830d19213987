"""What `diverge` gives: how far every layer moved, three ways, the ranked sites, and what another seed says of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate
from lfp_lens.results.seeds import SeedNull
from lfp_lens.view import layers, page

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

OF_WEIGHTS = ("parameter_sum", "parameter_l2", "parameter_relative", "mlp_relative", "attention_relative")
OF_TEXTS = ("activation_relative", "activation_cosine_distance")
MEASURES = OF_WEIGHTS + OF_TEXTS


@record
class Divergence:
    """Distance between base and tuned, per layer. It says where weights and activations moved, not why.

    Without texts only the weights were compared: what needs texts is None, is left out of the frame and the figure, and
    cannot rank sites.
    """

    sites: tuple[str, ...]
    """The site of each layer, in layer order: `blocks.0.hook_mlp_out`, ..."""
    parameter_sum: Float[np.ndarray, " layers"]
    """Sum over the block's tensors of the L2 norm of the change: the published measure (section 3.2)."""
    parameter_l2: Float[np.ndarray, " layers"]
    """L2 norm of the whole block's change."""
    parameter_relative: Float[np.ndarray, " layers"]
    """The same divided by the L2 norm of the base block."""
    mlp_relative: Float[np.ndarray, " layers"]
    """Relative change of the MLP's weights only; not a number where no tensor is named as an MLP's."""
    attention_relative: Float[np.ndarray, " layers"]
    """Relative change of the attention's weights only; likewise."""
    n_texts: int = 0
    """Held-out texts measured."""
    n_tokens: int = 0
    """Held-out tokens measured, padding left out."""
    activation_relative: Float[np.ndarray, " layers"] | None = None
    """||tuned - base|| / ||base|| of the site's activations over all held-out tokens."""
    activation_relative_low: Float[np.ndarray, " layers"] | None = None
    """Lower end of its 95 % interval, texts resampled; not a number with fewer than two texts."""
    activation_relative_high: Float[np.ndarray, " layers"] | None = None
    """Upper end of it."""
    activation_cosine_distance: Float[np.ndarray, " layers"] | None = None
    """1 - mean cosine between base and tuned activations at the same token."""
    activation_cosine_distance_low: Float[np.ndarray, " layers"] | None = None
    """Lower end of its 95 % interval."""
    activation_cosine_distance_high: Float[np.ndarray, " layers"] | None = None
    """Upper end of it."""
    kl: Estimate | None = None
    """Mean KL(tuned || base) of the next token, in nats per token, with its 95 % interval; n counts texts."""
    kl_by_position: Float[np.ndarray, " positions"] | None = None
    """The same by position in the text."""
    tokens_by_position: Int[np.ndarray, " positions"] | None = None
    """Tokens behind each of those means."""
    seed_nulls: tuple[SeedNull, ...] = ()
    """One for each replicate: how much of movement and ranking another seed repeats."""

    @property
    def measures(self) -> dict[str, Float[np.ndarray, " layers"]]:
        """Measure -> value per layer, of all that was measured."""
        named = {name: getattr(self, name) for name in MEASURES}
        return {name: values for name, values in named.items() if values is not None}

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
        return tuple(self.sites[layer] for layer in np.argsort(-measured(self, by), kind="stable"))

    def _checked(self, k: int) -> int:
        if not 1 <= k <= len(self.sites):
            raise LensError(f"{k} sites were asked for; the model has {len(self.sites)} layers.")
        return k

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per layer; every measure and the ends of its interval a column.

        With replicates, `..._noise_share` is `SeedNull.noise_share`, averaged over them: 0 where seeds move alike, 1 where
        their movements have nothing in common.
        """
        import pandas as pd

        columns: dict[str, Float[np.ndarray, " layers"]] = {}
        for name, values in self.measures.items():
            ends = {f"{name}_{end}": getattr(self, f"{name}_{end}", None) for end in ("low", "high")}
            columns |= {name: values, **{end: limit for end, limit in ends.items() if limit is not None}}
        for name, by in (("parameter_noise_share", "parameter_l2"), ("activation_noise_share", "activation_relative")):
            shares = [null.noise_share(by) for null in self.seed_nulls if by in null.tuned]
            columns |= {name: np.mean(shares, axis=0)} if shares else {}
        return pd.DataFrame({"site": self.sites, **columns})

    def plot(self) -> "go.Figure":
        """Draw the paper's Figure 7: divergence by layer, every measure scaled to its own maximum, replicates in grey."""
        intervals = {
            name: (getattr(self, f"{name}_low"), getattr(self, f"{name}_high"))
            for name in OF_TEXTS
            if name in self.measures
        }
        nulls = {
            null.name: (null.replicate["parameter_sum"], null.between["parameter_sum"]) for null in self.seed_nulls
        }
        return layers.divergence(self.measures, intervals, nulls)

    def _repr_html_(self) -> str:
        read = f"{self.n_texts} texts, {self.n_tokens} tokens" if self.n_texts else "weights only"
        kl = f"; KL {self.kl} texts, nats per token" if self.kl else ""
        nulls = [
            page.table(null.to_frame(), f"Agreement with the replicate {null.name}, by measure")
            for null in self.seed_nulls
        ]
        return "".join([page.table(self.to_frame(), f"Divergence by layer ({read}{kl})"), *nulls])


def measured(divergence: Divergence, by: str) -> Float[np.ndarray, " layers"]:
    """Give one measure's values. Raises `LensError` for a measure that does not exist or was not measured."""
    if by not in MEASURES:
        raise unknown("divergence measure", by, MEASURES)
    values = getattr(divergence, by)
    if values is None:
        raise LensError(
            f"{by} was not measured: it needs texts, and this divergence is of the weights only. Call diverge(load_pair(base, "
            f"tuned), texts), or take one of {', '.join(OF_WEIGHTS)}."
        )
    if np.isnan(values).all():
        raise LensError(f"{by} was not measured: no tensor of these blocks is named as belonging to that part.")
    return values


def divergence_by_layer(divergences: Mapping[str, Divergence], measure: str = "parameter_sum") -> "go.Figure":
    """Draw one measure of several pairs by layer, a line for each, as the paper's Figure 7 does.

    Args:
        divergences: label -> result.
        measure: what to draw, in its own unit. A sum of norms grows with the size of the tensors and with their number, so that
            lines of different architectures compare in shape, not in height.

    Raises:
        LensError: if there is nothing to draw, or if the measure is unknown or was not measured for one of them.
    """
    if not divergences:
        raise LensError("No divergence was given to draw: expected label -> result of diverge.")
    return layers.divergence_by_layer({name: measured(one, measure) for name, one in divergences.items()}, measure)
