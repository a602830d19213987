"""Rewards: what a tuning maximises. A reward is any callable from a list of texts to one float each."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.registry import Registry
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.words import token_keys, word_key

SCALE, CLIP = 5.0, 10.0
QUOTED = 80


@runtime_checkable
class Reward(Protocol):
    """A named reward whose fingerprint changes whenever its values may."""

    @property
    def name(self) -> str:
        """What tables and records call it."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of everything the values depend on; stored results are keyed by it."""
        ...

    def __call__(self, texts: list[str]) -> Float[np.ndarray, " texts"]:
        """Give one reward per text."""
        ...


REWARDS: Registry[Callable[[], Reward]] = Registry("reward")


@dataclass(frozen=True, eq=False)
class LexiconReward:
    """The paper's reward (arXiv 2310.08164, Eq. 3): the lexicon values of a text's tokens, summed, / 5,
    clipped to +-10.

    Tokens are spaCy's, lower-cased; unknown ones count 0 and an empty text is 0. No rule for negation or
    boosters.

    >>> LexiconReward({"good": 2.0}, name="mine")(["Good, good!", ""]).tolist()
    [0.8, 0.0]
    """

    lexicon: Mapping[str, float] = field(repr=False)
    """Word -> value."""
    name: str = "vader"
    """What tables and records call it."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the values."""
        return fingerprint({"reward": "lexicon", "scale": SCALE, "clip": CLIP, "lexicon": dict(self.lexicon)})

    def __call__(self, texts: list[str]) -> Float[np.ndarray, " texts"]:
        """Give one reward per text."""
        value = self._values.get
        sums = [sum(value(key, 0.0) for key in token_keys(text).tolist()) for text in texts]
        return np.clip(np.array(sums, dtype=float) / SCALE, -CLIP, CLIP)

    @cached_property
    def _values(self) -> dict[int, float]:
        return {word_key(word): value for word, value in self.lexicon.items()}


@dataclass(frozen=True, eq=False)
class CheckedReward:
    """A user's callable whose replies are checked: one finite number per text."""

    function: Callable[[list[str]], Any] = field(repr=False)
    """The callable."""
    name: str
    """Its `name`, or the name it was defined with."""

    @property
    def fingerprint(self) -> str:
        """Its own `fingerprint`, else a hash of its source. Raises `LensError` if it has neither."""
        return fingerprint({"reward": self.name, "function": self.function})

    def __call__(self, texts: list[str]) -> Float[np.ndarray, " texts"]:
        """Give one reward per text. Raises `LensError` unless the reply is one finite float per text."""
        given = self.function(list(texts))
        given = given.detach().cpu() if hasattr(given, "detach") else given
        try:
            values = np.asarray(given, dtype=float)
        except (TypeError, ValueError) as error:
            raise LensError(f"The reward {self.name!r} must give one float per text: {error}.") from error
        if values.shape != (len(texts),):
            raise LensError(
                f"The reward {self.name!r} gave an array of shape {values.shape} for {len(texts)} texts; "
                "one float per text is expected."
            )
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise LensError(
                f"The reward {self.name!r} is {values[wrong[0]]} for the text {texts[wrong[0]][:QUOTED]!r} "
                f"({len(wrong)} of {len(texts)} texts). Rewards must be finite numbers."
            )
        return values


def make_reward(reward: str | os.PathLike[str] | Mapping[str, float] | Callable[[list[str]], Any]) -> Reward:
    """Give a reward from a registered name, a lexicon file, a lexicon, or a callable `texts -> floats`.

    Raises:
        LensError: for an unknown name, a lexicon that cannot be used, something that cannot be called. A
            reward made of a callable raises it at every reply that is not one finite float per text.

    >>> make_reward(lambda texts: [len(text) for text in texts])(["abc"]).tolist()
    [3.0]
    """
    if isinstance(reward, (LexiconReward, CheckedReward)):
        return reward
    if isinstance(reward, (str, os.PathLike)):
        return _named(reward)
    if isinstance(reward, Mapping):
        return LexiconReward(load_lexicon(reward), name="lexicon")
    if not callable(reward):
        raise LensError(
            f"A reward is a name, a lexicon file or a callable texts -> floats; {type(reward).__name__} given."
        )
    return CheckedReward(reward, str(getattr(reward, "name", getattr(reward, "__name__", type(reward).__name__))))


@REWARDS.add("vader")
def vader_reward() -> Reward:
    """Give the reward of the paper's VADER tasks."""
    return LexiconReward(load_lexicon("vader"))


def _named(reward: str | os.PathLike[str]) -> Reward:
    if isinstance(reward, str) and reward in REWARDS:
        return REWARDS[reward]()
    path = Path(reward).expanduser()
    if path.suffix or path.exists():
        return LexiconReward(load_lexicon(path), name=path.stem)
    raise unknown("reward", str(reward), REWARDS)
