"""The same content has the same fingerprint everywhere; any other content another."""

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.records import record


@record
class Mark:
    place: int
    values: np.ndarray


DIFFERENT: list[Any] = [
    None, True, False, 0, 1, -1, 1.0, float("nan"), float("inf"), "", "1", "None", [], {}, [[]], [1], [1, 2], [2, 1],
    [[1], 2], [1, [2]], ["ab"], ["a", "b"], {"a": 1}, {"a": 2}, {"b": 1}, {"a": {"b": 1}}, np.zeros(2), np.zeros(3),
    np.zeros((2, 1)), np.zeros((1, 2)), np.zeros(2, np.float32), np.zeros(2, np.int64), np.array(["a", "b"]),
    Mark(1, np.zeros(2)), Mark(2, np.zeros(2)), Mark(1, np.ones(2)), "\u00e9", "e\u0301",
]  # fmt: skip


def scaled(factor: float) -> Callable[[float], float]:
    def reward(value: float) -> float:
        return factor * value

    return reward


def with_default(factor: float) -> Callable[..., float]:
    def reward(value: float, by: float = factor) -> float:
        return by * value

    return reward


class Judge:
    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.fingerprint = f"judge {factor}"

    def score(self, value: float) -> float:
        return self.factor * value


class Nameless:
    def score(self, value: float) -> float:
        return value


def recursive() -> Callable[[int], int]:
    def count(n: int) -> int:
        return 0 if n == 0 else 1 + count(n - 1)

    return count


def test_different_contents_have_different_fingerprints() -> None:
    seen = [fingerprint(value) for value in DIFFERENT]
    assert len(set(seen)) == len(DIFFERENT)


def test_the_order_of_keys_and_the_kind_of_sequence_do_not_matter() -> None:
    assert fingerprint({"a": 1, "b": (2.0, "x")}) == fingerprint({"b": [2.0, "x"], "a": 1})


def test_memory_layout_does_not_matter() -> None:
    square = np.arange(12.0).reshape(3, 4)
    assert fingerprint(square.T) == fingerprint(np.ascontiguousarray(square.T))
    assert fingerprint(square[:, ::2]) == fingerprint(square[:, ::2].copy())


def test_another_process_gives_the_same_fingerprint() -> None:
    """PYTHONHASHSEED differs between processes, so anything that leaned on `hash` would differ."""
    code = "from lfp_lens.core.fingerprint import fingerprint; print(fingerprint({'b': ['x', 1.5], 'a': None}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint({"b": ["x", 1.5], "a": None})


def test_text_with_lone_surrogates_is_hashed() -> None:
    assert fingerprint("\ud800") != fingerprint("\ud801")


def test_what_carries_its_own_fingerprint_is_taken_at_its_word() -> None:
    assert fingerprint(Judge(1.0)) == fingerprint(Judge(1.0)) != fingerprint(Judge(2.0))


def test_a_function_is_known_by_its_source() -> None:
    assert fingerprint(scaled(1.0)) == fingerprint(scaled(1.0)) != fingerprint(recursive())


@pytest.mark.parametrize("make", [scaled, with_default])
def test_a_function_that_closes_over_another_value_is_another_function(make: Callable[[float], Any]) -> None:
    assert fingerprint(make(1.0)) != fingerprint(make(2.0))


def test_a_bound_method_is_known_by_its_owner_too() -> None:
    assert fingerprint(Judge(1.0).score) == fingerprint(Judge(1.0).score) != fingerprint(Judge(2.0).score)


def test_a_function_that_calls_itself_is_hashed() -> None:
    assert fingerprint(recursive()) == fingerprint(recursive())


def test_a_class_and_a_function_with_state_that_cannot_be_hashed_are_refused() -> None:
    for value in (object(), Nameless().score, functools.partial(max, 1), {1, 2}):
        with pytest.raises(LensError, match="Give it a `fingerprint` string attribute"):
            fingerprint(value)


def test_a_function_without_source_is_refused() -> None:
    with pytest.raises(LensError, match=r"source of .*cannot be read.*Define it in a file"):
        fingerprint(eval("lambda text: 0.0"))


def test_a_path_is_hashed_as_its_text() -> None:
    assert fingerprint(Path("runs/tiny")) == fingerprint("runs/tiny")
