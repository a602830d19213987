"""attribute: exact effects by batches of (feature, text) are those of one feature at a time; the screen is their first order."""

import copy
import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from lfp_lens.parts.activations import encode, hidden_states, pad, unembed
from lfp_lens.parts.dictionaries import as_dictionary
from lfp_lens.parts.interventions import feature_edit, intervening
from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.parts.scalars import Predictions
from lfp_lens.parts.sites import activations_at
from lfp_lens.results import Effects, SAESet
from lfp_lens.stages.attribute import attribute, exact, reading, subject
from tests.stages.planted import N_FEATURES, OTHER_SITE, SITE, planted_saes, speaking_pair
from tests.tiny import ARCHITECTURES, tiny_pair, tiny_texts, tiny_tokenizer

TEXTS = tiny_texts(24)
TWICE = [text for text in TEXTS[:12] for _ in (0, 1)]
"""Both halves hold the same texts, so that screen and exact can be compared."""


def sparse(saes: SAESet) -> SAESet:
    """Make every feature fire at some tokens only, the later ones more and more seldom, the last one never."""
    tensors = saes.saes[0].weights.tensors  # both sides hold the same weights
    tensors["b_enc"][:] = np.linspace(0.1, -0.8, N_FEATURES)
    tensors["b_enc"][-1] = -1e6
    tensors["W_enc"][:] *= 5
    return saes


def leap(seen: Predictions) -> torch.Tensor:
    """A scalar that is linear in the logits."""
    return seen.logits_NV[:, 40] - 0.5 * seen.logits_NV[:, 41]


def by_hand(pair: Pair, saes: SAESet, side: str, texts: list[str]) -> np.ndarray:
    """Effect of every feature of every site on `leap` of every text: one text, one feature, one whole run at a time."""
    model = pair.hf("base" if side == "base" else "tuned")
    found = []
    for site in saes.sites:
        dictionary = as_dictionary(saes.one(site, side=side))
        base = pair.base_hf if dictionary.needs_base else None
        for index in range(dictionary.n_features):
            row = []
            for one in encode(pair.tokenizer, texts, max_tokens=64):
                batch = pad([one], [0], device="cpu")
                sums = []
                for edits in ({}, {site: feature_edit(dictionary, [index])}):
                    with torch.no_grad(), intervening(model, edits, begin=0, base=base if edits else None):
                        logits_NV = unembed(model, hidden_states(model, batch))[0]
                    sums.append(float(leap(Predictions(logits_NV, batch.ids_BS[0], batch.ids_BS[0])).double().sum()))
                row.append(sums[0] - sums[1])
            found.append(row)
    return np.array(found)


def given(pair: Pair, saes: SAESet, texts: list[str] = TEXTS, **changes: Any) -> Effects:
    return attribute(pair, saes, texts, **({"scalar": leap, "joint": 0, "confirm": N_FEATURES} | changes))


@cache
def sparse_effects() -> Effects:
    return given(speaking_pair(), sparse(planted_saes(speaking_pair(), sites=(SITE, OTHER_SITE))), confirm=100)


def test_a_batch_of_ablations_equals_one_ablation_at_a_time() -> None:
    saes, found = sparse(planted_saes(speaking_pair(), sites=(SITE, OTHER_SITE))), sparse_effects()
    slow = by_hand(speaking_pair(), saes, "tuned", TEXTS[1::2])
    rows = np.flatnonzero(np.isfinite(found.exact))
    assert len(rows) >= 2 * N_FEATURES - 5, "all but those that never fire on the texts that screen"
    # Sums of some 12 fp32 numbers of order 10.
    assert found.text_effects == pytest.approx(slow[rows], abs=2e-4)
    assert found.exact[rows] == pytest.approx(slow[rows].sum(1) / found.n_tokens, abs=1e-5)
    assert 0 < (slow[rows] == 0).mean() < 0.9, "some texts are skipped and some are not"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_so_for_every_architecture(architecture: str) -> None:
    pair = tiny_pair(architecture)
    saes = sparse(planted_saes_for(pair))
    found = given(pair, saes, TEXTS[:8])
    rows = np.flatnonzero(np.isfinite(found.exact))
    assert found.text_effects == pytest.approx(by_hand(pair, saes, "tuned", TEXTS[1:8:2])[rows], abs=2e-4)


def planted_saes_for(pair: Pair, side: str | None = None) -> SAESet:
    """The planted dictionaries for another pair of this width."""
    saes = planted_saes(speaking_pair(), sites=(OTHER_SITE,))
    records = tuple(dataclasses.replace(record, side=side or record.side) for record in saes.saes)
    return SAESet(records[-1:] if side else records, pair.fingerprint, (), {})


@pytest.mark.parametrize("side", ["base", "difference"])
def test_the_base_side_and_the_difference_are_ablated_too(side: str) -> None:
    pair = tiny_pair(scale=0.2)
    saes = planted_saes_for(pair, side)
    for record in saes.saes:
        record.weights.tensors["b_enc"][:] = 0.05
    found = given(pair, saes, TEXTS[:8], side=side)
    assert np.isfinite(found.exact).sum() > N_FEATURES / 2
    rows = np.flatnonzero(np.isfinite(found.exact))
    assert found.text_effects == pytest.approx(by_hand(pair, saes, side, TEXTS[1:8:2])[rows], abs=2e-4)
    assert found.side == side


def test_a_crosscoder_reads_both_models_and_writes_the_tuned_one() -> None:
    pair = tiny_pair(scale=0.2)
    [record] = planted_saes_for(pair, "both").saes
    tensors, settings = record.weights.tensors, record.weights.config | {"d_in": 32}
    wide = {"W_enc": np.concatenate([tensors["W_enc"], -tensors["W_enc"]]), "b_dec": np.zeros(32, np.float32),
            "W_dec": np.concatenate([7 + tensors["W_dec"], tensors["W_dec"]], axis=1), "b_enc": 0 * tensors["b_enc"]}  # fmt: skip
    weights = type(record.weights)(settings, wide)
    saes = SAESet((dataclasses.replace(record, weights=weights),), pair.fingerprint, (), {})
    found = given(pair, saes, TEXTS[:8], side="both")
    rows = np.flatnonzero(np.isfinite(found.exact))
    assert len(rows) > N_FEATURES / 2
    # By hand: f reads the difference of tuned and base here, and writes the second half of the decoder.
    acts = []
    for side in ("tuned", "base"):
        batch = pad(encode(pair.tokenizer, TEXTS[1:8:2], max_tokens=64), [0, 1, 2, 3], device="cpu")
        seen = activations_at(pair.hf(side), batch.ids_BS, batch.mask_BS, [OTHER_SITE])[OTHER_SITE]
        acts.append(seen[batch.content(0)])
    features_NF = ((acts[1] - acts[0]) @ torch.tensor(wide["W_enc"][:16])).relu()
    fires = [int((features_NF[:, row] != 0).any()) for row in rows]
    assert [int(found.fires_in[row] > 0) for row in rows] == fires
    assert found.text_effects == pytest.approx(by_hand(pair, saes, "both", TEXTS[1:8:2])[rows], abs=2e-4)


def test_small_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sparse_effects()
    monkeypatch.setattr(exact, "VALUES_AT_ONCE", 1)
    monkeypatch.setattr(subject, "LOGITS_AT_ONCE", 1)
    monkeypatch.setattr(reading, "LOGITS_AT_ONCE", 1)
    saes = sparse(planted_saes(speaking_pair(), sites=(SITE, OTHER_SITE)))
    parts = given(speaking_pair(), saes, confirm=100)
    assert parts.screen == pytest.approx(whole.screen, abs=1e-6)
    assert parts.text_effects == pytest.approx(whole.text_effects, abs=1e-4)
    assert parts.fires_in.tolist() == whole.fires_in.tolist()


def test_the_padding_side_of_the_tokenizer_changes_nothing() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.padding_side = "left"
    pair = dataclasses.replace(speaking_pair(), tokenizer=tokenizer)
    found = given(pair, sparse(planted_saes(speaking_pair(), sites=(SITE, OTHER_SITE))), confirm=100)
    assert np.array_equal(found.screen, sparse_effects().screen)
    assert np.array_equal(found.exact, sparse_effects().exact, equal_nan=True)


def test_the_order_of_features_changes_nothing() -> None:
    saes = sparse(planted_saes(speaking_pair()))
    plain = given(speaking_pair(), saes)
    order = np.random.default_rng(0).permutation(N_FEATURES)
    mixed = copy.deepcopy(saes)
    tensors = mixed.saes[0].weights.tensors  # both sides hold the same weights
    tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"][:, order].copy(), tensors["b_enc"][order]
    tensors["W_dec"] = tensors["W_dec"][order]
    found = given(speaking_pair(), mixed)
    assert found.screen == pytest.approx(plain.screen[order], abs=1e-6)
    assert found.exact == pytest.approx(plain.exact[order], abs=1e-6, nan_ok=True)


def test_a_feature_that_never_fires_has_no_effect_and_is_not_confirmed() -> None:
    found = sparse_effects()
    for row in (N_FEATURES - 1, 2 * N_FEATURES - 1):
        assert found.screen[row] == 0
        assert np.isnan(found.exact[row]) and found.fires_in[row] == -1


def test_a_feature_that_fires_on_the_screening_half_alone_has_an_effect_of_exactly_zero() -> None:
    pair = tiny_pair()
    from tests.tiny import word_saes

    odd = ["the film was wonderful"] * 5, ["the film was"] * 5
    texts = [text for two in zip(*odd) for text in two]
    found = given(pair, word_saes(pair, ("wonderful", "film")), texts)
    assert found.screen[0] != 0 and found.exact[0] == 0 and found.fires_in[0] == 0
    assert np.isnan(found.consistency[0])
    assert found.exact[1] != 0 and found.fires_in[1] == 5


@pytest.mark.parametrize("steps", [1, 3])
def test_where_everything_after_the_site_is_linear_screen_and_exact_are_one(steps: int) -> None:
    """The last block's MLP output, no final norm, a scalar linear in the logits."""
    pair = speaking_pair()
    linear = copy.deepcopy(pair.tuned_hf)
    linear.gpt_neox.final_layer_norm = torch.nn.Identity()
    pair = dataclasses.replace(pair, tuned_hf=linear)
    found = given(pair, sparse(planted_saes(speaking_pair())), TWICE, steps=steps)
    done = np.isfinite(found.exact)
    assert done.sum() >= N_FEATURES - 3
    assert np.abs(found.exact[done]).max() > 0.1
    assert found.screen[done] == pytest.approx(found.exact[done], abs=1e-5)
    assert found.rank_correlation.value == pytest.approx(1)


def test_integrated_gradients_add_up_to_the_removal_of_all_features() -> None:
    """Completeness, which the plain gradient does not have; a left Riemann sum of many points is near the integral."""
    pair, saes = speaking_pair(), planted_saes(speaking_pair(), strength=1.0)
    dictionary = as_dictionary(saes.one(SITE))
    model, sums = pair.tuned_hf, []
    batch = pad(encode(pair.tokenizer, TEXTS[::2], max_tokens=64), list(range(12)), device="cpu")
    for edits in ({}, {SITE: feature_edit(dictionary, range(N_FEATURES))}):
        with torch.no_grad(), intervening(model, edits, begin=0):
            logits_NV = unembed(model, hidden_states(model, batch))[batch.mask_BS.bool()]
        sums.append(float(leap(Predictions(logits_NV, batch.ids_BS, batch.ids_BS)).double().mean()))
    wanted = sums[0] - sums[1]
    gaps = [abs(given(pair, saes, steps=steps).screen.sum() - wanted) for steps in (1, 10, 60)]
    assert gaps[2] < 0.05 * abs(wanted)
    assert gaps[2] < gaps[1] < gaps[0]


def swapped(texts: list[str]) -> list[str]:
    """Let the half that confirms be the one that screens."""
    return [text for at in range(0, len(texts), 2) for text in (texts[at + 1], texts[at])]


def test_both_rank_correlations_are_of_the_features_drawn_at_random() -> None:
    same = given(speaking_pair(), sparse(planted_saes(speaking_pair())), TWICE)
    assert same.agreement.value == pytest.approx(same.rank_correlation.value), "both halves are the same texts"
    found = sparse_effects()
    there = given(speaking_pair(), sparse(planted_saes(speaking_pair(), sites=(SITE, OTHER_SITE))), swapped(TEXTS))
    assert found.screen_same == pytest.approx(there.screen, abs=1e-6), "the other half's screen"
    drawn = np.flatnonzero(found.is_random)
    for screened, said in ((found.screen, found.rank_correlation), (found.screen_same, found.agreement)):
        assert said.value == pytest.approx(stats.spearmanr(screened[drawn], found.exact[drawn]).statistic)
    assert found.agreement.n == found.rank_correlation.n == found.is_random.sum()
    assert found.agreement.value > found.rank_correlation.value, "other texts add noise"


def test_every_hook_and_patch_is_gone_even_when_the_scalar_fails() -> None:
    pair = speaking_pair()
    calls = []

    def fails(seen: Predictions) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("the scalar")
        return leap(seen)

    with pytest.raises(RuntimeError, match="the scalar"):
        given(pair, sparse(planted_saes(pair)), scalar=fails)
    for module in pair.tuned_hf.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert "forward" not in vars(module)


def test_the_same_call_gives_the_same_numbers() -> None:
    """Nothing is kept between calls: the same call twice gives the same numbers."""
    saes = sparse(planted_saes(speaking_pair(), sites=(SITE, OTHER_SITE)))
    again = given(
        load_pair(speaking_pair().base_hf, speaking_pair().tuned_hf, tokenizer=tiny_tokenizer()), saes, confirm=100
    )
    assert np.array_equal(again.exact, sparse_effects().exact, equal_nan=True)
