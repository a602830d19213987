"""The empirical null: the distribution that made the values, and doubt where they do not reach."""

import numpy as np
import pytest
from scipy import stats

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import student_null


def draws(df: float, n: int, seed: int = 0) -> np.ndarray:
    return 3.0 + 2.0 * np.random.default_rng(seed).standard_t(df, size=n)


@pytest.mark.parametrize("df", [2.0, 5.0, 1000.0])
def test_many_values_give_back_the_distribution_that_made_them(df: float) -> None:
    null, places = student_null(draws(df, 4000)), np.array([-3.0, 1.0, 3.0, 5.0, 9.0])
    true = stats.t(df, 3.0, 2.0)
    # The standard error of a share of 4,000 is at most 0.8 %.
    assert null.cdf(places) == pytest.approx(true.cdf(places), abs=0.02)
    assert null.cdf(places) + null.sf(places) == pytest.approx(np.ones(5))
    # Doubt makes the tail heavier, never lighter by much; a normal's is beyond the lightest that is considered, 8 df.
    assert 0.7e-3 < null.sf(true.isf(np.array([1e-3])))[0] < (1.6e-3 if df < 8 else 5e-3)


def test_the_weights_are_those_of_a_posterior_not_of_the_grids_edge() -> None:
    for n in (30, 300, 3000):
        null = student_null(draws(5, n))
        assert null.weight.sum() == pytest.approx(1)
        # Weighed means of centre and scale lie within 4 standard errors of what was planted.
        assert null.weight @ null.centre == pytest.approx(3.0, abs=4 * 2.6 / np.sqrt(n))
        assert null.weight @ null.scale == pytest.approx(2.0, abs=4 * 2.2 / np.sqrt(n))


def test_far_out_few_values_leave_more_doubt_than_their_single_best_fit() -> None:
    for seed in range(5):
        values = draws(5, 100, seed)
        far = np.array([3.0 + 2 * stats.t(5).isf(1e-4)])
        assert student_null(values).sf(far) > 0.9 * stats.t(*stats.t.fit(values)).sf(far)
    mean = np.mean([student_null(draws(5, 100, seed)).sf(far)[0] for seed in range(5)])
    assert mean > 1e-4, "on average the doubt makes tails heavier than those that made the values"


def test_moving_and_stretching_the_values_moves_and_stretches_the_null() -> None:
    values, places = draws(4, 200), np.array([1.0, 8.0])
    assert student_null(10 * values - 7).sf(10 * places - 7) == pytest.approx(student_null(values).sf(places))
    assert student_null(-values).cdf(-places) == pytest.approx(student_null(values).sf(places), rel=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.arange(19.0), "at least 20 values, all finite; 19 given"),
        (np.append(np.arange(30.0), np.nan), "at least 20 values, all finite; 31 given, 30 finite"),
        (np.repeat([0.0, 1.0], [30, 10]), "More than half"),
    ],
)
def test_values_that_are_no_null_are_refused(values: np.ndarray, message: str) -> None:
    with pytest.raises(LensError, match=message):
        student_null(values)
