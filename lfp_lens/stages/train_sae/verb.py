"""The verb: one pass of each model feeds all its SAEs, SAELens trains them, held-out text judges them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.core.store import Store, keep
from lfp_lens.parts.activations import Encoded, batches, encode
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import ARCHITECTURES, export, new_sae, quiet_sae_lens
from lfp_lens.parts.sites import activations_at, layer_of, module_at
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.results.train_sae import SAERecord, SAESet
from lfp_lens.stages.train_sae.matching import match
from lfp_lens.stages.train_sae.quality import measure_quality

MIX_BATCHES = 16
"""Training batches held in the shuffle buffer, at most; a short run holds a quarter of its steps."""


def train_sae(
    pair: Pair,
    sites: Sequence[str],
    texts: Sequence[str],
    *,
    sizes: Sequence[float] = (1, 2),
    sides: Sequence[str] = ("base", "tuned"),
    architecture: str = "standard",
    l1: float | None = None,
    k: int | None = None,
    lr: float = 1e-3,
    tokens: int = 200_000,
    batch_tokens: int = 1024,
    max_tokens: int = 128,
    heldout_tokens: int = 20_000,
    seed: int = 0,
    store: Store | None = None,
) -> SAESet:
    """Train an SAE for every side, site and size, and measure each on text it never saw.

    Args:
        pair: base and tuned.
        sites: where the SAEs read, for example `diverge(pair, texts).top(5)`.
        texts: the last tenth is held out for quality; the rest is cycled through in shuffled order.
        sizes: features divided by the site's width; the paper trains 1 and 2.
        sides: `base`, `tuned` or both.
        architecture: `standard`, `tied` (the paper's), `topk`, `batchtopk`, `jumprelu`, `gated`.
        l1: weight of the sparsity penalty; None takes the architecture's default.
        k: active features per token, for `topk` and `batchtopk`; None takes an eighth of the width.
        lr: Adam's learning rate, constant.
        tokens: training tokens that every SAE sees.
        batch_tokens: tokens per training step.
        max_tokens: texts are cut there.
        heldout_tokens: tokens for the quality figures, at most.
        seed: of initialisation and order.
        store: a run's store, or None.

    Returns:
        The SAEs in SAELens' format with explained variance, CE recovered, L0 and dead share on held-out text, each beside
        its untrained twin, and the matching between sizes.

    Raises:
        LensError: for an unknown architecture or site, or too little text.

    Source: arXiv 2310.08164, section 3.2 and appendix F; padding and the beginning-of-text token never reach an SAE.

    >>> saes = train_sae(pair, diverge(pair, texts).top(5), texts)  # doctest: +SKIP
    """
    inputs = dict(locals())
    ARCHITECTURES[architecture]
    _check(sites, sizes, sides, tokens, batch_tokens, lr)
    for site in sites:
        module_at(pair.tuned_hf, site)
    encoded = encode(pair.tokenizer, texts, max_tokens=pair.room(max_tokens))
    n_heldout = max(1, len(encoded) // 10)
    train, heldout = encoded[:-n_heldout], encoded[-n_heldout:]
    have, judged = (sum(max(0, len(text.ids) - 1) for text in part) for part in (train, heldout))
    if have < batch_tokens:
        raise LensError(f"{have} training tokens are fewer than one batch of {batch_tokens}: give more texts.")
    if not judged:
        raise LensError(
            f"The {n_heldout} held-out texts, the last tenth, hold no tokens to judge an SAE on: give others."
        )

    def make(folder: Path | None) -> SAESet:
        ordered = tuple(sorted(sites, key=layer_of))
        options = {"architecture": architecture, "l1": l1, "k": k, "lr": lr, "tokens": tokens, "batch_tokens": batch_tokens,
                   "seed": seed}  # fmt: skip
        records: list[SAERecord] = []
        curves: dict[str, np.ndarray] = {}
        with fast_matmul(), tqdm(total=len(sides) * (tokens // batch_tokens), desc="train_sae") as bar:
            for side in sides:
                made = _train_side(pair, side, ordered, tuple(sizes), train, bar, options)
                name = f"{type(pair.hf(side)).__name__} {side}"
                weights = {
                    key: (export(sae, site=key[0], model_name=name), export(start, site=key[0], model_name=name))
                    for key, (sae, start, _) in made.items()
                }
                quality = measure_quality(pair, side, weights, heldout, heldout_tokens)
                for (site, size), (_, _, curve) in made.items():
                    curves[f"{side} {site} x{size:g}"] = curve
                    records.append(
                        SAERecord(side=side, site=site, size=float(size), architecture=architecture, seed=seed,
                                  weights=weights[site, size][0], n_train_tokens=len(curve) * batch_tokens,
                                  **quality[site, size])
                    )  # fmt: skip
        cosines, control = match(records, seed=seed)
        return SAESet(tuple(records), pair.fingerprint, cosines, control, curves)

    return keep(store, "train_sae", inputs, make)


def _check(
    sites: Sequence[str], sizes: Sequence[float], sides: Sequence[str], tokens: int, batch_tokens: int, lr: float
) -> None:
    for name, given in (("site", sites), ("size", sizes), ("side", sides)):
        if isinstance(given, str) or not len(given) or len(set(given)) < len(given):
            raise LensError(f"{name}s must be a list of at least one {name}, each once; {given!r} given.")
    odd = next((side for side in sides if side not in ("base", "tuned")), None)
    if odd is not None:
        raise LensError(f"A side is 'base' or 'tuned'; {odd!r} given.")
    if not 1 <= batch_tokens <= tokens:
        raise LensError(
            f"tokens={tokens} must hold at least one batch of batch_tokens={batch_tokens}, and that one token."
        )
    if not 0 < lr < float("inf"):
        raise LensError(f"lr must be a finite number above 0; {lr} given.")


def _train_side(
    pair: Pair,
    side: str,
    sites: tuple[str, ...],
    sizes: tuple[float, ...],
    train: list[Encoded],
    bar: tqdm,
    options: dict[str, Any],
) -> dict[tuple[str, float], tuple[Any, Any, np.ndarray]]:
    """Feed all SAEs of one side from one stream of activations; give (trained, untrained, loss curve) by site and size."""
    lens = quiet_sae_lens()
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.mixing_buffer import multi_hook_concat_split_iter

    steps = max(1, options["tokens"] // options["batch_tokens"])
    width = pair.hf(side).config.hidden_size
    trainers, starts, curves = {}, {}, {}
    for at, (site, size) in enumerate((site, size) for site in sites for size in sizes):
        build = {name: options[name] for name in ("architecture", "l1", "k")} | {
            "d_in": width,
            "size": size,
            "steps": steps,
        }
        sae = new_sae(**build, seed=options["seed"] + at)
        starts[site, size] = new_sae(**build, seed=options["seed"] + at)
        config = SAETrainerConfig(
            total_training_samples=steps * options["batch_tokens"], train_batch_size_samples=options["batch_tokens"],
            lr=options["lr"], lr_end=options["lr"] / 10, device="cpu", dead_feature_window=max(50, steps // 5),
            feature_sampling_window=steps + 1, n_batches_for_norm_estimate=4,
        )  # fmt: skip
        trainers[site, size] = lens.SAETrainer(cfg=config, sae=sae, data_provider=iter(()))
        curves[site, size] = np.zeros(steps)
    with torch.random.fork_rng():
        torch.manual_seed(options["seed"])
        source = _activation_stream(pair, side, sites, train, options["seed"])
        stream = multi_hook_concat_split_iter(
            min(MIX_BATCHES, max(2, steps // 4)) * options["batch_tokens"], options["batch_tokens"], source, list(sites)
        )
        first = next(stream)
        for (site, _), trainer in trainers.items():
            _set_scale(trainer, first[site])
        for step in range(steps):
            batch = first if step == 0 else next(stream)
            for (site, size), trainer in trainers.items():
                trainer.maybe_reset_sparsity()
                loss = float(trainer.step(batch[site]).loss.detach())
                if not np.isfinite(loss):
                    raise LensError(
                        f"The SAE loss at {site} x{size:g} is not finite at step {step}: lower lr ({options['lr']})."
                    )
                trainer.n_training_steps += 1
                curves[site, size][step] = loss
            bar.update()
            bar.set_postfix(side=side)
    for key, trainer in trainers.items():
        scale = trainer.activation_scaler.scaling_factor
        for sae in (trainer.sae, starts[key]):
            if scale is not None:
                sae.fold_activation_norm_scaling_factor(scale)
    return {key: (trainer.sae, starts[key], curves[key]) for key, trainer in trainers.items()}


def _set_scale(trainer: Any, batch_ND: torch.Tensor) -> None:
    """Scale inputs to norm sqrt(D), as SAELens' own runner does, from the first mixed batch."""
    if trainer.sae.cfg.normalize_activations == "expected_average_only_in":
        trainer.activation_scaler.scaling_factor = float(batch_ND.shape[1] ** 0.5 / batch_ND.norm(dim=-1).mean())


def _activation_stream(
    pair: Pair, side: str, sites: tuple[str, ...], train: list[Encoded], seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Give real-token activations without end, each epoch over the texts in a new seeded order."""
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(len(train))
        for start in range(0, len(order), 512):
            chosen = [train[at] for at in order[start : start + 512]]
            for batch in batches(chosen, device=pair.device):
                acts = activations_at(pair.hf(side), batch.ids_BS, batch.mask_BS, sites)
                kept = batch.content(pair.tokenizer.bos_token_id)
                yield {site: acts[site][kept].float().cpu() for site in sites}
