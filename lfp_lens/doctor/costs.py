"""Time, memory and disk of the two heavy verbs, from the model's shape and the pace measured on this machine.

Memory and disk are counted: copies of the weights, gradients, optimiser, activations. Time is the sum of what one step does,
as timed by `pace`, times the steps.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lfp_lens.core.errors import LensError
from lfp_lens.doctor.pace import measure
from lfp_lens.doctor.shapes import Shape, shape_of

if TYPE_CHECKING:
    from lfp_lens.config import RunConfig

FP32, ADAM = 4, 8
"""Bytes of a weight, and of its two moments."""
LIBRARIES = 0.55e9
"""Bytes that Python, torch and transformers take before any model is there."""
LEXICON_SECONDS = 5e-4
"""To decode and score one completion by a lexicon (spaCy's tokenizer), as measured on two ordinary cores."""
TEXT_BATCH = 32
"""Texts that models read at once outside of tuning, about."""
TRAINER = {"rloo": 1.3, "grpo": 1.3, "sft": 1.3, "reward_model": 1.3, "dpo": 2.0, "kto": 2.0}
"""What TRL's trainers take, relative to bare reading and learning: metrics, collation, logits once more (on imdb-neox-2m)."""
REFERENCE_COPIED = ("rloo", "grpo", "dpo", "kto")
"""Methods whose trainer holds a copy of the reference beside the base."""


@dataclass(frozen=True)
class Cost:
    """What one verb takes. A number is None where it cannot be known, and its text says why."""

    seconds: float | None
    """Wall time on this machine, as busy as it is while the doctor looks."""
    seconds_text: str
    """What it is made of."""
    memory: float
    """Peak in bytes, on the device of the config."""
    memory_text: str
    """What it is made of."""
    disk: float
    """Bytes written."""
    disk_text: str
    """What it is made of."""


@dataclass(frozen=True)
class Plan:
    """What one step of a tuning does, in numbers."""

    values: dict[str, Any]
    """The config's `[finetune]`, with the method's own values where none is given."""
    is_online: bool
    """Whether it samples in every step."""
    rows: int
    """Texts that are trained on in a step: two for every pair."""
    length: int
    """Tokens of each."""
    new: int
    """How many of them are sampled, or would be."""
    n_sampled_pairs: int
    """Prompts that pairs are made from before the training; 0 where pairs are given."""
    bf16: bool
    """Whether it computes in bf16."""


def plan_of(config: "RunConfig", shape: Shape) -> Plan:
    """Work out what a step does."""
    from lfp_lens.stages.finetune.methods import METHODS

    given = config.finetune
    method = METHODS[given.method]
    values: dict[str, Any] = {name: getattr(given, name) for name in type(given).model_fields}
    values |= {name: value for name, value in method.defaults.items() if values[name] is None}
    is_online, has_pairs = method.learns_from == "rewards", method.learns_from == "pairs"
    is_sampled = has_pairs and given.preferences is None
    short = 1 + round(sum(given.prompt_tokens) / 2) + given.max_new_tokens
    context = getattr(shape.config, "max_position_embeddings", None) or given.max_tokens
    return Plan(
        values=values,
        is_online=is_online,
        rows=values["batch_size"] * (2 if has_pairs else 1),
        length=short if is_online or is_sampled else min(given.max_tokens, context),
        new=given.max_new_tokens,
        n_sampled_pairs=config.n_texts - given.heldout if is_sampled else 0,
        bf16=_is_bf16(given.bf16, config.device),
    )


def tuning_cost(config: "RunConfig", shape: Shape, *, is_timed: bool) -> Cost:
    """Estimate `finetune`."""
    plan = plan_of(config, shape)
    seconds, told = _tuning_seconds(config, shape, plan) if is_timed else (None, "")
    memory, memory_told = _tuning_memory(plan, shape)
    trained = _trained(plan, shape)
    checkpoint = FP32 * trained
    resumed = 2 * (FP32 + ADAM) * trained if plan.values["save_steps"] else 0
    what = "adapter" if plan.values["lora"] else "checkpoint"
    disk_told = f"the {what} {size(checkpoint)}" + (
        f", and {size(resumed)} while it runs: two states to resume from, each of weights and Adam's moments"
        if resumed
        else ""
    )
    return Cost(seconds, told, memory, memory_told, checkpoint + resumed, disk_told)


def _tuning_seconds(config: "RunConfig", shape: Shape, plan: Plan) -> tuple[float, str]:
    values, online = plan.values, plan.is_online
    predicted = plan.new if online else None
    pace = measure(shape, config.device, plan.rows, plan.length, new=plan.new, predicted=predicted, bf16=plan.bf16)
    scoring, notes = _scoring(config, plan)
    passes, parts = (values["epochs"], values["minibatches"]) if online else (1, 1)
    again = pace.read if values["gradient_checkpointing"] else 0.0
    update = pace.update * _trained(plan, shape) / shape.weights
    trainer = TRAINER.get(values["method"], 1.0)
    of_step = {
        "sampling": pace.generate if online else 0.0,
        "scoring": scoring if online else 0.0,
        # Online: policy before the step and reference; pairs: the reference; texts and reward models: nothing.
        "reading": trainer * pace.read * (2 if online else 1 if values["method"] in ("dpo", "kto") else 0),
        "learning": trainer * passes * (pace.learn + again + parts * update),
    }
    step = sum(of_step.values())
    shares = ", ".join(f"{name} {duration(part)}" for name, part in of_step.items() if part)
    # Both models write and read what was held out; pairs are made of two samples per prompt.
    around = (2 * pace.generate + 3 * pace.read + 2 * scoring) * values["heldout"] / plan.rows
    around += (2 * pace.generate + 2 * scoring) * plan.n_sampled_pairs / plan.rows
    n = values["steps"]
    longest = "" if online or plan.n_sampled_pairs else f", if every text has {plan.length} tokens"
    told = f"{n} steps of {duration(step)} ({shares}{longest}), {duration(around)} around them"
    return n * step + around, "; ".join([told, *notes])


def _scoring(config: "RunConfig", plan: Plan) -> tuple[float, list[str]]:
    """Give the seconds to score a step's completions, and what could not be counted."""
    given = config.finetune
    n_lexicons = (1 if isinstance(given.reward, str) else len(given.reward)) - len(given.reward_models)
    seconds, notes = n_lexicons * LEXICON_SECONDS * plan.rows, []
    for name in given.reward_models:
        try:
            judge = shape_of(name, is_causal=False)
        except LensError as error:
            notes.append(f"without the reward's model: {error}")
            continue
        seconds += measure(judge, config.device, plan.rows, plan.length, predicted=0).read
    return seconds, notes


def _tuning_memory(plan: Plan, shape: Shape) -> tuple[float, str]:
    values, trained = plan.values, _trained(plan, shape)
    copies = 2 + (values["method"] in REFERENCE_COPIED and not values["lora"])
    models = copies * FP32 * shape.weights + (FP32 * trained if values["lora"] else 0)
    learning = (FP32 + ADAM) * trained
    rows = plan.rows / values["gradient_accumulation"] / (values["minibatches"] if plan.is_online else 1)
    tokens = max(1.0, rows) * plan.length
    positions = max(1.0, rows) * (plan.new if plan.is_online else plan.length)
    inner = getattr(shape.config, "intermediate_size", None) or 4 * shape.width
    heads = shape.config.num_attention_heads
    of_layer = tokens * (10 * shape.width + 3 * inner + 3 * heads * plan.length) * (2 if plan.bf16 else FP32)
    kept = (
        tokens * shape.width * FP32 * shape.layers + of_layer
        if values["gradient_checkpointing"]
        else of_layer * shape.layers
    )
    # Logits, their log-probabilities, and the gradient of both.
    logits = 4 * positions * shape.vocabulary * FP32
    told = (
        f"{copies} copies of {shape.weights / 1e6:,.1f} M weights in fp32 {size(models)}, gradients and Adam's moments "
        f"{size(learning)}, activations {size(kept)} and logits {size(logits)} of {tokens:,.0f} tokens at once"
    )
    return models + learning + kept + logits + LIBRARIES, f"{told}, libraries {size(LIBRARIES)}"


def _trained(plan: Plan, shape: Shape) -> int:
    rank = plan.values["lora"]
    return rank * shape.projections if rank else shape.weights


def _is_bf16(given: bool | None, device: str) -> bool:
    if given is not None or not device.startswith("cuda"):
        return bool(given)
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def size(count: float) -> str:
    """Write bytes for a reader.

    >>> size(2_500_000), size(3.2e9)
    ('2.5 MB', '3.2 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Write seconds for a reader.

    >>> duration(0.25), duration(90), duration(3 * 3600)
    ('0.25 s', '1.5 min', '3.0 h')
    """
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
