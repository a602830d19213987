"""HTML fragments for Jupyter (`card`, `table`) and the one self-contained page of a run (`render`).

Model and data text is untrusted: fragments escape what they are given, the template escapes too, figures
travel as JSON without a single `<`, and the page's policy forbids requests and scripts but its own.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

DASH = "\u2013"
# currentColor and half-clear greys only, so that a fragment reads on Jupyter's light and dark themes alike.
STYLE = """<style>
.lens{font-size:13px;line-height:1.45;margin:.4em 0 1em}
.lens-title{font-weight:600;margin:0 0 .4em}
.lens-scroll{max-height:30em;overflow:auto;border:1px solid rgba(128,134,144,.3);border-radius:6px}
.lens table{border-collapse:collapse;border:0;margin:0;width:100%;font-variant-numeric:tabular-nums}
.lens th,.lens td{padding:.3em .7em;border:0;text-align:left;vertical-align:top}
.lens th,.lens td{max-width:38em;overflow-wrap:break-word}
.lens tbody tr{background:none;border-top:1px solid rgba(128,134,144,.18)}
.lens thead th{font-weight:600;vertical-align:bottom}
.lens .lens-number{text-align:right}.lens td.lens-number{white-space:nowrap}
.lens dl{display:grid;grid-template-columns:fit-content(42%) 1fr;gap:.25em 1.2em;margin:0}
@media (max-width:40em){.lens dl{grid-template-columns:1fr;row-gap:0}.lens dd{margin-bottom:.5em!important}}
.lens dt{opacity:.72}.lens dd{margin:0;overflow-wrap:anywhere}
.lens-tokens{white-space:pre-wrap;overflow-wrap:anywhere}.lens-tokens span{border-radius:3px}
</style>"""


@dataclass(frozen=True)
class Section:
    """One section of the page. With a refusal it shows nothing else."""

    name: str
    """The verb: the anchor of the section."""
    title: str
    """What the section is called in the contents."""
    measures: str = ""
    """What it measures, in one or two plain sentences."""
    limits: str = ""
    """What it does not show."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """The key numbers, each with n, interval and control."""
    figures: "Sequence[tuple[go.Figure, str]]" = ()
    """Figures with their captions."""
    fragments: Sequence[str] = ()
    """Safe HTML, as `table` and `card` give it."""
    refusal: str | None = None
    """Why there is no number."""


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    name: str
    """What it is."""
    value: str
    """The number or the word that a reader takes away."""
    detail: str = ""
    """Interval, n and control."""
    tone: str = ""
    """`good`, `bad` or nothing."""


def number(value: Any, decimals: int | None = None) -> str:
    """Give a value as people read it: about three significant digits, a dash for what is missing, yes or no.

    >>> number(0.123456), number(float("nan")), number(12345), number(True), number(1.2e-7)
    ('0.123', '–', '12,345', 'yes', '1.2e-7')
    """
    if value is None or value is np.ma.masked:
        return DASH
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}" if abs(int(value)) >= 10_000 else str(value)
    if not isinstance(value, (float, np.floating)):
        return str(value)
    if math.isnan(value):
        return DASH
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    size = abs(float(value))
    places = decimals_for(size) if decimals is None else decimals
    if 0 < size < 0.5 * 10**-places:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value + 0.0:,.{places}f}"


def decimals_for(largest: float) -> int:
    """Give the decimals that show three to four significant digits of the largest value of a column.

    >>> decimals_for(0.5), decimals_for(31.2), decimals_for(0.012)
    (3, 1, 4)
    """
    power = math.floor(math.log10(largest)) if largest > 0 else 0
    return min(5, 2 - power if power < 0 else 3 if power == 0 else max(0, 2 - power))


def card(title: str, facts: Mapping[str, Any]) -> str:
    """Give a titled list of facts as HTML for Jupyter; names and values are escaped."""
    return f'{STYLE}<div class="lens">{_title(title)}{facts_html(facts)}</div>'


def facts_html(facts: Mapping[str, Any]) -> str:
    """Give a list of names and values as HTML."""
    items = (f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(number(value))}</dd>" for name, value in facts.items())
    return f"<dl>{''.join(items)}</dl>"


def table(frame: "pd.DataFrame", title: str = "", *, raw: Sequence[str] = ()) -> str:
    """Give a data frame as escaped HTML in a scroll box: numbers rounded by column, a dash for NaN.

    Args:
        frame: the rows; its index is not shown.
        title: a line above it.
        raw: columns that hold safe HTML already (from `token_html`).
    """
    columns = [_column(frame[name], name in raw) for name in frame.columns]
    is_number = [cells[0] for cells in columns]
    heads = "".join(_head(str(name), numeric) for name, numeric in zip(frame.columns, is_number))
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in zip(*(cells for _, cells in columns)))
    body = rows or f'<tr><td colspan="{max(1, len(frame.columns))}">none</td></tr>'
    whole = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f'{STYLE}<div class="lens">{_title(title)}<div class="lens-scroll" tabindex="0">{whole}</div></div>'


def render(
    *,
    title: str,
    tiles: Sequence[Tile],
    headline: Sequence[str],
    sections: Sequence[Section],
    provenance: Sequence[str] = (),
) -> str:
    """Make the page: one HTML file that needs no network and says the same for the same input.

    Args:
        title: of the page.
        tiles: the headline numbers.
        headline: safe HTML fragments below them.
        sections: in order of reading.
        provenance: safe HTML fragments at the end.
    """
    from importlib.resources import files

    import jinja2
    from plotly.offline import get_plotlyjs

    from lfp_lens.core.fingerprint import fingerprint

    folder = files("lfp_lens.view") / "templates"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    figures = {
        f"{section.name}-{row}": figure_json(pair[0])
        for section in sections
        for row, pair in enumerate(section.figures)
    }
    text = environment.from_string((folder / "report.html").read_text(encoding="utf-8")).render(
        title=title,
        tiles=tiles,
        headline=headline,
        sections=sections,
        provenance=provenance,
        figures=figures,
        facts_html=facts_html,
        fragment_style=STYLE,
        plotly=get_plotlyjs() if figures else "",
        style=(folder / "report.css").read_text(encoding="utf-8"),
        script=(folder / "report.js").read_text(encoding="utf-8"),
        # The policy runs only scripts with this mark; text inside the page cannot know the page's hash.
        mark=fingerprint(
            [title, tiles, headline, list(figures.values()), *(section.fragments for section in sections)]
        ),
    )
    # A tokenizer may cut a character in half; such a half has no UTF-8 form.
    return text.encode("utf-8", "replace").decode("utf-8")


def figure_json(figure: "go.Figure") -> str:
    """Give a figure as JSON that cannot end the script element it stands in, whatever text it holds."""
    return figure.to_json().replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _column(values: "pd.Series[Any]", is_raw: bool) -> tuple[bool, list[str]]:
    """Give whether a column is numeric, and its cells; `data-v` is what a click on the header sorts by."""
    if is_raw:
        return False, [f"<td>{value}</td>" for value in values]
    numeric = values.dtype.kind in "iuf"
    if not numeric:
        return False, [f"<td>{html.escape(number(value))}</td>" for value in values]
    finite = np.abs(values.to_numpy(float))
    finite = finite[np.isfinite(finite)]
    decimals = None
    if len(finite) and (finite == np.round(finite)).all():
        decimals = 0
    # Where most values are far below the largest (mixed units, p-values), each cell keeps its own digits.
    elif len(finite) and np.median(finite) >= finite.max() / 10:
        decimals = decimals_for(float(finite.max()))
    return True, [
        f'<td{_class(True)} data-v="{float(value)!r}">{html.escape(number(value, decimals))}</td>' for value in values
    ]


def _head(name: str, numeric: bool) -> str:
    shown = html.escape(name.replace("_", " "))
    return f'<th scope="col"{_class(numeric)} title="{html.escape(name)}">{shown}</th>'


def _class(numeric: bool) -> str:
    return ' class="lens-number"' if numeric else ""


def _title(title: str) -> str:
    return f'<p class="lens-title">{html.escape(title)}</p>' if title else ""
