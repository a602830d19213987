"""Texts to prompt with, train SAEs on and measure on: IMDB, TinyStories, HH, a local file, or any set of the hub.

Every text set has a train and a test side that share no text. A source without split files is divided by a
hash of each text (20 % test), so the side of a text never depends on its neighbours.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lfp_lens.core.errors import LensError
from lfp_lens.core.registry import Registry
from lfp_lens.parts.tables import TABLE_TYPES, file_rows, from_hub, local_set, require, split_file

SPLITS = ("train", "test")
FILE_TYPES = (*TABLE_TYPES, ".txt")
TEXTS: Registry[Callable[[str, int], list[str]]] = Registry("text set")


def load_texts(
    name: str, *, split: str = "train", column: str = "text", n: int | None = None, seed: int = 0
) -> list[str]:
    """Give texts, cleaned, exact duplicates dropped.

    Args:
        name: "imdb", "tinystories", "hh" or "world"; a local .parquet, .jsonl, .jsonl.gz, .csv or .txt (one text
            per line) file; a folder that holds such files named train and test; else the name of a data set
            on the Hugging Face hub. The first three are read from the folder that LFP_LENS_DATA names when it
            has them, else from the hub.
        split: "train" or "test". A single file is divided by a hash of each text, 20 % to test.
        column: the column that holds the text; unused for the named sets and .txt.
        n: shuffle with the seed and keep the first n, so a smaller n is the beginning of a larger one. None:
            all, in file order.
        seed: of the shuffle.

    Raises:
        LensError: for an unknown split, a file or set that cannot be read, a missing column (the columns are
            listed), a column that holds no text, and fewer than n texts (their number is given).
    """
    if split not in SPLITS:
        raise LensError(f"Unknown split {split!r}. Known: {', '.join(SPLITS)}.")
    if n is not None and n < 1:
        raise LensError(f"n must be at least 1, or None for all texts; {n} given.")
    if name == "world":
        from lfp_lens.parts.world import world_texts

        return world_texts(split, n, seed)
    texts = TEXTS[name](split, seed) if name in TEXTS else _from_anywhere(name, split, column)
    if n is None:
        return texts
    if len(texts) < n:
        raise LensError(f"{n} texts were asked for; the {split} split of {name!r} has {len(texts)} distinct ones.")
    order = np.random.default_rng(seed).permutation(len(texts))[:n]
    return [texts[place] for place in order]


@TEXTS.add("imdb")
def imdb_texts(split: str, seed: int = 0) -> list[str]:
    """Give the IMDB reviews of a split (Maas et al., ACL 2011): `<br />` gone, white space folded to one
    blank.

    A test review that also stands in train is dropped.
    """
    folder = local_set("imdb", "train.parquet")

    def read(side: str) -> list[str]:
        raw = _column(folder / f"{side}.parquet", "text") if folder else _from_hub("stanfordnlp/imdb", side, "text")
        return _distinct([_fold(text.replace("<br />", " ")) for text in raw])

    if split == "train":
        return read("train")
    known = set(read("train"))
    return [text for text in read("test") if text not in known]


@TEXTS.add("tinystories")
def tinystories_texts(split: str, seed: int = 0) -> list[str]:
    """Give TinyStories (Eldan and Li, 2023): stories with the set's mojibake left out, blank lines folded to
    one newline.

    From the hub, the first 100,000 stories of its train file; the two million would fill 4 GB of memory.
    """
    folder = local_set("tinystories", "tinystories_1000.jsonl.gz")
    if folder:
        raw = _column(folder / "tinystories_1000.jsonl.gz", "text")
    else:
        raw = _from_hub("roneneldan/TinyStories", "train[:100000]", "text")
    stories = [re.sub(r"\s*\n\s*", "\n", text).strip() for text in raw if "â" not in text]
    return _side(_distinct(stories), split)


@TEXTS.add("hh")
def hh_texts(split: str, seed: int = 0) -> list[str]:
    """Give the dialogues of HH-RLHF (Bai et al., 2022), chosen and rejected, as `load_preferences("hh")` splits them.

    They stand as a model tuned on the pairs saw them, from the first "Human:" on; no first question is on both sides.
    """
    from lfp_lens.parts.preferences import load_preferences

    pairs = getattr(load_preferences("hh"), split)
    return _distinct([pair.prompt + reply for pair in pairs for reply in (pair.chosen, pair.rejected)])


def _from_anywhere(name: str, split: str, column: str) -> list[str]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _distinct(_stripped(_column(_split_file(path, split), column)))
    if path.is_file():
        return _side(_distinct(_stripped(_column(path, column))), split)
    if name.endswith(FILE_TYPES) or name.startswith((".", "/", "~")):
        raise LensError(f"There is no text file {name!r}. Give a path to a {', '.join(FILE_TYPES)} file.")
    return _distinct(_stripped(_from_hub(name, split, column)))


def _split_file(folder: Path, split: str) -> Path:
    found = split_file(folder, split, FILE_TYPES)
    if found is None:
        raise LensError(
            f"The folder {folder} holds no {split} file. Expected {split}.parquet (or {', '.join(FILE_TYPES[1:])})."
        )
    return found


def _column(path: Path, column: str) -> list[str]:
    """Read one column of a local file. Rows whose text is missing are left out."""
    rows = _lines(path) if path.name.endswith(".txt") else [row for (row,) in file_rows(path, [column], "text file")]
    return _checked(rows, f"column {column!r} of {path}")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise LensError(f"The text file {path} cannot be read: {error}") from error


def _from_hub(name: str, split: str, column: str) -> list[str]:
    table = from_hub(name, "text set", [*TEXTS, "world"], split=split)
    require(column, table.column_names, name)
    return _checked(table[column], f"column {column!r} of {name}")


def _checked(rows: Sequence[Any], where: str) -> list[str]:
    wrong = next((row for row in rows if not isinstance(row, str) and row is not None), None)
    if wrong is not None:
        raise LensError(f"The {where} holds {type(wrong).__name__} values ({str(wrong)[:80]!r}); text is expected.")
    texts = [row for row in rows if row and row.strip()]
    if not texts:
        raise LensError(f"The {where} holds no text.")
    return texts


def _side(texts: list[str], split: str) -> list[str]:
    return [text for text in texts if _is_test(text) == (split == "test")]


def _is_test(text: str) -> bool:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % 5 == 0


def _distinct(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _stripped(texts: list[str]) -> list[str]:
    return [text.strip() for text in texts]


def _fold(text: str) -> str:
    return " ".join(text.split())
