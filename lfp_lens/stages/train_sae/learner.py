"""One SAE while it learns: SAELens' trainer, the input scale, the loss of every step."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lfp_lens.parts.saes import new_sae, quiet_sae_lens, start_from
from lfp_lens.results.train_sae import SAEWeights
from lfp_lens.stages.train_sae.crosscoder import start_with_unit_rows
from lfp_lens.stages.train_sae.plan import Spec

UNCLIPPED = 2.0**-12
"""Factor of the loss of the paper's SAEs, which it trains without SAELens' clipping; a power of two rounds nothing."""


@dataclass(frozen=True, eq=False)
class Trained:
    """One trained SAE as SAELens' training module."""

    sae: Any
    """The SAE, its input scale folded into the weights."""
    untrained: Any
    """The same SAE as it was initialised, scaled likewise."""
    curve: np.ndarray
    """Loss at every step."""


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
        self.loss_scale = 1.0
        if hasattr(self.trainer.sae.cfg, "loss_scale"):
            self.trainer.sae.cfg.loss_scale = self.loss_scale = UNCLIPPED
            for group in self.trainer.optimizer.param_groups:
                group["eps"] *= UNCLIPPED
        self.curve = torch.zeros(schedule.steps, device=device)
        self.done = 0

    def _new(self) -> Any:
        from lfp_lens.parts.tied_sae import TiedTrainingSAE

        spec = self.spec
        sae = new_sae(spec.architecture, d_in=spec.d_in, d_sae=spec.d_sae, l1=spec.l1, k=spec.k, steps=self.steps,
                      seed=spec.start_seed)  # fmt: skip
        if spec.side == "both" and not isinstance(sae, TiedTrainingSAE):
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
        self.curve[self.done] = output.loss.detach() / self.loss_scale
        self.done += 1

    def finished(self) -> Trained:
        """Fold the input scale into the weights of the trained SAE and of its untrained twin."""
        untrained, scale = self._new(), self.trainer.activation_scaler.scaling_factor
        if scale is not None:
            for sae in (self.trainer.sae, untrained):
                sae.fold_activation_norm_scaling_factor(scale)
        return Trained(self.trainer.sae, untrained, self.curve.double().cpu().numpy())
