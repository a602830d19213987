"""Content hashes: the same content gives the same short string in every process, other content another."""

import dataclasses
import hashlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lfp_lens.core.errors import LensError


def fingerprint(value: Any) -> str:
    """Hash plain values, arrays, records, functions, and whatever carries a `fingerprint` string, to 16 hex digits.

    A function is its source, its defaults and the values it closes over; what it reads from its module is not seen.
    Raises `LensError` for a value without stable content (an object of an unknown class, a lambda without source).

    >>> fingerprint({"a": 1, "b": (2.0, "x")}) == fingerprint({"b": [2.0, "x"], "a": 1})
    True
    >>> fingerprint(1) == fingerprint(1.0)
    False
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in _parts(value):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterable[bytes]:
    own = getattr(value, "fingerprint", None)
    if isinstance(own, str):
        yield b"own:" + own.encode()
    elif value is None or isinstance(value, (bool, int, float)):
        yield f"{type(value).__name__}:{value!r};".encode()
    elif isinstance(value, (str, Path)):
        text = str(value).encode("utf-8", "surrogatepass")
        yield b"text:%d:" % len(text) + text
    elif isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        assert array.dtype != object, "object arrays have no stable bytes"
        yield f"array:{array.dtype.str}:{array.shape};".encode() + np.ascontiguousarray(array).tobytes()
    elif isinstance(value, dict):
        yield b"dict:%d;" % len(value)
        for key in sorted(value, key=str):
            yield from _parts(str(key))
            yield from _parts(value[key])
    elif isinstance(value, (list, tuple)):
        yield b"list:%d;" % len(value)
        for part in value:
            yield from _parts(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield type(value).__name__.encode() + b";"
        for field in dataclasses.fields(value):
            yield from _parts(field.name)
            yield from _parts(getattr(value, field.name))
    elif inspect.isroutine(value):
        yield from _parts([_source(value), _held(value)])
    else:
        raise LensError(
            f"{value!r} has no stable content to key a stored result with. Give it a `fingerprint` string attribute, "
            "or call without `store`."
        )


def _held(function: Any) -> list[Any]:
    """Give what a function carries beside its source: its owner, the values it closes over, its defaults."""
    inner = getattr(function, "__func__", function)
    owner = getattr(function, "__self__", None)
    cells = [cell.cell_contents for cell in getattr(inner, "__closure__", None) or ()]
    held = [cell for cell in cells if cell is not inner]
    if owner is not None and not isinstance(owner, type) and not inspect.ismodule(owner):
        held.append(owner)
    return held + [getattr(inner, "__defaults__", None), getattr(inner, "__kwdefaults__", None)]


def _source(function: Any) -> str:
    try:
        return f"{function.__module__}.{function.__qualname__}\n{inspect.getsource(function)}"
    except (OSError, TypeError) as error:
        raise LensError(
            f"The source of {function!r} cannot be read, so a stored result could not tell when it changes. "
            "Define it in a file, give it a `fingerprint` string attribute, or call without `store`."
        ) from error
