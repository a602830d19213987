"""On an organism, whose planted words are known: does the screen find the features that exact ablation finds, and do matched
random sets look like one another?

A tiny flip organism (one tuning, about two minutes) is made or found in `runs/organism_features`, with SAEs of all its sites.
One JSON line per figure.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from lfp_lens.config import load_config
from lfp_lens.core.store import Store
from lfp_lens.organisms.folder import Organism
from lfp_lens.organisms.making import organism
from lfp_lens.parts.activations import encode, word_ids
from lfp_lens.parts.dictionaries import as_dictionary
from lfp_lens.parts.interventions import feature_edit
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.scalars import Predictions
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.parts.teacher_forced import TeacherForced
from lfp_lens.parts.texts import load_texts
from lfp_lens.parts.valence import token_values
from lfp_lens.results import FeatureSet, SAESet
from lfp_lens.stages.ablate.matched import matched_random_sets
from lfp_lens.stages.attribute import attribute
from lfp_lens.stages.train_sae import train_sae
from tests.benchmarks.measure import Figure, one_thread

PRESET = "tiny"
WORDS = 10
TOP, WITHIN = 20, 50


def organism_features(
    *, n_texts: int = 400, draws: int = 100, controls: int = 60, members: int = 20, home: str = "runs/organism_features",
    made: Organism | None = None, seed: int = 0,
) -> Iterator[Figure]:  # fmt: skip
    """Make the organism and its SAEs, and give every figure."""
    with one_thread(), fast_matmul():
        made = made or organism(
            "world",
            "flip",
            words=WORDS,
            replicates=1,
            shuffled=False,
            folder=Path(home) / "organisms",
            workers=1,
            seed=seed,
        )
        pair, config = made.pair(), load_config(PRESET)
        train = load_texts("world", split="train", n=config.n_texts)
        texts = load_texts("world", split="test", n=n_texts)
        options = config.train_sae.model_dump() | {"sides": ("tuned",), "sizes": (2,)}
        saes = train_sae(pair, pair.sites, train, **options, store=Store(Path(home) / f"saes-{made.name}"))
        yield from of_screen(pair, saes, texts, made.key().values)
        yield from of_random_sets(pair, saes, texts, draws=draws, controls=controls, members=members)


def of_screen(pair: Pair, saes: SAESet, texts: list[str], planted: dict[str, float]) -> Iterator[Figure]:
    """Compare screen and exact for the planted words' implicit reward, every feature confirmed exactly."""
    stated = load_lexicon("vader")
    first = {
        ids[0]: np.sign(stated[word]) for word, ids in zip(planted, word_ids(pair.tokenizer, list(planted))) if ids
    }
    sign_V = torch.zeros(pair.tuned_hf.config.vocab_size)
    for token, sign in first.items():
        sign_V[token] = float(sign)

    def planted_words(seen: Predictions) -> torch.Tensor:
        # The base's part of the implicit reward does not depend on the tuned model's features.
        chosen = seen.next_N.clamp(min=0)
        log_p_N = seen.logits_NV.log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
        return (log_p_N * sign_V[chosen]).masked_fill(seen.next_N < 0, 0.0)

    n = sum(one.n_features for one in saes.saes)
    options = {"scalar": planted_words, "size": 2, "confirm": n, "joint": 0, "gate": "warn"}
    half = texts[: len(texts) // 2]
    # Every text twice: the halves that screen and confirm are then the same texts.
    same = attribute(pair, saes, [text for text in half for _ in range(2)], **options)
    other = attribute(pair, saes, [text for both in zip(half, texts[len(half) :]) for text in both], **options)
    for where, found in (("on the same texts", same), ("screened on other texts", other)):
        exact, screen = np.nan_to_num(found.exact), found.screen
        best, near = np.argsort(-np.abs(exact))[:TOP], np.argsort(-np.abs(screen))[:WITHIN]
        share = float(np.isin(best, near).mean())
        what = f"of the {TOP} largest exact effects on the planted words, share among the screen's {WITHIN} largest, {where}"
        yield _figure(what, share, TOP, ">= 0.9")
        rank = float(stats.spearmanr(screen[screen != 0], exact[screen != 0]).statistic)
        yield _figure(f"Spearman of screen and exact, all features that fire, {where}", rank, int((screen != 0).sum()))


def of_random_sets(
    pair: Pair, saes: SAESet, texts: list[str], *, draws: int, controls: int, members: int, size: float = 2
) -> Iterator[Figure]:
    """Where does a random set fall among the random sets that are matched to it?"""
    encoded = encode(pair.tokenizer, texts[:60], max_tokens=48)
    values = token_values(
        pair.tokenizer, load_lexicon("vader"), texts, vocabulary=pair.tuned_hf.config.vocab_size, device="cpu"
    )
    forced = TeacherForced(pair.tuned_hf, encoded, values, begin=pair.tokenizer.bos_token_id)
    records = {site: saes.one(site, side="tuned", size=size) for site in saes.sites}
    dictionaries = {site: as_dictionary(record) for site, record in records.items()}
    generator = np.random.default_rng(0)
    alive = [(site, int(index)) for site, one in records.items() for index in np.flatnonzero(one.firing_rate > 0)]

    def drop(chosen: dict[str, Any]) -> float:
        edits = {site: feature_edit(dictionaries[site], indices) for site, indices in chosen.items()}
        return float((forced.clean.valence - forced.read(edits).valence).sum())

    percentiles = []
    for draw in range(draws):
        picked = generator.choice(len(alive), size=members, replace=False)
        own = FeatureSet(saes, tuple(alive[at] for at in picked), "tuned", size)
        others = np.array([drop(chosen) for chosen in matched_random_sets(own, controls, seed=draw)])
        mine = drop(own.by_site())
        percentiles.append(100 * ((others < mine).mean() + (others == mine).mean() / 2))
    yield _figure("mean percentile of random sets among matched ones", float(np.mean(percentiles)), draws, "41 to 59")
    test = stats.kstest(np.array(percentiles) / 100, "uniform")
    yield _figure("their Kolmogorov-Smirnov p against uniform", float(test.pvalue), draws, "> 0.001")


def _figure(what: str, value: float, n: int, aim: str = "") -> Figure:
    return Figure("organism_features", what, value, np.nan, np.nan, n, aim)
