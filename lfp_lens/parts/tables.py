"""Rows of local tables and of the hub, by column; what cannot be read is refused with the file, the line and the columns."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError, nearest
from lfp_lens.parts.sources import data_folder

TABLE_TYPES = (".parquet", ".jsonl", ".jsonl.gz", ".csv")


def file_columns(path: Path, what: str) -> list[str]:
    """Give the columns of a local table: of a .jsonl file, those of its first row. `what` names the file in errors."""
    with _read_errors(path, what):
        if path.name.endswith(".csv"):
            import pandas as pd

            return list(pd.read_csv(path, dtype=str, nrows=0).columns)
        if path.name.endswith(".parquet"):
            import pyarrow.parquet as parquet

            return list(parquet.read_schema(path).names)
        _check_type(path, what)
        return list(next(_json_rows(path, what), {}))


def file_rows(path: Path, columns: Sequence[str], what: str) -> list[tuple[Any, ...]]:
    """Give the named columns of a local table, one tuple per row; a missing value is None.

    Raises `LensError` for a file that cannot be read and for a missing column (the columns are listed).
    """
    with _read_errors(path, what):
        return list(_rows(path, columns, what))


def require(column: str, columns: Iterable[Any], where: object) -> None:
    """Raise `LensError` unless `column` is one of `columns`."""
    known = [str(one) for one in columns]
    if column not in known:
        raise LensError(f"{where} has no column {column!r}.{nearest(column, known)} Columns: {', '.join(known)}.")


def from_hub(name: str, what: str, known: Iterable[str], **options: Any) -> Any:
    """Give a data set of the Hugging Face hub, without bars; `known` are the names that a misspelt one is compared with."""
    import datasets

    try:
        with quiet_datasets():
            return datasets.load_dataset(name, **options)
    except (OSError, ValueError) as error:
        part = f"its {options['split']!r} split" if "split" in options else "it"
        raise LensError(
            f"The {what} {name!r} is no local file, and {part} could not be "
            f"had from the Hugging Face hub ({type(error).__name__}: {str(error)[:300]})."
            f"{nearest(name, known)} Give a local path, or set LFP_LENS_DATA."
        ) from error


def local_set(folder: str, file: str) -> Path | None:
    """Give a folder of the data folder that LFP_LENS_DATA names, None where it does not hold the file."""
    home = data_folder()
    return home / folder if home and (home / folder / file).is_file() else None


def split_file(folder: Path, split: str, endings: Sequence[str] = TABLE_TYPES) -> Path | None:
    """Give the file of a folder that is named after a split, None where there is none."""
    return next((path for ending in endings if (path := folder / f"{split}{ending}").is_file()), None)


def _rows(path: Path, columns: Sequence[str], what: str) -> Iterator[tuple[Any, ...]]:
    if path.name.endswith(".csv"):
        import pandas as pd

        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        for column in columns:
            require(column, frame.columns, path)
        yield from zip(*(frame[column] for column in columns))
    elif path.name.endswith(".parquet"):
        import pyarrow.parquet as parquet

        held = parquet.read_schema(path).names
        for column in columns:
            require(column, held, path)
        table = parquet.read_table(path, columns=list(dict.fromkeys(columns)))
        yield from zip(*(table[column].to_pylist() for column in columns))
    else:
        _check_type(path, what)
        for row in _json_rows(path, what, columns):
            for column in columns:
                require(column, row, path)
            yield tuple(row[column] for column in columns)


def _check_type(path: Path, what: str) -> None:
    if not path.name.endswith(TABLE_TYPES):
        raise LensError(f"The {what} {path} is of an unknown kind. Known: {', '.join(TABLE_TYPES)}.")


def _json_rows(path: Path, what: str, columns: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    wanted = f"a column {columns[0]!r}" if columns else "columns"
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise LensError(f"The {what} {path}, line {number}, is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise LensError(f"The {what} {path}, line {number}, holds no object with {wanted}.")
            yield row


@contextmanager
def _read_errors(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    # ValueError covers pyarrow's, pandas', JSON's and Unicode's complaints.
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise LensError(f"The {what} {path} cannot be read: {error}") from error


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Hide the bars of `datasets` while inside."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
