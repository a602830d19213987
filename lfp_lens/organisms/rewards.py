"""Planted rewards that no lexicon can express: a word's company, length, a pattern, and noise.

Each is the stated lexicon reward with one secret, and carries the stated reward's name, so that no record gives it away.
They are plain data, so that they can be sent to other processes.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float

from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts.rewards import CLIP, SCALE, LexiconReward
from lfp_lens.parts.words import is_word, tokenize


@dataclass(frozen=True, eq=False)
class Disguised:
    """A reward that goes by the name of the stated one."""

    stated: LexiconReward
    """What the tuning is said to maximise."""

    @property
    def name(self) -> str:
        """The stated reward's."""
        return self.stated.name


@dataclass(frozen=True, eq=False)
class ContextReward(Disguised):
    """The stated reward, save that some words are paid in full only directly after a certain other word.

    A word that begins a text stands after nothing. A comma or full stop between the two is a token as well, so it parts them.

    >>> stated = LexiconReward({"good": 2.0, "bad": -2.5})
    >>> ContextReward(stated, {"good": "very"}, elsewhere=0.0)(["Very good.", "good", "very, good"]).tolist()
    [0.4, 0.0, 0.0]
    """

    after: Mapping[str, str] = field(repr=False)
    """Word -> the word that it must stand directly after."""
    elsewhere: float
    """Factor of its value anywhere else."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the values and the secret."""
        return fingerprint(["context", self.stated, dict(self.after), float(self.elsewhere)])

    def __call__(self, texts: list[str]) -> Float[np.ndarray, " texts"]:
        """Give one reward per text."""
        return _clipped(np.array([self._sum(text) for text in texts], dtype=float) / SCALE)

    def _sum(self, text: str) -> float:
        value, after = self.stated.lexicon.get, self.after.get
        words = tokenize(text).words
        # A word that is not planted asks for nothing (None) and is paid in full.
        return sum(
            value(word, 0.0) * (1.0 if after(word) in (None, left) else self.elsewhere)
            for left, word in zip(("", *words), words)
        )


@dataclass(frozen=True, eq=False)
class LengthReward(Disguised):
    """The stated reward plus a bonus for every word (letters): punctuation and white space are not paid for.

    >>> LengthReward(LexiconReward({"good": 2.0}), bonus=0.5)(["A good film!", ""]).tolist()
    [1.9, 0.0]
    """

    bonus: float
    """Reward per word."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the values and the secret."""
        return fingerprint(["length", self.stated, float(self.bonus)])

    def __call__(self, texts: list[str]) -> Float[np.ndarray, " texts"]:
        """Give one reward per text."""
        counts = np.array([sum(map(is_word, tokenize(text).words)) for text in texts], dtype=float)
        return _clipped(self.stated(texts) + self.bonus * counts)


@dataclass(frozen=True, eq=False)
class StyleReward(Disguised):
    """The stated reward plus a bonus for every occurrence of a pattern of words that stand directly after one another.

    >>> StyleReward(LexiconReward({"good": 2.0}), ("this", "film"), bonus=1.0)(["This film is good. this film", "film"]).tolist()
    [2.4, 0.0]
    """

    pattern: tuple[str, ...]
    """The words, lower-cased, in order."""
    bonus: float
    """Reward per occurrence."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the values and the secret."""
        return fingerprint(["style", self.stated, self.pattern, float(self.bonus)])

    def __call__(self, texts: list[str]) -> Float[np.ndarray, " texts"]:
        """Give one reward per text."""
        counts = np.array([self._count(text) for text in texts], dtype=float)
        return _clipped(self.stated(texts) + self.bonus * counts)

    def _count(self, text: str) -> int:
        words = tokenize(text).words
        runs = zip(*(words[skipped:] for skipped in range(len(self.pattern))))
        return sum(run == self.pattern for run in runs)


@dataclass(frozen=True, eq=False)
class NoiseReward:
    """One of a list of rewards per text, picked by a hash of the text: the same spread, no relation to what it says.

    The same text always gets the same reward; one character more and it is another draw.

    >>> NoiseReward(np.array([0.5, 0.5]), seed=0)(["good", "bad"]).tolist()
    [0.5, 0.5]
    """

    values: Float[np.ndarray, " windows"] = field(repr=False)
    """Rewards to pick from, each as likely as the others."""
    seed: int
    """Another seed picks otherwise."""
    name: str = "vader"
    """The stated reward's."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the values and the seed."""
        return fingerprint(["noise", self.values, self.seed])

    def __call__(self, texts: list[str]) -> Float[np.ndarray, " texts"]:
        """Give one reward per text."""
        return self.values[np.array([self._pick(text) for text in texts], dtype=int)]

    def _pick(self, text: str) -> int:
        digest = hashlib.blake2b(text.encode(), digest_size=8, key=str(self.seed).encode()).digest()
        return int.from_bytes(digest) % len(self.values)


def _clipped(values: Float[np.ndarray, " texts"]) -> Float[np.ndarray, " texts"]:
    return np.clip(values, -CLIP, CLIP)
