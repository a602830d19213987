"""Activations of two models with known features: shared, tuned only, base only, and shared but weaker in base."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lfp_lens.parts.saes import export, new_sae, quiet_sae_lens
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.results.crosscoder import Crosscoder
from lfp_lens.results.train_sae import SAEWeights
from lfp_lens.stages.train_sae.crosscoder import LEARNING_RATE, start_with_unit_rows

SITE = "blocks.0.hook_mlp_out"
STRENGTH = {"shared": (1.0, 1.0), "tuned": (0.0, 1.0), "base": (1.0, 0.0), "weak": (0.15, 1.0)}
"""Kind -> how strongly (base, tuned) have its features."""
FOUND_COSINE = 0.9


@dataclass(frozen=True, eq=False)
class PlantedPair:
    """Random unit directions, each active on a share of samples, and how strongly each model has each."""

    directions: torch.Tensor
    """[planted, width], rows of length 1."""
    kinds: np.ndarray
    """`shared`, `tuned`, `base` or `weak` of each."""
    seed: int
    magnitude: str = "uniform"
    """How strongly an active feature fires: `uniform` on (0, 1) or `normal`, the absolute value of a standard normal."""
    rate: float = 0.03
    noise: float = 0.01

    @classmethod
    def make(
        cls, seed: int, *, width: int = 128, shared: int = 180, tuned: int = 12, base: int = 12, weak: int = 20,
        **options: float | str,
    ) -> "PlantedPair":  # fmt: skip
        """Draw the directions; the defaults are the acceptance set."""
        kinds = np.repeat(["shared", "tuned", "base", "weak"], [shared, tuned, base, weak])
        directions = torch.randn(len(kinds), width, generator=torch.Generator().manual_seed(seed))
        return cls(directions / directions.norm(dim=1, keepdim=True), kinds, seed, **options)  # type: ignore[arg-type]

    def batches(self, n: int, *, stream: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Give (base, tuned) activations of `n` fresh samples without end; another stream gives other samples."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + stream + 1)
        strength = {name: torch.tensor([STRENGTH[kind][side] for kind in self.kinds])[:, None]
                    for side, name in enumerate(("base", "tuned"))}  # fmt: skip
        draw = {"uniform": torch.rand, "normal": torch.randn}[self.magnitude]
        while True:
            active = torch.rand(n, len(self.kinds), generator=generator) < self.rate
            values = active * draw(n, len(self.kinds), generator=generator).abs()
            made = [values @ (self.directions * strength[side]) for side in ("base", "tuned")]
            noise = [self.noise * torch.randn(acts.shape, generator=generator) for acts in made]
            yield made[0] + noise[0], made[1] + noise[1]

    def chunks(self, n: int, size: int) -> Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]:
        """Give `n` held-out chunks as `compare` takes them."""

        def held_out() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            source = self.batches(size, stream=1)
            return (next(source) for _ in range(n))

        return held_out

    def train(
        self, *, architecture: str = "batchtopk", d_sae: int = 512, k: int | None = None, l1: float | None = None,
        steps: int = 3000, batch: int = 512, lr: float | None = None,
    ) -> SAEWeights:  # fmt: skip
        """Train a crosscoder as the stage does: unit rows, SAELens' steps, the learning rate falls over the second half."""
        from sae_lens.config import SAETrainerConfig

        lens, source = quiet_sae_lens(), self.batches(batch, stream=0)
        width = 2 * self.directions.shape[1]
        sae = new_sae(architecture, d_in=width, d_sae=d_sae, l1=l1, k=k, steps=steps, seed=self.seed)
        start_with_unit_rows(sae)
        lr = LEARNING_RATE if lr is None else lr
        config = SAETrainerConfig(
            total_training_samples=steps * batch, train_batch_size_samples=batch, lr=lr, lr_end=lr / 10,
            lr_decay_steps=steps // 2, dead_feature_window=max(50, steps // 5), feature_sampling_window=steps + 1,
            n_batches_for_norm_estimate=1, device="cpu",
        )  # fmt: skip
        trainer = lens.SAETrainer(cfg=config, sae=sae, data_provider=iter(()))
        with fast_matmul(), torch.random.fork_rng():
            for step in range(steps):
                acts = torch.cat(next(source), dim=1)
                if step == 0:
                    trainer.activation_scaler.scaling_factor = float(width**0.5 / acts.norm(dim=-1).mean())
                trainer.step(acts)
                trainer.n_training_steps += 1
        sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
        return export(sae, site=SITE, model_name="planted")

    def judge(self, weights: SAEWeights, features: np.ndarray) -> dict[str, int]:
        """Say what the features that were called tuned-only really are.

        A feature is what the planted direction is that its tuned half is nearest to. `recovered` counts planted tuned-only
        directions that one of the features has with a cosine above 0.9.
        """
        tuned_FD = weights.tensors["W_dec"][features, self.directions.shape[1] :]
        cosines = tuned_FD @ self.directions.numpy().T / np.linalg.norm(tuned_FD, axis=1, keepdims=True)
        nearest = cosines.argmax(axis=1) if len(features) else np.zeros(0, int)
        near = nearest[cosines.max(axis=1, initial=-1) > FOUND_COSINE]
        counts = {kind: int((self.kinds[nearest] == kind).sum()) for kind in STRENGTH}
        return {"flagged": len(features), **counts, "recovered": len({at for at in near if self.kinds[at] == "tuned"})}

    def verdicts(self, weights: SAEWeights, found: Crosscoder) -> dict[str, dict[str, int]]:
        """Judge the features called tuned-only by the norms alone, and by norms and latent scaling."""
        claims = {"norms": found.claimed_by_norm("tuned"), "norms + scaling": found.tuned_only()}
        return {rule: self.judge(weights, features) for rule, features in claims.items()}
