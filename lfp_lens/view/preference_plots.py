"""Figures of preference probes: every classifier beside every other, and the probe's inputs on two components."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.view.look import BLUE, GREEN, GREY, ORANGE, escaped, figure_with

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

COLOURS = {"tuned": BLUE, "base": GREY, "none": GREY, "difference": GREEN, "noise": GREEN}
MEMBER_COLOURS = {"positive": BLUE, "neutral": GREY, "negative": ORANGE}


def accuracies(frame: "pd.DataFrame") -> "go.Figure":
    """Draw the held-out accuracy of every classifier with its interval, in the frame's order from above.

    Args:
        frame: columns `side`, `input`, `target`, `accuracy`, `low`, `high`, `n`.
    """
    names = [
        escaped(f"{side}, {name.replace('_', ' ')}" + ("" if target == "preference" else f": {target}"))
        for side, name, target in zip(frame["side"], frame["input"], frame["target"])
    ]
    figure = figure_with("Who tells the poles apart", "held-out accuracy", "", height=130 + 26 * len(frame))
    up, down = frame["high"] - frame["accuracy"], frame["accuracy"] - frame["low"]
    figure.add_scatter(
        x=frame["accuracy"], y=names, mode="markers", showlegend=False, customdata=frame["n"],
        marker={"color": [COLOURS.get(side, GREY) for side in frame["side"]], "size": 9},
        error_x={"array": up, "arrayminus": down, "thickness": 1.5, "width": 0, "color": GREY},
        hovertemplate="%{y}<br>accuracy %{x:.3f}, %{customdata} prompt groups<extra></extra>",
    )  # fmt: skip
    figure.add_vline(0.5, line={"color": GREY, "dash": "dash", "width": 1.5}, annotation_text="chance")
    return figure.update_yaxes(autorange="reversed").update_xaxes(range=[min(0.3, frame["low"].min()), 1.02])


def components(
    components: Float[np.ndarray, "items members 2"],
    explained: Float[np.ndarray, " 2"],
    words: Int[np.ndarray, "items members"],
    by: str,
) -> "go.Figure":
    """Draw two components of every text, coloured by member (`by="label"`) or by length in words (`by="length"`)."""
    axes = [f"component {at + 1} ({share:.0%} of variance)" for at, share in enumerate(explained)]
    figure = figure_with(f"What the probe reads, by {by}", *axes, height=460)
    shown = "words: %{customdata}<extra>%{fullData.name}</extra>"
    for at, (member, colour) in enumerate(MEMBER_COLOURS.items()):
        marker = {"color": colour, "size": 5, "opacity": 0.6}
        if by == "length":
            scale = {"colorscale": "Viridis", "cmin": int(words.min()), "cmax": int(words.max())}
            symbol = ("circle", "square", "diamond")[at]
            marker = {**scale, "color": words[:, at], "size": 5, "opacity": 0.7, "symbol": symbol,
                      "showscale": at == 0, "colorbar": {"title": "words"}}  # fmt: skip
        place = {"x": components[:, at, 0], "y": components[:, at, 1]}
        figure.add_scatter(**place, mode="markers", name=member, marker=marker, customdata=words[:, at],
                           hovertemplate=shown)  # fmt: skip
    return figure
