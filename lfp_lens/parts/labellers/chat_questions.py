"""The questions of the chat labeller: what stands in a request, and what a usable reply is.

Texts, tokens and the task travel as JSON in the user turn and are called data in the system turn; replies follow a schema
(`parts.chat`). Nothing tells the feature's name, a probe, an effect, a side or a model's name.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat import DATA, Question
from lfp_lens.parts.labellers.base import Evidence, Trial
from lfp_lens.results.explain import Example

SEGMENTS = (
    'A text is a list of pieces in order: a string is a stretch on which the feature is silent, ["token", n] one token with its '
    'activation n from 1 to 10, its maximum over all texts being 10; the strongest token of a text is ["token", n, "peak"]. '
)
EXPLAIN = (
    "You study one feature inside a language model. You get texts in which it is active and texts in which it is silent. "
    + SEGMENTS
    + "You also get the tokens it is active on most and, where known, the next tokens that it promotes and suppresses in the "
    "model's output. Say in one short phrase what it responds to: what the strongly active tokens and their contexts have in "
    "common that the silent ones lack. Then judge it against the task named in `task`: is_relevant is true if what it responds "
    "to is related to the task (if the task names several kinds, one of them is enough). confidence is your probability, from "
    "0 to 1, that this judgement is right." + DATA
)
DETECT = (
    "You get the description of a feature inside a language model and numbered texts. Give the numbers of "
    "the texts in which a feature with this description would activate on at least one token; the list "
    "may be empty." + DATA
)
FUZZ = (
    "You get the description of a feature inside a language model and numbered texts in which some tokens are marked. A text is "
    'a list of pieces in order: a string is not marked, ["token"] is one marked token. Give the numbers of the texts in which a '
    "feature with this description would activate on the marked tokens; the list may be empty." + DATA
)
MOST_DESCRIPTION, MOST_TOKEN, MOST_TASK = 500, 100, 2000
"""Characters of a description, of one shown token, and of a task."""
MOST_WINDOWS, MOST_TOKENS, MOST_LISTED = 60, 64, 20
"""Windows in one question, tokens of one window, tokens in a list."""
EXPLAIN_TOKENS, TYPICAL_EXPLAIN = 300, 45
"""Longest and typical reply to EXPLAIN."""
SPARE_TOKENS, TOKENS_PER_NUMBER, TYPICAL_NUMBERS = 40, 4, 60
"""Longest reply to DETECT and FUZZ: spare tokens and some for each text; a typical one."""


class Explained(BaseModel):
    """Reply to EXPLAIN."""

    description: str
    is_relevant: bool
    confidence: float


class Detection(BaseModel):
    """Reply to DETECT and FUZZ."""

    numbers: list[int]


def explain_questions(evidence: Sequence[Evidence], task: str) -> list[Question[Explained]]:
    """Give the question about each feature. Raises `LensError` for a task that is too long."""
    if len(task) > MOST_TASK:
        raise LensError(f"The task has {len(task):,} characters; {MOST_TASK:,} are allowed. Say it in a sentence.")
    return [_explain_question(one, task) for one in evidence]


def detect_questions(trials: Sequence[Trial]) -> list[Question[Detection]]:
    """Give the question of each trial: in which windows does it fire?"""
    return [_numbers_question(trial, DETECT, [_text(window) for window in trial.windows]) for trial in trials]


def fuzz_questions(trials: Sequence[Trial]) -> list[Question[Detection]]:
    """Give the question of each trial: in which windows does it fire on the marked tokens?"""
    return [_numbers_question(trial, FUZZ, [_marked(window) for window in trial.windows]) for trial in trials]


def _explain_question(evidence: Evidence, task: str) -> Question[Explained]:
    data: dict[str, Any] = {
        "task": task,
        "active_texts": [_active(example) for example in evidence.examples[:MOST_WINDOWS]],
        "silent_texts": [_text(example) for example in evidence.silent[:MOST_WINDOWS]],
    }
    lists = (evidence.tokens, evidence.promotes, evidence.suppresses)
    for name, tokens in zip(("most_active_tokens", "promoted_tokens", "suppressed_tokens"), lists):
        data |= {name: [_short(token) for token in tokens[:MOST_LISTED]]} if tokens else {}
    return Question(
        f"feature {evidence.feature}", EXPLAIN, data, Explained,
        lambda reply: bool(reply.description.strip()) and 0 <= reply.confidence <= 1,
        max_tokens=EXPLAIN_TOKENS, typical_tokens=TYPICAL_EXPLAIN,
    )  # fmt: skip


def _numbers_question(trial: Trial, system: str, texts: list[Any]) -> Question[Detection]:
    numbers = set(range(1, len(texts) + 1))
    numbered = [{"number": number, "text": text} for number, text in enumerate(texts, start=1)]
    data = {"description": one_line(trial.explanation.description), "texts": numbered}
    return Question(
        f"feature {trial.feature}", system, data, Detection,
        lambda reply: numbers.issuperset(reply.numbers),
        max_tokens=SPARE_TOKENS + TOKENS_PER_NUMBER * len(texts), typical_tokens=TYPICAL_NUMBERS,
    )  # fmt: skip


def _active(example: Example) -> list[Any]:
    """Give a window as pieces: silent stretches, and the active tokens with their activation from 1 to 10."""
    pieces: list[Any] = []
    for at, token in enumerate(example.tokens[:MOST_TOKENS]):
        level = round(10 * float(example.activations[at]))
        if at == example.peak and example.activations[at] > 0:
            pieces.append([_short(token), max(level, 1), "peak"])
        elif level > 0:
            pieces.append([_short(token), level])
        else:
            _append(pieces, _short(token))
    return pieces


def _marked(example: Example) -> list[Any]:
    """Give a window as pieces: unmarked stretches, and the marked tokens."""
    pieces: list[Any] = []
    for at, token in enumerate(example.tokens[:MOST_TOKENS]):
        if at in example.marked:
            pieces.append([_short(token)])
        else:
            _append(pieces, _short(token))
    return pieces


def _append(pieces: list[Any], token: str) -> None:
    if pieces and isinstance(pieces[-1], str):
        pieces[-1] += token
    else:
        pieces.append(token)


def _text(example: Example) -> str:
    return "".join(map(_short, example.tokens[:MOST_TOKENS]))


def _short(token: str) -> str:
    return token if len(token) <= MOST_TOKEN else token[:MOST_TOKEN] + "…"


def one_line(text: str) -> str:
    """Give a description on one line, cut to its longest length."""
    return " ".join(text.split())[:MOST_DESCRIPTION]
