"""The recorded labeller: replays answers that were kept in a file, and refuses a question that is not in it.

    {"kind": "explanation", "feature": "blocks.3.hook_mlp_out 7", "description": "praise", "is_relevant": true}
    {"kind": "detection", "feature": "blocks.3.hook_mlp_out 7", "key": "5f0c...", "answer": [true, false]}

One JSON object per line. A line with a `key` answers exactly the question of that content; an explanation without one answers
any question about its feature, so that explanations from elsewhere can be scored here. `RecordingLabeller` writes such a file.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts.labellers.base import LABELLERS, Estimating, Evidence, Labeller, Setting, Trial
from lfp_lens.results.explain import Example, Explanation


class Line(BaseModel):
    """One answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["explanation", "detection", "fuzzing"]
    """Of the question."""
    feature: str
    """Site and index."""
    key: str = ""
    """Content of the question; empty answers any question about the feature."""
    is_answered: bool = True
    """False where no usable answer came."""
    description: str = Field(default="", max_length=10_000)
    """Of an explanation."""
    is_relevant: bool = False
    """Of an explanation."""
    confidence: float | None = None
    """Of an explanation."""
    pattern: str = ""
    """Of an explanation."""
    answer: tuple[bool, ...] = ()
    """Of detection and fuzzing, one for each window."""


class RecordedLabeller:
    """Gives the answers of a file.

    >>> RecordedLabeller(Path("answers.jsonl"))  # doctest: +SKIP
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = f"recorded:{path.name}"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise LensError(f"The recorded answers {path} cannot be read: {error}.") from error
        self.fingerprint = fingerprint(("recorded", text))
        self._found: dict[tuple[str, str, str], Line] = {}
        for number, row in enumerate(text.split("\n"), start=1):
            if row.strip():
                line = self._line(number, row)
                self._found[line.kind, line.feature, line.key] = line

    @property
    def answers_any_windows(self) -> bool:
        """Whether some explanation has no key: it says the same whatever windows are shown."""
        return any(kind == "explanation" and not key for kind, _, key in self._found)

    def explain(self, evidence: Sequence[Evidence], task: str) -> Iterator[Explanation | None]:
        """Give what was said about each feature."""
        for one in evidence:
            line = self._answer("explanation", one.feature, evidence_key(one, task), or_any=True)
            confidence = math.nan if line.confidence is None else line.confidence
            said = Explanation(line.description, line.is_relevant, confidence, line.pattern)
            yield said if line.is_answered else None

    def detect(self, trials: Sequence[Trial]) -> Iterator[Sequence[bool] | None]:
        """Give what was said about each trial's windows."""
        return self._answers("detection", trials)

    def fuzz(self, trials: Sequence[Trial]) -> Iterator[Sequence[bool] | None]:
        """Give what was said about each trial's marked windows."""
        return self._answers("fuzzing", trials)

    def _answers(self, kind: str, trials: Sequence[Trial]) -> Iterator[Sequence[bool] | None]:
        for trial in trials:
            line = self._answer(kind, trial.feature, trial_key(trial))
            yield line.answer if line.is_answered else None

    def _answer(self, kind: str, feature: str, key: str, *, or_any: bool = False) -> Line:
        line = self._found.get((kind, feature, key)) or (self._found.get((kind, feature, "")) if or_any else None)
        if line is None:
            raise LensError(
                f"{self._path} holds no {kind} for {feature} as it is asked here: other texts, another seed or other settings "
                "ask other questions. Record it with parts.labellers.RecordingLabeller, or leave scores out (scores=())."
            )
        return line

    def _line(self, number: int, row: str) -> Line:
        try:
            return Line.model_validate_json(row)
        except ValidationError as error:
            wrong = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(map(str, wrong["loc"])) or "the line"
            raise LensError(f"Line {number} of {self._path} is no recorded answer: {where}: {wrong['msg']}.") from error


class RecordingLabeller:
    """Asks another labeller and writes every answer to a file, which `recorded:FILE` replays.

    >>> labeller = RecordingLabeller(make_labeller("lexicon", setting), Path("answers.jsonl"))  # doctest: +SKIP
    >>> explain(pair, saes, texts, labeller=labeller)  # doctest: +SKIP
    """

    def __init__(self, labeller: Labeller, path: Path) -> None:
        self.name, self._labeller, self._path = labeller.name, labeller, path
        self.fingerprint = fingerprint(("recording", getattr(labeller, "fingerprint", labeller.name)))

    @property
    def judges_by_valence(self) -> bool:
        """Whether the labeller judges relevance by the lexicon's rule."""
        return getattr(self._labeller, "judges_by_valence", False)

    @property
    def answers_any_windows(self) -> bool:
        """Whether the labeller says the same whatever windows are shown."""
        return getattr(self._labeller, "answers_any_windows", False)

    @property
    def bill(self) -> Any:
        """What the labeller was asked and paid, as it says."""
        return getattr(self._labeller, "bill", None)

    def foretell(self, numbers: Mapping[str, int], n_examples: int, task: str) -> None:
        """Let a labeller that costs say how much."""
        if isinstance(self._labeller, Estimating):
            self._labeller.foretell(numbers, n_examples, task)

    def explain(self, evidence: Sequence[Evidence], task: str) -> Iterator[Explanation | None]:
        """Ask, and keep the explanations."""
        for one, said in zip(evidence, self._labeller.explain(evidence, task)):
            line = Line(
                kind="explanation", feature=one.feature, key=evidence_key(one, task), is_answered=said is not None
            )
            if said is not None:
                confidence = said.confidence if math.isfinite(said.confidence) else None
                line = line.model_copy(
                    update={"description": said.description, "is_relevant": said.is_relevant, "pattern": said.pattern}
                    | {"confidence": confidence}
                )
            self._write(line)
            yield said

    def detect(self, trials: Sequence[Trial]) -> Iterator[Sequence[bool] | None]:
        """Ask, and keep the answers."""
        return self._asked("detection", trials, self._labeller.detect(trials))

    def fuzz(self, trials: Sequence[Trial]) -> Iterator[Sequence[bool] | None]:
        """Ask, and keep the answers."""
        return self._asked("fuzzing", trials, self._labeller.fuzz(trials))

    def _asked(
        self, kind: Literal["detection", "fuzzing"], trials: Sequence[Trial], answers: Iterable[Sequence[bool] | None]
    ) -> Iterator[Sequence[bool] | None]:
        for trial, said in zip(trials, answers):
            given = () if said is None else tuple(map(bool, said))
            self._write(
                Line(kind=kind, feature=trial.feature, key=trial_key(trial), is_answered=said is not None, answer=given)
            )
            yield said

    def _write(self, line: Line) -> None:
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line.model_dump(exclude_defaults=True)) + "\n")
        except OSError as error:
            raise LensError(f"The answers cannot be recorded in {self._path}: {error}.") from error


def evidence_key(evidence: Evidence, task: str) -> str:
    """Give what tells a question about a feature from every other: the task and the windows shown."""
    return fingerprint([task, [_content(window) for window in evidence.examples + evidence.silent]])


def trial_key(trial: Trial) -> str:
    """Give what tells a trial from every other: the explanation, the windows and the tokens marked in them."""
    said = [trial.explanation.description, trial.explanation.pattern]
    return fingerprint([said, [_content(window) for window in trial.windows]])


def _content(window: Example) -> list[Any]:
    return [window.tokens, window.marked]


@LABELLERS.add("recorded")
def _recorded(argument: str, setting: Setting) -> RecordedLabeller:
    if not argument:
        raise LensError("The labeller 'recorded' needs a file after a colon, for example 'recorded:answers.jsonl'.")
    return RecordedLabeller(Path(argument).expanduser())
