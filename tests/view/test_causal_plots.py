"""Figures of causes show what was measured, and say so where nothing was."""

import numpy as np
import pandas as pd

from lfp_lens.view import causal_plots


def test_only_confirmed_effects_are_drawn_and_none_is_said() -> None:
    frame = pd.DataFrame(
        {
            "site": ["s", "s"],
            "index": [0, 1],
            "screen": [0.1, 0.2],
            "exact": [0.1, np.nan],
            "exact_low": [0.0, np.nan],
            "exact_high": [0.2, np.nan],
        }
    )
    assert list(causal_plots.effects(frame, 0.5).data[1].x) == [0.1]
    assert "no feature was confirmed" in causal_plots.effects(frame[1:], 0.5).layout.annotations[0].text


def test_a_histogram_of_text_effects_is_centred_on_zero_and_counts_every_text() -> None:
    figure = causal_plots.text_effects(np.array([-0.1, 0.3, 0.3, 0.0]), "feature 1", "expected_valence")
    bars = figure.data[0]
    assert sum(bars.y) == 4
    assert np.allclose(np.array(bars.x), -np.array(bars.x)[::-1])
    assert bars.y[-1] == 2, "the largest effect lies in the last bin"
    empty = causal_plots.text_effects(np.array([]), "feature 1", "expected_valence")
    assert "none of the texts" in empty.layout.annotations[0].text


def test_joint_sets_are_drawn_above_their_random_sets_where_there_are_any() -> None:
    frame = pd.DataFrame(
        {
            "features": [1, 10],
            "share": [0.2, 0.5],
            "share_low": [0.1, 0.4],
            "share_high": [0.3, 0.6],
            "random_mean": [0.0, np.nan],
            "random_least": [-0.1, np.nan],
            "random_largest": [0.1, np.nan],
        }
    )
    figure = causal_plots.joint(frame, "gain")
    assert list(figure.data[-1].y) == [0.2, 0.5]
    assert [list(line.x) for line in figure.data[:3]] == [[1]] * 3
    assert "no set" in causal_plots.joint(frame[:0], "gain").layout.annotations[0].text
