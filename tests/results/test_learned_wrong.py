"""Words learned otherwise than stated: planted ones are found by kind, and none where values follow the ratings."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.core.stats import discoveries
from lfp_lens.core.stats.wrong import p_of_strength
from lfp_lens.results import Learned
from lfp_lens.results.tunings import Tunings
from tests.results import samples


def words(seed: int, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Values of 1.5 a point with noise of 1, half of the words rated as negative; negative words learn half as strongly."""
    draw = np.random.default_rng(seed)
    rated = draw.uniform(1, 4, n).round(1) * np.repeat([1, -1], n // 2)
    return np.where(rated > 0, 1.5, 0.75) * rated + draw.normal(size=n), rated


def strength(values: np.ndarray, rated: np.ndarray, kind: str) -> np.ndarray:
    return np.flatnonzero(discoveries(p_of_strength(values, rated, kind), 0.1))


# --- how strongly ---


@pytest.mark.parametrize(("kind", "sign"), [("muted", -1), ("inflated", 1)])
def test_planted_words_are_found_by_their_kind_on_both_sides(kind: str, sign: int) -> None:
    values, rated = words(0, n=400)
    # Few: the null is fitted to all words, and takes more than these for its own tail.
    planted = [10, 390]
    values[planted] += sign * 10 * np.sign(rated[planted])
    assert strength(values, rated, kind).tolist() == planted
    other = "inflated" if kind == "muted" else "muted"
    assert not set(strength(values, rated, other)) & set(planted)


@pytest.mark.parametrize("kind", ["muted", "inflated"])
def test_no_word_stands_out_where_values_follow_the_ratings(kind: str) -> None:
    hits, p_values = 0, []
    for seed in range(40):
        p_values.append(p_of_strength(*words(seed), kind))
        hits += discoveries(p_values[-1], 0.1).any()
    # A false discovery rate of 10 % makes 4 of 40; sigma is 2.
    assert hits <= 8
    assert stats.kstest(np.concatenate(p_values)[::20], "uniform").pvalue > 0.001


def test_muted_and_inflated_are_the_two_tails_of_one_null() -> None:
    values, rated = words(1)
    np.testing.assert_allclose(p_of_strength(values, rated, "muted") + p_of_strength(values, rated, "inflated"), 1)


def test_each_polarity_has_its_own_usual_strength_and_turning_the_sign_changes_nothing() -> None:
    values, rated = words(2)
    found = p_of_strength(values, rated, "muted")
    np.testing.assert_allclose(p_of_strength(-values, -rated, "muted"), found, rtol=1e-6)
    # Negative words learn half as strongly; they are no muted positive ones.
    assert np.median(found[rated < 0]) == pytest.approx(0.5, abs=0.15)
    stronger = np.where(rated < 0, 3 * values, values)
    np.testing.assert_allclose(p_of_strength(stronger, rated, "muted"), found, atol=1e-3)


def test_words_rated_alike_are_compared_with_their_median() -> None:
    values, rated = words(3)
    values, rated = np.sign(rated) * np.abs(np.random.default_rng(0).normal(3, 1, 200)), 2 * np.sign(rated)
    values[7] = -6
    assert strength(values, rated, "muted").tolist() == [7]


@pytest.mark.parametrize(
    ("kept", "message"), [(slice(0, 119), "19 negative words"), (slice(81, 200), "19 positive words")]
)
def test_too_few_words_of_a_polarity_say_no_usual_strength(kept: slice, message: str) -> None:
    values, rated = words(4)
    with pytest.raises(GateError, match=f"{message} were measured; 20 are needed"):
        p_of_strength(values[kept], rated[kept], "muted")


def test_an_unknown_kind_of_strength_is_refused() -> None:
    with pytest.raises(LensError, match="Unknown kind of test of strength 'flipped'"):
        p_of_strength(*words(5), "flipped")


# --- what the result lists ---


def changed(words: dict[str, float], **fields: Any) -> Learned:
    """Sixty words learned as stated but for these, whose measured value is given."""
    learned = samples.a_learned()
    draw = np.random.default_rng(0)
    measured = 2.5 * learned.stated + draw.normal(0, 0.8, 60)
    for word, value in words.items():
        measured[learned.words.index(word)] = value
    return dataclasses.replace(learned, measured=measured, z=measured, **fields)


UP, DOWN = samples.a_learned().words[2], samples.a_learned().words[40]


def test_a_word_that_moves_the_wrong_way_is_flipped_and_not_muted() -> None:
    learned = changed({UP: -7.0, DOWN: 0.2})
    assert learned.wrong()["word"].tolist() == [UP]
    assert learned.wrong(kind="muted")["word"].tolist() == [DOWN]
    assert learned.wrong(kind="inflated").empty
    assert changed({UP: 25.0}).wrong(kind="inflated")["word"].tolist() == [UP]


def test_where_all_is_learned_as_stated_every_list_is_empty() -> None:
    learned = changed({})
    for kind in ("flipped", "muted", "inflated"):
        found = learned.wrong(kind=kind)
        assert found.empty
        assert {"word", "stated", "measured", "p_wrong" if kind == "flipped" else "p_value"} <= set(found.columns)


def test_against_another_lexicon_its_values_are_what_is_stated() -> None:
    learned = changed({})
    against = dict(zip(learned.words, learned.stated)) | {UP: -2.0, DOWN: 3.0, "unheard": 1.0}
    found = learned.wrong(against=against)
    assert set(found["word"]) == {UP, DOWN}
    assert dict(zip(found["word"], found["stated"])) == {UP: -2.0, DOWN: 3.0}


def test_words_without_a_sign_in_the_other_lexicon_are_not_tested() -> None:
    learned = changed({})
    against = dict.fromkeys(learned.words[:50], 0.0) | dict.fromkeys(learned.words[:2], -2.0)
    with pytest.raises(GateError, match="shares 2 words"):
        learned.wrong(against=against)


def test_with_replicates_all_tests_are_on_z() -> None:
    plain = changed({UP: -7.0})
    tunings = Tunings(("tuned", "a"), np.stack([plain.measured] * 2), np.ones(2), (), np.zeros((0, 60)), np.zeros(0))
    z = changed({}).z.copy()
    z[plain.words.index(DOWN)] = 2.2
    several = dataclasses.replace(plain, tunings=tunings, recipe=z, z=z)
    assert several.wrong().empty, "the mean over tunings is on the stated side"
    assert DOWN in several.wrong(kind="muted", fdr=0.5)["word"].tolist()
    assert DOWN not in plain.wrong(kind="muted", fdr=0.5)["word"].tolist()


def test_unlearned_words_lie_in_the_central_eighty_percent_of_neutral_ones() -> None:
    learned = changed({UP: 0.0, DOWN: 1.0})
    assert set(learned.unlearned()["word"]) == {UP, DOWN}
    low, high = np.quantile(learned.neutral_z, (0.1, 0.9))
    edge = changed({UP: low - 0.01, DOWN: high + 0.01})
    assert edge.unlearned().empty


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "muffled"}, "Unknown kind of wrong words 'muffled'"),
        ({"against": "vader"}, "against is 'stated' or a mapping of words to values"),
        ({"against": {"unheard": 1.0}}, "shares 0 words with the 60 measured; 3 are needed"),
        ({"fdr": 0.0}, "fdr must lie between 0 and 1"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LensError, match=message):
        samples.a_learned().wrong(**options)


def test_too_few_words_of_a_polarity_in_the_other_lexicon_give_no_strength() -> None:
    learned = samples.a_learned()
    with pytest.raises(GateError, match="19 negative words were measured"):
        learned.wrong(kind="muted", against=dict(zip(learned.words[:49], learned.stated)))


# --- apart by what the words are ---


def test_agreement_is_told_apart_by_the_number_of_tokens() -> None:
    learned = samples.a_learned()
    tokens = np.tile([1, 2, 3, 7], 15)
    measured = np.where(tokens == 1, learned.stated, -learned.stated)
    found = dataclasses.replace(learned, tokens=tokens, measured=measured).by("tokens")
    assert found[["from", "to", "n"]].to_numpy().tolist() == [[1, 1, 15], [2, 2, 15], [3, 7, 30]]
    assert found["tau"].tolist() == pytest.approx([1, -1, -1])
    assert (found["low"] <= found["tau"]).all() and (found["tau"] <= found["high"]).all()


@pytest.mark.parametrize("name", ["exposure", "log_frequency"])
def test_agreement_is_told_apart_in_parts_of_equal_size(name: str) -> None:
    learned = samples.a_learned()
    order = np.random.default_rng(0).permutation(60).astype(float)
    measured = np.where(order < 20, -learned.stated, learned.stated)
    found = dataclasses.replace(learned, measured=measured, **{name: order}).by(name, bins=3)
    assert found["n"].tolist() == [20, 20, 20]
    assert found["tau"].tolist() == pytest.approx([-1, 1, 1])
    assert found["from"].tolist() == [0, 20, 40]


def test_a_part_without_an_order_has_no_number_and_stops_no_other() -> None:
    learned = samples.a_learned()
    tokens = np.where(np.arange(60) < 2, 5, 1)
    found = dataclasses.replace(learned, tokens=tokens).by("tokens")
    assert found["n"].tolist() == [58, 2]
    assert np.isfinite(found["tau"][0]) and np.isnan(found["tau"][1])


def test_an_unknown_column_to_divide_by_is_refused() -> None:
    with pytest.raises(LensError, match=r"Unknown column to divide by 'token'. Did you mean 'tokens'"):
        samples.a_learned().by("token")
