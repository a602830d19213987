"""Training: one stream of shuffled blocks feeds every SAE, SAELens takes every step, a killed run goes on bit by bit."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.parts.harvest import Stream
from lfp_lens.parts.saes import new_sae, quiet_sae_lens, start_from
from lfp_lens.results.train_sae import SAEWeights
from lfp_lens.stages.train_sae import checkpoint
from lfp_lens.stages.train_sae.crosscoder import start_with_unit_rows
from lfp_lens.stages.train_sae.plan import Spec

SECONDS_BETWEEN_CHECKPOINTS = 30.0
SHOWN_LOSSES = 6
"""Losses that fit beside the bar; of more SAEs the lowest and the highest are shown."""


@dataclass(frozen=True, eq=False)
class Trained:
    """One trained SAE as SAELens' training module."""

    sae: Any
    """The SAE, its input scale folded into the weights."""
    untrained: Any
    """The same SAE as it was initialised, scaled likewise."""
    curve: np.ndarray
    """Loss at every step."""


class Source(Protocol):
    """Gives blocks of activations from any block on (`parts.harvest.Blocks`)."""

    @property
    def block_tokens(self) -> int:
        """Tokens of a full block."""
        ...

    def blocks(self, start: int, sizes: Sequence[int]) -> Iterator[Mapping[Stream, torch.Tensor]]:
        """Give blocks `start`, `start + 1`, ... of these sizes."""
        ...


@dataclass(frozen=True)
class Schedule:
    """How long and in what portions."""

    steps: int
    """Training steps of every SAE."""
    batch_tokens: int
    """Tokens per step."""
    bf16: bool = False
    """Compute products in bfloat16 (autocast)."""

    def block_sizes(self, block_tokens: int) -> list[int]:
        """Give the tokens of each block; a block holds whole batches, and the last one what is left."""
        total = self.steps * self.batch_tokens
        return [min(block_tokens, total - start) for start in range(0, total, block_tokens)]


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


class Learner:
    """One SAE in SAELens' trainer, with its curve."""

    def __init__(self, spec: Spec, schedule: Schedule, device: torch.device | str = "cpu") -> None:
        from sae_lens.config import SAETrainerConfig

        lens = quiet_sae_lens()
        self.spec, self.steps, self.device = spec, schedule.steps, device
        config = SAETrainerConfig(
            total_training_samples=schedule.steps * schedule.batch_tokens, train_batch_size_samples=schedule.batch_tokens,
            lr=spec.lr, lr_end=spec.lr / 10, device=str(device), dead_feature_window=max(50, schedule.steps // 5),
            feature_sampling_window=schedule.steps + 1, n_batches_for_norm_estimate=1, autocast=schedule.bf16,
            lr_decay_steps=schedule.steps // 2 if spec.side == "both" else 0,
        )  # fmt: skip
        self.trainer = lens.SAETrainer(cfg=config, sae=self._new(), data_provider=iter(()))
        self.curve = torch.zeros(schedule.steps, device=device)
        self.done = 0

    def _new(self) -> Any:
        spec = self.spec
        sae = new_sae(spec.architecture, d_in=spec.d_in, d_sae=spec.d_sae, l1=spec.l1, k=spec.k, steps=self.steps,
                      seed=spec.start_seed)  # fmt: skip
        if spec.side == "both":
            start_with_unit_rows(sae)
        return sae.to(self.device)

    def begin(self, acts_ND: torch.Tensor, start: SAEWeights | None) -> None:
        """Scale inputs to norm sqrt(D), as SAELens' own runner does, from the first block; take over a given dictionary."""
        if self.trainer.sae.cfg.normalize_activations == "expected_average_only_in":
            self.trainer.activation_scaler.scaling_factor = float(acts_ND.shape[1] ** 0.5 / acts_ND.norm(dim=-1).mean())
        if start is not None:
            start_from(self.trainer.sae, start, self.trainer.activation_scaler.scaling_factor)

    def step(self, batch_ND: torch.Tensor) -> None:
        """Take one of SAELens' training steps."""
        self.trainer.maybe_reset_sparsity()
        output = self.trainer.step(batch_ND)
        self.trainer.n_training_steps += 1
        self.curve[self.done] = output.loss.detach()
        self.done += 1

    def finished(self) -> Trained:
        """Fold the input scale into the weights of the trained SAE and of its untrained twin."""
        untrained, scale = self._new(), self.trainer.activation_scaler.scaling_factor
        if scale is not None:
            for sae in (self.trainer.sae, untrained):
                sae.fold_activation_norm_scaling_factor(scale)
        return Trained(self.trainer.sae, untrained, self.curve.double().cpu().numpy())


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
