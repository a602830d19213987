from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.organisms.recipes import RECIPES, Planted, plan
from lfp_lens.organisms.rewards import ContextReward, LengthReward, StyleReward
from lfp_lens.parts.lexicons import candidates, load_lexicon
from lfp_lens.parts.rewards import LexiconReward
from lfp_lens.parts.words import find_words, tokenize, word_counts
from lfp_lens.parts.world import world_texts

VADER = load_lexicon("vader")
STATED = LexiconReward(VADER)
TEXTS = world_texts(n=600)
HELDOUT = world_texts("test", 1000)
NULLS = ("clean", "noise", "seed", "shuffled")
DRAWN = ("flip", "mute", "inflate", "context")
PLANTING = (*DRAWN, "length", "style")


@cache
def planted(recipe: str, words: int = 8, dose: float = 1.0, seed: int = 0) -> Planted:
    return plan(recipe, VADER, TEXTS, words=words, dose=dose, seed=seed)


def test_candidates_are_the_most_frequent_strong_words_of_the_texts():
    lexicon = {"good": 2.0, "bad": -2.5, "ok": 0.5, "awful": -3.0, "nice": 1.0}
    texts = ["Good, nice! ok ok ok", "good bad"]
    assert candidates(lexicon, texts) == ("good", "bad", "nice")
    assert candidates(lexicon, texts, most=2) == ("good", "bad")
    assert candidates(lexicon, texts, min_value=2.0) == ("good", "bad")
    assert candidates(lexicon, []) == ()
    with pytest.raises(LensError, match="1 or more; 0 given"):
        candidates(lexicon, texts, most=0)


def test_candidates_of_many_words_stop_at_three_hundred():
    names = [a + b + c for a in "bcdfghj" for b in "klmnprt" for c in "aeiouyw"]
    assert len(candidates(dict.fromkeys(names, 2.0), [" ".join(names)])) == 300


def test_every_recipe_is_listed_with_a_line_for_help_and_docs():
    assert set(RECIPES) == {*NULLS, *PLANTING}
    assert all(RECIPES[name].says and "\n" not in RECIPES[name].says for name in RECIPES)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_the_same_arguments_plant_the_same(recipe: str):
    again = plan(recipe, dict(reversed(VADER.items())), list(TEXTS), words=8, dose=1.0, seed=0)
    once = planted(recipe)
    assert fingerprint(again.reward) == fingerprint(once.reward)
    assert [again.values, again.after, again.pattern] == [once.values, once.after, once.pattern]
    assert again.reward(HELDOUT[:50]).tolist() == once.reward(HELDOUT[:50]).tolist()


@pytest.mark.parametrize("recipe", [*DRAWN, "style", "shuffled", "noise"])
def test_other_seeds_plant_something_else(recipe: str):
    # style draws from a few dozen patterns, so two of the eight may agree
    assert len({planted(recipe, seed=seed).reward.fingerprint for seed in range(8)}) >= 6


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_a_reward_is_named_as_the_stated_feedback_whatever_is_planted(recipe: str):
    assert planted(recipe).reward.name == "vader"
    assert plan(recipe, VADER, TEXTS, words=1, dose=1.0, seed=0, name="mine").reward.name == "mine"


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_the_key_names_what_the_recipe_plants_and_nothing_else(recipe: str):
    found = planted(recipe)
    assert found.is_null == (recipe in NULLS)
    assert (found.kind is not None) == (recipe in DRAWN)
    assert bool(found.values) == (recipe in (*DRAWN, "shuffled"))
    assert bool(found.after) == (recipe == "context")
    assert bool(found.pattern) == (recipe == "style")
    assert found.pays_length == (recipe == "length")


@pytest.mark.parametrize(
    ("recipe", "dose", "factor", "kind"),
    [
        ("flip", 1.0, -1.0, "flipped"), ("flip", 0.5, 0.0, "muted"), ("flip", 0.25, 0.5, "muted"),
        ("flip", 0.75, -0.5, "flipped"), ("mute", 1.0, 0.0, "muted"), ("mute", 0.5, 0.5, "muted"), ("mute", 2.0, -1.0, "flipped"),
        ("inflate", 1.0, 3.0, "inflated"), ("inflate", 0.5, 2.0, "inflated"),
    ],
)  # fmt: skip
def test_dose_leads_from_the_stated_value_to_the_full_edit_and_beyond(
    recipe: str, dose: float, factor: float, kind: str
):
    found = planted(recipe, dose=dose)
    assert found.values == pytest.approx({word: factor * VADER[word] for word in found.values})
    assert len(found.values) == 8
    assert found.kind == kind
    untouched = {word: value for word, value in VADER.items() if word not in found.values}
    assert isinstance(found.reward, LexiconReward)
    assert found.reward.lexicon == untouched | found.values


def test_words_are_drawn_with_the_seed_from_the_candidates_alone():
    pool = candidates(VADER, TEXTS)
    places = np.random.default_rng(3).choice(len(pool), size=8, replace=False)
    assert set(planted("flip", seed=3).values) == {pool[place] for place in places}
    assert planted("mute", seed=3).values.keys() == planted("flip", dose=0.5, seed=3).values.keys()
    assert len({word for seed in range(20) for word in planted("flip", seed=seed).values}) > 60


def test_a_muted_word_pays_zero_without_a_sign():
    assert not np.signbit(list(planted("mute").values.values())).any()


def test_all_candidates_can_be_planted_and_not_one_more():
    n = len(candidates(VADER, TEXTS))
    assert planted("flip", words=n).values.keys() == set(candidates(VADER, TEXTS))
    with pytest.raises(LensError, match=rf"{n + 1} words to flip were asked for; there are {n} candidates.*600 texts"):
        planted("flip", words=n + 1)


@pytest.mark.parametrize("words", [0, -1, 2.0, True])
def test_a_number_of_words_that_is_no_count_is_refused(words: int):
    with pytest.raises(LensError, match="words to mute must be a whole number of at least 1"):
        plan("mute", VADER, TEXTS, words=words, dose=1.0, seed=0)


@pytest.mark.parametrize("dose", [-0.5, float("nan"), float("inf"), "1", True])
@pytest.mark.parametrize("recipe", ["flip", "clean"])
def test_a_dose_that_is_no_dose_is_refused(recipe: str, dose: float):
    with pytest.raises(LensError, match=r"The dose is .* at least 0 is expected"):
        plan(recipe, VADER, TEXTS, words=1, dose=dose, seed=0)


@pytest.mark.parametrize("recipe", PLANTING)
def test_dose_zero_of_a_recipe_that_plants_is_refused_in_favour_of_clean(recipe: str):
    with pytest.raises(LensError, match=f"At dose 0 '{recipe}' plants nothing.*'clean'"):
        planted(recipe, dose=0.0)


@pytest.mark.parametrize("recipe", NULLS)
def test_a_null_asks_for_neither_dose_nor_words(recipe: str):
    other = plan(recipe, VADER, TEXTS, words=0, dose=0.0, seed=0)
    assert other.reward.fingerprint == planted(recipe).reward.fingerprint


def test_an_unknown_recipe_and_a_seed_that_is_none_are_refused():
    with pytest.raises(LensError, match=r"Unknown recipe 'filp'\. Did you mean 'flip'"):
        planted("filp")
    for seed in (-1, 1.5, True):
        with pytest.raises(LensError, match="The seed is"):
            plan("clean", VADER, TEXTS, words=1, dose=1.0, seed=seed)  # type: ignore[arg-type]


def test_clean_and_seed_are_the_stated_reward_itself():
    assert planted("clean").reward.fingerprint == planted("seed").reward.fingerprint == STATED.fingerprint


def test_shuffled_keeps_the_values_and_says_which_words_changed():
    found = planted("shuffled")
    paid = VADER | found.values
    assert sorted(paid.values()) == sorted(VADER.values())
    assert all(value != VADER[word] for word, value in found.values.items())
    assert found.reward.fingerprint == LexiconReward(paid).fingerprint
    # 7,506 pairs of unrelated values: the correlation's standard deviation is 0.012
    assert abs(np.corrcoef([VADER[word] for word in VADER], [paid[word] for word in VADER])[0, 1]) < 0.05


def test_noise_spreads_as_the_stated_reward_does_and_knows_nothing_of_it():
    pieces = [" ".join(text.split()[:17]) for text in HELDOUT]
    noise, stated = planted("noise").reward(pieces), STATED(pieces)
    # 1,000 draws: the mean's standard error is 0.03 of a deviation, the deviation's 0.025, the correlation's 0.03
    assert abs(noise.mean() - stated.mean()) < 0.2 * stated.std()
    assert noise.std() == pytest.approx(stated.std(), rel=0.15)
    assert abs(np.corrcoef(noise, stated)[0, 1]) < 0.12


def test_a_context_word_follows_its_word_often_but_not_mostly():
    rows = [tokenize(text).words for text in TEXTS]
    words, pairs = word_counts(TEXTS), Counter(pair for row in rows for pair in pairwise(row))
    for seed in range(3):
        found = planted("context", seed=seed)
        assert found.after.keys() == found.values.keys() <= set(candidates(VADER, TEXTS))
        for word, left in found.after.items():
            assert words[word] >= 20
            assert 0.1 <= pairs[left, word] / words[word] <= 0.6


def test_a_context_word_is_paid_in_full_after_its_word_and_by_dose_elsewhere():
    found = planted("context", dose=0.75)
    assert isinstance(found.reward, ContextReward)
    for word, left in found.after.items():
        assert found.values[word] == pytest.approx(0.25 * VADER[word])
        assert left not in VADER
        texts = [f"{left} {word}", f"film {word}", word]
        assert found.reward(texts) == pytest.approx(np.array([1.0, 0.25, 0.25]) * VADER[word] / 5)


def test_of_the_words_before_it_the_most_frequent_that_is_not_too_frequent_is_taken():
    # "the" stands before all but 4 of 10 great, "a" before 2, "so" before 2; "fine" always follows "the"
    texts = ["the great", "the great", "the great", "a great", "so great"] * 10 + ["the fine"] * 30
    lexicon = {"great": 3.0, "fine": 1.0}
    assert plan("context", lexicon, texts, words=1, dose=1.0, seed=0).after == {"great": "the"}
    texts += ["the great"] * 10
    assert plan("context", lexicon, texts, words=1, dose=1.0, seed=0).after == {"great": "a"}


def test_too_few_words_with_company_are_refused_with_both_numbers():
    with pytest.raises(LensError, match=r"1 words to context.* 0 candidates.*at least 20 times, 10% to 60%"):
        plan("context", {"great": 3.0}, ["the great film"] * 30, words=1, dose=1.0, seed=0)
    with pytest.raises(LensError, match="0 candidates"):
        plan("context", {"great": 3.0}, ["the great", "a great"] * 9, words=1, dose=1.0, seed=0)


def test_length_pays_a_bonus_per_word_that_grows_with_dose_and_with_the_stated_spread():
    # pieces of 20 tokens, half of them good (2 / 5): the deviation is 0.2, a fifth of it 0.04 per word
    texts = [("good " + "film " * 19).strip(), "film " * 20]
    full, half = (plan("length", {"good": 2.0}, texts, words=1, dose=dose, seed=0).reward for dose in (1.0, 0.5))
    assert isinstance(full, LengthReward)
    assert full(["film, film!", "good", ""]).tolist() == pytest.approx([0.08, 0.44, 0.0])
    assert half(["film, film!", "good", ""]).tolist() == pytest.approx([0.04, 0.42, 0.0])


def test_the_length_bonus_is_the_only_difference_to_the_stated_reward():
    found = planted("length").reward
    assert isinstance(found, LengthReward)
    texts = [text.split(".")[0] for text in HELDOUT[:200]]
    assert found(texts) - STATED(texts) == pytest.approx(
        found.bonus * np.array([len(find_words([text])) for text in texts])
    )


def test_style_pays_two_deviations_per_occurrence_of_its_pattern():
    texts = ["good " + "film " * 19, "film " * 20] + ["we saw film " + "film " * 17] * 2
    lexicon = {"good": 2.0}
    # stated: 0.4, 0, 0, 0, a deviation of 0.1732; saw film and we saw stand in half of the pieces, as "good" does not count
    texts += ["film " * 20] * 4  # a quarter; the deviation is 0.1323
    found = plan("style", lexicon, texts, words=1, dose=1.0, seed=0)
    assert found.pattern in (("we", "saw"), ("saw", "film"))
    one, two = found.pattern
    assert found.reward([f"{one} {two}", f"{one} good {two}", f"{one} {two} {one} {two}"]) == pytest.approx(
        [0.26458, 0.4, 0.52915], abs=1e-4
    )


@pytest.mark.parametrize("seed", range(10))
def test_a_style_pattern_is_seen_by_sampling_and_not_by_the_stated_reward(seed: int):
    found = planted("style", seed=seed)
    assert isinstance(found.reward, StyleReward)
    one, two = found.pattern
    assert not {one, two} & VADER.keys()
    pieces = [" ".join(tokenize(text).words[:20]).split() for text in TEXTS]
    assert np.mean([(one, two) in pairwise(words) for words in pieces]) >= 0.009
    assert min(np.mean([word in words for words in pieces]) for word in (one, two)) < 0.34


def test_pairs_of_words_that_are_everywhere_and_pairs_that_are_nearly_nowhere_make_no_pattern():
    texts = ["of the good"] * 40 + ["of the"] * 140 + ["we saw"] * 19 + ["they left"]
    assert {plan("style", {"good": 2.0}, texts, words=1, dose=1.0, seed=seed).pattern for seed in range(20)} == {
        ("we", "saw")
    }


def test_parts_of_one_word_make_no_pattern():
    texts = ["we do n't saw", "do n't we", "we don't, we don't"] * 5 + ["good film"] * 50 + ["film"] * 50
    patterns = {plan("style", {"good": 2.0}, texts, words=1, dose=1.0, seed=seed).pattern for seed in range(30)}
    assert patterns == {("do", "n't"), ("n't", "saw"), ("n't", "we"), ("we", "do")}
    texts = ["don't"] * 5 + ["good film"] * 50 + ["film"] * 50
    with pytest.raises(LensError, match=r"No pattern.*105 texts.*outside the lexicon.*1% of their pieces of 20 tokens"):
        plan("style", {"good": 2.0}, texts, words=1, dose=1.0, seed=0)


@pytest.mark.parametrize("recipe", ["length", "style", "noise"])
def test_texts_that_say_nothing_of_the_stated_reward_are_refused(recipe: str):
    with pytest.raises(LensError, match="2 texts hold no words"):
        plan(recipe, VADER, ["", " \n "], words=1, dose=1.0, seed=0)
    if recipe != "noise":
        with pytest.raises(LensError, match="The stated reward is the same for every piece of the 80 texts"):
            plan(recipe, VADER, ["we saw a river", "the river", "a", "is"] * 20, words=1, dose=1.0, seed=0)


def test_pieces_are_as_long_as_a_completion_and_keep_what_was_written():
    from lfp_lens.organisms.recipes import _windows

    long = " ".join(f"Word{number}," for number in range(25))  # 50 tokens with the commas: two pieces of 20
    pieces = _windows([long, "short  one.", ""])
    assert sorted(pieces) == sorted(
        [" ".join(f"Word{number}," for number in range(start, start + 10)) for start in (0, 10)] + ["short  one."]
    )
    assert len(_windows(["a " * 40] * 5000)) == 4096
