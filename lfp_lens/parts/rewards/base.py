"""What every reward is, and the check that every reply of a model or a user's callable goes through."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint

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
        try:
            given = self.function(list(texts))
        except LensError:
            raise
        # It is the user's code, so what it raises has no name here.
        except Exception as error:
            first = f", the first {texts[0][:QUOTED]!r}" if texts else ""
            raise LensError(
                f"The reward {self.name!r} raised {type(error).__name__} ({error}) for {len(texts)} texts{first}."
            ) from error
        return checked_values(self.name, texts, given)


def checked_values(name: str, texts: list[str], given: Any) -> Float[np.ndarray, " texts"]:
    """Give a reward's reply as one float per text.

    Raises `LensError` for another number of values, and with the text that caused it for one that is not finite.
    """
    given = given.detach().cpu() if hasattr(given, "detach") else given
    try:
        values = np.asarray(given, dtype=float)
    except (TypeError, ValueError) as error:
        raise LensError(f"The reward {name!r} must give one float per text: {error}.") from error
    if values.shape != (len(texts),):
        raise LensError(
            f"The reward {name!r} gave an array of shape {values.shape} for {len(texts)} texts; "
            "one float per text is expected."
        )
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise LensError(
            f"The reward {name!r} is {values[wrong[0]]} for the text {texts[wrong[0]][:QUOTED]!r} "
            f"({len(wrong)} of {len(texts)} texts). Rewards must be finite numbers."
        )
    return values
