"""Checkpoints of a PPO run: one safetensors file with a JSON header, replaced whole, from which a killed run goes on.

Random states are not in it: every step seeds its own draws (`ppo._seeds`), so a step is the same whether the run was cut
before it or not.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lfp_lens.core.errors import LensError
from lfp_lens.stages.finetune.job import Settings

FILE = "ppo.safetensors"
FREE = ("save_steps", "report_to")
"""Settings that do not change the weights, so a run may be resumed under others."""


@dataclass(eq=False)
class Learner:
    """All that changes in a run."""

    policy: Any
    """The causal LM, with its adapter inside where there is one."""
    value_head: nn.Linear
    """The value of each position, from the policy's detached hidden state."""
    optimizer: torch.optim.Optimizer
    """AdamW over every weight that is trained."""
    kl_coefficient: float
    """Weight of the KL penalty, in reward units per nat; it moves where `kl_target` is given."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """One point per finished step."""

    @property
    def named_weights(self) -> dict[str, nn.Parameter]:
        """What is trained, by name, in the optimiser's order."""
        policy = {f"policy.{name}": one for name, one in self.policy.named_parameters() if one.requires_grad}
        return policy | {f"value.{name}": one for name, one in self.value_head.named_parameters()}


def save(learner: Learner, folder: Path, settings: Settings, processes: int) -> None:
    """Write the checkpoint of the steps in `learner.curve`; until it is whole, the one before it stays."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {}
    for name, weight in learner.named_weights.items():
        tensors[name] = weight.detach()
        for moment, value in learner.optimizer.state[weight].items():
            tensors[f"{moment} {name}"] = value
    state = {
        "settings": asdict(settings),
        "processes": processes,
        "kl_coefficient": learner.kl_coefficient,
        "curve": learner.curve,
    }
    aside = folder / f".{FILE}.{os.getpid()}"
    try:
        save_file({name: one.cpu().contiguous() for name, one in tensors.items()}, aside, {"state": json.dumps(state)})
        with open(aside, "rb") as file:
            # Renamed before its content is on the disk, the file could be empty after a power cut.
            os.fsync(file.fileno())
        os.replace(aside, folder / FILE)
    except (OSError, SafetensorError) as error:
        raise LensError(f"The checkpoint could not be written in {folder}: {error}.") from error


def resume(learner: Learner, folder: Path, settings: Settings, processes: int) -> int:
    """Put a killed run's checkpoint into `learner` and give the steps that are done: 0 without a checkpoint.

    Raises `LensError` for a file that cannot be read or that another run wrote.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LensError(f"The folder for checkpoints {folder} cannot be made: {error}.") from error
    for left in folder.glob(f".{FILE}.*"):
        left.unlink(missing_ok=True)
    if not path.exists():
        return 0
    again = f"Delete {path} to start again."
    try:
        with safe_open(path, "pt", device="cpu") as file:
            state = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        changed = _differences(state, settings, processes)
        kl_coefficient, curve = float(state["kl_coefficient"]), list(state["curve"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise LensError(f"The checkpoint {path} cannot be read ({error}). {again}") from error
    if changed:
        raise LensError(f"The checkpoint {path} is another run's: {'; '.join(changed)}. {again}")
    _put(learner, tensors, f"The checkpoint {path} does not fit this model: {{}}. {again}")
    learner.kl_coefficient, learner.curve = kl_coefficient, curve
    return len(curve)


def _differences(state: Mapping[str, Any], settings: Settings, processes: int) -> list[str]:
    """Say what the two runs do not share."""
    then = {**state["settings"], "processes": state["processes"]}
    now = {**asdict(settings), "processes": processes}
    return [
        f"{name} was {then.get(name)}, is {now.get(name)}"
        for name in now.keys() | then.keys()
        if name not in FREE and then.get(name) != now.get(name)
    ]


def _put(learner: Learner, tensors: dict[str, torch.Tensor], message: str) -> None:
    weights = learner.named_weights
    for name, weight in weights.items():
        if name not in tensors or tensors[name].shape != weight.shape:
            raise LensError(message.format(f"{name} is missing or of another shape"))
    strange = {name.rpartition(" ")[2] for name in tensors} - set(weights)
    if strange:
        raise LensError(message.format(f"it has no {min(strange)}"))
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tensors[name])
    moments: dict[int, dict[str, torch.Tensor]] = {}
    order = {name: at for at, name in enumerate(weights)}
    for key, value in tensors.items():
        moment, _, name = key.rpartition(" ")
        if moment:
            moments.setdefault(order[name], {})[moment] = value
    learner.optimizer.load_state_dict({**learner.optimizer.state_dict(), "state": moments})
