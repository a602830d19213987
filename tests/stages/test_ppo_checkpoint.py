"""A killed run goes on from its checkpoint to the same bits; a checkpoint that does not fit is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lfp_lens.core.errors import LensError
from lfp_lens.stages.finetune.ppo import ppo
from lfp_lens.stages.finetune.ppo_checkpoint import FILE
from tests.stages.ppo_jobs import a_job, letters, same_bits, weights_of
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """What stops a run in the middle, as a signal would."""


def dies_after(steps: int) -> Any:
    calls = []

    def score(whole: list[str], completions: list[str]) -> Any:
        calls.append(1)
        if len(calls) > steps:
            raise Killed
        return letters(whole, completions)

    return score


def test_a_run_killed_with_signal_9_ends_at_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    changes = {"steps": 6, "save_steps": 2, "kl_target": 5.0}
    whole = ppo(a_job(tmp_path / "whole", **changes))
    command = [sys.executable, "-m", "tests.stages.ppo_jobs", str(tmp_path), "0.3"]
    with subprocess.Popen([*command, *(f"{name}={value}" for name, value in changes.items())], cwd=ROOT) as process:
        checkpoint = tmp_path / "work" / FILE
        while not checkpoint.exists():
            assert process.poll() is None, "it ended before it wrote a checkpoint"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    n_done = len(state_of(checkpoint)["curve"])
    assert n_done in (2, 4), "it was killed in the middle"
    seen: list[int] = []

    def counted(texts: list[str], completions: list[str]) -> Any:
        seen.append(1)
        return letters(texts, completions)

    again = ppo(a_job(tmp_path / "work", score=counted, **changes))
    assert len(seen) == 6 - n_done, "the steps that were done are not done again"
    assert same_bits(weights_of(whole.model), weights_of(again.model))
    assert {name: values.tolist() for name, values in whole.curve.items()} == {
        name: values.tolist() for name, values in again.curve.items()
    }


@pytest.mark.parametrize("kind", ["lora", "memory savers"])
def test_other_kinds_of_runs_resume_to_the_same_bits_too(kind: str, tmp_path: Path) -> None:
    from peft import LoraConfig

    changes: dict[str, Any] = {"steps": 4, "save_steps": 1}
    if kind == "lora":
        changes["lora"] = LoraConfig(r=2, target_modules=["query_key_value", "dense"])
    else:
        changes |= {"gradient_accumulation": 2, "gradient_checkpointing": True, "bf16": True}
    whole = ppo(a_job(tmp_path / "whole", **changes))
    with pytest.raises(Killed):
        ppo(a_job(tmp_path / "cut", score=dies_after(2), **changes))
    names = load_file(tmp_path / "cut" / FILE).keys()
    assert all("lora_" in name or "value." in name for name in names) == (kind == "lora"), "an adapter's file is small"
    again = ppo(a_job(tmp_path / "cut", **changes))
    assert same_bits(weights_of(whole.model), weights_of(again.model))


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    done = ppo(a_job(tmp_path, save_steps=2))
    again = ppo(a_job(tmp_path, score=dies_after(0), save_steps=2))
    assert same_bits(weights_of(done.model), weights_of(again.model))
    assert [path.name for path in tmp_path.iterdir()] == [FILE], "the newest is kept, and nothing else"


def test_how_often_it_is_saved_changes_nothing(tmp_path: Path) -> None:
    often, never = (ppo(a_job(tmp_path / str(n), save_steps=n)) for n in (1, 0))
    assert same_bits(weights_of(often.model), weights_of(never.model))


def test_a_kill_while_writing_leaves_the_checkpoint_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ppo(a_job(tmp_path / "whole", steps=4))
    real, calls = os.replace, []

    def cut(source: Path, target: Path) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        real(source, target)

    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(Killed):
        ppo(a_job(tmp_path / "cut", steps=4, save_steps=1))
    monkeypatch.undo()
    assert len(list((tmp_path / "cut").iterdir())) == 2, "the first, and what was not renamed"
    again = ppo(a_job(tmp_path / "cut", steps=4, save_steps=1))
    assert same_bits(weights_of(whole.model), weights_of(again.model))
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [FILE]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    ppo(a_job(tmp_path, save_steps=3))
    with pytest.raises(LensError, match=r"is another run's: lr was 0.001, is 0.002. Delete .* to start again"):
        ppo(a_job(tmp_path, save_steps=3, lr=2e-3))
    with pytest.raises(LensError, match=r"does not fit this model: policy\..* is missing or of another shape"):
        ppo(a_job(tmp_path, base=tiny_model(layers=1, width=32)))
    with pytest.raises(LensError, match=r"does not fit this model: policy\..*layers\.1.* is missing"):
        ppo(a_job(tmp_path, base=tiny_model(layers=2)))
    with pytest.raises(LensError, match=r"does not fit this model: it has no policy\."):
        ppo(a_job(tmp_path, base=tiny_model(layers=0)))


@pytest.mark.parametrize("content", [b"", b"\x80\x04no pickle is loaded", b"truncated"])
def test_a_checkpoint_that_cannot_be_read_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / FILE
    if content == b"truncated":
        ppo(a_job(tmp_path, save_steps=3))
        content = path.read_bytes()[:-100]
    path.write_bytes(content)
    with pytest.raises(LensError, match=r"The checkpoint .* cannot be read .* Delete .* to start again"):
        ppo(a_job(tmp_path))


def test_a_checkpoint_whose_header_is_not_ours_is_refused(tmp_path: Path) -> None:
    ppo(a_job(tmp_path, save_steps=3))
    tensors = load_file(tmp_path / FILE)
    for metadata in (None, {"state": "{"}, {"state": "[]"}, {"state": json.dumps({"settings": {}})}):
        save_file(tensors, tmp_path / FILE, metadata)
        with pytest.raises(LensError, match=r"The checkpoint .* cannot be read"):
            ppo(a_job(tmp_path))


def test_a_folder_that_cannot_be_made_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file")
    with pytest.raises(LensError, match=r"The folder for checkpoints .* cannot be made"):
        ppo(a_job(tmp_path / "work", score=dies_after(0)))


def test_a_checkpoint_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    def in_the_way(whole: list[str], completions: list[str]) -> Any:
        (tmp_path / FILE).mkdir()
        return letters(whole, completions)

    with pytest.raises(LensError, match="The checkpoint could not be written in"):
        ppo(a_job(tmp_path, score=in_the_way, save_steps=1, steps=1))


def test_a_policy_that_broke_is_never_saved(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="PPO diverged"):
        ppo(a_job(tmp_path, lr=1e30, steps=1, save_steps=1))
    assert not (tmp_path / FILE).exists()


def state_of(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["state"])
