"""The figure of a crosscoder: how many features lean to which model, and what latent scaling makes of them."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from lfp_lens.view.look import BLUE, GREEN, GREY, INTERVAL, ORANGE, figure_with

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLOURS = {"tuned_only": ORANGE, "base_only": BLUE, "weak": GREEN, "shared": GREY, "unknown": INTERVAL}
BINS = 40


def relative_norms(
    relative_norm: Float[np.ndarray, " features"], verdict: Shaped[np.ndarray, " features"], exclusive: float
) -> "go.Figure":
    """Draw a stacked histogram of relative decoder norms by verdict; dashed lines mark where the norms claim exclusivity.

    Features without a relative norm (both directions have no length) are left out.
    """
    title = "Features by relative decoder norm"
    figure = figure_with(title, "relative decoder norm (0 base only, 1 tuned only)", "features", height=360)
    edges = np.linspace(0, 1, BINS + 1)
    for name, colour in COLOURS.items():
        counts, _ = np.histogram(relative_norm[(verdict == name) & np.isfinite(relative_norm)], edges)
        label = name.replace("_", " ")
        figure.add_bar(
            x=(edges[:-1] + edges[1:]) / 2, y=counts, name=f"{label} ({int((verdict == name).sum())})", marker_color=colour,
            width=1 / BINS, hovertemplate=f"{label}: %{{y}} features at %{{x:.2f}}<extra></extra>",
        )  # fmt: skip
    for at in (1 - exclusive, exclusive):
        figure.add_vline(x=at, line={"color": GREY, "dash": "dash", "width": 1.5})
    return figure.update_layout(barmode="stack", bargap=0).update_xaxes(range=[0, 1])
