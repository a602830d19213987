"""The chat rewriter: a model behind an OpenAI-compatible server grades answers and writes them anew (`parts.chat`)."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat import DATA, WORKERS, Chat, UnusableReply
from lfp_lens.parts.rewriters.base import REWRITERS, Declined, Setting
from lfp_lens.results.contrast import word_count

TRIES = 3
"""How often a rewrite of the wrong length is sent back."""
TOKENS_PER_WORD, SPARE_TOKENS = 3, 200
GRADES = {"positive": 5, "neutral": 3, "negative": 1}
UNUSABLE = "the rewriter gave no usable answer"
GRADE = (
    "You grade answers to prompts. You get the name of a quality, a prompt and one answer. Say how far the answer has "
    "the quality: 5 fully, 4 mostly, 3 neither has nor lacks it, 2 mostly lacks it, 1 lacks it or shows its opposite. "
    "Judge the answer alone, neither the prompt nor its length." + DATA
)
REWRITE = (
    "You write variants of answers, for research on what a language model was trained to prefer. You get the name of a "
    "quality, a prompt, one answer to it, a grade and bounds. Write another answer to the same prompt that a strict "
    "grader would give exactly this grade for the quality: 5 fully has it, 3 neither has nor lacks it, 1 lacks it or "
    "shows its opposite. Keep the subject, the form and the manner of writing of the given answer, and count your words: "
    "their number lies within the bounds. If earlier attempts are given, their numbers of words were out of bounds. Give "
    "the answer alone: do not repeat the prompt, do not comment, do not go on with another turn." + DATA
)


class Grade(BaseModel):
    """Reply to GRADE."""

    grade: Literal[1, 2, 3, 4, 5]


class Rewrite(BaseModel):
    """Reply to REWRITE."""

    answer: str


class ChatRewriter:
    """Asks a chat model to grade and to rewrite, at temperature 0; replies are kept in `folder`.

    A rewrite of the wrong length is sent back up to twice, with its number of words; the nearest is given.
    """

    workers = WORKERS

    def __init__(self, model: str, folder: Path) -> None:
        self.chat = Chat(model, folder, role="rewriter", offline="offline")
        self.name, self.fingerprint = self.chat.name, self.chat.fingerprint

    def grade(self, prompt: str, text: str, task: str) -> int:
        """Ask for a grade; how the answer came about is not told."""
        data = {"quality": task, "prompt": prompt, "answer": text}
        try:
            return self.chat.ask("the grade of an answer", GRADE, data, Grade).grade
        except UnusableReply as error:
            raise Declined(UNUSABLE) from error

    def rewrite(self, prompt: str, text: str, pole: str, task: str, n_words: int) -> str:
        """Ask for a variant of at least `n_words` words and at most a fifth more."""
        least, most = n_words, n_words * 6 // 5
        data: dict[str, Any] = {"quality": task, "prompt": prompt, "answer": text, "grade": GRADES[pole],
                                "words": {"least": least, "most": most}}  # fmt: skip
        written: list[str] = []
        for _ in range(TRIES):
            earlier = {"earlier_attempts": [{"answer": one, "words": word_count(one)} for one in written]}
            try:
                reply = self.chat.ask(
                    "a rewrite", REWRITE, data | (earlier if written else {}), Rewrite,
                    lambda reply: bool(reply.answer.strip()), max_tokens=TOKENS_PER_WORD * most + SPARE_TOKENS,
                )  # fmt: skip
            except UnusableReply as error:
                raise Declined(UNUSABLE) from error
            written.append(reply.answer.strip())
            if least <= word_count(written[-1]) <= most:
                break
        return min(written, key=lambda one: max(least - word_count(one), word_count(one) - most, 0))


@REWRITERS.add("openai")
def _openai(argument: str, setting: Setting) -> ChatRewriter:
    if not argument:
        raise LensError("The rewriter 'openai' needs a model's name after a colon, for example 'openai:gpt-4o'.")
    return ChatRewriter(argument, setting.folder)
