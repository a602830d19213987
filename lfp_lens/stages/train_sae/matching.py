"""Which features of one dictionary another found again: over sizes, over seeds, and of base and tuned.

Cosines are of decoder rows. The paper matches encoder rows, which with tied weights are the same.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from lfp_lens.results.train_sae import Match, SAERecord

BLOCK = 2048
"""Rows whose cosines are held at once where only the largest is wanted."""
MAX_ASSIGNED = 2**27
"""Pairs of features up to which they are assigned one to one: the matrix takes 12 bytes each. Beyond, only the largest."""
NULL_ROWS = 2000
"""Random rows that the null rests on, at least; small dictionaries are drawn several times."""


@dataclass(frozen=True, eq=False)
class Cosines:
    """Two dictionaries, row by row; fields as in `Match`."""

    left_largest: Float[np.ndarray, " left"]
    right_largest: Float[np.ndarray, " right"]
    left_nearest: Int[np.ndarray, " left"]
    right_nearest: Int[np.ndarray, " right"]
    left_assigned: Float[np.ndarray, " left"]
    right_assigned: Float[np.ndarray, " right"]
    left_partner: Int[np.ndarray, " left"]
    right_partner: Int[np.ndarray, " right"]


def match(records: Sequence[SAERecord], *, seed: int) -> tuple[Match, ...]:
    """Match every two dictionaries that differ in one thing only, and give each match beside its null.

    Matched are each SAE with the next larger one, every two seeds, and base with tuned. The null is the same between
    random dictionaries of these shapes, drawn with `seed`.
    """
    nulls: dict[tuple[int, int, int], dict[str, Any]] = {}
    found = []
    for relation, left, right in _pairs(records):
        rows = [record.weights.tensors["W_dec"] for record in (left, right)]
        shape = (len(rows[0]), len(rows[1]), rows[0].shape[1])
        if shape not in nulls:
            nulls[shape] = null(*shape, seed=seed)
        found.append(Match(relation, left.name, right.name, **vars(cosines(*rows)), **nulls[shape]))
    return tuple(found)


def stability(records: Sequence[SAERecord]) -> dict[str, Float[np.ndarray, " features"]]:
    """Give, by `SAERecord.name`, each feature's largest cosine with the same SAE of another seed, mean over those seeds.

    SAEs with one seed only are left out.
    """
    found: dict[str, list[np.ndarray]] = {}
    for relation, left, right in _pairs(records):
        if relation == "seeds":
            left_largest, right_largest, _, _ = largest(left.weights.tensors["W_dec"], right.weights.tensors["W_dec"])
            found.setdefault(left.name, []).append(left_largest)
            found.setdefault(right.name, []).append(right_largest)
    return {name: np.mean(parts, axis=0) for name, parts in found.items()}


def _pairs(records: Sequence[SAERecord]) -> Iterator[tuple[str, SAERecord, SAERecord]]:
    """Give (relation, left, right), in the order of the records."""
    traits = ("side", "site", "size", "architecture", "seed", "l1", "k", "lr")

    def groups(*but: str) -> list[list[SAERecord]]:
        kept = [name for name in traits if name not in but]
        held: dict[tuple[object, ...], list[SAERecord]] = {}
        for record in records:
            held.setdefault(tuple(getattr(record, name) for name in kept), []).append(record)
        return list(held.values())

    for group in groups("size"):
        ordered = sorted(group, key=lambda record: record.size)
        yield from (("sizes", small, large) for small, large in itertools.pairwise(ordered))
    for group in groups("seed"):
        yield from (("seeds", one, other) for one, other in itertools.combinations(group, 2))
    for group in groups("side"):
        sides = {record.side: record for record in group}
        if {"base", "tuned"} <= sides.keys():
            yield "sides", sides["base"], sides["tuned"]


def cosines(left_FD: Float[np.ndarray, "left width"], right_FD: Float[np.ndarray, "right width"]) -> Cosines:
    """Give the largest and the one-to-one assigned cosine of every row of both dictionaries.

    Beyond `MAX_ASSIGNED` pairs nothing is assigned: those cosines are NaN and the partners -1.

    >>> found = cosines(np.eye(2), np.array([[0.0, 2.0], [1.0, 0.0], [1.0, 1.0]]))
    >>> found.left_assigned.tolist(), found.left_partner.tolist(), found.right_partner.tolist()
    ([1.0, 1.0], [1, 0], [1, 0, -1])
    """
    left_assigned, right_assigned = (np.full(len(part), np.nan) for part in (left_FD, right_FD))
    left_partner, right_partner = (np.full(len(part), -1) for part in (left_FD, right_FD))
    if len(left_FD) * len(right_FD) <= MAX_ASSIGNED:
        cosine = _unit(left_FD) @ _unit(right_FD).T
        rows, columns = linear_sum_assignment(cosine, maximize=True)
        left_assigned[rows] = right_assigned[columns] = cosine[rows, columns]
        left_partner[rows], right_partner[columns] = columns, rows
    return Cosines(*largest(left_FD, right_FD), left_assigned, right_assigned, left_partner, right_partner)


def largest(
    left_FD: Float[np.ndarray, "left width"], right_FD: Float[np.ndarray, "right width"]
) -> tuple[
    Float[np.ndarray, " left"], Float[np.ndarray, " right"], Int[np.ndarray, " left"], Int[np.ndarray, " right"]
]:
    """Give the largest cosine of every left and every right row, then the index of the row that has it, likewise."""
    left_FD, right_FD = _unit(left_FD), _unit(right_FD)
    by_left, nearest_left = np.empty(len(left_FD)), np.empty(len(left_FD), dtype=np.int64)
    by_right, nearest_right = np.full(len(right_FD), -np.inf), np.zeros(len(right_FD), dtype=np.int64)
    for start in range(0, len(left_FD), BLOCK):
        cosine = left_FD[start : start + BLOCK] @ right_FD.T
        nearest_left[start : start + BLOCK] = cosine.argmax(axis=1)
        by_left[start : start + BLOCK] = cosine.max(axis=1)
        highest = cosine.max(axis=0)
        better = highest > by_right
        nearest_right[better], by_right[better] = start + cosine.argmax(axis=0)[better], highest[better]
    return by_left, by_right, nearest_left, nearest_right


def null(n_left: int, n_right: int, width: int, *, seed: int) -> dict[str, Any]:
    """Give what random dictionaries of these shapes score: the fields of `Match` that hold the null."""
    generator = np.random.default_rng(seed)
    draws = [
        cosines(*(generator.standard_normal((n, width), dtype=np.float32) for n in (n_left, n_right)))
        for _ in range(-(-NULL_ROWS // min(n_left, n_right, NULL_ROWS)))
    ]
    left, right, assigned = (
        np.concatenate([getattr(draw, name) for draw in draws])
        for name in ("left_largest", "right_largest", "left_assigned")
    )
    return {
        "left_null": float(left.mean()), "right_null": float(right.mean()),
        "null_assigned": float(np.nanmean(assigned)) if np.isfinite(assigned).any() else float("nan"),
        "left_null_99": float(np.quantile(left, 0.99)), "right_null_99": float(np.quantile(right, 0.99)),
    }  # fmt: skip


def _unit(rows_FD: np.ndarray) -> np.ndarray:
    """Give rows of length 1 in fp32; a row of zeros stays."""
    rows_FD = rows_FD.astype(np.float32)
    return rows_FD / np.maximum(np.linalg.norm(rows_FD, axis=1, keepdims=True), 1e-12)
