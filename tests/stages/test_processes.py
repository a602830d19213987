"""Several processes train one model, and a tracker is fed: accelerate's part of PPO."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest
import torch
from safetensors.torch import load_file

from lfp_lens.core.errors import LensError
from lfp_lens.stages.finetune.ppo import ppo
from lfp_lens.stages.finetune.processes import Team, join
from tests.stages.ppo_jobs import a_job, one_update, same_bits

ROOT = Path(__file__).parents[2]


def test_alone_every_sum_is_what_was_given() -> None:
    team = join(torch.device("cpu"))
    assert team == Team(0, 1)
    assert team.is_first
    values = torch.arange(3.0)
    assert torch.equal(team.sum(values), values)
    assert team.max(2) == 2
    assert team.share([5, 6, 7]) == [5, 6, 7]
    assert team.gather_rows([[1, 2], [3]], 4) == [[1, 2], [3]]


def test_shares_of_a_batch_are_disjoint_and_complete() -> None:
    shares = [Team(rank, 3).share(list(range(8))) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 3, 2]
    assert [row for share in shares for row in share] == list(range(8))


def launched(module: list[str]) -> None:
    """Run a module with its arguments in two processes that accelerate's launcher starts."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "--module", *module,
    ]  # fmt: skip
    # accelerate's launcher starts several processes without a GPU too, if it is told to use none.
    where = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    subprocess.run(command, cwd=ROOT, env=os.environ | where, check=True, timeout=300)


def test_two_processes_learn_together_and_end_with_the_same_weights(tmp_path: Path) -> None:
    launched(["tests.stages.ppo_jobs", str(tmp_path), "0", "steps=2", "save_steps=2"])
    for what in ("weights", "update"):
        one, other = (load_file(tmp_path / f"{what}-{rank}.safetensors") for rank in range(2))
        assert same_bits(one, other)
    first, second = (json.loads((tmp_path / f"curve-{rank}.json").read_text()) for rank in range(2))
    assert first == second, "every process has the whole batch's curve"
    # Four completions each: an update of both is one of all eight in a single process, up to the order of sums.
    together = load_file(tmp_path / "update-0.safetensors")
    alone = one_update(Team(0, 1))
    assert all(torch.allclose(alone[name], together[name], atol=1e-6) for name in alone)
    with pytest.raises(LensError, match="processes was 2, is 1"):
        ppo(a_job(tmp_path / "work", steps=2, save_steps=2))


class Notes:
    """A tracker that remembers."""

    name = "notes"
    requires_logging_directory = False
    main_process_only = True
    made: "list[Notes]" = []  # noqa: RUF012

    def __init__(self, run_name: str, **named: Any) -> None:
        self.run_name, self.config, self.points, self.is_finished = run_name, {}, [], False
        Notes.made.append(self)

    def start(self) -> None:
        """Nothing to open."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, float], step: int) -> None:
        self.points.append((step, values))

    def finish(self) -> None:
        self.is_finished = True


def test_a_tracker_gets_every_point_of_the_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Notes)
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: [accelerate.tracking.LoggerType.WANDB])
    done = ppo(a_job(tmp_path, report_to="wandb"))
    (notes,) = Notes.made
    assert notes.config["lr"] == 1e-3
    assert [step for step, _ in notes.points] == [0, 1, 2]
    assert [point["reward"] for _, point in notes.points] == done.curve["reward"].tolist()
    assert notes.is_finished


@pytest.mark.parametrize(
    ("name", "message"),
    [("aim", "install the package 'aim'"), ("wandv", "there is no such tracker")],
)
def test_a_tracker_that_cannot_be_used_is_refused_before_training(name: str, message: str, tmp_path: Path) -> None:
    def never(whole: list[str], completions: list[str]) -> Any:
        raise AssertionError("trained")

    with pytest.raises(LensError, match=message):
        ppo(a_job(tmp_path, report_to=name, score=never))
