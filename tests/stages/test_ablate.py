"""ablate: an empty set changes nothing, the planted feature carries the reward, any kind of model is taken."""

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens import ablate as front_door
from lfp_lens.core.errors import GateError, LensError
from lfp_lens.core.store import Store
from lfp_lens.parts.checkpoints import TUNING_FILE
from lfp_lens.parts.generation import OPENINGS
from lfp_lens.results import Ablation, FeatureSet, SAESet
from lfp_lens.stages.ablate import ablate, verb
from lfp_lens.stages.ablate.cheap import matched_random_sets
from tests.stages.planted import N_FEATURES, OTHER_SITE, SITE, planted_saes, speaking_pair
from tests.tiny import NEGATIVE, POSITIVE, tiny_model, tiny_pair, tiny_texts, tiny_tokenizer

PROMPTS = [f" {' '.join(text.split()[1:4])}" for text in tiny_texts(40)]
SHORT: dict[str, Any] = {"prompts": PROMPTS, "n": 48, "max_new_tokens": 8, "controls": 3}


@cache
def saes() -> SAESet:
    return planted_saes(speaking_pair(), sites=(SITE, OTHER_SITE))


def features(*indices: int, site: str = SITE) -> FeatureSet:
    return FeatureSet(saes(), tuple((site, index) for index in indices))


def done(chosen: FeatureSet | None = None, model: Any = None, **changes: Any) -> Ablation:
    return ablate(model or speaking_pair(), chosen or features(0), **(SHORT | changes))


@pytest.fixture(scope="module")
def planted() -> Ablation:
    return done(n=128, controls=40)


# --- nothing, and the planted feature ---


def test_ablating_nothing_changes_nothing_at_all() -> None:
    found = ablate(speaking_pair(), FeatureSet(saes(), ()), **SHORT)
    assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)
    assert all(before == after for _, before, after in found.samples)
    assert found.before.value == found.after.value
    assert found.valence_difference.value == found.kl_nats == 0
    assert found.perplexity_before == found.perplexity_after
    assert found.random_differences.tolist() == [0, 0, 0]
    assert found.base_difference is not None
    assert found.base_difference.value == 0


def test_scaling_by_one_is_no_change_either() -> None:
    found = done(mode="scale", scale=1.0)
    assert found.difference.value == found.kl_nats == 0
    assert all(before == after for _, before, after in found.samples)


def test_without_the_planted_feature_the_reward_falls(planted: Ablation) -> None:
    assert planted.difference.high < 0
    assert planted.valence_difference.high < 0
    assert planted.difference.value == pytest.approx(planted.after.value - planted.before.value)
    assert planted.before.n == planted.after.n == 128
    assert planted.kl_nats > 0


def test_random_features_like_it_do_nothing_of_the_kind(planted: Ablation) -> None:
    """They write as strongly, and not into the reward."""
    assert len(planted.random_differences) == 40
    assert planted.percentile == 1.0
    assert np.abs(planted.random_differences).max() < abs(planted.valence_difference.value) / 2


def test_a_random_feature_ablated_instead_ranks_among_the_random_ones() -> None:
    found = done(features(5), controls=20)
    assert 0 < found.percentile < 1


def test_the_percentile_is_the_share_of_random_sets_that_drop_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets 1 to 4 are other features, and the set of feature 0 itself drops as much, not less."""
    sets = [{SITE: (index,)} for index in (1, 2, 3, 4, 0)]
    monkeypatch.setattr(verb, "matched_random_sets", lambda features, n, seed: sets)
    found = done()
    assert found.random_differences[4] == pytest.approx(found.valence_difference.value)
    assert found.percentile == pytest.approx(np.mean(found.random_differences > found.valence_difference.value))
    assert found.percentile in (0.8, 1.0), "equal up to rounding"


def test_the_same_seed_gives_the_same_numbers_and_another_seed_other_samples() -> None:
    one, two, three = done(), done(), done(seed=1)
    assert one.samples == two.samples
    assert one.difference.value == two.difference.value
    assert np.array_equal(one.random_differences, two.random_differences)
    assert one.samples != three.samples


def test_prompts_and_seeds_are_paired() -> None:
    """Until the edit makes a difference, before and after say the same: a weak edit leaves most samples alone."""
    weak = planted_saes(speaking_pair(), strength=0.01)
    found = ablate(speaking_pair(), FeatureSet(weak, ((SITE, 0),)), **SHORT)
    assert [prompt for prompt, _, _ in found.samples] == PROMPTS[:8]
    assert sum(before == after for _, before, after in found.samples) >= 6
    assert 0 < found.kl_nats < 1e-3


def test_reconstruction_alone_is_measured_as_a_control(planted: Ablation) -> None:
    """These SAEs reconstruct nothing, and that is seen."""
    assert planted.reconstruction_difference.n == planted.valence_difference.n
    assert planted.reconstruction_difference.value != 0


def test_the_share_of_the_gain_needs_a_gain() -> None:
    """Base and tuned earn alike here: a share of nothing is None. With a gain it is a quotient of means."""
    before, after, base = np.array([3.0, 5.0] * 50), np.array([2.0, 3.0] * 50), np.array([1.0, 1.0] * 50)
    share = verb._gain_share(before, after, base, seed=0)
    assert share is not None
    assert share.value == pytest.approx(1.5 / 3)
    assert share.low <= share.value <= share.high
    assert verb._gain_share(before, after, before, seed=0) is None
    assert verb._gain_share(before, after, None, seed=0) is None


# --- modes ---


def test_modes_differ_and_doubling_raises_what_zeroing_lowers() -> None:
    by_mode = {mode: done(mode=mode) for mode in ("zero", "mean", "resample")}
    assert by_mode["zero"].valence_difference.value < 0
    double = done(mode="scale", scale=2.0)
    assert double.valence_difference.value > 0
    assert done(mode="scale", scale=0.0).difference.value == by_mode["zero"].difference.value
    # The feature is about 1 everywhere: its mean, or another position's value, says nearly the same.
    for mode in ("mean", "resample"):
        assert by_mode[mode].mode == mode
        assert 0 < by_mode[mode].kl_nats < by_mode["zero"].kl_nats / 3


def test_resampling_repeats_with_its_seed() -> None:
    one, two = done(mode="resample"), done(mode="resample")
    assert one.samples == two.samples
    assert one.valence_difference.value == two.valence_difference.value


# --- any kind of model ---


def test_a_model_and_features_are_enough() -> None:
    found = front_door(speaking_pair(), features(0))
    assert found.before.n == 256
    assert len(found.random_differences) == 200
    assert {prompt for prompt, _, _ in found.samples} <= set(OPENINGS)
    assert found.valence_difference.high < 0
    assert "no tuning record: scored by VADER" in found.notes


def test_a_hooked_transformer_is_taken_and_reads_as_its_hugging_face_twin(planted: Ablation) -> None:
    found = done(model=speaking_pair().tuned, n=128, controls=2)
    assert found.base_difference is None
    assert found.gain_share is None
    assert found.reward_base is None
    assert "one model given: nothing to say about the base or the share of the gain" in found.notes
    assert found.difference.high < 0
    # Other samples of the same model: like numbers, not the same.
    assert found.valence_before == pytest.approx(planted.valence_before, abs=0.2)
    assert found.valence_difference.value == pytest.approx(planted.valence_difference.value, rel=0.3)


def test_on_the_same_texts_both_kinds_of_model_give_the_same_reading() -> None:
    from lfp_lens.parts.activations import Encoded
    from lfp_lens.parts.interventions import feature_edit
    from lfp_lens.parts.saes import load_sae
    from lfp_lens.stages.ablate.cheap import read

    pair = speaking_pair()
    texts = [Encoded([0, *ids], []) for ids in tiny_tokenizer()(tiny_texts(9), add_special_tokens=False)["input_ids"]]
    values = torch.randn(pair.tuned_hf.config.vocab_size, generator=torch.Generator().manual_seed(0))
    edits = {SITE: feature_edit(load_sae(saes().one(SITE)), [0])}
    one, two = (read(model, texts, values, edits, begin=0, with_kl=True) for model in (pair.tuned_hf, pair.tuned))
    for name in ("valence", "log_p", "kl", "tokens"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-4, abs=1e-4)


def test_an_empty_set_leaves_a_hooked_transformers_samples_alone() -> None:
    found = ablate(speaking_pair().tuned, FeatureSet(saes(), ()), **SHORT)
    assert all(before == after for _, before, after in found.samples)
    assert found.difference.value == 0


def saved(folder: Path, record: dict[str, Any] | None) -> Any:
    from transformers import AutoModelForCausalLM

    speaking_pair().tuned_hf.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    if record is not None:
        (folder / TUNING_FILE).write_text(json.dumps(record))
    return AutoModelForCausalLM.from_pretrained(folder)


def test_a_hugging_face_model_from_a_folder_is_taken_with_its_tuning_record(planted: Ablation, tmp_path: Path) -> None:
    found = done(model=saved(tmp_path, {"method": "ppo", "reward": "vader"}), n=128)
    assert found.reward == "vader"
    assert not any("no tuning record" in note for note in found.notes)
    assert found.base_difference is None
    assert found.difference.value == planted.difference.value, "the same model, prompts and seeds"
    # The loaded model picks another attention kernel, which rounds otherwise.
    assert found.valence_difference.value == pytest.approx(planted.valence_difference.value, rel=1e-6)


def test_a_folder_without_a_record_is_scored_by_vader_and_says_so(tmp_path: Path) -> None:
    found = done(model=saved(tmp_path, None))
    assert (found.reward, found.notes[0]) == ("vader", "no tuning record: scored by VADER")


def test_a_recorded_reward_that_the_record_cannot_hold_is_asked_for(tmp_path: Path) -> None:
    model = saved(tmp_path, {"reward": "my_words"})
    with pytest.raises(LensError, match=r"tuned on the reward 'my_words', .*: pass `reward=`"):
        done(model=model)
    assert done(model=model, reward=dict.fromkeys(POSITIVE, 1.0) | dict.fromkeys(NEGATIVE, -1.0)).reward == "lexicon"


def test_the_scope_of_the_tuning_record_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuning that scored whole texts is scored on whole texts again."""
    seen: list[str] = []

    def vader(texts: list[str]) -> np.ndarray:
        seen.extend(texts)
        return np.array([float(len(text)) for text in texts])

    monkeypatch.setitem(verb.REWARDS._known, "vader", lambda: verb.make_reward(vader))
    pair = dataclasses.replace(speaking_pair(), tuning={"reward": "vader", "scope": "text"})
    done(model=pair)
    assert all(text.startswith(tuple(PROMPTS)) for text in seen)


def test_a_pair_compares_its_base(planted: Ablation) -> None:
    assert planted.base_difference is not None
    assert planted.reward_base is not None
    assert planted.reward_base.n == 128
    assert planted.base_difference.value != planted.valence_difference.value


# --- rewards ---


def test_the_reward_given_counts(planted: Ablation) -> None:
    def great(texts: list[str]) -> list[float]:
        return [float(text.count("great")) for text in texts]

    found = done(reward=great)
    assert found.reward == "great"
    assert found.before.value * 48 == pytest.approx(round(found.before.value * 48))
    assert not any("VADER" in note for note in found.notes)


def test_a_reward_that_is_no_number_is_refused_with_its_text() -> None:
    def broken(texts: list[str]) -> list[float]:
        return [float("nan")] * len(texts)

    with pytest.raises(LensError, match="The reward 'broken' is nan for the text "):
        done(reward=broken)


def hooks(model: Any) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


@pytest.mark.parametrize("kind", ["pair", "hooked"])
def test_every_hook_is_gone_afterwards_even_if_the_reward_raises(kind: str) -> None:
    pair = speaking_pair()
    model = pair if kind == "pair" else pair.tuned
    models = [pair.tuned_hf, pair.base_hf, pair.tuned]
    before = [hooks(part) for part in models]

    def raising(texts: list[str]) -> list[float]:
        raise ZeroDivisionError("mine")

    done(model=model)
    assert [hooks(part) for part in models] == before
    with pytest.raises(LensError, match=r"raised ZeroDivisionError \(mine\)"):
        done(model=model, reward=raising)
    assert [hooks(part) for part in models] == before


def test_hooks_are_gone_when_generation_breaks_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, calls = speaking_pair(), []
    sample = verb.sample

    def breaks(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return sample(*given, **named)

    monkeypatch.setattr(verb, "sample", breaks)
    before = hooks(pair.tuned_hf)
    with pytest.raises(RuntimeError, match="out of memory"):
        done()
    assert hooks(pair.tuned_hf) == before


# --- matched controls ---


def test_random_sets_have_the_same_sizes_at_the_same_sites_and_none_of_the_features() -> None:
    chosen = FeatureSet(saes(), ((SITE, 0), (SITE, 1), (OTHER_SITE, 2)))
    sets = matched_random_sets(chosen, 50, seed=0)
    assert len(sets) == 50
    for drawn in sets:
        assert set(drawn) == {SITE, OTHER_SITE}
        assert len(set(drawn[SITE])) == 2
        assert not set(drawn[SITE]) & {0, 1}
        assert drawn[OTHER_SITE] != (2,)
    assert len({drawn[SITE] for drawn in sets}) > 20
    assert matched_random_sets(chosen, 5, seed=0) == sets[:5]


def test_random_sets_match_firing_rate_and_decoder_norm() -> None:
    """Features 1 to 11 fire as feature 0 does; the rest hardly ever. Only the first eleven are drawn."""
    set_of = planted_saes(speaking_pair())
    for record in set_of.saes:
        record.firing_rate[12:] = 0.001
    chosen = FeatureSet(set_of, ((SITE, 0),))
    drawn = {sets[SITE][0] for sets in matched_random_sets(chosen, 300, seed=0)}
    assert len(drawn) == 10, "the ten nearest"
    assert drawn <= set(range(1, 12))


def test_a_set_that_takes_the_whole_site_is_compared_with_itself() -> None:
    chosen = FeatureSet(saes(), tuple((SITE, index) for index in range(N_FEATURES)))
    (drawn,) = matched_random_sets(chosen, 1, seed=0)
    assert set(drawn[SITE]) <= set(range(N_FEATURES))


# --- refusals ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "zeros"}, "Unknown ablation mode 'zeros'. Did you mean 'zero'?"),
        ({"scale": 2.0}, "scale=2.0 has no meaning in mode 'zero'; use mode='scale'."),
        ({"n": 1}, "At least 2 completions are needed for an interval; n=1."),
        ({"reward": "vadr"}, "Unknown reward 'vadr'. Did you mean 'vader'?"),
        ({"reward": {}}, "The lexicon mapping is empty"),
        ({"prompts": []}, "prompts must be a list of texts to continue"),
        ({"prompts": "The film"}, "prompts must be a list of texts to continue"),
        ({"max_new_tokens": 95}, "does not fit the model's context of 96 tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"prompts": [" ".join(PROMPTS)]}, "does not fit the model's context"),
        ({"model": "a name"}, "ablate works on a pair (lfp.load_pair), a HookedTransformer with its tokenizer"),
    ],
)
def test_what_cannot_be_ablated_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LensError) as caught:
        done(**changes)
    assert message in str(caught.value)


def test_features_of_another_pair_or_of_another_models_shape_are_refused() -> None:
    with pytest.raises(LensError, match="These features belong to the SAEs of another pair"):
        done(model=tiny_pair())
    with pytest.raises(LensError, match="reads 16 dimensions, the model has 32: another model"):
        done(model=tiny_pair(width=32).tuned)
    with pytest.raises(LensError, match="does not exist: the model has layers 0 to 1"):
        done(model=tiny_pair(layers=2).tuned)


def test_a_model_in_memory_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(LensError, match="made in memory and has no tokenizer beside it: load it with"):
        done(model=tiny_model())


def test_a_model_that_writes_no_lexicon_words_is_refused_with_the_reason() -> None:
    with pytest.raises(GateError, match=r"different lexicon words occur in the \d+ texts; 10 are needed"):
        done(n=2, max_new_tokens=2, prompts=[" the film"])


def test_an_ablation_is_kept_in_the_store_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    first = done(store=store)
    monkeypatch.setattr(verb, "_ablate", None)
    again = done(store=store)
    assert again.samples == first.samples
    assert again.features.features == first.features.features
    with pytest.raises(TypeError):
        done(store=store, seed=1)
