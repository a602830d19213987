"""Lexicons: word -> human valence. VADER from the wheel's file, the user's own from a file or a mapping.

VADER (Hutto and Gilbert, ICWSM 2014) rates 7,506 entries from -4 to 4; a rating is the mean of ten people's.
The paper uses it as a bag of words: none of VADER's rules for negation, boosters or capitals.
"""

import csv
import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lfp_lens.core.errors import LensError, nearest
from lfp_lens.parts.words import word_counts

HEADERS = ("word", "words", "token", "term")
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
FORMAT = "a .csv or .tsv file with one word,value per line, or a .json file with one object of word: value"


def load_lexicon(source: str | os.PathLike[str] | Mapping[str, float]) -> dict[str, float]:
    """Give a lexicon as word -> value, checked.

    Args:
        source: "vader"; a `.csv`, `.tsv` or `.txt` (tab-separated, VADER's own layout) file whose first two
            columns are word and value, with or without a header line; a `.json` file with one object; or a
            mapping, which is checked and copied. Words in files are lower-cased, because look-ups are.

    Raises:
        LensError: for an unknown name, a file that cannot be read, and the line (or the word) of a duplicate,
            an empty word, a value that is no number or not finite, and a lexicon without entries.

    >>> load_lexicon("vader")["great"]
    3.1
    """
    if isinstance(source, Mapping):
        return _checked_mapping(source)
    if not isinstance(source, (str, os.PathLike)):
        raise LensError(
            f"A lexicon is 'vader', a file or a mapping of words to values; a {type(source).__name__} given."
        )
    if source == "vader":
        return dict(_vader())
    path = Path(source).expanduser()
    if not path.is_file():
        hint = nearest(str(source), ["vader"])
        raise LensError(f"Unknown lexicon {str(source)!r}: neither 'vader' nor a file.{hint} Give {FORMAT}.")
    if path.suffix.lower() not in (*DELIMITERS, ".json"):
        raise LensError(f"The lexicon file {path} ends in {path.suffix!r}. Give {FORMAT}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        entries = _json_entries(text, path) if path.suffix.lower() == ".json" else _table_entries(text, path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LensError(f"The lexicon file {path} cannot be read: {error}. Give {FORMAT}.") from error
    return _collect(entries, str(path))


def flip(lexicon: Mapping[str, float], words: Collection[str]) -> dict[str, float]:
    """Give a copy of the lexicon in which the values of `words` have the opposite sign: planted wrong
    feedback.

    Raises `LensError` for a word that is not in the lexicon.

    >>> flip({"good": 2.0, "bad": -2.5}, ["good"])
    {'good': -2.0, 'bad': -2.5}
    """
    return edited(lexicon, dict.fromkeys(words, -1.0))


def edited(lexicon: Mapping[str, float], factors: Mapping[str, float]) -> dict[str, float]:
    """Give a copy of the lexicon with the values of some words multiplied: -1 flips a word, 0 mutes it, 3 inflates it.

    Raises `LensError` for a word that is not in the lexicon and for a factor that is no finite number.

    >>> edited({"good": 2.0, "bad": -2.5}, {"good": 3})
    {'good': 6.0, 'bad': -2.5}
    """
    changed: dict[str, float] = {}
    for word, factor in factors.items():
        number = _number(factor)
        if word not in lexicon:
            raise LensError(f"{word!r} is not in the lexicon, so it cannot be edited.{nearest(str(word), lexicon)}")
        if number is None or not math.isfinite(number):
            raise LensError(f"The factor of {word!r} is {factor!r}; a finite number is expected.")
        changed[word] = number * lexicon[word]
    return {**lexicon, **changed}


def shuffled(lexicon: Mapping[str, float], seed: int) -> dict[str, float]:
    """Give a copy of the lexicon whose values are permuted among its words: the same values, no meaning.

    The order in which the words stand does not matter.

    >>> sorted(shuffled({"good": 2.0, "bad": -2.5, "ok": 0.5}, seed=0).values())
    [-2.5, 0.5, 2.0]
    """
    words = sorted(lexicon)
    order = np.random.default_rng(seed).permutation(len(words))
    values = {word: lexicon[words[at]] for word, at in zip(words, order)}
    return {word: values[word] for word in lexicon}


def most_frequent(
    lexicon: Mapping[str, float], texts: Sequence[str], k: int, min_value: float = 1.0
) -> tuple[str, ...]:
    """Give the `k` lexicon words with |value| >= `min_value` that are most frequent in the texts (ties
    alphabetical).

    Raises `LensError` when the texts hold fewer than `k` of them.

    >>> most_frequent({"good": 2.0, "bad": -2.5, "ok": 0.5}, ["good bad good ok ok ok"], 1)
    ('good',)
    """
    found = _by_frequency(lexicon, texts, min_value)
    if len(found) < k:
        raise LensError(
            f"{k} lexicon words with |value| >= {min_value} were asked for; "
            f"the {len(texts)} texts hold {len(found)}. "
            "Give more texts, ask for fewer words or lower min_value."
        )
    return found[:k]


def candidates(
    lexicon: Mapping[str, float], texts: Sequence[str], most: int = 300, min_value: float = 1.0
) -> tuple[str, ...]:
    """Give the lexicon words with |value| >= `min_value` that stand in the texts: the `most` frequent, or all if
    fewer.

    The most frequent comes first, ties are alphabetical. No secret takes part, so whoever has lexicon and texts
    knows from which words wrong ones are drawn. Raises `LensError` for `most` below 1.

    >>> candidates({"good": 2.0, "bad": -2.5, "ok": 0.5, "awful": -2.0}, ["good bad good ok"])
    ('good', 'bad')
    """
    if most < 1:
        raise LensError(f"The number of candidates must be 1 or more; {most} given.")
    return _by_frequency(lexicon, texts, min_value)[:most]


def choose_flips(lexicon: Mapping[str, float], texts: Sequence[str], n: int, seed: int) -> tuple[str, ...]:
    """Draw `n` words to flip, with the seed, from the 10 * n most frequent strong lexicon words (or all, if
    fewer).

    The words come in alphabetical order. Raises `LensError` when the texts hold fewer than `n` of them.

    >>> choose_flips({"good": 2.0, "bad": -2.5}, ["good bad"], 2, seed=0)
    ('bad', 'good')
    """
    if n < 0:
        raise LensError(f"The number of words to flip must be 0 or more; {n} given.")
    found = _by_frequency(lexicon, texts, 1.0)
    pool = found[: 10 * n] if len(found) >= n else most_frequent(lexicon, texts, n)
    drawn = np.random.default_rng(seed).choice(len(pool), size=n, replace=False) if n else ()
    return tuple(sorted(pool[place] for place in drawn))


def _by_frequency(lexicon: Mapping[str, float], texts: Sequence[str], min_value: float) -> tuple[str, ...]:
    counts = word_counts(texts)
    strong = [word for word, value in lexicon.items() if abs(value) >= min_value and counts[word] > 0]
    return tuple(sorted(strong, key=lambda word: (-counts[word], word)))


@cache
def _vader() -> dict[str, float]:
    package = find_spec("vaderSentiment")
    assert package is not None and package.submodule_search_locations, "vaderSentiment is a dependency of this package"
    path = Path(package.submodule_search_locations[0]) / "vader_lexicon.txt"
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    # 14 entries (emoticons, "ok", "lol") stand twice in the file; VADER itself keeps the last one.
    return {row[0]: float(row[1]) for row in rows}


def _table_entries(text: str, path: Path) -> Iterator[tuple[str, str, Any]]:
    delimiter = DELIMITERS[path.suffix.lower()]
    # In tab-separated files (VADER's own) a quotation mark is part of the word.
    reading = csv.reader if delimiter == "," else partial(csv.reader, quoting=csv.QUOTE_NONE)
    rows = reading(text.splitlines(), delimiter=delimiter)
    for row in rows:
        where = f"line {rows.line_num}"
        if not any(cell.strip() for cell in row):
            continue
        if len(row) < 2:
            raise LensError(f"The lexicon {path}, {where}: {row[0]!r} has no value. Give {FORMAT}.")
        if rows.line_num == 1 and row[0].strip().lower() in HEADERS and _number(row[1]) is None:
            continue
        yield where, row[0], row[1]


def _json_entries(text: str, path: Path) -> Iterator[tuple[str, str, Any]]:
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except ValueError as error:
        raise LensError(f"The lexicon file {path} is not JSON: {error}. Give {FORMAT}.") from error
    if not text.lstrip().startswith("{"):
        raise LensError(f"The lexicon file {path} holds no object. Give {FORMAT}.")
    for place, (word, value) in enumerate(pairs, start=1):
        yield f"entry {place}", word, value


def _collect(entries: Iterable[tuple[str, str, Any]], name: str) -> dict[str, float]:
    lexicon: dict[str, float] = {}
    seen: dict[str, str] = {}
    for where, given, value in entries:
        word = given.strip().lower()
        if not word:
            raise LensError(f"The lexicon {name}, {where}: the word is empty.")
        if word in lexicon:
            raise LensError(
                f"The lexicon {name}, {where}: {word!r} is there already ({seen[word]}); "
                "case does not count. Keep one of them."
            )
        number = _number(value)
        if number is None or not math.isfinite(number):
            raise LensError(
                f"The lexicon {name}, {where}: the value of {word!r} is {value!r}; a finite number is expected."
            )
        lexicon[word], seen[word] = number, where
    if not lexicon:
        raise LensError(f"The lexicon {name} holds no words. Give {FORMAT}.")
    return lexicon


def _checked_mapping(given: Mapping[str, float]) -> dict[str, float]:
    for word in given:
        if not isinstance(word, str):
            raise LensError(f"The words of a lexicon are strings; {word!r} given.")
        if word.isalpha() and word != word.lower():
            raise LensError(f"The lexicon word {word!r} must be lower-case: texts are lower-cased before look-up.")
    # Case is left alone above, so VADER's own ":D" and ":d" must not be folded into one here.
    for word, value in given.items():
        number = _number(value)
        if not word.strip() or number is None or not math.isfinite(number):
            raise LensError(f"The lexicon entry {word!r}: {value!r} must be a word with a finite number.")
    if not given:
        raise LensError("The lexicon mapping is empty. Give word -> value.")
    return {word: float(value) for word, value in given.items()}


def _number(value: Any) -> float | None:
    if isinstance(value, (bool, list)) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
