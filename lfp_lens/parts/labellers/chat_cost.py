"""What explaining with a chat model will cost, before there is any evidence: typical questions, counted."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lfp_lens.parts.chat import Estimate, Prices, Question
from lfp_lens.parts.labellers.base import Evidence, Trial
from lfp_lens.parts.labellers.chat_questions import detect_questions, explain_questions, fuzz_questions
from lfp_lens.results.explain import Example, Explanation

WINDOW = (
    "This", " one", " was", " a", " wonderful", " film", ",", " and", " yet", " the", " first", " half", " hour",
    " is", " slow", " and", " some", " of", " the", " dialog", "ue", " seems", " forced", ",", " the", " actors", " are",
    " so", " good", " that", " nobody", " left",
)  # fmt: skip
"""32 tokens of English, about as long as those of reviews."""
ACTIVE = {4: 1.0, 5: 0.3, 14: 0.4, 28: 0.7}
"""Where a feature is active in a window, about: place -> activation."""
TRIAL_WINDOWS = 40
"""Held-out windows in one trial, at most."""
LISTED = tuple(WINDOW[at] for at in (4, 5, 14, 28)) * 3


def questions_of(
    n_features: int, scores: tuple[str, ...], n_random: int = 0, *, is_repeated: bool = False
) -> dict[str, int]:
    """Count the questions of each kind that explaining asks at most.

    One for each feature and random feature (twice for a feature with `is_repeated`), and for each score one with every
    feature's own explanation, one with another's where there are two, and one for each random feature.

    >>> questions_of(100, ("detection",), n_random=20)
    {'explain': 120, 'detect': 220, 'fuzz': 0}
    """
    trials = n_features * (2 if n_features > 1 else 1) + n_random
    return {
        "explain": n_features * (2 if is_repeated else 1) + n_random,
        "detect": trials if "detection" in scores else 0,
        "fuzz": trials if "fuzzing" in scores else 0,
    }


def expected_cost(numbers: Mapping[str, int], n_examples: int, task: str, prices: Prices | None) -> Estimate:
    """Estimate what so many questions cost: `n_examples` active windows and half as many silent ones, 40 windows in a trial."""
    typical = typical_questions(n_examples, task)
    return Estimate(
        requests=sum(numbers.values()),
        tokens_in=sum(number * typical[kind].likely_tokens_in for kind, number in numbers.items()),
        tokens_out=sum(number * typical[kind].typical_tokens for kind, number in numbers.items()),
        prices=prices,
    )


def typical_questions(n_examples: int, task: str) -> dict[str, Question[Any]]:
    """Give a question of each kind as `explain` will ask it, about a text that stands for all."""
    activations = np.array([ACTIVE.get(at, 0.0) for at in range(len(WINDOW))])
    shown = Example(WINDOW, activations, marked=(4, 28))
    evidence = Evidence(
        "", (shown,) * n_examples, (shown,) * ((n_examples + 1) // 2), ("",), np.ones(1), np.ones(1, int),
        tokens=LISTED, promotes=LISTED, suppresses=LISTED,
    )  # fmt: skip
    trial = Trial("", Explanation("words of praise for a film or its actors", True, 0.9), (shown,) * TRIAL_WINDOWS)
    return {
        "explain": explain_questions([evidence], task)[0],
        "detect": detect_questions([trial])[0],
        "fuzz": fuzz_questions([trial])[0],
    }
