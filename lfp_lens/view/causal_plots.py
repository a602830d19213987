"""Figures of causes: what the removal of features does."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from lfp_lens.view.look import BAND, BLUE, GREY, INTERVAL, ORANGE, escaped, figure_with, note, panels_with, reference

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

BINS = 41


def effects(frame: "pd.DataFrame", rank_correlation: float) -> "go.Figure":
    """Draw exact against screened effect of every confirmed feature, with its interval and the identity."""
    title = f"Screen and exact effect (Spearman {rank_correlation:.2f})"
    figure = figure_with(title, "screened effect", "exact effect", height=430)
    rows = frame[np.isfinite(frame["exact"])]
    if rows.empty:
        return note(figure, "no feature was confirmed")
    both = rows[["screen", "exact"]].to_numpy()
    ends, dashed = [both.min(), both.max()], {"color": GREY, "dash": "dash", "width": 1.5}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=dashed, name="screen = exact", hoverinfo="skip")
    up, down = rows["exact_high"] - rows["exact"], rows["exact"] - rows["exact_low"]
    return figure.add_scatter(
        x=rows["screen"],
        y=rows["exact"],
        mode="markers",
        name="feature",
        marker={"color": BLUE, "size": 7},
        error_y={"array": up, "arrayminus": down, "thickness": 1, "width": 0, "color": INTERVAL},
        text=[f"{escaped(site)} #{index}" for site, index in zip(rows["site"], rows["index"])],
        hovertemplate="%{text}<br>screen %{x:.3g}, exact %{y:.3g}<extra></extra>",
    )


def text_effects(values: Float[np.ndarray, " texts"], feature: str, scalar: str) -> "go.Figure":
    """Draw how the effects of one feature on single texts are spread.

    Args:
        values: effect on each text where it has any.
        feature: its name, for the title.
        scalar: what is attributed, for the axis.
    """
    figure = figure_with(f"Effects of {escaped(feature)} on single texts", f"effect on {escaped(scalar)}", "texts")
    if not len(values):
        return note(figure, "the feature has an effect on none of the texts")
    largest = float(np.abs(values).max())
    # An odd number of bins, so that zero is the middle of one.
    counts, edges = np.histogram(values, bins=BINS, range=(-largest, largest))
    hover = "effect %{x:.3g}: %{y} texts<extra></extra>"
    figure.add_bar(x=(edges[:-1] + edges[1:]) / 2, y=counts, marker={"color": BLUE}, name="texts", hovertemplate=hover)
    return figure.add_vline(x=0, line={"color": GREY, "dash": "dash", "width": 1.5}).update_layout(bargap=0.05)


def joint(frame: "pd.DataFrame", of: str) -> "go.Figure":
    """Draw the share that goes with growing sets of features, with its interval, above the range of random sets.

    Args:
        frame: columns `features`, `share`, `share_low`, `share_high`, `random_mean`, `random_least`, `random_largest`.
        of: what the share is of, `gain` or `value`.
    """
    figure = figure_with(
        f"Share of the {escaped(of)} carried by features together", "features removed", "share", height=430
    )
    rows = frame[np.isfinite(frame["share"])]
    if rows.empty:
        return note(figure, "no set of features was measured")
    sets = rows[np.isfinite(rows["random_mean"])]
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=sets["features"], y=sets["random_largest"], **edge)
    figure.add_scatter(x=sets["features"], y=sets["random_least"], fill="tonexty", fillcolor=BAND, **edge)
    figure.add_scatter(
        x=sets["features"], y=sets["random_mean"], mode="lines", name="random sets", line={"color": GREY}
    )
    figure.add_scatter(
        x=rows["features"],
        y=rows["share"],
        mode="lines+markers",
        name="chosen one after another",
        line={"color": BLUE},
        error_y={"array": rows["share_high"] - rows["share"], "arrayminus": rows["share"] - rows["share_low"],
                 "thickness": 1, "width": 0, "color": INTERVAL},
        hovertemplate="%{x} features: share %{y:.2f}<extra></extra>",
    )  # fmt: skip
    reference(figure, 0.0, "nothing")
    return figure.update_xaxes(type="log")


def dose(frame: "pd.DataFrame") -> "go.Figure":
    """Draw what scaling the features does: the change of valence with its interval and, below, the KL it costs.

    Args:
        frame: columns `scale`, `valence`, `valence_low`, `valence_high`, `kl`; a row per factor.
    """
    figure = panels_with("Dose and response: the features times a factor", [0.62, 0.38], height=430)
    rows = frame.sort_values("scale")
    if rows.empty:
        return note(figure, "no factor was measured")
    figure.add_scatter(
        x=rows["scale"], y=rows["valence"], mode="lines+markers", name="valence", line={"color": BLUE}, showlegend=False,
        error_y={"array": rows["valence_high"] - rows["valence"], "arrayminus": rows["valence"] - rows["valence_low"],
                 "thickness": 1, "width": 0, "color": INTERVAL},
        hovertemplate="times %{x}: %{y:+.4f}<extra></extra>", row=1, col=1,
    )  # fmt: skip
    figure.add_scatter(
        x=rows["scale"], y=rows["kl"], mode="lines+markers", name="KL", line={"color": ORANGE}, showlegend=False,
        hovertemplate="times %{x}: %{y:.4f} nats per token<extra></extra>", row=2, col=1,
    )  # fmt: skip
    reference(figure, 0.0, "untouched", row=1, col=1)
    figure.update_yaxes(title="change of valence", row=1, col=1)
    figure.update_yaxes(title="KL (nats per token)", rangemode="tozero", row=2, col=1)
    return figure.update_xaxes(title="factor: 0 ablates, 1 changes nothing, 2 doubles", row=2, col=1)
