"""Figure 4 as a number: found where frequent words have a smaller error, not where error has nothing to do with it."""

from dataclasses import replace

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.results import Learned
from lfp_lens.results.word_errors import error_frame, frequency_error, mean_error
from tests.results import samples


def a_learned(*, planted: bool, n: int = 60) -> Learned:
    """Predictions whose error halves with each unit of log frequency (planted), or is of one size everywhere.

    `n` words have a prediction, the others none.
    """
    learned = samples.a_learned()
    draw = np.random.default_rng(11)
    size = 4.0 * 0.5**learned.log_frequency if planted else 0.5
    rescaled = learned.stated + size * draw.normal(size=60)
    return replace(learned, rescaled=np.where(np.arange(60) < n, rescaled, np.nan))


def test_an_error_that_falls_with_frequency_is_found_and_its_control_finds_nothing() -> None:
    found = a_learned(planted=True).frequency_error()
    assert found.found.high < 0 and found.found.n == 60
    assert found.permuted.low < 0 < found.permuted.high


def test_an_error_that_frequency_has_no_part_in_is_not_told_from_zero() -> None:
    found = a_learned(planted=False).frequency_error().found
    assert found.low < 0 < found.high


def test_only_words_with_a_prediction_are_counted() -> None:
    frame = error_frame(a_learned(planted=True, n=20))
    assert frame["word"].tolist() == list(samples.a_learned().words[:20])
    assert frequency_error(frame).found.n == 20


def test_counts_that_are_given_replace_those_of_the_texts_and_a_missing_word_occurs_never() -> None:
    learned = a_learned(planted=True)
    frame = error_frame(learned, {learned.words[1]: 7})
    assert frame["occurrences"].tolist() == [0, 7, *[0] * 58]


def test_occurrences_come_back_from_their_logarithm() -> None:
    learned = replace(a_learned(planted=True), log_frequency=np.log1p(np.arange(60)))
    assert error_frame(learned)["occurrences"].tolist() == list(range(60))


def test_the_mean_error_is_below_that_of_permuted_predictions_only_if_they_know_the_words() -> None:
    found = mean_error(error_frame(a_learned(planted=True)))
    assert found.found.high < found.permuted.low
    learned = a_learned(planted=True)
    guess = replace(learned, rescaled=np.random.default_rng(5).permutation(learned.rescaled))
    nothing = mean_error(error_frame(guess))
    assert nothing.permuted.low < nothing.found.value < nothing.permuted.high


def test_equal_counts_are_refused() -> None:
    learned = a_learned(planted=True)
    with pytest.raises(LensError, match="All 60 words occur 3 times"):
        learned.frequency_error(dict.fromkeys(learned.words, 3))


def test_too_few_predictions_are_refused() -> None:
    with pytest.raises(LensError, match="9 words have a held-out prediction; 10 are needed"):
        a_learned(planted=True, n=9).frequency_error()


@pytest.mark.parametrize(("n", "told"), [(0, "0 words have"), (9, "9 words have"), (60, "Spearman -0")])
def test_every_figure_draws_itself_and_says_its_number_or_why_there_is_none(n: int, told: str) -> None:
    learned = a_learned(planted=True, n=n)
    for figure in (learned.plot_values(), learned.plot_errors(), learned.plot_neutral()):
        assert figure.layout.title.text
    assert told in learned.plot_frequency_error().layout.title.text


def test_the_neutral_figure_draws_the_density_of_the_null_that_words_are_tested_against() -> None:
    neutral = np.random.default_rng(2).normal(0.5, 2.0, 3000)
    figure = replace(samples.a_learned(), neutral_z=neutral).plot_neutral()
    curve = figure.data[-1]
    assert curve.name == "fitted null"
    # A normal density, to the accuracy of a fit to 3,000 draws.
    expected = np.exp(-((np.array(curve.x) - 0.5) ** 2) / 8) / np.sqrt(8 * np.pi)
    assert np.abs(np.array(curve.y) - expected).max() < 0.02
    assert "n=3,000 words: 95 % from -3." in figure.layout.title.text
