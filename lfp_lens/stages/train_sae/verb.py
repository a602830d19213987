"""The verb: one pass of each model feeds all SAEs, SAELens trains them, held-out text judges them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.core.store import Store, keep
from lfp_lens.core.work import SUFFIX, work_folder
from lfp_lens.parts.activations import Encoded, encode
from lfp_lens.parts.cache import cache as make_cache
from lfp_lens.parts.checkpoints import weights_fingerprint
from lfp_lens.parts.harvest import Blocks, Models, Stream, TextBatches, split, text_batches
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import export
from lfp_lens.parts.sites import module_at
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.parts.twins import random_model
from lfp_lens.results.train_sae import Floor, SAERecord, SAESet, SAEWeights
from lfp_lens.stages.train_sae.crosscoder import compare
from lfp_lens.stages.train_sae.matching import match, stability
from lfp_lens.stages.train_sae.plan import RANDOM, Spec, make_specs
from lfp_lens.stages.train_sae.quality import Judged, measure_quality
from lfp_lens.stages.train_sae.starts import find_starts
from lfp_lens.stages.train_sae.training import Schedule, Trained, train

CHUNKS = 32
"""Groups of held-out texts that a crosscoder's intervals resample."""
PCA_TOKENS = 8192
"""Training tokens that principal components are fitted on."""


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
    lr: float | Sequence[float] = 1e-3,
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
        architecture: `standard`, `tied` (the paper's), `untied`, `topk`, `batchtopk`, `matryoshka`, `jumprelu`, `gated`; or several.
        l1: weight of the sparsity penalty; None takes the architecture's own; or several values (a sweep).
        k: active features per token, for `topk`, `batchtopk` and `matryoshka`; None takes an eighth of the width; or several.
        lr: Adam's learning rate, constant; or several values.
        replicates: SAEs per side, site, size and setting, from as many seeds; two or more tell how stable a feature is.
        tokens: training tokens that every SAE sees.
        batch_tokens: tokens per training step.
        buffer_tokens: tokens that are shuffled together; what the buffer takes in memory is printed.
        max_tokens: texts are cut there.
        heldout_tokens: tokens for the reconstruction figures, at most.
        spliced_tokens: predictions for KL and CE recovered, at most.
        random_twin: also train on a model with random weights, as a floor; adds one side.
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
    if replicates < 1:
        raise LensError(f"replicates must be at least 1; {replicates} given.")
    if precision not in ("fp32", "bf16"):
        raise LensError(f"precision is 'fp32' or 'bf16'; {precision!r} given.")
    if not 1 <= batch_tokens <= tokens:
        raise LensError(
            f"tokens={tokens} must hold at least one batch of batch_tokens={batch_tokens}, and that one token."
        )
    settings = {"architecture": architecture, "l1": l1, "k": k, "lr": lr}
    width, seeds = pair.tuned_hf.config.hidden_size, range(seed, seed + replicates)
    specs = make_specs(sites, sizes, sides, settings, width=width, seeds=seeds)
    for site in sites:
        module_at(pair.tuned_hf, site)
    encoded = encode(pair.tokenizer, texts, max_tokens=pair.room(max_tokens))
    train_texts, heldout = split(encoded)
    begin = pair.tokenizer.bos_token_id
    read = text_batches(train_texts, width=width, begin=begin, device=pair.device)
    have = int(read.n_tokens.sum())
    if have < batch_tokens:
        raise LensError(
            f"The training texts hold {have} tokens; one batch needs batch_tokens={batch_tokens}: give more texts."
        )
    if not any(token != begin for text in heldout for token in text.ids):
        raise LensError(
            f"The {len(heldout)} held-out texts, the last tenth, hold no tokens to judge an SAE on: give others."
        )
    own = {side: weights_fingerprint(pair.hf(side)) for side in ("base", "tuned")}
    starts = find_starts(from_sae, specs)
    twins = [spec.at(RANDOM) for spec in specs if random_twin and spec.seed == seed and spec.side in ("base", "tuned")]
    everything = list(dict.fromkeys(specs + twins))
    models = {"base": pair.base_hf, "tuned": pair.tuned_hf}
    if twins:
        models[RANDOM] = random_model(pair.base_hf, seed=seed)
    schedule = Schedule(tokens // batch_tokens, batch_tokens, precision == "bf16")
    streams = list(dict.fromkeys(spec.stream for spec in everything))
    reader: Any = Models(models, read, streams, schedule.bf16)
    if isinstance(cache, (str, Path)):
        cache = make_cache(pair, sites, texts, cache, max_tokens=max_tokens)
    if cache is not None:
        reader = cache.reader(read, streams, pair, reader)
    block = min(max(1, buffer_tokens // batch_tokens), schedule.steps) * batch_tokens
    source = Blocks(reader, read.n_tokens, block, seed)

    measured = {"tokens": heldout_tokens, "spliced": spliced_tokens, "seed": seed}

    def make(folder: Path | None) -> SAESet:
        work = nullcontext(None) if folder is None else work_folder(folder.with_suffix(SUFFIX))
        with fast_matmul(), work as place, _bar(everything, source, schedule) as bar:
            trained = train(everything, source, schedule, starts=starts, device=pair.device, work=place, bar=bar)
            first = next(source.blocks(0, [min(block, PCA_TOKENS)]))
            fit = {stream: acts.float().cpu() for stream, acts in first.items()}
            found = _judged(pair, models, trained, own, heldout, fit, schedule, measured)
            return _compared(found, pair, heldout, heldout_tokens, seed)

    # Where activations are read does not change them; what is started from is its weights, not their place.
    key = {name: value for name, value in inputs.items() if name not in ("cache", "from_sae")}
    key["starts"] = {spec.name: weights.fingerprint for spec, weights in starts.items()}
    return keep(store, "train_sae", key, make)


def _bar(specs: Sequence[Spec], source: Blocks, schedule: Schedule) -> tqdm:
    """Say what the memory goes to, and give the bar."""
    widths = {spec.stream: spec.d_in for spec in specs}
    buffer = 4 * source.block_tokens * sum(widths.values())
    # Weights, gradients, two moments of Adam, and the untrained twin at the end.
    training = 5 * 4 * sum(2 * spec.d_in * spec.d_sae for spec in specs)
    bar = tqdm(total=schedule.steps * schedule.batch_tokens, desc="train_sae", unit="tok", unit_scale=True)
    if not bar.disable:
        bar.write(
            f"train_sae: {len(specs)} SAEs {training / 1e6:,.0f} MB, buffer of {source.block_tokens:,} tokens at "
            f"{len(widths)} sites {buffer / 1e6:,.0f} MB"
        )
    return bar


def _judged(
    pair: Pair, models: Mapping[str, Any], trained: Mapping[Spec, Trained], own: Mapping[str, str],
    heldout: Sequence[Encoded], fit: Mapping[Stream, torch.Tensor], schedule: Schedule, measured: Mapping[str, Any],
) -> SAESet:  # fmt: skip
    """Export every SAE, measure it, and match them."""
    weights: dict[Spec, tuple[SAEWeights, SAEWeights]] = {}
    for spec, made in trained.items():
        name = {"site": spec.site, "model_name": f"{type(pair.tuned_hf).__name__} {spec.side}", "side": spec.side}
        name["fingerprint"] = own.get(spec.side, pair.fingerprint)
        weights[spec] = (export(made.sae, **name), export(made.untrained, **name))
    asked = {
        spec: Judged(spec.side, spec.site, learned, None if spec.side == RANDOM else fresh)
        for spec, (learned, fresh) in weights.items()
    }
    quality = measure_quality(models, pair.tokenizer, asked, heldout, fit=fit, **measured)
    records, curves = [], {}
    for spec, made in trained.items():
        if spec.side == RANDOM:
            continue
        facts, twin = dict(quality[spec]), replace(spec, side=RANDOM, seed=measured["seed"])
        if twin in quality and spec.side in ("base", "tuned"):
            facts["floors"] = facts["floors"] | {"random_model": _floor(quality[twin])}
        record = SAERecord(
            side=spec.side, site=spec.site, size=spec.size, architecture=spec.architecture, seed=spec.seed,
            l1=getattr(made.sae.cfg, "l1_coefficient", None), k=spec.k, lr=spec.lr, weights=weights[spec][0],
            n_train_tokens=len(made.curve) * schedule.batch_tokens, stability=None, crosscoder=None, **facts,
        )  # fmt: skip
        records.append(record)
        curves[record.name] = made.curve
    stable = stability(records)
    records = [replace(record, stability=stable.get(record.name)) for record in records]
    return SAESet(tuple(records), pair.fingerprint, match(records, seed=measured["seed"]), curves)


def _compared(saes: SAESet, pair: Pair, heldout: Sequence[Encoded], tokens: int, seed: int) -> SAESet:
    """Add to every crosscoder which features the two models share, from one pass of both over the held-out texts."""
    sites = list(dict.fromkeys(sae.site for sae in saes.saes if sae.side == "both"))
    if not sites:
        return saes
    rows = np.arange(len(heldout))[np.cumsum([len(text.ids) for text in heldout]) <= tokens]
    begin = pair.tokenizer.bos_token_id
    groups = [part.tolist() for part in np.array_split(rows, CHUNKS) if len(part)]
    streams = [(side, site) for site in sites for side in ("base", "tuned")]
    reader = Models({"base": pair.base_hf, "tuned": pair.tuned_hf}, TextBatches(heldout, groups, begin), streams)
    chunks = [reader.read(at) for at in range(len(groups))]

    def at(site: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return ((part["base", site], part["tuned", site]) for part in chunks)

    found = {
        sae.name: compare(sae.weights, partial(at, sae.site), seed=seed, device=pair.device)
        for sae in saes.saes if sae.side == "both"
    }  # fmt: skip
    return replace(saes, saes=tuple(replace(sae, crosscoder=found.get(sae.name)) for sae in saes.saes))


def _floor(facts: Mapping[str, Any]) -> Floor:
    kept = ("explained_variance", "kl_recovered", "ce_recovered", "l0", "dead_share", "shrinkage")
    return Floor(
        kind="random_model", n_features=len(facts["firing_rate"]), weights=None, **{name: facts[name] for name in kept}
    )
