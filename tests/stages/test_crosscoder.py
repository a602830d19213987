"""Latent scaling finds what tuning added, and is not fooled by shrunk, split or weaker features, nor by two equal models."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import read_record, write_record
from lfp_lens.parts.saes import export, load_weights, new_sae
from lfp_lens.results.crosscoder import ABSENT_SCALING, EXCLUSIVE_NORM, MIN_FIRINGS, Crosscoder
from lfp_lens.results.train_sae import SAEWeights
from lfp_lens.stages.train_sae.crosscoder import compare
from tests.stages.planted_pairs import PlantedPair

WIDTH = 5
SHARED, ADDED, SHRUNK, SPLIT, SPLIT_TOO, REMOVED = range(6)
BASE_DECODER = {SHARED: (0, 1.0), SPLIT_TOO: (3, 1.0), REMOVED: (4, 2.0)}
TUNED_DECODER = {SHARED: (0, 1.0), ADDED: (1, 1.0), SHRUNK: (2, 0.5), SPLIT: (3, 1.0)}
STRENGTH_IN_BASE, STRENGTH_IN_TUNED = (1.0, 0.0, 0.4, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0, 0.0)

Chunks = Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]


def weights_of(width: int, d_sae: int) -> SAEWeights:
    sae = new_sae("standard", d_in=width, d_sae=d_sae, l1=None, k=None, steps=1, seed=0)
    sae.fold_activation_norm_scaling_factor(1.0)
    return export(sae, site="blocks.0.hook_mlp_out", model_name="by hand")


def by_hand() -> SAEWeights:
    """Feature values are the activation along one axis of the model that decodes them; the decoder says who has what."""
    weights = weights_of(2 * WIDTH, 6)
    encoder, decoder = np.zeros((2 * WIDTH, 6), np.float32), np.zeros((6, 2 * WIDTH), np.float32)
    for offset, halves in ((0, BASE_DECODER), (WIDTH, TUNED_DECODER)):
        for feature, (axis, length) in halves.items():
            decoder[feature, offset + axis] = length
            encoder[:, feature] = 0
            encoder[offset + axis, feature] = 1 / length
    zeros = {"b_enc": np.zeros(6, np.float32), "b_dec": np.zeros(2 * WIDTH, np.float32)}
    return SAEWeights(weights.config, {"W_enc": encoder, "W_dec": decoder, **zeros})


def activations(n: int = 40, size: int = 100, shift: float = 0.0) -> Chunks:
    def chunks() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(n):
            values = torch.rand(size, WIDTH, generator=generator) * (torch.rand(size, WIDTH, generator=generator) < 0.3)
            yield values * torch.tensor(STRENGTH_IN_BASE) + shift, values * torch.tensor(STRENGTH_IN_TUNED)

    return chunks


def test_hand_made_features_get_their_exact_scaling() -> None:
    found = compare(by_hand(), activations())
    # By hand: the shrunk feature is left in base's error at 0.4 of its strength in tuned; the split one is rebuilt there by
    # its twin at full strength, and nothing of it is in the error; the others are as their decoders say.
    np.testing.assert_allclose(found.scaling, [1, 0, 0.4, 0, 0, 0], atol=1e-5)
    np.testing.assert_allclose(found.reconstruction_scaling[[SHARED, SPLIT, SPLIT_TOO]], 1, atol=1e-5)
    # The axes fire independently, so what is not there correlates by chance only: 4000 tokens give a spread of 0.02.
    np.testing.assert_allclose(found.reconstruction_scaling[[ADDED, SHRUNK, REMOVED]], 0, atol=0.1)
    np.testing.assert_allclose(found.relative_norm, [0.5, 1, 1, 1, 0, 0], atol=1e-6)
    assert found.verdict.tolist() == ["shared", "tuned_only", "weak", "shared", "shared", "base_only"]
    assert found.n_tokens == 4000 and found.n_chunks == 40


def test_a_mean_that_moved_is_not_a_feature() -> None:
    weights = by_hand()
    moved = weights.tensors | {"b_dec": np.r_[np.full(WIDTH, 0.0), np.zeros(WIDTH)].astype(np.float32)}
    found = compare(SAEWeights(weights.config, moved), activations(shift=-0.5))
    np.testing.assert_allclose(found.scaling[[ADDED, SHRUNK]], [0, 0.4], atol=1e-5)
    assert found.verdict[ADDED] == "tuned_only"


def test_scaling_is_the_least_squares_fit_of_each_feature() -> None:
    weights, (base, tuned) = weights_of(12, 7), torch.randn(2, 400, 6, generator=torch.Generator().manual_seed(1))
    found = compare(weights, lambda: zip(base.split(50), tuned.split(50)))
    sae = load_weights(weights)
    features = sae.encode(torch.cat([base, tuned], 1)).double().numpy()
    decoder, bias = (weights.tensors[name].astype(float) for name in ("W_dec", "b_dec"))
    for feature in range(7):
        halves = {"base": decoder[feature, :6], "tuned": decoder[feature, 6:]}
        owner = max(halves, key=lambda model: float(np.linalg.norm(halves[model])))
        betas: dict[str, list[float]] = {}
        for model, acts, side in (("base", base, slice(0, 6)), ("tuned", tuned, slice(6, 12))):
            others = np.delete(np.arange(7), feature)
            rest = acts.numpy() - features[:, others] @ decoder[others, side] - bias[side]
            whole = features @ decoder[:, side]
            betas[model] = [fitted(features[:, feature], halves[owner], target) for target in (rest, whole)]
        other = "base" if owner == "tuned" else "tuned"
        for measured, at in ((found.scaling, 0), (found.reconstruction_scaling, 1)):
            assert measured[feature] == pytest.approx(betas[other][at] / betas[owner][at], rel=1e-3, abs=1e-4)


def fitted(feature: np.ndarray, direction: np.ndarray, target: np.ndarray) -> float:
    """Fit target ~ beta * feature * direction + one constant per axis."""
    design = np.kron(feature[:, None], direction[:, None])
    constants = np.tile(np.eye(len(direction)), (len(feature), 1))
    return float(np.linalg.lstsq(np.hstack([design, constants]), target.ravel(), rcond=None)[0][0])


def test_how_tokens_fall_into_chunks_changes_no_scaling() -> None:
    weights = by_hand()
    base, tuned = (torch.cat(parts) for parts in zip(*activations()()))
    whole = compare(weights, lambda: zip(base.split(2000), tuned.split(2000)))
    many = compare(weights, lambda: zip(base.split(37), tuned.split(37)))
    np.testing.assert_allclose(whole.scaling, many.scaling, atol=1e-5)
    np.testing.assert_array_equal(whole.firings, many.firings)
    assert many.n_chunks == 64


def test_intervals_are_those_of_a_bootstrap_over_chunks() -> None:
    """The strength in base differs from chunk to chunk, 0.2 or 0.6: the interval of its mean is known."""

    def chunks() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for (base, tuned), strength in zip(activations(n=60)(), [0.5, 1.5] * 30):
            yield base * torch.tensor([1, 1, strength, 1, 1]), tuned

    found = compare(by_hand(), chunks)
    assert found.scaling[SHRUNK] == pytest.approx(0.4, abs=0.02)
    # Spread 0.2 over 60 chunks: standard error 0.026, and 1.96 of those to each side.
    assert found.scaling_low[SHRUNK] == pytest.approx(0.4 - 0.051, abs=0.025)
    assert found.scaling_high[SHRUNK] == pytest.approx(0.4 + 0.051, abs=0.025)


def a_crosscoder(**changes: list[float]) -> Crosscoder:
    """One feature per column; by default tuned only beyond doubt."""
    n = len(next(iter(changes.values())))
    columns = {"base_norm": 0.0, "tuned_norm": 1.0, "cosine": 0.5, "scaling": 0.01, "scaling_low": -0.01,
               "scaling_high": 0.03, "reconstruction_scaling": 0.0, "firings": 100}  # fmt: skip
    arrays = {name: np.array(changes.get(name, [value] * n)) for name, value in columns.items()}
    return Crosscoder(**arrays, n_tokens=1000, n_chunks=10)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"scaling": 0.01}, "tuned_only"),
        ({"scaling": 0.15, "scaling_low": 0.13, "scaling_high": 0.17}, "weak"),
        ({"scaling": 0.05, "scaling_low": -0.02, "scaling_high": 0.12}, "unknown"),
        ({"scaling": 0.8, "scaling_low": 0.7, "scaling_high": 0.9}, "shared"),
        ({"reconstruction_scaling": 0.9}, "shared"),
        ({"scaling": -0.4, "scaling_low": -0.5, "scaling_high": -0.3}, "unknown"),
        ({"base_norm": 0.3}, "shared"),
        ({"firings": MIN_FIRINGS - 1}, "unknown"),
        ({"scaling": float("nan")}, "unknown"),
        ({"base_norm": 0.0, "tuned_norm": 0.0}, "unknown"),
        ({"base_norm": 1.0, "tuned_norm": 0.0}, "base_only"),
    ],
)
def test_a_verdict_needs_norm_and_scaling(changes: dict[str, float], verdict: str) -> None:
    assert a_crosscoder(**{name: [value] for name, value in changes.items()}).verdict.tolist() == [verdict]


def test_relative_norm_is_the_formula_of_the_field() -> None:
    found = a_crosscoder(base_norm=[0, 1, 2, 0.15], tuned_norm=[3, 1, 0, 1])
    np.testing.assert_allclose(found.relative_norm, [1, 0.5, 0, 0.925])
    assert found.claimed_by_norm("tuned").tolist() == [0, 3] and found.claimed_by_norm("base").tolist() == [2]
    assert EXCLUSIVE_NORM == 0.9 and ABSENT_SCALING == 0.1


def test_the_lists_share_out_every_feature_that_is_known() -> None:
    found = compare(by_hand(), activations())
    lists = [found.tuned_only(), found.base_only(), found.shared(), found.weak()]
    assert sorted(np.concatenate(lists).tolist()) == list(range(6))
    frame = found.to_frame()
    assert len(frame) == 6 and frame["relative_norm"].is_monotonic_decreasing
    assert frame.loc[frame["feature"] == ADDED, "verdict"].item() == "tuned_only"


def test_a_crosscoder_is_drawn_shown_and_stored(tmp_path: Path) -> None:
    found = compare(by_hand(), activations())
    figure = found.plot()
    assert sum(float(np.sum(bar.y)) for bar in figure.data) == 6
    assert "1 tuned only, 1 base only, 1 weak, 3 shared, 0 unknown; 4000 tokens" in found._repr_html_()
    write_record(found, tmp_path)
    read = read_record(tmp_path)
    for field in dataclasses.fields(Crosscoder):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(found, field.name))


def test_a_feature_that_never_fires_is_unknown() -> None:
    weights = by_hand()
    silent = weights.tensors["b_enc"].copy()
    silent[ADDED] = -10
    found = compare(SAEWeights(weights.config, weights.tensors | {"b_enc": silent}), activations())
    assert found.firings[ADDED] == 0 and found.verdict[ADDED] == "unknown" and np.isnan(found.scaling[ADDED])


def test_what_tuning_added_is_recovered_and_nothing_shared_is_taken_for_it() -> None:
    """The acceptance set, a quarter as large; `python -m tests.benchmarks crosscoder` runs it whole."""
    pair = PlantedPair.make(SMALL_SEED, **SMALL)
    weights = pair.train(d_sae=128, k=3, steps=1500, batch=256)
    found = compare(weights, pair.chunks(40, 500))
    judged = pair.verdicts(weights, found)
    assert judged["norms"]["weak"] >= 4, "without latent scaling, features that are weak in base count as tuned only"
    kept = judged["norms + scaling"]
    assert kept["recovered"] >= 5 and kept["shared"] == kept["base"] == kept["weak"] == 0
    assert len(found.weak()) >= 4


def test_two_copies_of_one_model_have_no_feature_of_their_own() -> None:
    pair = PlantedPair.make(0, width=32, shared=30, tuned=0, base=0, weak=0)
    weights = pair.train(d_sae=64, k=2, steps=400, batch=256)
    found = compare(weights, pair.chunks(40, 500))
    assert len(found.shared()) >= 25
    assert len(found.tuned_only()) == len(found.base_only()) == len(found.weak()) == 0
    assert len(found.claimed_by_norm("tuned")) == len(found.claimed_by_norm("base")) == 0


SMALL_SEED = 1
SMALL = {"width": 64, "shared": 45, "tuned": 6, "base": 6, "weak": 6}


def fails_with(message: str, chunks: Chunks, weights: SAEWeights | None = None) -> None:
    with pytest.raises(LensError, match=message):
        compare(weights or by_hand(), chunks)


def test_activations_that_do_not_fit_are_refused() -> None:
    good = torch.ones(3, WIDTH)
    fails_with(r"reads 5 numbers per token.*\(3, 4\) given for base", lambda: iter([(good[:, :4], good[:, :4])]))
    fails_with(r"at the same tokens.*\(2, 5\) given for tuned \(\(3, 5\) for base\)", lambda: iter([(good, good[:2])]))
    fails_with("tuned activations are not all finite", lambda: iter([(good, good / 0)]))
    fails_with("at least 2 chunks of tokens for its intervals; 1 given", lambda: iter([(good, good)]))
    fails_with("at least 2 chunks of tokens for its intervals; 0 given", lambda: iter([]))


def test_a_dictionary_that_is_no_crosscoder_is_refused() -> None:
    good = torch.ones(3, WIDTH)
    fails_with("reads 5 numbers. Train it with side='both'", lambda: iter([(good, good)]), weights_of(5, 4))
