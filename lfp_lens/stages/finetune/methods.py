"""The tuning methods by name: what each learns from, what it makes, and the values it uses where none is given."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from lfp_lens.core.registry import Registry
from lfp_lens.stages.finetune.job import Done, Job
from lfp_lens.stages.finetune.offline import dpo, kto, reward_model, sft
from lfp_lens.stages.finetune.online import grpo, rloo
from lfp_lens.stages.finetune.ppo import ppo


@dataclass(frozen=True)
class Method:
    """One way to tune a causal LM."""

    tune: Callable[[Job], Done]
    """Does it."""
    learns_from: Literal["rewards", "pairs", "texts"]
    """Its own completions, scored; pairs of completions, ordered; or texts as they are."""
    defaults: dict[str, float] = field(default_factory=dict)
    """Value of every setting that `finetune` leaves to the method."""
    makes_policy: bool = True
    """False for a reward model, which writes nothing."""


DEFAULTS = {"steps": 150, "batch_size": 128, "minibatches": 1, "epochs": 1, "lr": 3e-4, "kl_coefficient": 0.1}
ONLINE = DEFAULTS | {"steps": 100, "minibatches": 2, "epochs": 2}
METHODS: Registry[Method] = Registry("tuning method")
METHODS.add("ppo")(Method(ppo, "rewards", DEFAULTS | {"minibatches": 2, "epochs": 2, "kl_coefficient": 0.3}))
METHODS.add("rloo")(Method(rloo, "rewards", ONLINE | {"kl_coefficient": 0.2}))
METHODS.add("grpo")(Method(grpo, "rewards", ONLINE | {"kl_coefficient": 0.35}))
METHODS.add("dpo")(Method(dpo, "pairs", DEFAULTS | {"batch_size": 32}))
METHODS.add("kto")(Method(kto, "pairs", DEFAULTS | {"batch_size": 32}))
METHODS.add("sft")(Method(sft, "texts", DEFAULTS | {"batch_size": 32, "kl_coefficient": 0.0}))
METHODS.add("reward_model")(
    Method(reward_model, "pairs", DEFAULTS | {"batch_size": 32, "kl_coefficient": 0.0}, makes_policy=False)
)
