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


def random_model(base: Any, *, seed: int) -> Any:
    """Give a model of the same shape that learned nothing: every tensor drawn anew, with its own mean and spread.

    Matrices and embeddings are normal; vectors (biases, the scales of norms) keep their values in another order, so that
    no scale changes its sign. Tied tensors stay tied. The floor of dictionaries: what an SAE finds in activations that
    only tokens and the architecture shape (after arXiv 2501.17727, "re-randomized").
    """
    twin = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in twin.parameters():
            if weight.dim() < 2:
                order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.copy_(weight.flatten()[order].view_as(weight).clone())
                continue
            drawn = torch.randn(weight.shape, generator=generator)
            mean, spread = float(weight.double().mean()), float(weight.double().std(correction=0))
            weight.copy_((drawn * spread + mean).to(weight))
    return twin


def moved(base: Any, tuned: Any, share: float) -> Any:
    """Give the base moved by a share of what tuning changed: 0 is the base, 1 the tuned model, 2 twice the change."""
    twin = copy.deepcopy(base)
    ends = dict(tuned.named_parameters())
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            weight.add_(((ends[name].float() - weight.float()) * share).to(weight.dtype))
    return twin
