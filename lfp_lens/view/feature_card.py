"""One feature at a glance, and a text coloured by features: HTML fragments for Jupyter, plain text for a terminal."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from lfp_lens.view.page import STYLE, facts_html, number
from lfp_lens.view.tokens import spelled

BINS, WIDTH, HEIGHT = 30, 360, 64
CHIP = (
    "border:1px solid rgba(128,134,144,.4);border-radius:5px;padding:0 .4em;margin:0 .25em .25em 0;"
    "display:inline-block;white-space:pre"
)


@dataclass(frozen=True)
class Shown:
    """Something to look at: a fragment in Jupyter, text elsewhere."""

    html: str
    """Safe HTML."""
    text: str
    """The same in words, for a terminal."""

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


def feature_card(
    title: str,
    description: str,
    facts: Mapping[str, Any],
    tokens: Mapping[str, Sequence[str]],
    windows: Sequence[tuple[str, str]],
    histogram: str = "",
) -> Shown:
    """Give a card of a feature.

    Args:
        title: which feature; it is escaped, as all text here.
        description: what the labeller says.
        facts: name -> value.
        tokens: what a list is -> its tokens, as the tokenizer spells them.
        windows: (kind, safe HTML from `token_html`) of each window.
        histogram: safe HTML from `activation_histogram`.
    """
    lists = {name: held for name, held in tokens.items() if held}
    chips = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{''.join(f'<span style={CHIP!r}>{_seen(token)}</span>' for token in held)}</dd>"
        for name, held in lists.items()
    )
    rows = "".join(f"<tr><td>{html.escape(kind)}</td><td>{window}</td></tr>" for kind, window in windows)
    parts = [
        f'<p class="lens-title">{html.escape(title)}</p>',
        f"<p>{html.escape(description)}</p>",
        facts_html(facts).removesuffix("</dl>") + f"{chips}</dl>",
        histogram,
        f'<div class="lens-scroll" tabindex="0"><table><tbody>{rows}</tbody></table></div>' if rows else "",
    ]
    told = [title, description, *(f"{name}: {number(value)}" for name, value in facts.items())]
    told += [f"{name}: {' | '.join(spelled(token).strip() for token in held)}" for name, held in lists.items()]
    return Shown(f'{STYLE}<div class="lens">{"".join(parts)}</div>', "\n".join(told))


def activation_histogram(activations: Float[np.ndarray, " tokens"], of: str) -> str:
    """Draw how strong a feature is where it fires: 30 bars, heights by the logarithm of their tokens, numbers on hover.

    Args:
        activations: at every token; those of 0 and below are counted, not drawn.
        of: what the tokens are of.
    """
    values = np.asarray(activations, float)
    firing = values[values > 0]
    told = f"fires on {len(firing):,} of {len(values):,} tokens of {of}"
    if not len(firing):
        return f"<p>{html.escape(told)}</p>"
    counts, edges = np.histogram(firing, bins=BINS, range=(0, float(firing.max())))
    heights = np.log1p(counts) / np.log1p(counts.max()) * (HEIGHT - 2)
    step = WIDTH / BINS
    bars = "".join(
        f'<rect x="{at * step:.1f}" y="{HEIGHT - height:.1f}" width="{step - 1:.1f}" height="{height:.1f}">'
        f"<title>{edges[at]:.3g} to {edges[at + 1]:.3g}: {count:,} tokens</title></rect>"
        for at, (count, height) in enumerate(zip(counts.tolist(), heights))
        if count
    )
    drawn = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" fill="currentColor" opacity=".7" role="img">'
    label = f"<title>{html.escape(told)}</title>"
    axis = f"0 to {number(float(firing.max()))}, logarithm of the count; {told}"
    floor = f'<rect x="0" y="{HEIGHT - 1}" width="{WIDTH}" height="1"/>'
    return f"<p>{drawn}{label}{bars}{floor}</svg><br><small>{html.escape(axis)}</small></p>"


def coloured_features(title: str, rows: Sequence[tuple[Mapping[str, Any], str]], texts: Sequence[str]) -> Shown:
    """Give one text many times, coloured by one feature each.

    Args:
        title: above the table.
        rows: (name -> value, safe HTML from `token_html`) of each feature; the names are the same in all rows.
        texts: the line of each feature for a terminal.
    """
    import pandas as pd

    from lfp_lens.view.page import table

    frame = pd.DataFrame([{**facts, "text": shown} for facts, shown in rows])
    return Shown(table(frame, title, raw=("text",)), "\n".join([title, *texts]))


def _seen(token: str) -> str:
    """Give a token as escaped text that can be seen: a space is drawn."""
    return html.escape(spelled(token).replace(" ", "\N{OPEN BOX}")) or "&nbsp;"
