"""QuickBatchTopK: SAELens' own choice of values and gradients, on values that are dense, sparse, equal or few."""

import numpy as np
import pytest
import torch
from sae_lens.saes.batchtopk_sae import BatchTopK

from lfp_lens.parts.batch_topk import QuickBatchTopK, kth_largest


def drawn(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(256, 64, generator=generator)
    return {
        "dense": values,
        "sparse": values - 2.5,
        "all below zero": -values.abs() - 1,
        "sorted": values.flatten().sort().values.reshape(256, 64),
        "large where the sample looks": torch.where((torch.arange(64) % 16 == 0)[None], values + 5, values),
    }[kind]


@pytest.mark.parametrize("kind", ["dense", "sparse", "all below zero", "sorted", "large where the sample looks"])
@pytest.mark.parametrize("k", [1, 7, 63, 64])
def test_values_and_gradients_are_those_of_saelens(kind: str, k: int) -> None:
    found = []
    for made in (QuickBatchTopK, BatchTopK):
        x = drawn(kind).requires_grad_()
        out = made(k)(x)
        (out * torch.arange(64.0)).sum().backward()
        found.append((out.detach(), x.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_of_equal_values_at_the_threshold_no_more_stay_than_asked() -> None:
    out = QuickBatchTopK(2)(torch.ones(8, 4))
    assert int((out > 0).sum()) == int((BatchTopK(2)(torch.ones(8, 4)) > 0).sum()) == 16


@pytest.mark.parametrize("k", [1, 100, 4000, 8192])
def test_the_kth_largest_is_found_exactly_wherever_the_sample_looks(k: int) -> None:
    generator = np.random.default_rng(k)
    for values in (generator.normal(size=8192), np.repeat(generator.normal(size=64), 128), np.arange(8192.0)):
        assert kth_largest(values, k) == np.sort(values)[-k]
