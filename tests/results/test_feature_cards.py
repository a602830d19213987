"""A card says what is known of a feature, its controls and its doubts, from labels alone."""

import pytest

from lfp_lens.core.errors import LensError
from tests.results.labelled import judged, some_labels
from tests.results.samples import HOSTILE, SITES


def test_a_card_has_description_scores_controls_tokens_and_windows() -> None:
    shown = some_labels().card(SITES[4], 1)
    for part in (
        "words of kind 2",
        "0.900; shuffled explanation 0.500, random features 0.500",
        "40 windows",
        "warm",
        "promotes",
    ):
        assert part in shown.text
        assert part in shown.html
    for kind in ("top", "quantile", "silent"):
        assert f"<td>{kind}</td>" in shown.html


def test_the_peak_of_a_firing_window_is_marked_and_a_silent_window_has_none() -> None:
    rows = some_labels().card(SITES[4], 1).html.split("<tr>")[1:]
    assert [row.count("decoration:underline") for row in rows] == [1, 1, 0]


def test_hostile_tokens_and_descriptions_are_text() -> None:
    shown = some_labels().card(SITES[4], 1).html
    assert "<script" not in shown
    assert HOSTILE.replace("<", "&lt;").replace(">", "&gt;") in shown


@pytest.mark.parametrize(("index", "told"), [(6, "Dead: it never fires"), (0, "words of kind 0")])
def test_a_dead_feature_says_so_in_place_of_a_description(index: int, told: str) -> None:
    shown = some_labels().card(SITES[4], index)
    assert told in shown.text
    assert ("related to" in shown.text) == (index == 0)


def test_an_unreliable_label_says_so() -> None:
    assert "unreliable: kappa below 0.6" in judged(some_labels(), 0.3).card(SITES[4], 1).text


def test_a_feature_that_was_not_chosen_is_refused_with_those_that_were() -> None:
    with pytest.raises(LensError, match=r"Feature 99 at 'blocks.4.hook_mlp_out' is not among .* Chosen there: 0, 1, 2"):
        some_labels().card(SITES[4], 99)
    with pytest.raises(LensError, match=r"Sites: blocks.4.hook_mlp_out, blocks.5.hook_mlp_out\."):
        some_labels().card("blocks.0.hook_mlp_out", 1)
