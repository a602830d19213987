"""The chat labeller: a model behind an OpenAI-compatible server explains, judges, detects and fuzzes.

The model is blind and texts are data: see `chat_questions`, where the questions stand.

It does not simulate: Bills et al. read the activation predicted at every token off the log-probabilities of the digits 0 to
10, and chat servers do not give those for the tokens of a prompt.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat import Chat, Question, Spending
from lfp_lens.parts.labellers.base import LABELLERS, Evidence, Setting, Trial
from lfp_lens.parts.labellers.chat_cost import expected_cost
from lfp_lens.parts.labellers.chat_questions import detect_questions, explain_questions, fuzz_questions, one_line
from lfp_lens.results.explain import Explanation
from lfp_lens.results.explain_scores import Bill


class ChatLabeller:
    """Asks a chat model one question per feature, and one per trial; every reply is kept in a ledger in `folder`.

    >>> labeller = ChatLabeller("gpt-4o-mini", folder, spending=Spending(budget_usd=1.0))  # doctest: +SKIP
    >>> list(labeller.explain(evidence, "positive sentiment"))  # doctest: +SKIP
    """

    def __init__(self, model: str, folder: Path, *, spending: Spending | None = None) -> None:
        self.chat = Chat(model, folder, role="labeller", offline="lexicon", spending=spending)
        self.name, self.fingerprint = self.chat.name, self.chat.fingerprint

    @property
    def bill(self) -> Bill:
        """What was asked and paid since this object was made. Take it before a call, and give it to `bill_since` after it."""
        return self.chat.bill

    def bill_since(self, earlier: Bill) -> Bill:
        """Give what was asked and paid since an earlier `bill`: see `Chat.bill_since`."""
        return self.chat.bill_since(earlier)

    def foretell(self, numbers: Mapping[str, int], n_examples: int, task: str) -> None:
        """Say before the first question what all of them will cost: their numbers are those of `chat_cost.questions_of`."""
        self.chat.foretell(expected_cost(numbers, n_examples, task, self.chat.desk.prices))

    def explain(self, evidence: Sequence[Evidence], task: str) -> Iterator[Explanation | None]:
        """Ask what each feature responds to, and whether that is related to the task.

        Raises:
            LensError: for a task of more than 2,000 characters, and as `Chat.ask_all`.
        """
        for reply in self.chat.ask_all(explain_questions(evidence, task)):
            yield reply and Explanation(one_line(reply.description), reply.is_relevant, float(reply.confidence))

    def detect(self, trials: Sequence[Trial]) -> Iterator[list[bool] | None]:
        """Ask in which windows of each trial the feature fires, all of them in one question."""
        return self._numbers(detect_questions(trials), trials)

    def fuzz(self, trials: Sequence[Trial]) -> Iterator[list[bool] | None]:
        """Ask in which windows of each trial it fires on the marked tokens."""
        return self._numbers(fuzz_questions(trials), trials)

    def _numbers(self, questions: Iterable[Question[Any]], trials: Sequence[Trial]) -> Iterator[list[bool] | None]:
        for reply, trial in zip(self.chat.ask_all(questions), trials):
            yield reply and [number in reply.numbers for number in range(1, len(trial.windows) + 1)]


@LABELLERS.add("openai")
def _openai(argument: str, setting: Setting) -> ChatLabeller:
    if not argument:
        raise LensError("The labeller 'openai' needs a model's name after a colon, for example 'openai:gpt-4o'.")
    return ChatLabeller(argument, setting.folder, spending=Spending.of(setting.spending))
