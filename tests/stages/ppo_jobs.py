"""Tiny PPO jobs that tests share; run as a program it tunes one in a process of its own, which a test may kill.

    python -m tests.stages.ppo_jobs FOLDER SECONDS_PER_REWARD [NAME=VALUE ...]

It writes FOLDER/weights-RANK.safetensors and FOLDER/curve-RANK.json, keeps its checkpoints in FOLDER/work, and as one of
several processes also writes FOLDER/update-RANK.safetensors, what `one_update` gave.
"""

import copy
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lfp_lens.stages.finetune.job import Job, Settings
from lfp_lens.stages.finetune.ppo import _start, _update, ppo, whiten
from lfp_lens.stages.finetune.processes import Team, join
from lfp_lens.stages.finetune.rollout import roll_out
from tests.tiny import tiny_model, tiny_tokenizer

PROMPT = [0, 300]
PROMPTS = [PROMPT, [0, 301, 302], [0, 303]]
SETTINGS = Settings(
    steps=3, batch_size=8, minibatches=2, epochs=2, group_size=1, max_new_tokens=4, max_tokens=32, lr=1e-3,
    kl_coefficient=0.1, kl_target=None, gradient_accumulation=1, gradient_checkpointing=False, bf16=False, save_steps=0,
    report_to="none", seed=0,
)  # fmt: skip


def letters(whole: list[str], completions: list[str]) -> np.ndarray:
    """A reward that differs between most completions."""
    return np.array([len(text) / 10 for text in completions])


def a_job(
    work: Path, *, base: Any = None, score: Any = letters, prompts: Any = None, lora: Any = None, **changes: Any
) -> Job:
    """Give a job on a copy of `base`, a tiny model of one layer unless given; `changes` are settings."""
    base = tiny_model(layers=1) if base is None else base
    return Job(
        policy=copy.deepcopy(base), reference=base, tokenizer=tiny_tokenizer(), prompts=prompts or PROMPTS, score=score,
        preferences=(), texts=(), lora=lora, settings=dataclasses.replace(SETTINGS, **changes), work=work,
    )  # fmt: skip


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def one_update(team: Team, **changes: Any) -> dict[str, torch.Tensor]:
    """Give the weights after one update on a fixed rollout of 8 completions, of which each process holds its share.

    The optimiser is plain descent: AdamW's first step is the sign of the gradient, which rounding turns around at 0.
    """
    job = a_job(Path(), **({"minibatches": 1, "epochs": 1, "batch_size": 8} | changes))
    torch.manual_seed(3)
    _, learner = _start(job)
    learner.optimizer = torch.optim.SGD(learner.named_weights.values(), lr=1.0)
    whole = roll_out(learner.policy, job.tokenizer, [PROMPTS[at % 3] for at in range(8)], 4, [0])
    rows = torch.tensor(team.share(range(8)))
    tensors = {name: value[rows] for name, value in vars(whole).items() if isinstance(value, torch.Tensor)}
    rollout = dataclasses.replace(whole, **tensors)
    advantages = torch.linspace(-2, 3, whole.real_BT.numel()).view(whole.real_BT.shape)[rows]
    advantages = whiten(advantages, rollout.real_BT, team)
    _update(learner, rollout, advantages, advantages + 1, job.settings, np.random.default_rng(0), team)
    return {name: weight.detach() for name, weight in learner.named_weights.items()}


def main(folder: str, seconds: str, *changes: str) -> None:
    from safetensors.torch import save_file

    def slow(whole: list[str], completions: list[str]) -> np.ndarray:
        time.sleep(float(seconds))
        return letters(whole, completions)

    given = {name: json.loads(value) for name, value in (change.split("=") for change in changes)}
    done = ppo(a_job(Path(folder) / "work", score=slow, **given))
    rank = os.environ.get("RANK", "0")
    save_file(weights_of(done.model), Path(folder) / f"weights-{rank}.safetensors")
    curve = {name: values.tolist() for name, values in done.curve.items()}
    (Path(folder) / f"curve-{rank}.json").write_text(json.dumps(curve))
    team = join(torch.device("cpu"))
    if team.size > 1:
        save_file(one_update(team), Path(folder) / f"update-{rank}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
