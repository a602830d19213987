"""Ten SAEs (five layers, two sizes): ours from one pass of the model, SAELens one by one and with its multi-SAE runner.

Only training is compared: our quality figures and matching, which SAELens' runners do not compute here, are left out.
Both sides train SAELens' standard SAE with SAELens' own step; what differs is where the activations come from. Our
shuffle buffer of 16 batches is filled before the first step, SAELens' here holds two: the difference counts against
ours, the more the shorter the run.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from lfp_lens.parts.activations import Encoded
from lfp_lens.parts.hooked import to_hooked
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import quiet_sae_lens
from lfp_lens.stages.train_sae.verb import _train_side
from tests.benchmarks.measure import Comparison, Shape, one_thread, product
from tests.tiny import tiny_tokenizer

SIZES = (1, 2)


def train_sae(
    shape: Shape | None = None,
    *,
    tokens: int = 65_536,
    peer_tokens: int = 8_192,
    batch_tokens: int = 1024,
    precisions: tuple[str, ...] = ("fp32", "fp32 oneDNN"),
) -> Iterator[Comparison]:
    """Compare training tokens that all ten SAEs have seen, per CPU-second. One by one on fewer tokens: it is slow."""
    shape = shape or Shape()
    lens = quiet_sae_lens()
    with one_thread():
        model = shape.model()
        hooked = to_hooked(model, tiny_tokenizer())
        rows = np.random.default_rng(0).integers(shape.vocabulary, size=(2 * tokens // shape.context, shape.context))
        for precision in precisions:
            with product(precision):
                ours = _rate(tokens, lambda: _ours(model, rows, shape, tokens, batch_tokens))
                multi = _rate(tokens, lambda: _multi(lens, hooked, rows, shape, tokens, batch_tokens))
                single = _rate(peer_tokens, lambda: _one_by_one(lens, hooked, rows, shape, peer_tokens, batch_tokens))
            for name, rate in (
                ("LanguageModelSAETrainingRunner, one by one", single),
                ("MultiSAETrainingRunner", multi),
            ):
                yield Comparison(
                    "train_sae", f"{len(SIZES) * len(shape.sites)} standard SAEs, width {shape.width}, batches of {batch_tokens}",
                    ours, rate, f"SAELens {name}", precision, "tokens per CPU-second, all SAEs, one thread",
                )  # fmt: skip


def _rate(tokens: int, job: Callable[[], Any]) -> float:
    start = time.process_time()
    job()
    return tokens / (time.process_time() - start)


def _ours(model: Any, rows: np.ndarray, shape: Shape, tokens: int, batch_tokens: int) -> None:
    pair = Pair(None, None, model, model, tiny_tokenizer(), "benchmark", None)
    texts = [Encoded(row.tolist(), []) for row in rows]
    options = {"architecture": "standard", "l1": None, "k": None, "lr": 1e-3, "tokens": tokens, "batch_tokens": batch_tokens,
               "seed": 0}  # fmt: skip
    with tqdm(disable=True) as bar:
        _train_side(pair, "tuned", tuple(shape.sites), SIZES, texts, bar, options)


def _one_by_one(lens: Any, hooked: Any, rows: np.ndarray, shape: Shape, tokens: int, batch_tokens: int) -> None:
    for site in shape.sites:
        for size in SIZES:
            config = lens.LanguageModelSAERunnerConfig(
                sae=_sae(lens, shape, size), hook_name=site, verbose=False, **_shared(lens, shape, tokens, batch_tokens)
            )
            lens.LanguageModelSAETrainingRunner(config, override_model=hooked, override_dataset=_dataset(rows)).run()


def _multi(lens: Any, hooked: Any, rows: np.ndarray, shape: Shape, tokens: int, batch_tokens: int) -> None:
    names = {f"{site} x{size}": (site, size) for site in shape.sites for size in SIZES}
    config = lens.MultiSAETrainingRunnerConfig(
        saes={name: _sae(lens, shape, size) for name, (_, size) in names.items()},
        hook_names={name: site for name, (site, _) in names.items()}, **_shared(lens, shape, tokens, batch_tokens),
    )  # fmt: skip
    lens.MultiSAETrainingRunner(
        config, override_model=hooked, override_dataset=_dataset(rows), override_saes=None
    ).run()


def _sae(lens: Any, shape: Shape, size: int) -> Any:
    return lens.StandardTrainingSAEConfig(
        d_in=shape.width, d_sae=size * shape.width, l1_coefficient=0.05, l1_warm_up_steps=1
    )


def _shared(lens: Any, shape: Shape, tokens: int, batch_tokens: int) -> dict[str, Any]:
    # A buffer of two batches: SAELens' default is smaller than one batch and is refused.
    return {
        "model_name": "benchmark", "dataset_path": "local", "streaming": False,
        "context_size": shape.context, "training_tokens": tokens, "store_batch_size_prompts": 8,
        "n_batches_in_buffer": 2 * batch_tokens // shape.context, "train_batch_size_tokens": batch_tokens, "lr": 1e-3,
        "device": "cpu", "prepend_bos": False, "n_checkpoints": 0, "checkpoint_path": None, "output_path": None,
        "logger": lens.LoggingConfig(log_to_wandb=False),
    }  # fmt: skip


def _dataset(rows: np.ndarray) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": rows.tolist()})
