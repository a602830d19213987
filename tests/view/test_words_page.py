"""Fragments of the page of learned words: everything is escaped, words are coloured whatever their case."""

import pytest

from lfp_lens.view import words_page

HOSTILE = "</script><script>alert(1)</script>"


def test_claims_stand_in_two_lists_and_an_empty_one_says_nothing() -> None:
    shown = words_page.claims([], ["more than <this>"])
    assert shown.index("What this page claims") < shown.index("Nothing.") < shown.index("What it does not claim")
    assert "more than &lt;this&gt;" in shown


def test_chips_escape_words_and_hover_and_vanish_without_words() -> None:
    shown = words_page.chips(HOSTILE, [(HOSTILE, f'" onmouseover="{HOSTILE}')])
    assert "<script" not in shown and 'onmouseover="<' not in shown and '" onmouse' not in shown
    assert words_page.chips("title", []) == ""


def test_a_word_is_coloured_whatever_its_case_and_punctuation_is_not() -> None:
    shown = words_page.colour_words("GOOD, not bad!", {"good": 2.0, "bad": -2.0})
    assert shown.count("rgba(58, 126, 191, 0.70)") == 1 and shown.count("rgba(213, 94, 0, 0.70)") == 1
    assert ">GOOD</span><span>, </span>" in shown


@pytest.mark.parametrize("text", ["don't", "don’t"])
def test_either_apostrophe_belongs_to_its_word(text: str) -> None:
    assert 'title="1.000"' in words_page.colour_words(text, {"don't": 1.0})


def test_one_extreme_word_does_not_leave_the_rest_without_colour() -> None:
    values = {f"w{chr(97 + row)}": 1.0 for row in range(26)} | {"huge": 1000.0}
    assert "0.70" in words_page.colour_words("wa", values)


def test_texts_and_readings_make_a_table_with_nothing_but_our_markup() -> None:
    shown = words_page.coloured_texts([HOSTILE, "good"], {"measured": {"good": 1.0, "script": 1.0}, "other": {}})
    assert "<script" not in shown and shown.count("<tr>") == 3
    assert shown.count("<td>") == 4


def test_a_text_without_a_known_word_stays_as_it_is() -> None:
    assert "background" not in words_page.colour_words("Nothing here.", {})


def test_an_alarm_is_marked_and_escaped() -> None:
    assert words_page.marked("<b>", is_alarm=True) == '<span class="verdict alarm">&lt;b&gt;</span>'
    assert words_page.marked("<b>", is_alarm=False) == '<span class="verdict">&lt;b&gt;</span>'
