"""Fragments escape and round; the page is one file that fetches nothing and runs no script but its own."""

import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from lfp_lens.view import page, plots
from lfp_lens.view.page import Section, Tile

HOSTILE = "</script><script>alert(1)</script>"


class Reader(HTMLParser):
    """Collect every start tag with its attributes, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def a_page(**changes: object) -> str:
    figure = plots.rejections({HOSTILE: 3}, kept=1)
    section = Section(
        "probe",
        HOSTILE,
        HOSTILE,
        HOSTILE,
        {HOSTILE: HOSTILE},
        [(figure, HOSTILE)],
        [page.table(pd.DataFrame({HOSTILE: [HOSTILE, "b"]}), HOSTILE)],
    )
    given = {
        "title": HOSTILE,
        "tiles": [Tile(HOSTILE, HOSTILE, HOSTILE)],
        "headline": [],
        "sections": [section, Section("ablate", "Ablation", refusal=HOSTILE)],
    }
    return page.render(**{**given, **changes})


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.123456, "0.123"),
        (0.0, "0.000"),
        (-2.0, "-2.000"),
        (31.25, "31.2"),
        (12345.6, "12,346"),
        (0.00123, "0.00123"),
        (1.2e-7, "1.2e-7"),
        (float("nan"), "–"),
        (None, "–"),
        (float("inf"), "infinite"),
        (7, "7"),
        (200000, "200,000"),
        (np.int64(3), "3"),
        (np.bool_(True), "yes"),
        (False, "no"),
        ("text", "text"),
    ],
)
def test_numbers_are_shown_with_three_or_four_digits(value: object, shown: str) -> None:
    assert page.number(value) == shown


def test_a_table_rounds_by_column_and_shows_missing_values_as_a_dash() -> None:
    shown = page.table(pd.DataFrame({"value": [0.51234, np.nan, 2.0], "count": [1.0, 2.0, 3.0]}))
    assert ">0.512<" in shown and ">2.000<" in shown and ">–<" in shown
    assert ">1<" in shown and ">3<" in shown


def test_small_values_beside_large_ones_keep_their_digits() -> None:
    shown = page.table(pd.DataFrame({"value": [18.2, 0.004, 0.31]}))
    assert ">0.00400<" in shown and ">18.2<" in shown and ">0.310<" in shown


def test_an_empty_table_says_none() -> None:
    assert ">none<" in page.table(pd.DataFrame({"word": []}))


def test_tables_and_cards_escape_names_titles_and_values() -> None:
    for shown in (
        page.table(pd.DataFrame({HOSTILE: [HOSTILE]}), HOSTILE),
        page.card(HOSTILE, {HOSTILE: HOSTILE}),
    ):
        assert "<script" not in shown and "&lt;script&gt;" in shown


def test_a_raw_column_is_the_only_one_that_keeps_its_markup() -> None:
    shown = page.table(pd.DataFrame({"a": ["<b>x</b>"], "b": ["<b>y</b>"]}), raw=("b",))
    assert "<b>x" not in shown and "<b>y</b>" in shown


def test_every_script_of_the_page_is_ours() -> None:
    text = a_page()
    scripts = [attributes for tag, attributes in Reader(text).tags if tag == "script"]
    marks = {attributes["nonce"] for attributes in scripts if attributes.get("type") != "application/json"}
    assert len(scripts) == 3 and len(marks) == 1
    assert f"script-src 'nonce-{marks.pop()}'" in text
    assert "<script>alert" not in text


def test_the_page_fetches_nothing() -> None:
    for tag, attributes in Reader(a_page()).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img", "form")
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "default-src 'none'" in a_page()


def test_styles_of_the_page_name_no_address() -> None:
    text = a_page()
    styles = "".join(part.split("</style>")[0] for part in text.split("<style>")[1:])
    assert "url(" not in styles and "@import" not in styles


def test_a_figure_cannot_end_its_script_element() -> None:
    import json

    import plotly.graph_objects as go

    figure = go.Figure().add_scatter(x=[1], y=[2], text=[HOSTILE + "<!--"])
    packed = page.figure_json(figure)
    assert "<" not in packed and ">" not in packed
    assert json.loads(packed)["data"][0]["text"] == [HOSTILE + "<!--"]


def test_a_refusal_stands_in_place_of_its_section() -> None:
    text = a_page(sections=[Section("ablate", "Ablation", refusal="no SAE passes")])
    assert "Refused: no number is reported." in text and "no SAE passes" in text
    assert "What this does not show" not in text


def test_the_same_input_gives_the_same_page_and_without_figures_no_plotting_library() -> None:
    sections = [Section("ablate", "Ablation", refusal="none")]
    assert a_page(sections=sections) == a_page(sections=sections)
    assert len(a_page(sections=sections)) < 50_000


def test_half_a_character_from_a_tokenizer_can_still_be_written() -> None:
    assert a_page(title="broken \ud83d", sections=[]).encode("utf-8")


def test_importing_the_views_loads_no_heavy_library() -> None:
    code = (
        "import sys; from lfp_lens.view import page, plots, tokens; "
        "print([name for name in ('plotly', 'pandas', 'jinja2', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
