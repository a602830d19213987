"""A tiny tuning through TRL that tests share; run as a program it runs in a process of its own, which a test may kill.

    python -m tests.stages.trl_jobs FOLDER METHOD SECONDS_PER_REWARD

Its store is FOLDER/store; every process writes FOLDER/done-RANK.json with what it found.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from lfp_lens.core.store import Store
from lfp_lens.results.finetune import Tuning
from lfp_lens.stages.finetune import finetune
from tests.tiny import tiny_model, tiny_texts, tiny_tokenizer

STEPS = 6
SETTINGS: dict[str, Any] = {
    "steps": STEPS, "batch_size": 8, "group_size": 2, "max_new_tokens": 4, "heldout": 16, "max_tokens": 40, "min_gap": 0.01,
    "lr": 1e-3, "save_steps": 2,
}  # fmt: skip


class Letters:
    """A reward that differs between most texts, takes its time, and counts its calls."""

    fingerprint = "letters"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.n_calls = seconds, 0

    def __call__(self, texts: list[str]) -> list[float]:
        self.n_calls += 1
        time.sleep(self.seconds)
        return [float(len(text)) for text in texts]


def tune(folder: Path, method: str, reward: Letters, **changes: Any) -> Tuning:
    """Tune the tiny model into the store in `folder`."""
    return finetune(
        tiny_model(layers=1), prompts=tiny_texts(80), tokenizer=tiny_tokenizer(), method=method, reward=reward,
        store=Store(folder / "store"), **(SETTINGS | changes),
    )  # fmt: skip


def main(folder: str, method: str, seconds: str) -> None:
    done = tune(Path(folder), method, Letters(float(seconds)))
    found = {"headline": str(done.headline), "curve": {name: values.tolist() for name, values in done.curve.items()}}
    (Path(folder) / f"done-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
