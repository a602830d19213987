"""Where preference pairs come from: HH-RLHF, toxic-dpo, files, folders and the hub, as rows of plain text by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.parts.tables import TABLE_TYPES, file_columns, file_rows, from_hub, local_set, require, split_file

COLUMNS = ("prompt", "chosen", "rejected")
HH_SUBSETS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
HUB_NAMES = {"hh": "Anthropic/hh-rlhf", "toxic": "unalignment/toxic-dpo-v0.2"}
WHAT = "preference set"
Row = tuple[Any, ...]
"""(chosen, rejected) as whole dialogues, or (prompt, chosen, rejected)."""


def read_sides(name: str, columns: tuple[str, ...]) -> dict[str, list[Row]]:
    """Give the rows of each side of a source: `train`, and `test` where it has one."""
    kind, _, subset = name.partition(":")
    if kind == "hh":
        return _read_hh(subset)
    if name == "toxic":
        return _read_hub(HUB_NAMES[name], COLUMNS)
    path = Path(name).expanduser()
    if path.is_dir():
        train, test = (split_file(path, side) for side in ("train", "test"))
        if train is None:
            raise LensError(f"The folder {path} holds no train file. Expected train{' or train'.join(TABLE_TYPES)}.")
        files = {"train": train} | ({} if test is None else {"test": test})
        return {side: _file_rows(file, columns) for side, file in files.items()}
    if path.is_file():
        return {"train": _file_rows(path, columns)}
    if name.endswith(TABLE_TYPES) or name.startswith((".", "/", "~")):
        raise LensError(f"There is no preference file {name!r}. Give a path to a {', '.join(TABLE_TYPES)} file.")
    return _read_hub(name, columns)


def _read_hh(subset: str) -> dict[str, list[Row]]:
    if subset and subset not in HH_SUBSETS:
        raise unknown("subset of hh", subset, HH_SUBSETS)
    wanted = [subset] if subset else list(HH_SUBSETS)
    folder = local_set("hh_rlhf", "train.jsonl.gz")
    if folder is None:
        parts = [_read_hub(HUB_NAMES["hh"], COLUMNS, data_dir=one) for one in wanted]
        return {side: [row for part in parts for row in part[side]] for side in parts[0]}
    sides = {side: file_rows(folder / f"{side}.jsonl.gz", (*COLUMNS[1:], "subset"), WHAT) for side in ("train", "test")}
    return {side: [row[:2] for row in rows if row[2] in wanted] for side, rows in sides.items()}


def _read_hub(name: str, columns: tuple[str, ...], **options: str) -> dict[str, list[Row]]:
    splits = from_hub(name, WHAT, [*HUB_NAMES, *(f"hh:{subset}" for subset in HH_SUBSETS)], **options)
    require("train", splits, f"The preference set {name!r}, as a data set of splits,")
    sides = {side: splits[side] for side in ("train", "test") if side in splits}
    return {side: _hub_rows(table, columns, name) for side, table in sides.items()}


def _hub_rows(table: Any, columns: tuple[str, ...], name: str) -> list[Row]:
    held = _held(columns, table.column_names)
    for column in held:
        require(column, table.column_names, name)
    return _checked(list(zip(*(table[column] for column in held))), held, name)


def _file_rows(path: Path, columns: tuple[str, ...]) -> list[Row]:
    held = _held(columns, file_columns(path, WHAT))
    return _checked(file_rows(path, held, WHAT), held, path)


def _held(columns: tuple[str, ...], known: Sequence[str]) -> tuple[str, ...]:
    """Leave the prompt's column out where the rows are whole dialogues; one that the caller named must be there."""
    return columns[1:] if columns[0] == COLUMNS[0] and COLUMNS[0] not in known else columns


def _checked(rows: list[Row], columns: tuple[str, ...], where: object) -> list[Row]:
    for row in rows:
        for column, value in zip(columns, row):
            if value is not None and not isinstance(value, str):
                raise LensError(
                    f"The column {column!r} of {where} holds {type(value).__name__} values ({str(value)[:80]!r}); text is "
                    "expected. Write a list of chat messages out as text first."
                )
    return rows
