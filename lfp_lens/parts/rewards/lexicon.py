"""The paper's reward: the sum of a text's word values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float

from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts.words import token_keys, word_key

SCALE, CLIP = 5.0, 10.0


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
