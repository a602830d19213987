"""How well and how fast do the offline labellers explain? Tied SAEs of `imdb-neox-2m` tuned on VADER.

Every feature of five sites is explained and scored on held-out windows, beside a shuffled explanation and random directions;
and the pass that collects the evidence is timed beside reading and encoding the same texts alone. Needs the folder that
LFP_LENS_DATA names. The tuning and the dictionaries are kept in `runs/explain_features`. One JSON line per figure.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lfp_lens.config import load_config
from lfp_lens.core.stats import Estimate, bootstrap_interval
from lfp_lens.core.store import Store
from lfp_lens.parts.harvest import Models
from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.parts.saes import load_sae
from lfp_lens.parts.speed import fast_matmul, short_text_attention
from lfp_lens.parts.texts import load_texts
from lfp_lens.results import SAESet
from lfp_lens.results.explain import Labels
from lfp_lens.stages.explain import explain
from lfp_lens.stages.explain.firing import Watched, hold_out, watch
from lfp_lens.stages.explain.seeing import windows_kept
from lfp_lens.stages.explain.windows import Half, by_content, halves
from lfp_lens.stages.finetune import finetune
from lfp_lens.stages.train_sae import train_sae
from tests.benchmarks.measure import Figure, one_thread

PRESET = "imdb-2m-vader"
SITES = tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(1, 6))
MAX_TOKENS = 128
LABELLERS = ("lexicon", "graph")
FIRST_TEXT = 4000
"""The draw of windows was worked out on texts before this one."""


class _Quiet:
    def update(self) -> None:
        pass


def explain_features(
    *, n_texts: int = 600, n_timed: int = 1200, home: str = "runs/explain_features"
) -> Iterator[Figure]:
    """Tune and train (or find them), explain every feature, and give every figure."""
    config, folder = load_config(PRESET), Path(home)
    with one_thread():
        train = load_texts("imdb", split="train", n=config.n_texts)
        tuning = finetune(config.base, prompts=train, **config.finetune.model_dump(), store=Store(folder / "tuning"))
        pair = load_pair(config.base, tuning.path)
        saes = train_sae(pair, SITES, train, sizes=(2,), sides=("tuned",), architecture="tied", random_twin=False,
                         store=Store(folder / "tied"))  # fmt: skip
        texts = load_texts("imdb", split="test", n=FIRST_TEXT + max(n_texts, n_timed))[FIRST_TEXT:]
        yield pass_cost(pair, saes, texts[:n_timed])
        for labeller in LABELLERS:
            yield from of_labeller(pair, saes, texts[:n_texts], labeller)


def of_labeller(pair: Pair, saes: SAESet, texts: Sequence[str], labeller: Any, **options: Any) -> Iterator[Figure]:
    """Give the scores of one labeller on all features, their controls, and its speed."""
    given = {"select": "all", "gate": "warn", "max_tokens": MAX_TOKENS} | options
    start = time.process_time()
    labels = explain(pair, saes, texts, labeller=labeller, **given)
    seconds = time.process_time() - start
    yield from of_scores(labels)
    n = len(labels.index) - labels.status.count("dead")
    whole = Estimate(n / seconds, float("nan"), float("nan"), n)
    yield _figure(f"{labels.labeller}: features per CPU-second, everything included", whole)


def of_scores(labels: Labels) -> Iterator[Figure]:
    """Give medians and means over features of every score beside its controls."""
    for score in labels.scores:
        what = f"{labels.labeller}: {score.kind}"
        own = score.own[np.isfinite(score.own)]
        yield _figure(f"{what}, median", _median(own))
        yield _figure(f"{what}, mean", score.mean)
        chance = "" if score.kind == "simulation" else "interval holds 0.5"
        yield _figure(f"{what}, mean with another feature's explanation", score.mean_shuffled, chance)
        yield _figure(f"{what}, mean of random directions", score.mean_random)
        yield _figure(f"{what}, own minus shuffled", score.lead)


def pass_cost(pair: Pair, saes: SAESet, texts: Sequence[str], *, side: str = "tuned", repeats: int = 9) -> Figure:
    """Give the CPU time of the pass over the texts over that of reading and encoding them alone; they take turns.

    The interval is between the quartiles of pairs, since one pair can be off by a third on a shared machine.
    """
    width = pair.hf(side).config.hidden_size
    parts = halves(pair, by_content(list(texts), 0), max_tokens=MAX_TOKENS, width=width, seed=0)
    jobs: dict[str, Callable[[], None]] = {
        "reading": lambda: _read(pair, saes, parts, side), "the pass": lambda: _pass(pair, saes, parts, side)
    }  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            found[name].append(time.process_time() - start)
    ratios = np.divide(found["the pass"][1:], found["reading"][1:])
    n = sum(len(half.ids) for half in parts)
    what = (
        f"CPU time of the evidence pass over reading the model and encoding the same tokens, median of {repeats} pairs"
    )
    return _figure(
        what, Estimate(float(np.median(ratios)), *map(float, np.quantile(ratios, (0.25, 0.75))), n), "at most 1.3"
    )


def _read(pair: Pair, saes: SAESet, parts: Sequence[Half], side: str) -> None:
    """Read and encode every token, as training and measuring dictionaries do."""
    model = pair.hf(side)
    modules = {site: load_sae(saes.one(site, side=side), device=pair.device) for site in saes.sites}
    with fast_matmul(), short_text_attention(model), torch.no_grad():
        for half in parts:
            streams = [(side, site) for site in modules]
            models = Models({side: model}, half.read, streams)
            for at in range(len(half.read.rows)):
                for (_, site), acts_ND in models.read(at).items():
                    modules[site].encode(acts_ND)


def _pass(pair: Pair, saes: SAESet, parts: Sequence[Half], side: str) -> None:
    shown, held = parts
    watched = {}
    for site in saes.sites:
        record = saes.one(site, side=side)
        order = np.arange(record.n_features)
        watched[site] = [Watched(record, order, None, len(shown.ids), windows_kept(10, False), pair.device)]
    pool = watch(pair, side, watched, shown, None, _Quiet())
    for (own,) in watched.values():
        own.settle(shown)
    clusters = pool.rest(watched)
    hold_out(pair, side, watched, held, clusters, None, _Quiet())


def _median(values: np.ndarray) -> Estimate:
    interval = bootstrap_interval(lambda rows: float(np.median(values[rows])), np.arange(len(values)))
    return Estimate(float(np.median(values)), *interval, len(values))


def _figure(what: str, found: Estimate, aim: str = "") -> Figure:
    return Figure("explain_features", what, found.value, found.low, found.high, found.n, aim)
