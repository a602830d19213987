"""What `contrast` gives: validated triples, and the reason for every text that gave none."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from lfp_lens.core.records import record
from lfp_lens.view import page, plots

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MEMBERS = ("positive", "neutral", "negative")


@record
class Triples:
    """The same text with a positive, a neutral and a negative word. Everything but that word is identical."""

    prefix: tuple[str, ...]
    """The text up to the word, one per triple."""
    suffix: tuple[str, ...]
    """The text after the word."""
    positive: tuple[str, ...]
    """The positive word, in the case of the word it replaces."""
    neutral: tuple[str, ...]
    """The neutral word (|value| < 0.5 by the lexicon, or outside it)."""
    negative: tuple[str, ...]
    """The negative word."""
    part_of_speech: tuple[str, ...]
    """The slot's part of speech and inflection, as all three words share it."""
    source: Int[np.ndarray, " triples"]
    """Which input text the triple comes from; splits never part a source."""
    lexicon: dict[str, float]
    """The stated value of every word used, lower-cased."""
    rejected: dict[str, int]
    """Reason -> how many candidate texts or words fell to it."""
    n_texts: int
    """Texts that were looked at."""

    def __len__(self) -> int:
        return len(self.prefix)

    def words(self, member: str) -> tuple[str, ...]:
        """Give the words of one member: `positive`, `neutral` or `negative`."""
        assert member in MEMBERS, member
        return getattr(self, member)

    def texts(self, member: str) -> list[str]:
        """Give the full texts of one member."""
        return [left + word + right for left, word, right in zip(self.prefix, self.words(member), self.suffix)]

    def up_to_word(self, member: str | None = None) -> list[str]:
        """Give the texts of one member, or of all three one after another, each ending with its word.

        They are what a probe reads activations on, because what follows a word changes nothing at it, and so what
        `lfp_lens.cache(..., keep_end=True)` takes for `probe(cache=...)`.
        """
        members = MEMBERS if member is None else (member,)
        return [left + word for one in members for left, word in zip(self.prefix, self.words(one))]

    def spans(self, member: str) -> list[tuple[int, int]]:
        """Give the character span of the word in each of those texts, so that any tokenizer can align it."""
        return [(len(left), len(left) + len(word)) for left, word in zip(self.prefix, self.words(member))]

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per triple."""
        import pandas as pd

        names = ("source", "part_of_speech", "prefix", *MEMBERS, "suffix")
        return pd.DataFrame({name: getattr(self, name) for name in names})

    def plot(self) -> "go.Figure":
        """Draw how many candidates each reason rejected, beside those kept."""
        return plots.rejections(self.rejected, len(self))

    def _repr_html_(self) -> str:
        head = self.to_frame().head(20)
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items()) or "none"
        return page.table(
            head, f"{len(self)} triples from {self.n_texts} texts (first {len(head)}); rejected: {reasons}"
        )
