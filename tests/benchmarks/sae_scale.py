"""What a longer run and more SAEs cost: peak memory from 0.2 M to 2 M tokens, and forward passes of forty SAEs beside ten."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from lfp_lens.parts.activations import Encoded
from lfp_lens.parts.harvest import Blocks, Models, Stream, TextBatches, text_batches
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.stages.train_sae.learner import Schedule
from lfp_lens.stages.train_sae.plan import make_specs
from lfp_lens.stages.train_sae.training import train
from tests.benchmarks.measure import Growth, Shape, one_thread

SMALL = Shape(width=128, heads=4, vocabulary=8192)
SETTINGS = {"architecture": "standard", "l1": None, "k": None, "lr": 1e-3}


def sae_scale(
    shape: Shape | None = None,
    *,
    short: int = 200_000,
    long: int = 2_000_000,
    tokens: int = 65_536,
    batch_tokens: int = 4096,
) -> Iterator[Growth]:
    """Print both growths; memory is measured in processes of their own."""
    shape = shape or SMALL
    peaks = [_peak(shape, n, batch_tokens) for n in (short, long)]
    yield Growth(
        "sae_scale", f"peak memory, {short:,} to {long:,} training tokens, 10 SAEs of width {shape.width}", *peaks, "MB"
    )
    with one_thread(), fast_matmul():
        few = _forward(shape, (1, 2), ("base",), tokens, batch_tokens)
        many = _forward(shape, (1, 2, 4, 8), ("base", "tuned"), tokens, batch_tokens)
    yield Growth(
        "sae_scale", "forward passes of 10 SAEs to 40 (twice the sizes, both models)", few, many, "CPU-seconds"
    )


def run(shape: Shape, tokens: int, batch_tokens: int) -> None:
    """Train ten SAEs on one model, as the verb does; texts are as many as a short run needs."""
    texts, reader = _reader(shape, ("base",), 200_000)
    specs = make_specs(shape.sites, (1, 2), ("base",), SETTINGS, width=shape.width, seeds=(0,))
    source = Blocks(reader, texts.n_tokens, 8 * batch_tokens, 0)
    with fast_matmul():
        train(specs, source, Schedule(tokens // batch_tokens, batch_tokens))


class Timed:
    """A reader that counts its CPU-seconds."""

    def __init__(self, reader: Models) -> None:
        self.reader, self.seconds = reader, 0.0

    def read(self, at: int) -> Mapping[Stream, torch.Tensor]:
        """Read a batch."""
        start = time.process_time()
        found = self.reader.read(at)
        self.seconds += time.process_time() - start
        return found


def _forward(shape: Shape, sizes: tuple[int, ...], sides: tuple[str, ...], tokens: int, batch_tokens: int) -> float:
    texts, reader = _reader(shape, sides, tokens)
    timed = Timed(reader)
    specs = make_specs(shape.sites, sizes, sides, SETTINGS, width=shape.width, seeds=(0,))
    train(specs, Blocks(timed, texts.n_tokens, 2 * batch_tokens, 0), Schedule(tokens // batch_tokens, batch_tokens))
    return timed.seconds


def _reader(shape: Shape, sides: tuple[str, ...], tokens: int) -> tuple[TextBatches, Models]:
    model: Any = shape.model()
    rows = np.random.default_rng(0).integers(1, shape.vocabulary, size=(max(2, tokens // shape.context), shape.context))
    encoded = [Encoded(row.tolist(), []) for row in rows]
    texts = text_batches(encoded, width=shape.width, begin=0, device=torch.device("cpu"))
    return texts, Models(dict.fromkeys(sides, model), texts, [(side, site) for side in sides for site in shape.sites])


def _peak(shape: Shape, tokens: int, batch_tokens: int) -> float:
    code = (
        "import json, sys; from tests.benchmarks import sae_scale; from tests.benchmarks.measure import Shape; "
        "given = json.loads(sys.argv[1]); sae_scale.run(Shape(**given['shape']), given['tokens'], given['batch_tokens']); "
        "print(sae_scale.peak_megabytes())"
    )
    given = json.dumps({"shape": vars(shape), "tokens": tokens, "batch_tokens": batch_tokens})
    done = subprocess.run([sys.executable, "-c", code, given], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def peak_megabytes() -> float:
    """Give the largest memory that this process has taken."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
