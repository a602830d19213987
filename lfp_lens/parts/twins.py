"""Twins: models that should show nothing, measured exactly as the tuned one is."""

import copy
from typing import Any

import torch


def noise_twin(base: Any, tuned: Any, *, seed: int) -> Any:
    """Give the base model moved by random noise with the norm that tuning gave each tensor.

    It has moved as far as the tuned model, layer by layer, and learned nothing: the null of every signal that is itself
    a difference between tuned and base.
    """
    twin = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(seed)
    moved = dict(tuned.named_parameters())
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            distance = (moved[name].float() - weight.float()).norm()
            weight.add_((noise.float() * distance / noise.float().norm().clamp(min=1e-12)).to(weight.dtype))
    return twin
