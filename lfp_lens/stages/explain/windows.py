"""The texts as windows: disjoint blocks of up to 32 tokens, each with a place in a drawn order that its content decides."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from lfp_lens.core.errors import LensError
from lfp_lens.parts.activations import Encoded, encode
from lfp_lens.parts.harvest import TextBatches, text_batches
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.words import tokenize
from lfp_lens.results.explain import Example

WINDOW = 32
"""Tokens in a window at most, as in delphi; the windows of one text are of nearly equal length."""
PRIORITIES = 2**31


@dataclass(frozen=True, eq=False)
class Words:
    """Which word each token belongs to."""

    vocabulary: tuple[str, ...]
    """Lower-cased words and punctuation marks; "" stands for white space."""
    of_token: Int[np.ndarray, " tokens"]
    """Place in the vocabulary, by token."""

    @cached_property
    def count(self) -> Int[np.ndarray, " words"]:
        """Tokens of each word."""
        return np.bincount(self.of_token, minlength=len(self.vocabulary))

    def total(self, places: Int[np.ndarray, " n"], values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " words"]:
        """Give the sum of values over each word's tokens; `places` are tokens."""
        total = np.bincount(self.of_token[places], weights=values, minlength=len(self.vocabulary))
        return total.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Half:
    """Texts that are shown to the labeller, or texts that are held out; tokens and windows are counted text after text."""

    encoded: list[Encoded]
    """The texts."""
    skip: int
    """How many tokens stand before each text: the beginning-of-text token, or none."""
    read: TextBatches
    """The batches they are read in."""
    ids: Int[np.ndarray, " tokens"]
    """Token ids, the beginning-of-text token before each text left out."""
    starts: Int[np.ndarray, " texts+1"]
    """First token of each text, and the number of tokens at the end."""
    window_starts: Int[np.ndarray, " windows+1"]
    """First token of each window, and the number of tokens at the end."""
    window_text: Int[np.ndarray, " windows"]
    """Text of each window."""
    priority: Int[np.ndarray, " windows"]
    """A number below 2^31 drawn for each window by its text and the seed."""

    @cached_property
    def first_window(self) -> Int[np.ndarray, " texts+1"]:
        """First window of each text."""
        return np.searchsorted(self.window_text, np.arange(len(self.encoded) + 1))

    @cached_property
    def window_of(self) -> Int[np.ndarray, " tokens"]:
        """Window of each token."""
        return np.repeat(np.arange(len(self.window_text)), np.diff(self.window_starts))

    def words(self) -> Words:
        """Give the word of every token: the one its first character other than white space is in."""
        places: dict[str, int] = {}
        found = [
            places.setdefault(word, len(places))
            for text in self.encoded
            for word in _aligned(text.text, text.offsets[self.skip :])
        ]
        return Words(tuple(places), np.array(found, int))

    def example(self, window: int, activations: Float[np.ndarray, " tokens"], kind: str) -> Example:
        """Give a window with what a feature does in it; `activations` may be longer than the window."""
        n = int(self.window_starts[window + 1] - self.window_starts[window])
        return Example(self.pieces(window), np.asarray(activations[:n], np.float32), self.window_ids(window), kind)

    def window_ids(self, window: int) -> tuple[int, ...]:
        """Give the token ids of a window."""
        low, high = self.window_starts[window : window + 2].tolist()
        return tuple(self.ids[low:high].tolist())

    def drawn(self, n: int) -> Int[np.ndarray, " n"]:
        """Give up to `n` windows drawn at random, in ascending order."""
        return np.sort(np.argsort(-self.priority, kind="stable")[:n])

    def pieces(self, window: int) -> tuple[str, ...]:
        """Give the characters of each token of a window.

        Each token takes the characters since the one before it: spaces are kept, and the pieces of one character come once.
        """
        known = self._pieces.get(window)
        if known is not None:
            return known
        text = int(self.window_text[window])
        first = self.skip - int(self.starts[text])
        low, high = self.window_starts[window : window + 2].tolist()
        spans = self.encoded[text].offsets[first + low : first + high]
        edges = [spans[0][0]] + [end for _, end in spans]
        made = tuple(self.encoded[text].text[left:right] for left, right in pairwise(edges))
        return self._pieces.setdefault(window, made)

    @cached_property
    def _pieces(self) -> dict[int, tuple[str, ...]]:
        """Windows that were asked for, which many features share."""
        return {}


def halves(pair: Pair, texts: list[str], *, max_tokens: int, width: int, seed: int) -> tuple[Half, Half]:
    """Encode texts, the first half to be shown and the second held out, and cut each half into windows.

    Of texts that are equal where they are cut the first one is taken. Texts whose first 32 tokens are equal (two answers to
    one prompt) are put beside the first of them and never parted. Raises `LensError` for texts that cannot be split so.
    """
    encoded = encode(pair.tokenizer, texts, max_tokens=pair.room(max_tokens))
    made = [_half(part, pair.tokenizer, pair.device, width, seed) for part in _split(encoded, pair.tokenizer)]
    return made[0], made[1]


def by_content(texts: list[str], seed: int) -> list[str]:
    """Give the distinct texts in an order that the seed and the texts decide, not the order they came in."""
    distinct = sorted({text for text in texts if text.strip()}, key=lambda text: _drawn(text, seed))
    if len(distinct) < 2:
        raise LensError(f"{len(distinct)} different texts were given; half is shown and half is kept for scoring.")
    return distinct


def _split(encoded: list[Encoded], tokenizer: Any) -> tuple[list[Encoded], list[Encoded]]:
    """Part texts into two halves as equal as texts that begin alike allow."""
    skip = int(tokenizer.bos_token_id is not None)
    distinct: dict[tuple[int, ...], Encoded] = {}
    for text in encoded:
        distinct.setdefault(tuple(text.ids), text)
    groups: dict[tuple[int, ...], list[Encoded]] = {}
    for ids, text in distinct.items():
        groups.setdefault(ids[skip : skip + WINDOW], []).append(text)
    if len(distinct) < 2:
        raise LensError(
            f"{len(distinct)} different text is left where texts are cut: raise max_tokens or give other texts."
        )
    if len(groups) < 2:
        raise LensError(
            f"All {len(distinct)} texts begin with the same {WINDOW} tokens, so what is shown of one would tell about another "
            "that is held out. Give texts that begin in different ways."
        )
    ends = np.cumsum([len(group) for group in groups.values()])
    # Of two cuts that are equally good the later one: an odd text is shown.
    n_shown = min(ends[:-1].tolist(), key=lambda end: (abs(2 * end - len(distinct)), -end))
    ordered = [text for group in groups.values() for text in group]
    return ordered[:n_shown], ordered[n_shown:]


def _half(encoded: list[Encoded], tokenizer: Any, device: torch.device, width: int, seed: int) -> Half:
    begin = tokenizer.bos_token_id
    skip = int(begin is not None)
    lengths = np.array([len(text.ids) - skip for text in encoded], int)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.array([token for text in encoded for token in text.ids[skip:]], np.int64)
    parts = [(text, int(start)) for text, n in enumerate(lengths) for start in _cuts(int(n))]
    window_text = np.array([text for text, _ in parts], int)
    window_starts = np.array([*(starts[text] + start for text, start in parts), len(ids)], int)
    number = np.array([start for _, start in parts], np.uint64)
    keys = np.array([int.from_bytes(_drawn(text.text, seed)[:8], "little") for text in encoded], np.uint64)
    priority = _mixed(keys[window_text] + number * np.uint64(0x9E3779B97F4A7C15)) if len(parts) else number
    read = text_batches(encoded, width=width, begin=begin, device=device)
    return Half(encoded, skip, read, ids, starts, window_starts, window_text, priority.astype(np.int64))


def _cuts(n: int) -> Int[np.ndarray, " windows"]:
    """Give where the windows of a text of `n` tokens begin."""
    parts = -(-n // WINDOW)
    return np.array([at * n // parts for at in range(parts)], int)


def _drawn(text: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _mixed(keys: np.ndarray) -> np.ndarray:
    """Give a number below 2^31 for each key, as good as drawn (the finaliser of SplitMix64)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (keys ^ (keys >> np.uint64(31))) % np.uint64(PRIORITIES)


def _aligned(text: str, spans: list[tuple[int, int]]) -> list[str]:
    held = tokenize(text)
    seen = np.flatnonzero([not letter.isspace() for letter in text])
    if not held.words or not spans:
        return [""] * len(spans)
    span_NE = np.array(spans, int)
    first_N = np.append(seen, len(text))[np.searchsorted(seen, span_NE[:, 0])]
    at_N = np.searchsorted(np.array(held.ends, int), first_N, side="right").clip(max=len(held.words) - 1)
    starts_N, ends_N = np.array(held.starts, int)[at_N], np.array(held.ends, int)[at_N]
    is_inside_N = (first_N < span_NE[:, 1]) & (starts_N <= first_N) & (first_N < ends_N)
    return [held.words[at] if is_inside else "" for at, is_inside in zip(at_N.tolist(), is_inside_N.tolist())]
