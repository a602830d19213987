"""Coloured tokens: sign by hue, size by strength, text escaped."""

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.view.tokens import ABOVE, BELOW, token_html


def test_positive_and_negative_values_have_different_colours_and_zero_none() -> None:
    spans = token_html(["a", "b", "c"], [2.0, -1.0, 0.0]).split("</span>")
    assert f"rgba({ABOVE}, 0.70)" in spans[0]
    assert f"rgba({BELOW}, 0.35)" in spans[1]
    assert "style" not in spans[2]


def test_the_value_is_on_hover() -> None:
    assert 'title="-0.250"' in token_html(["a"], [-0.25])


def test_hostile_tokens_are_text() -> None:
    shown = token_html(['<img src=x onerror="alert(1)">'], [1.0])
    assert "<img" not in shown and "&lt;img" in shown


def test_byte_level_spaces_and_line_ends_are_shown_as_people_read_them() -> None:
    assert "> good\u21b5<" in token_html(["\u0120good\u010a"], [1.0])


def test_a_value_that_is_no_number_gets_no_colour_and_does_not_dim_the_others() -> None:
    shown = token_html(["a", "b"], [np.nan, 1.0])
    assert 'title="no value"' in shown and "0.70" in shown


def test_the_scale_can_be_shared_between_texts() -> None:
    assert "0.35" in token_html(["a"], [1.0], largest=2.0)


def test_marked_tokens_are_underlined_whatever_their_value() -> None:
    spans = token_html(["a", "b", "c"], [0.0, 1.0, 1.0], marked=[0, 1]).split("</span>")
    assert ["decoration:underline" in span for span in spans[:3]] == [True, True, False]
    assert "rgba" not in spans[0] and "rgba" in spans[1]


def test_no_tokens_give_an_empty_text() -> None:
    assert token_html([], []) == '<span class="lens-tokens"></span>'


def test_values_that_do_not_match_the_tokens_are_refused() -> None:
    with pytest.raises(LensError, match="2 tokens need one value each"):
        token_html(["a", "b"], [1.0])
