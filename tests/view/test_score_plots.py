"""The figure of a scorecard: a line per group of planted words in both panels, intervals, n on hover, no markup from data."""

import pandas as pd
import pytest

from lfp_lens.view import score_plots

HOSTILE = "<a href='https://evil.example'>x</a>"
COLUMNS = ["base", "method", "recipe", "kind", "from", "middle", "to", "n", "found", "recall", "low", "high"]
FREQUENCY = pd.DataFrame(
    [["w", "ppo", "flip", "flipped", 0, 4.0, 9, 10, 2, 0.2, 0.03, 0.56],
     ["w", "ppo", "flip", "flipped", 10, 99.0, 900, 10, 9, 0.9, 0.55, 1.0],
     [HOSTILE, "ppo", "mute", "muted", 5, 50.0, 80, 4, 1, 0.25, 0.01, 0.81]],
    columns=COLUMNS,
)  # fmt: skip
DOSE = pd.DataFrame(
    [["w", "ppo", "flip", "flipped", 0.5, 0.5, 0.5, 20, 6, 0.3, 0.12, 0.54],
     ["w", "ppo", "flip", "flipped", 1.0, 1.0, 1.0, 20, 18, 0.9, 0.68, 0.99],
     [HOSTILE, "ppo", "mute", "muted", 1.0, 1.0, 1.0, 4, 1, 0.25, 0.01, 0.81]],
    columns=COLUMNS,
)  # fmt: skip


def test_every_group_has_a_line_in_both_panels_and_one_entry_in_the_legend() -> None:
    figure = score_plots.recall(FREQUENCY, DOSE, 0.1)
    assert [(trace.xaxis, trace.showlegend, len(trace.y)) for trace in figure.data] == [
        ("x", True, 2), ("x2", False, 2), ("x", True, 1), ("x2", False, 1)
    ]  # fmt: skip
    assert figure.data[0].line.color == figure.data[1].line.color != figure.data[2].line.color
    assert figure.layout.xaxis.type == "log" and figure.layout.xaxis2.type is None
    assert "10%" in figure.layout.title.text


def test_points_stand_at_their_recall_with_the_interval_and_hover_tells_what_was_counted() -> None:
    line = score_plots.recall(FREQUENCY, DOSE, 0.1).data[1]
    assert list(line.y) == [0.3, 0.9]
    assert list(line.error_y.array) == pytest.approx([0.24, 0.09])
    assert list(line.error_y.arrayminus) == pytest.approx([0.18, 0.22])
    assert line.customdata[0].tolist() == [0.5, 0.5, 6, 20, 0.12, 0.54] and "n=%{customdata[3]}" in line.hovertemplate


def test_lines_step_aside_only_as_far_as_leaves_them_where_they_belong() -> None:
    figure = score_plots.recall(FREQUENCY, DOSE, 0.1)
    assert list(figure.data[1].x) == pytest.approx([0.5, 1.0], abs=0.02)
    assert list(figure.data[0].x) == pytest.approx([5, 100], rel=0.05)
    alone = score_plots.recall(FREQUENCY[:2], DOSE[:2], 0.1)
    assert list(alone.data[1].x) == [0.5, 1.0] and list(alone.data[0].x) == [5, 100]


def test_methods_and_kinds_have_lines_of_their_own_named_by_what_tells_them_apart() -> None:
    rows = [["w", method, "flip", kind, 1.0, 1.0, 1.0, 4, 1, 0.25, 0.01, 0.81]
            for method, kind in (("ppo", "flipped"), ("dpo", "flipped"), ("ppo", "muted"))]  # fmt: skip
    rows += [["w", "ppo", "mute", "muted", 1.0, 1.0, 1.0, 4, 1, 0.25, 0.01, 0.81]]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    lines = score_plots.recall(frame, frame, 0.1).data[::2]
    assert [(line.name, len(line.y)) for line in lines] == [
        ("w, flip (flipped) by ppo", 1), ("w, flip (flipped) by dpo", 1), ("w, flip (muted) by ppo", 1), ("w, mute", 1)
    ]  # fmt: skip
    first, other_method, other_kind, _ = lines
    assert first.line.color == other_method.line.color != other_kind.line.color
    assert [line.line.dash for line in (first, other_method, other_kind)] == ["solid", "dash", "solid"]


def test_names_of_bases_are_text_and_not_markup() -> None:
    assert "<a" not in str(score_plots.recall(FREQUENCY, DOSE, 0.1).to_plotly_json())


def test_more_recipes_and_bases_than_colours_and_symbols_are_drawn_all_the_same() -> None:
    rows = [[f"b{row % 6}", "ppo", f"r{row}", "flipped", 1, 1.0, 1, 5, 1, 0.2, 0.0, 0.7] for row in range(12)]
    many = pd.DataFrame(rows, columns=COLUMNS)
    assert len(score_plots.recall(many, many, 0.1).data) == 24


def test_without_planted_words_the_figure_says_so() -> None:
    empty = pd.DataFrame([], columns=COLUMNS)
    figure = score_plots.recall(empty, empty, 0.1)
    assert "no organism that counts has planted words" in figure.layout.annotations[0].text and not figure.data
