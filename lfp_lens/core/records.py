"""Results as plain files: a frozen dataclass becomes one JSON object and one array file, and back.

No pickle, no code: only classes decorated with `@record` can come back, arrays are numeric, boolean or fixed-width text,
and a path that lies inside the record's folder is kept relative, so a run can be moved.
"""

import dataclasses
import json
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar, dataclass_transform, runtime_checkable

import numpy as np

from lfp_lens.core.errors import LensError

C = TypeVar("C", bound=type)
_classes: dict[str, type] = {}
RESULT_FILE, ARRAY_FILE = "result.json", "arrays.npz"
SHOWN_PARTS, SHOWN_LETTERS = 6, 200
"""How much of a field is printed."""
DAMAGE = (
    OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SyntaxError, NotImplementedError,
    zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip
"""What JSON, NumPy and zip raise on garbled, foreign or hostile files."""


@runtime_checkable
class HasFiles(Protocol):
    """A record that owns its files' format (an SAE in SAELens' layout): it writes and reads its own folder."""

    def write_files(self, folder: Path) -> dict[str, Any]:
        """Write the files below `folder` and give the JSON object that finds them again."""
        ...

    @classmethod
    def read_files(cls, found: dict[str, Any], folder: Path) -> Any:
        """Make the record from what `write_files` gave."""
        ...


@dataclass_transform(frozen_default=True, eq_default=False)
def record(cls: C) -> C:
    """Make a class a frozen dataclass that the store can write and read. It prints short: arrays by shape, long fields by length.

    >>> @record
    ... class Point:
    ...     x: float
    ...     path: np.ndarray
    >>> Point(1.0, np.zeros((2, 3)))
    Point(x=1.0, path=float64[2, 3])
    """
    if "__repr__" not in vars(cls):
        cls.__repr__ = _short  # type: ignore[assignment]
    made: C = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)  # type: ignore[assignment]
    _classes[made.__name__] = made
    return made


def _short(self: Any) -> str:
    """Print a record in a line or two, whatever it holds."""
    fields = ", ".join(f"{field.name}={_told(getattr(self, field.name))}" for field in dataclasses.fields(self))
    return f"{type(self).__name__}({fields})"


def _told(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.ndim:
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, (tuple, list, dict)) and len(value) > SHOWN_PARTS:
        return f"{type(value).__name__}[{len(value)}]"
    text = repr(value)
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]} …"


def file_owner(cls: C) -> C:
    """Let a class that writes its own files (`HasFiles`) come back from disk."""
    _classes[cls.__name__] = cls
    return cls


def home_of(result: object) -> Path | None:
    """Tell which store folder a record was read from; None for one that lives in memory only."""
    return getattr(result, "_home", None)


def write_record(result: Any, folder: Path) -> None:
    """Write `result.json` and `arrays.npz` into an existing folder."""
    arrays: dict[str, np.ndarray] = {}
    packed = _pack(result, arrays, folder, is_top=True)
    (folder / RESULT_FILE).write_text(json.dumps(packed, indent=1, allow_nan=False), encoding="utf-8")
    np.savez_compressed(folder / ARRAY_FILE, **arrays)  # type: ignore[arg-type]


def read_record(folder: Path) -> Any:
    """Read back what `write_record` wrote; raises `LensError` for a folder that is damaged or from another format."""
    try:
        packed = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        # NumPy leaves the file open when it is no zip, so it is opened here.
        with open(folder / ARRAY_FILE, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        result = _unpack(packed, arrays, folder)
        object.__setattr__(result, "_home", folder)
    except DAMAGE as error:
        raise LensError(
            f"The stored result {folder} cannot be read ({type(error).__name__}: {error}). Delete that folder and rerun."
        ) from error
    return result


def _pack(value: Any, arrays: dict[str, np.ndarray], folder: Path, *, is_top: bool = False) -> Any:
    again: Callable[[Any], Any] = lambda part: _pack(part, arrays, folder)  # noqa: E731
    home = home_of(value)
    if home is not None and not is_top and home.resolve().parent == folder.resolve().parent:
        return {"$stored": home.name}
    if isinstance(value, HasFiles):
        return {"$files": type(value).__name__, "found": value.write_files(folder)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: again(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"$record": type(value).__name__, "fields": fields}
    if isinstance(value, np.ndarray):
        assert value.dtype != object, "object arrays would need pickle"
        name = f"a{len(arrays)}"
        arrays[name] = value
        return {"$array": name}
    if isinstance(value, np.generic):
        return again(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if isinstance(value, Path):
        inside = value.is_relative_to(folder)
        return {"$path": PurePosixPath(value.relative_to(folder)).as_posix() if inside else str(value)}
    if isinstance(value, (tuple, list)):
        return {"$tuple": [again(part) for part in value]}
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value), "records hold dictionaries with string keys only"
        return {"$dict": {key: again(part) for key, part in value.items()}}
    assert value is None or isinstance(value, (bool, int, float, str)), f"a record cannot hold {type(value)}"
    return value


def _unpack(value: Any, arrays: dict[str, np.ndarray], folder: Path) -> Any:
    again: Callable[[Any], Any] = lambda part: _unpack(part, arrays, folder)  # noqa: E731
    if not isinstance(value, dict):
        return value
    ((tag, held),) = [(key, part) for key, part in value.items() if key.startswith("$")]
    match tag:
        case "$stored":
            if held != Path(held).name or held in ("", "..", folder.name) or "\\" in held:
                raise ValueError(f"{held!r} is no other result of this run")
            return read_record(folder.parent / held)
        case "$files":
            return _class(held).read_files(value["found"], folder)
        case "$record":
            return _class(held)(**{name: again(part) for name, part in value["fields"].items()})
        case "$array":
            return arrays[held]
        case "$float":
            return float(held)
        case "$path":
            return folder / held
        case "$tuple":
            return tuple(again(part) for part in held)
        case "$dict":
            return {key: again(part) for key, part in held.items()}
    raise ValueError(f"unknown mark {tag!r}")


def _class(name: str) -> Any:
    if name not in _classes:
        raise ValueError(f"unknown record {name!r}: is lfp_lens.results imported?")
    return _classes[name]
