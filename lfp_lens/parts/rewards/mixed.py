"""Rewards made of others: a model's values, checked, and weighted sums."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts.rewards.base import Reward, checked_values


@dataclass(frozen=True, eq=False)
class ModelReward:
    """A model's value of each text, checked to be finite; its fingerprint is the model's content, not its place."""

    model: Any = field(repr=False)
    """A `Classifier` or a `RewardModel`: a callable texts -> floats with a `fingerprint`."""
    name: str
    """What `make_reward` was given, so that the reward can be made again."""
    device: str = "cpu"
    """Where the model computes."""

    @property
    def fingerprint(self) -> str:
        """A hash of the model's content."""
        return fingerprint({"reward": "model", "model": self.model.fingerprint})

    def __call__(self, texts: list[str]) -> Float[np.ndarray, " texts"]:
        """Give one reward per text. Raises `LensError` with the text for a value that is not finite."""
        # A training loop's autocast must not round the reward.
        with torch.autocast(torch.device(self.device).type, enabled=False):
            return checked_values(self.name, texts, self.model(list(texts)))


@dataclass(frozen=True, eq=False)
class WeightedReward:
    """A sum of rewards, each times its weight.

    >>> from lfp_lens.parts.rewards import make_reward
    >>> make_reward([({"good": 5.0}, 1.0), ({"bad": 5.0}, -0.5)])(["good", "bad"]).tolist()
    [1.0, -0.5]
    """

    parts: tuple[tuple[Reward, float], ...]
    """The rewards and their weights."""

    @property
    def name(self) -> str:
        """The sum written out, as in `1*vader + 0.5*length`."""
        return " + ".join(f"{weight:g}*{reward.name}" for reward, weight in self.parts)

    @property
    def fingerprint(self) -> str:
        """A hash of the rewards' own and the weights."""
        parts = [[reward.fingerprint, float(weight)] for reward, weight in self.parts]
        return fingerprint({"reward": "weighted sum", "parts": parts})

    def __call__(self, texts: list[str]) -> Float[np.ndarray, " texts"]:
        """Give one reward per text. Raises `LensError` with the text for a sum that is not finite."""
        total = sum((weight * reward(texts) for reward, weight in self.parts), np.zeros(len(texts)))
        return checked_values(self.name, texts, total)
