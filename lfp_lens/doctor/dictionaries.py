"""What `train_sae` will take: one pass of each model, a step for every SAE, and splices."""

from typing import TYPE_CHECKING, Any

from lfp_lens.config.sections import TAKES_K, TAKES_L1
from lfp_lens.doctor.costs import ADAM, FP32, LIBRARIES, TEXT_BATCH, Cost, duration, size
from lfp_lens.doctor.pace import measure, sae_step
from lfp_lens.doctor.shapes import Shape

if TYPE_CHECKING:
    from lfp_lens.config import RunConfig

SPLICES = 3
"""Dictionaries that are spliced in for every SAE: itself and the floors `untrained` and `pca`."""


def dictionaries_cost(config: "RunConfig", shape: Shape, *, is_timed: bool) -> Cost:
    """Estimate `train_sae`."""
    given = config.train_sae
    sites = min(config.sites, shape.layers) if isinstance(config.sites, int) else len(config.sites)
    kinds = sum(_settings(given, architecture) for architecture in _many(given.architecture))
    streams, n_of_side = _streams(given, kinds)
    widths = [max(1, round(part * shape.width)) for part in given.sizes]
    steps = max(1, given.tokens // given.batch_tokens)
    buffer = min(given.buffer_tokens, steps * given.batch_tokens)
    weights = sum(n_of_side[side] * sites * 2 * _width(side, shape) * n for side in streams for n in widths)
    n_saes = sum(n_of_side.values()) * sites * len(widths)
    readers = len(_models(given)) + ("random" in n_of_side)
    models = (4 + ("random" in n_of_side)) * FP32 * shape.weights
    # Weights, gradients and moments while they train; then themselves and their untrained twins.
    training = (2 * FP32 + ADAM + 2 * FP32) * weights
    held = FP32 * buffer * sites * sum(_width(side, shape) for side in streams)
    seconds, told = None, ""
    if is_timed:
        of_steps = sites * steps * sum(
            n_of_side[side] * sae_step("cpu", given.batch_tokens, _width(side, shape), n) for side in streams for n in widths
        )  # fmt: skip
        context = getattr(shape.config, "max_position_embeddings", None) or given.max_tokens
        length = min(given.max_tokens, context)
        reads = [
            measure(shape, config.device, TEXT_BATCH, length, predicted=part).read / (TEXT_BATCH * length)
            for part in (0, None)
        ]
        harvest = readers * given.tokens * reads[0]
        quality = readers * given.heldout_tokens * reads[0] + given.spliced_tokens * reads[1] * SPLICES * n_saes
        seconds = of_steps + harvest + quality
        told = (
            f"{n_saes} SAEs of {steps} steps {duration(of_steps)}, activations of {given.tokens:,} tokens of {readers} models "
            f"{duration(harvest)}, quality {duration(quality)}"
        )
    memory_told = (
        f"models (base and tuned twice: Hugging Face, TransformerLens) {size(models)}, SAEs with Adam's moments "
        f"{size(training)}, buffer of {buffer:,} tokens {size(held)}, libraries {size(LIBRARIES)}"
    )
    disk, disk_told = 2 * FP32 * weights, f"{n_saes} SAEs, each beside its untrained twin"
    return Cost(seconds, told, models + training + held + LIBRARIES, memory_told, disk, disk_told)


def _many(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _settings(given: Any, architecture: str) -> int:
    """Count the combinations of settings that an architecture is trained with."""
    l1 = len(_many(given.l1)) if architecture in TAKES_L1 else 1
    k = len(_many(given.k)) if architecture in TAKES_K else 1
    return l1 * k * len(_many(given.lr))


def _streams(given: Any, kinds: int) -> tuple[list[str], dict[str, int]]:
    """Name the sides that SAEs are trained on, and count the SAEs of each at one site and size."""
    counts = dict.fromkeys(given.sides, kinds * given.replicates)
    if given.random_twin and {"base", "tuned"} & set(given.sides):
        counts["random"] = kinds
    return list(counts), counts


def _models(given: Any) -> set[str]:
    return set(given.sides) if set(given.sides) <= {"base", "tuned"} else {"base", "tuned"}


def _width(side: str, shape: Shape) -> int:
    return 2 * shape.width if side == "both" else shape.width
