"""Figures of dictionaries show every number they are given, floors and nulls included, and let no markup through."""

from inspect import signature

import numpy as np
import pandas as pd
import pytest

from lfp_lens.results.train_sae import MIN_EXPLAINED_VARIANCE
from lfp_lens.view import sae_plots

HOSTILE = "<a href='https://evil.example'>x</a>"


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "side": ["tuned", "tuned"], "site": [HOSTILE, "b"], "size": [1.0, 2.0], "explained_variance": [0.9, 0.3],
            "explained_variance_low": [0.8, 0.2], "explained_variance_high": [0.95, 0.35],
            "untrained_explained_variance": [-7.0, 0.1], "pca_explained_variance": [0.5, np.nan],
            "random_model_explained_variance": [np.nan, np.nan], "l0": [3.0, 5.0], "fails": ["", "explained variance"],
        }
    )  # fmt: skip


def test_a_failing_sae_is_a_cross_and_an_extreme_floor_stays_in_view_with_its_number() -> None:
    trained, untrained, components = sae_plots.quality(frame()).data
    assert list(trained.marker.symbol) == ["circle", "x"]
    assert untrained.y[0] == sae_plots.EDGE and untrained.customdata[0] == -7.0
    assert components.name == "tuned, PCA" and components.y[0] == 0.5
    assert "<a" not in trained.text[0]


def test_an_sae_is_drawn_with_the_interval_of_its_explained_variance() -> None:
    trained = sae_plots.quality(frame()).data[0]
    assert list(trained.error_y.array) == pytest.approx([0.05, 0.05])
    assert list(trained.error_y.arrayminus) == pytest.approx([0.1, 0.1])


def test_the_drawn_gate_is_the_gate_that_results_apply() -> None:
    assert signature(sae_plots.quality).parameters["threshold"].default == MIN_EXPLAINED_VARIANCE


def swept(values: list[object]) -> pd.DataFrame:
    return pd.DataFrame(
        {"l1": values, "mse": [0.1, 0.3], "mse_low": [0.05, 0.2], "mse_high": [0.2, 0.4], "l0": [40.0, 9.0],
         "l0_low": [30.0, 8.0], "l0_high": [50.0, 10.0], "n_saes": [5, 5]}
    )  # fmt: skip


def test_a_sweep_has_reconstruction_loss_and_sparsity_on_two_axes() -> None:
    figure = sae_plots.sweep(swept([0.001, 0.01]), "l1")
    loss, sparsity = figure.data
    assert (list(loss.x), list(loss.y), list(sparsity.y)) == ([0.001, 0.01], [0.1, 0.3], [40.0, 9.0])
    assert sparsity.yaxis == "y2" and figure.layout.yaxis2.side == "right"
    assert list(loss.error_y.arrayminus) == pytest.approx([0.05, 0.1])
    assert figure.layout.xaxis.title.text == "l1 coefficient"


def test_only_a_wide_range_of_numbers_is_drawn_on_a_logarithmic_axis() -> None:
    assert sae_plots.sweep(swept([0.001, 0.01]), "l1").layout.xaxis.type is None
    assert sae_plots.sweep(swept([0.001, 0.1]), "l1").layout.xaxis.type == "log"


def test_a_sweep_over_names_draws_no_line_between_them_and_no_markup() -> None:
    loss, _ = sae_plots.sweep(swept([HOSTILE, "standard"]), "l1").data
    assert loss.mode == "markers" and "<a" not in loss.x[0]


def test_matched_features_are_counted_beside_what_random_dictionaries_give() -> None:
    figure = sae_plots.matching(np.array([0.2, 0.9, np.nan]), 0.3, 0.5, HOSTILE)
    assert list(figure.data[0].x) == [0.2, 0.9]
    assert {note.text for note in figure.layout.annotations} == {"random dictionaries, mean", "99 %"}
    assert [shape.x0 for shape in figure.layout.shapes] == [0.3, 0.5]
    assert "<a" not in figure.layout.title.text


def test_a_match_without_any_partner_says_so() -> None:
    figure = sae_plots.matching(np.array([np.nan]), 0.3, 0.5, "x")
    assert [note.text for note in figure.layout.annotations] == ["no feature was matched"]
