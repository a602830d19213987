"""attribute: which features carry a scalar together, beside random sets."""

import copy
import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.parts.dictionaries import as_dictionary
from lfp_lens.parts.interventions import feature_edit, intervening
from lfp_lens.parts.pair import Pair
from lfp_lens.results.joint import Joint
from lfp_lens.stages.attribute import attribute, together
from tests.stages.planted import N_FEATURES, SITE, planted_saes, speaking_pair
from tests.stages.test_attribute import valence_by_hand
from tests.tiny import tiny_texts

TEXTS = tiny_texts(16)


def joint_of(pair: Pair, saes: Any = None, **changes: Any) -> Joint | None:
    given = {"confirm": 1, "joint": 4} | changes
    return attribute(pair, planted_saes(speaking_pair()) if saes is None else saes, TEXTS, **given).joint


@cache
def planted() -> Joint:
    found = joint_of(speaking_pair())
    assert found is not None
    return found


def mean_valence(model: Any, features: list[int]) -> float:
    """Mean expected valence over the half that reports, with these features removed by the hook of one edit."""
    pair = dataclasses.replace(speaking_pair(), tuned_hf=model)
    edit = feature_edit(as_dictionary(planted_saes(speaking_pair()).one(SITE)), features)
    with intervening(model, {SITE: edit}, begin=0), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.stages.test_attribute.speaking_pair", lambda: pair)
        return valence_by_hand(TEXTS[1::2], None, planted_saes(speaking_pair()), TEXTS)


def test_shares_are_of_the_gain_of_tuned_over_base_on_the_other_texts() -> None:
    found = planted()
    tuned, base = (mean_valence(model, []) for model in (speaking_pair().tuned_hf, speaking_pair().base_hf))
    assert (found.of, found.whole.n) == ("gain", len(TEXTS) // 2)
    assert found.whole.value == pytest.approx(tuned - base, abs=1e-5)
    for size, share in zip(found.sizes.tolist(), found.share):
        without = mean_valence(speaking_pair().tuned_hf, [index for _, index in found.features[:size]])
        assert share == pytest.approx((tuned - without) / (tuned - base), rel=1e-3)
    assert found.sizes.tolist() == [1, 2, 4]


def test_random_sets_are_other_features_each_beginning_with_the_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[tuple[str, int], ...]] = []
    edits = together.edits

    def noted(subject: Any, features: Any) -> Any:
        asked.append(tuple(features))
        return edits(subject, features)

    monkeypatch.setattr(together, "edits", noted)
    found = joint_of(speaking_pair())
    assert found is not None and np.isfinite(found.random).all()
    assert found.random.shape == (3, together.N_RANDOM)
    chosen = set(found.features)
    others = [features for features in asked if not chosen & set(features)]
    assert len(others) == 3 * together.N_RANDOM
    assert all(len(set(features)) == len(features) for features in others)
    for small in (features for features in others if len(features) == 1):
        assert any(large[:1] == small for large in others if len(large) == 4)


def test_the_first_feature_is_the_screens_and_the_next_are_screened_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    screened = together.screened

    def noted(*given: Any, already: Any, **named: Any) -> Any:
        seen.append(set(already))
        return screened(*given, already=already, **named)

    monkeypatch.setattr(together, "screened", noted)
    effects = attribute(speaking_pair(), planted_saes(speaking_pair()), TEXTS, confirm=1, joint=4)
    assert effects.joint is not None
    up = effects.joint.whole.value > 0
    first = int(np.argmax(effects.screen if up else -effects.screen))
    assert effects.joint.features[0] == (SITE, first)
    assert seen == [{SITE}, {SITE}], "before the second set and before the third"


def test_a_planted_feature_comes_first_and_carries_more_than_random_sets() -> None:
    """The tuned model is the base with the planted feature's direction added at the site, all else equal."""
    pair, saes = speaking_pair(), planted_saes(speaking_pair(), strength=1.0)
    direction = torch.from_numpy(saes.one(SITE).weights.tensors["W_dec"][0])
    tuned = copy.deepcopy(pair.base_hf)
    with torch.no_grad():
        tuned.gpt_neox.layers[2].mlp.dense_4h_to_h.bias += direction
    found = joint_of(dataclasses.replace(pair, tuned_hf=tuned), saes, joint=2)
    assert found is not None and found.features[0] == (SITE, 0)
    assert found.is_told and found.whole.value > 0
    # The feature is about 1 everywhere, as is what was added.
    assert 0.5 < found.share[0] < 1.5
    assert found.share_low[0] > found.random[0].max()
    assert found.share_low[0] <= found.share[0] <= found.share_high[0]


def test_of_one_model_the_share_is_of_the_scalars_value() -> None:
    found = joint_of(speaking_pair(), side="base")
    assert found is not None and found.of == "value"
    base = mean_valence(speaking_pair().base_hf, [])
    assert found.whole.value == pytest.approx(base, abs=1e-5)


def test_a_pair_of_equal_models_has_no_gain_to_share() -> None:
    found = joint_of(dataclasses.replace(speaking_pair(), tuned_hf=speaking_pair().base_hf))
    assert found is not None and not found.is_told
    assert found.whole.value == 0 and np.isnan(found.share).all() and np.isnan(found.share_low).all()
    assert "no set of features was measured" in found.plot().layout.annotations[0].text


def test_where_no_feature_fires_there_is_no_joint_set_and_zero_leaves_it_out() -> None:
    saes = planted_saes(speaking_pair())
    assert joint_of(speaking_pair(), saes, joint=0) is None
    saes.saes[0].weights.tensors["b_enc"][:] = -1e6
    assert joint_of(speaking_pair(), saes) is None


def test_a_set_is_never_larger_than_there_are_features_of_the_sign() -> None:
    found = joint_of(speaking_pair(), joint=100)
    assert found is not None
    assert found.sizes[-1] == len(found.features) <= N_FEATURES
    assert len(set(found.features)) == len(found.features)
    frame = found.to_frame()
    assert frame["random_mean"].isna().tolist() == [not np.isfinite(row).any() for row in found.random]
