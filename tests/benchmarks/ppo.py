"""A PPO step: ours against the PPOTrainer of TRL 1.12.0, the last release that had one, and where our step's time goes.

TRL 1.12.0 cannot be installed beside the TRL of the package, so it runs in a second environment (`make bench` makes
`.venv-bench`) and in a process of its own, which takes turns with ours. Same model, prompts, batch, minibatches, epochs, new
tokens and reward, which is the length of a text and costs neither side anything. TRL's policy has a value model of the
policy's size beside it, as in its documentation; ours has a linear head.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from lfp_lens.parts.rewards import make_reward
from lfp_lens.parts.speed import fast_matmul, short_text_attention
from lfp_lens.stages.finetune import ppo as ours
from lfp_lens.stages.finetune import rollout
from lfp_lens.stages.finetune.job import Job, Score, Settings
from lfp_lens.stages.finetune.processes import Team
from tests.benchmarks.measure import Comparison, Profile, Shape, one_thread

ROOT = Path(__file__).parents[2]
PEER = (str(ROOT / ".venv-bench/bin/python"), str(Path(__file__).with_name("ppo_peer.py")))
SMALL = Shape(layers=6, width=128, heads=4, vocabulary=4096, context=64)
"""The shape of a model that PPO tunes in minutes on two cores."""
LR, KL_COEFFICIENT, EPOCHS, MINIBATCHES = 3e-4, 0.2, 2, 2


def ppo(
    shape: Shape | None = None,
    *,
    batch: int = 128,
    new_tokens: int = 20,
    turns: int = 6,
    peer: Sequence[str] = PEER,
    attentions: Sequence[str] = ("sdpa", "eager"),
) -> Iterator[Comparison | Profile]:
    """Compare completions per CPU-second, the best of the turns; then give the shares of our own step."""
    shape = shape or SMALL
    if not Path(peer[0]).exists():
        raise SystemExit(f"The peer's Python {peer[0]} is missing: `make bench` makes it.")
    with one_thread(), tempfile.TemporaryDirectory() as folder, fast_matmul() as is_fast, ExitStack() as stack:
        work = Path(folder)
        job = _job(shape, work, batch, new_tokens, lambda whole, texts: np.array([float(len(text)) for text in texts]))
        facts = {
            "batch": batch, "new_tokens": new_tokens, "minibatches": MINIBATCHES, "epochs": EPOCHS, "lr": LR,
            "kl_coefficient": KL_COEFFICIENT, "turns": turns, "prompts": [list(ids) for ids in job.prompts],
            "matmul": torch.get_float32_matmul_precision(),
        }  # fmt: skip
        (work / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        players: dict[str, Callable[[], float]] = {"ours": _our_steps(job)}
        for attention in attentions:
            players[attention] = stack.enter_context(_peer_steps([*peer, folder, attention]))
        seconds: dict[str, list[float]] = {name: [] for name in players}
        with short_text_attention(job.policy, job.reference):
            for _ in range(turns):
                for name, play in players.items():
                    seconds[name].append(play())
        rate = {name: batch / min(taken) for name, taken in seconds.items()}
        precision = "fp32 oneDNN" if is_fast else "fp32"
        for attention in attentions:
            yield Comparison(
                "ppo", f"PPO steps of {batch} completions of {new_tokens} tokens, {EPOCHS} epochs of {MINIBATCHES} minibatches, "
                f"width {shape.width}, {shape.layers} layers",
                rate["ours"], rate[attention], f"TRL 1.12.0 PPOTrainer, {attention} attention", precision,
                "completions per CPU-second, one thread",
            )  # fmt: skip
        vader = make_reward("vader")
        yield _profile(_job(shape, work, batch, new_tokens, lambda whole, texts: vader(texts)), batch, new_tokens)


def _job(shape: Shape, work: Path, batch: int, new_tokens: int, score: Score) -> Job:
    """Make a job whose model and tokenizer also lie in `work/model`."""
    tokenizer = _tokenizer(shape.vocabulary)
    policy, reference = shape.model(), shape.model()
    policy.save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    generator = np.random.default_rng(0)
    prompts = [
        [0, *generator.integers(2, shape.vocabulary, size=n).tolist()] for n in generator.integers(2, 10, size=1024)
    ]
    settings = Settings(
        steps=1000, batch_size=batch, minibatches=MINIBATCHES, epochs=EPOCHS, group_size=1, max_new_tokens=new_tokens,
        max_tokens=shape.context, lr=LR, kl_coefficient=KL_COEFFICIENT, kl_target=None, gradient_accumulation=1,
        gradient_checkpointing=False, bf16=False, save_steps=0, report_to="none", seed=0,
    )  # fmt: skip
    return Job(policy, reference, tokenizer, prompts, score, (), (), None, settings, work)


def _tokenizer(vocabulary: int) -> Any:
    """Give a tokenizer whose every id is one word, most of them in VADER's lexicon, so that texts are like real ones."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from lfp_lens.parts.lexicons import load_lexicon

    words = [word for word in load_lexicon("vader") if word.isalpha()]
    names = ["<|endoftext|>", "<|padding|>", *words, *(f"word{at}" for at in range(vocabulary))][:vocabulary]
    inner = Tokenizer(models.WordLevel({name: at for at, name in enumerate(names)}, unk_token=names[0]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=names[0], eos_token=names[0], pad_token=names[1], padding_side="left"
    )


def _our_steps(job: Job) -> Callable[[], float]:
    """Give a function that runs our next step and gives its CPU seconds; the first step is run here, as warm-up."""
    torch.manual_seed(0)
    _, learner = ours._start(job)
    ours._step(job, learner, Team(0, 1), 0)
    done = [0]

    def play() -> float:
        done[0] += 1
        start = time.process_time()
        ours._step(job, learner, Team(0, 1), done[0])
        return time.process_time() - start

    return play


@contextmanager
def _peer_steps(command: Sequence[str]) -> Iterator[Callable[[], float]]:
    """Yield the same for the peer, a process that runs a step for every line it is given and says its CPU seconds."""
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet) as process:
        assert process.stdin is not None and process.stdout is not None
        reply = process.stdout.readline  # the warm-up step
        _seconds(reply())

        def play() -> float:
            process.stdin.write("go\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            return _seconds(reply())

        try:
            yield play
        finally:
            process.kill()


def _seconds(line: str) -> float:
    if not line:
        raise SystemExit("The peer stopped; its message stands above.")
    return float(json.loads(line)["cpu_seconds"])


def _profile(job: Job, batch: int, new_tokens: int) -> Profile:
    """Give the share of our step's CPU time that each part takes, and the share inside PyTorch's operators."""
    spent: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            start = time.process_time()
            try:
                return function(*given, **named)
            finally:
                spent[name] = spent.get(name, 0.0) + time.process_time() - start

        return run

    assert job.score is not None
    job = dataclasses.replace(job, score=timed("reward", job.score))
    with short_text_attention(job.policy, job.reference):
        play = _our_steps(job)
        spent.clear()
        with ExitStack() as stack:
            for place, name, shown in (
                (ours, "roll_out", "rollout"), (rollout, "_sample", "generation"), (ours, "reference_log_probs", "reference"),
                (ours, "_losses", "forward"), (torch.Tensor, "backward", "backward"),
                (torch.optim.AdamW, "step", "optimiser"), (torch.nn.utils, "clip_grad_norm_", "clipping"),
            ):  # fmt: skip
                stack.enter_context(patch.object(place, name, timed(shown, getattr(place, name))))
            total = sum(play() for _ in range(3))
        spent["decoding"] = spent.pop("rollout") - spent["generation"]
        spent["rest"] = total - sum(spent.values())
        shares = {name: 100 * seconds / total for name, seconds in spent.items()}
        start = time.perf_counter()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            play()
            watched = time.perf_counter() - start
    inside = sum(one.self_cpu_time_total for one in found.key_averages()) / 1e6
    arithmetic = ("generation", "reference", "forward", "backward", "optimiser", "clipping")
    shares = {"model arithmetic": sum(shares[name] for name in arithmetic), **shares}
    return Profile(
        "ppo", f"our step, {batch} completions of {new_tokens} tokens, VADER reward", total / 3,
        shares | {"inside PyTorch operators (watched, by the clock)": 100 * inside / watched},
    )  # fmt: skip


if __name__ == "__main__":
    for one in ppo():
        print(one.line(), file=sys.stdout, flush=True)
