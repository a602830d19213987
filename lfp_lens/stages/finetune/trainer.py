"""What all of TRL's trainers share here: arguments, checkpoints that a killed run resumes from, the learning curve."""

import copy
import json
import logging
import math
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lfp_lens.core.errors import LensError
from lfp_lens.parts.tables import quiet_datasets
from lfp_lens.stages.finetune.job import Curve, Job, warm_up

NAMES = {
    "loss": "loss",
    "reward": "reward",
    "entropy": "entropy_nats",
    "kl": "kl_nats",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "ended",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "margin": "margin",
    "accuracy": "accuracy",
    "learning_rate": "lr",
}
"""TRL's name of a logged value -> ours."""


def arguments(job: Job, *, updates: int = 1) -> dict[str, Any]:
    """Give the arguments that every trainer takes; `updates` is the number of optimiser steps in one of our steps."""
    given = job.settings
    device = str(job.policy.device)
    return {
        "output_dir": str(job.work),
        "max_steps": given.steps * updates,
        "learning_rate": given.lr,
        "lr_scheduler_type": "linear",
        # Their warm-up begins at the rate 0, with which a single step would do nothing.
        "warmup_steps": warm_up(given.steps) * updates if given.steps > 1 else 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_accumulation_steps": given.gradient_accumulation,
        "gradient_checkpointing": given.gradient_checkpointing,
        "bf16": given.bf16,
        "use_cpu": device == "cpu",
        "seed": given.seed,
        "data_seed": given.seed,
        "logging_steps": 1,
        # A loss that is not a number has to be seen, not smoothed away.
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if given.save_steps else "no",
        "save_steps": max(1, given.save_steps) * updates,
        "save_total_limit": 1,
        "report_to": given.report_to,
        "disable_tqdm": True,
        "dataloader_pin_memory": device.startswith("cuda"),
    }


def per_device(job: Job, parts: int = 1) -> int:
    """Give the rows that one process computes at once: the batch over processes, accumulation and `parts`."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    pieces = world * job.settings.gradient_accumulation * parts
    if job.settings.batch_size % pieces:
        raise LensError(
            f"batch_size={job.settings.batch_size} cannot be divided into {pieces} equal parts ({world} processes, "
            f"{job.settings.gradient_accumulation} accumulated, {parts} minibatches)."
        )
    return job.settings.batch_size // pieces


def texts_tokenizer(tokenizer: Any) -> Any:
    """Give a copy for TRL that begins every text with beginning-of-text and nothing else, and that can pad.

    The caller's tokenizer stays as it is: what is saved beside the checkpoint is that one.
    """
    from tokenizers.processors import TemplateProcessing

    twin = copy.deepcopy(tokenizer)
    if twin.pad_token is None:
        twin.pad_token = twin.eos_token
    twin.padding_side = "left"
    if twin.bos_token is not None:
        begin = TemplateProcessing(single=f"{twin.bos_token} $A", special_tokens=[(twin.bos_token, twin.bos_token_id)])
        twin.backend_tokenizer.post_processor = begin
    return twin


@contextmanager
def quiet_trl() -> Iterator[None]:
    """Silence what TRL and datasets print per row while inside; our bar, and errors, stay."""
    loggers = [logging.getLogger(f"trl.trainer.{name}_trainer") for name in ("dpo", "kto", "sft", "reward")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with quiet_datasets(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*gradient_checkpointing.*deprecated", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


@contextmanager
def same_config(model: Any) -> Iterator[None]:
    """Put a model's configuration back on exit: trainers switch its cache off and name a padding token."""
    names = ("use_cache", "pad_token_id", "_name_or_path")
    before = {name: getattr(model.config, name) for name in names}
    generation = copy.deepcopy(model.generation_config)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(model.config, name, value)
        model.generation_config = generation


@contextmanager
def own_randomness() -> Iterator[None]:
    """Put the random states of Python, NumPy and PyTorch back on exit: trainers seed them all."""
    import torch

    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def train(trainer: Any, job: Job, *, updates: int = 1) -> Curve:
    """Run a trainer to its end, from the newest checkpoint if a killed run left one; give one point per step of ours."""
    newest = _newest_checkpoint(job.work)
    with _watched(trainer, job, updates, newest):
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    # Of data that make no batch a trainer only warns.
    assert trainer.state.global_step == trainer.args.max_steps, (trainer.state.global_step, trainer.args.max_steps)
    return _curve(trainer.state.log_history, updates)


@contextmanager
def _watched(trainer: Any, job: Job, updates: int, resumed: Path | None) -> Iterator[None]:
    """Show a bar with reward and KL, and stop at the first value that is not finite."""
    from tqdm import tqdm
    from transformers import PrinterCallback, TrainerCallback

    bar = tqdm(total=job.settings.steps, desc="finetune", disable=not trainer.is_world_process_zero() or None)

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if resumed is not None:
                _load_weights(trainer, resumed)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            for name in ("loss", "grad_norm", "reward"):
                value = (logs or {}).get(name)
                if value is not None and not math.isfinite(value):
                    raise LensError(
                        f"The tuning diverged at step {state.global_step // updates}: {name} is {value}. Lower lr "
                        f"({job.settings.lr:g}) or raise kl_coefficient ({job.settings.kl_coefficient:g})."
                    )
            shown = {ours: f"{logs[name]:.2f}" for name, ours in NAMES.items() if name in (logs or {}) and ours != "lr"}
            bar.set_postfix(shown, refresh=False)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            bar.update(state.global_step // updates - bar.n)

    # Without its own bar the trainer would print every step.
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Watch())
    with bar:
        yield


def _load_weights(trainer: Any, checkpoint: Path) -> None:
    """Load every weight of a checkpoint again, by `from_pretrained`, which knows that names on disk may differ.

    The trainer loads by name: a GPT-NeoX, whose unembedding is called otherwise on disk, would go on with the start's.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not hasattr(model, "peft_config"):
        saved = type(model).from_pretrained(checkpoint, dtype=model.dtype, use_safetensors=True)
        model.load_state_dict(saved.state_dict())


def _newest_checkpoint(work: Path) -> Path | None:
    """Give the newest checkpoint that was written to its end: the trainer writes its state last."""
    whole = []
    for folder in work.glob("checkpoint-*"):
        try:
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        whole.append((state["global_step"], folder))
    return max(whole)[1] if whole else None


def _curve(history: Sequence[dict[str, Any]], updates: int) -> Curve:
    """Give the mean of every logged value over the optimiser steps of each of our steps."""
    points = [point for point in history if "loss" in point]
    steps = [points[at : at + updates] for at in range(0, len(points), updates)]
    found = {}
    for theirs, ours in NAMES.items():
        values = [[point[theirs] for point in step if theirs in point] for step in steps]
        # TRL logs a rollout's values once, others at every optimiser step.
        if all(values):
            found[ours] = np.array([float(np.mean(part)) for part in values])
    if "kl_nats" in found and "length" in found:
        # TRL reports KL per token; a reader compares nats per completion.
        found["kl_nats"] = found["kl_nats"] * found["length"]
    if "ended" in found:
        found["ended"] = 1 - found["ended"]
    return {"step": np.arange(len(steps)), **found}
