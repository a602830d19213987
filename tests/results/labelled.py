"""Labels of many features for the tests of what is made from labels: tables, cards, questions for people."""

import dataclasses
from typing import Any

import numpy as np

from lfp_lens.core.stats import Estimate
from lfp_lens.results import Labels
from lfp_lens.results.explain import Example
from lfp_lens.results.explain_scores import Agreement, Bill, Scores
from tests.results.samples import HOSTILE, SITES, an_sae_set

WORDS = (
    "\u0120the",
    "\u0120film",
    "\u0120was",
    "\u0120a",
    "\u0120warm",
    "\u0120sad",
    ",",
    "\u0120quiet",
    "\u0120song",
    "\u010a",
)


def window(place: int, *, kind: str = "top", peak: float = 1.0) -> Example:
    """A window of 24 tokens that is strongest at one place; the last token is hostile."""
    drawn = np.random.default_rng(place).integers(len(WORDS), size=23)
    values = np.zeros(24)
    values[place % 24] = peak
    return Example((*(WORDS[at] for at in drawn), HOSTILE), values, kind=kind)


def windows(row: int) -> tuple[Example, ...]:
    """A strong, a weaker and a silent window."""
    return window(row), window(row + 30, peak=0.4, kind="quantile"), window(row + 60, peak=0.0, kind="silent")


def some_labels(n: int = 12, side: str = "tuned", relevant: int = 5, **changes: Any) -> Labels:
    """n features at two sites, the first `relevant` related to the task; after them one is dead and one unanswered."""
    rows, total = np.arange(n + 2), n + 2
    status = ("labelled",) * n + ("dead", "unanswered")
    scored = np.where(rows < n, 0.5 + 0.4 * (rows % 3) / 2, np.nan)
    given: dict[str, Any] = {
        "saes": an_sae_set(),
        "site": tuple(SITES[5] if row % 2 else SITES[4] for row in rows),
        "index": rows // 2,
        "status": status,
        "description": (*(f"words of kind {row} {HOSTILE}" for row in range(n)), "", ""),
        "is_relevant": rows < relevant,
        "confidence": np.where(rows < n, 0.9, np.nan),
        "pattern": ("",) * total,
        "scores": (Scores("detection", scored, np.full(total, 0.5), np.array([0.52, 0.48]), np.full(total, 40)),),
        "agreement": (),
        "examples": (*map(windows, range(n)), (), (window(3),)),
        "tokens": ((HOSTILE, "\u0120warm"),) * total, "promotes": (("\u0120good",),) * total, "suppresses": ((),) * total,
        "bill": Bill(), "labeller": "lexicon", "task": "positive or negative sentiment", "select": "all", "side": side,
        "size": None, "skipped": {},
    }  # fmt: skip
    return Labels(**(given | changes))


def judged(labels: Labels, kappa: float) -> Labels:
    """The same labels, judged again with this kappa."""
    n = len(labels.site)
    again = Agreement(
        "repeat",
        labels.labeller,
        labels.is_relevant,
        np.ones(n, bool),
        0.8,
        Estimate(kappa, kappa - 0.1, kappa + 0.1, n),
    )
    return dataclasses.replace(labels, agreement=(again,))
