"""The figures of diverge: every number is kept, scaled as the axis says."""

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.results import Divergence
from lfp_lens.results.diverge import divergence_by_layer
from lfp_lens.view import layers
from tests.results.samples import HOSTILE, a_divergence


def test_divergence_scales_each_measure_to_its_own_maximum_and_keeps_the_number_for_hover() -> None:
    figure = layers.divergence({"parameter_sum": np.array([1.0, 4.0]), "activation_relative": np.zeros(2)})
    assert list(figure.data[0].y) == [0.25, 1.0]
    assert list(figure.data[0].customdata) == [1.0, 4.0]
    assert list(figure.data[1].y) == [0.0, 0.0]


def test_intervals_and_replicates_are_drawn_on_the_scale_of_their_measure() -> None:
    figure = layers.divergence(
        {"parameter_sum": np.array([1.0, 4.0]), "activation_relative": np.array([0.1, 0.2])},
        {"activation_relative": (np.array([0.05, 0.1]), np.array([0.2, 0.3]))},
        {HOSTILE: (np.array([2.0, 3.0]), np.array([1.0, 5.0]))},
    )
    assert list(figure.data[1].error_y.array) == pytest.approx([0.5, 0.5])
    assert list(figure.data[1].error_y.arrayminus) == pytest.approx([0.25, 0.5])
    assert list(figure.data[2].y) == [0.5, 0.75]
    assert list(figure.data[3].y) == [0.25, 1.25]
    assert "<script" not in str(figure.to_plotly_json())


def test_several_models_are_one_line_each_in_the_measures_own_unit() -> None:
    one = a_divergence()
    figure = divergence_by_layer({"a": one, HOSTILE: one})
    assert [list(line.y) for line in figure.data] == [one.parameter_sum.tolist()] * 2
    assert figure.data[0].name == "a"
    assert "<script" not in str(figure.to_plotly_json())
    assert "sum of norms" in figure.layout.yaxis.title.text
    assert divergence_by_layer({"a": one}, "activation_relative").data[0].y[1] == pytest.approx(0.4)


def test_several_models_need_the_measure() -> None:
    bare = Divergence(("a",), *[np.ones(1)] * 5)
    with pytest.raises(LensError, match="No divergence was given"):
        divergence_by_layer({})
    with pytest.raises(LensError, match="activation_relative was not measured: it needs texts"):
        divergence_by_layer({"a": a_divergence(), "b": bare}, "activation_relative")
    with pytest.raises(LensError, match="Unknown divergence measure"):
        divergence_by_layer({"a": bare}, "weights")


def test_positions_without_tokens_are_not_drawn() -> None:
    figure = layers.kl_by_position(np.array([0.1, 0.2, np.nan]), np.array([5, 3, 0]))
    assert list(figure.data[0].x) == [0, 1]
