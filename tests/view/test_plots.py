"""Every figure draws what it is given, names words on hover and lets no markup through."""

import numpy as np
import pandas as pd
import pytest

from lfp_lens.view import plots

HOSTILE = "<a href='https://evil.example'>x</a>"


def words(n: int = 5) -> pd.DataFrame:
    values = np.linspace(-2, 2, n)
    return pd.DataFrame(
        {
            "word": [HOSTILE, *"abcd"[: n - 1]],
            "stated": values,
            "measured": values,
            "measured_low": values - 1,
            "measured_high": values + 1,
            "p_wrong": np.linspace(0, 1, n),
            "contexts": np.full(n, 4),
        }
    )


def test_a_learning_curve_keeps_every_step_and_marks_the_base_reward() -> None:
    curve = {"step": np.arange(40), "reward": np.linspace(0, 1, 40), "kl_nats": np.linspace(0, 3, 40)}
    figure = plots.learning_curve(curve, reward_base=0.25)
    assert list(figure.data[0].y) == list(curve["reward"])
    assert figure.layout.shapes[0].y0 == 0.25
    assert "nats" in figure.layout.yaxis2.title.text


def test_smoothing_leaves_a_constant_and_a_single_step_as_they_are() -> None:
    assert np.allclose(plots._smoothed(np.full(50, 2.0)), 2.0)
    assert plots._smoothed(np.array([3.0])) == [3.0]


def test_rejections_are_drawn_most_first_with_what_was_kept_on_top() -> None:
    bar = plots.rejections({"few": 2, "many": 9}, kept=4).data[0]
    assert list(bar.y) == ["few", "many", "kept"]
    assert list(bar.x) == [2, 9, 4]


def test_wrongly_learned_words_are_named_beside_their_points() -> None:
    frame = words()
    wrong = np.array([False, True, False, False, True])
    figure = plots.learned_words(frame, wrong, np.random.default_rng(0).normal(size=100))
    assert {note.text for note in figure.layout.annotations} >= {"a", "d"}
    assert [len(trace.x) for trace in figure.data] == [3, 2]


@pytest.mark.parametrize("mask", [np.zeros(5, bool), np.ones(5, bool)])
def test_hostile_words_are_text_in_labels_and_hover(mask: np.ndarray) -> None:
    figure = plots.learned_words(words(), mask, np.array([]))
    assert "<a" not in str(figure.to_plotly_json())


def test_detection_scores_are_ordered_and_unscored_features_left_out() -> None:
    figure = plots.detection(np.array([0.6, np.nan, 0.9]), np.array([0.5, np.nan, 0.4]))
    assert list(figure.data[1].y) == [0.9, 0.6]
    assert list(figure.data[0].y) == [0.4, 0.5]
    assert "no description" in plots.detection(np.array([np.nan]), np.array([np.nan])).layout.annotations[0].text


@pytest.mark.parametrize("random", [np.array([]), np.linspace(-0.1, 0.1, 50)])
def test_an_ablation_is_a_line_among_its_random_sets_and_stays_in_view(random: np.ndarray) -> None:
    figure = plots.ablation(-0.5, random)
    assert any(shape.x0 == -0.5 for shape in figure.layout.shapes)
    assert figure.layout.xaxis.range[0] < -0.5
    assert "-0.5" in figure.layout.annotations[0].text
