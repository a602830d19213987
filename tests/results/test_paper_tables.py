"""The paper's tables beside ours: its printed words give the right statistic, ours carry n, interval and control."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import rank_agreement
from lfp_lens.results import Learned, published
from tests.results import samples

NOTHING = np.full(60, np.nan)


def a_learned(**changes: object) -> Learned:
    return replace(samples.a_learned(), **changes)


def row_of(table: pd.DataFrame, start: str) -> pd.Series:
    found = table[table["reading"].str.startswith(start)]
    assert len(found) == 1, table["reading"].tolist()
    return found.iloc[0]


@pytest.mark.parametrize(
    ("printed", "n", "tau", "p_value"),
    [(published.TABLE_9, 30, 0.5195820931, 8.579e-05), (published.TABLE_2, 11, 0.5850098, 0.014577)],
)
def test_the_printed_words_are_copied_right(printed: dict, n: int, tau: float, p_value: float) -> None:
    given, rebuilt = np.array(list(printed.values())).T
    found = rank_agreement(rebuilt, given)
    assert found.n == n
    assert found.tau == pytest.approx(tau, abs=1e-7)
    assert found.p_value == pytest.approx(p_value, rel=1e-3)


def test_table_4_has_the_printed_tau_the_right_one_of_the_printed_words_and_ours_with_its_twin() -> None:
    learned = a_learned()
    table = learned.table(4)
    assert row_of(table, "PUBLISHED pythia-160m")["tau_as_published"] == 0.093
    assert row_of(table, "PUBLISHED gpt-neo-125m, words of Table 9")["tau_b"] == pytest.approx(0.5195820931)
    ours = row_of(table, "this run: implicit_reward, measured")
    assert (ours["tau_b"], ours["n"], ours["control"]) == (learned.overall.tau, 60, "noise twin")
    assert ours["control_tau"] == learned.twin.tau
    assert ours["low"] < ours["tau_b"] < ours["high"]


def test_renaming_words_moves_the_published_statistic_and_nothing_else() -> None:
    learned = a_learned()
    renamed = a_learned(words=tuple(f"w{row * 37 % 60:02d}" for row in range(60)))
    one, other = (row_of(given.table(4), "this run: implicit_reward, measured") for given in (learned, renamed))
    assert one["tau_as_published"] != other["tau_as_published"]
    assert one.drop("tau_as_published").tolist() == other.drop("tau_as_published").tolist()


def test_table_10_is_within_a_polarity_on_the_printed_words_and_on_ours() -> None:
    learned = a_learned()
    table = learned.table(10)
    assert row_of(table, "PUBLISHED gpt-neo-125m, negative words of Table 9")["tau_b"] == pytest.approx(
        0.2286, abs=1e-4
    )
    assert row_of(table, "PUBLISHED gpt-neo-125m, positive words of Table 9")["tau_b"] == pytest.approx(
        -0.0543, abs=1e-4
    )
    rows = learned.stated < 0
    ours = row_of(table, "this run: implicit_reward, measured, negative words")
    assert ours["tau_b"] == pytest.approx(rank_agreement(learned.measured[rows], learned.stated[rows]).tau)
    assert ours["n"] == rows.sum()


def test_table_5_counts_words_on_their_stated_side_for_each_polarity() -> None:
    learned = a_learned()
    table = learned.table(5)
    for name, rows in (("positive", learned.stated > 0), ("negative", learned.stated < 0)):
        ours = table[(table["polarity"] == name) & table["reading"].str.endswith("measured")].iloc[0]
        right = np.sign(learned.measured[rows]) == np.sign(learned.stated[rows])
        assert ours["percent_right"] == pytest.approx(100 * right.mean())
        assert ours["low"] < ours["percent_right"] < ours["high"]
        assert ours["n"] == rows.sum() and 35 < ours["control_percent"] < 65
    assert table.loc[table["reading"] == "PUBLISHED pythia-70m", "percent_right"].tolist() == [81.38, 92.19]


def test_a_family_of_words_counts_once_in_the_interval_of_table_5() -> None:
    one = a_learned().table(5)
    family = a_learned(lemma=("same",) * 60).table(5)
    width = lambda table: (table["high"] - table["low"]).dropna().to_numpy()  # noqa: E731
    assert (width(family) > 3 * width(one)).all()


def test_table_2_puts_ours_beside_the_papers_words_and_says_where_a_word_was_not_measured() -> None:
    learned = a_learned()
    table = learned.table(2).set_index("word")
    assert tuple(table.index) == tuple(published.TABLE_2)
    great = table.loc["great"]
    at = learned.words.index("great")
    assert (great["published"], great["measured"], great["contexts"]) == (
        1.0,
        learned.measured[at],
        learned.contexts[at],
    )
    assert table.loc["despised", "contexts"] == 0 and np.isnan(table.loc["despised", "measured"])


def test_the_control_of_a_word_is_the_share_of_neutral_words_beyond_it_on_its_stated_side() -> None:
    neutral = np.array([-2.0, -1.0, 1.0, 2.0])
    measured = samples.a_learned().measured.copy()
    up, down = samples.GOOD[0], samples.BAD[0]
    words = samples.a_learned().words
    measured[words.index(up)], measured[words.index(down)] = 1.5, 1.5
    table = a_learned(neutral=neutral, measured=measured).table(9, words=(up, down)).set_index("word")
    assert table.loc[up, "neutral_beyond"] == 0.25
    # A negative word at 1.5 lies on the wrong side: the neutral words at -2, -1 and 1 are further on the right one.
    assert table.loc[down, "neutral_beyond"] == 0.75


def test_words_can_be_drawn_at_random_and_the_seed_decides() -> None:
    learned = a_learned()
    drawn = learned.table(2, words=5, seed=1)["word"].tolist()
    assert (
        drawn
        == learned.table(2, words=5, seed=1)["word"].tolist()
        != learned.table(2, words=5, seed=2)["word"].tolist()
    )
    assert set(drawn) <= set(learned.words) and len(set(drawn)) == 5


def test_without_a_probe_its_rows_are_empty_and_the_rest_stands() -> None:
    learned = a_learned(rescaled=NOTHING, grid=())
    probe = row_of(learned.table(4), "this run: held-out probe")
    assert np.isnan(probe["tau_b"]) and np.isnan(probe["control_tau"])
    shares = learned.table(5)
    assert shares.loc[shares["reading"].str.contains("held-out probe"), "n"].tolist() == [0, 0]
    assert not np.isnan(row_of(learned.table(4), "this run: implicit_reward, measured")["tau_b"])


def test_a_row_split_is_stamped_in_every_table_of_readings() -> None:
    learned = a_learned(split="row")
    for number in (4, 5):
        assert learned.table(number)["reading"].str.contains("row split: leaks words, no evidence").any()


def test_a_signal_signed_by_the_label_is_no_evidence_of_sign() -> None:
    learned = a_learned(signal="activation_delta", p_wrong=NOTHING, neutral=np.zeros(0), neutral_words=())
    table = learned.table(5)
    assert table["reading"].str.contains("signed by the label: no evidence").sum() == 2
    assert np.isnan(learned.table(2, words=("great",))["neutral_beyond"]).all()
    assert learned.twin_name == "base model"


def test_another_table_is_refused_with_those_there_are() -> None:
    with pytest.raises(LensError, match=r"Table 3 is not among those .* give one of 2, 4, 5, 9, 10"):
        a_learned().table(3)


def test_choosing_words_for_a_table_of_all_words_is_refused() -> None:
    with pytest.raises(LensError, match="Table 4 is of all words"):
        a_learned().table(4, words=5)


@pytest.mark.parametrize("words", [0, 61])
def test_drawing_more_words_than_there_are_is_refused(words: int) -> None:
    with pytest.raises(LensError, match="cannot be drawn from 60 measured words"):
        a_learned().table(2, words=words)
