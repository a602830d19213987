"""The public door: a reward from a name, a file, a lexicon, a callable, or a weighted list of them."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.registry import Registry
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.rewards.base import CheckedReward, Reward
from lfp_lens.parts.rewards.classifier import load_classifier
from lfp_lens.parts.rewards.lexicon import LexiconReward
from lfp_lens.parts.rewards.mixed import ModelReward, WeightedReward

REWARDS: Registry[Callable[[], Reward]] = Registry("reward")
CLASSIFIER, REWARD_MODEL = "classifier:", "reward_model:"
MADE = (LexiconReward, CheckedReward, ModelReward, WeightedReward)


def make_reward(
    reward: str | os.PathLike[str] | Mapping[str, float] | Sequence[tuple[Any, float]] | Callable[[list[str]], Any],
    *,
    device: str = "cpu",
) -> Reward:
    """Give a reward `texts -> floats`.

    Args:
        reward: one of
            - a registered name (`vader`);
            - a lexicon: a .csv, .tsv, .txt or .json file, or word -> value (`edited` and `shuffled` of `parts.lexicons`
              make one with planted values);
            - `classifier:MODEL@LABEL`: the raw logit of one label of a sequence classifier, a hub name or a folder; the
              label is an index or a name, and may be left out where the model has one;
            - `reward_model:PATH`: the value of a scalar-head checkpoint (`load_reward_model`);
            - a callable texts -> floats; stored results are keyed by its source, or by its `fingerprint` string;
            - a weighted sum: a list of (reward, weight) pairs, each reward any of these.
        device: where a classifier or reward model computes.

    Raises:
        LensError: for an unknown name, a lexicon or checkpoint that cannot be used, something that cannot be called. A
            reward made of a callable or a model raises it at every reply that is not one finite float per text.

    >>> make_reward(lambda texts: [len(text) for text in texts])(["abc"]).tolist()
    [3.0]
    """
    if isinstance(reward, MADE):
        return reward
    if isinstance(reward, str) and reward.startswith((CLASSIFIER, REWARD_MODEL)):
        return _from_model(reward, device)
    if isinstance(reward, (str, os.PathLike)):
        return _named(reward)
    if isinstance(reward, Mapping):
        return LexiconReward(load_lexicon(reward), name="lexicon")
    if isinstance(reward, (list, tuple)):
        return WeightedReward(tuple(_part(part, device) for part in _pairs(reward)))
    if not callable(reward):
        raise LensError(
            "A reward is a name, a lexicon file, a callable texts -> floats or a list of (reward, weight) pairs; "
            f"{type(reward).__name__} given."
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
    raise unknown("reward", str(reward), [*REWARDS, f"{CLASSIFIER}MODEL@LABEL", f"{REWARD_MODEL}PATH"])


def _from_model(reward: str, device: str) -> Reward:
    kind, _, rest = reward.partition(":")
    if not rest.strip():
        raise LensError(f"{reward!r} names no model. Give classifier:MODEL@LABEL or reward_model:PATH.")
    if f"{kind}:" == REWARD_MODEL:
        from lfp_lens.parts.reward_models import load_reward_model

        return ModelReward(load_reward_model(rest, device=device), reward, device)
    # A folder's own name may hold an "@".
    is_folder = Path(rest).expanduser().is_dir()
    model, _, label = (rest, "", "") if is_folder or "@" not in rest else rest.rpartition("@")
    return ModelReward(load_classifier(model, label or None, device=device), reward, device)


def _pairs(reward: Sequence[Any]) -> list[tuple[Any, float]]:
    if not reward:
        raise LensError("A weighted sum needs at least one (reward, weight) pair; none given.")
    for part in reward:
        is_pair = isinstance(part, (list, tuple)) and len(part) == 2
        weight = part[1] if is_pair else None
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise LensError(
                f"A weighted sum is a list of (reward, weight) pairs with finite weights, such as [('vader', 1.0)]; "
                f"it holds {part!r}."
            )
    return [(part[0], float(part[1])) for part in reward]


def _part(part: tuple[Any, float], device: str) -> tuple[Reward, float]:
    return make_reward(part[0], device=device), part[1]
