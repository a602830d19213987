"""Training: one stream of shuffled blocks feeds every SAE, SAELens takes every step, a killed run goes on bit by bit."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.parts.harvest import Stream
from lfp_lens.results.train_sae import SAEWeights
from lfp_lens.stages.train_sae import checkpoint
from lfp_lens.stages.train_sae.learner import Learner, Schedule, Trained
from lfp_lens.stages.train_sae.plan import Spec

SECONDS_BETWEEN_CHECKPOINTS = 30.0
SHOWN_LOSSES = 6
"""Losses that fit beside the bar; of more SAEs the lowest and the highest are shown."""


class Source(Protocol):
    """Gives blocks of activations from any block on (`parts.harvest.Blocks`)."""

    @property
    def block_tokens(self) -> int:
        """Tokens of a full block."""
        ...

    def blocks(self, start: int, sizes: Sequence[int]) -> Iterator[Mapping[Stream, torch.Tensor]]:
        """Give blocks `start`, `start + 1`, ... of these sizes."""
        ...


def train(
    specs: Sequence[Spec],
    source: Source,
    schedule: Schedule,
    *,
    starts: Mapping[Spec, SAEWeights] | None = None,
    device: torch.device | str = "cpu",
    work: Path | None = None,
    bar: tqdm | None = None,
) -> dict[Spec, Trained]:
    """Train every SAE on the same stream, from `starts` where one is named, and give it with its untrained twin.

    With a folder `work` the state is written between blocks, and a run that was killed goes on from there: its weights are
    those of a run that was not. Raises `LensError` if a loss is not finite.
    """
    from lfp_lens.parts.lean_saes import forget_buffers

    learners = [Learner(spec, schedule, device) for spec in specs]
    sizes = schedule.block_sizes(source.block_tokens)
    done = checkpoint.resume(learners, work, schedule) if work is not None else 0
    if bar is not None and done:
        bar.update(sum(sizes[:done]))
    saved = time.monotonic()
    for number, block in enumerate(source.blocks(done, sizes), start=done):
        if number == 0:
            for learner in learners:
                learner.begin(block[learner.spec.stream], (starts or {}).get(learner.spec))
        for batch in range(0, sizes[number], schedule.batch_tokens):
            for learner in learners:
                learner.step(block[learner.spec.stream][batch : batch + schedule.batch_tokens])
            if bar is not None:
                bar.update(schedule.batch_tokens)
        _check(learners)
        if bar is not None:
            bar.set_postfix_str(_losses(learners))
        if work is not None and time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS and number + 1 < len(sizes):
            checkpoint.save(learners, work, schedule, number + 1)
            saved = time.monotonic()
    forget_buffers()
    return {learner.spec: learner.finished() for learner in learners}


def _check(learners: Sequence[Learner]) -> None:
    for learner in learners:
        bad = (~torch.isfinite(learner.curve[: learner.done])).nonzero()
        if len(bad):
            raise LensError(
                f"The SAE loss of {learner.spec.name} is not finite at step {int(bad[0])}: lower lr ({learner.spec.lr:g})."
            )


def _losses(learners: Sequence[Learner]) -> str:
    last = [float(learner.curve[learner.done - 1]) for learner in learners]
    if len(last) > SHOWN_LOSSES:
        return f"loss of {len(last)} SAEs {min(last):.3g} to {max(last):.3g}"
    return ", ".join(
        f"{learner.spec.side} {learner.spec.site.split('.')[1]} x{learner.spec.size:g} {loss:.3g}"
        for learner, loss in zip(learners, last)
    )
