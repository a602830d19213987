"""attribute: exact effects are what removing the feature by hand gives, and the planted feature comes first."""

import copy
import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.core.stats import Estimate
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.pair import load_pair
from lfp_lens.parts.saes import load_sae
from lfp_lens.parts.valence import token_values
from lfp_lens.results import Effects, SAESet
from lfp_lens.stages.attribute import attribute, verb
from tests.stages.planted import N_FEATURES, OTHER_SITE, SITE, planted_saes, speaking_pair
from tests.tiny import perturbed, tiny_model, tiny_pair, tiny_texts, tiny_tokenizer

TEXTS = tiny_texts(40)
TWICE = [text for text in TEXTS[:12] for _ in (0, 1)]
"""Both halves hold the same texts, so that screen and exact can be compared."""


def effects_of(saes: SAESet, texts: list[str] = TEXTS, **changes: Any) -> Effects:
    return attribute(speaking_pair(), saes, texts, **({"joint": 0} | changes))


@cache
def planted() -> Effects:
    return effects_of(planted_saes(speaking_pair()))


def valence_by_hand(texts: list[str], without: int | None, saes: SAESet, known: list[str]) -> float:
    """Mean over all positions of the expected value of the next word, one text at a time, through the full logits."""
    pair = speaking_pair()
    model, sae = pair.tuned_hf, load_sae(saes.one(SITE))
    values = token_values(
        pair.tokenizer, load_lexicon("vader"), known, vocabulary=model.config.vocab_size, device="cpu"
    )

    def remove(layer: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        if without is None:
            return out
        taken = sae.encode(out)[..., without, None] * sae.W_dec[without]
        taken[:, 0] = 0  # the beginning-of-text token is never touched
        return out - taken

    handle = model.gpt_neox.layers[2].mlp.register_forward_hook(remove)
    total, count = 0.0, 0
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([[0, *pair.tokenizer(text, add_special_tokens=False)["input_ids"]]])
            found = model(ids).logits[0].double().softmax(-1) @ values.double()
            total, count = total + float(found.sum()), count + len(found)
    handle.remove()
    return total / count


@pytest.mark.parametrize("feature", [0, 3])
def test_an_exact_effect_is_what_removing_the_feature_by_hand_takes_away(feature: int) -> None:
    saes, found = planted_saes(speaking_pair()), planted()
    second_half = TEXTS[1::2]
    before, after = (valence_by_hand(second_half, without, saes, TEXTS) for without in (None, feature))
    # fp32 sums against fp64 ones.
    assert found.exact[feature] == pytest.approx(before - after, abs=1e-5)
    assert found.n_texts == len(second_half)
    assert found.n_tokens == sum(len(tiny_tokenizer()(text)["input_ids"]) + 1 for text in second_half)


def test_the_planted_feature_comes_first_and_its_sign_says_what_removal_costs() -> None:
    found = planted()
    assert found.top(1).features == ((SITE, 0),)
    assert found.exact[0] > 2 * np.abs(found.exact[1:]).max()
    assert found.exact_low[0] > 0
    assert found.screen[0] > 0
    against = effects_of(planted_saes(speaking_pair(), sign=-1))
    assert against.exact[0] < 0
    assert against.top(1, sign=-1).features == ((SITE, 0),)
    assert (SITE, 0) not in against.top(5).features


def test_the_screen_is_the_derivative_of_the_exact_effect() -> None:
    """Features three hundred times weaker change predictions in proportion: screen and exact meet."""
    small = effects_of(planted_saes(speaking_pair(), strength=0.01), TWICE)
    # What is left is the second order, and fp32; the largest effect is about 1e-3.
    assert small.screen == pytest.approx(small.exact, rel=0.03, abs=1e-6)
    assert small.rank_correlation.value > 0.99
    large = effects_of(planted_saes(speaking_pair(), strength=3.0), TWICE)
    assert np.abs(large.screen[0] - large.exact[0]) > 0.05 * np.abs(large.exact[0]), "a large step is not linear"


def test_the_screen_reads_one_half_of_the_texts_and_exact_effects_the_other() -> None:
    saes, other = planted_saes(speaking_pair()), tiny_texts(40, seed=7)
    # The words' values come from all texts: with the same words in other orders they stay the same.
    changed_odd = [text if row % 2 == 0 else other[row] for row, text in enumerate(TEXTS)]
    changed_even = [text if row % 2 == 1 else other[row] for row, text in enumerate(TEXTS)]
    whole, odd, even = planted(), effects_of(saes, changed_odd), effects_of(saes, changed_even)
    assert odd.screen == pytest.approx(whole.screen, abs=1e-6)
    assert not np.allclose(odd.exact, whole.exact, atol=1e-5)
    assert even.exact == pytest.approx(whole.exact, abs=1e-6)
    assert not np.allclose(even.screen, whole.screen, atol=1e-5)


def test_only_the_strongest_and_the_drawn_features_are_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "N_CHECKED", 6)
    found = effects_of(planted_saes(speaking_pair()), confirm=4)
    confirmed = set(np.flatnonzero(np.isfinite(found.exact)))
    order = np.argsort(-found.screen)
    assert {*order[:4], *order[-4:]} <= confirmed
    assert confirmed == {*order[:4], *order[-4:], *np.flatnonzero(found.is_random)}
    assert len(confirmed) < N_FEATURES and found.is_random.sum() == found.rank_correlation.n == 6


def test_the_rank_correlation_is_spearmans_and_gates_the_ranking() -> None:
    found = planted()
    assert found.rank_correlation.n == N_FEATURES, "48 are drawn; there are fewer"
    assert found.rank_correlation.value == pytest.approx(stats.spearmanr(found.screen, found.exact).statistic)
    assert found.rank_correlation.low <= found.rank_correlation.value <= found.rank_correlation.high
    poor = dataclasses.replace(found, rank_correlation=Estimate(0.69, 0.5, 0.8, 24))
    with pytest.raises(GateError, match="The screen does not rank features as exact ablation does"):
        poor.top(3)


def test_an_interval_holds_its_effect_and_the_seed_changes_only_the_interval() -> None:
    found, other = planted(), effects_of(planted_saes(speaking_pair()), seed=3)
    assert (found.exact_low <= found.exact).all()
    assert (found.exact <= found.exact_high).all()
    assert np.array_equal(found.exact, other.exact)
    assert not np.array_equal(found.exact_low, other.exact_low)


def test_sites_follow_one_another_and_indices_start_anew() -> None:
    found = effects_of(planted_saes(speaking_pair(), sites=(SITE, OTHER_SITE)))
    assert found.site == (OTHER_SITE,) * N_FEATURES + (SITE,) * N_FEATURES
    assert found.index.tolist() == [*range(N_FEATURES)] * 2
    assert found.exact[N_FEATURES:] == pytest.approx(planted().exact, abs=1e-6, nan_ok=True)


def test_the_order_of_texts_within_a_half_does_not_matter() -> None:
    order = [*range(38, -1, -2)]
    shuffled = [text for row in order for text in (TEXTS[row], TEXTS[row + 1])]
    found = effects_of(planted_saes(speaking_pair()), shuffled)
    assert found.screen == pytest.approx(planted().screen, abs=1e-6)
    assert found.exact == pytest.approx(planted().exact, abs=1e-6)


def test_a_model_with_frozen_weights_is_screened_too() -> None:
    pair = speaking_pair()
    models = [copy.deepcopy(model).requires_grad_(False) for model in (pair.base_hf, pair.tuned_hf)]
    frozen = load_pair(*models, tokenizer=tiny_tokenizer())
    found = attribute(frozen, planted_saes(frozen), TEXTS)
    assert found.screen == pytest.approx(planted().screen, abs=1e-6)


def test_no_gradient_and_no_hook_is_left_on_the_model() -> None:
    planted()
    for model in (speaking_pair().base_hf, speaking_pair().tuned_hf):
        assert all(weight.grad is None for weight in model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_base_side_is_another_model() -> None:
    found = effects_of(planted_saes(speaking_pair()), side="base")
    assert found.side == "base"
    assert not np.allclose(found.exact, planted().exact, atol=1e-5)


def test_bad_saes_are_left_out_with_the_reason_or_kept_when_asked() -> None:
    good, bad = planted_saes(speaking_pair()), planted_saes(speaking_pair(), sites=(OTHER_SITE,), good=False)
    both = dataclasses.replace(good, saes=good.saes + bad.saes)
    found = effects_of(both)
    assert set(found.site) == {SITE}
    assert found.skipped == {OTHER_SITE: "explained variance 0.10 < 0.60"}
    assert set(effects_of(both, gate="warn").site) == {SITE, OTHER_SITE}
    with pytest.raises(GateError, match="No tuned SAE is good enough to interpret"):
        effects_of(bad)


def test_features_that_never_fire_have_no_effect_and_no_rank() -> None:
    saes = planted_saes(speaking_pair())
    for record in saes.saes:
        record.weights.tensors["b_enc"][:] = -1e6
    found = effects_of(saes)
    assert (found.screen == 0).all()
    assert np.isnan(found.rank_correlation.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scalar": "valence"}, "Unknown scalar 'valence'. Did you mean 'expected_valence'?"),
        ({"texts": TEXTS[:7]}, "needs at least 8; 7 given."),
        ({"gate": "no"}, "Unknown gate 'no'"),
        ({"side": "both"}, "No SAE matches side='both'"),
        ({"size": 3.0}, "No SAE matches"),
        ({"lexicon": "vadr"}, "Unknown lexicon 'vadr'"),
        ({"lexicon": {"unheard": 1.0}}, "0 different lexicon words occur in the 40 texts; 10 are needed"),
        ({"max_tokens": 1}, "max_tokens must be at least 2; 1 given."),
    ],
)
def test_what_cannot_be_attributed_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LensError) as caught:
        effects_of(planted_saes(speaking_pair()), **changes)
    assert message in str(caught.value)


def test_saes_of_another_pair_are_refused() -> None:
    with pytest.raises(LensError, match="These SAEs were trained on another pair"):
        attribute(tiny_pair(), planted_saes(speaking_pair()), TEXTS)
    twin = load_pair(tiny_model(), perturbed(tiny_model(), seed=9), tokenizer=tiny_tokenizer())
    with pytest.raises(LensError, match="These SAEs were trained on another pair"):
        attribute(twin, planted_saes(tiny_pair()), TEXTS)
