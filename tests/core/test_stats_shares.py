"""Shares, their differences, and Cohen's kappa, against numbers of the sources and of scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import cohen_kappa, share_difference, share_estimate


def test_a_difference_of_shares_has_newcombes_interval() -> None:
    # Newcombe (1998), Table II, example (a): 56/70 against 48/80, method 10.
    gap = share_difference(share_estimate(56, 70), share_estimate(48, 80))
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert gap.n == 150


def test_a_share_of_nothing_is_no_number_and_more_hits_than_units_are_refused() -> None:
    assert math.isnan(share_estimate(0, 0).value)
    with pytest.raises(LensError, match="3 of 2 is no share"):
        share_estimate(3, 2)


def test_kappa_is_scikit_learns_and_its_interval_holds_it() -> None:
    generator = np.random.default_rng(0)
    first = generator.integers(5, size=60)
    second = np.where(generator.random(60) < 0.7, first, generator.integers(5, size=60))
    found = cohen_kappa(first, second, draws=200)
    assert found.value == pytest.approx(cohen_kappa_score(first, second))
    assert found.low < found.value < found.high
    assert found.n == 60


def test_independent_judges_have_a_kappa_around_zero() -> None:
    generator = np.random.default_rng(1)
    found = cohen_kappa(generator.integers(2, size=300), generator.integers(2, size=300), draws=200)
    assert found.low < 0 < found.high


@pytest.mark.parametrize("given", [[], [True, True, True]])
def test_kappa_of_one_class_or_of_nothing_has_no_value(given: list[bool]) -> None:
    found = cohen_kappa(given, given)
    assert math.isnan(found.value) and math.isnan(found.low)


def test_judgements_of_different_units_are_refused() -> None:
    with pytest.raises(LensError, match="gave 2 judgements, the other 3"):
        cohen_kappa([0, 1], [0, 1, 1])
