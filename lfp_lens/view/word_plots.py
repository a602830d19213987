"""Figures of learned word values: frequency and error (the paper's Figure 4), its repo's two histograms, the neutral words.

Numbers in, a plotly figure out; words are escaped.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from lfp_lens.view.look import BLUE, GREEN, GREY, ORANGE, escaped, figure_with, note

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

VALUE_BINS, ERROR_BINS, NEUTRAL_BINS = 10, 20, 60
"""The repository of the paper draws 10 and 20; neutral words are more."""
NO_PROBE = "no held-out prediction: no probe was fitted for these words"


def frequency_error(frame: "pd.DataFrame", title: str, where: str) -> "go.Figure":
    """Draw how far each word's prediction is from its stated value, against how often the word occurs.

    Args:
        frame: columns `word`, `occurrences`, `error`, `stated`, `rescaled`.
        title: with the rank correlation, its interval and control.
        where: the texts in which occurrences were counted.
    """
    x = f"occurrences in {where}, plus one"
    figure = figure_with(title, x, "|stated - predicted|", height=430)
    figure.update_xaxes(type="log", tickvals=[digit * 10**power for power in range(9) for digit in (1, 3)])
    if frame.empty:
        return note(figure, NO_PROBE)
    for sign, name, colour in ((1, "positive words", BLUE), (-1, "negative words", ORANGE)):
        rows = frame[np.sign(frame["stated"]) == sign]
        figure.add_scatter(
            x=rows["occurrences"] + 1,
            y=rows["error"],
            mode="markers",
            name=f"{name} ({len(rows)})",
            marker={"color": colour, "size": 6, "opacity": 0.6},
            text=[escaped(word) for word in rows["word"]],
            customdata=rows[["occurrences", "stated", "rescaled"]].to_numpy(),
            hovertemplate="<b>%{text}</b><br>%{customdata[0]:,} occurrences<br>stated %{customdata[1]:.2f}, "
            "predicted %{customdata[2]:.2f}<extra></extra>",
        )
    return figure


def value_histogram(stated: Float[np.ndarray, " words"], rescaled: Float[np.ndarray, " words"]) -> "go.Figure":
    """Draw how stated and predicted values are distributed over the same words."""
    title = f"Stated and predicted values of the same words (n={len(stated):,})"
    figure = figure_with(title, "value in the lexicon's unit", "words", height=380)
    if not len(stated):
        return note(figure, NO_PROBE)
    edges = np.histogram_bin_edges(np.concatenate([stated, rescaled]), VALUE_BINS)
    for values, name, colour in ((stated, "stated", GREY), (rescaled, "predicted, held out", BLUE)):
        _bars(figure, values, edges, name, colour)
    return figure.update_layout(barmode="group", bargap=0.12).update_xaxes(tick0=0, dtick=1)


def error_histogram(errors: Float[np.ndarray, " words"], title: str) -> "go.Figure":
    """Draw the distribution of predicted minus stated value."""
    figure = figure_with(title, "predicted minus stated value", "words", height=380)
    if not len(errors):
        return note(figure, NO_PROBE)
    _bars(figure, errors, np.histogram_bin_edges(errors, ERROR_BINS), "words", BLUE)
    figure.add_vline(0, line={"color": GREY, "width": 1})
    return figure.update_layout(bargap=0.05, showlegend=False)


def neutral_values(
    neutral: Float[np.ndarray, " neutrals"],
    curve: Float[np.ndarray, "points 2"],
    title: str,
    unit: str,
    *,
    positive: Float[np.ndarray, " positives"],
    negative: Float[np.ndarray, " negatives"],
) -> "go.Figure":
    """Draw the values of the words that define zero, the null fitted to them, and the lexicon's words beside them.

    Args:
        neutral: of words outside the lexicon.
        curve: points and the density of the fitted null there.
        title: with the null's parameters and n.
        unit: of the values, for the axis.
        positive: values of the words stated as positive.
        negative: values of the words stated as negative.
    """
    figure = figure_with(title, unit, "density", height=420)
    if not len(neutral):
        return note(figure, "this signal is its own zero: no neutral words")
    everything = np.concatenate([neutral, positive, negative])
    # The last per cent of each tail would flatten the rest; it is drawn in the outermost bins.
    low, high = np.quantile(everything, (0.005, 0.995))
    edges = np.linspace(low, high, NEUTRAL_BINS + 1)
    density, _ = np.histogram(np.clip(neutral, low, high), edges, density=True)
    middle = (edges[:-1] + edges[1:]) / 2
    hover = "%{x:.2f}: density %{y:.3f}<extra></extra>"
    label = f"neutral words ({len(neutral):,})"
    figure.add_bar(x=middle, y=density, name=label, marker_color=GREY, opacity=0.55, hovertemplate=hover)
    for values, name, colour in ((positive, "stated positive", BLUE), (negative, "stated negative", ORANGE)):
        if not len(values):
            continue
        wide = edges[::3]
        heights, _ = np.histogram(np.clip(values, low, high), wide, density=True)
        line = {"color": colour, "width": 2, "shape": "hvh"}
        label = f"{name} ({len(values):,})"
        x = (wide[:-1] + wide[1:]) / 2
        figure.add_scatter(x=x, y=heights, mode="lines", name=label, line=line, hovertemplate=hover)
    line = {"color": GREEN, "width": 2, "dash": "dash"}
    inside = (curve[:, 0] >= low) & (curve[:, 0] <= high)
    figure.add_scatter(
        x=curve[inside, 0], y=curve[inside, 1], mode="lines", name="fitted null", line=line, hoverinfo="skip"
    )
    return figure.update_layout(bargap=0)


def _bars(
    figure: "go.Figure", values: Float[np.ndarray, " words"], edges: Float[np.ndarray, " edges"], name: str, colour: str
) -> None:
    counts, _ = np.histogram(values, edges)
    figure.add_bar(
        x=(edges[:-1] + edges[1:]) / 2,
        y=counts,
        name=name,
        marker_color=colour,
        customdata=np.column_stack([edges[:-1], edges[1:]]),
        hovertemplate=f"{name}: %{{y}} words from %{{customdata[0]:.2f}} to %{{customdata[1]:.2f}}<extra></extra>",
    )
