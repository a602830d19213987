"""ablate: an empty set changes nothing, the planted feature carries the reward, any kind of model is taken."""

import dataclasses
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens import ablate as front_door
from lfp_lens.core.errors import GateError, LensError
from lfp_lens.core.store import Store
from lfp_lens.parts.activations import Encoded, encode
from lfp_lens.parts.checkpoints import TUNING_FILE, weights_fingerprint
from lfp_lens.parts.dictionaries import Dictionary, as_dictionary
from lfp_lens.parts.generation import OPENINGS, Completions
from lfp_lens.parts.interventions import feature_edit
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.pair import load_pair
from lfp_lens.parts.sites import activations_at, editing, watching
from lfp_lens.parts.teacher_forced import TeacherForced
from lfp_lens.results import Ablation, FeatureSet, Labels, SAESet
from lfp_lens.results.ablate_readings import BASE_OWN, BASE_SAME, NEGATIVE, RECONSTRUCTION
from lfp_lens.results.train_sae import SAEWeights
from lfp_lens.stages.ablate import ablate, changes, measure, rates, verb
from lfp_lens.stages.ablate.edits import patched
from lfp_lens.stages.ablate.matched import matched_random_sets
from lfp_lens.stages.ablate.subject import subject_of
from tests.results import samples
from tests.stages.planted import N_FEATURES, OTHER_SITE, SITE, planted_saes, speaking_pair
from tests.tiny import NEGATIVE as NEGATIVE_WORDS
from tests.tiny import POSITIVE, tiny_model, tiny_pair, tiny_texts, tiny_tokenizer

PROMPTS = [f" {' '.join(text.split()[1:4])}" for text in tiny_texts(40)]
SHORT: dict[str, Any] = {"prompts": PROMPTS, "n": 48, "max_new_tokens": 8, "controls": 3, "floors": False}


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
    assert planted.before.n == planted.after.n == 40, "distinct prompts, which are what an interval resamples"
    assert len(planted.rewards["before"]) == len(planted.rewards["after"]) == 128
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
    monkeypatch.setattr(measure, "matched_random_sets", lambda features, n, seed: sets)
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
    share = changes.share(before - after, before - base, seed=0)
    assert share is not None
    assert share.value == pytest.approx(1.5 / 3)
    assert share.low <= share.value <= share.high
    assert changes.share(before - after, before - before, seed=0) is None


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


def test_the_three_modes_stand_together_whichever_was_chosen() -> None:
    zero, mean = done(), done(mode="mean")
    for mode in ("zero", "mean", "resample"):
        assert zero.reading(mode=mode).valence.value == mean.reading(mode=mode).valence.value
    assert (zero.reading().mode, mean.reading().mode) == ("zero", "mean")
    assert mean.valence_difference.value == mean.reading("the features", "mean").valence.value
    assert [sets.mode for sets in mean.random] == ["mean", "zero", "resample"]
    assert [len(sets.differences) for sets in done(controls=5).random] == [5, 2, 2], "the others get a quarter"
    with pytest.raises(LensError, match=r"no reading of 'the features' in mode 'scale'\. There is: the features"):
        zero.reading(mode="scale")


def test_the_dose_response_curve_runs_through_no_change_at_one() -> None:
    found = done(mode="scale", scale=3.0)
    assert [one.scale for one in found.dose] == [0, 0.5, 1, 1.5, 2, 3]
    valence = [one.valence.value for one in found.dose]
    assert valence[2] == found.dose[2].kl.value == 0
    assert valence == sorted(valence), "feature 0 lifts the reward"
    assert valence[0] == found.reading(mode="zero").valence.value
    assert valence[-1] == found.reading(mode="scale").valence.value == found.valence_difference.value


def test_resampling_repeats_with_its_seed() -> None:
    one, two = done(mode="resample"), done(mode="resample")
    assert one.samples == two.samples
    assert one.valence_difference.value == two.valence_difference.value


# --- any kind of model ---


def test_a_model_and_features_are_enough() -> None:
    found = front_door(speaking_pair(), features(0))
    assert found.before.n == 24
    assert len(found.rewards["before"]) == 256
    assert (found.n_texts, len(found.random_differences), len(found.random_rewards)) == (96, 200, 5)
    assert {prompt for prompt, _, _ in found.samples} <= set(OPENINGS)
    assert found.valence_difference.high < 0
    assert "no tuning record: scored by VADER" in found.notes
    curves = found.curves
    assert curves is not None
    own = ("the features", "tuned SAE")
    floors = ("base SAE", "untrained", "pca", "random directions", "neurons", "mean difference", "mean direction")
    assert curves.names[:2] == own
    assert set(curves.names[2:]) <= set(curves.floors) <= set(floors), (
        "where none of its features lifts it, it has no curve"
    )
    assert {"base SAE", "untrained", "random directions", "neurons"} <= set(curves.names)
    assert len(curves.tokens) == found.n_texts
    assert curves.n_select == 128, "the completions of every other prompt"
    assert "does not lie above every floor" in found.verdict, "base and tuned earn alike: there is no gain to carry"


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
    pair = speaking_pair()
    texts = [Encoded([0, *ids], []) for ids in tiny_tokenizer()(tiny_texts(9), add_special_tokens=False)["input_ids"]]
    values = torch.randn(pair.tuned_hf.config.vocab_size, generator=torch.Generator().manual_seed(0))
    edits = {SITE: feature_edit(as_dictionary(saes().one(SITE)), [0])}
    one, two = (TeacherForced(model, texts, values, begin=0).read(edits) for model in (pair.tuned_hf, pair.tuned))
    for name in ("valence", "log_p", "kl"):
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
    assert (
        done(model=model, reward=dict.fromkeys(POSITIVE, 1.0) | dict.fromkeys(NEGATIVE_WORDS, -1.0)).reward == "lexicon"
    )


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
    assert planted.reward_base.n == 40
    assert len(planted.rewards["base"]) == 128
    assert planted.base_difference.value != planted.valence_difference.value


# --- the base, the opposite, the reverse ---


def test_the_difference_in_differences_is_the_tuned_change_less_the_bases(planted: Ablation) -> None:
    same, own = planted.reading(BASE_SAME), planted.reading(BASE_OWN)
    assert planted.over_base is not None
    assert planted.over_base_own is not None
    assert planted.over_base.value == pytest.approx(planted.valence_difference.value - same.valence.value)
    assert planted.over_base_own.value == pytest.approx(planted.valence_difference.value - own.valence.value)
    assert same.share is None, "the base cannot lose what it never gained"
    assert own.valence.high < 0, "its own screen finds the planted direction too"
    assert own.n_features == 1


def test_the_opposite_set_is_what_holds_the_reward_back() -> None:
    backwards = planted_saes(speaking_pair(), sign=-1)
    found = done(FeatureSet(backwards, ((SITE, 5),)))
    assert found.reading(NEGATIVE).valence.low > 0
    assert found.reading(NEGATIVE).n_features == 1
    assert found.reading(NEGATIVE).valence.value > 5 * abs(found.valence_difference.value)


def test_patching_every_direction_gives_the_base_the_tuned_activations() -> None:
    pair = speaking_pair()
    ids = torch.tensor([[0, *tiny_tokenizer()(tiny_texts(1), add_special_tokens=False)["input_ids"][0]]])
    wanted = activations_at(pair.tuned_hf, ids, torch.ones_like(ids), [SITE])[SITE]
    whole = Dictionary(SITE, lambda acts, base: acts, torch.eye(16))
    edit = patched({SITE: whole}, {SITE: range(16)})[SITE]
    edited = editing(pair.base_hf, {SITE: lambda acts: edit(acts, wanted)})
    with torch.no_grad(), edited, watching(pair.base_hf, [SITE]) as seen:
        pair.base_hf(input_ids=ids)
    assert torch.allclose(seen[SITE], wanted, atol=1e-6)
    part = patched({SITE: whole}, {SITE: (3,)})[SITE](torch.zeros_like(wanted), wanted)
    assert torch.equal(part[..., 3], wanted[..., 3])
    assert not part[..., 4:].any()


@pytest.mark.parametrize("side", ["tuned", "difference"])
def test_patching_two_sites_sets_the_tuned_value_at_both_and_adds_nothing_twice(side: str) -> None:
    """What an earlier patch already moved the base by is not put in again: the later site holds the tuned activation."""
    pair, sites = speaking_pair(), ("blocks.1.hook_mlp_out", SITE)
    encoded = encode(tiny_tokenizer(), tiny_texts(3), max_tokens=12)
    values = torch.zeros(pair.tuned_hf.config.vocab_size)
    base = TeacherForced(pair.base_hf, encoded, values, begin=0)
    tuned = TeacherForced(pair.tuned_hf, encoded, values, begin=0)

    def read(acts: torch.Tensor, base_acts: torch.Tensor | None) -> torch.Tensor:
        return acts if side == "tuned" else acts - base_acts

    whole = {site: Dictionary(site, read, torch.eye(16)) for site in sites}
    seen: dict[str, torch.Tensor] = {}

    def kept(site: str, edit: Any) -> Any:
        return lambda *given: seen.setdefault(site, edit(*given))

    edits = patched(whole, dict.fromkeys(sites, range(16)))
    base.read({site: kept(site, edit) for site, edit in edits.items()}, other=tuned)
    (batch,) = base.batches
    content = batch.content(0)
    for site in sites:
        assert torch.allclose(seen[site][content], tuned.acts(site, 0)[content], atol=1e-5)


def test_the_same_dictionary_from_other_seeds_is_one_curve() -> None:
    again = tuple(dataclasses.replace(one, seed=1) for one in saes().saes)
    found = done(FeatureSet(SAESet((*saes().saes, *again), saes().pair, (), {}), ((SITE, 0),)), floors=True).curves
    assert found is not None
    seeds = {name: {seed for own, seed in zip(found.name, found.seed.tolist()) if own == name} for name in found.names}
    assert seeds["tuned SAE"] == {0, 1}
    assert seeds["the features"] == {0}


def test_what_is_chosen_is_chosen_on_other_prompts_than_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[tuple[int, ...]]] = {}
    own = measure._work

    def watched(subject: Any, chosen: Any, texts: Any, rewards: Any, given: Any, n_apart: int) -> Any:
        work = own(subject, chosen, texts, rewards, given, n_apart)
        measured = texts[: len(work.tuned.tokens)]
        lengths = sorted({len(row) for row in prompts})
        for name, some in (("measured", measured), ("screened", work.screened)):
            seen[name] = {tuple(text.ids[:n]) for text in some for n in lengths if text.ids[:n] in prompts}
        return work

    subject = subject_of(speaking_pair())
    prompts = verb._prompts(subject, PROMPTS, 96, 8)
    monkeypatch.setattr(measure, "_work", watched)
    done(n=96)
    assert seen["measured"] and seen["screened"]
    assert not seen["measured"] & seen["screened"]


def test_one_prompt_is_told_apart_from_many() -> None:
    found = done(prompts=PROMPTS[:1], n=24)
    assert any(note.startswith("one prompt: ") for note in found.notes)
    assert found.before.n == 24


def test_a_single_model_has_no_reverse_and_no_curves_and_says_so() -> None:
    found = done(model=speaking_pair().tuned, floors=True)
    assert found.restored is found.curves is found.over_base is found.valence_gain is found.valence_share is None
    assert "no floor was measured" in found.verdict
    assert "a HookedTransformer is not screened: no most negative features are ablated" in found.notes


def test_a_single_hugging_face_model_is_screened_for_the_opposite(tmp_path: Path) -> None:
    found = done(model=saved(tmp_path, None))
    assert found.reading(NEGATIVE).n_features == 1


# --- dictionaries of both models ---


def changed_saes(side: str, config: dict[str, Any], **tensors: np.ndarray) -> SAESet:
    """One dictionary of another side at SITE, with these tensors in place of the tuned SAE's."""
    tuned = saes().one(SITE)
    weights = SAEWeights(tuned.weights.config | config, tuned.weights.tensors | tensors)
    return SAESet(
        (dataclasses.replace(tuned, side=side, weights=weights, floors={}),), speaking_pair().fingerprint, (), {}
    )


def test_a_crosscoder_that_looks_away_from_the_base_is_the_tuned_sae() -> None:
    own = saes().one(SITE).weights.tensors
    zeros = np.zeros_like(own["W_enc"])
    both = changed_saes(
        "both", {"d_in": 32}, W_enc=np.concatenate([zeros, own["W_enc"]]),
        W_dec=np.concatenate([zeros.T, own["W_dec"]], axis=1), b_dec=np.zeros(32, np.float32),
    )  # fmt: skip
    one, two = done(FeatureSet(both, ((SITE, 0),), side="both")), done()
    assert one.samples == two.samples
    for mode in ("zero", "mean", "resample"):
        assert one.reading(mode=mode).valence.value == pytest.approx(two.reading(mode=mode).valence.value, rel=1e-4)
    assert one.reading(RECONSTRUCTION).valence.value == pytest.approx(
        two.reading(RECONSTRUCTION).valence.value, rel=1e-4
    )
    assert one.base_difference is None
    assert any("there is nothing of them in the base" in note for note in one.notes)


def test_a_difference_dictionary_reads_the_base_beside_the_model_at_every_step() -> None:
    """Encoded as (tuned - base) it is 1 + small; read without the base it would be another number."""
    change = FeatureSet(changed_saes("difference", {}), ((SITE, 0),), side="difference")
    found = done(change)
    assert found.valence_difference.high < 0
    assert found.difference.value < 0
    assert found.restored is None or np.isfinite(found.restored.value)
    with pytest.raises(LensError, match=r"reads both models of a pair \(side 'difference'\), and one model was given"):
        done(change, model=speaking_pair().tuned)


# --- numbers of texts ---


def test_slopes_shares_and_rates_are_the_plain_formulas() -> None:
    draw = np.random.default_rng(0)
    rewards, change, tokens = draw.normal(size=40), draw.normal(size=40), draw.integers(5, 20, 40).astype(float)
    slope = changes.slope(change, rewards, seed=0)
    assert slope is not None
    assert slope.value == pytest.approx(np.polyfit(rewards, change, 1)[0])
    assert slope.low < slope.value < slope.high
    assert changes.slope(change, np.ones(40), seed=0) is None
    per_token = changes.per_token(change, tokens, seed=0)
    assert per_token.value == pytest.approx(change.sum() / tokens.sum())


def test_the_order_of_the_features_changes_nothing() -> None:
    one, two = done(features(0, 3, 7)), done(features(7, 0, 3))
    assert one.samples == two.samples
    for mode in ("zero", "mean", "resample"):
        assert one.reading(mode=mode).valence.value == two.reading(mode=mode).valence.value


def test_perplexity_and_implicit_reward_are_those_of_the_texts(planted: Ablation) -> None:
    reading = planted.reading()
    rise = np.log(planted.perplexity_after / planted.perplexity_before)
    assert reading.implicit_reward.value == pytest.approx(-rise, rel=1e-6)
    assert planted.perplexity_after == reading.perplexity
    assert planted.implicit_reward_before is not None


# --- Tables 6 and 7 ---


def test_table_6_has_ours_above_the_published_rows(planted: Ablation) -> None:
    table = planted.table6()
    assert table["source"].tolist()[:2] == ["this run", "PUBLISHED: pythia-70m"]
    assert table["difference"].iloc[0] == planted.difference.value
    assert table["difference"].iloc[1] == pytest.approx(-0.11)
    assert table["random_difference"].iloc[0] == pytest.approx(np.mean([one.value for one in planted.random_rewards]))
    assert table["kl_nats"].iloc[0] == planted.kl_nats


class Tokens:
    """Two texts of two tokens; feature 0 fires on the first token of each, feature 1 on the second of text 1 only."""

    text_N, place_N, n_texts = np.array([0, 0, 1, 1]), np.array([1, 2, 1, 2]), 2
    by_site = {SITE: np.array([[1, 0], [0, 0], [1, 0], [0, 1]], bool)}  # noqa: RUF012
    mean, any = rates.Fired.mean, rates.Fired.any


def test_table_7_counts_rows_at_words_by_their_value() -> None:
    """Rows: great (3.1), film (0), love (3.2), film (0)."""
    spans = [(0, 0), (0, 6), (6, 11)], [(0, 0), (0, 5), (5, 10)]
    texts = [
        Encoded([0, 1, 2], list(spans[0]), " great film"[:11]),
        Encoded([0, 3, 2], list(spans[1]), " love film"[:10]),
    ]
    values = rates.word_values(None, load_lexicon("vader"))
    found = rates.firing_rates(Tokens(), texts, {SITE: (0,)}, [{SITE: (1,)}], values, seed=0)
    flagged, every, matched = found.rates
    assert (found.n_high, found.n_other) == (2, 2)
    assert flagged.high is not None and flagged.high.value == 1.0
    assert flagged.other is not None and flagged.other.value == 0.0
    assert flagged.ratio is None, "nothing fires on the other rows"
    assert every.high is not None and every.high.value == 0.5
    assert every.other is not None and every.other.value == 0.25
    assert every.ratio is not None and every.ratio.value == 2.0
    assert matched.ratio is not None and matched.ratio.value == 0.0


def test_table_7_tells_whose_values_made_the_rows(planted: Ablation) -> None:
    learned = samples.a_learned()
    values, elsewhere, source = rates.word_values(learned, {})
    known = np.isfinite(learned.rescaled)
    assert elsewhere is None
    assert values == {word: value for word, value, here in zip(learned.words, learned.rescaled, known) if here}
    assert source.startswith("held-out predictions of the probe")
    alone = dataclasses.replace(learned, rescaled=np.full(len(learned.words), np.nan))
    values, _, source = rates.word_values(alone, {})
    assert source.startswith("measured values")
    assert (min(values.values()), max(values.values())) == (learned.stated.min(), learned.stated.max())
    with pytest.raises(LensError, match=r"learned is what probe gave for words \(Learned\); dict given"):
        done(learned={"great": 3.0})
    assert planted.rates.values.startswith("the stated lexicon")
    assert "PUBLISHED: gpt-neo-125m" in planted.table7()["source"].tolist()
    flagged = planted.table7().iloc[0]
    rate = planted.rates.rates[0]
    assert rate.high is not None
    assert flagged["high"] == pytest.approx(100 * rate.high.value)


def test_words_of_completions_are_found_at_their_tokens() -> None:
    """The characters of every token, told by decoding prefixes, are those that the tokenizer itself gives."""
    subject = subject_of(speaking_pair())
    text = " the film was wonderful and sad"
    ids = [0, *tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]]
    done_ = Completions([""], [text], [ids[2:]], [False], [text])
    (found,) = verb._encoded(subject, [ids[:2]], done_)
    wanted = tiny_tokenizer()(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert found.offsets == [(0, 0), *map(tuple, wanted)]


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


def test_a_reward_that_counts_wrong_is_refused_and_leaves_no_hook() -> None:
    pair, calls = speaking_pair(), []

    def miscounting(texts: list[str]) -> list[float]:
        """Right for the untouched models, wrong for the ablated one."""
        calls.append(1)
        return [0.0] * (len(texts) - (len(calls) > 2))

    before = hooks(pair.tuned_hf)
    with pytest.raises(LensError, match=r"'miscounting' gave an array of shape \(47,\) for 48 texts"):
        done(reward=miscounting)
    assert hooks(pair.tuned_hf) == before


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
        if len(calls) == 3:
            assert hooks(pair.tuned_hf) > before, "the hooks are on"
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


# --- what may be handed as features, and a run ---


def labels_of(*relevant: int) -> Labels:
    """Labels of three features, of which some are related to the task."""
    example, n = samples.a_labels(), 3
    return dataclasses.replace(
        example, saes=saes(), site=(SITE,) * n, index=np.arange(n), is_relevant=np.isin(np.arange(n), relevant),
        description=("",) * n, status=("labelled",) * n, confidence=np.full(n, np.nan), pattern=("",) * n, scores=(),
        agreement=(), examples=((),) * n, tokens=((),) * n, promotes=((),) * n, suppresses=((),) * n,
    )  # fmt: skip


def test_labels_pairs_and_a_feature_set_say_the_same() -> None:
    one = done()
    for given, more in (
        (labels_of(0), {}),
        ([(SITE, 0)], {"saes": saes()}),
        (((SITE, np.int64(0)),), {"saes": saes()}),
    ):
        found = done(given, **more)  # type: ignore[arg-type]
        assert found.features.features == ((SITE, 0),)
        assert found.samples == one.samples


@pytest.mark.parametrize(
    ("given", "more", "message"),
    [
        ([(SITE, 0)], {}, "pairs say nothing without their SAEs: pass saes="),
        (features(0), {"saes": saes()}, "These features bring their own SAEs"),
        ([(SITE, 0)], {"saes": [1]}, "saes is what train_sae or load_saes gave; list given"),
        ([(SITE, N_FEATURES)], {"saes": saes()}, f"Feature {N_FEATURES} does not exist at {SITE}"),
        ([(SITE, -1)], {"saes": saes()}, "Feature -1 does not exist"),
        ([(SITE, 1.5)], {"saes": saes()}, "A feature is a (site, index) pair"),
        ([SITE], {"saes": saes()}, "A feature is a (site, index) pair"),
        ([("blocks.0.hook_mlp_out", 0)], {"saes": saes()}, "No SAE matches"),
        ("great", {"saes": saes()}, "features are labels, a FeatureSet"),
        (7, {}, "features are labels, a FeatureSet"),
        (samples.an_effects(), {}, "Effects rank every feature and choose none: ablate effects.top(k)"),
    ],
)
def test_what_is_no_set_of_features_is_refused(given: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(LensError) as caught:
        ablate(speaking_pair(), given, **(SHORT | more))
    assert message in str(caught.value)


def test_nothing_at_all_to_ablate_is_refused_and_an_empty_set_is_a_noted_no_op() -> None:
    with pytest.raises(LensError, match="Nothing to ablate was given"):
        ablate(speaking_pair(), **SHORT)
    found = done(labels_of())
    assert "no features were given: nothing is ablated, and every change is exactly 0" in found.notes
    assert found.difference.value == 0


def test_features_of_an_unknown_side_are_refused() -> None:
    with pytest.raises(LensError, match=r"Unknown side 'tunned'\. Did you mean 'tuned'"):
        FeatureSet(saes(), (), side="tunned")


def test_features_that_never_fire_are_refused_and_one_that_does_is_enough() -> None:
    own = saes().one(SITE).weights.tensors
    bias = own["b_enc"].copy()
    bias[3:5] = -1e3
    silent = changed_saes("tuned", {}, b_enc=bias)
    before = hooks(speaking_pair().tuned_hf)
    with pytest.raises(GateError, match=r"None of the 2 features fires in the \d+ completions"):
        done(FeatureSet(silent, ((SITE, 3), (SITE, 4))))
    assert hooks(speaking_pair().tuned_hf) == before
    one, two = done(FeatureSet(silent, ((SITE, 0),))), done(FeatureSet(silent, ((SITE, 0), (SITE, 3))))
    assert one.valence_difference.value == pytest.approx(two.valence_difference.value, rel=1e-5)


def test_an_sae_of_another_checkpoint_is_refused_for_a_single_model(tmp_path: Path) -> None:
    model = saved(tmp_path, None)

    def told(owner: str) -> FeatureSet:
        return FeatureSet(changed_saes("tuned", {"metadata": {"lfp_model": owner}}), ((SITE, 0),))

    with pytest.raises(LensError, match="trained on another checkpoint: its fingerprint is 123"):
        done(told("123"), model=model)
    assert done(told(weights_fingerprint(model)), model=model).before.n == 40


def test_an_sae_that_explains_far_less_here_than_where_it_was_judged_is_noted_for_a_single_model() -> None:
    """The planted SAEs reconstruct nothing, and say that they explain 0.9."""
    told = done(model=speaking_pair().tuned).notes
    assert any(f"the SAE at {SITE} explains -" in note and "0.90 where it was judged" in note for note in told)
    honest = dataclasses.replace(saes().one(SITE), explained_variance=-1e9)
    mine = FeatureSet(dataclasses.replace(saes(), saes=(honest,)), ((SITE, 0),))
    assert not any("where it was judged" in note for note in done(mine, model=speaking_pair().tuned).notes)


def test_a_run_brings_its_pair_its_labels_and_its_reward(tmp_path: Path) -> None:
    for name, model in (("base", speaking_pair().base_hf), ("tuned", speaking_pair().tuned_hf)):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    store = Store(tmp_path / "run")
    run = SimpleNamespace(store=store, results={})
    with pytest.raises(LensError, match=r"config.toml of this run cannot be read"):
        ablate(run, **SHORT)
    store.write_text("config.toml", f'base = "{tmp_path / "base"}"\n[finetune]\nreward = "vader"\n')
    with pytest.raises(LensError, match="has no tuned model yet: run finetune first"):
        ablate(run, **SHORT)
    pair = open_of_run_pair(tmp_path)
    same = dataclasses.replace(labels_of(0), saes=dataclasses.replace(saes(), pair=pair.fingerprint))
    run.results |= {"finetune": SimpleNamespace(path=tmp_path / "tuned"), "explain": same}
    found = ablate(run, **SHORT)
    assert found.features.features == ((SITE, 0),)
    assert not any("VADER" in note for note in found.notes), "the config names the reward"
    assert found.reward_base is not None
    assert found.difference.value == done(reward="vader").difference.value


def open_of_run_pair(folder: Path) -> Any:
    return load_pair(str(folder / "base"), str(folder / "tuned"))


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
