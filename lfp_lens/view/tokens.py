"""Tokens as text coloured by a value: blue above zero, orange below, the number on hover."""

import html
from collections.abc import Collection, Sequence

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
    marked: Collection[int] = (),
) -> str:
    """Give one HTML span per token, its background as strong as the value is large.

    Args:
        tokens: as the tokenizer spells them; they are escaped.
        values: one number per token; one that is not finite gets no colour.
        largest: the absolute value of full colour; None takes the largest given.
        marked: places of tokens to underline, such as the peak.

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
    spans = "".join(_span(token, value, full, at in marked) for at, (token, value) in enumerate(zip(tokens, numbers)))
    return f'<span class="lens-tokens">{spans}</span>'


def spelled(token: str) -> str:
    """Give a token as people read it: the marks that vocabularies use for a space and a line end are replaced.

    >>> spelled("\u0120good")
    ' good'
    """
    return token.translate(SPELLED)


def _span(token: str, value: float, full: float, is_marked: bool) -> str:
    shown = html.escape(spelled(token))
    if not np.isfinite(value):
        return f'<span title="no value">{shown}</span>'
    strength = 0.7 * min(1.0, abs(value) / full)
    hue = ABOVE if value > 0 else BELOW
    colour = f"background:rgba({hue}, {strength:.2f})" if strength >= 0.005 else ""
    line = "text-decoration:underline;text-underline-offset:.2em" if is_marked else ""
    style = f' style="{";".join(filter(None, (colour, line)))}"' if colour or line else ""
    return f'<span title="{value:.3f}"{style}>{shown}</span>'
