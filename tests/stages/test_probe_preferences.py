"""The preference probe: what only the tuned model tells is found, style is called style, and noise is called nothing."""

import copy
import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.core.records import read_record, write_record
from lfp_lens.parts import text_readings
from lfp_lens.parts.cache import cache as cache_of
from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.results import SAESet
from lfp_lens.results.contrast import PreferenceTriples
from lfp_lens.results.preference_probe import LearnedPreference
from lfp_lens.results.train_sae import SAEWeights
from lfp_lens.stages.probe.logistic import by_group, cross_fit, folds_of, is_right
from lfp_lens.stages.probe.preferences import probe_preferences
from tests.results.test_round_trip import assert_same
from tests.tiny import FUNCTION, NEGATIVE, NEUTRAL, POSITIVE, sae_record, tiny_model, tiny_tokenizer

SITE, WIDTH = "blocks.1.hook_mlp_out", 16
EARLY, LATE = NEUTRAL[:2], NEUTRAL[5:7]
KNOW_NOTHING_OF_THE_TUNING = {"none", "base"}


@cache
def pair() -> Pair:
    """The tuned model's attention works; the base's gives nothing, so it knows tokens but not their order."""
    tuned = tiny_model(layers=2, width=WIDTH)
    with torch.no_grad():
        # Nothing is predicted: log-probabilities must not tell what features tell.
        tuned.get_output_embeddings().weight.zero_()
    base = copy.deepcopy(tuned)
    with torch.no_grad():
        for layer in base.gpt_neox.layers:
            layer.attention.dense.weight.zero_()
            layer.attention.dense.bias.zero_()
    return load_pair(base, tuned, tokenizer=tiny_tokenizer())


@cache
def talking_pair() -> Pair:
    """The tuned model says POSITIVE words more often and NEGATIVE ones less."""
    base = tiny_model(layers=2, width=WIDTH)
    with torch.no_grad():
        # The last hidden state is 1 at coordinate 0, whose column of the unembedding is then a bias.
        base.gpt_neox.final_layer_norm.weight[0] = 0
        base.gpt_neox.final_layer_norm.bias[0] = 1
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for words, nats in ((POSITIVE, 3.0), (NEGATIVE, -3.0)):
            for word in words:
                (token,) = tiny_tokenizer()(f" {word}", add_special_tokens=False)["input_ids"]
                tuned.get_output_embeddings().weight[token, 0] += nats
    return load_pair(base, tuned, tokenizer=tiny_tokenizer())


def saes(
    of: Pair,
    *,
    sides: tuple[str, ...] = ("base", "tuned"),
    bad: tuple[str, ...] = (),
    changes: dict[str, np.ndarray] | None = None,
) -> SAESet:
    """Hand-made SAEs: x+ and x- of every dimension; those of the sides in `bad` fail their gate."""
    both = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    config = {
        "architecture": "standard", "d_in": WIDTH, "d_sae": 2 * WIDTH, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none", "metadata": {},
    }  # fmt: skip
    tensors = {"W_enc": both.T, "W_dec": both, "b_enc": torch.zeros(2 * WIDTH), "b_dec": torch.zeros(WIDTH)}
    weights = SAEWeights(config, {k: v.contiguous().numpy() for k, v in tensors.items()} | (changes or {}))
    records = tuple(
        sae_record(weights, side, SITE, explained_variance=0.1 if side in bad else 0.99, l0=16.0,
                   firing_rate=np.full(2 * WIDTH, 0.5))
        for side in sides
    )  # fmt: skip
    return SAESet(records, of.fingerprint, (), {})


def triples(positive: list[str], neutral: list[str], negative: list[str], **changes: Any) -> PreferenceTriples:
    """Triples of two per prompt group, whose originals are the positive and the negative text, stripped as `contrast` does."""
    n = len(positive)
    given: dict[str, Any] = {
        "prompt": tuple(f"the {NEUTRAL[row % 10]} was {FUNCTION[row % 12]}" for row in range(n)),
        "positive": tuple(positive), "neutral": tuple(neutral), "negative": tuple(negative),
        "original_chosen": tuple(map(str.strip, positive)), "original_rejected": tuple(map(str.strip, negative)),
        "grades": np.tile([5, 3, 1], (n, 1)), "original_grades": np.tile([4, 2], (n, 1)), "source": np.arange(n),
        "group": tuple(f"g{row // 2}" for row in range(n)), "task": "harmless", "rewriter": "by hand",
        "is_swapped": False, "rejected": {}, "n_items": n,
    }  # fmt: skip
    return PreferenceTriples(**(given | changes))


def joined(*words: Any) -> str:
    return "".join(f" {word}" for word in words)


@cache
def ordered(n: int = 80) -> PreferenceTriples:
    """Positive: EARLY words, then LATE ones; negative: the same words, LATE ones first; neutral: in turns."""
    draw = np.random.default_rng(0)
    drawn = [(draw.choice(EARLY, 3).tolist(), draw.choice(LATE, 3).tolist()) for _ in range(n)]
    return triples(
        [joined(*early, *late) for early, late in drawn],
        [joined(early[0], late[0], late[1], early[1], early[2], late[2]) for early, late in drawn],
        [joined(*late, *early) for early, late in drawn],
    )


def worded(n: int = 60, *, seed: int = 1, longer: bool = False, poles: bool = True) -> PreferenceTriples:
    """Members of POSITIVE, of NEUTRAL and of NEGATIVE words, or (`poles=False`) all of any; `longer`: the positive by one."""
    draw = np.random.default_rng(seed)
    pools = (POSITIVE, NEUTRAL, NEGATIVE) if poles else (FUNCTION + NEUTRAL + POSITIVE,) * 3
    return triples(*([joined(*draw.choice(pool, 5 + (longer and at == 0))) for _ in range(n)]
                     for at, pool in enumerate(pools)))  # fmt: skip


def probed(of: Pair, rows: PreferenceTriples, **options: Any) -> LearnedPreference:
    given = options.pop("saes", None) or saes(of)
    return probe_preferences(of, given, rows, **{"folds": 3, "max_tokens": 64, **options})


@pytest.fixture(scope="module")
def learned() -> LearnedPreference:
    return probed(pair(), ordered())


@pytest.fixture(scope="module")
def style() -> LearnedPreference:
    return probed(talking_pair(), worded())


# --- planted ---


def test_what_only_the_tuned_model_tells_is_found(learned: LearnedPreference) -> None:
    assert learned.accuracy.value > 0.9
    assert learned.accuracy.n == len(set(learned.group)) == 40
    assert learned.is_found and not learned.is_style
    assert learned.matched_by == ()
    assert learned.difference.low > 0.2
    assert learned.difference.value == pytest.approx(
        learned.accuracy.value - learned.cell("base", "sae").accuracy.value
    )
    assert learned.verdict.startswith("Features of the tuned model tell the poles better")


def test_what_knows_nothing_of_the_order_is_at_chance(learned: LearnedPreference) -> None:
    blind = [one for one in learned.cells if one.side in KNOW_NOTHING_OF_THE_TUNING and one.target == "preference"]
    assert len(blind) == 7
    for one in blind:
        # The members hold the same tokens: only rounding, which a probe can amplify, tells them apart.
        assert 0.3 < one.accuracy.value < 0.7, (one.side, one.input)
    exactly = [learned.cell("none", name) for name in ("length", "bag_of_words")]
    assert [one.accuracy.value for one in exactly] == [0.5, 0.5]


def test_shuffled_poles_cannot_be_told_and_selectivity_is_the_rest(learned: LearnedPreference) -> None:
    control = learned.cell("tuned", "sae", "shuffled")
    assert 0.3 < control.accuracy.value < 0.7
    assert learned.selectivity.value == pytest.approx(learned.accuracy.value - control.accuracy.value)
    assert learned.selectivity.low > 0.2


def test_neutral_members_fall_between_the_poles(learned: LearnedPreference) -> None:
    positive, neutral, negative = (learned.placed[name].value for name in ("positive", "neutral", "negative"))
    assert positive > neutral + 0.1 > negative + 0.2
    assert learned.placed["chosen"].value == pytest.approx(positive), "the originals are the members here"


def test_the_probe_orders_originals_it_was_not_fitted_on(learned: LearnedPreference) -> None:
    found = learned.cell("tuned", "sae")
    assert found.transfer is not None and found.order is not None
    assert found.transfer.low > 0.8
    assert found.transfer.value == pytest.approx(found.order.value), "the originals are the members here"


def test_originals_that_are_the_rewrites_show_no_hand(learned: LearnedPreference) -> None:
    for key in (("tuned", "sae"), ("none", "bag_of_words"), ("none", "length")):
        found = learned.cell(*key, "original")
        assert (found.gap, found.order, found.transfer) == (None, None, None)
        assert found.accuracy.value == pytest.approx(0.5)


def test_a_rewriters_hand_is_seen() -> None:
    rows = worded()
    signed = {
        name: tuple(f"{text} river" for text in getattr(rows, name)) for name in ("positive", "neutral", "negative")
    }
    found = probed(talking_pair(), dataclasses.replace(rows, **signed))
    assert found.cell("none", "bag_of_words", "original").accuracy.value > 0.95
    assert found.cell("none", "length", "original").accuracy.value > 0.95


def test_the_strongest_features_carry_their_site_and_their_sign_in_every_fold(learned: LearnedPreference) -> None:
    top = learned.top_features(5)
    assert set(top["site"]) == {SITE}
    assert top["feature"].is_unique and top["feature"].between(0, 2 * WIDTH - 1).all()
    assert (top["weight"].abs().diff().dropna() <= 0).all()
    assert top["sign_agreement"].iloc[0] == 1
    assert ((top["low"] <= top["weight"]) & (top["weight"] <= top["high"])).all()


# --- style ---


def test_a_task_that_words_tell_is_called_style(style: LearnedPreference) -> None:
    assert style.accuracy.value > 0.9
    assert style.is_found and style.is_style
    assert {"word counts", "token embeddings", "the base model's features"} <= set(style.matched_by)
    assert "length" not in style.matched_by
    assert "the task is style, no evidence of learned feedback" in style.verdict


def test_a_task_that_length_tells_is_called_style() -> None:
    found = probed(talking_pair(), worded(longer=True))
    assert "length" in found.matched_by
    assert found.cell("none", "length").accuracy.value == 1


def test_planted_words_raise_the_implicit_reward_without_a_label(style: LearnedPreference) -> None:
    assert style.preferred.value == 1
    assert style.preferred_original.value == 1
    assert len(style.preferred_noise) == len(style.preferred_original_noise) == 5
    assert style.preferred_noise.max() < 1
    assert 0.1 < style.preferred_noise.mean() < 0.9
    assert (style.implicit_reward[:, 0] > style.implicit_reward[:, 2] + 2).all(), (
        "planted: 6 nats a word less the normaliser"
    )
    assert style.cell("difference", "implicit_reward").accuracy.value > 0.95


# --- nothing planted ---


def test_where_the_members_differ_in_nothing_nothing_is_found() -> None:
    found = probed(talking_pair(), worded(80, poles=False))
    assert not found.is_found
    assert found.verdict.startswith("Nothing was found")


def test_random_features_score_chance_over_seeds() -> None:
    """The dead salmon: 40 items in 20 groups, 30 random features per text."""
    found = []
    for seed in range(12):
        draw = np.random.default_rng(seed)
        groups = np.array([f"g{row // 2}" for row in range(40)] * 2)
        fold = np.tile(folds_of(groups[:40].tolist(), 4, seed=seed), 2)
        label, inputs = np.repeat([True, False], 40), draw.normal(size=(80, 30))
        held_out = cross_fit(inputs, label, np.arange(80), groups, fold)
        found.append(by_group(is_right(held_out.score, label), groups).mean())
    assert abs(np.mean(found) - 0.5) < 3 * np.std(found, ddof=1) / np.sqrt(len(found))


def test_rows_of_one_prompt_would_leak_and_are_never_parted() -> None:
    """Every group has features of its own, the same for all its rows and for its label: memory alone, and no more."""
    draw = np.random.default_rng(0)
    groups = np.repeat([f"g{row}" for row in range(30)], 4)
    own, own_label = draw.normal(size=(30, 40)), draw.permutation(np.repeat([True, False], 15))
    inputs, label = np.repeat(own, 4, axis=0), np.repeat(own_label, 4)
    apart = folds_of(groups.tolist(), 5, seed=0)
    assert all(len(set(apart[groups == name])) == 1 for name in groups)
    by_row = np.arange(len(groups)).astype(str)
    shares = [
        is_right(cross_fit(inputs, label, np.arange(120), unit, fold).score, label).mean()
        for unit, fold in ((groups, apart), (by_row, folds_of(by_row.tolist(), 5, seed=0)))
    ]
    assert shares[0] < 0.7
    assert shares[1] > 0.95


# --- from a cache, and again ---


def test_from_a_cache_the_probe_is_the_same_and_asks_no_model_for_activations(
    learned: LearnedPreference, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ordered()
    whole = [text for member in ("positive", "neutral", "negative") for text in rows.texts(member)]
    stored = cache_of(pair(), [SITE], whole, tmp_path / "acts", max_tokens=64)
    monkeypatch.setattr(text_readings, "activations_at", lambda *given: pytest.fail("a model was asked"))
    found = probed(pair(), rows, cache=stored)
    np.testing.assert_allclose(found.probability, learned.probability, atol=1e-3)
    assert found.accuracy.value == learned.accuracy.value


def test_the_same_seed_gives_the_same_numbers(learned: LearnedPreference) -> None:
    assert_same(probed(pair(), ordered()), learned)


# --- refusals ---


def test_bad_saes_are_refused_on_either_side() -> None:
    with pytest.raises(GateError, match="No base SAE is good enough"):
        probed(pair(), ordered(), saes=saes(pair(), bad=("base",)))
    with pytest.raises(GateError, match="the SAEs of the base model were not trained"):
        probed(pair(), ordered(), saes=saes(pair(), sides=("tuned",)))
    with pytest.raises(LensError, match="trained on another pair"):
        probed(pair(), ordered(), saes=saes(talking_pair()))
    with pytest.raises(LensError, match="Unknown gate 'no'"):
        probed(pair(), ordered(), gate="no")


def test_only_sites_that_pass_on_both_sides_are_read() -> None:
    """An SAE that is worse on the base would win the comparison for the tuned model."""
    first, other = "blocks.0.hook_mlp_out", SITE
    good, bad = saes(pair()).saes, saes(pair(), bad=("base", "tuned")).saes
    at = lambda records, site: tuple(dataclasses.replace(one, site=site) for one in records)  # noqa: E731
    given = SAESet((bad[0], good[1], *at(good, first)), pair().fingerprint, (), {})
    assert probed(pair(), ordered(), saes=given).sites == (first,)
    assert probed(pair(), ordered(), saes=given, gate="warn").sites == (first, other)
    crossed = dataclasses.replace(given, saes=(bad[0], good[1], *at((good[0], bad[1]), first)))
    with pytest.raises(GateError, match=f"on both sides: on tuned {other}, on base {first}"):
        probed(pair(), ordered(), saes=crossed)


def test_too_few_prompts_are_refused() -> None:
    rows = ordered()
    with pytest.raises(
        GateError, match=r"come from 1 prompt groups \(of 1\) whose texts have tokens of their own; 10 are needed"
    ):
        probed(pair(), dataclasses.replace(rows, group=("g",) * len(rows)))
    with pytest.raises(LensError, match="50 folds need as many prompt groups; the triples have 40"):
        probed(pair(), rows, folds=50)
    with pytest.raises(LensError, match="folds must be at least 2; 1 given"):
        probed(pair(), rows, folds=1)


def test_features_that_are_not_numbers_are_refused() -> None:
    broken = saes(pair(), changes={"b_enc": np.full(2 * WIDTH, np.nan, np.float32)})
    with pytest.raises(LensError, match="must be finite numbers; 400 of 400 rows are not"):
        probed(pair(), ordered(), saes=broken)


def test_labels_of_one_class_are_refused() -> None:
    groups = np.array([f"g{row}" for row in range(12)])
    fold = folds_of(groups.tolist(), 3, seed=0)
    with pytest.raises(LensError, match="All 8 training rows have one label"):
        cross_fit(np.zeros((12, 2)), np.ones(12, bool), np.arange(12), groups, fold)


def test_items_without_tokens_of_their_own_are_counted_and_left_out() -> None:
    rows = ordered()
    halved = dataclasses.replace(
        rows, prompt=("it was gre", *rows.prompt[1:]), original_rejected=("at", *rows.original_rejected[1:]),
        positive=(rows.positive[0].lstrip(), *rows.positive[1:]),
    )  # fmt: skip
    found = probed(pair(), halved)
    assert len(found) == len(rows) - 1
    assert found.dropped == {"a text without tokens of its own": 1}
    assert found.source[0] == 1


def test_features_that_never_fire_tell_nothing_and_stop_nothing() -> None:
    dead = saes(pair(), changes={"b_enc": np.full(2 * WIDTH, -1e6, np.float32)})
    found = probed(pair(), ordered(), saes=dead)
    assert found.accuracy.value == 0.5
    assert not found.is_found
    assert not found.components.any()
    assert found.cell("tuned", "raw").accuracy.value > 0.9


# --- the result ---


def test_the_result_comes_back_from_disk_and_shows_itself(learned: LearnedPreference, tmp_path: Any) -> None:
    write_record(learned, tmp_path)
    assert_same(learned, read_record(tmp_path))
    assert "Features of the tuned model tell the poles better" in learned._repr_html_()
    assert len(learned.to_frame()) == len(learned) == 80
    assert len(learned.grid_frame()) == len(learned.cells) == 17


def test_components_separate_the_poles(learned: LearnedPreference) -> None:
    assert learned.components.shape == (80, 3, 2)
    assert 0 < learned.explained[1] <= learned.explained[0] <= 1
    gap = learned.components[:, 0] - learned.components[:, 2]
    assert np.abs(gap.mean(axis=0) / gap.std(axis=0)).max() > 1
