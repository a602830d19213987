"""RLOO and GRPO through TRL: a group of sampled completions per prompt, each scored, the group's others as baseline."""

from typing import Any

from lfp_lens.core.work import is_first
from lfp_lens.stages.finetune.job import Done, Job
from lfp_lens.stages.finetune.processes import wait
from lfp_lens.stages.finetune.trainer import arguments, per_device, texts_tokenizer, train


def rloo(job: Job) -> Done:
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024), KL inside the reward."""
    from trl import RLOOConfig, RLOOTrainer

    return _online(job, RLOOTrainer, RLOOConfig)


def grpo(job: Job) -> Done:
    """Group-relative policy optimisation (Shao et al. 2024), KL inside the loss."""
    from trl import GRPOConfig, GRPOTrainer

    return _online(job, GRPOTrainer, GRPOConfig)


def _online(job: Job, trainer_class: Any, config_class: Any) -> Done:
    from datasets import Dataset

    given = job.settings
    updates = given.minibatches * given.epochs
    tokenizer = texts_tokenizer(job.tokenizer)
    config = config_class(
        **arguments(job, updates=updates),
        per_device_train_batch_size=per_device(job, given.minibatches),
        steps_per_generation=given.minibatches * given.gradient_accumulation,
        num_iterations=given.epochs,
        num_generations=given.group_size,
        max_completion_length=given.max_new_tokens,
        beta=given.kl_coefficient,
        # Dropout would make the second reading of a rollout differ from the first.
        disable_dropout=True,
    )

    def reward(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any
    ) -> list[float]:
        whole_ids = [start + ids for start, ids in zip(tokenizer(prompts)["input_ids"], completion_ids)]
        whole = tokenizer.batch_decode(whole_ids, skip_special_tokens=True)
        assert job.score is not None
        return job.score(whole, completions).tolist()

    if job.lora is None and given.kl_coefficient:
        # TRL loads the reference from the policy's path; only a saved copy is the exact one.
        reference = job.work / "reference"
        if is_first():
            job.reference.save_pretrained(reference)
        wait()
        job.policy.config._name_or_path = str(reference)
    prompts = tokenizer.batch_decode(job.prompts, skip_special_tokens=True)
    # A rollout needs one prompt per group; of fewer, TRL would make no batch at all.
    times = -(-given.batch_size // given.group_size // len(prompts))
    trainer = trainer_class(
        model=job.policy,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts * times}),
        processing_class=tokenizer,
        peft_config=job.lora,
    )
    curve = train(trainer, job, updates=updates)
    return Done(trainer.accelerator.unwrap_model(trainer.model), curve)
