"""The fragments of a feature: escaped, with a histogram that counts right, and readable without a browser."""

import re

import numpy as np
import pytest

from lfp_lens.view.feature_card import activation_histogram, coloured_features, feature_card
from lfp_lens.view.tokens import token_html
from tests.view.test_page import HOSTILE


def test_everything_on_a_card_is_escaped() -> None:
    window = token_html([HOSTILE], [1.0])
    drawn = activation_histogram(np.ones(3), HOSTILE)
    shown = feature_card(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, {HOSTILE: [HOSTILE]}, [(HOSTILE, window)], drawn)
    assert "<script" not in shown.html
    assert shown.html.count("&lt;script&gt;") >= 8


def test_a_card_in_a_terminal_says_the_same_in_words() -> None:
    shown = feature_card("Feature 3", "warm words", {"detection": 0.81234}, {"fires on": ["\u0120warm"]}, [])
    assert repr(shown) == "Feature 3\nwarm words\ndetection: 0.812\nfires on: warm"


def test_an_empty_list_of_tokens_has_no_line() -> None:
    assert "promotes" not in feature_card("Feature 3", "", {}, {"promotes": []}, []).html


def test_the_space_of_a_token_can_be_seen() -> None:
    assert "\u2423warm" in feature_card("", "", {}, {"fires on": ["\u0120warm"]}, []).html


def test_bars_count_every_token_that_fires_and_no_other() -> None:
    values = np.concatenate([np.zeros(90), np.random.default_rng(0).uniform(0.1, 2, 10), [-1.0]])
    drawn = activation_histogram(values, "ten texts")
    assert sum(int(count) for count in re.findall(r": (\d+) tokens</title>", drawn)) == 10
    assert "fires on 10 of 101 tokens of ten texts" in drawn


@pytest.mark.parametrize("values", [np.zeros(4), np.zeros(0)])
def test_a_silent_feature_has_no_bars(values: np.ndarray) -> None:
    drawn = activation_histogram(values, "texts")
    assert "<svg" not in drawn and f"fires on 0 of {len(values)} tokens" in drawn


def test_a_text_has_one_line_per_feature() -> None:
    rows = [({"feature": at}, token_html(["a", HOSTILE], [at, 1.0])) for at in (1, 2)]
    shown = coloured_features(HOSTILE, rows, ["one", "two"])
    assert shown.text.endswith("\none\ntwo")
    assert shown.html.count('class="lens-tokens"') == 2
    assert "<script" not in shown.html


def test_no_feature_gives_a_table_that_says_none() -> None:
    assert ">none<" in coloured_features("nothing fires", [], []).html
