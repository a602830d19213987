"""attribute: every scalar, preference pairs, reward models, the examples of a feature, and what is refused."""

import copy
import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.core.store import Store
from lfp_lens.parts.dictionaries import as_dictionary
from lfp_lens.parts.heads import with_head
from lfp_lens.parts.interventions import feature_edit, intervening
from lfp_lens.parts.preferences import Preference, Preferences
from lfp_lens.parts.reward_models import RewardModel, load_reward_model
from lfp_lens.parts.scalars import Predictions, Scalar, log_p
from lfp_lens.results import Effects, SAESet
from lfp_lens.stages.attribute import attribute
from tests.stages.planted import N_FEATURES, SITE, planted_saes, speaking_pair
from tests.tiny import tiny_model, tiny_texts, tiny_tokenizer

TEXTS = tiny_texts(16)
PROMPTS = ("the film was", "we saw the river and it was", "this", "the actor and the scene in the film")


def pairs(n: int = 16) -> list[Preference]:
    """Preference pairs over four prompts, with continuations of different lengths."""
    words = [text.split(" ") for text in tiny_texts(2 * n, seed=3)]
    return [
        Preference(PROMPTS[at % 4], "".join(f" {word}" for word in words[2 * at][: 2 + at % 4]),
                   "".join(f" {word}" for word in words[2 * at + 1][:3]))
        for at in range(n)
    ]  # fmt: skip


def given(model: Any, saes: SAESet, texts: Any = TEXTS, **changes: Any) -> Effects:
    return attribute(model, saes, texts, **({"joint": 0, "confirm": N_FEATURES} | changes))


def log_p_by_hand(text: str, without: int | None, saes: SAESet) -> float:
    """log p of a text's tokens, with a feature removed."""
    pair = speaking_pair()
    edits = {} if without is None else {SITE: feature_edit(as_dictionary(saes.one(SITE)), [without])}
    ids_BS = torch.tensor([[0, *pair.tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad(), intervening(pair.tuned_hf, edits, begin=0):
        logits_SV = pair.tuned_hf(ids_BS).logits[0].double().log_softmax(-1)
    return float(sum(logits_SV[at, token] for at, token in enumerate(ids_BS[0, 1:].tolist())))


# --- scalars ---


def test_an_effect_on_the_implicit_reward_is_one_on_log_p() -> None:
    """The base's part is no function of the tuned model's features."""
    saes = planted_saes(speaking_pair())
    implicit, plain = (given(speaking_pair(), saes, scalar=name) for name in ("implicit_reward", "log_p"))
    assert implicit.screen == pytest.approx(plain.screen, abs=1e-6)
    assert implicit.exact == pytest.approx(plain.exact, abs=1e-5)
    wanted = [log_p_by_hand(text, None, saes) - log_p_by_hand(text, 3, saes) for text in TEXTS[1::2]]
    assert plain.text_effects[3] == pytest.approx(wanted, abs=1e-4)
    assert implicit.examples.before != pytest.approx(plain.examples.before, abs=1e-3), "its value needs the base"
    assert (implicit.scalar, implicit.per) == ("implicit_reward", "token")


def test_a_users_function_and_a_scalar_object_are_scalars() -> None:
    saes = planted_saes(speaking_pair())

    def confidence(seen: Predictions) -> torch.Tensor:
        return seen.logits_NV.softmax(-1).amax(-1)

    found = given(speaking_pair(), saes, scalar=confidence)
    assert found.scalar == "confidence" and np.abs(found.exact).max() > 0
    own = given(speaking_pair(), saes, scalar=Scalar(log_p))
    assert own.exact == pytest.approx(given(speaking_pair(), saes, scalar="log_p").exact, abs=1e-7)


def test_a_scalar_that_gives_no_number_per_place_is_refused() -> None:
    with pytest.raises(LensError, match="a number per place is expected"):
        given(speaking_pair(), planted_saes(speaking_pair()), scalar=lambda seen: seen.logits_NV.mean())


def test_a_function_is_part_of_the_key_of_a_stored_result(tmp_path: Any) -> None:
    saes, store = planted_saes(speaking_pair()), Store(tmp_path)

    def first(seen: Predictions) -> torch.Tensor:
        return seen.logits_NV[:, 40]

    def second(seen: Predictions) -> torch.Tensor:
        return seen.logits_NV[:, 41]

    found = [given(speaking_pair(), saes, scalar=one, store=store, confirm=1) for one in (first, second, first)]
    assert not np.array_equal(found[0].screen, found[1].screen)
    assert np.array_equal(found[0].screen, found[2].screen)
    assert len(list((tmp_path).glob("attribute-*"))) == 2
    assert found[2].top_examples(SITE, int(found[2].index[np.nanargmax(found[2].exact)]))[0].tokens


# --- preference pairs ---


@cache
def preferred() -> Effects:
    return given(speaking_pair(), planted_saes(speaking_pair()), pairs(), scalar="log_p_difference")


def test_the_effect_on_a_pair_is_that_on_chosen_minus_rejected() -> None:
    saes, found = planted_saes(speaking_pair()), preferred()
    # Prompts alternate, and so do the halves.
    second = [pair for pair in pairs() if pair.prompt in PROMPTS[1::2]]
    assert (found.per, found.n_texts) == ("pair", len(second))
    wanted = []
    for pair in second:
        chosen, rejected = (
            log_p_by_hand(pair.prompt + side, None, saes) - log_p_by_hand(pair.prompt + side, 5, saes)
            for side in (pair.chosen, pair.rejected)
        )
        wanted.append(chosen - rejected)
    assert found.text_effects[5] == pytest.approx(wanted, abs=2e-4)
    assert found.exact[5] == pytest.approx(np.mean(wanted), abs=1e-4)


def test_pairs_of_one_prompt_are_never_on_both_halves() -> None:
    one = [pair._replace(prompt=PROMPTS[0]) for pair in pairs()]
    with pytest.raises(LensError, match="1 different prompts: too few"):
        given(speaking_pair(), planted_saes(speaking_pair()), one, scalar="log_p_difference")


def test_preferences_give_their_test_pairs() -> None:
    held = Preferences("own", (), tuple(pairs()), {})
    found = given(speaking_pair(), planted_saes(speaking_pair()), held, scalar="log_p_difference")
    assert np.array_equal(found.exact, preferred().exact)


def test_a_long_prompt_loses_its_beginning_in_both_texts_alike() -> None:
    long = [pair._replace(prompt=" ".join([pair.prompt] * 6)) for pair in pairs()]
    found = given(speaking_pair(), planted_saes(speaking_pair()), long, scalar="log_p_difference", max_tokens=12)
    assert found.n_tokens <= 12 * 2 * found.n_texts
    spelled = found.examples.tokens
    assert all(len(tokens) <= 12 and tokens[0] == "<|endoftext|>" for tokens in spelled)
    first = found.top_examples(SITE, 0)
    chosen, rejected = first[0], first[1]
    assert (chosen.role, rejected.role, chosen.text) == ("chosen", "rejected", rejected.text)
    pair = long[chosen.text]
    assert "".join(chosen.tokens).replace("Ġ", " ").endswith(pair.chosen)
    assert "".join(rejected.tokens).replace("Ġ", " ").endswith(pair.rejected)
    same = min(len(chosen.tokens), len(rejected.tokens)) - 6
    assert chosen.tokens[:same] == rejected.tokens[:same], "what is left of the prompt is the same"


# --- reward models ---


@cache
def judge() -> RewardModel:
    model = with_head(tiny_model())
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(1, 16, generator=torch.Generator().manual_seed(1)))
    return load_reward_model(model, tokenizer=tiny_tokenizer())


def own_saes() -> SAESet:
    return dataclasses.replace(planted_saes(speaking_pair()), pair=judge().fingerprint)


def reward_by_hand(text: str, without: int | None) -> float:
    edits = {} if without is None else {SITE: feature_edit(as_dictionary(own_saes().one(SITE)), [without])}
    with intervening(judge().hf, edits, begin=0):
        return float(judge()([text])[0])


def test_the_reward_of_a_reward_model_is_a_scalar_per_text() -> None:
    found = given(judge(), own_saes(), scalar="reward_head")
    wanted = [reward_by_hand(text, None) - reward_by_hand(text, 7) for text in TEXTS[1::2]]
    assert found.text_effects[7] == pytest.approx(wanted, abs=1e-4)
    assert found.exact[7] == pytest.approx(np.mean(wanted), abs=1e-4)
    assert found.per == "text"
    one = found.top_examples(SITE, 7, sign=int(np.sign(found.exact[7])), k=1)[0]
    assert one.before == pytest.approx(reward_by_hand(TEXTS[one.text], None), abs=1e-4)
    assert one.after == pytest.approx(reward_by_hand(TEXTS[one.text], 7), abs=1e-4)


def test_the_reward_difference_of_preference_pairs_is_a_scalar_per_pair() -> None:
    found = given(judge(), own_saes(), pairs(), scalar="reward_head")
    second = [pair for pair in pairs() if pair.prompt in PROMPTS[1::2]]
    wanted = [
        sum(
            sign * (reward_by_hand(prompt + side, None) - reward_by_hand(prompt + side, 2))
            for sign, side in ((1, chosen), (-1, rejected))
        )
        for prompt, chosen, rejected in second
    ]
    assert found.per == "pair"
    assert found.text_effects[2] == pytest.approx(wanted, abs=1e-4)


def test_a_text_that_is_too_long_for_a_reward_model_loses_its_beginning() -> None:
    found = given(judge(), own_saes(), scalar="reward_head", max_tokens=6)
    assert max(map(len, found.examples.tokens)) <= 6
    assert all(tokens[-1] == "." for tokens in found.examples.tokens), "the reward is read at the end"


# --- examples ---


def test_examples_tell_what_a_feature_does_token_by_token() -> None:
    found = given(speaking_pair(), planted_saes(speaking_pair()))
    per_text = found.text_effects[0]
    shown = found.top_examples(SITE, 0, k=3)
    order = np.argsort([-effect / len(tokens_of(TEXTS[2 * at + 1])) for at, effect in enumerate(per_text)])
    assert [one.text for one in shown] == [2 * int(at) + 1 for at in order[:3]] or per_text[order[0]] <= 0
    for one in shown:
        assert list(one.tokens) == tokens_of(TEXTS[one.text])
        assert one.activations.shape == one.effects.shape == (len(one.tokens),)
        assert one.effects.sum() == pytest.approx(per_text[one.text // 2], abs=1e-4)
        assert one.before - one.after == pytest.approx(one.effects.mean(), abs=1e-6)
        assert one.activations[0] == 0, "no feature is read at the beginning of a text"
    assert "lens-tokens" in shown._repr_html_()


def test_examples_by_activation_begin_with_the_strongest() -> None:
    found = given(speaking_pair(), planted_saes(speaking_pair()))
    peaks = [one.activations.max() for one in found.top_examples(SITE, 4, by="activation").examples]
    assert peaks == sorted(peaks, reverse=True) and len(peaks) == 5
    features = found.examples.activations[found.examples.feature == 4]
    assert peaks[0] == pytest.approx(np.nanmax(features))


def test_examples_of_the_other_sign_are_texts_whose_scalar_rises() -> None:
    found = given(speaking_pair(), planted_saes(speaking_pair(), sign=-1))
    shown = found.top_examples(SITE, 0, sign=-1)
    assert len(shown) and all(one.after > one.before for one in shown.examples)


def test_sign_consistency_and_firing_are_counted_over_texts() -> None:
    found = given(speaking_pair(), planted_saes(speaking_pair()))
    assert (found.fires_in[found.fires_in >= 0] <= found.n_texts).all()
    for row in range(3):
        effects = found.text_effects[row]
        same = np.sign(effects[effects != 0]) == np.sign(found.exact[row])
        assert found.consistency[row] == pytest.approx(same.mean())
    assert found.consistency[0] == 1.0, "the planted feature raises the scalar of every text"
    assert sum(found.histogram(SITE, 0).data[0].y) == (found.text_effects[0] != 0).sum()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((SITE, 0, {"by": "effekt"}), "Unknown order of examples 'effekt'"),
        ((SITE, 99, {}), "There is no feature 99"),
        (("blocks.9.hook_mlp_out", 0, {}), "There is no feature 0 at blocks.9"),
    ],
)
def test_examples_of_what_is_not_there_are_refused(asked: tuple[str, int, dict[str, Any]], message: str) -> None:
    found = given(speaking_pair(), planted_saes(speaking_pair()))
    with pytest.raises(LensError, match=message):
        found.top_examples(asked[0], asked[1], **asked[2])


def test_a_feature_that_was_not_confirmed_has_no_examples_and_no_histogram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfp_lens.stages.attribute.verb.N_CHECKED", 1)
    found = given(speaking_pair(), planted_saes(speaking_pair()), confirm=1)
    lacking = int(np.flatnonzero(np.isnan(found.exact))[0])
    for ask in (found.top_examples, found.histogram):
        with pytest.raises(LensError, match="not confirmed"):
            ask(SITE, lacking)


def tokens_of(text: str) -> list[str]:
    tokenizer = tiny_tokenizer()
    return tokenizer.convert_ids_to_tokens([0, *tokenizer(text)["input_ids"]])


# --- rankings ---


def test_the_screen_may_rank_all_features_where_it_was_confirmed() -> None:
    found = given(speaking_pair(), planted_saes(speaking_pair()), confirm=2)
    ranked = found.top(N_FEATURES, by="screen")
    assert ranked.features == tuple((SITE, int(row)) for row in np.argsort(-found.screen) if found.screen[row] > 0)
    with pytest.raises(LensError, match="Unknown ranking 'scren'"):
        found.top(3, by="scren")


# --- bad input ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": copy.deepcopy}, "attribute examines a pair"),
        ({"scalar": "log_p_difference"}, "give preference pairs"),
        ({"scalar": "reward_head"}, "'reward_head' is that of a reward model"),
        ({"scalar": 3}, "A scalar is a name"),
        ({"confirm": 0}, "confirm is a whole number of at least 1; 0 given"),
        ({"joint": -1}, "joint is a whole number of at least 0; -1 given"),
        ({"steps": 0}, "steps is a whole number of at least 1; 0 given"),
        ({"texts": "one text"}, "one string given"),
        ({"texts": pairs()[:7]}, "splits its pairs in two and needs at least 8; 7 given"),
        ({"texts": [*TEXTS, 3]}, "it holds a int"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(changes: dict[str, Any], message: str) -> None:
    asked = {"model": speaking_pair(), "texts": TEXTS} | changes
    with pytest.raises(LensError, match=message):
        given(asked.pop("model"), planted_saes(speaking_pair()), asked.pop("texts"), **asked)


def test_a_reward_model_refuses_what_is_not_its_own() -> None:
    with pytest.raises(LensError, match="These SAEs are not this reward model's"):
        given(judge(), planted_saes(speaking_pair()), scalar="reward_head")
    with pytest.raises(LensError, match="A reward model has the scalar 'reward_head'; 'expected_valence'"):
        given(judge(), own_saes())
    [record] = [sae for sae in own_saes().saes if sae.side == "tuned"]
    both = SAESet((dataclasses.replace(record, side="difference"),), judge().fingerprint, (), {})
    with pytest.raises(LensError, match="reads two models; a reward model is one"):
        given(judge(), both, scalar="reward_head", side="difference")
    with pytest.raises(LensError, match="max_tokens must be at least 2"):
        given(judge(), own_saes(), scalar="reward_head", max_tokens=1)
