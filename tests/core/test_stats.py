"""The shared statistics: published numbers, invariants, and refusals."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import (
    Estimate,
    RankAgreement,
    auc,
    balanced_sign_accuracy,
    bootstrap_interval,
    discoveries,
    holm,
    mean_estimate,
    mean_intervals,
    rank_agreement,
    tau_as_published,
    tau_difference,
)

# Table 9 of arXiv 2310.08164: true value, reconstructed value.
TABLE_9 = np.array([
    (1.6, 1.3), (-0.4, 1.7), (2.3, 1.9), (-2.2, -3.3), (2.8, 1.3), (-2.1, -1.9), (1.7, 1.9), (-1.2, -1.7), (1.9, 0.7),
    (-1.6, -2.4), (2.2, 1.1), (-1.9, -0.6), (3.1, 1.3), (-3.1, -2.4), (1.5, 1.9), (-1.6, -1.1), (2.7, 3.4), (-1.3, 0.2),
    (1.7, 2.4), (-1.3, -2.8), (2.8, 1.3), (-1.9, -2.6), (-1.4, -2.5), (2.7, 0.9), (1.9, 1.4), (1.9, 0.9), (-2.1, -1.5),
    (3.2, 1.7), (-3.1, -1.7), (2.5, 1.9),
])  # fmt: skip
TABLE_9_WORDS = [
    "eagerly", "reluctantly", "fun", "miserable", "brilliant", "terrible", "yes", "no", "funny", "depressing",
    "friend", "foe", "masterpiece", "disaster", "like", "dislike", "won", "lost", "interesting", "boring", "amazing",
    "dreadful", "despise", "wonderful", "good", "better", "worse", "best", "worst", "praising",
]  # fmt: skip
# Table 2: true value, predicted value.
TABLE_2 = np.array([
    (2.5, 1.4), (2.9, 2.0), (3.1, 1.0), (2.7, -0.81), (2.7, 0.64), (2.9, 1.28), (-1.7, -2.2), (-1.9, -2.2), (-1.9, -2.6),
    (-1.6, -2.53), (-2.5, -2.29),
])  # fmt: skip


def agreement(table: np.ndarray, *, draws: int = 50) -> RankAgreement:
    return rank_agreement(table[:, 1], table[:, 0], draws=draws)


def test_the_papers_thirty_words_give_their_true_tau() -> None:
    found = agreement(TABLE_9)
    assert found.tau == pytest.approx(0.5195820931, abs=1e-9)
    assert found.p_value == pytest.approx(8.579e-05, rel=1e-3)
    assert (found.n, found.groups) == (30, 30)


def test_the_papers_thirty_words_agree_much_less_within_a_polarity() -> None:
    negative = TABLE_9[:, 0] < 0
    assert negative.sum() == 14
    assert agreement(TABLE_9[negative]).tau == pytest.approx(0.2286, abs=5e-5)
    assert agreement(TABLE_9[~negative]).tau == pytest.approx(-0.0543, abs=5e-5)


def test_the_papers_eleven_words_give_their_true_tau() -> None:
    found = agreement(TABLE_2)
    assert found.tau == pytest.approx(0.5850098, abs=5e-7)
    assert found.p_value == pytest.approx(0.014577, abs=5e-6)


def test_twenty_eight_of_the_papers_thirty_signs_are_right() -> None:
    assert (np.sign(TABLE_9[:, 0]) == np.sign(TABLE_9[:, 1])).sum() == 28
    found = balanced_sign_accuracy(TABLE_9[:, 1], TABLE_9[:, 0], draws=50)
    assert found.value == pytest.approx((16 / 16 + 12 / 14) / 2)


def test_the_papers_eleven_signs_are_ten_right() -> None:
    found = balanced_sign_accuracy(TABLE_2[:, 1], TABLE_2[:, 0], draws=50)
    assert found.value == pytest.approx((5 / 6 + 5 / 5) / 2)


def test_perfect_order_is_one_and_reversed_order_minus_one() -> None:
    values = np.arange(10.0)
    perfect, reversed_ = rank_agreement(values, values, draws=50), rank_agreement(-values, values, draws=50)
    assert (perfect.tau, perfect.low, perfect.high) == pytest.approx((1, 1, 1), abs=1e-12)
    assert (reversed_.tau, reversed_.low, reversed_.high) == pytest.approx((-1, -1, -1), abs=1e-12)


def test_a_statistic_above_nine_tenths_is_reported_above_nine_tenths() -> None:
    """The published code ranked word strings: with true tau > 0.9 it reported about 0."""
    values = np.arange(40.0)
    nearly = values.copy()
    nearly[[3, 4]] = nearly[[4, 3]]
    assert rank_agreement(nearly, values, draws=50).tau > 0.9


def test_the_p_value_says_which_test_it_is_of() -> None:
    generator = np.random.default_rng(0)
    few, many = generator.normal(size=(2, 20)), generator.normal(size=(2, 40))
    assert rank_agreement(*few, draws=50).test == "exact"
    assert rank_agreement(*many, draws=50).test == "asymptotic"
    assert rank_agreement(*np.round(few), draws=50).test == "asymptotic", "ties have no exact distribution"
    assert rank_agreement(*few, strata=np.zeros(20), draws=50).test == "permutation"
    assert rank_agreement(*few, np.arange(20) // 2, draws=50).test == "permutation"


def test_scipys_p_and_the_permutations_agree() -> None:
    generator = np.random.default_rng(5)
    learned, given = generator.normal(size=(2, 40))
    given += 0.3 * learned
    asymptotic = rank_agreement(learned, given, draws=50).p_value
    permuted = rank_agreement(learned, given, strata=np.zeros(40), draws=20_000).p_value
    # 20,000 draws of a p near 0.05 have a standard error of 0.0015.
    assert 0.01 < asymptotic < 0.2
    assert permuted == pytest.approx(asymptotic, abs=0.006)


def test_a_monotone_map_of_either_side_changes_nothing() -> None:
    one, other = agreement(TABLE_9), rank_agreement(np.exp(TABLE_9[:, 1]), 3 * TABLE_9[:, 0] ** 3 - 5, draws=50)
    assert str(one) == str(other)


def test_renaming_the_words_changes_no_estimate() -> None:
    names = [f"word{at:02d}" for at in range(30)]
    named = rank_agreement(TABLE_9[:, 1], TABLE_9[:, 0], names, draws=50)
    renamed = rank_agreement(TABLE_9[:, 1], TABLE_9[:, 0], [name.upper() for name in names], draws=50)
    assert str(named) == str(renamed) == str(agreement(TABLE_9))


def test_the_published_statistic_depends_on_the_alphabet_and_misses_what_there_is() -> None:
    right = agreement(TABLE_9).tau
    published = tau_as_published(TABLE_9_WORDS, TABLE_9[:, 1], TABLE_9[:, 0])
    assert (published, right) == pytest.approx((-0.2138, 0.5196), abs=5e-5)
    renamed = tau_as_published([word[::-1] for word in TABLE_9_WORDS], TABLE_9[:, 1], TABLE_9[:, 0])
    assert renamed != published
    values = np.arange(30.0)
    assert tau_as_published(TABLE_9_WORDS, values, values) == pytest.approx(1)


def test_the_order_of_the_words_changes_no_estimate() -> None:
    assert agreement(TABLE_9[::-1]).tau == pytest.approx(agreement(TABLE_9).tau, abs=1e-12)


def test_the_same_seed_gives_the_same_interval() -> None:
    assert str(agreement(TABLE_9)) == str(agreement(TABLE_9))
    other = rank_agreement(TABLE_9[:, 1], TABLE_9[:, 0], draws=50, seed=1)
    assert (other.low, other.high) != (agreement(TABLE_9).low, agreement(TABLE_9).high)


def test_copies_of_a_word_in_one_group_do_not_narrow_the_interval() -> None:
    tripled = np.repeat(TABLE_9, 3, axis=0)
    groups = np.repeat(np.arange(30), 3)
    grouped = rank_agreement(tripled[:, 1], tripled[:, 0], groups, draws=300)
    ungrouped = rank_agreement(tripled[:, 1], tripled[:, 0], draws=300)
    alone = rank_agreement(TABLE_9[:, 1], TABLE_9[:, 0], draws=300)
    assert (grouped.n, grouped.groups) == (90, 30)
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.05)
    assert ungrouped.high - ungrouped.low < 0.75 * (grouped.high - grouped.low)


def test_the_interval_of_tau_covers_the_truth_nearly_as_often_as_it_says() -> None:
    """Two normal variables of correlation r have tau = 2/pi asin(r); 100 data sets of 40 words, 95 % intervals."""
    generator = np.random.default_rng(0)
    truth, hits = 2 / np.pi * np.arcsin(0.6), 0
    for draw in range(100):
        pairs = generator.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=40)
        found = rank_agreement(pairs[:, 0], pairs[:, 1], draws=120, seed=draw)
        hits += found.low <= truth <= found.high
    # A 95 % interval misses 5 of 100; a percentile interval on 40 words is a little short, and 87 is 3.7 sigma below 95.
    assert 87 <= hits <= 100


def test_the_interval_of_a_mean_covers_the_truth_nearly_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    found = [mean_estimate(generator.normal(2.0, 1.0, size=50), draws=400, seed=draw) for draw in range(300)]
    hits = sum(part.low <= 2.0 <= part.high for part in found)
    assert 0.90 <= hits / 300 <= 0.985


def test_a_mean_and_its_interval_by_hand() -> None:
    found = mean_estimate(np.array([0.0, 4.0]), draws=4000)
    # Two draws of two values: the mean is 0, 2, 4 with probability 1/4, 1/2, 1/4.
    assert (found.value, found.low, found.high, found.n) == (2.0, 0.0, 4.0, 2)
    assert str(found) == "2.000 [0.000, 4.000], n=2"


@pytest.mark.parametrize("values", [[1.0], [], [1.0, float("nan")], [1.0, float("inf")]])
def test_a_mean_of_too_few_or_missing_values_is_refused(values: list[float]) -> None:
    with pytest.raises(LensError, match=r"at least 2 finite values; \d given"):
        mean_estimate(np.array(values))


def test_the_cluster_bootstrap_draws_whole_groups() -> None:
    seen: list[np.ndarray] = []

    def statistic(rows: np.ndarray) -> float:
        seen.append(rows)
        return float(len(rows))

    bootstrap_interval(statistic, np.array(["a", "b", "a", "c"]), draws=30)
    for rows in seen:
        assert (rows == 0).sum() == (rows == 2).sum()
        counts = [(rows == 0).sum(), (rows == 1).sum(), (rows == 3).sum()]
        assert sum(counts) == 3


def test_each_context_interval_is_students() -> None:
    generator = np.random.default_rng(0)
    groups = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    values = generator.normal(size=8)
    found = mean_intervals(values, groups)
    for group in (0, 1):
        wanted = stats.ttest_1samp(values[groups == group], 0).confidence_interval()
        assert (found.low[group], found.high[group]) == pytest.approx((wanted.low, wanted.high))
    assert found.n.tolist() == [3, 5]


def test_the_spread_of_a_single_context_is_unknown() -> None:
    found = mean_intervals(np.array([1.0, 2.0, 7.0]), np.array([0, 0, 1]))
    assert found.value[1] == 7 and np.isnan([found.low[1], found.high[1]]).all()


@pytest.mark.parametrize(
    ("values", "groups"), [([1.0, 2.0], [0, 2]), ([1.0, float("nan")], [0, 0]), ([1.0, 2.0, 3.0], [0, 0])]
)
def test_means_of_nothing_are_refused(values: list[float], groups: list[int]) -> None:
    with pytest.raises(LensError, match="finite values, one group number for each, and no group without a value"):
        mean_intervals(np.array(values), np.array(groups))


def test_a_difference_from_itself_is_nothing() -> None:
    found = tau_difference(TABLE_9[:, 1], TABLE_9[:, 1], TABLE_9[:, 0])
    assert (found.value, found.low, found.high, found.n) == (0, 0, 0, 30)


def test_a_difference_is_that_of_the_two_taus() -> None:
    generator = np.random.default_rng(2)
    learned, twin, given, shuffled = generator.normal(size=(4, 60))
    tau = lambda one, other: stats.kendalltau(one, other).statistic  # noqa: E731
    assert tau_difference(learned, twin, given).value == pytest.approx(tau(learned, given) - tau(twin, given))
    control = tau_difference(learned, twin, given, second_given=shuffled).value
    assert control == pytest.approx(tau(learned, given) - tau(twin, shuffled))


def test_measurements_that_err_alike_have_a_narrow_difference() -> None:
    generator = np.random.default_rng(3)
    given, noise = generator.normal(size=(2, 200))
    first = given + noise
    alike, apart = first + 0.1 * generator.normal(size=200), given + generator.normal(size=200)
    widths = [found.high - found.low for found in (tau_difference(first, other, given) for other in (alike, apart))]
    assert widths[0] < 0.5 * widths[1]


def test_a_twin_that_learned_nothing_is_beaten_and_one_that_learned_as_much_is_not() -> None:
    generator = np.random.default_rng(4)
    given = generator.normal(size=150)
    learned, same, nothing = (
        given + generator.normal(size=150),
        given + generator.normal(size=150),
        generator.normal(size=150),
    )
    assert tau_difference(learned, nothing, given).low > 0
    even = tau_difference(learned, same, given)
    assert even.low < 0 < even.high


def test_a_constant_twin_is_refused() -> None:
    with pytest.raises(LensError, match="learned values are constant"):
        tau_difference(np.arange(5.0), np.ones(5), np.arange(5.0))


def test_auc_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    is_positive = generator.random(80) < 0.4
    score = np.round(generator.normal(size=80) + is_positive, 1)
    found = auc(score, is_positive)
    assert found.value == pytest.approx(roc_auc_score(is_positive, score))
    assert found.low < found.value < found.high
    assert found.n == 80


def test_an_item_and_its_copy_count_once_in_the_interval_of_auc() -> None:
    generator = np.random.default_rng(1)
    is_positive = np.tile([True, False], 40)
    score = generator.normal(size=80) + is_positive
    twice = [np.repeat(part, 2) for part in (score, is_positive, np.arange(80))]
    assert auc(*twice).low == pytest.approx(auc(score, is_positive).low, abs=1e-9)


@pytest.mark.parametrize(
    ("score", "is_positive", "message"),
    [
        ([1.0, 2.0], [True, True], "both classes; 2 of 2 are positive"),
        ([1.0, float("nan")], [True, False], "1 scores values are not finite"),
        ([1.0], [True, False], "aligned: 1 scores, 2 labels"),
    ],
)
def test_scores_that_separate_nothing_are_refused(score: list[float], is_positive: list[bool], message: str) -> None:
    with pytest.raises(LensError, match=message):
        auc(np.array(score), np.array(is_positive))


def test_words_of_a_single_lemma_are_refused() -> None:
    with pytest.raises(LensError, match="All 4 words belong to one group"):
        rank_agreement(np.arange(4.0), np.arange(4.0), ["love"] * 4)


@pytest.mark.parametrize(
    ("learned", "given", "message"),
    [
        ([1, 2, 3], [1, 2], "aligned: 3 learned, 2 given"),
        ([1, 2], [1, 2], "at least 3 words; 2 given"),
        ([1, 1, 1], [1, 2, 3], r"learned values are constant \(1\): no order"),
        ([1, 2, 3], [2, 2, 2], r"given values are constant \(2\): no order"),
        ([1, float("nan"), 3], [1, 2, 3], "1 learned values are not finite"),
        ([1, 2, 3], [1, float("inf"), float("nan")], "2 given values are not finite"),
    ],
)
def test_values_that_have_no_order_to_compare_are_refused(learned: list, given: list, message: str) -> None:
    with pytest.raises(LensError, match=message):
        rank_agreement(np.array(learned), np.array(given))


def test_groups_that_do_not_align_are_refused() -> None:
    with pytest.raises(LensError, match="3 learned, 3 given, 2 groups"):
        rank_agreement(np.arange(3.0), np.arange(3.0), ["a", "b"])
    with pytest.raises(LensError, match="3 learned, 3 given, 2 groups"):
        balanced_sign_accuracy(np.arange(3.0), np.array([1, -1, 1]), ["a", "b"])


def test_sign_accuracy_weighs_both_polarities_equally() -> None:
    learned, given = np.array([1.0, 1, 1, 1, -1, 1]), np.array([1.0, 1, 1, 1, -1, -1])
    assert balanced_sign_accuracy(learned, given, draws=50).value == (1.0 + 0.5) / 2


def test_a_learned_value_of_zero_has_no_sign() -> None:
    assert balanced_sign_accuracy(np.array([0.0, -1.0]), np.array([1.0, -1.0]), draws=20).value == 0.5


def test_words_rated_zero_are_not_counted() -> None:
    found = balanced_sign_accuracy(np.array([1.0, -1.0, 5.0]), np.array([1.0, -1.0, 0.0]), draws=20)
    assert (found.value, found.n) == (1.0, 2)


@pytest.mark.parametrize(
    ("learned", "given", "message"),
    [
        ([1.0, 2.0], [3.0, 1.0], "both polarities; 2 positive, 0 negative"),
        ([1.0, float("nan")], [1.0, -1.0], "1 learned values are not finite"),
        ([1.0, 2.0, 3.0], [1.0, -1.0], "aligned: 3 learned, 2 given"),
    ],
)
def test_signs_that_cannot_be_compared_are_refused(learned: list[float], given: list[float], message: str) -> None:
    with pytest.raises(LensError, match=message):
        balanced_sign_accuracy(np.array(learned), np.array(given))


def test_discoveries_follow_benjamini_and_hochberg_by_hand() -> None:
    # Thresholds i/5 * 0.1 = 0.02, 0.04, 0.06, 0.08, 0.1: the fourth smallest (0.07) passes, so all four do.
    p_values = np.array([0.07, 0.01, 0.9, 0.065, 0.03])
    assert discoveries(p_values, 0.1).tolist() == [True, True, False, True, True]


def test_discoveries_equal_scipys_adjusted_p_values() -> None:
    p_values = np.random.default_rng(0).uniform(size=50) ** 3
    for fdr in (0.01, 0.1, 0.3):
        wanted = stats.false_discovery_control(p_values) <= fdr
        assert discoveries(p_values, fdr).tolist() == wanted.tolist()


def test_uniform_p_values_give_few_discoveries() -> None:
    generator = np.random.default_rng(3)
    any_found = [discoveries(generator.uniform(size=40), 0.1).any() for _ in range(200)]
    # Under the null the chance of any discovery is at most the rate itself, 0.1; sigma is 0.021.
    assert np.mean(any_found) < 0.17


def test_nothing_tested_is_nothing_discovered() -> None:
    assert discoveries(np.array([]), 0.1).tolist() == []


def test_holm_by_hand() -> None:
    # Times 4, 3, 2, 1 in order, never falling, at most 1.
    assert holm(np.array([0.5, 0.01, 0.04, 0.02])) == pytest.approx([0.5, 0.04, 0.08, 0.06])
    assert holm(np.array([0.9, 0.6])) == pytest.approx([1, 1])
    assert holm(np.array([])).tolist() == []


def test_holm_keeps_the_chance_of_any_false_claim() -> None:
    generator = np.random.default_rng(0)
    any_claim = [(holm(generator.uniform(size=20)) <= 0.05).any() for _ in range(400)]
    # At most 5 %; the standard error is 1.1 %.
    assert np.mean(any_claim) < 0.085


@pytest.mark.parametrize("fdr", [0.0, 1.0, -0.1, float("nan")])
def test_an_impossible_discovery_rate_is_refused(fdr: float) -> None:
    with pytest.raises(LensError, match="fdr must lie between 0 and 1"):
        discoveries(np.array([0.5]), fdr)


def test_p_values_that_are_no_probabilities_are_refused() -> None:
    for wrong in (float("nan"), 1.5, -0.1):
        with pytest.raises(LensError, match="1 of 2 p-values"):
            discoveries(np.array([0.5, wrong]), 0.1)
        with pytest.raises(LensError, match="1 of 2 p-values"):
            holm(np.array([0.5, wrong]))


def test_an_estimate_reads_as_a_sentence() -> None:
    assert str(Estimate(0.5, 0.25, 0.75, 12)) == "0.500 [0.250, 0.750], n=12"
    assert str(agreement(TABLE_2)).startswith("tau-b 0.585 [")
