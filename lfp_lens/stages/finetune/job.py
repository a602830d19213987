"""What every tuning method is given and what it gives back: one contract for seven methods."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lfp_lens.parts.preferences import Preference

Score = Callable[[list[str], list[str]], np.ndarray]
"""(prompts with their completions, completions alone) -> one reward each."""
Curve = dict[str, np.ndarray]
"""One value per step: `step`, and what the method knows of `reward`, `kl_nats`, `entropy_nats`, `length`, `ended`, ..."""


WARM_UP = 10


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of one run, every one with a value."""

    steps: int
    """Rollouts (ppo, rloo, grpo) or optimiser steps (the others)."""
    batch_size: int
    """Completions, pairs or texts per step, over all processes."""
    minibatches: int
    """Optimiser steps per pass over a rollout."""
    epochs: int
    """Passes over a rollout."""
    group_size: int
    """Completions per prompt (rloo, grpo)."""
    max_new_tokens: int
    """Longest completion that is sampled."""
    max_tokens: int
    """Longest text that is trained on, prompt included (dpo, kto, sft, reward_model)."""
    lr: float
    """AdamW's learning rate."""
    kl_coefficient: float
    """Weight of the KL penalty, in reward units per nat; the `beta` of dpo and kto."""
    kl_target: float | None
    """Nats per completion that the KL coefficient adapts to (ppo); None keeps it fixed."""
    gradient_accumulation: int
    """Parts a batch is computed in, for memory."""
    gradient_checkpointing: bool
    """Recompute activations in the backward pass, for memory."""
    bf16: bool
    """Compute under bf16 autocast; weights stay fp32."""
    save_steps: int
    """Steps between checkpoints to resume from; 0 writes none."""
    report_to: str
    """A tracker that accelerate knows (`tensorboard`, `wandb`, ...), or `none`."""
    seed: int
    """Of everything random."""


@dataclass(frozen=True, eq=False)
class Job:
    """One tuning to be done."""

    policy: Any
    """The model to train in place: a copy of the start, in evaluation mode."""
    reference: Any
    """What KL is measured to, never changed: the start itself unless the caller gave another."""
    tokenizer: Any
    """Its tokenizer, as loaded."""
    prompts: Sequence[list[int]]
    """Training prompts as token ids, beginning-of-text first; empty for methods that take none."""
    score: Score | None
    """The reward; None for methods that take none."""
    preferences: Sequence["Preference"]
    """Training pairs; empty for methods that take none."""
    texts: Sequence[str]
    """Training texts (sft); empty for the others."""
    lora: Any
    """A PEFT `LoraConfig`, or None to train every weight."""
    settings: Settings
    """The hyperparameters."""
    work: Path
    """Folder for checkpoints that survives a kill; the same inputs get the same folder."""
    is_sampled: bool = False
    """Whether the pairs are samples of the base, cut at `max_new_tokens`."""


@dataclass(frozen=True, eq=False)
class Done:
    """What a method gives back."""

    model: Any
    """The tuned model: the policy, a PEFT model around it, or a sequence classifier (reward_model)."""
    curve: Curve
    """Its learning curve."""


def warm_up(steps: int) -> int:
    """Give the steps over which every method's learning rate rises: 10, or a tenth of a short run."""
    return min(WARM_UP, max(1, steps // 10))
