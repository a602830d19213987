"""The figure of a scorecard: which planted words are found, by how often they occur and how strong the edit is."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lfp_lens.view.look import BLUE, GREEN, GREY, ORANGE, escaped, figure_with, note

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

COLOURS = (BLUE, ORANGE, GREEN, "#cc79a7", "#b8860b", "#56b4e9", GREY)
"""One per recipe and kind; where there are more they begin again."""
SYMBOLS, DASHES = ("circle", "square", "diamond", "triangle-up"), ("solid", "dash", "dot", "dashdot")
"""One per base and method."""
PLANTED = ("base", "method", "recipe", "kind")
"""Planted words that agree in these are counted together: a line each."""
APART = 0.01
"""How far lines stand from one another, so that intervals at one dose do not hide each other: of a dose, or of a factor 100."""


def recall(by_occurrences: "pd.DataFrame", by_dose: "pd.DataFrame", fdr: float) -> "go.Figure":
    """Draw the share of planted words found against their occurrences in the training texts and, beside it, against dose.

    Args:
        by_occurrences: columns `base`, `method`, `recipe`, `kind` (a line each), `from`, `middle`, `to`, `n`, `found`, `recall`,
            `low`, `high`.
        by_dose: the same by dose.
        fdr: the false discovery rate of the lists.
    """
    title = f"Planted words found at a false discovery rate of {fdr:.0%}"
    figure = figure_with(title, "", "recall (share of the planted words)", height=460)
    ticks = [digit * 10**power for power in range(9) for digit in (1, 3)]
    left = "occurrences in the training texts, plus one<br>(largest dose of each line)"
    figure.update_layout(
        xaxis={"domain": [0, 0.55], "title": left, "type": "log", "tickvals": ticks},
        xaxis2={"domain": [0.61, 1], "title": "dose<br>(words of every frequency)", "rangemode": "tozero", "anchor": "y"},
        yaxis={"range": [-0.03, 1.03]}, legend={"y": -0.3},
    )  # fmt: skip
    if by_dose.empty:
        return note(figure, "no organism that counts has planted words")
    names = names_of(list(by_dose[list(PLANTED)].itertuples(index=False, name=None)))
    tuned = list(dict.fromkeys((base, method) for base, method, _, _ in names))
    planted = list(dict.fromkeys((recipe, kind) for _, _, recipe, kind in names))
    for place, (key, name) in enumerate(names.items()):
        base, method, recipe, kind = key
        colour = COLOURS[planted.index((recipe, kind)) % len(COLOURS)]
        shape = tuned.index((base, method)) % len(SYMBOLS)
        look = {
            "line": {"color": colour, "width": 1.5, "dash": DASHES[shape]},
            "marker": {"color": colour, "size": 8, "symbol": SYMBOLS[shape]},
        }
        shift = APART * (place - (len(names) - 1) / 2)
        for frame, axis in ((by_occurrences, "x"), (by_dose, "x2")):
            rows = frame[(frame[list(PLANTED)] == list(key)).all(axis="columns")]
            x = (rows["middle"] + 1) * 100**shift if axis == "x" else rows["middle"] + shift
            _line(figure, rows, x, axis, name, look)
    half = {"color": GREY, "dash": "dash", "width": 1.5}
    return figure.add_shape(type="line", xref="paper", x0=0, x1=1, yref="y", y0=0.5, y1=0.5, line=half, layer="below")


def names_of(keys: Sequence[tuple[str, str, str, str]]) -> dict[tuple[str, str, str, str], str]:
    """Name each base, method, recipe and kind of planted words, in short: method and kind only where they tell two apart.

    >>> keys = [("world", "ppo", "flip", "flipped"), ("world", "dpo", "flip", "flipped"), ("world", "ppo", "mute", "muted")]
    >>> list(names_of(keys).values())
    ['world, flip by ppo', 'world, flip by dpo', 'world, mute']
    """
    names = {}
    for base, method, recipe, kind in dict.fromkeys(keys):
        alike = [key for key in keys if (key[0], key[2]) == (base, recipe)]
        of_kind = f" ({kind})" if len({key[3] for key in alike}) > 1 else ""
        by_method = f" by {method}" if len({key[1] for key in alike}) > 1 else ""
        names[base, method, recipe, kind] = f"{base}, {recipe}{of_kind}{by_method}"
    return names


def _line(
    figure: "go.Figure", rows: "pd.DataFrame", x: "pd.Series[Any]", axis: str, name: str, look: dict[str, Any]
) -> None:
    what = "occurrences" if axis == "x" else "dose"
    figure.add_scatter(
        x=x, y=rows["recall"], xaxis=axis, yaxis="y", mode="lines+markers", name=escaped(name), legendgroup=escaped(name),
        showlegend=axis == "x", customdata=rows[["from", "to", "found", "n", "low", "high"]].to_numpy(), **look,
        error_y={"array": rows["high"] - rows["recall"], "arrayminus": rows["recall"] - rows["low"], "thickness": 1,
                 "width": 0, "color": look["marker"]["color"]},
        hovertemplate=f"<b>{escaped(name)}</b><br>{what} %{{customdata[0]:,}} to %{{customdata[1]:,}}<br>recall %{{y:.2f}} "
        "[%{customdata[4]:.2f}, %{customdata[5]:.2f}], %{customdata[2]} of n=%{customdata[3]} words<extra></extra>",
    )  # fmt: skip
