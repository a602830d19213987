"""The screen of all features and their exact confirmation: what they cost beside one forward pass and beside exact ablation of
everything, and how well the screen ranks features of a real model.

The shape is Pythia-70m's with 1,536 features at each of five sites; speed does not depend on the weights. Exact ablation of
everything is measured on features drawn at random and multiplied up.
"""

import copy
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from lfp_lens.parts.activations import Batch, hidden_states, unembed
from lfp_lens.parts.dictionaries import Dictionary, as_dictionary
from lfp_lens.parts.pair import load_pair
from lfp_lens.parts.saes import export, new_sae
from lfp_lens.parts.scalars import SCALARS
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.parts.texts import load_texts
from lfp_lens.stages.attribute import attribute
from lfp_lens.stages.attribute.exact import exact_effects
from lfp_lens.stages.attribute.reading import Reading
from lfp_lens.stages.attribute.screens import screened
from lfp_lens.stages.attribute.subject import Subject
from lfp_lens.stages.train_sae import train_sae
from tests.benchmarks.measure import Growth, Shape, Skipped, cpu_seconds, one_thread
from tests.tiny import perturbed, sae_record


@dataclass(frozen=True)
class Ranking:
    """How well the screen ranks features of a real model."""

    bench: str
    what: str
    same_texts: float
    other_texts: float
    low: float
    high: float
    features: int
    texts: int

    def line(self) -> str:
        """Give the JSON line."""
        return json.dumps({name: round(value, 3) if isinstance(value, float) else value
                           for name, value in asdict(self).items()})  # fmt: skip


def feature_screen(
    shape: Shape | None = None,
    *,
    features: int = 1536,
    texts: int = 16,
    tokens: int = 64,
    exact_texts: int = 2,
    top: int = 200,
    drawn: int = 60,
    repeats: int = 3,
    heldout: int = 256,
    sae_tokens: int = 60_000,
) -> Iterator[Growth | Ranking | Skipped]:
    """Give what the screen and exact confirmation cost, in CPU seconds of one thread, and the rank correlation."""
    shape = shape or Shape()
    with one_thread(), fast_matmul() as is_fast:
        precision = "fp32 oneDNN" if is_fast else "fp32"
        model = shape.model()
        for architecture in ("standard", "topk"):
            subject = _subject(model, shape, architecture, features)
            what = f"{architecture}, {len(shape.sites)} sites x {features:,} features, {precision}"
            yield _screen_cost(subject, _batch(shape, texts, tokens), what, repeats)
            yield _exact_cost(subject, _batch(shape, exact_texts, tokens), what, top, drawn)
    yield _ranking(heldout, sae_tokens)


def _screen_cost(subject: Subject, batch: Batch, what: str, repeats: int) -> Growth:
    def forward() -> None:
        with torch.no_grad():
            unembed(subject.model, hidden_states(subject.model, batch))

    jobs = {"forward": forward, "screen": lambda: screened(subject, _reading(batch), [batch])}
    seconds = cpu_seconds(jobs, repeats=repeats)
    n = int(batch.mask_BS.sum())
    told = f"screen of all features over one forward pass with logits, {n:,} tokens; {what}"
    return Growth("feature_screen", told, seconds["forward"], seconds["screen"], "CPU seconds, one thread")


def _exact_cost(subject: Subject, batch: Batch, what: str, top: int, drawn: int) -> Growth:
    found = screened(subject, _reading(batch), [batch])
    names = list(zip(found.site, found.index.tolist()))
    order = np.argsort(-np.abs(found.zero), kind="stable")[:top]
    sample = np.random.default_rng(0).choice(len(names), size=min(drawn, len(names)), replace=False)

    def exact(rows: np.ndarray) -> None:
        sites = dict.fromkeys(names[row][0] for row in rows)
        exact_effects(
            subject, batch, {site: [names[row][1] for row in rows if names[row][0] == site] for site in sites}
        )

    seconds = {}
    for name, job in (("screen", lambda: screened(subject, _reading(batch), [batch])), ("top", lambda: exact(order)),
                      ("sample", lambda: exact(sample))):  # fmt: skip
        start = time.process_time()
        job()
        seconds[name] = time.process_time() - start
    everything = seconds["sample"] * len(names) / len(sample)
    told = (
        f"exact ablation of all {len(names):,} features (from {len(sample)} drawn at random) over the screen and the exact top "
        f"{len(order)}; {what}"
    )
    return Growth("feature_screen", told, seconds["screen"] + seconds["top"], everything, "CPU seconds, one thread")


def _subject(model: Any, shape: Shape, architecture: str, features: int) -> Subject:
    begin, values_V = 0, torch.randn(shape.vocabulary, generator=torch.Generator().manual_seed(0))
    dictionaries: dict[str, Dictionary] = {}
    for seed, site in enumerate(shape.sites):
        k = None if architecture == "standard" else min(32, features)
        sae = new_sae(architecture, d_in=shape.width, d_sae=features, l1=None, k=k, steps=1, seed=seed)
        record = sae_record(export(sae, site=site, model_name="bench"), "tuned", site)
        dictionaries[site] = as_dictionary(record)
    return Subject(model, None, dictionaries, SCALARS["expected_valence"], values_V, None, begin)


def _batch(shape: Shape, texts: int, tokens: int) -> Batch:
    length = min(tokens, shape.context)
    ids_BS = torch.randint(1, shape.vocabulary, (texts, length), generator=torch.Generator().manual_seed(1))
    return Batch(list(range(texts)), ids_BS, torch.ones_like(ids_BS))


def _reading(batch: Batch) -> Reading:
    n = len(batch.rows)
    return Reading([], np.arange(n), np.ones(n), False)


def _ranking(heldout: int, sae_tokens: int) -> Ranking | Skipped:
    """Compare screen and exact on `imdb-neox-2m`, moved by noise as a tuning moves it, and tied SAEs of twice its width."""
    if not os.environ.get("LFP_LENS_DATA"):
        return Skipped(
            "feature_screen", "imdb-neox-2m", "LFP_LENS_DATA does not name the folder with the model and its texts"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lfp_lens.parts.sources import model_path

    path = model_path("imdb-neox-2m")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    pair = load_pair(copy.deepcopy(model), perturbed(model, 0.005), tokenizer=tokenizer)
    saes = train_sae(
        pair, pair.sites[-5:], load_texts("imdb", n=1000), sizes=(2,), sides=("tuned",), architecture="tied",
        tokens=sae_tokens, random_twin=False,
    )  # fmt: skip
    found = attribute(pair, saes, load_texts("imdb", split="test", n=heldout), confirm=32, joint=0, gate="warn")
    spread = found.rank_correlation
    return Ranking(
        "feature_screen", "Spearman of screen and exact, features drawn at random, imdb-neox-2m, tied SAEs of width 256",
        found.agreement.value, spread.value, spread.low, spread.high, spread.n, found.n_texts,
    )  # fmt: skip
