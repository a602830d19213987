"""What a preference probe's result says: style, nothing or more, from numbers made by hand; and how it shows itself."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import read_record, write_record
from lfp_lens.core.stats import Estimate
from lfp_lens.results.preference_probe import NAMES, LearnedPreference, PreferenceCell
from tests.results.samples import HOSTILE, SITES
from tests.results.test_round_trip import assert_same

TUNED = 0.8
"""Accuracy of the probe on tuned SAE features; its interval is 0.05 to either side."""


def estimate(value: float, margin: float = 0.05) -> Estimate:
    return Estimate(value, value - margin, value + margin, 90)


def a_cell(side: str, source: str, target: str, accuracy: float, gap_margin: float = 0.05) -> PreferenceCell:
    is_probe = target == "preference"
    return PreferenceCell(
        side, source, target, estimate(accuracy), estimate(accuracy),
        gap=None if target == "original" else estimate(TUNED - accuracy, gap_margin),
        order=estimate(0.9) if is_probe else None, transfer=estimate(0.6) if is_probe else None,
    )  # fmt: skip


def a_preference(*, gap_margin: float = 0.05, shuffled: float = 0.5, **accuracy: float) -> LearnedPreference:
    """A probe that tells 80 %, everything else 55 %, or what `accuracy` says by SIDE_INPUT."""
    at = lambda side, source: accuracy.get(f"{side}_{source}", 0.55)  # noqa: E731
    keys = [("tuned", "raw"), ("difference", "implicit_reward"), *NAMES]
    draw, n = np.random.default_rng(0), 6
    return LearnedPreference(
        task=HOSTILE, rewriter="by hand", is_swapped=False, sites=(SITES[4], SITES[5]),
        cells=(
            a_cell("tuned", "sae", "preference", TUNED, 0),
            *(a_cell(side, source, "preference", at(side, source), gap_margin) for side, source in keys),
            a_cell("tuned", "sae", "shuffled", shuffled), a_cell("tuned", "sae", "original", 0.9),
        ),
        difference=estimate(TUNED - at("base", "sae"), gap_margin),
        placed={name: estimate(0.5) for name in ("positive", "neutral", "negative", "chosen", "rejected")},
        preferred=estimate(0.7), preferred_original=estimate(0.6), preferred_noise=np.array([0.45, 0.52]),
        preferred_original_noise=np.array([0.48, 0.5]),
        probability=draw.random((n, 3)), implicit_reward=draw.normal(size=(n, 3)), words=draw.integers(5, 20, (n, 3)),
        components=draw.normal(size=(n, 3, 2)), explained=np.array([0.6, 0.2]),
        weights=np.array([[0.1, -2.0, 0.5, 0.0], [0.1, -1.0, -0.3, 0.0]]),
        feature_site=np.array([0, 0, 1, 1]), feature_index=np.array([0, 1, 0, 1]), source=np.arange(n),
        group=(HOSTILE, *"abcde"), dropped={}, cut=0, folds=2,
    )  # fmt: skip


def test_a_probe_that_nothing_matches_is_evidence_but_no_more() -> None:
    found = a_preference()
    assert found.is_found and not found.is_style and found.matched_by == ()
    assert found.verdict == (
        "Features of the tuned model tell the poles better than all that knows nothing of the tuning, by 0.250 [0.200, 0.300], "
        "n=90 over the base model's. That the model uses them is not shown."
    )


@pytest.mark.parametrize("key", NAMES)
def test_anything_within_the_interval_that_knows_nothing_of_the_tuning_makes_it_style(key: tuple[str, str]) -> None:
    name = f"{key[0]}_{key[1]}"
    assert a_preference(**{name: 0.76}, gap_margin=0.001).matched_by == (NAMES[key],)
    assert a_preference(**{name: 0.95}).is_style, "above it as well"
    assert not a_preference(**{name: 0.74}, gap_margin=0.001).is_style


def test_a_gap_that_is_not_certain_makes_it_style_too() -> None:
    """A probe without a mistake has an interval of no width, which nothing with a mistake lies in."""
    found = a_preference(none_bag_of_words=0.74, gap_margin=0.07)
    assert found.matched_by == ("word counts",)
    assert found.verdict == (
        "What the probe reads is told as well by word counts: the task is style, no evidence of learned feedback."
    )


def test_several_matches_are_listed() -> None:
    found = a_preference(none_length=0.8, none_bag_of_words=0.9, base_sae=0.79)
    assert "told as well by length, word counts and the base model's features: the task is style" in found.verdict


def test_what_knows_the_tuning_makes_no_style() -> None:
    found = a_preference(tuned_raw=0.95, difference_implicit_reward=0.99)
    assert not found.is_style


def test_a_probe_no_better_than_on_shuffled_poles_found_nothing() -> None:
    found = a_preference(shuffled=0.78)
    assert not found.is_found
    assert found.verdict.startswith(
        "Nothing was found: accuracy 0.800 [0.750, 0.850], n=90; above shuffled poles by 0.020"
    )


def test_features_are_ordered_by_weight_with_the_folds_that_agree_on_the_sign() -> None:
    top = a_preference().top_features(3)
    assert list(zip(top["site"], top["feature"])) == [(SITES[4], 1), (SITES[4], 0), (SITES[5], 0)]
    assert top["weight"].tolist() == pytest.approx([-1.5, 0.1, 0.1])
    assert top["sign_agreement"].tolist() == [1, 1, 0.5]
    assert (top["low"].iloc[0], top["high"].iloc[0]) == (-2, -1)
    with pytest.raises(LensError, match="k must be at least 1; 0 given"):
        a_preference().top_features(0)


def test_table_3_stands_beside_what_the_paper_did_not_measure() -> None:
    table = a_preference(none_length=0.5).table_3().set_index("reading")
    published = table.loc["tuned SAE features, as published"]
    assert published["task"].tolist() == ["HH", "toxic"]
    assert published["gemma-2b-it"].tolist() == ["99.97", "99.88"]
    assert published["this run"].isna().all()
    ours = table.loc["tuned SAE features"]
    assert (ours["this run"], ours["n"], ours["task"]) == (pytest.approx(80), 90, HOSTILE)
    assert table.loc["length", "this run"] == 50
    assert set(NAMES.values()) <= set(table.index)


def test_an_unknown_classifier_names_what_there_is() -> None:
    with pytest.raises(LensError, match="Did you mean 'tuned sae preference'"):
        a_preference().cell("tuned", "sea")


def test_it_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    write_record(a_preference(), tmp_path)
    assert_same(a_preference(), read_record(tmp_path))


def test_it_shows_itself_with_everything_escaped() -> None:
    found = a_preference()
    shown = found._repr_html_()
    assert "by hand" in shown and "<script" not in shown
    assert "0.700 [0.650, 0.750], n=90; 2 noise twins 0.450 to 0.520" in shown
    assert len(found.to_frame()) == len(found) == 6
    assert len(found.grid_frame()) == len(found.cells)
    figures: list[Any] = [found.plot(), found.plot_pca(), found.plot_pca(by="length")]
    assert len(figures[0].data[0].y) == len(found.cells)
    assert all("<script" not in str(figure.to_plotly_json()) for figure in figures)


def test_components_are_coloured_as_asked() -> None:
    found = a_preference()
    assert [trace.name for trace in found.plot_pca().data] == ["positive", "neutral", "negative"]
    assert found.plot_pca(by="length").data[0].marker.color.tolist() == found.words[:, 0].tolist()
    assert "component 1 (60% of variance)" in found.plot_pca().layout.xaxis.title.text
    with pytest.raises(LensError, match="Unknown colour of the components 'size'"):
        found.plot_pca(by="size")


def test_poles_that_were_swapped_are_said_so() -> None:
    assert "poles swapped" in dataclasses.replace(a_preference(), is_swapped=True)._repr_html_()
