"""Scalars: one number of a model's predictions per place, whose sum over a text is what effects are effects on.

`expected_valence`: the expected lexicon value of the next word, in lexicon units. `implicit_reward`: log p of the token that
comes next less the base model's, in nats (beta = 1); the base's part is no function of the tuned model's features, so effects
are those on log p. `log_p`: the same without the base. `reward_head`: a reward model's reward, read at a text's last token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int

from lfp_lens.core.errors import LensError
from lfp_lens.core.registry import Registry

REWARD_HEAD = "reward_head"


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a scalar is computed from: what a model says at N places of some texts."""

    logits_NV: Float[torch.Tensor, "places vocabulary"]
    """Its logits, in fp32; of a reward model one column, the reward of the text so far."""
    next_N: Int[torch.Tensor, " places"]
    """The token that comes next; -1 at a text's last token."""
    text_N: Int[torch.Tensor, " places"]
    """The text of each place."""
    values_V: Float[torch.Tensor, " vocabulary"] | None = None
    """The lexicon value that each token promises (`parts.valence.token_values`), where the scalar needs it."""
    base_log_p_N: Float[torch.Tensor, " places"] | None = None
    """log p of the next token under the base model, where the scalar needs it; 0 at a text's last token."""


@dataclass(frozen=True)
class Scalar:
    """A number per place, differentiable in the logits."""

    measure: Callable[[Predictions], torch.Tensor]
    """Gives one value per place, `[N]`; places that do not count are 0."""
    needs_lexicon: bool = False
    """Whether `Predictions.values_V` is wanted."""
    needs_base: bool = False
    """Whether `Predictions.base_log_p_N` is wanted."""


SCALARS: Registry[Scalar] = Registry("scalar")


def make_scalar(scalar: Any) -> tuple[str, Scalar]:
    """Give a scalar and its name: a registered name, a `Scalar`, or a function of `Predictions`.

    Raises `LensError` for anything else.

    >>> make_scalar("expected_valence")[1].needs_lexicon
    True
    """
    if isinstance(scalar, str):
        return scalar, SCALARS[scalar]
    if isinstance(scalar, Scalar):
        return getattr(scalar.measure, "__name__", "scalar"), scalar
    if not callable(scalar):
        raise LensError(f"A scalar is a name ({', '.join(SCALARS)}), a Scalar or a function; {scalar!r} given.")
    return getattr(scalar, "__name__", "scalar"), Scalar(scalar)


def expected_valence(seen: Predictions) -> torch.Tensor:
    """Give the expected lexicon value of the next word."""
    assert seen.values_V is not None
    return torch.softmax(seen.logits_NV, dim=-1) @ seen.values_V


def log_p(seen: Predictions) -> torch.Tensor:
    """Give log p of the token that comes next, in nats; 0 at a text's last token."""
    is_last = seen.next_N < 0
    chosen = seen.logits_NV.gather(-1, seen.next_N.clamp(min=0)[:, None])[:, 0]
    return (chosen - torch.logsumexp(seen.logits_NV, dim=-1)).masked_fill(is_last, 0.0)


def implicit_reward(seen: Predictions) -> torch.Tensor:
    """Give log p of the token that comes next less the base model's, in nats (beta = 1); 0 at a text's last token."""
    assert seen.base_log_p_N is not None
    return log_p(seen) - seen.base_log_p_N


def reward_head(seen: Predictions) -> torch.Tensor:
    """Give the reward at each text's last token, 0 elsewhere."""
    if seen.logits_NV.shape[1] != 1:
        raise LensError("The scalar 'reward_head' is that of a reward model; this model predicts tokens.")
    return seen.logits_NV[:, 0].masked_fill(seen.next_N >= 0, 0.0)


SCALARS.add("expected_valence")(Scalar(expected_valence, needs_lexicon=True))
SCALARS.add("implicit_reward")(Scalar(implicit_reward, needs_base=True))
SCALARS.add("log_p")(Scalar(log_p))
SCALARS.add(REWARD_HEAD)(Scalar(reward_head))
