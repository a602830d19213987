"""The section `[finetune]`: how the base is tuned, and which of its keys contradict one another."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lfp_lens.config.kinds import (
    AtLeastTwo,
    Count,
    CountOrNone,
    Factors,
    NotNegative,
    NotNegativeCount,
    NotNegativeOrNone,
    PositiveOrNone,
    Reward,
    Switch,
    SwitchOrNone,
    Text,
    TextOrNone,
)
from lfp_lens.config.strict import Strict, toml_value
from lfp_lens.core.errors import LensError

ONLINE = ("ppo", "rloo", "grpo")
"""Methods that sample completions of prompts and score them."""
GROUPED = ("rloo", "grpo")
"""Methods that compare the completions of one prompt with one another."""
NOT_LEXICONS = ("classifier:", "reward_model:")


class FinetuneConfig(Strict):
    """`[finetune]`: how the base model is tuned. Not allowed beside `tuned`."""

    section = "finetune"
    method: Literal["ppo", "rloo", "grpo", "dpo", "kto", "sft", "reward_model"] = "ppo"
    """The tuning algorithm."""
    preferences: TextOrNone = None
    """Pairs of a chosen and a rejected answer: `hh`, `hh:SUBSET`, `toxic`, a file or a data set of the hub; not given: pairs \
of the base's own samples, ordered by the reward, for the methods that need pairs."""
    reward: Reward = "vader"
    """What is maximised: a registered reward, a lexicon file, `classifier:MODEL@LABEL`, `reward_model:PATH`, or a list of \
[reward, weight] to add up."""
    scope: Literal["completion", "text"] = "completion"
    """What the reward scores: the completion alone, or prompt and completion."""
    flip: NotNegativeCount = 0
    """How many frequent lexicon words get the opposite value: planted wrong feedback with a key."""
    edits: Factors = None
    """Word -> factor on its lexicon value, as in { good = -1, bad = 0 }: -1 flips it, 0 mutes it, 3 inflates it."""
    min_gap: NotNegative = 0.2
    """Smallest difference in reward between two samples that makes them a pair."""
    steps: CountOrNone = None
    """Rollouts of `batch_size` completions (ppo, rloo, grpo) or optimiser steps (the others); not given: the method's own."""
    batch_size: CountOrNone = None
    """Completions, pairs or texts per step; not given: the method's own."""
    minibatches: CountOrNone = None
    """Parts each rollout is split into, every part one gradient step; not given: the method's own."""
    epochs: CountOrNone = None
    """Passes over each rollout; not given: the method's own."""
    group_size: AtLeastTwo = 8
    """Completions per prompt that are compared with one another (rloo, grpo)."""
    max_new_tokens: Count = 20
    """Longest completion in tokens."""
    max_tokens: AtLeastTwo = 256
    """Longest text trained on in tokens, prompt included (dpo, kto, sft, reward_model)."""
    prompt_tokens: Annotated[
        tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]],
        Field(title="two whole numbers, lowest and highest, from 1 up"),
    ] = (2, 9)
    """Fewest and most tokens of a text that serve as prompt, both included."""
    lr: PositiveOrNone = None
    """Learning rate; not given: the method's own."""
    kl_coefficient: NotNegativeOrNone = None
    """Weight of the KL penalty to the reference, the beta of dpo and kto; not given: the method's own."""
    kl_target: PositiveOrNone = None
    """Nats per completion that the KL coefficient adapts to (ppo); not given: it stays as it is."""
    lora: CountOrNone = None
    """Rank of a LoRA adapter, trained instead of the weights; not given: every weight is trained."""
    reference: TextOrNone = None
    """The model that KL is measured to; not given: the base."""
    heldout: AtLeastTwo = 256
    """Prompts kept aside to measure the reward gain."""
    gradient_accumulation: Count = 1
    """Parts each batch is computed in, one after the other, to save memory."""
    gradient_checkpointing: Switch = False
    """Whether activations are computed again in the backward pass, to save memory."""
    bf16: SwitchOrNone = None
    """Whether to compute in bf16, with weights in fp32; not given: on a CUDA device that has it."""
    save_steps: NotNegativeCount = 50
    """Steps between checkpoints that a killed run goes on from; 0 writes none."""
    report_to: Text = "none"
    """A tracker that accelerate knows, such as `tensorboard` or `wandb`, or `none`."""

    @property
    def reward_models(self) -> tuple[str, ...]:
        """The models that the reward reads texts with: hub names or folders, labels cut off."""
        parts = [self.reward] if isinstance(self.reward, str) else [part for part, _ in self.reward]
        named = [part.partition(":")[2] for part in parts if part.startswith(NOT_LEXICONS)]
        return tuple(name.rpartition("@")[0] or name for name in named)

    @model_validator(mode="after")
    def _agrees(self) -> "FinetuneConfig":
        low, high = self.prompt_tokens
        if low > high:
            raise LensError(f"finetune.prompt_tokens = [{low}, {high}]: the lowest comes first. Write [{high}, {low}].")
        for contradiction in (*_in_method(self), *_in_batch(self), *_in_reward(self)):
            raise LensError(contradiction)
        return self


def _in_method(config: FinetuneConfig) -> Iterator[str]:
    method = f"finetune.method = {toml_value(config.method)}"
    if config.preferences is not None and config.method in ONLINE:
        yield (
            f"finetune.preferences = {toml_value(config.preferences)} contradicts {method}, which learns from prompts and a "
            "reward. Remove preferences, or choose one of dpo, kto, sft, reward_model."
        )
    if config.reference is not None and config.lora is not None:
        yield (
            f"finetune.reference = {toml_value(config.reference)} contradicts finetune.lora = {config.lora}: with an adapter, "
            "KL is measured to the base without it. Remove one of them."
        )
    if config.kl_target is not None and config.method != "ppo":
        yield f"finetune.kl_target = {config.kl_target} contradicts {method}: only ppo adapts its KL coefficient."
    if config.kl_target is not None and config.kl_coefficient == 0:
        yield (
            f"finetune.kl_target = {config.kl_target} contradicts finetune.kl_coefficient = 0: it adapts by a factor, and 0 "
            "stays 0. Give a coefficient above 0 to start from."
        )


def _in_batch(config: FinetuneConfig) -> Iterator[str]:
    size = config.batch_size
    if size is None:
        return
    for name, parts in (("minibatches", config.minibatches), ("gradient_accumulation", config.gradient_accumulation)):
        if parts is not None and parts > size:
            yield (
                f"finetune.{name} = {parts} contradicts finetune.batch_size = {size}: a batch cannot be split into more "
                "parts than it has completions."
            )
    if config.method in GROUPED and size % (config.group_size * (config.minibatches or 1)):
        split = f" and finetune.minibatches = {config.minibatches}" if config.minibatches else ""
        yield (
            f"finetune.batch_size = {size} contradicts finetune.group_size = {config.group_size}{split}: {config.method} "
            "compares the completions of one prompt, so a batch, and each of its parts, is made of whole groups. Give a "
            f"multiple of {config.group_size * (config.minibatches or 1)}."
        )


def _in_reward(config: FinetuneConfig) -> Iterator[str]:
    has_lexicon = isinstance(config.reward, str) and not config.reward.startswith(NOT_LEXICONS)
    changes: dict[str, object] = {"flip": config.flip or None, "edits": config.edits}
    for name, given in changes.items():
        if given is not None and config.preferences is not None:
            yield (
                f"finetune.{name} = {toml_value(given)} contradicts finetune.preferences = "
                f"{toml_value(config.preferences)}: given pairs are ordered already. Remove one of them."
            )
        elif given is not None and not has_lexicon:
            yield (
                f"finetune.{name} = {toml_value(given)} contradicts finetune.reward = {toml_value(config.reward)}: only "
                f"the values of a lexicon can be changed. Remove {name}, or give one lexicon as reward."
            )
