"""Activations of five sites: our hooks on the Hugging Face trunk against TransformerLens' `run_with_cache`.

Every ratio is printed twice: with the peer at its defaults (fp32), and with the peer at our precision.
"""

from collections.abc import Iterator

import torch

from lfp_lens.parts.hooked import to_hooked
from lfp_lens.parts.sites import activations_at
from tests.benchmarks.measure import Comparison, Shape, Skipped, cpu_seconds, one_thread, product, why_not
from tests.tiny import tiny_tokenizer

PRECISIONS = ("fp32", "fp32 oneDNN", "bf16")


def harvest(shape: Shape | None = None, *, texts: int = 8, repeats: int = 3) -> Iterator[Comparison | Skipped]:
    """Compare tokens per CPU-second; both sides must give the same activations first."""
    shape = shape or Shape()
    what = f"MLP outputs of {len(shape.sites)} layers, width {shape.width}, {texts} x {shape.context} tokens"
    unit = "tokens per CPU-second, one thread"
    with one_thread(), torch.no_grad():
        model = shape.model()
        hooked = to_hooked(model, tiny_tokenizer())
        ids_BS = torch.randint(shape.vocabulary, (texts, shape.context), generator=torch.Generator().manual_seed(0))
        mask_BS = torch.ones_like(ids_BS)
        wanted = set(shape.sites)
        jobs = {
            "ours": lambda: activations_at(model, ids_BS, mask_BS, shape.sites),
            "run_with_cache": lambda: hooked.run_with_cache(ids_BS),
            "run_with_cache, these five names, no logits": lambda: hooked.run_with_cache(
                ids_BS, names_filter=lambda name: name in wanted, stop_at_layer=shape.layers
            ),
        }
        ours, theirs = jobs["ours"](), jobs["run_with_cache"]()[1]
        for site in shape.sites:
            torch.testing.assert_close(ours[site], theirs[site], rtol=1e-3, atol=1e-4)
        default: dict[str, float] = {}
        for precision in PRECISIONS:
            reason = why_not(precision)
            if reason:
                yield Skipped("harvest", precision, reason)
                continue
            with product(precision), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                seconds = cpu_seconds(jobs, repeats=repeats)
            rate = {name: ids_BS.numel() / taken for name, taken in seconds.items()}
            default = default or rate
            for name in list(jobs)[1:]:
                if precision != PRECISIONS[0]:
                    yield Comparison("harvest", what, rate["ours"], default[name],
                                     f"TransformerLens {name}, at its defaults", precision, unit)  # fmt: skip
                yield Comparison("harvest", what, rate["ours"], rate[name], f"TransformerLens {name}, at {precision}",
                                 precision, unit)  # fmt: skip
