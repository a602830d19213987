"""The weights of two checkpoints side by side, tensor by tensor: from safetensors without building a model, or from memory.

Of a stored checkpoint one tensor is in memory at a time; a LoRA adapter is its low-rank factors, never a full matrix, unless
it is compared with one.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.merging import LowRank, change_norm

STACK = re.compile(r"^((?:.*?\.)??)((?:layers|h)\.(\d+)\.)(.+)$")
"""Where a tensor's name says which layer it is of: what stands before the stack, the stack and the layer, the rest."""
HEADS = ("lm_head.weight", "embed_out.weight")
CHUNK_VALUES = 2**20
NAMED = 3


@dataclass(frozen=True, eq=False)
class Weights:
    """One model's tensors, read when they are asked for."""

    name: str
    """What messages call it."""
    shapes: Mapping[str, tuple[int, ...]]
    """Name of every weight -> its shape. Names begin below the trunk: `layers.0.mlp.dense_h_to_4h.weight`."""
    read: Callable[[str], torch.Tensor]
    """Give one weight, in the precision it is stored in."""
    changes: Mapping[str, LowRank] | None = None
    """Name -> low-rank change, where this is the base and nothing else has changed; {} for the base; None: not known so."""
    is_tied: bool = False
    """Whether the output head may be the input embedding, stored once."""
    content: tuple[Path, ...] = ()
    """The files it is read from."""

    @cached_property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Names of each layer's tensors, in layer order. Raises `LensError` if there are none or a layer is missing."""
        found: dict[int, list[str]] = {}
        for name in sorted(self.shapes):
            if match := STACK.match(name):
                found.setdefault(int(match[3]), []).append(name)
        if not found:
            raise LensError(f"{self.name} has no weights named `layers.N...` or `h.N...`: no layer can be compared.")
        gaps = sorted(set(range(max(found) + 1)) - found.keys())
        if gaps:
            raise LensError(
                f"{self.name} has weights of layer {max(found)} but none of layer {gaps[0]}: it is incomplete."
            )
        return tuple(tuple(found[layer]) for layer in range(len(found)))


def of_model(model: Any, name: str, changes: Mapping[str, LowRank] | None = None) -> Weights:
    """Give a Hugging Face model's weights; `changes` are named as its parameters are."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    short = shortened(parameters, name)
    tensors = {short[key]: weight.detach() for key, weight in parameters.items()}
    shapes = {key: tuple(weight.shape) for key, weight in tensors.items()}
    renamed = None if changes is None else {short[key]: factors for key, factors in changes.items()}
    return Weights(name, shapes, tensors.__getitem__, renamed, is_tied=True)


def shortened(names: Any, whose: str) -> dict[str, str]:
    """Give every name without what stands before the stack of layers, so that `transformer.h.0.` and `h.0.` are one."""
    matches = [match for match in map(STACK.match, names) if match]
    stacks = sorted({match[1] + match[2].split(".")[0] for match in matches})
    if len(stacks) > 1:
        raise LensError(f"{whose} has {len(stacks)} stacks of layers ({', '.join(stacks)}); a causal LM has one.")
    trunk = matches[0][1] if matches else ""
    return {name: name.removeprefix(trunk) for name in names}


def check_same_tensors(base: Weights, other: Weights) -> None:
    """Raise `LensError` unless both have layers and the same tensors, by name, in the same shapes."""
    base.layers, other.layers  # noqa: B018  (each raises if it has none)
    missing = [name for name in base.shapes.keys() - other.shapes.keys() if not (other.is_tied and name in HEADS)]
    extra = [name for name in other.shapes.keys() - base.shapes.keys() if not (base.is_tied and name in HEADS)]
    both = sorted(base.shapes.keys() & other.shapes.keys())
    odd = [
        f"{name} is {base.shapes[name]} there and {other.shapes[name]} here"
        for name in both
        if base.shapes[name] != other.shapes[name]
    ]
    faults = [
        f"{what} {_listed(sorted(names))}"
        for what, names in (("it lacks", missing), ("it alone has", extra), ("of other shapes:", odd))
        if names
    ]
    if faults:
        raise LensError(
            f"The weights of {other.name} are not those of {base.name}, tuned: {'; '.join(faults)}. Tensors are matched by "
            "name; give two checkpoints of one architecture, shape and vocabulary."
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def size(weights: Weights, name: str) -> float:
    """Give a tensor's L2 norm, in fp32 values summed in fp64."""
    return _norm(weights, name, weights.read(name), None)


def apart(one: Weights, two: Weights, name: str) -> float:
    """Give the L2 norm of the difference of a tensor of two models: of low-rank changes in closed form."""
    if one.changes is not None and two.changes is not None:
        return _low_rank_apart(one.changes.get(name), two.changes.get(name))
    return _norm(two, name, two.read(name), one.read(name))


def are_equal(one: Weights, two: Weights) -> bool:
    """Tell whether all weights of two models are the same."""
    return all(apart(one, two, name) == 0 for name in sorted(one.shapes.keys() & two.shapes.keys()))


def _norm(whose: Weights, name: str, tensor: torch.Tensor, minus: torch.Tensor | None) -> float:
    total = 0.0
    rest = None if minus is None else minus.reshape(-1).split(CHUNK_VALUES)
    for at, chunk in enumerate(tensor.reshape(-1).split(CHUNK_VALUES)):
        values = chunk.float() if rest is None else chunk.float() - rest[at].to(chunk.device).float()
        total += float(values.double().square().sum())
    norm = total**0.5
    if not norm < float("inf"):
        raise LensError(f"{whose.name} (or its base) holds numbers that are not finite in {name}.")
    return norm


def _low_rank_apart(one: LowRank | None, two: LowRank | None) -> float:
    if one is None or two is None:
        only = one or two
        return 0.0 if only is None else change_norm(only)
    if one[2] == two[2] and all(torch.equal(this, that) for this, that in zip(one[:2], two[:2])):
        return 0.0
    (a_one, b_one, scale_one), (a_two, b_two, scale_two) = one, two
    right = torch.cat([a_one.double(), a_two.double().to(a_one.device)])
    left = torch.cat([scale_one * b_one.double(), -scale_two * b_two.double().to(b_one.device)], dim=1)
    return change_norm((right, left, 1.0))
