"""What every benchmark shares: the shape of the model, CPU seconds, and the line that is printed."""

import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lfp_lens.parts.speed import fast_matmul


@dataclass(frozen=True)
class Comparison:
    """One number of ours beside one of a peer."""

    bench: str
    what: str
    ours: float
    peer: float
    peer_name: str
    precision: str
    unit: str

    def line(self) -> str:
        """Give the JSON line; `ratio` above 1 means that ours does more per CPU-second."""
        rounded = {name: round(value, 1 if abs(value) >= 10 else 4) if isinstance(value, float) else value
                   for name, value in dataclasses.asdict(self).items()}  # fmt: skip
        return json.dumps(rounded | {"ratio": round(self.ours / self.peer, 2)})


@dataclass(frozen=True)
class Figure:
    """One figure of a model, with its interval where it has one, and what it should reach (empty: nothing is asked)."""

    bench: str
    what: str
    value: float
    low: float
    high: float
    n: int
    aim: str = ""

    def line(self) -> str:
        """Give the JSON line."""
        found = dataclasses.asdict(self).items()
        return json.dumps({name: round(part, 4) if isinstance(part, float) else part for name, part in found})


@dataclass(frozen=True)
class Floor:
    """How near we are to what the matrix products alone would take."""

    bench: str
    what: str
    ours: float
    limit: float
    precision: str
    unit: str

    def line(self) -> str:
        """Give the JSON line; `percent` is the share of the limit that is reached."""
        return json.dumps({"bench": self.bench, "what": self.what, "ours": round(self.ours, 1),
                           "limit of the products alone": round(self.limit, 1), "percent": round(100 * self.ours / self.limit),
                           "precision": self.precision, "unit": self.unit})  # fmt: skip


@dataclass(frozen=True)
class Growth:
    """What something costs when there is more to do."""

    bench: str
    what: str
    less: float
    more: float
    unit: str

    def line(self) -> str:
        """Give the JSON line; `ratio` is more over less."""
        rounded = {"less": round(self.less, 2), "more": round(self.more, 2)}
        return json.dumps({"bench": self.bench, "what": self.what, **rounded, "unit": self.unit,
                           "ratio": round(self.more / self.less, 3)})  # fmt: skip


@dataclass(frozen=True)
class Skipped:
    """A precision that means nothing on this machine."""

    bench: str
    precision: str
    reason: str

    def line(self) -> str:
        """Give the JSON line."""
        return json.dumps({"bench": self.bench, "precision": self.precision, "skipped": self.reason})


@dataclass(frozen=True)
class Profile:
    """Where the CPU time of one step goes."""

    bench: str
    what: str
    cpu_seconds: float
    shares: Mapping[str, float]

    def line(self) -> str:
        """Give the JSON line; shares are in percent of the step's CPU seconds."""
        shares = {name: round(value, 1) for name, value in self.shares.items()}
        return json.dumps({"bench": self.bench, "what": self.what, "cpu_seconds": round(self.cpu_seconds, 3),
                           "percent": shares})  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """The shape of a GPT-NeoX; the default is Pythia-70m's."""

    layers: int = 6
    width: int = 512
    heads: int = 8
    vocabulary: int = 50_304
    context: int = 128

    def model(self) -> Any:
        """Give a model of this shape with random weights: speed does not depend on them."""
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

        torch.manual_seed(0)
        config = GPTNeoXConfig(
            vocab_size=self.vocabulary, hidden_size=self.width, num_hidden_layers=self.layers, bos_token_id=0,
            num_attention_heads=self.heads, intermediate_size=4 * self.width, max_position_embeddings=2048, eos_token_id=0,
        )  # fmt: skip
        return GPTNeoXForCausalLM(config).eval()

    @property
    def sites(self) -> list[str]:
        """The last five layers, as in the paper."""
        return [f"blocks.{layer}.hook_mlp_out" for layer in range(self.layers)][-5:]


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread while inside, and let the libraries' own warnings pass."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def product(precision: str) -> Iterator[None]:
    """Use PyTorch's default fp32 product (also for `bf16`), or `fp32 oneDNN`, the one that the stages use where it is exact."""
    if precision != "fp32 oneDNN":
        yield
        return
    with fast_matmul():
        yield


def cpu_seconds(jobs: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, float]:
    """Give the least CPU seconds of each job over the repeats; the jobs take turns. The first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            found[name].append(time.process_time() - start)
    return {name: min(seconds[1:]) for name, seconds in found.items()}


def why_not(precision: str) -> str | None:
    """Say why a precision cannot be measured here: a product that is not fp32, or bfloat16 that is emulated; else None."""
    if precision == "fp32 oneDNN":
        with fast_matmul() as is_exact:
            return None if is_exact else "the faster product does not agree with fp64 to 1e-6 here"
    if precision == "bf16" and product_rate("bf16") < product_rate("fp32"):
        return "bfloat16 products are slower than fp32 ones: they are emulated here"
    return None


def product_rate(precision: str) -> float:
    """Give 10^9 operations per CPU-second of one large matrix product, the best of several; inside `product(precision)`."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(4096, 512).to(dtype), torch.randn(512, 1024).to(dtype)
    seconds = cpu_seconds({"product": lambda: left @ right}, repeats=10)["product"]
    return 2 * 4096 * 512 * 1024 / seconds / 1e9
