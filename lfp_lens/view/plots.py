"""Every figure: numbers in, a plotly figure out; units on the axes, the word or feature on hover.

What comes from a model or a data set is escaped before it becomes a label.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from lfp_lens.view.look import (
    BAND,
    BLUE,
    GREY,
    ORANGE,
    escaped,
    figure_with,
    note,
    panels_with,
    reference,
    wrapped,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MAX_LABELS = 14
RAISED, PAID = ("reward", "accuracy", "loss"), ("kl_nats", "margin", "entropy_nats")
CURVE_TITLES = {
    "reward": ("reward", "mean reward"),
    "accuracy": ("accuracy", "training pairs ordered right"),
    "loss": ("loss", "loss"),
    "kl_nats": ("KL", "KL (nats)"),
    "margin": ("margin", "mean margin"),
    "entropy_nats": ("entropy", "entropy per token (nats)"),
}
"""Value of a learning curve -> its name in the title, the title of its axis."""


def learning_curve(curve: Mapping[str, np.ndarray], reward_base: float | None) -> "go.Figure":
    """Draw what the tuning raised over its steps and, below it, what it paid.

    Args:
        curve: equally long arrays: `step`; above `reward`, else `accuracy`, else `loss`; below `kl_nats`, else `margin`, else
            `entropy_nats`; thin as they are, thick smoothed.
        reward_base: mean reward of the base model, drawn as the line to beat; None draws none.
    """
    panels = [next(name for name in names if name in curve) for names in (RAISED, PAID)]
    titles = [CURVE_TITLES[name] for name in panels]
    figure = panels_with(f"{titles[0][0].capitalize()} and {titles[1][0]} over the tuning", [0.62, 0.38], height=440)
    for row, (name, colour) in enumerate(zip(panels, (BLUE, ORANGE)), start=1):
        place: dict[str, Any] = {
            "x": curve["step"],
            "mode": "lines",
            "showlegend": False,
            "row": row,
            "col": 1,
        }
        thin, thick = {"color": colour, "width": 1}, {"color": colour, "width": 2.5}
        figure.add_scatter(y=curve[name], line=thin, opacity=0.35, hoverinfo="skip", **place)
        hover = f"step %{{x}}: %{{customdata:.3f}}{' nats' if name.endswith('nats') else ''}<extra></extra>"
        figure.add_scatter(y=_smoothed(curve[name]), line=thick, customdata=curve[name], hovertemplate=hover, **place)
        figure.update_yaxes(title=CURVE_TITLES[name][1], row=row, col=1)
    if reward_base is not None and panels[0] == "reward":
        reference(figure, reward_base, "base model", row=1, col=1)
    if panels[1] == "kl_nats":
        figure.update_yaxes(rangemode="tozero", row=2, col=1)
    return figure.update_xaxes(title="step", row=2, col=1)


def rejections(rejected: Mapping[str, int], kept: int) -> "go.Figure":
    """Draw how many candidates were kept and how many fell to each reason, most first."""
    ordered = [*sorted(rejected.items(), key=lambda item: item[1]), ("kept", kept)]
    counts = [count for _, count in ordered]
    figure = figure_with("Triples kept, candidates rejected", "candidates", "", height=130 + 34 * len(ordered))
    figure.add_bar(
        x=counts,
        y=[wrapped(reason) for reason, _ in ordered],
        orientation="h",
        text=counts,
        textposition="outside",
        marker_color=[GREY] * (len(ordered) - 1) + [BLUE],
        cliponaxis=False,
        hovertemplate="%{y}: %{x}<extra></extra>",
    )
    return figure.update_xaxes(range=[0, 1.15 * max([*counts, 1])]).update_layout(bargap=0.35)


def learned_words(
    frame: "pd.DataFrame", wrong_mask: Bool[np.ndarray, " words"], neutral: Float[np.ndarray, " neutrals"]
) -> "go.Figure":
    """Draw the learned against the stated value of every word; those with the wrong sign are named.

    Args:
        frame: columns `word`, `stated`, `measured`, `measured_low`, `measured_high`, `p_wrong`, `contexts`.
        wrong_mask: the words whose sign is certainly wrong.
        neutral: centred values of words outside the lexicon; the band holds their central 95 %.
    """
    figure = figure_with(
        "Learned against stated value",
        "stated value (lexicon)",
        "learned value (neutral spreads)",
        height=500,
    )
    if len(neutral):
        low, high = np.quantile(neutral, (0.025, 0.975))
        label = {"annotation_text": "95 % of neutral words", "annotation_position": "bottom right"}
        figure.add_hrect(y0=low, y1=high, fillcolor=BAND, line_width=0, layer="below", **label)
    figure.add_hline(0, line={"color": GREY, "width": 1}).add_vline(0, line={"color": GREY, "width": 1})
    wrong = np.asarray(wrong_mask, bool)
    _words(figure, frame[~wrong], "words", {"color": BLUE, "size": 6, "opacity": 0.6})
    _words(figure, frame[wrong], "learned with the wrong sign", {"color": ORANGE, "size": 9, "symbol": "diamond"})
    for word, x, y in _legible(frame, wrong):
        shift = 13 if y > 0 else -13
        font = {"color": ORANGE, "size": 12}
        figure.add_annotation(x=x, y=y, text=escaped(word), showarrow=False, yshift=shift, font=font)
    return figure


def detection(real: Float[np.ndarray, " features"], shuffled: Float[np.ndarray, " features"]) -> "go.Figure":
    """Draw how well each description finds the texts where its feature fires, beside another feature's."""
    figure = figure_with(
        "Do the descriptions hold?", "features, best description first", "balanced accuracy", height=360
    )
    scored = np.flatnonzero(np.isfinite(real))
    if not len(scored):
        return note(figure, "no description was scored")
    order = scored[np.argsort(-real[scored], kind="stable")]
    for values, name, marker in (
        (shuffled, "another feature's description", {"color": GREY, "symbol": "circle-open", "size": 7}),
        (real, "its own description", {"color": BLUE, "size": 7}),
    ):
        figure.add_scatter(
            x=np.arange(1, len(order) + 1),
            y=values[order],
            mode="markers",
            name=name,
            marker=marker,
            hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>",
        )
    ends, dashed = [0.5, len(order) + 0.5], {"color": GREY, "dash": "dash", "width": 1.5}
    figure.add_scatter(x=ends, y=[0.5, 0.5], mode="lines", name="chance", hoverinfo="skip", line=dashed)
    return figure.update_xaxes(dtick=max(1, len(order) // 10), tick0=1, range=ends)


def ablation(effect: float, random_differences: Float[np.ndarray, " controls"]) -> "go.Figure":
    """Draw the effect of ablating the features among those of matched random feature sets."""
    figure = figure_with("The ablation among random ones", "change of expected valence", "random sets", height=380)
    if len(random_differences):
        hover = "%{y} random sets at %{x}<extra></extra>"
        figure.add_histogram(x=random_differences, nbinsx=30, marker_color=GREY, opacity=0.75, hovertemplate=hover)
    span = [effect, 0.0, *np.asarray(random_differences, float)]
    low, high = min(span), max(span)
    figure.add_vline(x=0, line={"color": GREY, "width": 1}).add_vline(
        x=effect,
        line={"color": ORANGE, "width": 2.5},
        annotation_text=f"the features: {effect:+.3g}",
        annotation_position="top right" if effect < (low + high) / 2 else "top left",
        annotation_font_color=ORANGE,
    )
    edge = 0.08 * (high - low or 1.0)
    return figure.update_layout(bargap=0.06).update_xaxes(range=[low - edge, high + edge])


def _legible(frame: "pd.DataFrame", chosen: Bool[np.ndarray, " words"]) -> list[tuple[str, float, float]]:
    """Give (word, x, y) of the most certain words whose labels do not cover one another."""
    width, height = 0.12 * np.ptp(frame["stated"]), 0.06 * np.ptp(frame["measured"])
    placed: list[tuple[str, float, float]] = []
    rows = frame[chosen].sort_values("p_wrong")
    for word, x, y in zip(rows["word"], rows["stated"], rows["measured"]):
        if all(abs(x - left) > width or abs(y - top) > height for _, left, top in placed):
            placed.append((word, x, y))
    return placed[:MAX_LABELS]


def _words(figure: "go.Figure", rows: "pd.DataFrame", name: str, marker: Mapping[str, object]) -> None:
    figure.add_scatter(
        x=rows["stated"],
        y=rows["measured"],
        mode="markers",
        name=f"{name} ({len(rows)})",
        marker=dict(marker),
        text=[escaped(word) for word in rows["word"]],
        customdata=rows[["measured_low", "measured_high", "p_wrong", "contexts"]].to_numpy(),
        hovertemplate="<b>%{text}</b><br>stated %{x:.2f}, learned %{y:.2f} "
        "[%{customdata[0]:.2f}, %{customdata[1]:.2f}]"
        "<br>p of a wrong sign %{customdata[2]:.2g}, %{customdata[3]} contexts<extra></extra>",
    )


def _smoothed(values: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """Average over a centred window of about a tenth of the steps, shorter at both ends."""
    half = len(values) // 20
    return np.array([values[max(0, at - half) : at + half + 1].mean() for at in range(len(values))])
