"""Checkpoints between blocks: one safetensors file per SAE and one small index, written last and replaced whole.

The shuffle buffer is not in it: a block follows from the seed and its number. Learning rates and loss weights follow from
the number of steps taken.
"""

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lfp_lens.core.errors import LensError
from lfp_lens.stages.train_sae.learner import Learner, Schedule

INDEX = "train_sae.json"


def save(learners: Sequence[Learner], work: Path, schedule: Schedule, blocks: int) -> None:
    """Write the state after `blocks` blocks; until it is whole, the one before it stays."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        for at, learner in enumerate(learners):
            path = work / _file(at, blocks)
            save_file(_tensors(learner), path)
            with open(path, "rb") as file:
                # Renamed before its content is on the disk, the index could outlive it in a power cut.
                os.fsync(file.fileno())
        aside = work / f".{INDEX}"
        aside.write_text(json.dumps(_identity(learners, schedule) | {"blocks": blocks}), encoding="utf-8")
        os.replace(aside, work / INDEX)
        for left in work.glob("sae-*.safetensors"):
            if not left.name.endswith(f"-{blocks}.safetensors"):
                left.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise LensError(f"The checkpoint could not be written in {work}: {error}.") from error


def resume(learners: Sequence[Learner], work: Path, schedule: Schedule) -> int:
    """Put a killed run's state into the learners and give the blocks that are done: 0 without a checkpoint.

    Raises `LensError` for files that cannot be read or that another run wrote.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (work / INDEX).exists():
        return 0
    again = f"Delete {work} to start again."
    try:
        found = json.loads((work / INDEX).read_text(encoding="utf-8"))
        blocks = int(found.pop("blocks"))
        is_ours = found == json.loads(json.dumps(_identity(learners, schedule)))
        states = [load_file(work / _file(at, blocks)) for at in range(len(learners))] if is_ours else []
        for learner, state in zip(learners, states):
            _put(learner, state)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise LensError(f"The checkpoint {work} cannot be read ({error}). {again}") from error
    if not is_ours:
        raise LensError(f"The checkpoint {work} is another run's. {again}")
    return blocks


def _file(at: int, blocks: int) -> str:
    return f"sae-{at}-{blocks}.safetensors"


def _identity(learners: Sequence[Learner], schedule: Schedule) -> dict[str, Any]:
    return {"saes": [asdict(learner.spec) for learner in learners], "schedule": asdict(schedule)}


def _tensors(learner: Learner) -> dict[str, torch.Tensor]:
    trainer = learner.trainer
    names = {parameter: name for name, parameter in trainer.sae.named_parameters()}
    found = {f"sae {name}": tensor for name, tensor in trainer.sae.state_dict().items()}
    for parameter, moments in trainer.optimizer.state.items():
        found |= {f"adam {names[parameter]} {moment}": value for moment, value in moments.items()}
    found |= {
        "since_fired": trainer.n_forward_passes_since_fired,
        "fired": trainer.act_freq_scores,
        "counts": torch.tensor([trainer.n_training_steps, trainer.n_training_samples, trainer.n_frac_active_samples]),
        "curve": learner.curve,
    }
    if trainer.activation_scaler.scaling_factor is not None:
        found["scale"] = torch.tensor(trainer.activation_scaler.scaling_factor, dtype=torch.float64)
    # Copies: parameters may share storage, which safetensors refuses.
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in found.items()}


def _put(learner: Learner, state: dict[str, torch.Tensor]) -> None:
    trainer = learner.trainer
    trainer.sae.load_state_dict({name[4:]: tensor for name, tensor in state.items() if name.startswith("sae ")})
    order = {name: at for at, (name, _) in enumerate(trainer.sae.named_parameters())}
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        if key.startswith("adam "):
            _, name, moment = key.split(" ")
            moments.setdefault(order[name], {})[moment] = value
    trainer.optimizer.load_state_dict({**trainer.optimizer.state_dict(), "state": moments})
    trainer.n_forward_passes_since_fired.copy_(state["since_fired"])
    trainer.act_freq_scores.copy_(state["fired"])
    steps, trainer.n_training_samples, trainer.n_frac_active_samples = (int(count) for count in state["counts"])
    trainer.n_training_steps = learner.done = steps
    learner.curve.copy_(state["curve"])
    if "scale" in state:
        trainer.activation_scaler.scaling_factor = float(state["scale"])
    with warnings.catch_warnings():
        # PyTorch warns because no optimiser step came before; they all did, in the process that was killed.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
        for _ in range(steps):
            trainer.lr_scheduler.step()
            for scheduler in trainer.coefficient_schedulers.values():
                scheduler.step()
