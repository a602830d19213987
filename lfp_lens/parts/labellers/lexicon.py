"""The offline labeller: describes a feature by the words it fires on, knows sentiment from the lexicon alone.

Deterministic, free and needing no model. It sees words, not meaning: a feature that fires on all adjectives
is "related to sentiment" for it, because many adjectives are rated.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from lfp_lens.core.errors import LensError
from lfp_lens.parts.labellers.base import LABELLERS, Evidence, Setting
from lfp_lens.parts.words import tokenize

PREFIX = "fires on: "
MAX_WORDS = 5
PRIOR_TOKENS = 10
"""Tokens without activation that are added to every word, so that a word seen once does not win by luck."""
SHARE_OF_TOP = 0.25
"""A word is named if its activation is at least this share of the first word's."""
MARGIN = 0.25
"""How far a feature's sentiment must exceed that of all text, in units of the lexicon's mean |value|."""
SENTIMENT = re.compile(
    r"sentiment|positiv|negativ|opinion|emotion|valence|polarity|attitude|mood|feeling|prais|critici",
    re.IGNORECASE,
)


class LexiconLabeller:
    """Names the words with the highest mean activation; relevant is what fires on rated words.

    Description: up to 5 words by (strong activation summed over the word's tokens) / (its tokens + 10), where
    strong is what the feature does on its strongest 1 % of tokens (`Evidence.total`). Words below a quarter of the
    first one's value are left out.

    Relevance to sentiment: with |v| the absolute lexicon value of the word that a token belongs to (0 if it has
    none), `(mean of |v| weighted by strong activation) - (plain mean of |v| over all tokens) >= 0.25 * (mean |v| of
    the lexicon)`. On features of real SAEs with the words shuffled the left side stayed below 0.2.

    Detection: the text holds one of the words of the description.
    """

    name = "lexicon"
    workers = 1

    def __init__(self, lexicon: Mapping[str, float]) -> None:
        self._strength = {word: abs(value) for word, value in lexicon.items()}
        self._margin = MARGIN * float(np.mean(list(self._strength.values())))

    def describe(self, evidence: Evidence) -> str:
        """Name the words that the feature fires on, strongest first."""
        strength = evidence.total / (evidence.count + PRIOR_TOKENS)
        floor = SHARE_OF_TOP * strength.max(initial=0.0)
        order = np.argsort(-strength, kind="stable")
        named = [
            evidence.words[at] for at in order if strength[at] > 0 and strength[at] >= floor and evidence.words[at]
        ]
        return PREFIX + (", ".join(named[:MAX_WORDS]) or "white space")

    def is_relevant(self, evidence: Evidence, description: str, task: str) -> bool:
        """Tell whether the feature fires on more strongly rated words than the texts hold anyway."""
        check_task(task)
        rated = np.array([self._strength.get(word, 0.0) for word in evidence.words])
        fired, held = evidence.total.sum(), evidence.count.sum()
        if fired <= 0:
            return False
        return bool(evidence.total @ rated / fired - evidence.count @ rated / held >= self._margin)

    def detect(self, feature: str, description: str, windows: Sequence[str]) -> list[bool]:
        """Tell for each text whether it holds a word of the description."""
        # Words hold no space, so the first ", " after a word ends it even where the word is a comma.
        wanted = set(description.removeprefix(PREFIX).split(", "))
        return [not wanted.isdisjoint(tokenize(window).words) for window in windows]


def check_task(task: str) -> None:
    """Raise `LensError` for a task that is not about sentiment: a lexicon of valence knows nothing else."""
    if not SENTIMENT.search(task):
        raise LensError(
            f"The labeller 'lexicon' knows sentiment only, and the task {task!r} does not speak of it "
            '(positive, negative, opinion, ...). For this task use a chat model: labeller="openai:MODEL".'
        )


@LABELLERS.add("lexicon")
def _lexicon(argument: str, setting: Setting) -> LexiconLabeller:
    if argument:
        raise LensError(f"The labeller 'lexicon' takes nothing after its name; {argument!r} given. Use `lexicon=`.")
    check_task(setting.task)
    return LexiconLabeller(setting.lexicon)
