"""The screen: equal to exact ablation where the read-out is linear, whatever the batch, and its damage is the KL."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.parts.activations import Batch, batches, encode
from lfp_lens.parts.dictionaries import Dictionary, as_dictionary
from lfp_lens.parts.interventions import feature_edit
from lfp_lens.parts.scalars import expected_valence
from lfp_lens.parts.screening import Screen, screen
from lfp_lens.parts.sites import editing, watching
from lfp_lens.parts.teacher_forced import TeacherForced
from tests.stages.planted import OTHER_SITE, SITE, planted_saes, speaking_pair
from tests.tiny import tiny_texts, tiny_tokenizer

TEXTS = tiny_texts(24)
VALUES = torch.randn(512, generator=torch.Generator().manual_seed(0))


def dictionaries(*sites: str, strength: float = 0.02) -> dict[str, Dictionary]:
    saes = planted_saes(speaking_pair(), strength=strength, sites=sites)
    return {site: as_dictionary(saes.one(site)) for site in sites}


def data(size: int = 4096) -> list[Batch]:
    return list(batches(encode(tiny_tokenizer(), TEXTS, max_tokens=32), device="cpu", max_batch_tokens=size))


def values() -> torch.Tensor:
    return VALUES[: speaking_pair().tuned_hf.config.vocab_size]


def screened(of: Mapping[str, Dictionary], measure: Any = expected_valence, size: int = 4096, **options: Any) -> Screen:
    begin = tiny_tokenizer().bos_token_id
    return screen(speaking_pair().tuned_hf, of, data(size), measure, values_V=values(), begin=begin, **options)


def exact(
    of: Mapping[str, Dictionary], site: str, index: int, mode: str = "zero", **options: Any
) -> tuple[float, float]:
    """Effect on the expected valence and KL, per token."""
    pair = speaking_pair()
    forced = TeacherForced(
        pair.tuned_hf, encode(tiny_tokenizer(), TEXTS, max_tokens=32), values(), begin=tiny_tokenizer().bos_token_id
    )
    found = forced.read({site: feature_edit(of[site], [index], mode=mode, **options)})
    total = forced.tokens.sum()
    return float((forced.clean.valence - found.valence).sum() / total), float(found.kl.sum() / total)


RESIDUAL = "blocks.2.hook_resid_post"
"""What SITE is added to."""


@pytest.mark.parametrize("already", [(), (5, 11)])
def test_a_linear_read_out_makes_screen_and_exact_equal(already: tuple[int, ...]) -> None:
    of = dictionaries(OTHER_SITE, SITE, strength=1.0)
    model, (batch,) = speaking_pair().tuned_hf, data()
    real, content = batch.mask_BS.bool(), batch.content(tiny_tokenizer().bos_token_id)[..., None]
    direction = torch.randn(16, generator=torch.Generator().manual_seed(1))

    def total_without(*indices: int) -> float:
        edit = feature_edit(of[SITE], indices)
        put = editing(model, {SITE: lambda acts: torch.where(content, edit(acts), acts)})
        with torch.no_grad(), put, watching(model, [RESIDUAL]) as seen:
            model(batch.ids_BS, attention_mask=batch.mask_BS)
        return float((seen[RESIDUAL][real] @ direction).sum())

    gone = feature_edit(of[SITE], already)
    with watching(model, [RESIDUAL]) as kept:
        found = screened(of, lambda seen: kept[RESIDUAL][real] @ direction, already={SITE: gone} if already else None)
    for index in (0, 7, 23):
        effect = (total_without(*already) - total_without(*already, index)) / found.n_tokens
        assert found.zero[24 + index] == pytest.approx(effect, abs=1e-5)
        assert abs(effect) > 1e-3


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_small_features_screen_as_they_ablate(mode: str) -> None:
    of = dictionaries(OTHER_SITE, SITE)
    found = screened(of)
    for site, shift in ((OTHER_SITE, 0), (SITE, 24)):
        for index in (0, 3, 11):
            mean = torch.tensor(found.mean_activation[shift : shift + 24], dtype=torch.float32)[None]
            effect, _ = exact(of, site, index, mode, reference_MF=mean)
            assert found.effect(mode)[shift + index] == pytest.approx(effect, rel=0.02, abs=2e-7)
    assert np.abs(found.zero).max() > 1e-5


def test_batch_size_and_padding_change_nothing() -> None:
    of = dictionaries(OTHER_SITE, SITE)
    whole, single = screened(of), screened(of, size=1)
    assert whole.zero == pytest.approx(single.zero, abs=1e-7)
    assert whole.mean_activation == pytest.approx(single.mean_activation, abs=1e-6)
    assert whole.n_tokens == single.n_tokens


def test_signs_count_texts_with_their_sign() -> None:
    of = dictionaries(SITE)
    assert screened(of, signs=np.full(len(TEXTS), -1.0)).zero == pytest.approx(-screened(of).zero, abs=1e-9)


def test_integrated_gradients_follow_a_way_that_is_not_straight() -> None:
    of = dictionaries(SITE, strength=4.0)
    one_feature = {SITE: of[SITE].some([0])}
    effect, _ = exact(one_feature, SITE, 0)
    errors = [abs(screened(one_feature, steps=steps).zero[0] - effect) for steps in (1, 8, 256)]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.05 * abs(effect)


def test_damage_is_the_kl_of_each_feature() -> None:
    of = dictionaries(OTHER_SITE, SITE)
    found = screened(of, draws=64)
    damage = (found.moves["zero"] ** 2).sum(0)
    for site, shift in ((OTHER_SITE, 0), (SITE, 24)):
        for index in (0, 3):
            _, kl = exact(of, site, index)
            assert damage[shift + index] == pytest.approx(kl, rel=0.35)
    assert screened(of).moves == {}
    with pytest.raises(ValueError, match="damage"):
        screened(of).joint_order("zero")


def test_the_joint_order_prefers_effect_for_little_damage() -> None:
    moves = np.array([[1.0, 0.0, 3.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    made = Screen(
        ("a",) * 4, np.arange(4), np.array([1.0, 0.9, 1.2, -1.0]), np.zeros(4), np.zeros(4), np.ones(4),
        {"zero": moves, "mean": moves}, 10,
    )  # fmt: skip
    order = made.joint_order("zero")
    assert order == [0, 1, 2], "the third does most and harms most; the fourth works against"
    assert made.joint_order("mean") == [], "no feature has an effect in the mean reading"
