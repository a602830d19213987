"""Figures of `diverge`: how far each layer moved, of one pair or of several, and the KL by position."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.view.look import BLUE, GREEN, GREY, ORANGE, escaped, figure_with

if TYPE_CHECKING:
    import plotly.graph_objects as go

MEASURE_STYLES = {
    "parameter_sum": (BLUE, "solid", "parameters, sum of norms (published)"),
    "parameter_l2": (BLUE, "dash", "parameters, norm"),
    "parameter_relative": (BLUE, "dot", "parameters, relative"),
    "mlp_relative": (GREEN, "solid", "MLP weights, relative"),
    "attention_relative": (GREEN, "dot", "attention weights, relative"),
    "activation_relative": (ORANGE, "solid", "activations, relative"),
    "activation_cosine_distance": (ORANGE, "dot", "activations, cosine"),
}
COLOURS, DASHES = (BLUE, ORANGE, GREEN, GREY), ("solid", "dash", "dot")
FEW = 16
"""Up to so many layers each has its tick."""


def divergence(
    measures: Mapping[str, Float[np.ndarray, " layers"]],
    intervals: "Mapping[str, tuple[Float[np.ndarray, ' layers'], Float[np.ndarray, ' layers']]] | None" = None,
    nulls: "Mapping[str, tuple[Float[np.ndarray, ' layers'], Float[np.ndarray, ' layers']]] | None" = None,
) -> "go.Figure":
    """Draw how far each layer moved (the paper's Figure 7), each measure divided by its own largest value.

    Args:
        measures: measure -> one value per layer.
        intervals: measure -> lower and upper ends, for those that have them.
        nulls: replicate -> its `parameter_sum`, and that between the two tunings; drawn in grey on the scale of the published
            measure.
    """
    figure = figure_with("How far each layer moved", "layer", "distance / its largest", height=430)
    for name, values in measures.items():
        colour, dash, label = MEASURE_STYLES.get(name, (GREY, "solid", escaped(name)))
        is_published = name == "parameter_sum"
        style = {"color": colour, "dash": dash, "width": 3 if is_published else 1.6}
        _line(figure, values, label, style, _largest(values), 8 if is_published else 5, (intervals or {}).get(name))
    scale = _largest(measures["parameter_sum"]) if "parameter_sum" in measures else 1.0
    for name, (to_base, between) in (nulls or {}).items():
        _line(figure, to_base, f"{escaped(name)}, published measure", {"color": GREY, "width": 2}, scale, 5)
        _line(figure, between, f"between the two tunings ({escaped(name)})", {"color": GREY, "dash": "dot"}, scale, 4)
    return _ticks(figure, max(len(values) for values in measures.values())).update_yaxes(rangemode="tozero")


def divergence_by_layer(values: Mapping[str, Float[np.ndarray, " layers"]], measure: str) -> "go.Figure":
    """Draw one measure by layer, a line per model, in its own unit."""
    label = MEASURE_STYLES[measure][2] if measure in MEASURE_STYLES else escaped(measure)
    figure = figure_with("How far each layer of each model moved", "layer", label, height=430)
    for at, (name, of_layer) in enumerate(values.items()):
        dash = DASHES[at // len(COLOURS) % len(DASHES)]
        _line(figure, of_layer, escaped(name), {"color": COLOURS[at % len(COLOURS)], "dash": dash, "width": 2}, 1.0, 6)
    return (
        _ticks(figure, max(map(len, values.values()))).update_yaxes(rangemode="tozero").update_layout(showlegend=True)
    )


def kl_by_position(kl_nats: Float[np.ndarray, " positions"], tokens: Int[np.ndarray, " positions"]) -> "go.Figure":
    """Draw the mean KL of the next token by position in the text; positions without tokens are left out."""
    figure = figure_with(
        "Where in a text the two models differ", "position (tokens)", "KL (nats per token)", height=300
    )
    seen = tokens > 0
    figure.add_scatter(
        x=np.flatnonzero(seen),
        y=kl_nats[seen],
        mode="lines",
        line={"color": ORANGE, "width": 2},
        customdata=tokens[seen],
        hovertemplate="position %{x}: %{y:.4f} nats over %{customdata} tokens<extra></extra>",
    )
    return figure.update_yaxes(rangemode="tozero")


def _line(
    figure: "go.Figure",
    values: Float[np.ndarray, " layers"],
    label: str,
    style: Mapping[str, Any],
    scale: float,
    size: int,
    interval: "tuple[Float[np.ndarray, ' layers'], Float[np.ndarray, ' layers']] | None" = None,
) -> None:
    bars: dict[str, Any] = {}
    if interval is not None:
        up, down = (interval[1] - values) / scale, (values - interval[0]) / scale
        bars = {"error_y": {"array": up, "arrayminus": down, "thickness": 1, "width": 3}}
    figure.add_scatter(
        x=np.arange(len(values)),
        y=values / scale,
        mode="lines+markers",
        name=label,
        customdata=values,
        line=dict(style),
        marker={"size": size},
        hovertemplate=f"layer %{{x}}, {label}: %{{customdata:.4g}}<extra></extra>",
        **bars,
    )


def _largest(values: Float[np.ndarray, " layers"]) -> float:
    known = values[np.isfinite(values)]
    return float(known.max(initial=0.0)) or 1.0


def _ticks(figure: "go.Figure", n_layers: int) -> "go.Figure":
    return figure.update_xaxes(dtick=1 if n_layers <= FEW else None)
