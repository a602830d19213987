"""What people answered: do explanations tell features apart, do two people agree, how often does none of them fit?"""

import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate, bootstrap_interval, cohen_kappa, share_estimate
from lfp_lens.results import published
from lfp_lens.results.annotation import N_OPTIONS, Questions
from lfp_lens.results.annotation_answers import Answer, read_answers, read_key
from lfp_lens.view import page
from lfp_lens.view.annotation_page import CHOICES

if TYPE_CHECKING:
    import pandas as pd

CHANCE = 1 / len(CHOICES)


@record
class Annotator:
    """One person's answers."""

    name: str
    """As the answers say it."""
    accuracy: Estimate
    """Share of right answers, with Wilson's interval."""
    none_rate: Estimate
    """Share of `none of the above`."""
    seconds: float
    """Median time of an answer; NaN where none was taken."""


@record
class Concordance:
    """Two people on the questions that both answered."""

    first: str
    """One of them."""
    second: str
    """The other."""
    agreement: Estimate
    """Share of questions on which they chose the same."""
    kappa: Estimate
    """Cohen's kappa of the five choices, questions resampled."""
    both_right: float
    """Share of questions that both answered rightly."""


@record
class HumanCheck:
    """Explanations tried on people. It shows that explanations tell features apart, not that they are true of new texts."""

    name: tuple[str, ...]
    """Name of each question."""
    site: tuple[str, ...]
    """Site of the feature it is about."""
    index: Int[np.ndarray, " questions"]
    """Its index there."""
    n: Int[np.ndarray, " questions"]
    """People who answered it."""
    right: Float[np.ndarray, " questions"]
    """Share of them who chose the feature's own explanation; NaN where nobody answered."""
    none: Float[np.ndarray, " questions"]
    """Share who chose `none of the above`; NaN where nobody answered."""
    accuracy: Estimate
    """Mean of `right`, questions resampled; guessing gives 0.2, guessing among the explanations 0.25."""
    none_rate: Estimate
    """Mean of `none`, likewise."""
    annotators: tuple[Annotator, ...]
    """Each person."""
    pairs: tuple[Concordance, ...]
    """Every two people who share a question; empty for one person."""

    @property
    def kappa(self) -> Estimate:
        """Cohen's kappa of two annotators. Raises `LensError` for one, and for three or more, who have theirs in `pairs`."""
        if len(self.pairs) != 1:
            raise LensError(
                f"Kappa is of two people who share questions; here are {len(self.annotators)} people and {len(self.pairs)} such "
                "pairs. See `pairs`."
            )
        return self.pairs[0].kappa

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per person, one for all, then two of the original's own human check."""
        import pandas as pd

        people = [_row(f"annotator {one.name}", one.accuracy, one.none_rate, one.seconds) for one in self.annotators]
        theirs = published.HUMAN_CHECK
        printed = [
            {
                "who": f"PUBLISHED repository, annotator {at + 1}",
                "n": theirs["n"],
                "accuracy": accuracy,
                "none_rate": none,
            }
            for at, (accuracy, none) in enumerate(zip(theirs["accuracy"], theirs["none_rate"]))
        ]
        chance = {"who": "guessing", "accuracy": CHANCE, "none_rate": CHANCE}
        return pd.DataFrame([*people, _row("all", self.accuracy, self.none_rate, np.nan), chance, *printed])

    def pairs_frame(self) -> "pd.DataFrame":
        """Give one row per two people, then the original's."""
        import pandas as pd

        rows = [
            {"who": f"{one.first}, {one.second}", "n": one.kappa.n, "agreement": one.agreement.value, "kappa": one.kappa.value,
             "low": one.kappa.low, "high": one.kappa.high, "both_right": one.both_right}
            for one in self.pairs
        ]  # fmt: skip
        names = ("n", "agreement", "kappa", "both_right")
        printed = {"who": "PUBLISHED repository"} | {name: published.HUMAN_CHECK[name] for name in names}
        return pd.DataFrame([*rows, printed], columns=["who", "n", "agreement", "kappa", "low", "high", "both_right"])

    def questions_frame(self) -> "pd.DataFrame":
        """Give one row per question, those whose explanation people reject most often first."""
        import pandas as pd

        names = ("name", "site", "index", "n", "right", "none")
        frame = pd.DataFrame({name: getattr(self, name) for name in names})
        return frame.sort_values(["right", "name"], na_position="last").reset_index(drop=True)

    def _repr_html_(self) -> str:
        asked = f"{int((self.n > 0).sum())} of {len(self.name)} questions answered"
        return page.table(self.to_frame(), asked) + page.table(self.pairs_frame(), "Two people on the same questions")


def agreement(questions: Questions | str | os.PathLike[str], *answers: str | os.PathLike[str]) -> HumanCheck:
    """Read answers back and say how often people chose the true explanation, and how far they agree.

    Args:
        questions: what `labels.annotation_questions` gave, or the folder or answer key that it wrote.
        answers: files downloaded from the page, or exports of Label Studio (JSON or JSON-MIN), of one person or of several.

    Returns:
        Accuracy and none-rate with intervals, by person and over all; Cohen's kappa of every two people.

    Raises:
        LensError: for files that are not such answers, answers to other questions, a question that one person answered
            twice, or no answers at all.

    >>> lfp_lens.agreement("check", "answers-A.json", "answers-B.json").kappa  # doctest: +SKIP
    """
    content, keys = (
        (questions.fingerprint, questions.keys) if isinstance(questions, Questions) else read_key(Path(questions))
    )
    if not answers:
        raise LensError("No answers were given: name the files that annotators downloaded or exported.")
    right = {one.name: one.right for one in keys}
    chosen = _by_person([one for path in answers for one in read_answers(Path(path), content)], right)
    # People x questions; -1 where someone gave no answer.
    table_PQ = np.array(
        [[person[name].choice if name in person else -1 for name in right] for person in chosen.values()]
    )
    is_right_PQ = table_PQ == np.array([*right.values()])
    is_none_PQ = table_PQ == N_OPTIONS
    n_Q = (table_PQ >= 0).sum(0)
    share = {
        name: np.divide(hits.sum(0), n_Q, where=n_Q > 0, out=np.full(len(n_Q), np.nan))
        for name, hits in (("right", is_right_PQ), ("none", is_none_PQ))
    }
    people = []
    for at, (name, answered) in enumerate(chosen.items()):
        right_share, none_share = (
            share_estimate(int(hits[at].sum()), len(answered)) for hits in (is_right_PQ, is_none_PQ)
        )
        people.append(Annotator(name, right_share, none_share, _median([one.seconds for one in answered.values()])))
    return HumanCheck(
        name=tuple(right), site=tuple(one.site for one in keys), index=np.array([one.index for one in keys]), n=n_Q,
        right=share["right"], none=share["none"], accuracy=_mean(share["right"]), none_rate=_mean(share["none"]),
        annotators=tuple(people), pairs=_pairs([*chosen], table_PQ, is_right_PQ),
    )  # fmt: skip


def _by_person(given: Sequence[Answer], right: Mapping[str, int]) -> dict[str, dict[str, Answer]]:
    chosen: dict[str, dict[str, Answer]] = {}
    for one in given:
        if one.question not in right:
            raise LensError(f"The answers hold a question {one.question!r} that the key does not have.")
        mine = chosen.setdefault(one.annotator, {})
        if one.question in mine:
            raise LensError(
                f"{one.annotator!r} answered {one.question} twice. Give each person's answers once, and different people "
                "different names."
            )
        mine[one.question] = one
    if not chosen:
        raise LensError("The files hold no answer.")
    return dict(sorted(chosen.items()))


def _pairs(
    names: Sequence[str], table_PQ: Int[np.ndarray, "people questions"], is_right_PQ: np.ndarray
) -> tuple[Concordance, ...]:
    found = []
    for one, two in combinations(range(len(names)), 2):
        both = (table_PQ[[one, two]] >= 0).all(0)
        if both.any():
            first, second = table_PQ[one, both], table_PQ[two, both]
            same = share_estimate(int((first == second).sum()), int(both.sum()))
            both_right = float(is_right_PQ[[one, two]][:, both].all(0).mean())
            found.append(Concordance(names[one], names[two], same, cohen_kappa(first, second), both_right))
    return tuple(found)


def _mean(values: Float[np.ndarray, " questions"]) -> Estimate:
    known = values[np.isfinite(values)]
    low, high = bootstrap_interval(lambda rows: float(known[rows].mean()), np.arange(len(known)))
    return Estimate(float(known.mean()), low, high, len(known))


def _median(seconds: Sequence[float]) -> float:
    known = [one for one in seconds if np.isfinite(one)]
    return float(np.median(known)) if known else float("nan")


def _row(who: str, accuracy: Estimate, none_rate: Estimate, seconds: float) -> dict[str, object]:
    return {
        "who": who, "n": accuracy.n, "accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high,
        "none_rate": none_rate.value, "median_seconds": seconds,
    }  # fmt: skip
