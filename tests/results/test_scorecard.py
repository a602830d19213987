"""A scorecard adds up what can be checked by hand, counts no refused organism, and says where the tool goes blind."""

from pathlib import Path

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import read_record, write_record
from lfp_lens.core.stats import Estimate
from lfp_lens.results import PlantedWords, Score, Scorecard, score_told
from lfp_lens.results.score_tables import at_largest_dose, share_of, two_way_mean
from tests.results.samples import a_null, a_score, a_scorecard, planted_words
from tests.results.test_round_trip import assert_same

NO_WORDS = planted_words("", [], [])
NAN = float("nan")


def a_card(*scores: Score, words: PlantedWords = NO_WORDS, fdr: float = 0.1) -> Scorecard:
    return Scorecard(scores, words, fdr)


def joined(*parts: PlantedWords) -> PlantedWords:
    """Put the planted words of several organisms one below the other."""
    names = list(vars(parts[0]))
    columns = {name: [getattr(part, name) for part in parts] for name in names}
    return PlantedWords(**{
        name: np.concatenate(column) if isinstance(column[0], np.ndarray) else sum(column, ())
        for name, column in columns.items()
    })  # fmt: skip


# One organism


@pytest.mark.parametrize(
    ("planted", "found", "false", "expected"),
    [
        (10, 6, 2, (0.6, 0.75, 0.25)),
        (10, 0, 0, (0.0, NAN, 0.0)),
        (0, 0, 3, (NAN, 0.0, 1.0)),
        (0, 0, 0, (NAN, NAN, 0.0)),
        (10, None, None, (NAN, NAN, NAN)),
    ],
)
def test_recall_precision_and_false_share_of_one_organism(
    planted: int, found: int | None, false: int | None, expected: tuple[float, ...]
) -> None:
    one = a_score(n_planted=planted, found=found, false=false)
    np.testing.assert_equal((one.recall, one.precision, one.false_share), expected)


# The interval over organisms and tunings


def test_the_two_way_interval_is_that_of_a_plain_loop_over_organisms_and_their_tunings() -> None:
    draw, means = np.random.default_rng(5), []
    values = [draw.uniform(0.7, 1, size) for size in (3, 2, 1, 4, 3)]
    for _ in range(8_000):
        organisms = [values[pick] for pick in draw.integers(5, size=5)]
        means.append(np.mean([draw.choice(tunings, size=len(tunings)).mean() for tunings in organisms]))
    found = two_way_mean(values, draws=8_000)
    assert found.value == pytest.approx(np.mean([tunings.mean() for tunings in values]))
    # A quantile of 8,000 draws whose spread is 0.04 has a standard error of 0.0012; two of them are compared.
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=0.005)


def test_the_two_way_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    draw, held = np.random.default_rng(0), 0
    for run in range(300):
        found = two_way_mean([draw.normal() + draw.normal(size=3) for _ in range(12)], draws=300, seed=run)
        held += found.low <= 0 <= found.high
    # 0.95 within four standard errors of 300 runs, 0.013 each, less what twelve organisms cost.
    assert 0.88 <= held / 300 <= 0.99


def test_one_tuning_of_one_organism_has_a_mean_and_no_interval() -> None:
    assert_same(two_way_mean([np.array([0.9])]), Estimate(0.9, NAN, NAN, 1))
    assert_same(two_way_mean([np.array([NAN]), np.array([])]), Estimate(NAN, NAN, NAN, 0))
    assert np.isfinite(two_way_mean([np.array([0.9, 0.8])]).low)


def test_the_same_seed_gives_the_same_summary() -> None:
    card = a_card(a_score(), a_score("flip-1", auroc_tunings=np.array([0.7, 0.8, 0.9])))
    assert card.summary(seed=1).equals(card.summary(seed=1))
    assert card.summary(seed=1)["auroc_tuning_low"][0] != card.summary(seed=2)["auroc_tuning_low"][0]


# What organisms add up to


def test_a_summary_averages_organisms_and_pools_words() -> None:
    other = a_score(
        "flip-1", auroc=0.85, auroc_tunings=np.array([0.8]), unsigned=0.6, on_clean=NAN, found=0, false=0, n_planted=20,
        gain=None, share=Estimate(0.3, 0.2, 0.4, 9), percentile=0.9,
    )  # fmt: skip
    (row,) = a_card(a_score(), other).summary().to_dict("records")
    assert (row["organisms"], row["refused"], row["tunings"]) == (2, 0, 4)
    assert row["auroc"] == pytest.approx(0.9) and row["auroc_tuning"] == pytest.approx(0.85)
    assert row["unsigned"] == pytest.approx(0.7) and row["on_clean"] == 0.5
    assert (row["found"], row["planted"], row["recall"]) == (6, 30, 0.2)
    assert (row["precision"], row["false_share"]) == (0.75, 0.125)
    assert (row["gain"], row["tau_twin"], row["share"], row["percentile"]) == (0.2, 0.01, 0.3, 0.9)
    assert np.isnan(row["rank"])


def test_scores_are_summed_up_apart_by_base_method_recipe_dose_and_reading() -> None:
    changes = [
        {},
        {"base": "b"},
        {"method": "dpo"},
        {"recipe": "mute"},
        {"dose": 0.5},
        {"signal": "s"},
        {"input": "sae"},
    ]
    card = a_card(*(a_score(f"o{row}", **change) for row, change in enumerate(changes)))
    assert card.summary()["organisms"].tolist() == [1] * 7


def test_a_reading_that_lists_no_words_has_no_recall_instead_of_none() -> None:
    card = a_card(a_score(input="sae", found=None, false=None), a_null())
    row = card.summary().to_dict("records")[0]
    assert row["planted"] == 10 and np.isnan([row["recall"], row["precision"], row["false_share"]]).all()
    assert card.blind_spots == () and len(card.nulls()) == 1


def test_a_refused_organism_changes_no_number_but_the_count_of_refusals() -> None:
    words = planted_words("flip-0", [10, 20], [True, False])
    alone = a_card(a_score(), a_null(), words=words)
    collapsed = a_score(
        "flip-9", refused="the policy collapsed", auroc=0.0, auroc_tunings=np.zeros(3), found=0, false=90
    )
    silent = a_null("clean-9", refused="nothing was learned", found=0, false=50)
    hidden = planted_words("flip-9", [1000, 2000, 3000], [True, True, True])
    both = a_card(a_score(), a_null(), collapsed, silent, words=joined(words, hidden))
    assert both.summary().drop(columns="refused").equals(alone.summary().drop(columns="refused"))
    assert both.summary()["refused"].tolist() == [1, 1]
    assert both.nulls().drop(columns="refused").equals(alone.nulls().drop(columns="refused"))
    assert both.nulls()["refused"].tolist() == [1]
    assert both.recall_by().equals(alone.recall_by())
    assert [vars(one) for one in both.reach] == [vars(one) for one in alone.reach]
    assert both.refused == {"flip-9": "the policy collapsed", "clean-9": "nothing was learned"}
    assert both.words_frame()["is_evidence"].tolist() == [True, True, False, False, False]
    assert set(both.blind_spots) - set(alone.blind_spots) == {
        "flip-9 is no evidence: the policy collapsed.", "clean-9 is no evidence: nothing was learned."
    }  # fmt: skip


def test_an_organism_that_a_gate_refused_before_it_was_read_counts_with_the_others_of_its_kind() -> None:
    unread = {
        "signal": "none", "input": "none", "refused": "too few words", "tau_stated": None, "auroc_tunings": np.zeros(0),
        "found": None, "false": None,
    }  # fmt: skip
    card = a_card(a_score(), a_score("flip-1", **unread), a_null(), a_null("clean-1", **unread))
    assert card.summary()[["signal", "organisms", "refused"]].values.tolist() == [["implicit_reward", 1, 1]] * 2
    assert card.nulls()[["signal", "runs", "refused"]].values.tolist() == [["implicit_reward", 1, 1]]
    alone = a_card(a_null("clean-1", **unread))
    assert alone.summary()[["signal", "organisms", "refused"]].values.tolist() == [["none", 0, 1]]
    assert alone.nulls()[["signal", "runs", "refused"]].values.tolist() == [["none", 0, 1]]


def test_planted_counts_the_words_that_recall_is_a_share_of() -> None:
    untested = a_score("flip-1", found=None, false=None, n_planted=50)
    card = a_card(a_score(), untested, a_null())
    row = card.summary().to_dict("records")[0]
    assert (row["organisms"], row["found"], row["planted"], row["recall"]) == (2, 6, 10, 0.6)
    assert "0.60 (6/10)" in str(card)
    assert a_card(untested).summary()["planted"].tolist() == [50]


def test_of_several_organisms_the_interval_is_over_them_and_not_over_words() -> None:
    one, other = a_score(), a_score("flip-1", found=1, false=3, n_planted=40, gain=Estimate(0.6, 0.5, 0.7, 90))
    (row,) = a_card(one, other).summary().to_dict("records")
    # Of two organisms a quarter of all draws takes one of them twice: the ends are the two themselves.
    assert (row["recall"], row["recall_low"], row["recall_high"]) == pytest.approx((7 / 50, 1 / 40, 6 / 10))
    assert [row[f"false_share{end}"] for end in ("", "_low", "_high")] == pytest.approx([0.5, 0.25, 0.75])
    assert [row[f"gain{end}"] for end in ("", "_low", "_high")] == pytest.approx([0.4, 0.2, 0.6])


def test_of_one_organism_recall_has_an_interval_over_words_and_the_means_have_none() -> None:
    for card in (a_card(a_score()), a_card(a_score(), a_score("flip-1", found=None, false=None, gain=None))):
        (row,) = card.summary().to_dict("records")
        assert (row["recall"], row["recall_low"], row["recall_high"]) == share_of(6, 10)
        assert (row["false_share"], row["gain"]) == (0.25, 0.2)
        assert np.isnan([row[f"{name}_{end}"] for name in ("false_share", "gain") for end in ("low", "high")]).all()


# Nulls


def test_a_null_recipe_of_ones_own_is_a_null_of_wrong() -> None:
    own = [a_null(f"mine-{row}", recipe="mine", false=2, rank=None) for row in range(4)]
    card = a_card(*own)
    (row,) = card.nulls().to_dict("records")
    assert (row["recipe"], row["null_of"], row["runs"], row["listing"], row["words"]) == ("mine", "wrong", 4, 4, 8)
    assert card.summary()["is_null"].tolist() == [True]
    assert score_told.told(card.summary()).empty
    (told,) = card.blind_spots
    assert "4 of 4 runs list words though nothing was planted" in told


def test_an_organism_with_planted_words_is_no_null_whatever_its_recipe_is_called() -> None:
    card = a_card(a_score(recipe="clean", found=0, false=0), a_null())
    assert card.nulls()["runs"].tolist() == [1]
    assert card.summary()["is_null"].tolist() == [False, True] and card.summary()["recall"][0] == 0
    assert score_told.told(card.summary())["planted"].tolist() == ["clean 1"]
    assert any("none of the 10 planted words is listed" in spot for spot in card.blind_spots)


def test_nulls_count_runs_that_list_any_word_with_an_exact_interval() -> None:
    runs = [a_null(f"clean-{row}", false=3 if row < 2 else 0) for row in range(20)]
    (row,) = a_card(*runs, a_null("clean-x", refused="nothing was learned"), a_score()).nulls().to_dict("records")
    assert (row["recipe"], row["runs"], row["listing"], row["words"], row["refused"]) == ("clean", 20, 2, 6, 1)
    # Clopper and Pearson for 2 of 20, as in their tables.
    assert (row["share"], row["low"], row["high"]) == pytest.approx((0.1, 0.0123, 0.3170), abs=1e-4)
    assert (row["null_of"], row["off_zero"]) == ("wrong", 20)


def test_a_shuffled_reward_is_a_null_of_tau_alone() -> None:
    off = a_null("s", recipe="shuffled", found=40, false=1, tau_stated=Estimate(-0.3, -0.4, -0.2, 90))
    on = a_null("n", recipe="noise", tau_stated=Estimate(0.01, -0.1, 0.1, 90))
    rows = {row["recipe"]: row for row in a_card(off, on).nulls().to_dict("records")}
    assert {name: (row["null_of"], row["off_zero"]) for name, row in rows.items()} == {
        "shuffled": ("tau", 1), "noise": ("wrong, tau", 0)
    }  # fmt: skip
    assert np.isnan(a_card(off).summary()["recall"][0])
    assert not any("list words" in spot for spot in a_card(off, on).blind_spots)


# Recall by frequency and dose


def test_recall_is_told_by_frequency_in_parts_of_equal_size() -> None:
    words = planted_words("flip-0", [1, 2, 3, 4, 50, 60, 70, 80], [False] * 4 + [True, True, True, False])
    frame = a_card(a_score(), words=words).recall_by("occurrences", bins=2)
    assert frame[["from", "middle", "to", "n", "found", "recall"]].values.tolist() == [
        [1, 2.5, 4, 4, 0, 0.0], [50, 65, 80, 4, 3, 0.75]
    ]  # fmt: skip
    assert frame[["low", "high"]].values.tolist() == [list(share_of(0, 4)[1:]), list(share_of(3, 4)[1:])]


def test_recall_by_dose_has_a_row_for_each_dose_and_each_recipe() -> None:
    weak = planted_words("a", [10, 20, 30], [False, True, False], dose=np.array([0.25, 0.5, 0.25]))
    other = planted_words("b", [10], [True], recipe=("mute",))
    frame = a_card(a_score("a"), a_score("b"), words=joined(weak, other)).recall_by("dose")
    assert frame[["recipe", "from", "n", "found"]].values.tolist() == [
        ["flip", 0.25, 2, 0], ["flip", 0.5, 1, 1], ["mute", 1.0, 1, 1]
    ]  # fmt: skip


def test_words_are_counted_apart_by_method_and_by_the_list_they_were_looked_for_in() -> None:
    found = planted_words("a", [10, 20], [True, True])
    dpo = planted_words("b", [10, 20, 30], [False] * 3, method=("dpo",) * 3, dose=np.full(3, 0.5))
    muted = planted_words("c", [10], [False], kind=("muted",))
    card = a_card(a_score("a"), a_score("b"), a_score("c"), words=joined(found, dpo, muted))
    groups = [["tiny-world", "ppo", "flip", "flipped"], ["tiny-world", "dpo", "flip", "flipped"],
              ["tiny-world", "ppo", "flip", "muted"]]  # fmt: skip
    frame = card.recall_by("occurrences", bins=1)
    assert frame[["base", "method", "recipe", "kind"]].values.tolist() == groups
    assert frame[["n", "found"]].values.tolist() == [[2, 2], [3, 0], [1, 0]]
    assert [[one.base, one.method, one.recipe, one.kind] for one in card.reach] == groups
    # Looked at together the largest dose would be 1 everywhere, and the words at dose 0.5 would be left out.
    assert [(one.largest_dose, one.occurrences) for one in card.reach] == [(1.0, 10), (0.5, None), (1.0, None)]
    assert [len(at_largest_dose(card.words_frame())), len(card.plot().data)] == [6, 6]


def test_a_column_that_words_cannot_be_divided_by_is_refused_with_those_that_can() -> None:
    with pytest.raises(LensError, match="Did you mean 'occurrences'"):
        a_scorecard().recall_by("occurences")
    with pytest.raises(LensError, match="bins=0 given"):
        a_scorecard().recall_by(bins=0)


def test_reach_is_where_recall_passes_one_half_and_stays_there() -> None:
    found = [False, True, False, False, True, True, True, True]
    (one,) = a_card(a_score(), words=planted_words("flip-0", [1, 2, 3, 4, 5, 6, 7, 8], found)).reach
    # Pooling the violators gives 0, 1/3 over 2 to 4, then 1: the lucky word that occurs twice moves nothing.
    assert (one.occurrences, one.least_occurrences, one.dose, one.words) == (5, 1, 1.0, 8)


def test_many_frequent_words_do_not_make_rare_ones_look_found() -> None:
    words = planted_words("flip-0", [3] * 10 + [300] * 90, [False] * 10 + [True] * 90)
    assert a_card(a_score(), words=words).reach[0].occurrences == 300


def test_reach_by_frequency_looks_at_the_largest_dose_alone() -> None:
    strong = planted_words("a", [10, 20], [True, True])
    weak = planted_words("b", [10, 20, 10, 20], [False] * 4, dose=np.full(4, 0.25))
    (one,) = a_card(a_score("a"), a_score("b"), words=joined(strong, weak)).reach
    assert (one.occurrences, one.dose, one.least_dose, one.largest_dose) == (10, 1.0, 0.25, 1.0)


def test_a_tool_that_finds_nothing_has_no_reach() -> None:
    (one,) = a_card(a_score(), words=planted_words("flip-0", [10, 20], [False, False])).reach
    assert (one.occurrences, one.dose) == (None, None)


# What is said


def test_a_tool_that_finds_everything_and_nothing_else_has_no_blind_spot() -> None:
    card = a_card(a_score(found=10, false=0), a_null(), words=planted_words("flip-0", [10, 20], [True, True]))
    assert card.blind_spots == ()
    assert "Nowhere that these organisms show" in str(card) and "Nowhere" in card._repr_html_()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"auroc_tunings": np.array([0.4, 0.5, 0.6])}, "AUROC of one tuning is not told from chance, 0.50 [0."),
        ({"auroc_tunings": np.array([0.45])}, "not told from chance, 0.45 (no interval), 1 organism, 1 tunings"),
        ({"found": 0, "false": 0}, "none of the 10 planted words is listed"),
        ({"found": 6, "false": 2}, "25% of the words it lists were not planted, more than the 10% asked for"),
        ({"recipe": "style", "n_planted": 0, "rank": 21, "found": 0, "false": 0}, "its median place is 21"),
        ({"recipe": "length", "n_planted": 0, "found": 0, "false": 0}, "nothing here could show it"),
    ],
)
def test_a_blind_spot_is_told_in_a_sentence(changes: dict, sentence: str) -> None:
    told = a_card(a_score(**({"found": 10, "false": 0} | changes)), a_null()).blind_spots
    assert len(told) == 1 and sentence in told[0]


def test_rare_words_weak_doses_and_words_never_measured_are_blind_spots() -> None:
    strong = planted_words("a", [2, 10, 20, 30], [False, False, True, True])
    weak = planted_words("b", [20, 30], [False, False], dose=np.full(2, 0.5))
    scores = (a_score("a", found=10, false=0), a_score("b", found=10, false=0, dose=0.5), a_null())
    assert a_card(*scores, words=joined(strong, weak)).blind_spots == (
        "tiny-world, flip at dose 1: of words that occur fewer than 20 times, fewer than half are found (0 of 2).",
        "tiny-world, flip: below dose 1 fewer than half of the words are found (0 of 2).",
        "tiny-world: 1 of 6 planted words were too rare to be measured.",
    )


def test_method_and_kind_are_named_only_where_they_tell_words_apart() -> None:
    ppo, dpo = planted_words("a", [10], [False]), planted_words("b", [10], [False], method=("dpo",))
    muted = planted_words("c", [10], [False], recipe=("mute",), kind=("muted",))
    inflated = planted_words("d", [10], [False], recipe=("mute",), kind=("inflated",))
    scores = (*(a_score(name, found=10, false=0) for name in "abcd"), a_null())
    told = a_card(*scores, words=joined(ppo, dpo, muted, inflated)).blind_spots
    assert [spot.split(" at dose")[0] for spot in told] == [
        "tiny-world, flip by ppo", "tiny-world, flip by dpo", "tiny-world, mute (muted)", "tiny-world, mute (inflated)"
    ]  # fmt: skip
    assert all("(0 of 1)" in spot for spot in told)
    alone = a_card(*scores, words=joined(ppo, muted)).blind_spots
    assert [spot.split(" at dose")[0] for spot in alone] == ["tiny-world, flip", "tiny-world, mute"]


def test_verbs_that_gave_no_number_are_told_once_for_each_organism() -> None:
    lacking = {"found": 10, "false": 0, "lacking": "attribute: no feature fires."}
    scores = (a_score(**lacking), a_score(input="sae", **lacking), a_score("flip-1", found=10, false=0), a_null())
    card = a_card(*scores)
    assert card.blind_spots == ("flip-0: attribute: no feature fires.",)
    assert card.summary()["organisms"][0] == 2 and card.refused == {}


def test_too_many_discoveries_on_nulls_are_said_and_as_many_as_were_asked_for_are_not() -> None:
    few = [a_null(f"clean-{row}", false=int(row < 2)) for row in range(20)]
    many = [a_null(f"clean-{row}", false=int(row < 9)) for row in range(20)]
    assert a_card(*few).blind_spots == ()
    (told,) = a_card(*many).blind_spots
    assert "9 of 20 runs list words though nothing was planted" in told


def test_tau_on_a_reward_that_teaches_nothing_of_the_stated_one_is_said() -> None:
    off = {"recipe": "noise", "tau_stated": Estimate(0.3, 0.2, 0.4, 90)}
    told = a_card(*(a_null(f"noise-{row}", **off) for row in range(4))).blind_spots
    assert len(told) == 1 and "4 of 4 runs have a tau" in told[0]


def test_without_nulls_it_is_said_that_false_discoveries_were_not_measured() -> None:
    told = a_card(a_score(found=10, false=0)).blind_spots
    assert len(told) == 1 and "was not measured" in told[0]


# Whatever it holds


@pytest.mark.parametrize(
    "card",
    [
        a_card(),
        a_card(a_null()),
        a_card(a_score(refused="the policy collapsed"), words=planted_words("flip-0", [10], [False])),
        a_card(a_score(auroc_tunings=np.array([0.9]), tunings=1), words=planted_words("flip-0", [10], [True])),
        a_scorecard(),
    ],
    ids=["nothing", "nulls only", "no evidence", "one organism of one tuning", "some of all"],
)
def test_a_scorecard_shows_itself_whatever_it_holds(card: Scorecard) -> None:
    assert "Where the tool goes blind" in str(card) and 'class="lens"' in card._repr_html_()
    assert len(card.to_frame()) == len(card.scores) and len(card.words_frame()) == len(card.words)
    assert card.plot().layout.title.text
    assert len(card.reach) <= 1 and len(card.recall_by("stated")) <= 4


def test_a_reader_sees_counts_intervals_and_refusals() -> None:
    told = str(a_scorecard())
    assert "Scorecard of 3 organisms, 1 of them no evidence" in told and "1 (+1 refused)" in told
    assert "0.60 (6/10)" in told and "0.55 (no interval)" in told and "0: 0.00 [0.00, 0.97]" in told


def test_estimates_are_spread_into_columns() -> None:
    row = a_scorecard().to_frame().iloc[0]
    assert (row["gain"], row["gain_low"], row["gain_high"]) == (0.2, 0.1, 0.3)
    assert row["auroc_tuning"] == pytest.approx(0.9) and np.isnan(row["share_high"]) and row["recall"] == 0.6


def test_hostile_words_and_reasons_are_escaped() -> None:
    shown = a_scorecard()._repr_html_()
    assert shown.count("&lt;script&gt;alert") == 2 and "<script" not in shown


def test_a_scorecard_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    write_record(a_scorecard(), tmp_path)
    assert_same(a_scorecard(), read_record(tmp_path))


def test_two_organisms_of_one_name_are_refused() -> None:
    with pytest.raises(LensError, match="'flip-0' is scored 2 times by implicit_reward"):
        a_card(a_score(), a_score())


def test_columns_that_do_not_fit_together_fail_loudly() -> None:
    with pytest.raises(AssertionError, match="differ in length"):
        planted_words("flip-0", [10, 20], [True])
    with pytest.raises(AssertionError, match="without a score"):
        a_card(a_score(), words=planted_words("elsewhere", [10], [True]))
    with pytest.raises(AssertionError, match="11 of 10"):
        a_card(a_score(found=11)).summary()
