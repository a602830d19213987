"""What a config will cost before it is run: time, memory, disk and money of the verbs that matter."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lfp_lens.core.errors import LensError
from lfp_lens.doctor.costs import Cost, duration, size, tuning_cost
from lfp_lens.doctor.dictionaries import dictionaries_cost
from lfp_lens.doctor.machine import Finding, is_here, memory
from lfp_lens.doctor.money import Asked, asked_of
from lfp_lens.doctor.shapes import Shape, shape_of
from lfp_lens.parts.chat import Prices

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
        at: prices of a paid labeller, from `prices`; None for those of the config, or of the package's dated table.

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
    return [*rows, *_paid(loaded, shape, at)]


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


def _paid(config: "RunConfig", shape: Shape, at: Prices | None) -> list[Finding]:
    found = [_asked(one, config) for one in asked_of(config, shape.width, shape.layers, at)]
    return found or [Finding("explain: money", "ok", f"none: the labeller {config.explain.labeller} asks nobody")]


def _asked(asked: Asked, config: "RunConfig") -> Finding:
    cost, given = asked.cost, config.explain
    told = (
        f"{asked.labeller}, at most {cost.requests:,} requests for {asked.features:,} features, about {cost.tokens_in:,} tokens "
        f"of questions and {cost.tokens_out:,} of answers"
    )
    if cost.prices is None or cost.usd is None:
        return Finding("explain: money", "warn", f"{told}; name the prices for a sum: --price-in USD --price-out USD")
    prices = f"at {cost.prices.tokens_in:g} and {cost.prices.tokens_out:g} USD per million tokens ({asked.source})"
    text = f"about {cost.usd:.2f} USD {prices}: {told}"
    if given.budget_usd is not None and cost.usd > given.budget_usd:
        return Finding(
            "explain: money", "warn", f"{text}. explain.budget_usd of {given.budget_usd:g} will stop it before"
        )
    return Finding("explain: money", "ok", text)


def _memory(device: str) -> tuple[float | None, str]:
    """Give the bytes of memory where the models will be, and whose they are; None where that is not known."""
    if device.startswith("cuda"):
        if not is_here(device):
            return None, ""
        import torch

        return float(torch.cuda.get_device_properties(torch.device(device)).total_memory), "on the card"
    return memory(), "in this machine"
