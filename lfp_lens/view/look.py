"""The look every figure shares: a quiet template, colour-blind-safe hues (Okabe and Ito), reference lines."""

import html
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

BLUE, ORANGE, GREEN, GREY = "#3a7ebf", "#d55e00", "#009e73", "#8b929c"
BAND, INTERVAL = "rgba(139, 146, 156, 0.16)", "rgba(58, 126, 191, 0.4)"


def escaped(text: object) -> str:
    """Give text that plotly draws as it is: plotly reads a part of HTML in labels and hover texts.

    >>> escaped("<b>good</b>")
    '&lt;b&gt;good&lt;/b&gt;'
    """
    return html.escape(str(text), quote=False)


def wrapped(text: str, width: int = 34) -> str:
    """Break a long label between words; it is escaped."""
    return "<br>".join(textwrap.wrap(escaped(text), width, break_long_words=False) or [""])


def figure_with(title: str, x: str, y: str, *, height: int = 400) -> "go.Figure":
    """Give an empty figure with a title and axis titles."""
    import plotly.graph_objects as go

    return _styled(go.Figure(), title, height).update_layout(xaxis_title=x, yaxis_title=y)


def panels_with(title: str, heights: Sequence[float], *, height: int) -> "go.Figure":
    """Give an empty figure of panels one above the other on one x axis."""
    from plotly.subplots import make_subplots

    panels = make_subplots(len(heights), 1, shared_xaxes=True, row_heights=list(heights), vertical_spacing=0.06)
    return _styled(panels, title, height)


def reference(figure: "go.Figure", y: float, text: str, **where: int) -> None:
    """Draw a dashed horizontal line to compare with, and say what it is."""
    line = {"color": GREY, "dash": "dash", "width": 1.5}
    figure.add_hline(y=y, line=line, annotation_text=text, annotation_position="bottom right", **where)


def note(figure: "go.Figure", text: str) -> "go.Figure":
    """Say in an empty figure why it is empty."""
    return figure.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)


def _styled(figure: "go.Figure", title: str, height: int) -> "go.Figure":
    axis = {
        **{"gridcolor": "#eceef1", "linecolor": "#b9bfc7", "zeroline": False, "automargin": True},
        **{"ticks": "outside", "ticklen": 4, "tickcolor": "#b9bfc7"},
        "title": {"standoff": 10, "font": {"size": 13}},
    }
    heading = {"x": 0, "xref": "container", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top"}
    font = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
    look: dict[str, Any] = {
        "font": {"family": font, "size": 13, "color": "#3d444d"},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "xaxis": axis,
        "yaxis": axis,
        "hovermode": "closest",
        "title": {**heading, "font": {"size": 15}, "pad": {"t": 14, "l": 14}},
        "margin": {"l": 60, "r": 16, "t": 52, "b": 50},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.2, "yanchor": "top"},
    }
    return figure.update_layout(template={"layout": look}, title_text=title, height=height)
