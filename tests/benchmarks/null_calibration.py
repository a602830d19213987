"""How often are words listed as wrong where nothing wrong was planted? Clean organisms of the tiny world, cheap and end to end.

The organisms (two CPU minutes for the first, about 25 for the twenty made end to end) and every run are kept in
`runs/null_calibration`: a killed call goes on. One JSON line per kind of run.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lfp_lens.organisms.grid import organism_grid
from lfp_lens.organisms.making import organism
from lfp_lens.organisms.nulls import cheap_nulls
from lfp_lens.organisms.scoring import score
from lfp_lens.results.scorecard import Scorecard
from tests.benchmarks.measure import one_thread

WORLD: Mapping[str, Any] = {"words": 10}
FIRST = 50
"""Seed of the organism of the cheap runs, apart from those made end to end."""
FEW_RUNS = 50
MOST_LISTING = {"many": 0.18, "few": 0.25}
"""Share of runs that may list a word at FDR 10 %. Where one in ten does, at most 18 of 100 do 99 times in 100, and at most 5
of 20 or 7 of 30."""


@dataclass(frozen=True)
class Silence:
    """Runs of one kind, and how many of them listed anything."""

    what: str
    runs: int
    """Those that count."""
    refused: int
    """Those a gate refused, no evidence."""
    listing: int
    """Runs that list any word."""
    low: float
    """Their share: lower end of its 95 % interval, which takes runs as independent."""
    high: float
    words: int
    """Words listed by all of them."""
    tau: float
    """Mean tau-b with the stated lexicon, which says that the feedback itself was seen."""
    seconds: float

    @property
    def allowed(self) -> int:
        """How many may list a word."""
        return int(MOST_LISTING["few" if self.runs < FEW_RUNS else "many"] * self.runs)

    def line(self) -> str:
        """Give the JSON line."""
        told = {name: round(part, 3) if isinstance(part, float) else part for name, part in asdict(self).items()}
        holds = self.listing <= self.allowed if self.runs else None
        return json.dumps({"bench": "null_calibration", **told, "allowed": self.allowed, "holds": holds})


def null_calibration(
    *,
    single: int = 100,
    replicated: int = 30,
    whole: int = 20,
    home: str = "runs/null_calibration",
    making: Mapping[str, Any] = WORLD,
) -> Iterator[Silence]:
    """Count lists that are not empty over cheap runs of one tuning and of three, and over organisms made end to end.

    Args:
        single: cheap runs of one tuning.
        replicated: cheap runs of three.
        whole: clean organisms with seeds 1 and on, two tunings each, measured as any other.
        home: where organisms and runs are kept.
        making: arguments of `organism`.
    """
    place = Path(home)
    with one_thread():
        clean = organism("world", "clean", seed=FIRST, shuffled=False, folder=place / "organisms", **making)
        for n, tunings in ((single, 1), (replicated, 3)):
            started = time.perf_counter()
            card = cheap_nulls(clean, n, replicates=tunings, store=place / "cheap")
            yield counted(f"cheap runs of {tunings} tuning{'s' if tunings > 1 else ''}", card, started)
        started = time.perf_counter()
        made = organism_grid(
            ("world",), ("clean",), seeds=range(1, whole + 1), replicates=2, shuffled=False, folder=place / "organisms", **making
        )  # fmt: skip
        yield counted("organisms of 2 tunings, end to end", score(made, store=place / "score"), started)


def counted(what: str, card: Scorecard, started: float) -> Silence:
    """Count a card of clean runs; where all were refused nothing else is known."""
    rows = card.nulls()
    row = (
        rows.iloc[0]
        if len(rows)
        else {"runs": 0, "listing": 0, "low": 0.0, "high": 1.0, "words": 0, "tau": float("nan")}
    )
    assert len(rows) <= 1, "one base, one method, one reading"
    told = {name: kind(row[name]) for name, kind in (("runs", int), ("listing", int), ("words", int))}
    ends = {name: float(row[name]) for name in ("low", "high", "tau")}
    return Silence(what, **told, refused=len(card.refused), **ends, seconds=time.perf_counter() - started)
