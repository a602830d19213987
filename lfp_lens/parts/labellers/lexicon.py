"""The offline labeller: describes a feature by the words it fires on, knows sentiment from the lexicon alone.

Deterministic, free and needing no model. It sees words, not meaning: a feature that fires on all adjectives
is "related to sentiment" for it, because many adjectives are rated.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np

from lfp_lens.core.errors import LensError
from lfp_lens.parts.labellers.base import LABELLERS, Evidence, Setting, Trial
from lfp_lens.parts.words import Tokens, tokenize
from lfp_lens.results.explain import Example, Explanation

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

    Detection: the window holds one of the words of the description. Fuzzing: a marked token belongs to one.
    """

    name = "lexicon"
    judges_by_valence = True

    def __init__(self, lexicon: Mapping[str, float]) -> None:
        self._lexicon = lexicon

    def explain(self, evidence: Sequence[Evidence], task: str) -> Iterator[Explanation]:
        """Name the words that each feature fires on, strongest first, and weigh their sentiment."""
        check_task(task)
        for one in evidence:
            yield Explanation(_described(one), valence_excess(one, self._lexicon) >= MARGIN, math.nan)

    def detect(self, trials: Sequence[Trial]) -> Iterator[list[bool]]:
        """Tell for each window whether it holds a word of the description."""
        for trial in trials:
            wanted = _wanted(trial.explanation)
            yield [not wanted.isdisjoint(_tokens(window.text).words) for window in trial.windows]

    def fuzz(self, trials: Sequence[Trial]) -> Iterator[list[bool]]:
        """Tell for each window whether a marked token belongs to a word of the description."""
        for trial in trials:
            wanted = _wanted(trial.explanation)
            yield [not wanted.isdisjoint(_marked_words(window)) for window in trial.windows]


def _described(evidence: Evidence) -> str:
    strength = evidence.total / (evidence.count + PRIOR_TOKENS)
    floor = SHARE_OF_TOP * strength.max(initial=0.0)
    order = np.argsort(-strength, kind="stable")
    named = [evidence.words[at] for at in order if strength[at] > 0 and strength[at] >= floor and evidence.words[at]]
    return PREFIX + (", ".join(named[:MAX_WORDS]) or "white space")


def _wanted(explanation: Explanation) -> set[str]:
    # Words hold no space, so the first ", " after a word ends it even where the word is a comma.
    return set(explanation.description.removeprefix(PREFIX).split(", "))


@lru_cache(maxsize=1 << 13)
def _tokens(text: str) -> Tokens:
    """Give the tokens of a window; many features are tried on the same ones."""
    return tokenize(text)


def _marked_words(window: Example) -> set[str]:
    """Give the words that the marked tokens belong to: those their first character other than white space is in."""
    held = _tokens(window.text)
    starts = list(accumulate((len(token) for token in window.tokens), initial=0))
    found = set()
    for at in window.marked:
        token = window.tokens[at]
        first = starts[at] + len(token) - len(token.lstrip())
        found |= {word for word, start, end in zip(held.words, held.starts, held.ends) if start <= first < end}
    return found


def valence_excess(evidence: Evidence, lexicon: Mapping[str, float]) -> float:
    """Give how far the mean |value| of the words a feature fires on exceeds that of all text, in units of the lexicon's mean
    |value|; relevant to sentiment is `MARGIN` or more. -inf for a feature that fires on nothing.
    """
    rated = np.abs(np.fromiter((lexicon.get(word, 0.0) for word in evidence.words), float, len(evidence.words)))
    fired, held = evidence.total.sum(), evidence.count.sum()
    if fired <= 0:
        return -np.inf
    excess = evidence.total @ rated / fired - evidence.count @ rated / held
    return float(excess) / float(np.abs(np.fromiter(lexicon.values(), float, len(lexicon))).mean())


def check_task(task: str, labeller: str = "lexicon") -> None:
    """Raise `LensError` for a task that is not about sentiment: a lexicon of valence knows nothing else."""
    if not SENTIMENT.search(task):
        raise LensError(
            f"The labeller {labeller!r} knows sentiment only, and the task {task!r} does not speak of it "
            '(positive, negative, opinion, ...). For this task use a chat model: labeller="openai:MODEL".'
        )


@LABELLERS.add("lexicon")
def _lexicon(argument: str, setting: Setting) -> LexiconLabeller:
    if argument:
        raise LensError(f"The labeller 'lexicon' takes nothing after its name; {argument!r} given. Use `lexicon=`.")
    check_task(setting.task)
    return LexiconLabeller(setting.lexicon)
