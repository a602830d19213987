"""Questions that let a person check explanations: which of four fits the coloured windows, or none of them?

The format of the original's human check (its public repository, not in the paper): the true explanation, three of other
features, none of the above. Its labelling config declared four of these five choices; ours declares five.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.store import Store
from lfp_lens.view import annotation_page, page
from lfp_lens.view.annotation_page import CHOICES, Asked
from lfp_lens.view.tokens import token_html

if TYPE_CHECKING:
    from lfp_lens.results.explain import Example, Labels

PAGE_FILE, TASK_FILE, CONFIG_FILE, KEY_FILE = (
    "questions.html",
    "label_studio.json",
    "label_studio.xml",
    "answer_key.json",
)
KEY_FORMAT = "lfp_lens answer key 1"
N_OPTIONS = len(CHOICES) - 1
"""Explanations in a question; `none of the above` comes after them."""


@dataclass(frozen=True)
class Key:
    """The right answer of one question."""

    name: str
    """Of the question."""
    site: str
    """Where the feature is that its windows show."""
    index: int
    """Its index there."""
    right: int
    """Which option is its own explanation, from 0."""
    options: tuple[tuple[str, int], ...]
    """(site, index) of the feature that each option explains."""


@dataclass(frozen=True, eq=False)
class Questions:
    """What annotators are asked, and the key. It shows itself in Jupyter; the files lie in `folder`."""

    folder: Path
    """`questions.html`, `label_studio.json` and `label_studio.xml` for annotators, `answer_key.json` for you alone."""
    fingerprint: str
    """Content hash of what is asked: answers to other questions are refused."""
    asked: tuple[Asked, ...]
    """What annotators see."""
    keys: tuple[Key, ...]
    """What they do not see."""

    @property
    def page(self) -> Path:
        """The page that can be answered offline."""
        return self.folder / PAGE_FILE

    @property
    def key(self) -> Path:
        """The answer key."""
        return self.folder / KEY_FILE

    def __len__(self) -> int:
        return len(self.asked)

    def _repr_html_(self) -> str:
        facts = {
            "questions": len(self),
            "answer offline": self.page,
            "or import into Label Studio": f"{self.folder / TASK_FILE}, labelling config {CONFIG_FILE}",
            "keep to yourself": self.key,
            "then": "lfp_lens.agreement(questions, answers, more_answers)",
        }
        return page.card("Annotation questions", facts)


def annotation_questions(
    labels: "Labels", folder: str | os.PathLike[str], *, n: int | None, n_windows: int, seed: int
) -> Questions:
    """Write questions about labelled features; see `Labels.annotation_questions`."""
    rows, firing = _askable(labels)
    for name, value in (("n", n), ("n_windows", n_windows)):
        if value is not None and value < 1:
            raise LensError(f"{name} must be at least 1; {value} given.")
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(rows)[:n]
    asked, keys = [], []
    for at, row in enumerate(chosen.tolist()):
        options = _options(labels, rows, row, generator)
        name = f"q{at + 1:03}"
        windows = tuple(_window(one) for one in _spread(firing[row], n_windows))
        asked.append(Asked(name, windows, tuple(labels.description[option] for option in options)))
        explained = tuple((labels.site[option], int(labels.index[option])) for option in options)
        keys.append(Key(name, labels.site[row], int(labels.index[row]), options.index(row), explained))
    target = Path(folder).expanduser().absolute()
    content = fingerprint(asked)
    _write(target, labels, content, tuple(asked), tuple(keys), seed)
    return Questions(target, content, tuple(asked), tuple(keys))


def _askable(labels: "Labels") -> tuple[list[int], dict[int, list["Example"]]]:
    """Give the rows that can be asked about, and the windows of each in which the feature fires."""
    firing = {
        row: [one for one in shown if one.kind in ("top", "quantile") and np.max(one.activations, initial=0.0) > 0]
        for row, shown in enumerate(labels.examples)
    }
    told = [row for row, status in enumerate(labels.status) if status == "labelled" and labels.description[row].strip()]
    rows = [row for row in told if firing[row]]
    different = len({_plain(labels.description[row]) for row in rows})
    if different < N_OPTIONS:
        raise LensError(
            f"A question needs {N_OPTIONS} different explanations; there are {different} of {len(rows)} labelled features "
            "with windows. Explain more features."
        )
    return rows, firing


def _options(labels: "Labels", rows: Sequence[int], row: int, generator: np.random.Generator) -> list[int]:
    """Draw three features with other explanations, and the order of the four. Raises nothing: `_askable` has counted."""
    seen, options = {_plain(labels.description[row])}, [row]
    for other in generator.permutation(list(rows)).tolist():
        said = _plain(labels.description[other])
        if len(options) < N_OPTIONS and said not in seen:
            seen.add(said)
            options.append(other)
    return [options[place] for place in generator.permutation(N_OPTIONS)]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _spread(windows: Sequence["Example"], n: int) -> list["Example"]:
    """Give n windows, evenly from the first to the last: they are sorted by how strongly the feature fires."""
    places = np.unique(np.linspace(0, len(windows) - 1, min(n, len(windows))).round().astype(int))
    return [windows[place] for place in places]


def _window(example: "Example") -> str:
    return token_html(example.tokens, example.activations, largest=1.0)


def _write(
    target: Path, labels: "Labels", content: str, asked: tuple[Asked, ...], keys: tuple[Key, ...], seed: int
) -> None:
    if target.exists() and not target.is_dir():
        raise LensError(f"folder={str(target)!r} is a file: name a folder.")
    target.mkdir(parents=True, exist_ok=True)
    key = {
        "format": KEY_FORMAT, "questions": content, "labeller": labels.labeller, "task": labels.task, "seed": seed,
        "keys": [vars(one) for one in keys],
    }  # fmt: skip
    files = Store(target)
    files.write_text(PAGE_FILE, annotation_page.render(asked, content))
    files.write_text(TASK_FILE, json.dumps(annotation_page.tasks(asked, content), indent=1))
    files.write_text(CONFIG_FILE, annotation_page.config())
    files.write_text(KEY_FILE, json.dumps(key, indent=1))
