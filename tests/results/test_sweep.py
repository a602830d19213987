"""The whole vocabulary: sorted, searched, and what no lexicon knows on top."""

import numpy as np
import pytest

from lfp_lens.results.sweep import Sweep

TOKENS = (" great", " awful", " Great", "ing", " zorb", " blick", " rare", " film")


def a_sweep(**changes: object) -> Sweep:
    nan = float("nan")
    given = {
        "tokens": TOKENS,
        "value": np.array([2.0, -1.5, 1.0, 0.1, 0.9, -0.8, 5.0, 0.0]),
        "error": np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.4, 0.1, 0.1]),
        "exposure": np.array([9.0, 8.0, 2.0, 30.0, 4.0, 3.0, 0.2, 50.0]),
        "stated": np.array([3.1, -2.0, 3.1, nan, nan, nan, nan, nan]),
        "twin": np.array([0.1, -0.1, 0.1, -0.1, 0.1, -0.1, 0.1, -0.1]),
        "contexts": np.array(100),
    }
    return Sweep(**(given | changes))  # type: ignore[arg-type]


def test_tokens_are_sorted_the_most_promoted_first_and_rare_ones_left_out() -> None:
    frame = a_sweep().to_frame()
    assert frame["token"].tolist() == [" great", " Great", " zorb", "ing", " film", " blick", " awful"]
    assert a_sweep().to_frame(min_exposure=0)["token"][0] == " rare"
    assert list(frame.columns) == ["token", "value", "error", "exposure", "stated", "twin"]


def test_a_search_finds_part_of_a_token_whatever_its_case_and_takes_no_pattern() -> None:
    assert a_sweep().to_frame("GREAT")["token"].tolist() == [" great", " Great"]
    assert a_sweep().to_frame(" f")["token"].tolist() == [" film"]
    assert a_sweep().to_frame(".").empty


def test_what_no_lexicon_knows_and_moved_furthest_for_its_error_stands_on_top() -> None:
    found = a_sweep().surprising()
    assert found["token"].tolist() == [" zorb", " blick", "ing", " film"]
    # The twin's spread is 0.1 over the tokens that are shown: -0.1 three times and 0.1 four times.
    spread = np.std([0.1, -0.1, 0.1, -0.1, 0.1, -0.1, -0.1])
    assert found["z"][0] == pytest.approx(0.9 / np.hypot(0.1, spread))
    assert found["z"][1] == pytest.approx(-0.8 / np.hypot(0.4, spread))
    assert len(a_sweep().surprising(2)) == 2


def test_a_small_value_that_is_certain_does_not_pass_what_the_noise_twin_shows() -> None:
    """Both moved by 20 and by 3 of their own errors, but noise alone moves tokens by 0.5."""
    value, error = a_sweep().value.copy(), a_sweep().error.copy()
    value[3], error[3], value[4], error[4] = 0.02, 0.001, 1.5, 0.5
    found = a_sweep(value=value, error=error, twin=np.tile([0.5, -0.5], 4)).surprising()
    assert found["token"][0] == " zorb"


def test_a_twin_that_did_not_move_leaves_the_order_of_values() -> None:
    assert a_sweep(twin=np.zeros(8)).surprising()["token"].tolist() == [" zorb", " blick", "ing", " film"]


def test_a_token_that_was_never_expected_has_no_value_and_is_not_shown() -> None:
    value, exposure = a_sweep().value.copy(), a_sweep().exposure.copy()
    value[6], exposure[6] = np.nan, 0.0
    assert " rare" not in a_sweep(value=value, exposure=exposure).to_frame()["token"].tolist()
