"""Sampling under ablation at five sites: ours against plain `generate` and TransformerLens' `generate`, both without hooks.

Ours is what `ablate` runs: 50 features of an SAE at each site are zero-ablated at every step, the SAE's error is kept, and
beginning-of-text tokens are left alone. The peers do less: they only sample. Before the clock starts, a few of our tokens
are compared with those of a loop without cache under the same seed.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from lfp_lens.parts.dictionaries import as_dictionary
from lfp_lens.parts.generation import generate, left_pad, sample
from lfp_lens.parts.hooked import to_hooked
from lfp_lens.parts.interventions import Edit, feature_edit, intervening
from lfp_lens.parts.saes import export, new_sae
from tests.benchmarks.measure import Comparison, Shape, Skipped, cpu_seconds, one_thread, product, why_not
from tests.parts.test_generation import step_by_step
from tests.tiny import sae_record, tiny_tokenizer

SIZES = (1, 2)
K = 32


def ablated_generation(
    shape: Shape | None = None,
    *,
    prompts: int = 16,
    prompt_tokens: int = 16,
    new_tokens: int = 24,
    features: int = 50,
    repeats: int = 3,
    precisions: tuple[str, ...] = ("fp32", "fp32 oneDNN"),
) -> Iterator[Comparison | Skipped]:
    """Compare new tokens per CPU-second; `ratio` is our speed as a share of the peer's. The jobs take turns."""
    shape = shape or Shape()
    unit = "new tokens per CPU-second, one thread"
    with one_thread(), torch.no_grad():
        model = shape.model()
        hooked = to_hooked(model, tiny_tokenizer())
        rows = np.random.default_rng(0).integers(1, shape.vocabulary, size=(prompts, prompt_tokens)).tolist()
        ids_BS, mask_BS = left_pad(rows, "cpu")
        edits = {
            (architecture, size): _edits(shape, architecture, size, features)
            for architecture in ("standard", "topk") for size in SIZES
        }  # fmt: skip
        for chosen in edits.values():
            _check_tokens(model, rows[:2], chosen)

        def plain() -> Any:
            return generate(model, ids_BS, mask_BS, max_new_tokens=new_tokens, ends=[0])

        def ablated(chosen: Mapping[str, Edit]) -> Callable[[], Any]:
            def job() -> Any:
                with intervening(model, chosen, begin=0):
                    return plain()

            return job

        peers = {
            "Hugging Face generate, no hooks": plain,
            "TransformerLens generate, no hooks": lambda: hooked.generate(
                ids_BS, max_new_tokens=new_tokens, do_sample=True, temperature=1.0, stop_at_eos=False, prepend_bos=False,
                verbose=False, return_type="tokens",
            ),
        }  # fmt: skip
        jobs: dict[Any, Callable[[], Any]] = peers | {name: ablated(chosen) for name, chosen in edits.items()}
        for precision in precisions:
            reason = why_not(precision)
            if reason:
                yield Skipped("ablated_generation", precision, reason)
                continue
            with product(precision), torch.random.fork_rng():
                torch.manual_seed(0)
                seconds = cpu_seconds(jobs, repeats=repeats)
            rate = {name: prompts * new_tokens / taken for name, taken in seconds.items()}
            for architecture, size in edits:
                what = (
                    f"{features} features of {architecture} SAEs of width {size * shape.width} ablated at {len(shape.sites)} "
                    f"sites, {prompts} prompts of {prompt_tokens} tokens, {new_tokens} new ones"
                )
                for name in peers:
                    yield Comparison(
                        "ablated_generation", what, rate[architecture, size], rate[name], name, precision, unit
                    )


def _edits(shape: Shape, architecture: str, size: int, features: int) -> dict[str, Edit]:
    made = {}
    for seed, site in enumerate(shape.sites):
        n = size * shape.width
        settings = {"l1": None, "k": min(K, n) if architecture == "topk" else None, "steps": 1, "seed": seed}
        sae = new_sae(architecture, d_in=shape.width, d_sae=n, **settings)
        weights = export(sae, site=site, model_name="benchmark")
        chosen = np.random.default_rng(seed).choice(n, size=min(features, n), replace=False).tolist()
        dictionary = as_dictionary(sae_record(weights, "tuned", site, architecture=architecture))
        made[site] = feature_edit(dictionary, chosen)
    return made


def _check_tokens(model: Any, prompts: list[list[int]], edits: Mapping[str, Edit]) -> None:
    options = {"max_new_tokens": 4, "seed": 0}
    with intervening(model, edits, begin=0):
        found = sample(model, tiny_tokenizer(), prompts, **options).ids
    slow = step_by_step(model, prompts, under=lambda ids: intervening(model, edits, begin=0), **options)
    assert found == slow, (found, slow)
