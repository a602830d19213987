"""Ten SAEs (five layers, two sizes): ours from one pass of the model, SAELens one by one and with its multi-SAE runner.

Only training is compared: our quality figures and matching, which SAELens' runners do not compute here, are left out. Both
sides train SAELens' standard SAE with SAELens' optimiser from the same number of tokens. Every ratio is printed twice: with
the peer at its defaults, and with the peer at our precision. The floor is the time that the matrix products alone would
take at the rate of one such product on this machine.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from lfp_lens.parts.activations import Encoded
from lfp_lens.parts.harvest import Blocks, Models, text_batches
from lfp_lens.parts.hooked import to_hooked
from lfp_lens.parts.saes import quiet_sae_lens
from lfp_lens.stages.train_sae.learner import Schedule
from lfp_lens.stages.train_sae.plan import make_specs
from lfp_lens.stages.train_sae.training import train
from tests.benchmarks.measure import Comparison, Floor, Shape, Skipped, one_thread, product, product_rate, why_not
from tests.tiny import tiny_tokenizer

SIZES = (1, 2)
BUFFER_BATCHES = 2
"""Batches in the shuffle buffer, on both sides. SAELens reads half a buffer more than it trains on."""


def train_sae(
    shape: Shape | None = None,
    *,
    tokens: int = 49_152,
    peer_tokens: int = 16_384,
    batch_tokens: int = 4096,
    precisions: tuple[str, ...] = ("fp32", "fp32 oneDNN", "bf16"),
) -> Iterator[Comparison | Floor | Skipped]:
    """Compare training tokens that all ten SAEs have seen, per CPU-second. One by one on fewer tokens: it is slow."""
    shape = shape or Shape()
    lens = quiet_sae_lens()
    what = f"{len(SIZES) * len(shape.sites)} standard SAEs, width {shape.width}, batches of {batch_tokens}"
    unit = "tokens per CPU-second, all SAEs, one thread"
    with one_thread():
        model = shape.model()
        hooked = to_hooked(model, tiny_tokenizer())
        rows = np.random.default_rng(0).integers(1, shape.vocabulary, size=(2 * tokens // shape.context, shape.context))
        rates: dict[tuple[str, str], float] = {}
        for precision in precisions:
            reason = why_not(precision)
            if reason:
                yield Skipped("train_sae", precision, reason)
                continue
            peers = {"MultiSAETrainingRunner": (_multi, tokens)}
            if precision != "bf16":
                peers["LanguageModelSAETrainingRunner, one by one"] = (_one_by_one, peer_tokens)
            with product(precision):
                ours = _rate(tokens, lambda p=precision: _ours(model, rows, shape, tokens, batch_tokens, p == "bf16"))
                floor = flops_per_token(shape) / (1e9 * product_rate(precision))
                yield Floor("train_sae", what, ours, 1 / floor, precision, unit)
                for name, (job, n) in peers.items():
                    rates[name, precision] = _rate(
                        n,
                        lambda job=job, n=n, p=precision: job(lens, hooked, rows, shape, n, batch_tokens, p == "bf16"),
                    )
                    default = rates[name, precisions[0]]
                    if default != rates[name, precision]:
                        yield Comparison(
                            "train_sae", what, ours, default, f"SAELens {name}, at its defaults", precision, unit
                        )
                    yield Comparison("train_sae", what, ours, rates[name, precision], f"SAELens {name}, at {precision}",
                                     precision, unit)  # fmt: skip


def flops_per_token(shape: Shape) -> float:
    """Count the operations that no implementation saves: the blocks up to the deepest site, and five products per SAE."""
    deepest = max(int(site.split(".")[1]) for site in shape.sites) + 1
    # Attention, the MLP of four times the width, and the two products with the keys and values before each token.
    forward = deepest * (24 * shape.width**2 + 2 * shape.context * shape.width)
    return forward + sum(5 * 2 * shape.width * size * shape.width for size in SIZES for _ in shape.sites)


def _rate(tokens: int, job: Callable[[], Any]) -> float:
    start = time.process_time()
    job()
    return tokens / (time.process_time() - start)


def _ours(model: Any, rows: np.ndarray, shape: Shape, tokens: int, batch_tokens: int, bf16: bool) -> None:
    texts = text_batches(
        [Encoded(row.tolist(), []) for row in rows], width=shape.width, begin=0, device=torch.device("cpu")
    )
    settings = {"architecture": "standard", "l1": None, "k": None, "lr": 1e-3}
    specs = make_specs(shape.sites, SIZES, ("tuned",), settings, width=shape.width, seeds=(0,))
    reader = Models({"tuned": model}, texts, [("tuned", site) for site in shape.sites], bf16)
    source = Blocks(reader, texts.n_tokens, BUFFER_BATCHES * batch_tokens, 0)
    train(specs, source, Schedule(tokens // batch_tokens, batch_tokens, bf16))


def _one_by_one(
    lens: Any, hooked: Any, rows: np.ndarray, shape: Shape, tokens: int, batch_tokens: int, bf16: bool
) -> None:
    for site in shape.sites:
        for size in SIZES:
            config = lens.LanguageModelSAERunnerConfig(
                sae=_sae(lens, shape, size), hook_name=site, verbose=False,
                **_shared(lens, shape, tokens, batch_tokens, bf16)
            )  # fmt: skip
            lens.LanguageModelSAETrainingRunner(config, override_model=hooked, override_dataset=_dataset(rows)).run()


def _multi(lens: Any, hooked: Any, rows: np.ndarray, shape: Shape, tokens: int, batch_tokens: int, bf16: bool) -> None:
    names = {f"{site} x{size}": (site, size) for site in shape.sites for size in SIZES}
    config = lens.MultiSAETrainingRunnerConfig(
        saes={name: _sae(lens, shape, size) for name, (_, size) in names.items()},
        hook_names={name: site for name, (site, _) in names.items()}, **_shared(lens, shape, tokens, batch_tokens, bf16),
    )  # fmt: skip
    lens.MultiSAETrainingRunner(
        config, override_model=hooked, override_dataset=_dataset(rows), override_saes=None
    ).run()


def _sae(lens: Any, shape: Shape, size: int) -> Any:
    return lens.StandardTrainingSAEConfig(
        d_in=shape.width, d_sae=size * shape.width, l1_coefficient=2.0, l1_warm_up_steps=1
    )


def _shared(lens: Any, shape: Shape, tokens: int, batch_tokens: int, bf16: bool) -> dict[str, Any]:
    # SAELens' default buffer is smaller than one batch here and is refused.
    return {
        "model_name": "benchmark", "dataset_path": "local", "streaming": False,
        "context_size": shape.context, "training_tokens": tokens, "store_batch_size_prompts": 8,
        "n_batches_in_buffer": BUFFER_BATCHES * batch_tokens // shape.context,
        "train_batch_size_tokens": batch_tokens, "lr": 1e-3,
        "device": "cpu", "prepend_bos": False, "n_checkpoints": 0, "checkpoint_path": None, "output_path": None,
        "logger": lens.LoggingConfig(log_to_wandb=False), "autocast": bf16, "autocast_lm": bf16,
    }  # fmt: skip


def _dataset(rows: np.ndarray) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": rows.tolist()})
