"""Several processes that tune one model (`accelerate launch`), and trackers: what accelerate gives our own loop."""

import atexit
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from lfp_lens.core.errors import LensError


@dataclass(frozen=True)
class Team:
    """The processes of one run. Alone, every method gives back what it was given."""

    rank: int
    """This process, from 0."""
    size: int
    """How many there are."""

    @property
    def is_first(self) -> bool:
        """Whether this process shows the bar, writes checkpoints and feeds the tracker."""
        return self.rank == 0

    def share(self, rows: Sequence[Any]) -> list[Any]:
        """Give this process its part of a batch."""
        return [rows[at] for at in np.array_split(np.arange(len(rows)), self.size)[self.rank]]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over the processes; all get the same sum."""
        if self.size == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def sum_gradients(self, weights: Sequence[torch.nn.Parameter]) -> None:
        """Add up the gradients over the processes, in place."""
        if self.size == 1:
            return
        waiting = [dist.all_reduce(weight.grad, async_op=True) for weight in weights if weight.grad is not None]
        for one in waiting:
            one.wait()

    def gather_rows(self, rows: Sequence[Sequence[int]], width: int) -> list[list[int]]:
        """Give every process the token rows of all, none longer than `width`."""
        if self.size == 1:
            return [list(row) for row in rows]
        n_rows = int(self.max(len(rows)))
        # Processes hold different numbers of rows of different lengths: -1 fills up to one shape.
        filled = torch.full((n_rows, width), -1, dtype=torch.long, device=self.device)
        for at, row in enumerate(rows):
            filled[at, : len(row)] = torch.tensor(row)
        found = [torch.empty_like(filled) for _ in range(self.size)]
        dist.all_gather(found, filled)
        kept = [[token for token in row if token >= 0] for row in torch.cat(found).tolist()]
        return [row for row in kept if row]

    def max(self, value: float) -> float:
        """Give the largest of the processes' values."""
        if self.size == 1:
            return value
        found = torch.tensor(float(value), device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return float(found)

    @property
    def device(self) -> torch.device:
        """Where tensors must lie that processes exchange."""
        return (
            torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
        )


def join(device: torch.device) -> Team:
    """Give the team that this process was started in, which is itself alone unless a launcher started it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team(0, 1)
    from accelerate import PartialState

    if not dist.is_initialized():
        atexit.register(_leave)
    state = PartialState(cpu=device.type == "cpu")
    return Team(state.process_index, state.num_processes)


def wait() -> None:
    """Wait until every process of this run has come here."""
    if dist.is_initialized():
        dist.barrier()


def _leave() -> None:
    """End the exchange between processes: at exit its threads would abort a process that still has them."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def tracking(
    name: str, device: torch.device, folder: Path, settings: Mapping[str, Any]
) -> Iterator[Callable[[Mapping[str, float], int], None]]:
    """Yield `log(values, step)`, which feeds the tracker of this name while inside; `none` logs nowhere.

    A tracker that keeps files keeps them in `folder`. Raises `LensError` for one that cannot be used (`check_tracker`).
    """
    check_tracker(name)
    if name == "none":
        yield lambda values, step: None
        return
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device.type == "cpu", log_with=name, project_dir=folder)
    accelerator.init_trackers("lfp_lens", config={key: value for key, value in settings.items() if value is not None})
    try:
        yield lambda values, step: accelerator.log(dict(values), step=step)
    finally:
        # Not `end_training`, which would also end the process group that the caller still needs.
        for tracker in accelerator.trackers:
            tracker.finish()


def check_tracker(name: str, *, by_trl: bool = False) -> None:
    """Raise `LensError` for a tracker that accelerate (or TRL's trainers, if they are to feed it) does not know or find."""
    if name == "none":
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    known = [one for one in LOGGER_TYPE_TO_CLASS if not by_trl or one in INTEGRATION_TO_CALLBACK]
    present = [one for one in (str(getattr(one, "value", one)) for one in get_available_trackers())
               if not by_trl or one in known]  # fmt: skip
    if name not in present:
        hint = f"install the package {name!r}" if name in known else "there is no such tracker"
        raise LensError(
            f"report_to={name!r} cannot be used: {hint}. Installed here: {', '.join([*present, 'none'])}; accelerate "
            f"knows {', '.join(known)}."
        )
