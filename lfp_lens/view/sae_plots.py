"""Figures of dictionaries: quality beside its floors, sweeps, and matching beside its null."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from lfp_lens.view.look import BLUE, GREEN, GREY, ORANGE, escaped, figure_with, note, reference

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SIDES = {"tuned": BLUE, "base": GREY, "difference": ORANGE, "both": GREEN}
FLOORS = {"untrained": ("circle-open", "as initialised"), "pca": ("diamond-open", "PCA"),
          "random_model": ("square-open", "random model")}  # fmt: skip
"""Floor -> its symbol and its name in the legend."""
EDGE = -0.25
AXES = {"l1": "l1 coefficient", "k": "active features per token (k)", "lr": "learning rate", "size": "features / width",
        "n_train_tokens": "training tokens"}  # fmt: skip
WIDE_RANGE = 30
"""A setting whose values span more than this factor is drawn on a logarithmic axis."""


def quality(frame: "pd.DataFrame", *, threshold: float = 0.6) -> "go.Figure":
    """Draw explained variance against L0 on held-out text: a point per SAE with its interval, hollow ones its floors.

    A cross marks an SAE that fails a gate; values below -0.25 sit at the lower edge, and hover tells them.
    """
    figure = figure_with("SAE quality on held-out text", "L0 (features active per token)", "explained variance")
    for side, rows in frame.groupby("side", sort=False):
        names = [f"{escaped(site)} x{size:g}" for site, size in zip(rows["site"], rows["size"])]
        colour, side = SIDES.get(side, GREEN), escaped(side)
        shapes = np.where(rows["fails"] != "", "x", "circle")
        drawn: list[tuple[str, str, dict[str, Any]]] = [
            ("explained_variance", side, {"color": colour, "symbol": shapes, "size": 9})
        ]
        drawn += [
            (f"{kind}_explained_variance", f"{side}, {label}", {"color": colour, "symbol": symbol, "size": 7})
            for kind, (symbol, label) in FLOORS.items()
        ]
        for column, name, marker in drawn:
            if column not in rows or not np.isfinite(rows[column]).any():
                continue
            figure.add_scatter(
                x=rows["l0"],
                y=np.maximum(rows[column], EDGE),
                mode="markers",
                name=name,
                marker=marker,
                error_y=_interval(rows, column, colour),
                text=names,
                customdata=rows[column],
                hovertemplate=f"%{{text}} ({name})<br>explained variance %{{customdata:.3f}}<extra></extra>",
            )
    reference(figure, threshold, f"gate {threshold:g}")
    return figure.update_yaxes(range=[EDGE - 0.05, 1.05]).update_xaxes(rangemode="tozero")


def sweep(frame: "pd.DataFrame", name: str) -> "go.Figure":
    """Draw reconstruction loss (left axis) and mean L0 (right axis) by one setting, with intervals where there are any.

    Args:
        frame: columns `name`, `mse`, `l0`, each with `_low` and `_high`, `n_saes`.
        name: the setting; numbers are drawn to scale, logarithmic if they span more than a factor of 30.
    """
    figure = figure_with(f"Sweep of {escaped(AXES.get(name, name))}", escaped(AXES.get(name, name)), "")
    values = frame[name]
    is_number = values.dtype.kind in "iuf"
    for column, title, axis, colour, symbol in (
        ("mse", "reconstruction loss", "y", BLUE, "circle"),
        ("l0", "sparsity: features active per token", "y2", ORANGE, "diamond"),
    ):
        figure.add_scatter(
            x=values if is_number else [escaped(value) for value in values],
            y=frame[column],
            yaxis=axis,
            name=title,
            mode="lines+markers" if is_number else "markers",
            line={"color": colour},
            marker={"color": colour, "size": 8, "symbol": symbol},
            error_y=_interval(frame, column, colour),
            customdata=frame["n_saes"],
            hovertemplate=f"%{{x}}: {title} %{{y:.4g}}, mean of %{{customdata}} SAEs<extra></extra>",
        )
    left = {"title": "reconstruction loss (mean squared error)", "rangemode": "tozero", "color": BLUE}
    right = {"title": "features active per token (L0)", "rangemode": "tozero", "color": ORANGE, "overlaying": "y",
             "side": "right", "showgrid": False}  # fmt: skip
    if is_number and values.min() > 0 and values.max() > WIDE_RANGE * values.min():
        figure.update_xaxes(type="log")
    return figure.update_layout(yaxis=left, yaxis2=right, margin={"r": 70})


def matching(
    cosines: Float[np.ndarray, " features"],
    null_mean: float,
    null_99: float,
    what: str,
    *,
    over: str = "largest cosine",
) -> "go.Figure":
    """Draw how many features have which cosine, beside the mean and the 99 % quantile of random dictionaries.

    Args:
        cosines: one per feature (a match's largest cosines, or stability over seeds); NaN are left out.
        null_mean: mean of the same between random dictionaries of these shapes.
        null_99: 99 % quantile of the same.
        what: the two dictionaries, for the title.
        over: the title of the axis.
    """
    # One name to a line: they are long, and the figure is not wide.
    named = escaped(what).replace(" in ", "<br>in ")
    figure = figure_with(f"Features found again: {named}", over, "features", height=360)
    figure.update_layout(title_font_size=12)
    found = np.asarray(cosines, float)
    found = found[np.isfinite(found)]
    if not len(found):
        return note(figure, "no feature was matched")
    figure.add_histogram(
        x=found, xbins={"start": -1, "end": 1.04, "size": 0.04}, marker_color=BLUE,
        hovertemplate="%{y} features at %{x}<extra></extra>", name="features",
    )  # fmt: skip
    for x, label in ((null_mean, "random dictionaries, mean"), (null_99, "99 %")):
        if np.isfinite(x):
            figure.add_vline(x=x, line={"color": GREY, "dash": "dash", "width": 1.5}, annotation_text=label,
                             annotation_position="top left" if label != "99 %" else "top right")  # fmt: skip
    return figure.update_layout(bargap=0.04).update_xaxes(range=[min(-0.02, float(found.min())), 1.04])


def _interval(rows: "pd.DataFrame", column: str, colour: str) -> dict[str, Any] | None:
    low, high = f"{column}_low", f"{column}_high"
    if low not in rows or high not in rows:
        return None
    up, down = rows[high] - rows[column], rows[column] - rows[low]
    return {"array": up.clip(lower=0), "arrayminus": down.clip(lower=0), "thickness": 1, "width": 0, "color": colour}
