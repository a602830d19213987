"""Figures of shares: what removing features takes away, against how much it changes the predictions."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from lfp_lens.view.look import BLUE, GREEN, GREY, ORANGE, escaped, figure_with, note

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLOURS = (BLUE, ORANGE, GREEN, "#cc79a7", "#b8860b", "#56b4e9")
DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")


def curves(
    kl: Float[np.ndarray, " limits"],
    lines: Mapping[str, Float[np.ndarray, " limits"]],
    floors: Sequence[str],
    mode: str,
) -> "go.Figure":
    """Draw one line per name, floors grey and broken.

    Args:
        kl: limits, in nats per token.
        lines: name -> share removed within each limit; NaN where the mode does not apply.
        floors: the names that are floors.
        mode: what features were set to.
    """
    title = f"Share of the gain removed within a KL ({mode}-ablation)"
    figure = figure_with(title, "KL to the untouched model (nats per token)", "share of the gain", height=460)
    figure.update_layout(
        xaxis={"type": "log", "dtick": 1}, yaxis={"rangemode": "tozero"},
        legend={"orientation": "v", "x": 1.01, "y": 1, "yanchor": "top"},
    )  # fmt: skip
    shown = {name: share for name, share in lines.items() if np.isfinite(share).any()}
    if not shown:
        return note(figure, "the tuned model gained nothing, so there is no share")
    n_floors = n_own = 0
    for name, share in shown.items():
        if name in floors:
            line = {"color": GREY, "width": 1.5, "dash": DASHES[n_floors % len(DASHES)]}
            n_floors += 1
        else:
            line = {"color": COLOURS[n_own % len(COLOURS)], "width": 2.5}
            n_own += 1
        hover = escaped(name) + "<br>KL %{x:.4f}<br>share %{y:.2f}<extra></extra>"
        figure.add_scatter(x=kl, y=share, name=escaped(name), mode="lines", line=line, hovertemplate=hover)
    return figure
