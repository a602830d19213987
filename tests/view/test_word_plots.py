"""Figures of word values: every word is in a bin, the labels are text, an empty figure says why."""

import numpy as np
import pandas as pd
import pytest

from lfp_lens.view import word_plots

HOSTILE = "<a href='https://evil.example'>x</a>"
NONE = np.zeros(0)


def errors(n: int = 4) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "word": [HOSTILE, *"abc"][:n],
            "occurrences": [0, 3, 50, 900][:n],
            "error": [2.0, 1.0, 0.5, 0.1][:n],
            "stated": [2.0, -1.0, 1.0, -3.0][:n],
            "rescaled": [0.0, -2.0, 0.5, -2.9][:n],
        }
    )


def test_every_word_stands_at_its_occurrences_plus_one_even_if_it_never_occurs() -> None:
    figure = word_plots.frequency_error(errors(), "title", "samples")
    assert sorted(x for trace in figure.data for x in trace.x) == [1, 4, 51, 901]
    assert [len(trace.x) for trace in figure.data] == [2, 2]
    assert "samples" in figure.layout.xaxis.title.text and figure.layout.xaxis.type == "log"
    assert "<a" not in str(figure.to_plotly_json())


def test_value_histograms_have_ten_bins_and_hold_every_word_of_both_kinds() -> None:
    figure = word_plots.value_histogram(np.linspace(-3, 3, 40), np.linspace(-3.9, 3.4, 40))
    assert [len(trace.x) for trace in figure.data] == [10, 10]
    assert [sum(trace.y) for trace in figure.data] == [40, 40]
    assert "n=40" in figure.layout.title.text


def test_the_error_histogram_has_twenty_bins_and_marks_zero() -> None:
    figure = word_plots.error_histogram(np.linspace(-2, 5, 90), "title")
    assert len(figure.data[0].x) == 20 and sum(figure.data[0].y) == 90
    assert figure.layout.shapes[0].x0 == 0


def test_neutral_words_are_a_density_and_their_tails_stay_in_the_picture() -> None:
    neutral = np.concatenate([np.random.default_rng(0).normal(size=2000), [900.0]])
    curve = np.column_stack([np.linspace(-4, 900, 50), np.ones(50)])
    figure = word_plots.neutral_values(
        neutral, curve, "t", "spreads", positive=np.full(9, 2.0), negative=np.full(5, -2.0)
    )
    bars = figure.data[0]
    assert sum(bars.y) * (bars.x[1] - bars.x[0]) == pytest.approx(1)
    assert max(bars.x) < 10 and max(figure.data[-1].x, default=0) < 10
    assert [trace.name for trace in figure.data[:3]] == [
        "neutral words (2,001)",
        "stated positive (9)",
        "stated negative (5)",
    ]


def test_a_lexicon_with_one_polarity_has_one_outline_beside_the_neutral_words() -> None:
    curve = np.zeros((0, 2))
    figure = word_plots.neutral_values(np.linspace(-1, 1, 50), curve, "t", "u", positive=np.ones(5), negative=NONE)
    assert [trace.name for trace in figure.data] == ["neutral words (50)", "stated positive (5)", "fitted null"]


@pytest.mark.parametrize(
    ("figure", "why"),
    [
        (word_plots.frequency_error(errors(0), "t", "samples"), "no held-out prediction"),
        (word_plots.value_histogram(NONE, NONE), "no held-out prediction"),
        (word_plots.error_histogram(NONE, "t"), "no held-out prediction"),
        (word_plots.neutral_values(NONE, np.zeros((0, 2)), "t", "u", positive=NONE, negative=NONE), "no neutral words"),
    ],
)
def test_an_empty_figure_says_why(figure: object, why: str) -> None:
    assert why in figure.layout.annotations[0].text  # type: ignore[attr-defined]
