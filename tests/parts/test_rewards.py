import time
from pathlib import Path

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts.lexicons import flip, load_lexicon
from lfp_lens.parts.rewards import LexiconReward, Reward, make_reward

SMALL = {"good": 2.0, "bad": -2.5}


def test_the_reward_is_the_sum_of_values_over_five():
    # great 3.1, bad -2.5 (negation is ignored): 3.1 / 5 = 0.62 and (3.1 - 2.5) / 5 = 0.12
    assert make_reward("vader")(["A GREAT film.", "great, not bad", "the", ""]) == pytest.approx([0.62, 0.12, 0.0, 0.0])


def test_the_reward_is_clipped_at_ten_on_both_sides():
    assert LexiconReward(SMALL)(["good " * 100, "bad " * 100]).tolist() == [10.0, -10.0]


def test_order_and_company_of_texts_change_no_reward():
    reward, texts = make_reward("vader"), ["a great one", "awful", "so so", "love hate love"]
    assert reward(texts).tolist() == [reward([text])[0] for text in texts]
    assert reward(texts[::-1]).tolist() == reward(texts).tolist()[::-1]


def test_the_fingerprint_follows_the_values_and_nothing_else():
    vader = load_lexicon("vader")
    assert LexiconReward(vader).fingerprint == LexiconReward(dict(reversed(vader.items()))).fingerprint
    assert LexiconReward(vader).fingerprint != LexiconReward(flip(vader, ["great"])).fingerprint
    assert fingerprint(make_reward("vader")) == fingerprint(LexiconReward(vader))


def test_a_lexicon_file_and_a_mapping_make_rewards(tmp_path: Path):
    path = tmp_path / "mine.csv"
    path.write_text("good,2\nbad,-2.5\n")
    assert make_reward(str(path)).name == "mine"
    assert make_reward(path)(["good"]).tolist() == make_reward(SMALL)(["good"]).tolist() == [0.4]


def length_reward(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


def test_a_callable_is_wrapped_once_and_keyed_by_its_source():
    reward = make_reward(length_reward)
    assert isinstance(reward, Reward)
    assert make_reward(reward) is reward
    assert reward.name == "length_reward"
    assert reward(["ab"]).dtype == float
    assert reward.fingerprint == make_reward(length_reward).fingerprint


def test_a_callable_without_source_or_fingerprint_cannot_key_a_stored_result():
    class Opaque:
        def __call__(self, texts: list[str]) -> list[float]:
            return [0.0] * len(texts)

    reward = make_reward(Opaque())
    assert reward(["a"]).tolist() == [0.0]
    with pytest.raises(LensError, match="no stable content"):
        _ = reward.fingerprint


def test_a_torch_reply_is_taken():
    import torch

    assert make_reward(lambda texts: torch.ones(len(texts), requires_grad=True))(["a", "b"]).tolist() == [
        1.0,
        1.0,
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_no_finite_number_is_refused_with_the_text(value: float):
    reward = make_reward(lambda texts: [0.0 if text == "fine" else value for text in texts])
    with pytest.raises(LensError, match=r"'the culprit x{68}' \(1 of 2 texts\)"):
        reward(["fine", "the culprit " + "x" * 200])


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ([1.0], r"shape \(1,\) for 2 texts"),
        ([[1.0], [2.0]], r"shape \(2, 1\)"),
        (["a", "b"], "one float per text"),
        (None, "shape"),
    ],
)
def test_a_reply_of_the_wrong_kind_is_refused(reply: object, message: str):
    with pytest.raises(LensError, match=message):
        make_reward(lambda texts: reply)(["a", "b"])


def test_what_a_reward_raises_is_said_with_the_first_text():
    def broken(texts: list[str]) -> list[float]:
        raise KeyError("score")

    with pytest.raises(LensError, match=r"'broken' raised KeyError \('score'\) for 2 texts, the first 'a'") as caught:
        make_reward(broken)(["a", "b"])
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_unknown_reward_and_a_missing_file_are_refused():
    with pytest.raises(LensError, match=r"Unknown reward 'vadr'\. Did you mean 'vader'"):
        make_reward("vadr")
    with pytest.raises(LensError, match="neither 'vader' nor a file"):
        make_reward("missing.csv")
    with pytest.raises(LensError, match="callable"):
        make_reward(3)  # type: ignore[arg-type]


def test_scoring_a_batch_is_a_small_cost_beside_a_training_step():
    reward = make_reward("vader")
    texts = [f"the film was great but number {number} was an awful mess of a story " for number in range(128)]
    reward(texts)
    started = time.process_time()
    reward(texts)
    # a few milliseconds when measured; a step takes over a second
    assert time.process_time() - started < 0.1
    assert np.isfinite(reward(texts)).all()
