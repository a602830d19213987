"""The parameter measures: one value per layer for two models' distance, relative to the base where the name says so."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.parts.weights import Weights, apart, are_equal, check_same_tensors, size


@dataclass(frozen=True, eq=False)
class Compared:
    """The parameter measures of one tuning."""

    to_base: dict[str, Float[np.ndarray, " layers"]]
    """Measure -> distance to the base."""
    to_tuned: dict[str, Float[np.ndarray, " layers"]] | None
    """Measure -> distance to the first tuning; None for the first tuning itself."""


def compare_parameters(base: Weights, tuned: Weights, replicates: Iterable[Weights] = ()) -> tuple[Compared, ...]:
    """Measure every tuning, the first one first. Raises `LensError` for tensors that do not match and for copies."""
    others = tuple(replicates)
    for other in (tuned, *others):
        check_same_tensors(base, other)
    sizes = [{name: size(base, name) for name in names} for names in tqdm(base.layers, desc="diverge: sizes")]
    first = Compared(_measures(base, tuned, sizes), None)
    found = [first]
    for other in others:
        both = Compared(_measures(base, other, sizes), _measures(tuned, other, sizes))
        _check_no_copy(base, tuned, other, both)
        found.append(both)
    return tuple(found)


def _measures(one: Weights, two: Weights, sizes: list[dict[str, float]]) -> dict[str, Float[np.ndarray, " layers"]]:
    rows = []
    for of_layer in tqdm(sizes, desc="diverge: weights"):
        change = {name: apart(one, two, name) for name in of_layer}
        rows.append(
            {
                "parameter_sum": sum(change.values()),
                "parameter_l2": _l2(change.values()),
                "parameter_relative": _relative(change, of_layer, list(change)),
                "mlp_relative": _relative(change, of_layer, _named(change, "mlp")),
                "attention_relative": _relative(change, of_layer, _named(change, "att")),
            }
        )
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


def _l2(norms: Iterable[float]) -> float:
    return float(np.sqrt(sum(norm**2 for norm in norms)))


def _named(names: Iterable[str], part: str) -> list[str]:
    """Name the tensors inside the block's MLP or attention module (`attention`, `attn`, `self_attn`)."""
    return [name for name in names if any(piece.removeprefix("self_").startswith(part) for piece in name.split("."))]


def _relative(change: Mapping[str, float], sizes: Mapping[str, float], names: list[str]) -> float:
    """Relative change of these tensors; not a number if there are none."""
    if not names:
        return float("nan")
    base = _l2(sizes[name] for name in names)
    return _l2(change[name] for name in names) / base if base else 0.0


def _check_no_copy(base: Weights, tuned: Weights, other: Weights, found: Compared) -> None:
    """Refuse a replicate that is the first tuning or the base itself: their distance is no seed's."""
    for whose, twin, distance in (("the first tuning", tuned, found.to_tuned), ("the base", base, found.to_base)):
        if distance is not None and not distance["parameter_l2"].any() and are_equal(twin, other):
            raise LensError(
                f"The replicate {other.name} has the weights of {whose}: a copy says nothing of the seed. Give another "
                "tuning of the same base that differs by its seed alone."
            )
