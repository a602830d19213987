"""One tuning of an organism: a work unit, plain data in, a checkpoint and its facts out, skipped where it is finished."""

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tqdm import tqdm

from lfp_lens.organisms.key import TuningFacts, facts_of, write_sealed
from lfp_lens.parts.rewards import Reward
from lfp_lens.parts.speed import without_bars
from lfp_lens.stages.finetune import finetune

FACTS_FILE, CHECKPOINT = "facts.json", "checkpoint"


@dataclass(frozen=True, eq=False)
class Unit:
    """What one tuning needs."""

    name: str
    """`seed-0`, `shuffled`, ..."""
    base: str
    prompts: list[str]
    reward: Reward
    options: dict[str, Any]
    """Other arguments of `finetune`."""
    seed: int
    folder: Path
    """Where it is made; a finished one is left alone."""

    @property
    def checkpoint(self) -> Path:
        """Where the tuned model lies."""
        return self.folder / CHECKPOINT


def tune_all(units: Iterable[Unit], *, workers: int | None, desc: str) -> dict[str, TuningFacts]:
    """Do every tuning, several at a time on one thread each, and give their facts by name."""
    import joblib

    units = list(units)
    n = min(len(units), os.cpu_count() or 1) if workers is None else workers
    if units and str(units[0].options.get("device", "cpu")) != "cpu" and workers is None:
        n = 1
    # joblib's processes are not started from the user's script, which needs no guard for them.
    pool = joblib.Parallel(n_jobs=n, return_as="generator_unordered")
    done = dict(tqdm(pool(joblib.delayed(tune)(unit) for unit in units), desc=desc, total=len(units), unit="tuning"))
    return {unit.name: done[unit.name] for unit in units}


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread while inside: several tunings share the cores, and sums do not depend on how many there are."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tune(unit: Unit) -> tuple[str, TuningFacts]:
    """Do one tuning on one thread, or read what it gave; the same on every machine that has the same processor."""
    written = unit.folder / FACTS_FILE
    if written.is_file():
        try:
            return unit.name, TuningFacts.model_validate_json(written.read_text(encoding="utf-8"))
        except ValidationError:
            written.unlink()
    # What was killed between its checkpoint and its facts has no facts: it goes on from the last saved step.
    shutil.rmtree(unit.checkpoint, ignore_errors=True)
    unit.folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with one_thread(), without_bars():
        done = finetune(
            unit.base, prompts=unit.prompts, reward=unit.reward, output=unit.checkpoint, seed=unit.seed, **unit.options
        )
    facts = facts_of(done, unit.seed, time.perf_counter() - started)
    write_sealed(facts, written)
    return unit.name, facts
