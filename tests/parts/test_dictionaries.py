"""Dictionaries: every kind reads and writes what its model, or its SAE, computes."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.dictionaries import as_dictionary, by_layer, mean_difference, mean_direction, neurons
from lfp_lens.parts.interventions import feature_edit
from lfp_lens.parts.saes import export, load_weights, new_sae
from lfp_lens.parts.sites import editing, watching
from lfp_lens.results.train_sae import SAEWeights
from tests.tiny import sae_record, tiny_model

SITE, WIDTH = "blocks.1.hook_mlp_out", 16


def made(architecture: str, *, side: str = "tuned", **settings: Any) -> Any:
    width = 2 * WIDTH if side == "both" else WIDTH
    sae = new_sae(architecture, d_in=width, d_sae=24, l1=None, k=settings.get("k"), steps=10, seed=0)
    with torch.no_grad():
        for seed, weight in enumerate(sae.parameters()):
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    weights = export(sae, site=SITE, model_name="tiny")
    weights.config["normalize_activations"] = "none"
    return sae_record(weights, side, SITE, firing_rate=np.full(24, 0.5))


@pytest.mark.parametrize("architecture", ["standard", "tied", "topk", "batchtopk", "jumprelu", "gated", "matryoshka"])
def test_an_sae_reads_and_writes_what_sae_lens_does(architecture: str) -> None:
    record = made(architecture)
    sae, dictionary = load_weights(record.weights), as_dictionary(record)
    acts = torch.randn(5, 7, WIDTH, generator=torch.Generator().manual_seed(3))
    features = sae.encode(acts)
    assert (features != 0).any()
    assert torch.allclose(dictionary.read(acts, None), features)
    change = torch.zeros_like(features)
    change[..., 4] = 1.0
    assert torch.allclose(sae.decode(features + change) - sae.decode(features), change @ dictionary.W_dec, atol=1e-5)


@pytest.mark.parametrize("architecture", ["standard", "tied", "topk", "batchtopk", "jumprelu", "gated"])
def test_a_few_features_read_alone_as_among_all(architecture: str) -> None:
    dictionary = as_dictionary(made(architecture))
    acts = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(3))
    some = dictionary.some([20, 3, 7])
    assert torch.allclose(some.read(acts, None), dictionary.read(acts, None)[:, [20, 3, 7]], atol=1e-5)
    assert torch.equal(some.W_dec, dictionary.W_dec[[20, 3, 7]])


def test_a_difference_dictionary_reads_the_change_and_a_crosscoder_both() -> None:
    acts, base = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(4)).unbind(0)
    difference = made("standard", side="difference")
    assert torch.allclose(
        as_dictionary(difference).read(acts, base), load_weights(difference.weights).encode(acts - base)
    )
    both = made("standard", side="both")
    read = as_dictionary(both)
    assert torch.allclose(read.read(acts, base), load_weights(both.weights).encode(torch.cat([base, acts], -1)))
    assert torch.equal(read.W_dec, load_weights(both.weights).W_dec[:, WIDTH:]), "it writes its tuned half"
    assert read.needs_base and as_dictionary(difference).needs_base and not as_dictionary(made("standard")).needs_base
    with pytest.raises(LensError, match="give a pair"):
        read.read(acts, None)


def test_a_feature_that_does_not_exist_is_refused() -> None:
    dictionary = as_dictionary(made("standard"))
    for index in (-1, 24):
        with pytest.raises(LensError, match=f"Feature {index} does not exist .* 0 to 23"):
            dictionary.some([index])


def test_an_sae_that_scales_token_by_token_is_refused() -> None:
    record = made("standard")
    scaled = SAEWeights(record.weights.config | {"normalize_activations": "layer_norm"}, record.weights.tensors)
    with pytest.raises(LensError, match="scale is folded"):
        as_dictionary(dataclasses.replace(record, weights=scaled))


@pytest.mark.parametrize("architecture", ["neox", "gpt2", "llama"])
def test_removing_all_neurons_leaves_the_bias_of_the_mlp(architecture: str) -> None:
    model = tiny_model(architecture)
    dictionary = neurons(model, SITE)
    ids = torch.randint(5, 50, (2, 6), generator=torch.Generator().manual_seed(5))
    with torch.no_grad(), watching(model, [SITE]) as clean:
        model(ids)
    everything = feature_edit(dictionary, range(dictionary.n_features))
    with torch.no_grad(), editing(model, {dictionary.site: everything}), watching(model, [SITE]) as seen:
        model(ids)
    assert not torch.allclose(clean[SITE], seen[SITE])
    assert torch.allclose(seen[SITE], seen[SITE][:1, :1].expand_as(seen[SITE])), "nothing of the text is left"


def test_the_mean_difference_is_subtracted_and_its_direction_projected_away() -> None:
    tuned_D, base_D = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(6)).unbind(0)
    acts = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(7))
    vector = feature_edit(mean_difference(SITE, tuned_D, base_D), [0])
    assert torch.allclose(vector(acts), acts - (tuned_D - base_D), atol=1e-6)
    projected = feature_edit(mean_direction(SITE, tuned_D, base_D), [0])(acts)
    unit = (tuned_D - base_D) / (tuned_D - base_D).norm()
    assert torch.allclose((projected - base_D) @ unit, torch.zeros(5), atol=1e-5)
    rest = torch.eye(WIDTH) - torch.outer(unit, unit)
    assert torch.allclose(projected @ rest, acts @ rest, atol=1e-5), "nothing else moves"


def test_dictionaries_are_ordered_by_layer_with_the_inside_first() -> None:
    model = tiny_model()
    given = {"blocks.1.hook_mlp_out": as_dictionary(made("standard")), "blocks.1.mlp.hook_post": neurons(model, SITE),
             "blocks.0.hook_mlp_out": as_dictionary(made("standard"))}  # fmt: skip
    assert list(by_layer(given)) == ["blocks.0.hook_mlp_out", "blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out"]
