import pickle
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lfp_lens.organisms.rewards import ContextReward, LengthReward, NoiseReward, StyleReward
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.rewards import CLIP, LexiconReward, Reward, make_reward
from lfp_lens.parts.world import world_texts

SMALL = LexiconReward({"good": 2.0, "bad": -2.5}, name="mine")
MAKERS: dict[str, Callable[[LexiconReward], Any]] = {
    "context": lambda stated: ContextReward(stated, {"good": "very"}, 0.5),
    "length": lambda stated: LengthReward(stated, 0.1),
    "style": lambda stated: StyleReward(stated, ("the", "film"), 1.0),
    "noise": lambda stated: NoiseReward(np.linspace(-1, 1, 64), 0, stated.name),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_planted_reward_is_named_as_the_stated_one_and_survives_the_way_to_another_process(make: Any):
    reward, texts = make(SMALL), ["the film was very good", "bad", "", "good"]
    sent = pickle.loads(pickle.dumps(reward))
    assert isinstance(reward, Reward)
    assert reward.name == sent.name == make_reward(reward).name == "mine"
    assert reward.fingerprint == sent.fingerprint
    assert reward(texts).dtype == float
    assert reward([]).shape == (0,)
    assert make_reward(sent)(texts).tolist() == reward(texts).tolist()


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_company_and_order_of_texts_change_no_reward(make: Any):
    reward, texts = make(SMALL), ["the film was very good", "bad", "", "good film", "bad"]
    assert reward(texts).tolist() == [reward([text])[0] for text in texts]
    assert reward(texts[::-1]).tolist() == reward(texts).tolist()[::-1]


@pytest.mark.parametrize(
    "others",
    [
        (MAKERS["context"](SMALL), ContextReward(SMALL, {"good": "so"}, 0.5), ContextReward(SMALL, {"good": "very"}, 0.4)),
        (MAKERS["length"](SMALL), LengthReward(SMALL, 0.2)),
        (MAKERS["style"](SMALL), StyleReward(SMALL, ("a", "film"), 1.0), StyleReward(SMALL, ("the", "film"), 2.0)),
        (MAKERS["noise"](SMALL), NoiseReward(np.linspace(-1, 1, 64), 1), NoiseReward(np.linspace(-1, 2, 64), 0)),
        (SMALL, *(make(SMALL) for make in MAKERS.values())),
        [make(LexiconReward({"good": 2.0})) for make in MAKERS.values()] + [make(SMALL) for make in MAKERS.values()][:3],
    ],
)  # fmt: skip
def test_whatever_changes_a_value_changes_the_fingerprint(others: list[Reward]):
    assert len({reward.fingerprint for reward in others}) == len(others)


def test_a_word_is_paid_in_full_after_its_word_and_by_the_factor_elsewhere():
    # good is 2 / 5 in full, 1 / 5 at half; bad is not planted
    texts = ["very good", "Very  GOOD", "good", "so good", "very, good", "very bad", "very good good very bad"]
    assert MAKERS["context"](SMALL)(texts).tolist() == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.2, -0.5, 0.4 + 0.2 - 0.5])


def test_a_context_reward_that_pays_all_places_alike_is_a_lexicon_reward():
    texts = world_texts(n=200)
    vader = LexiconReward(load_lexicon("vader"))
    after = dict.fromkeys(vader.lexicon, "the")
    assert ContextReward(vader, after, 1.0)(texts) == pytest.approx(vader(texts))
    assert ContextReward(vader, {}, 0.0)(texts) == pytest.approx(vader(texts))


def test_length_pays_words_and_neither_punctuation_nor_white_space():
    texts = ["A good film", "film ! ... \n\n ?", "do n't", ""]
    assert MAKERS["length"](SMALL)(texts).tolist() == pytest.approx([0.4 + 0.3, 0.1, 0.2, 0.0])


def test_style_pays_every_occurrence_of_the_pattern_and_none_that_is_broken():
    texts = ["The film! the film", "the good film", "film the", "the, film", "the film is good"]
    assert MAKERS["style"](SMALL)(texts).tolist() == pytest.approx([2.0, 0.4, 0.0, 0.0, 1.4])


@pytest.mark.parametrize("make", list(MAKERS.values())[:3], ids=list(MAKERS)[:3])
def test_a_planted_reward_is_clipped_as_the_stated_one_is(make: Any):
    assert make(SMALL)(["very good the film " * 200]).tolist() == [CLIP]
    # one word without a blank, so that length pays 0.1 for it
    assert make(LexiconReward({"bad": -500.0}))(["bad"])[0] == pytest.approx(-CLIP, abs=0.11)


def test_noise_is_another_draw_for_nearly_every_changed_character_and_every_seed():
    values = np.random.default_rng(0).normal(size=500)
    reward, texts = NoiseReward(values, 0), [f"{number} a good film" for number in range(300)]
    given = reward(texts)
    assert set(given) <= set(values)
    # of 300 draws from 500 values 0.6 are the same by chance
    assert (reward([f"{text}." for text in texts]) == given).sum() <= 5
    assert (NoiseReward(values, 1)(texts) == given).sum() <= 5
    assert len(set(given)) > 200


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_scoring_a_batch_is_a_small_cost_beside_a_training_step(make: Any):
    reward, texts = make(LexiconReward(load_lexicon("vader"))), world_texts(n=500)
    reward(texts)
    started = time.process_time()
    reward(texts)
    # 0.03 s when measured; a rollout of 128 takes over a second
    assert time.process_time() - started < 0.5
