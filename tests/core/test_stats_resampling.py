"""Resampling and permuting whole groups: second implementations, planted truths and nulls."""

import time

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import PolarityNull, frequency_deciles, polarity_null, rank_agreement, tau_difference
from lfp_lens.core.stats.pairs import auc_statistic, concordances, tau_statistic
from lfp_lens.core.stats.resampling import bca_interval, exchangeable, median_stratum, permutations, rank_p


def tied_words(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give learned values, given values (both with ties) and lemmas of about 3 words."""
    generator = np.random.default_rng(seed)
    groups = np.unique(generator.integers(n // 3, size=n), return_inverse=True)[1]
    given = np.round(generator.normal(size=n))
    return np.round(given + generator.normal(size=n), 1), given, groups


def test_tau_of_multiplicities_is_scipys_tau_of_the_repeated_words() -> None:
    learned, given, groups = tied_words()
    n_groups = groups.max() + 1
    drawn = np.random.default_rng(1).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=20)
    found = tau_statistic(learned, given, groups)(drawn.astype(float))
    for times, value in zip(drawn, found):
        rows = np.repeat(np.arange(len(groups)), times[groups])
        assert value == pytest.approx(stats.kendalltau(learned[rows], given[rows]).statistic, abs=1e-12)


def test_tau_of_more_words_than_a_block_is_scipys() -> None:
    learned, given, groups = tied_words(1300)
    found = tau_statistic(learned, given, groups)(np.ones((1, groups.max() + 1)))
    assert found[0] == pytest.approx(stats.kendalltau(learned, given).statistic, abs=1e-12)


def test_auc_of_multiplicities_is_scikit_learns_with_weights() -> None:
    score, given, groups = tied_words()
    drawn = np.random.default_rng(2).multinomial(
        groups.max() + 1, np.full(groups.max() + 1, 1 / (groups.max() + 1)), size=9
    )
    found = auc_statistic(score, given > 0, groups)(drawn.astype(float))
    for times, value in zip(drawn, found):
        assert value == pytest.approx(roc_auc_score(given > 0, score, sample_weight=times[groups]), abs=1e-12)


@pytest.mark.parametrize("step", [None, 1.0, 0.1])
@pytest.mark.parametrize("n", [3, 7, 60, 200])
def test_concordance_of_many_permutations_is_that_of_each(n: int, step: float | None) -> None:
    """Against every pair one by one; `step` makes ties."""
    generator = np.random.default_rng(n)
    learned, given = (
        generator.normal(size=(2, n)) if step is None else np.round(generator.normal(size=(2, n)) / step) * step
    )
    values, codes = np.unique(given, return_inverse=True)
    permuted = generator.permuted(np.tile(codes, (5, 1)), axis=1)
    wanted = [np.triu(np.sign(learned[:, None] - learned) * np.sign(row[:, None] - row)).sum() for row in permuted]
    assert concordances(learned, permuted, len(values)).tolist() == wanted


def test_the_interval_is_scipys_bca() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    low, high = bca_interval(lambda rows: rows @ values / rows.sum(axis=1), 40, draws=20_000, seed=0)
    wanted = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=1).confidence_interval
    # The standard error of an interval of width 0.6 at 20,000 draws is about 0.005.
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=0.02)
    percentile = np.quantile(np.random.default_rng(3).choice(values, (20_000, 40)).mean(axis=1), (0.025, 0.975))
    assert low > percentile[0] + 0.01 and high > percentile[1] + 0.01, "skewed values pull the interval up"


def test_a_statistic_that_never_varies_has_an_interval_of_width_zero() -> None:
    assert bca_interval(lambda rows: np.full(len(rows), 0.7), 10, draws=100, seed=0) == (0.7, 0.7)


def test_draws_without_a_value_are_left_out_and_none_left_is_unknown() -> None:
    half = lambda rows: np.where(rows[:, 0] > 0, 1.0, np.nan)  # noqa: E731
    assert bca_interval(half, 10, draws=100, seed=0) == (1.0, 1.0)
    assert np.isnan(bca_interval(lambda rows: np.full(len(rows), np.nan), 10, draws=9, seed=0)).all()


def test_the_size_of_a_block_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    learned, given, groups = tied_words()
    whole = tau_difference(learned, -learned, given, groups, draws=700)
    monkeypatch.setattr("lfp_lens.core.stats.resampling.BLOCK", 37)
    assert str(tau_difference(learned, -learned, given, groups, draws=700)) == str(whole)


def test_only_groups_of_one_size_and_one_mark_are_exchanged() -> None:
    groups = np.array([0, 0, 1, 1, 2, 3, 4, 5, 5])
    marks = np.array([1, 2, 1, 2, 1, 1, 2, 2, 1])
    cells = [cell.tolist() for cell in exchangeable(groups, marks, None)]
    assert cells == [[[0, 1], [2, 3]], [[4], [5]]], "4 and the pair 5 have marks of their own"
    rows = permutations([np.array(cell) for cell in cells], 9, 200, np.random.default_rng(0))
    assert (marks[rows] == marks).all()
    assert {tuple(row[:4]) for row in rows} == {(0, 1, 2, 3), (2, 3, 0, 1)}
    assert (rows[:, 6:] == [6, 7, 8]).all()
    assert (np.sort(rows, axis=1) == np.arange(9)).all()


def test_the_stratum_of_a_lemma_is_the_median_of_its_words() -> None:
    strata, groups = np.array([9, 0, 1, 4, 2, 8]), np.array([0, 1, 0, 0, 2, 2])
    found = median_stratum(strata, groups)
    assert found is not None
    # Codes of 0 1 2 4 8 9 are 0 to 5: lemma 0 has 9, 1, 4 (median 4); lemma 2 has 2, 8 (the lower of two).
    assert found.tolist() == [3, 0, 3, 3, 2, 2]


def test_a_rank_p_by_hand() -> None:
    generator = np.random.default_rng(0)
    assert rank_p(np.array([5, 1, 2, 3]), 4, generator) == 2 / 5
    tied = [rank_p(np.array([1, 1, 1]), 1, generator) for _ in range(400)]
    # The place among equal ones is random: each of 4 has a quarter, with a standard error of 2 %.
    assert np.unique(tied, return_counts=True)[1] / 400 == pytest.approx([0.25] * 4, abs=0.09)


def test_words_of_a_lemma_are_not_independent_evidence() -> None:
    """Two sides that share nothing, five words to a lemma: told so, p is uniform; else it is far too small."""
    told, untold = [], []
    for draw in range(200):
        generator = np.random.default_rng(draw)
        groups = np.repeat(np.arange(20), 5)
        learned, given = (generator.normal(size=20)[groups] + 0.3 * generator.normal(size=100) for _ in range(2))
        told.append(rank_agreement(learned, given, groups, draws=99, seed=draw).p_value)
        untold.append(rank_agreement(learned, given, draws=9).p_value)
    # 5 % of 200 is 10, sigma 3.1.
    assert sum(np.array(told) <= 0.05) <= 21
    assert sum(np.array(untold) <= 0.05) >= 60
    assert stats.kstest(told, "uniform").pvalue > 1e-3


def test_what_frequency_alone_explains_is_no_evidence_within_its_strata() -> None:
    generator = np.random.default_rng(0)
    strata = np.repeat(np.arange(10), 20)
    learned, given = (strata + generator.normal(size=200) for _ in range(2))
    assert rank_agreement(learned, given, draws=200).p_value < 1e-6
    assert rank_agreement(learned, given, strata=strata, draws=200).p_value > 0.05
    learned += given
    assert rank_agreement(learned, given, strata=strata, draws=200).p_value == 1 / 201


def test_lemmas_that_cannot_be_exchanged_prove_nothing() -> None:
    groups = np.repeat(np.arange(3), [1, 2, 3])
    found = rank_agreement(np.arange(6.0), np.arange(6.0), groups, draws=50)
    assert (found.tau, found.p_value) == (pytest.approx(1), 1.0)


def test_strata_that_do_not_align_are_refused() -> None:
    for test in (rank_agreement, polarity_null):
        with pytest.raises(LensError, match="Strata must be aligned with the words: 2 strata, 4 words"):
            test(np.arange(4.0), np.arange(4.0) - 2, strata=np.zeros(2))


def both_polarities(seed: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    given = np.round(generator.choice([-1, 1], size=200) * generator.uniform(0.3, 3.5, size=200), 1)
    return np.sign(given) + strength * given + generator.normal(size=200), given


def test_polarity_alone_explains_what_learned_signs_give() -> None:
    learned, given = both_polarities(0, strength=0.0)
    found = polarity_null(learned, given)
    tau = rank_agreement(learned, given).tau
    assert tau > 0.25 and found.null.low < tau < found.null.high
    assert found.p_value > 0.05


def test_learned_strength_stands_above_polarity() -> None:
    learned, given = both_polarities(1, strength=0.5)
    found = polarity_null(learned, given, draws=500)
    assert rank_agreement(learned, given).tau > found.null.high > found.null.value > 0.3
    assert found.p_value == 1 / 501
    assert str(found).startswith("by polarity alone 0.")


def test_the_polarity_null_is_the_mean_over_all_permutations() -> None:
    learned, given = np.array([-3.0, -1.0, 2.0, 1.0, 4.0]), np.array([-2.0, -1.0, 1.0, 2.0, 0.0])
    by_hand = [
        stats.kendalltau(learned, np.array([*down, *up, 0.0])).statistic
        for down in ((-2, -1), (-1, -2))
        for up in ((1, 2), (2, 1))
    ]
    assert polarity_null(learned, given, draws=4000).null.value == pytest.approx(np.mean(by_hand), abs=0.01)


def test_strata_and_lemmas_hold_in_the_polarity_null() -> None:
    learned, given = both_polarities(2, strength=0.5)
    whole = polarity_null(learned, given, draws=200).null.value
    # Strata by strength leave less to permute, so that more of the agreement stays.
    assert polarity_null(learned, given, np.round(np.abs(given)), draws=200).null.value > whole + 0.02
    assert isinstance(polarity_null(learned, given, groups=np.arange(200) // 2, draws=50), PolarityNull)
    with pytest.raises(LensError, match="No two words share sign and stratum"):
        polarity_null(learned, given, np.arange(200))


def test_deciles_hold_a_tenth_each_and_keep_ties_together() -> None:
    found = frequency_deciles(np.random.default_rng(0).permutation(100).astype(float))
    assert np.bincount(found).tolist() == [10] * 10
    tied = frequency_deciles(np.repeat([1.0, 2.0, 3.0], [50, 30, 20]))
    assert tied.tolist() == [2] * 50 + [6] * 30 + [9] * 20
    for wrong in ([], [1.0, float("nan")]):
        with pytest.raises(LensError, match="finite frequencies"):
            frequency_deciles(np.array(wrong))


def test_ten_thousand_draws_on_a_thousand_words_take_seconds() -> None:
    generator = np.random.default_rng(0)
    given = np.round(1.7 * generator.normal(size=1000), 1)
    learned, groups = given + generator.normal(size=1000), generator.integers(700, size=1000)
    start = time.process_time()
    rank_agreement(learned, given, groups, strata=frequency_deciles(learned), draws=10_000)
    # 2 s were measured on one idle thread; a busy machine may double that.
    assert time.process_time() - start < 8
