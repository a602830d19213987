"""Tables 1 and 8 and the counts of appendix B: what is counted, beside what, and what is no comparison."""

import dataclasses

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.results import published
from tests.results.labelled import judged, some_labels
from tests.results.samples import SITES


def test_table_8_has_every_chosen_feature_in_layer_order() -> None:
    labels = some_labels()
    table = labels.table8()
    assert table["layer"].is_monotonic_increasing
    assert sorted(zip(table["site"], table["index"])) == sorted(zip(labels.site, labels.index))
    assert set(table["status"]) == {"labelled", "dead", "unanswered"}


def test_every_description_of_a_table_stands_beside_its_score_and_its_control() -> None:
    labels = some_labels()
    table = labels.table8()
    for row in range(len(table)):
        at = [*zip(labels.site, labels.index)].index((table["site"][row], table["index"][row]))
        assert table["description"][row] == labels.description[at]
        assert np.array_equal(table["detection"][row], labels.detection[at], equal_nan=True)
        assert table["detection_shuffled"][row] == labels.detection_shuffled[at]


def test_table_1_is_a_draw_of_labelled_features_that_the_seed_decides() -> None:
    labels = some_labels(n=40)
    one, again, other = labels.table1(10), labels.table1(10), labels.table1(10, seed=1)
    assert one.equals(again)
    assert not one.equals(other)
    assert len(one) == 10 and (one["description"] != "").all()
    assert one["layer"].is_monotonic_increasing


@pytest.mark.parametrize("n", [0, 13])
def test_table_1_cannot_hold_more_features_than_were_labelled(n: int) -> None:
    with pytest.raises(LensError, match=f"n={n} features cannot be drawn from 12 labelled ones"):
        some_labels().table1(n)


def test_counts_are_of_labelled_features_so_that_dead_and_unanswered_ones_do_not_dilute_them() -> None:
    labels = some_labels(n=12, relevant=5)
    counts = labels.counts()
    ours = counts[counts["source"] == "this run"].set_index("site")
    assert ours.loc["all sites", ["chosen", "labelled", "relevant"]].tolist() == [14, 12, 5]
    assert ours.loc["all sites", "percent"] == pytest.approx(100 * 5 / 12)
    assert ours.loc[[SITES[4], SITES[5]], "relevant"].tolist() == [3, 2]
    assert ours.loc["all sites", "low"] < 100 * 5 / 12 < ours.loc["all sites", "high"]


def test_an_explanation_that_was_called_relevant_but_never_came_is_not_counted() -> None:
    labels = some_labels(n=4, relevant=6)
    assert labels.counts().set_index(["source", "site"]).loc[("this run", "all sites"), "relevant"] == 4


def test_the_published_counts_stand_beside_ours_with_an_interval_that_the_paper_lacks() -> None:
    counts = some_labels().counts()
    printed = counts[counts["source"].str.startswith("PUBLISHED")].set_index("side")
    for side, (hits, n) in published.APPENDIX_B.items():
        assert (printed.loc[side, "relevant"], printed.loc[side, "labelled"]) == (hits, n)
    gap = printed.loc["tuned - base"]
    assert gap["percent"] == pytest.approx(16)
    assert gap["low"] < 0 < gap["high"]


def test_the_difference_of_two_sides_is_the_difference_of_their_shares() -> None:
    tuned, base = some_labels(n=40, relevant=30), some_labels(n=40, side="base", relevant=10)
    gap = tuned.minus(base)
    assert gap.value == pytest.approx(0.5)
    assert gap.low > 0
    row = tuned.counts(base).set_index(["source", "side"]).loc[("this run", "tuned - base")]
    assert row["percent"] == pytest.approx(50) and row["low"] == pytest.approx(100 * gap.low)


def test_sides_with_equal_shares_differ_by_nothing() -> None:
    gap = some_labels(n=40).minus(some_labels(n=40, side="base"))
    assert gap.value == 0
    assert gap.low < 0 < gap.high


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labeller": "graph", "side": "base"}, "labeller is 'lexicon' here, 'graph' there"),
        ({"task": "films", "side": "base"}, "task is"),
        ({"select": "mmcs", "side": "base"}, "select is"),
        ({}, "Both labellings are of the tuned side"),
    ],
)
def test_labellings_that_differ_in_more_than_side_are_not_compared(changes: dict[str, str], message: str) -> None:
    with pytest.raises(LensError, match=message):
        some_labels().minus(dataclasses.replace(some_labels(), **changes))


def test_labels_of_another_pair_are_not_compared() -> None:
    base = some_labels(side="base")
    other = dataclasses.replace(base, saes=dataclasses.replace(base.saes, pair="another"))
    with pytest.raises(LensError, match="of different pairs"):
        some_labels().minus(other)


@pytest.mark.parametrize(("kappa", "told"), [(0.59, "unreliable: kappa below 0.6"), (0.61, "reliable")])
def test_tables_say_where_labels_are_unreliable(kappa: float, told: str) -> None:
    labels = judged(some_labels(), kappa)
    assert set(labels.table8()["judgements"]) == {told}
    assert set(labels.counts()["judgements"][:3]) == {told}


def test_tables_say_where_agreement_was_not_measured() -> None:
    assert set(some_labels().table8()["judgements"]) == {"agreement not measured"}
