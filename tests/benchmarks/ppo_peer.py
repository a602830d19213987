"""The peer of the PPO benchmark, run by `.venv-bench`: a PPOTrainer step per line of input, its CPU seconds as output.

    python ppo_peer.py FOLDER ATTENTION

It stands alone: the package is not installed there.
"""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
)
from transformers.utils import logging
from trl.experimental.ppo import PPOConfig, PPOTrainer


class LengthReward(nn.Module):
    """A text's length as TRL's PPO wants a reward: a backbone whose last hidden state is the score."""

    base_model_prefix = "backbone"

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer, self.score = tokenizer, nn.Identity()

    def backbone(self, input_ids=None, attention_mask=None, **kwargs):
        kept = [ids[mask.bool()] for ids, mask in zip(input_ids, attention_mask)]
        texts = self.tokenizer.batch_decode(kept, skip_special_tokens=True)
        scores = torch.tensor([float(len(text)) for text in texts])
        return SimpleNamespace(hidden_states=[scores[:, None, None].expand(-1, input_ids.shape[1], 1)])


class Turns(TrainerCallback):
    """Say what a step cost, then wait for the next turn."""

    def __init__(self, replies):
        self.replies, self.started = replies, time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        print(json.dumps({"cpu_seconds": time.process_time() - self.started}), file=self.replies, flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        self.started = time.process_time()


def main(folder, attention):
    # What libraries print goes to the error stream: the output is for numbers.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    facts = json.loads((Path(folder) / "facts.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(facts["matmul"])
    place = str(Path(folder) / "model")
    policy, reference = (AutoModelForCausalLM.from_pretrained(place, attn_implementation=attention) for _ in range(2))
    value = AutoModelForSequenceClassification.from_pretrained(place, num_labels=1, attn_implementation=attention)
    tokenizer = AutoTokenizer.from_pretrained(place)
    prompts = Dataset.from_dict({"input_ids": facts["prompts"]})
    args = PPOConfig(
        output_dir=str(Path(folder) / "peer"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        per_device_train_batch_size=facts["batch"], gradient_accumulation_steps=1, num_mini_batches=facts["minibatches"],
        num_ppo_epochs=facts["epochs"], total_episodes=facts["batch"] * (facts["turns"] + 1), temperature=1.0,
        response_length=facts["new_tokens"], stop_token="eos", local_rollout_forward_batch_size=facts["batch"],
        learning_rate=facts["lr"], kl_coef=facts["kl_coefficient"], num_sample_generations=0, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    trainer = PPOTrainer(
        args=args, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=LengthReward(tokenizer),
        train_dataset=prompts, eval_dataset=prompts.select(range(8)), value_model=value, callbacks=[Turns(replies)],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
