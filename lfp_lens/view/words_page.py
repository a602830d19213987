"""Fragments of the page of learned words: what is claimed, the words to look at first, texts coloured word by word."""

import html
import re
from collections.abc import Mapping, Sequence

import numpy as np

from lfp_lens.view.page import table
from lfp_lens.view.tokens import token_html

WORD = re.compile(r"([^\W\d_]+(?:['’][^\W\d_]+)*)")
FULL_COLOUR = 0.95
"""The share of absolute values that are paler than full colour: a few extreme words would leave the rest white."""


def claims(claimed: Sequence[str], not_claimed: Sequence[str]) -> str:
    """Give two lists side by side: what the numbers support, and what they do not; sentences are escaped."""
    columns = "".join(
        f'<div class="{tone}"><h2>{title}</h2><ul>{_items(sentences)}</ul></div>'
        for tone, title, sentences in (
            ("good", "What this page claims", claimed or ["Nothing."]),
            ("", "What it does not claim", not_claimed),
        )
    )
    return f'<div class="claims">{columns}</div>'


def chips(title: str, words: Sequence[tuple[str, str]]) -> str:
    """Give words in small frames with a hover text each; nothing where there are none. Both are escaped."""
    if not words:
        return ""
    shown = "".join(
        f'<span class="word" title="{html.escape(hover)}">{html.escape(word)}</span>' for word, hover in words
    )
    return f'<p class="lens-title">{html.escape(title)}</p><p>{shown}</p>'


def marked(text: str, is_alarm: bool) -> str:
    """Give a text as HTML on one line, in the colour of an alarm if it is one; it is escaped."""
    return f'<span class="{"verdict alarm" if is_alarm else "verdict"}">{html.escape(text)}</span>'


def coloured_texts(texts: Sequence[str], readings: Mapping[str, Mapping[str, float]]) -> str:
    """Give a table of texts, one column per reading, every word coloured by its value in that reading.

    Args:
        texts: shown whole; they are escaped.
        readings: name -> lower-case word -> value; words without one stay plain.
    """
    import pandas as pd

    columns = {name: [colour_words(text, values) for text in texts] for name, values in readings.items()}
    return table(pd.DataFrame(columns), "The same texts by each reading", raw=tuple(columns))


def colour_words(text: str, values: Mapping[str, float]) -> str:
    """Give a text as HTML, each word coloured by its value, whatever its case.

    >>> colour_words("Good!", {"good": 1.0})
    '<span class="lens-tokens"><span title="1.000" style="background:rgba(58, 126, 191, 0.70)">Good</span><span>!</span></span>'
    """
    parts = [part for part in WORD.split(text) if part]
    numbers = [values.get(part.lower().replace("’", "'"), np.nan) for part in parts]
    largest = float(np.quantile(np.abs(list(values.values())), FULL_COLOUR)) if values else None
    shown = token_html(parts, numbers, largest=largest)
    return shown.replace('<span title="no value">', "<span>")


def _items(sentences: Sequence[str]) -> str:
    return "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
