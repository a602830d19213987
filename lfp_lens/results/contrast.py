"""What `contrast` gives: validated triples, and the reason for every text that gave none.

`Triples` differ in one word and belong to a lexicon; `PreferenceTriples` are whole rewrites and belong to a task.
"""

from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate, mean_estimate
from lfp_lens.view import page, plots

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MEMBERS = ("positive", "neutral", "negative")
GROUPS = ("lemma", "source")
MAX_LENGTH_RATIO = 1.2
"""Longest over shortest member of a preference triple, in words."""
_TEXTS = ("prompt", *MEMBERS, "original_chosen", "original_rejected")


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
    lemmas: dict[str, str] = field(default_factory=dict)
    """Word, lower-cased -> its lemma, the wall of every split by word; a word that is not in it is its own."""
    tagger: str = ""
    """Who told the parts of speech: a spaCy pipeline with its version, or the rules without one."""

    def __len__(self) -> int:
        return len(self.prefix)

    def words(self, member: str) -> tuple[str, ...]:
        """Give the words of one member: `positive`, `neutral` or `negative`."""
        assert member in MEMBERS, member
        return getattr(self, member)

    def lemma(self, member: str) -> tuple[str, ...]:
        """Give the lemma of each word of one member: a split by word never parts the words of one lemma."""
        return tuple(self.lemmas.get(word.lower(), word.lower()) for word in self.words(member))

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

    def groups(self, by: str = "lemma") -> tuple[str, ...]:
        """Give what a split must keep together, one label for each of the texts of `up_to_word()`.

        Args:
            by: `lemma`, the lemma of the word (a claim for a word must hold without its family), or `source`, the input
                text (a claim for a text must hold without its other triples).
        """
        if by not in GROUPS:
            raise unknown("group of triples", by, GROUPS)
        if by == "source":
            return tuple(map(str, self.source.tolist())) * len(MEMBERS)
        return tuple(lemma for member in MEMBERS for lemma in self.lemma(member))

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
        return page.table(
            head,
            f"{len(self)} triples from {self.n_texts} texts (first {len(head)}); rejected: {_reasons(self.rejected)}",
        )


@record
class PreferenceTriples:
    """Three continuations of one prompt by one writer: what the feedback prefers, a neutral one, what it disprefers.

    All three were rewritten from the same original by the same rewriter, are of like length, and are graded in order.
    May be made by hand from rewrites of your own; what breaks these rules is refused with a `LensError`.
    """

    prompt: tuple[str, ...]
    """What all members continue, one per triple."""
    positive: tuple[str, ...]
    """The continuation the feedback prefers, alone."""
    neutral: tuple[str, ...]
    """The continuation in between, alone."""
    negative: tuple[str, ...]
    """The continuation the feedback disprefers, alone."""
    original_chosen: tuple[str, ...]
    """The continuation that was preferred in the data, as the rewriter got it."""
    original_rejected: tuple[str, ...]
    """The other continuation of the data, as the rewriter got it."""
    grades: Int[np.ndarray, "triples members"]
    """1 to 5 of positive, neutral, negative, as the rewriter graded them unseen; 5 is what the feedback prefers."""
    original_grades: Int[np.ndarray, "triples 2"]
    """1 to 5 of the original chosen and rejected continuation."""
    source: Int[np.ndarray, " triples"]
    """Row of the input that the triple comes from."""
    group: tuple[str, ...]
    """Prompt group (a dialogue's first human turn): splits never part it."""
    task: str
    """What is graded, as the rewriter was told."""
    rewriter: str
    """Who wrote and graded all members."""
    is_swapped: bool
    """What the feedback prefers is what the task calls bad (toxic tasks): poles and grades are turned round."""
    rejected: dict[str, int]
    """Reason -> how many items fell to it."""
    n_items: int
    """Preference pairs that were looked at."""

    def __post_init__(self) -> None:
        counts = {name: len(getattr(self, name)) for name in (*_TEXTS, "grades", "original_grades", "source", "group")}
        if len(set(counts.values())) > 1:
            raise LensError(f"Preference triples need one entry per triple in every field; {counts} given.")
        for place, grades in enumerate(self.grades.tolist()):
            if reason := mismatch([getattr(self, member)[place] for member in MEMBERS], grades):
                raise LensError(f"Triple {place} of the preference triples does not hold: {reason}.")

    def __len__(self) -> int:
        return len(self.prompt)

    def continuations(self, member: str) -> tuple[str, ...]:
        """Give the continuations of one member alone: `positive`, `neutral` or `negative`."""
        assert member in MEMBERS, member
        return getattr(self, member)

    def texts(self, member: str) -> list[str]:
        """Give prompt and continuation of one member, joined to the letter as in tuning."""
        return [prompt + text for prompt, text in zip(self.prompt, self.continuations(member))]

    def spans(self, member: str) -> list[tuple[int, int]]:
        """Give the character span of the continuation in each of those texts, so that any tokenizer can align it."""
        rows = zip(self.prompt, self.continuations(member))
        return [(len(prompt), len(prompt) + len(text)) for prompt, text in rows]

    def grader_agreement(self) -> Estimate:
        """Give the share of prompts (groups) whose preferred original has the higher grade; a tie counts half.

        Near 0.5 the grader does not see what the feedback prefers, and its triples say little about that feedback.
        """
        chosen, other = self.original_grades.T
        _, codes = np.unique(self.group, return_inverse=True)
        agrees = np.bincount(codes, 0.5 + 0.5 * np.sign(chosen - other)) / np.bincount(codes)
        return mean_estimate(agrees)

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per triple: source, group, texts, and the five grades."""
        import pandas as pd

        frame = pd.DataFrame({name: getattr(self, name) for name in ("source", "group", *_TEXTS)})
        grades = np.hstack([self.grades, self.original_grades])
        return frame.assign(**{f"grade_{name}": grades[:, at] for at, name in enumerate(_TEXTS[1:])})

    def plot(self) -> "go.Figure":
        """Draw how many items each reason rejected, beside those kept."""
        return plots.rejections(self.rejected, len(self))

    def _repr_html_(self) -> str:
        head = self.to_frame().head(20).drop(columns="group")
        poles = ", poles swapped" if self.is_swapped else ""
        return page.table(
            head,
            f"{len(self)} preference triples from {self.n_items} pairs (first {len(head)}) by {self.rewriter}, "
            f"graded for: {self.task}{poles}; rejected: {_reasons(self.rejected)}",
        )


def word_count(text: str) -> int:
    """Count words as white space parts them: the unit of matched length.

    >>> word_count(" I can't,  sorry. ")
    3
    """
    return len(text.split())


def mismatch(texts: Sequence[str], grades: Sequence[int] = (5, 3, 1)) -> str | None:
    """Tell why texts and grades of positive, neutral and negative make no triple; None if they make one.

    >>> mismatch(["a b", "c d", "e f"], [5, 3, 1])
    >>> mismatch(["a b", "c d", "e f"], [5, 3, 3])
    'grades out of order'
    """
    assert len(texts) == len(grades) == len(MEMBERS), (texts, grades)
    if not all(text.strip() for text in texts):
        return "empty rewrite"
    if len({" ".join(text.casefold().split()) for text in texts}) < len(texts):
        return "identical rewrites"
    counts = [word_count(text) for text in texts]
    if max(counts) > MAX_LENGTH_RATIO * min(counts):
        return "lengths more than 20 % apart"
    if not 5 >= grades[0] > grades[1] > grades[2] >= 1:
        return "grades out of order"
    return None


def _reasons(rejected: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in rejected.items()) or "none"
