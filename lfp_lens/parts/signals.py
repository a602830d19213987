"""Signals: per-word numbers that stand for learned feedback, read directly from the models.

`implicit_reward` (ours): log p_tuned(word | context) - log p_base(word | context), in nats (beta = 1), summed over the
word's tokens. No label enters. What tuning promotes takes probability from everything else, so each value is centred by
its own context: the mean of the same difference over the whole vocabulary, weighted by the base model, is subtracted.
`valence_shift` (ours): how much tuning changed the expected lexicon value of what follows the word, in lexicon units. The
lexicon enters by what follows, never by the word itself.
`activation_delta` (arXiv 2310.08164, section 3.3): the signed L2 distance, in concatenated feature space, between a word
and the neutral word of its triple. Its sign is the label's by construction.
`reward_head` (of reward models, no pair): how much the word raises the reward of the text so far.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.registry import Registry

DELTA, REWARD_HEAD = "activation_delta", "reward_head"


@dataclass(frozen=True, eq=False)
class Seen:
    """What a signal is computed from: the two models' predictions at N places, in nats."""

    base_NV: torch.Tensor
    """log p of every token of the vocabulary under the base model."""
    other_NV: torch.Tensor
    """The same under the model it is compared with."""
    ids_N: torch.Tensor
    """The token that stands at each place (`before`: the token that comes next)."""
    is_first_N: torch.Tensor
    """True where it is the first token of its word."""
    worth_V: torch.Tensor | None
    """The lexicon value that each token promises (`parts.valence.token_values`), where the signal asked for it."""


@dataclass(frozen=True)
class Signal:
    """How a word's value is read from two models. Values are summed over the places of one word."""

    measure: Callable[[Seen], torch.Tensor]
    """Gives one value per place, `[N]`."""
    place: Literal["before", "after"] = "before"
    """`before`: the positions that predict each of the word's tokens; `after`: that of its last token alone."""
    needs_lexicon: bool = False
    """Whether `Seen.worth_V` is wanted."""

    @property
    def fingerprint(self) -> str:
        """A hash of what is measured."""
        return fingerprint([self.measure, self.place])


SIGNALS: Registry[Signal] = Registry("signal")


def make_signal(signal: Any) -> tuple[str, Signal]:
    """Give a signal and its name: a registered name, a `Signal`, or a function of `Seen` that is read before the word.

    Raises `LensError` for anything else.

    >>> make_signal("implicit_reward")[1].place
    'before'
    """
    if isinstance(signal, str):
        return signal, SIGNALS[signal]
    if isinstance(signal, Signal):
        return getattr(signal.measure, "__name__", "signal"), signal
    if not callable(signal):
        raise LensError(f"A signal is a name ({', '.join(SIGNALS)}), a Signal or a function; {signal!r} given.")
    return getattr(signal, "__name__", "signal"), Signal(signal)


def implicit_reward(seen: Seen) -> torch.Tensor:
    """Give the context-centred difference of log-probabilities; only a word's first token is centred."""
    change_NV = seen.other_NV - seen.base_NV
    of_context_N = (seen.base_NV.exp() * change_NV).sum(-1) * seen.is_first_N
    return change_NV.gather(-1, seen.ids_N[:, None])[:, 0] - of_context_N


def valence_shift(seen: Seen) -> torch.Tensor:
    """Give the change of the expected lexicon value of the next word."""
    assert seen.worth_V is not None
    return (seen.other_NV.exp() - seen.base_NV.exp()) @ seen.worth_V


SIGNALS.add("implicit_reward")(Signal(implicit_reward))
SIGNALS.add("valence_shift")(Signal(valence_shift, place="after", needs_lexicon=True))
BUILT_IN = (*SIGNALS, DELTA)
"""What a pair can be asked for by name without a plug-in."""


def activation_delta(
    positive_RF: Float[np.ndarray, "rows features"],
    neutral_RF: Float[np.ndarray, "rows features"],
    negative_RF: Float[np.ndarray, "rows features"],
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Give the paper's targets of the positive and the negative members: +L2 and -L2 to the neutral member.

    >>> one = activation_delta(np.array([[3.0, 4.0]]), np.zeros((1, 2)), np.array([[0.0, 2.0]]))
    >>> [float(part[0]) for part in one]
    [5.0, -2.0]
    """
    return (
        np.linalg.norm(positive_RF - neutral_RF, axis=1),
        -np.linalg.norm(negative_RF - neutral_RF, axis=1),
    )
