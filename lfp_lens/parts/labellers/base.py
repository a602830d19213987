"""What a labeller is given and what it must be able to do."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.core.errors import LensError
from lfp_lens.core.registry import Registry
from lfp_lens.results.explain import Example


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the shown texts say about one feature. Activations are divided by its maximum over all texts."""

    feature: str
    """Its name in messages: site and index."""
    examples: tuple[Example, ...]
    """Windows around strong and middling activations."""
    words: tuple[str, ...]
    """Every word and punctuation mark of the texts, lower-cased; "" stands for white space."""
    total: Float[np.ndarray, " words"]
    """Sum of the feature's activation over those of each word's tokens that are among its strongest 1 %."""
    count: Int[np.ndarray, " words"]
    """Tokens of each word."""


@runtime_checkable
class Labeller(Protocol):
    """Describes a feature, judges the description against a task, and predicts where the feature fires.

    The methods may be called from `workers` threads at once. A labeller that is to be used with a store needs
    a `fingerprint` string beside these.
    """

    name: str
    """Stands in the result."""
    workers: int
    """How many calls may run at once."""

    def describe(self, evidence: Evidence) -> str:
        """Say what the feature responds to."""
        ...

    def is_relevant(self, evidence: Evidence, description: str, task: str) -> bool:
        """Tell whether a feature with this description is related to the task."""
        ...

    def detect(self, feature: str, description: str, windows: Sequence[str]) -> list[bool]:
        """Tell for each text whether a feature with this description fires somewhere in it."""
        ...


@dataclass(frozen=True)
class Setting:
    """What a labeller made by name may need."""

    lexicon: Mapping[str, float]
    """The stated lexicon."""
    task: str
    """What relevance will be judged against."""
    folder: Path
    """Where paid replies are kept."""


LABELLERS: Registry[Callable[[str, Setting], Labeller]] = Registry("labeller")
"""Name -> function of (what follows the colon in the name, setting) giving a labeller."""


def make_labeller(labeller: Any, setting: Setting) -> Labeller:
    """Give the labeller of a name such as `lexicon` or `openai:gpt-4o`, or check an object that is one.

    Raises:
        LensError: for an unknown name, a name without what it needs, a task that the labeller cannot judge,
            or an object that does not follow the protocol.
    """
    if isinstance(labeller, str):
        name, _, argument = labeller.partition(":")
        return LABELLERS[name](argument, setting)
    if not isinstance(labeller, Labeller):
        raise LensError(
            f"The labeller {labeller!r} is neither a name ({', '.join(LABELLERS)}) nor an object with "
            "`name`, `workers`, `describe`, `is_relevant` and `detect`."
        )
    return labeller
