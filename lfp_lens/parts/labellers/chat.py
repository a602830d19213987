"""The chat labeller: a model behind an OpenAI-compatible server describes, judges and detects.

Texts of models and data sets travel as JSON in the user turn and are called data in the system turn; replies
follow a schema. Every reply is kept on disk by the content of its question, so a killed run never pays twice.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat import DATA, WORKERS, Chat
from lfp_lens.parts.labellers.base import LABELLERS, Evidence, Setting

DESCRIBE = (
    "You study one feature inside a language model. You get texts as lists of tokens, with the feature's "
    "activation at every token from 0 (silent) to 10 (its maximum). Say in one short phrase what the feature "
    "responds to: what the strongly activated tokens have in common that the silent ones lack." + DATA
)
JUDGE = (
    "You get the description of a feature inside a language model and a task. Say whether the description is "
    "related to the task. If the task names several kinds, one of them is enough." + DATA
)
DETECT = (
    "You get the description of a feature inside a language model and numbered texts. Give the numbers of "
    "the texts in which a feature with this description would activate on at least one token; the list "
    "may be empty." + DATA
)


class Description(BaseModel):
    """Reply to DESCRIBE."""

    description: str


class Judgement(BaseModel):
    """Reply to JUDGE."""

    is_related: bool


class Detection(BaseModel):
    """Reply to DETECT."""

    numbers: list[int]


class ChatLabeller:
    """Asks a chat model (`parts.chat`), whose replies are kept in `folder`."""

    workers = WORKERS

    def __init__(self, model: str, folder: Path) -> None:
        self.chat = Chat(model, folder, role="labeller", offline="lexicon")
        self.name = self.chat.name

    def describe(self, evidence: Evidence) -> str:
        """Ask what the examples have in common."""
        shown = [
            {
                "tokens": list(example.tokens),
                "activations": [round(10 * float(value)) for value in example.activations],
            }
            for example in evidence.examples
        ]
        reply = self.chat.ask(
            f"feature {evidence.feature}",
            DESCRIBE,
            {"texts": shown},
            Description,
            lambda reply: _is_text(reply.description),
        )
        return " ".join(reply.description.split())

    def is_relevant(self, evidence: Evidence, description: str, task: str) -> bool:
        """Ask whether the description is related to the task; the examples are not shown again."""
        return self.chat.ask(
            f"feature {evidence.feature}", JUDGE, {"description": description, "task": task}, Judgement
        ).is_related

    def detect(self, feature: str, description: str, windows: Sequence[str]) -> list[bool]:
        """Ask which texts the description fits, all in one question."""
        texts = [{"number": number, "text": text} for number, text in enumerate(windows, start=1)]
        numbers = set(range(1, len(windows) + 1))
        reply = self.chat.ask(
            f"feature {feature}", DETECT, {"description": description, "texts": texts}, Detection,
            lambda reply: numbers.issuperset(reply.numbers),
        )  # fmt: skip
        return [number in reply.numbers for number in sorted(numbers)]


def _is_text(text: str) -> bool:
    return bool(text.strip())


@LABELLERS.add("openai")
def _openai(argument: str, setting: Setting) -> ChatLabeller:
    if not argument:
        raise LensError("The labeller 'openai' needs a model's name after a colon, for example 'openai:gpt-4o'.")
    return ChatLabeller(argument, setting.folder)
