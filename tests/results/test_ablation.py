"""An ablation claims no more than it shows: the verdict beside floors, percentiles, tables."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import Estimate
from lfp_lens.results.ablate_readings import RESTORED, FiringRates, RandomSets, Rate
from lfp_lens.results.ablate_tables import verdict
from lfp_lens.results.share_curves import ShareCurves
from tests.results import samples


def with_shares(sae: float, floor: float, *, mean_floor: float | None = None) -> ShareCurves:
    """Curves of one SAE and one floor that remove these shares at the same KL; in the mean reading another floor's share."""
    curves = samples.some_curves()
    shares = [sae] * 3 + [floor, floor if mean_floor is None else mean_floor, floor]
    noise = np.random.default_rng(1).normal(0, 0.02, curves.valence.shape)
    noise -= noise.mean(axis=1, keepdims=True)
    return dataclasses.replace(curves, valence=2.0 * (1 - np.array(shares)[:, None] + noise))


def test_features_carry_it_only_above_every_floor_in_both_readings() -> None:
    assert "tuned SAE (one seed) carries it" in verdict(with_shares(0.5, 0.2))
    assert "tuned SAE (one seed) lies above every floor by less than 0.1" in verdict(with_shares(0.27, 0.2))
    assert "tuned SAE (one seed) does not lie above every floor" in verdict(with_shares(0.2, 0.5))
    told = verdict(with_shares(0.5, 0.2, mean_floor=0.6))
    assert "tuned SAE (one seed) does not lie above every floor" in told
    assert "zero 0.50, best floor (pca) 0.20, lead +0.3" in told
    assert "mean 0.50, best floor (pca) 0.60, lead -0.1" in told


def test_without_floors_or_without_a_gain_nothing_is_claimed() -> None:
    curves = samples.some_curves()
    assert verdict(None).startswith("no floor was measured")
    assert verdict(dataclasses.replace(curves, floors=())).startswith("no floor was measured")
    flat = dataclasses.replace(curves, base=curves.tuned)
    assert "does not lie above every floor" in verdict(flat)
    assert "the tuned model gained nothing" in verdict(flat)
    floors_only = dataclasses.replace(curves, name=("pca",) * 6)
    assert verdict(floors_only).startswith("no feature of these dictionaries lifts valence")


def test_the_features_that_were_given_are_no_dictionary_of_their_own() -> None:
    """A set chosen by hand may lie above a floor; the claim is about the dictionaries."""
    curves = samples.some_curves()
    given = dataclasses.replace(curves, name=("the features",) * 3 + ("pca",) * 3)
    assert "carries it" not in verdict(given)


def test_a_percentile_counts_the_sets_that_drop_less() -> None:
    sets = RandomSets("zero", np.array([-0.3, -0.1, 0.0, 0.1]), np.zeros(4), -0.2)
    assert sets.percentile == 0.75
    assert np.isnan(dataclasses.replace(sets, differences=np.array([])).percentile)


def test_readings_are_found_by_what_and_mode() -> None:
    ablation = samples.an_ablation()
    assert ablation.reading(mode="mean").mode == "mean"
    assert ablation.reading().mode == ablation.mode
    assert ablation.reading(RESTORED).mode == "patch", "the only one there is"
    assert ablation.restored is not None
    assert ablation.restored.value == 0.3
    with pytest.raises(LensError, match="No base model was given"):
        samples.an_ablation(single=True).reading(RESTORED)


def test_a_rate_that_was_not_measured_is_no_number() -> None:
    rate = Rate("flagged features", Estimate(0.2, 0.1, 0.3, 9), None, None)
    frame = FiringRates("the stated lexicon", 3.0, 4, 0, 0, (rate,), None).to_frame()
    row: dict[str, Any] = frame.iloc[0].to_dict()
    assert (row["high"], row["high_low"], row["high_high"]) == pytest.approx((20, 10, 30))
    assert np.isnan([row["other"], row["ratio"], row["ratio_high"]]).all()


def test_the_published_rows_are_those_of_the_paper() -> None:
    ablation = samples.an_ablation()
    six, seven = ablation.table6().set_index("source"), ablation.table7()
    assert six.loc["PUBLISHED: pythia-160m", ["before", "after"]].tolist() == [1.95, 1.69]
    printed = seven[seven["source"] == "PUBLISHED: gpt-neo-125m"].set_index("group")["high"]
    assert printed.to_dict() == {"flagged features": 13.9, "all features": 4.2}


def test_the_dose_figure_shows_every_factor_with_its_cost() -> None:
    figure = samples.an_ablation().plot_dose()
    above, below = figure.data
    assert list(above.x) == [0, 0.5, 1, 1.5, 2]
    assert list(below.y) == [0.041] * 5
    assert "times a factor" in figure.layout.title.text
