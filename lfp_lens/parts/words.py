"""Words in texts: boundaries by spaCy's English tokenizer, counts, and stems that keep a word family in one
split.

The tokenizer alone is used (`spacy.blank("en")`): it is rule data, needs no download and is what the paper's
`en_core_web_md` tokenises with. It splits "don't" into "do" and "n't" and "great-looking" into three tokens.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from jaxtyping import UInt64

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


@dataclass(frozen=True)
class Occurrence:
    """One word in one text."""

    text: int
    """Index of the text."""
    word: str
    """The word, lower-cased."""
    start: int
    """First character of the word in the text."""
    end: int
    """One past its last character."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of one text (words, punctuation), white space left out."""

    words: tuple[str, ...]
    """Lower-cased tokens."""
    starts: tuple[int, ...]
    """First character of each."""
    ends: tuple[int, ...]
    """One past the last character of each."""


def tokenize(text: str) -> Tokens:
    """Give the tokens of a text with their characters.

    >>> tokenize("I don't.").words
    ('i', 'do', "n't", '.')
    """
    named = [(_string(key), start, start + length) for key, start, length in _rows(text)]
    kept = [row for row in named if not row[0].isspace()]
    words, starts, ends = zip(*kept) if kept else ((), (), ())
    return Tokens(words, starts, ends)


def find_words(texts: Sequence[str], wanted: Collection[str] | None = None) -> list[Occurrence]:
    """Give every word (letters, apostrophes inside) of the texts, by text and then by position.

    Args:
        texts: what to search.
        wanted: lower-cased words to keep; None keeps all words.

    >>> find_words(["A Great film."], {"great"})
    [Occurrence(text=0, word='great', start=2, end=7)]
    """
    keys = None if wanted is None else {word_key(word) for word in wanted if is_word(word)}
    return [
        Occurrence(place, _string(key), start, start + length)
        for place, text in enumerate(texts)
        for key, start, length in _rows(text)
        if (is_word(_string(key)) if keys is None else key in keys)
    ]


def word_counts(texts: Sequence[str]) -> Counter[str]:
    """Count the lower-cased words of the texts.

    >>> word_counts(["Good, good film"])["good"]
    2
    """
    keys: Counter[int] = Counter()
    for text in texts:
        keys.update(token_keys(text).tolist())
    counted: Counter[str] = Counter()
    for key, count in keys.items():
        if is_word(_string(key)):
            counted[_string(key)] = count
    return counted


@lru_cache(maxsize=1 << 18)
def stem(word: str) -> str:
    """Give the group of a word for every split: NLTK's English Snowball stem of the lower-cased word.

    It merges families more widely than a lemmatizer and needs no download, so it is the safer wall against
    leaks.

    >>> stem("loved") == stem("Loving") == stem("love")
    True
    """
    return _stemmer().stem(word.lower())


def token_keys(text: str) -> UInt64[np.ndarray, " tokens"]:
    """Give spaCy's 64-bit key of every lower-cased token; `word_key` gives the key of a word."""
    from spacy.attrs import LOWER

    return _tokenizer()(text).to_array([LOWER]).reshape(-1)


def word_key(word: str) -> int:
    """Give the key that `token_keys` gives for a token with this lower-cased text."""
    from spacy.strings import hash_string

    return hash_string(word)


@lru_cache(maxsize=1 << 18)
def is_word(token: str) -> bool:
    """Tell whether a token is a word: letters, with apostrophes only inside."""
    return WORD.fullmatch(token) is not None


def _rows(text: str) -> list[list[int]]:
    from spacy.attrs import IDX, LENGTH, LOWER

    return _tokenizer()(text).to_array([LOWER, IDX, LENGTH]).tolist()


@lru_cache(maxsize=1 << 18)
def _string(key: int) -> str:
    return _tokenizer().vocab.strings[key]


@cache
def _tokenizer() -> Any:
    import spacy

    tokenizer = spacy.blank("en").tokenizer
    tokenizer.max_cache_size = 1 << 18  # the default of 10,000 strings is smaller than a review corpus' vocabulary
    return tokenizer


@cache
def _stemmer() -> Any:
    from nltk.stem.snowball import SnowballStemmer

    return SnowballStemmer("english")
