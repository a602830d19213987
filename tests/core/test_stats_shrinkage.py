"""Variances from few tunings: the prior that made them is found, and intervals cover."""

import numpy as np
import pytest
from scipy import stats

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import moderated_variances


def simulated(words: int, df: int, prior_df: float, prior: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Give sample and true variances of words whose true variance is scaled inverse chi-squared."""
    generator = np.random.default_rng(seed)
    true = prior * prior_df / generator.chisquare(prior_df, size=words)
    return true * generator.chisquare(df, size=words) / df, true


def test_the_planted_prior_is_found() -> None:
    sample, _ = simulated(20_000, 2, prior_df=6, prior=2.0)
    variances, df = moderated_variances(sample, 2)
    assert df[0] - 2 == pytest.approx(6, rel=0.15)
    slope, intercept = np.polyfit(sample, variances, 1)
    assert slope == pytest.approx(2 / df[0])
    assert intercept * df[0] / (df[0] - 2) == pytest.approx(2.0, rel=0.05), "the prior's variance"


def test_shrunken_variances_are_nearer_the_truth() -> None:
    sample, true = simulated(2000, 2, prior_df=6, prior=2.0)
    error = lambda found: np.mean(np.log(found / true) ** 2)  # noqa: E731
    assert error(moderated_variances(sample, 2).variances) < 0.4 * error(sample)


def test_words_that_share_one_variance_share_it_wholly() -> None:
    generator = np.random.default_rng(1)
    sample = 3.0 * generator.chisquare(4, size=5000) / 4
    variances, df = moderated_variances(np.tile(np.quantile(sample, np.linspace(0.1, 0.9, 50)), 3), 4)
    assert np.isinf(df).all()
    assert np.ptp(variances) == 0
    assert 1.5 < variances[0] < 4.5


def test_each_word_is_weighed_by_its_own_degrees_of_freedom_and_none_takes_the_prior() -> None:
    sample, _ = simulated(5000, 3, prior_df=5, prior=1.0)
    degrees = np.full(5000, 3.0)
    degrees[0], sample[0] = 0, np.nan
    variances, df = moderated_variances(sample, degrees)
    assert df[1] - df[0] == pytest.approx(3)
    assert variances[0] == pytest.approx((df[1] * variances[1] - 3 * sample[1]) / df[0])


@pytest.mark.parametrize("tunings", [2, 3, 5])
def test_intervals_over_few_tunings_cover_and_are_narrower_than_students(tunings: int) -> None:
    generator = np.random.default_rng(2)
    hits, narrower = [], []
    for _ in range(20):
        spread = np.sqrt(6 / generator.chisquare(6, size=300))
        values = spread[:, None] * generator.normal(size=(300, tunings))
        own = values.var(axis=1, ddof=1)
        variances, df = moderated_variances(own, tunings - 1)
        margin = stats.t.ppf(0.975, df) * np.sqrt(variances / tunings)
        hits.append(np.abs(values.mean(axis=1)) <= margin)
        narrower.append(margin.mean() / (stats.t.ppf(0.975, tunings - 1) * np.sqrt(own / tunings)).mean())
    # 6,000 intervals have a standard error of 0.3 %, and the prior of each 300 words is itself estimated.
    assert 0.935 <= np.mean(hits) <= 0.965
    assert np.mean(narrower) < 0.95


def test_a_variance_of_zero_is_not_certainty() -> None:
    sample, _ = simulated(200, 2, prior_df=6, prior=2.0)
    sample[0] = 0
    assert moderated_variances(sample, 2).variances[0] > 0.5


@pytest.mark.parametrize(
    ("variances", "df", "message"),
    [
        ([1.0, -1.0, 2.0], 2, "at least 0"),
        ([1.0, float("nan"), 2.0], 2, "at least 0"),
        ([1.0, 2.0], float("inf"), "finite degrees of freedom"),
        ([1.0, float("inf"), 2.0], 2, "A variance is infinite"),
        ([0.0, 0.0, 1.0], 2, "1 words vary over tunings; at least 2"),
        ([1.0, 2.0, 3.0], 0, "0 words vary over tunings; at least 2"),
    ],
)
def test_variances_that_cannot_be_shrunk_are_refused(variances: list[float], df: float, message: str) -> None:
    with pytest.raises(LensError, match=message):
        moderated_variances(np.array(variances), df)
