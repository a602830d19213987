"""TRL's trainers in processes of their own: one that is killed, and two that train one model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from lfp_lens.parts.checkpoints import load_causal_lm
from tests.stages.test_processes import launched
from tests.stages.trl_jobs import STEPS, Letters, tune
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[2]


def test_a_run_killed_with_signal_9_ends_at_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    all_calls = Letters()
    whole = tune(tmp_path / "whole", "rloo", all_calls)
    command = [sys.executable, "-m", "tests.stages.trl_jobs", str(tmp_path), "rloo", "0.5"]
    with subprocess.Popen(command, cwd=ROOT) as process:
        while not any((tmp_path / "store").glob(".finetune-*.work/checkpoint-*/trainer_state.json")):
            assert process.poll() is None, "it ended before it wrote a checkpoint"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "done-0.json").exists(), "it was killed in the middle"
    calls = Letters()
    again = tune(tmp_path, "rloo", calls)
    assert calls.n_calls <= all_calls.n_calls - 2, "the two steps that were saved are not done again"
    assert (whole.path / "model.safetensors").read_bytes() == (again.path / "model.safetensors").read_bytes()
    assert {name: values.tolist() for name, values in whole.curve.items()} == {
        name: values.tolist() for name, values in again.curve.items()
    }
    assert [path.name for path in (tmp_path / "store").iterdir() if path.name.startswith(".")] == []


def test_two_processes_tune_one_model_as_one_process_does(tmp_path: Path) -> None:
    """The pairs are the same in both; only which process computes which of a batch differs, and the order of sums."""
    launched(["tests.stages.trl_jobs", str(tmp_path / "two"), "dpo", "0"])
    found = [json.loads((tmp_path / "two" / f"done-{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    assert len(found[0]["curve"]["loss"]) == STEPS
    (together,) = (tmp_path / "two" / "store").glob("finetune-*/checkpoint")
    alone = tune(tmp_path / "one", "dpo", Letters()).path
    before = tiny_model(layers=1).state_dict()
    one, two = (load_causal_lm(folder).state_dict() for folder in (alone, together))
    moved, apart = (torch.cat([(one[name] - other[name]).flatten() for name in one]) for other in (before, two))
    # Where a gradient is nearly 0, Adam's step is its sign, which rounding turns around.
    assert float(apart.norm()) < 0.02 * float(moved.norm())
    assert not any(path.name.startswith(".") for path in (tmp_path / "two" / "store").iterdir())
