"""Tokens as text coloured by a value: blue above zero, orange below, the number on hover."""

import html
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lfp_lens.core.errors import LensError

ABOVE, BELOW = "58, 126, 191", "213, 94, 0"
# How byte-level and SentencePiece vocabularies spell a space and a line end.
SPELLED = str.maketrans({"\u0120": " ", "\u2581": " ", "\u010a": "\u21b5", "\n": "\u21b5"})


def token_html(
    tokens: Sequence[str],
    values: Float[np.ndarray, " tokens"] | Sequence[float],
    *,
    largest: float | None = None,
) -> str:
    """Give one HTML span per token, its background as strong as the value is large.

    Args:
        tokens: as the tokenizer spells them; they are escaped.
        values: one number per token; one that is not finite gets no colour.
        largest: the absolute value of full colour; None takes the largest given.

    Raises:
        LensError: if there are not as many values as tokens.

    >>> token_html(["<b>"], [0.0])
    '<span class="lens-tokens"><span title="0.000">&lt;b&gt;</span></span>'
    """
    numbers = np.asarray(values, float)
    if numbers.shape != (len(tokens),):
        raise LensError(f"{len(tokens)} tokens need one value each; values of shape {numbers.shape} given.")
    sizes = np.abs(np.where(np.isfinite(numbers), numbers, 0.0))
    full = (sizes.max(initial=0.0) if largest is None else largest) or 1.0
    spans = "".join(_span(token, value, full) for token, value in zip(tokens, numbers))
    return f'<span class="lens-tokens">{spans}</span>'


def _span(token: str, value: float, full: float) -> str:
    shown = html.escape(token.translate(SPELLED))
    if not np.isfinite(value):
        return f'<span title="no value">{shown}</span>'
    strength = 0.7 * min(1.0, abs(value) / full)
    hue = ABOVE if value > 0 else BELOW
    style = f' style="background:rgba({hue}, {strength:.2f})"' if strength >= 0.005 else ""
    return f'<span title="{value:.3f}"{style}>{shown}</span>'
