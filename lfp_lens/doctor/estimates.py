"""What a config will cost before it is run: time, memory, disk and money of the verbs that matter."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lfp_lens.core.errors import LensError
from lfp_lens.doctor.costs import Cost, duration, size, tuning_cost
from lfp_lens.doctor.dictionaries import dictionaries_cost
from lfp_lens.doctor.machine import Finding, is_here, memory
from lfp_lens.doctor.money import Prices, calls
from lfp_lens.doctor.shapes import Shape, shape_of

if TYPE_CHECKING:
    from lfp_lens.config import RunConfig

LIGHTER = {
    "finetune": "Lower finetune.batch_size, or set its gradient_accumulation, gradient_checkpointing or lora",
    "train_sae": "Lower train_sae.sizes or sites, or take one of its sides",
}
"""Verb -> what to do where it does not fit into memory."""


def estimate(config: "str | Path | RunConfig", *, at: Prices | None = None) -> list[Finding]:
    """Estimate what `finetune`, `train_sae` and `explain` of a config cost on this machine; takes some seconds.

    Time comes from timing a cut-down twin of the model here, as busy as the machine is; for ppo and train_sae it was within a
    factor of 2 of the runs it was compared with (docs/cli.md). Memory and disk are counted. What cannot be known is said to
    be unknown.

    Args:
        config: a preset, a .toml file or a config.
        at: prices of a paid labeller, from `prices`; None names requests and tokens only.

    Raises:
        LensError: if the config itself cannot be used.
    """
    from lfp_lens.config import load_config

    loaded = load_config(config) if isinstance(config, (str, Path)) else config
    try:
        shape = shape_of(loaded.base)
    except LensError as error:
        return [Finding("cost", "warn", f"unknown: {error}")]
    found = [] if loaded.tuned else [("finetune", tuning_cost(loaded, shape, is_timed=is_here(loaded.device)))]
    found.append(("train_sae", dictionaries_cost(loaded, shape, is_timed=is_here(loaded.device))))
    rows = [row for verb, cost in found for row in _rows(verb, cost, loaded)]
    return [*rows, _asked(loaded, shape, at)]


def _rows(verb: str, cost: Cost, config: "RunConfig") -> Iterator[Finding]:
    if cost.seconds is None:
        text = f"unknown: {config.device} is not on this machine. Ask the doctor where the run will be"
        yield Finding(f"{verb}: time", "warn", text)
    else:
        yield Finding(f"{verb}: time", "ok", f"about {duration(cost.seconds)}: {cost.seconds_text}")
    there, where = _memory(config.device)
    fits = there is None or cost.memory <= there
    has = "" if there is None else f" of {size(there)} {where}"
    fix = "" if fits else f". {LIGHTER[verb]}"
    yield Finding(
        f"{verb}: memory", "ok" if fits else "warn", f"about {size(cost.memory)}{has}: {cost.memory_text}{fix}"
    )
    free = shutil.disk_usage(Path.cwd()).free
    yield Finding(
        f"{verb}: disk",
        "ok" if cost.disk <= free else "warn",
        f"about {size(cost.disk)} of {size(free)}: {cost.disk_text}",
    )


def _asked(config: "RunConfig", shape: Shape, at: Prices | None) -> Finding:
    labeller = config.explain.labeller
    if not labeller.startswith("openai:"):
        return Finding("explain: money", "ok", f"none: the labeller {labeller} asks nobody")
    asked = calls(config, shape.width, shape.layers)
    told = (
        f"at most {asked.requests:,} requests for {asked.features:,} features, about {asked.tokens_in:,} tokens of questions and "
        f"{asked.tokens_out:,} of answers"
    )
    if at is None:
        return Finding("explain: money", "warn", f"{told}; name the prices for a sum: --price-in USD --price-out USD")
    prices = f"at {at.tokens_in:g} and {at.tokens_out:g} USD per million tokens"
    return Finding("explain: money", "ok", f"about {asked.usd(at):.2f} USD {prices}: {told}")


def _memory(device: str) -> tuple[float | None, str]:
    """Give the bytes of memory where the models will be, and whose they are; None where that is not known."""
    if device.startswith("cuda"):
        if not is_here(device):
            return None, ""
        import torch

        return float(torch.cuda.get_device_properties(torch.device(device)).total_memory), "on the card"
    return memory(), "in this machine"
