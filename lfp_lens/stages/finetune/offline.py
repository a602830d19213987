"""DPO, KTO, supervised tuning and reward models through TRL: methods that learn from texts that exist already."""

import copy
from collections.abc import Sequence
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.parts.heads import with_head
from lfp_lens.stages.finetune.job import Done, Job
from lfp_lens.stages.finetune.trainer import arguments, per_device, texts_tokenizer, train


def dpo(job: Job) -> Done:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7); `kl_coefficient` is its beta."""
    from trl import DPOConfig, DPOTrainer

    pairs = [pair._asdict() for pair in job.preferences]
    return _against_reference(job, DPOTrainer, DPOConfig, pairs)


def kto(job: Job) -> Done:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024): every chosen text desirable, every rejected one not."""
    from trl import KTOConfig, KTOTrainer

    if per_device(job) < 2:
        raise LensError(
            f"kto reads its KL off mismatched prompts and completions, at least 2 completions at once; batch_size="
            f"{job.settings.batch_size} with gradient_accumulation={job.settings.gradient_accumulation} leaves 1."
        )
    rows = [
        {"prompt": pair.prompt, "completion": text, "label": label}
        for pair in job.preferences
        for text, label in ((pair.chosen, True), (pair.rejected, False))
    ]
    return _against_reference(job, KTOTrainer, KTOConfig, rows)


def sft(job: Job) -> Done:
    """Supervised tuning on texts as they are: the twin that saw the data and no reward."""
    from trl import SFTConfig, SFTTrainer

    tokenizer = texts_tokenizer(job.tokenizer)
    ids = tokenizer(list(job.texts), truncation=True, max_length=job.settings.max_tokens)["input_ids"]
    trainer = SFTTrainer(
        model=job.policy,
        args=SFTConfig(**arguments(job), per_device_train_batch_size=per_device(job), max_length=None),
        train_dataset=_table([{"input_ids": row} for row in ids]),
        processing_class=tokenizer,
        peft_config=job.lora,
    )
    return _trained(trainer, job)


def reward_model(job: Job) -> Done:
    """Fit a scalar head on pairs (Bradley and Terry 1952; Stiennon et al. 2020): r(chosen) above r(rejected)."""
    from trl import RewardConfig, RewardTrainer

    tokenizer = texts_tokenizer(job.tokenizer)
    model = with_head(job.policy)
    model.config.pad_token_id = tokenizer.pad_token_id
    rows = []
    for pair in job.preferences:
        chosen, rejected = tokenizer([pair.prompt + pair.chosen, pair.prompt + pair.rejected])["input_ids"]
        # The end is what differs, so a long text loses its beginning.
        kept = job.settings.max_tokens
        rows.append({"chosen_ids": chosen[-kept:], "rejected_ids": rejected[-kept:]})
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**arguments(job), per_device_train_batch_size=per_device(job), max_length=None),
        train_dataset=_table(rows),
        processing_class=tokenizer,
        peft_config=_with_head(job.lora),
    )
    return _trained(trainer, job)


def _against_reference(job: Job, trainer_class: Any, config_class: Any, rows: list[dict[str, Any]]) -> Done:
    config = config_class(
        **arguments(job),
        per_device_train_batch_size=per_device(job),
        max_length=job.settings.max_tokens,
        beta=job.settings.kl_coefficient,
    )
    trainer = trainer_class(
        model=job.policy,
        # Left out, TRL would load what lies on disk under the model's name; it also changes what it is given.
        ref_model=None if job.lora is not None else copy.deepcopy(job.reference),
        args=config,
        train_dataset=_table(rows),
        processing_class=texts_tokenizer(job.tokenizer),
        peft_config=job.lora,
    )
    trainer.train_dataset = trainer.train_dataset.map(
        _without_false_end, fn_kwargs={"job": job}, load_from_cache_file=False
    )
    return _trained(trainer, job)


def _without_false_end(row: dict[str, Any], job: Job) -> dict[str, Any]:
    """Take away the end-of-text that TRL puts behind every completion where the completion was cut, not ended.

    Samples are cut at `max_new_tokens`, given texts at `max_tokens`. With the false end, a policy learned to stop early: on
    pairs of 20-token samples half of its completions ended, none of the base's.
    """
    room = 0 if job.is_sampled else job.settings.max_tokens - 1 - len(row["prompt_ids"])
    return {
        name: ids[:-1] if len(ids) > room else ids
        for name, ids in row.items()
        if name.endswith("_ids") and name != "prompt_ids"
    }


def _trained(trainer: Any, job: Job) -> Done:
    curve = train(trainer, job)
    return Done(trainer.accelerator.unwrap_model(trainer.model), curve)


def _table(rows: Sequence[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(list(rows))


def _with_head(lora: Any) -> Any:
    """Give the adapter's settings for a sequence classifier, whose new head is trained whole."""
    if lora is None:
        return None
    from peft import TaskType

    given = copy.deepcopy(lora)
    given.task_type = TaskType.SEQ_CLS
    given.modules_to_save = sorted({*(given.modules_to_save or ()), "score"})
    return given
