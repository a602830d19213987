"""The verb: one pass of each model feeds all SAEs, SAELens trains them, held-out text judges them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.core.store import Store, keep
from lfp_lens.parts.cache import in_key, opened
from lfp_lens.parts.checkpoints import weights_fingerprint
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.sites import module_at
from lfp_lens.results.train_sae import SAESet
from lfp_lens.stages.train_sae.job import Job
from lfp_lens.stages.train_sae.learner import Schedule
from lfp_lens.stages.train_sae.plan import make_specs, whole
from lfp_lens.stages.train_sae.starts import find_starts

WHOLE = {"replicates": 1, "tokens": 1, "batch_tokens": 1, "buffer_tokens": 1, "max_tokens": 1, "heldout_tokens": 1,
         "spliced_tokens": 1, "seed": 0}  # fmt: skip
"""Parameters that are whole numbers, and the least each can be."""


def train_sae(
    pair: Pair,
    sites: Sequence[str],
    texts: Sequence[str],
    *,
    sizes: Sequence[float] = (1, 2),
    sides: Sequence[str] = ("base", "tuned"),
    architecture: str | Sequence[str] = "standard",
    l1: float | Sequence[float] | None = None,
    k: int | Sequence[int] | None = None,
    lr: float | Sequence[float] | None = None,
    replicates: int = 1,
    tokens: int = 200_000,
    batch_tokens: int = 1024,
    buffer_tokens: int = 32_768,
    max_tokens: int = 128,
    heldout_tokens: int = 20_000,
    spliced_tokens: int = 4_096,
    random_twin: bool = True,
    precision: str = "fp32",
    from_sae: Any = None,
    cache: Any = None,
    seed: int = 0,
    store: Store | None = None,
) -> SAESet:
    """Train an SAE for every side, site and size from one pass of each model, and measure each on text it never saw.

    Args:
        pair: base and tuned.
        sites: where the SAEs read, for example `diverge(pair, texts).top(5)`.
        texts: the last tenth is held out for quality; the rest is cycled through in shuffled order.
        sizes: features divided by the site's width; the paper trains 1 and 2.
        sides: `base`, `tuned`, `difference` (tuned - base at the same token) or `both` (a crosscoder: one dictionary of both
            models' activations), one or several.
        architecture: `standard`, `tied` (the paper's), `untied`, `topk`, `batchtopk`, `matryoshka`, `jumprelu`, `gated`; or
            several.
        l1: weight of the sparsity penalty; None takes the architecture's own; or several values (a sweep).
        k: active features per token, for `topk`, `batchtopk` and `matryoshka`; None takes an eighth of the width; or several.
        lr: Adam's learning rate, constant; None takes 1e-3, or for a crosscoder 3e-3 that falls in the second half; or several.
        replicates: SAEs per side, site, size and setting, from as many seeds; two or more tell how stable a feature is.
        tokens: training tokens that every SAE sees.
        batch_tokens: tokens per training step.
        buffer_tokens: tokens that are shuffled together; what the buffer takes in memory is printed.
        max_tokens: texts are cut there.
        heldout_tokens: tokens for the reconstruction figures, at most.
        spliced_tokens: predictions for KL and CE recovered, at most.
        random_twin: also train on a model with random weights, as a floor; adds one side. Left out with `from_sae`: from scratch
            in the few tokens of a continued training it would be no floor.
        precision: `fp32`, or `bf16` for products in bfloat16 (activations move by about 1 %).
        from_sae: dictionaries to start from: an `SAESet`, one `SAERecord`, or a folder or original checkpoint of one SAE.
        cache: an `ActivationCache` of these texts and sites (`lfp_lens.cache`), read in place of the models; or a folder, where
            one is made first.
        seed: of initialisation and order.
        store: a run's store, or None; with one a killed run goes on where it was.

    Returns:
        The SAEs in SAELens' format with their quality on held-out text beside three floors, and who matches whom over
        sizes, seeds and models. Of several values of a setting, later verbs read the first.

    Raises:
        LensError: for an unknown architecture or site, values that cannot be, too little text, activations that are constant or
            not finite, or a dictionary to start from that does not fit.

    Source: arXiv 2310.08164, section 3.2 and appendix F; padding and the beginning-of-text token never reach an SAE.

    >>> saes = train_sae(pair, diverge(pair, texts).top(5), texts)  # doctest: +SKIP
    """
    inputs = dict(locals())
    for name, least in WHOLE.items():
        whole(name, inputs[name], least)
    if precision not in ("fp32", "bf16"):
        raise LensError(f"precision is 'fp32' or 'bf16'; {precision!r} given.")
    if not 1 <= batch_tokens <= tokens:
        raise LensError(
            f"tokens={tokens} must hold at least one batch of batch_tokens={batch_tokens}, and that one token."
        )
    if precision == "bf16" and cache is not None:
        raise LensError(
            "A cache holds activations as fp32 computes them; precision='bf16' computes others. Leave one out."
        )
    settings = {"architecture": architecture, "l1": l1, "k": k, "lr": lr}
    width, seeds = pair.tuned_hf.config.hidden_size, range(seed, seed + replicates)
    specs = make_specs(sites, sizes, sides, settings, width=width, seeds=seeds)
    for site in sites:
        module_at(pair.tuned_hf, site)
    own = {side: weights_fingerprint(pair.hf(side)) for side in ("base", "tuned")} | {"pair": pair.fingerprint}
    starts = find_starts(from_sae, specs, own)
    job = Job(
        pair, specs, texts, Schedule(tokens // batch_tokens, batch_tokens, precision == "bf16"), starts,
        cache=partial(opened, cache, pair, sites, texts, max_tokens=max_tokens), buffer_tokens=buffer_tokens,
        max_tokens=max_tokens, heldout_tokens=heldout_tokens, spliced_tokens=spliced_tokens,
        random_twin=random_twin and not starts, seed=seed,
    )  # fmt: skip
    # What is started from is its weights, not their place.
    key = {name: value for name, value in in_key(inputs).items() if name != "from_sae"}
    key["starts"] = {spec.name: weights.fingerprint for spec, weights in starts.items()}
    return keep(store, "train_sae", key, job.run)
