"""Answers as files: from the page, from Label Studio (JSON or JSON-MIN), and the key. All of them are untrusted."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lfp_lens.core.errors import LensError
from lfp_lens.results.annotation import KEY_FILE, KEY_FORMAT, Key
from lfp_lens.view.annotation_page import ANSWER_FORMAT, CHOICES

Read = TypeVar("Read")
Name = Annotated[str, Field(min_length=1, max_length=200)]
Choice = Annotated[int, Field(ge=0, lt=len(CHOICES))]
LARGEST = 50_000_000
"""Bytes of a file of answers beyond which it is none."""


@dataclass(frozen=True)
class Answer:
    """One person's answer to one question."""

    question: str
    """Its name."""
    annotator: str
    """Who answered."""
    choice: int
    """Which choice, from 0; the last is `none of the above`."""
    seconds: float
    """How long it took; NaN where that is not known."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Key(_Strict):
    format: Literal["lfp_lens answer key 1"]
    questions: Name
    keys: list["_KeyOf"]


class _KeyOf(_Strict):
    name: Name
    site: Name
    index: Annotated[int, Field(ge=0)]
    right: Annotated[int, Field(ge=0, lt=len(CHOICES) - 1)]
    options: list[tuple[Name, Annotated[int, Field(ge=0)]]]


class _Chosen(_Strict):
    choice: Choice
    seconds: float = math.nan


class _Page(_Strict):
    format: Literal["lfp_lens answers 1"]
    questions: Name
    annotator: Name
    answers: dict[Name, _Chosen]


class _Data(_Strict):
    question: Name
    questions: Name


class _Choices(_Strict):
    choices: Annotated[list[Literal["A", "B", "C", "D", "E"]], Field(min_length=1, max_length=1)]


class _Result(_Strict):
    from_name: Literal["answer"]
    value: _Choices


class _Person(_Strict):
    email: str = ""
    id: int


class _Annotation(_Strict):
    completed_by: int | str | _Person
    result: list[_Result]
    was_cancelled: bool = False
    lead_time: float | None = None


class _Task(_Strict):
    data: _Data
    annotations: list[_Annotation]


class _Short(_Data):
    """A row of Label Studio's JSON-MIN; a question that was skipped has no answer."""

    answer: Literal["A", "B", "C", "D", "E"] | None = None
    annotator: int | str
    lead_time: float | None = None


def read_key(path: Path) -> tuple[str, tuple[Key, ...]]:
    """Give the content hash of the questions and the right answers, from a folder of questions or its key."""
    file = path / KEY_FILE if path.is_dir() else path
    found = _checked(TypeAdapter(_Key), _json(file), file, f"an answer key ({KEY_FORMAT!r})")
    keys = tuple(Key(one.name, one.site, one.index, one.right, tuple(one.options)) for one in found.keys)
    return found.questions, keys


def read_answers(path: Path, content: str) -> list[Answer]:
    """Give all answers of a file. Raises `LensError` if it is no such file, or answers other questions than `content`."""
    found = _json(path)
    if isinstance(found, dict):
        page = _checked(TypeAdapter(_Page), found, path, f"answers of the page ({ANSWER_FORMAT!r})")
        _same(path, content, [page.questions])
        return [Answer(name, page.annotator, one.choice, one.seconds) for name, one in page.answers.items()]
    what = "an export of Label Studio (JSON or JSON-MIN) with its labelling config"
    if found and isinstance(found, list) and isinstance(found[0], dict) and "annotations" in found[0]:
        return _of_tasks(path, content, _checked(TypeAdapter(list[_Task]), found, path, what))
    rows = _checked(TypeAdapter(list[_Short]), found, path, what)
    _same(path, content, [row.questions for row in rows])
    return [
        Answer(row.question, str(row.annotator), CHOICES.index(row.answer), _seconds(row.lead_time))
        for row in rows
        if row.answer is not None
    ]


def _of_tasks(path: Path, content: str, tasks: Sequence[_Task]) -> list[Answer]:
    _same(path, content, [task.data.questions for task in tasks])
    return [
        Answer(
            task.data.question, _who(one.completed_by), CHOICES.index(chosen.value.choices[0]), _seconds(one.lead_time)
        )
        for task in tasks
        for one in task.annotations
        if not one.was_cancelled
        for chosen in one.result
    ]


def _who(person: int | str | _Person) -> str:
    return person.email or str(person.id) if isinstance(person, _Person) else str(person)


def _seconds(given: float | None) -> float:
    return math.nan if given is None else given


def _same(path: Path, content: str, questions: Sequence[str]) -> None:
    for found in questions:
        if found != content:
            raise LensError(
                f"{path} answers the questions {found[:40]!r}, the key is of {content!r}: give the key that was written with "
                "those questions."
            )


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST:
            raise LensError(f"{path} has more than {LARGEST:,} bytes: it is no file of answers.")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LensError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise LensError(f"{path} is no JSON: {error}.") from error


def _checked(kind: TypeAdapter[Read], found: Any, path: Path, what: str) -> Read:
    try:
        return kind.validate_json(json.dumps(found))
    except (ValidationError, RecursionError) as error:
        first = (
            error.errors(include_input=False)[0]
            if isinstance(error, ValidationError)
            else {"loc": (), "msg": "too deep"}
        )
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise LensError(f"{path} is not {what}: {where[:200]}: {first['msg']}.") from error
