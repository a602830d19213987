"""How fast this machine runs a model of some shape: a cut-down twin with random weights does the real work for a moment.

The twin has one layer, then a few, and a small vocabulary; what a layer costs is the difference. The unembedding is measured
as the matrix product it is. So a model of any size is timed without loading it.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lfp_lens.doctor.shapes import Shape

SMALL_VOCABULARY, NEW_TOKENS = 256, 6
HEAD_VALUES, HEAD_VOCABULARY = 16_000_000, 16384
"""Log-probabilities computed at once while measuring, and the most tokens they run over: larger ones are scaled."""
LARGE_LAYER = 20_000_000
"""Weights from which on a layer is so large that the twin has at most two."""
FLOPS = {"cpu": 4e9, "cuda": 1e12, "mps": 1e11}
"""Floating-point operations that one forward pass of a layer may cost while measuring; longer ones are scaled."""
SECONDS = 0.2
"""For one measurement, if the first try does not take longer."""


@dataclass(frozen=True)
class Pace:
    """Seconds that a batch of rows takes here."""

    generate: float
    """Sampling the new tokens of every row."""
    read: float
    """One forward pass over every row, and log-probabilities at the positions that are predicted."""
    learn: float
    """The same with its backward pass."""
    update: float
    """One optimiser step on every weight."""


def measure(
    shape: Shape, device: str, rows: int, length: int, *, new: int = 0, predicted: int | None = None, bf16: bool = False
) -> Pace:
    """Time a model's work on `rows` texts of `length` tokens, of which the last `new` are sampled first.

    Args:
        shape: the model.
        device: where.
        rows: texts in a batch.
        length: tokens of each.
        new: tokens of each that are sampled; 0 samples none.
        predicted: positions of each whose log-probabilities are read; None is all.
        bf16: compute under bf16 autocast.
    """
    import torch

    from lfp_lens.parts.speed import fast_matmul

    kind = torch.device(device).type
    positions = rows * (length if predicted is None else predicted)
    fit = max(1, min(rows, int(FLOPS[kind] / (2 * shape.layer_weights * length))))
    least, most = 1, min(shape.layers, 2 if shape.layer_weights > LARGE_LAYER else 4)
    with torch.random.fork_rng(), fast_matmul(), torch.autocast(kind, torch.bfloat16, enabled=bf16):
        one, some = (_layers(shape, device, count, fit, length, new) for count in (least, most))
        head_read, head_learn = _head(shape, device, positions)
        pick = _pick(shape, device, min(rows, 256)) if new else 0.0
        per_weight = _per_weight(device)
    scale = rows / fit

    def whole(at: int) -> float:
        slope = max(0.0, some[at] - one[at]) / max(1, most - least)
        return one[at] + slope * (shape.layers - least)

    return Pace(
        generate=whole(0) * scale + new * rows * pick if new else 0.0,
        read=whole(1) * scale + positions * head_read,
        learn=whole(2) * scale + positions * head_learn,
        update=per_weight * shape.weights,
    )


def _layers(shape: Shape, device: str, layers: int, rows: int, length: int, new: int) -> tuple[float, float, float]:
    """Time sampling, reading and learning with a twin of so many layers."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    from lfp_lens.parts.generation import generate
    from lfp_lens.parts.speed import short_text_attention

    torch.manual_seed(0)
    kind = AutoModelForCausalLM if shape.is_causal else AutoModel
    model = kind.from_config(shape.cut(layers, SMALL_VOCABULARY)).to(device).eval()
    ids_BS = torch.randint(1, SMALL_VOCABULARY, (rows, length), device=device)
    mask_BS = torch.ones_like(ids_BS)
    trunk = model.base_model

    def sample(n: int) -> Callable[[], Any]:
        # The end, token 0, may come up by chance: a row that ends is computed on all the same.
        start = ids_BS[:, : length - new]
        return lambda: generate(model, start, mask_BS[:, : length - new], max_new_tokens=n, ends=[0])

    def learn() -> None:
        trunk(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state.square().mean().backward()
        model.zero_grad()

    with short_text_attention(model):
        with torch.no_grad():
            read = _seconds(lambda: trunk(input_ids=ids_BS, attention_mask=mask_BS), device)
            sampling = 0.0
            if new:
                few = min(new, NEW_TOKENS)
                first, more = (_seconds(sample(n), device) for n in (1, 1 + few))
                sampling = first + (new - 1) * max(0.0, more - first) / few
        return sampling, read, _seconds(learn, device)


def _head(shape: Shape, device: str, positions: int) -> tuple[float, float]:
    """Time, per position, log-probabilities and entropy over the vocabulary, and the same with a backward pass."""
    import torch

    columns = min(shape.vocabulary, HEAD_VOCABULARY)
    fit = int(FLOPS[torch.device(device).type] / (2 * columns * shape.width))
    rows = max(1, min(positions, fit, HEAD_VALUES // columns))
    weight_VD = _unembedding(columns, shape, device).requires_grad_()
    hidden_ND = torch.randn(rows, shape.width, device=device, requires_grad=True)

    def read() -> Any:
        log_probs_NV = (hidden_ND @ weight_VD.T).float().log_softmax(-1)
        (log_probs_NV.detach().exp() * log_probs_NV.detach()).sum(-1)
        return log_probs_NV[:, 0]

    def learn() -> None:
        read().sum().backward()
        weight_VD.grad = hidden_ND.grad = None

    with torch.no_grad():
        reading = _seconds(read, device)
    scale = shape.vocabulary / columns / rows
    return reading * scale, _seconds(learn, device) * scale


def _pick(shape: Shape, device: str, rows: int) -> float:
    """Time, per row, drawing a token from the whole vocabulary."""
    import torch

    columns = min(shape.vocabulary, HEAD_VOCABULARY)
    weight_VD, hidden_ND = _unembedding(columns, shape, device), torch.randn(rows, shape.width, device=device)
    seconds = _seconds(lambda: torch.multinomial((hidden_ND @ weight_VD.T).float().softmax(-1), 1), device)
    return seconds * shape.vocabulary / columns / rows


def _unembedding(columns: int, shape: Shape, device: str) -> Any:
    import torch

    # Weights of order 1 make predictions so sharp that gradients are denormal numbers, which a CPU computes 20 times slower.
    return torch.randn(columns, shape.width, device=device) / shape.width


def _per_weight(device: str) -> float:
    """Time an AdamW step, per weight."""
    import torch

    weights = [torch.nn.Parameter(torch.zeros(1000, 1000, device=device)) for _ in range(4)]
    for part in weights:
        part.grad = torch.ones_like(part)
    optimizer = torch.optim.AdamW(weights, lr=0.0)
    return _seconds(optimizer.step, device) / sum(part.numel() for part in weights)


def sae_step(device: str, rows: int, width: int, features: int) -> float:
    """Time one training step of a sparse autoencoder on so many activations."""
    import torch

    from lfp_lens.parts.speed import fast_matmul

    fit = max(1, min(rows, int(FLOPS[torch.device(device).type] / (4 * width * features))))
    with torch.random.fork_rng(), fast_matmul():
        sizes = ((width, features), (features, width))
        weights = [(torch.randn(*size, device=device) / size[0] ** 0.5).requires_grad_() for size in sizes]
        acts_ND = torch.randn(fit, width, device=device)

        def learn() -> None:
            found_NF = torch.relu(acts_ND @ weights[0])
            ((found_NF @ weights[1] - acts_ND).square().mean() + 1e-3 * found_NF.sum(1).mean()).backward()
            weights[0].grad = weights[1].grad = None

        return _seconds(learn, device) * rows / fit + _per_weight(device) * 2 * width * features


def _seconds(work: Callable[[], Any], device: str) -> float:
    """Give the median of some tries, after one to warm up: what else runs on this machine counts."""
    import torch

    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    begun = time.perf_counter()
    tries: list[float] = []
    while len(tries) < 2 or (time.perf_counter() - begun < SECONDS and len(tries) < 50):
        start = time.perf_counter()
        work()
        wait()
        tries.append(time.perf_counter() - start)
    return statistics.median(tries[1:])
