"""What did a real tuning learn? `imdb-neox-2m` tuned on VADER and on a shuffled VADER, three seeds each, measured word by word.

Needs the folder that LFP_LENS_DATA names. The six tunings (five minutes each on one core) are kept in `runs/learned_feedback`,
so that a second run only measures. One JSON line per figure.
"""

import gzip
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lfp_lens.config import load_config
from lfp_lens.core.stats import balanced_sign_accuracy, frequency_deciles, polarity_null, rank_agreement
from lfp_lens.core.store import Store
from lfp_lens.parts.activations import encode, text_log_probs
from lfp_lens.parts.lexicons import load_lexicon, shuffled
from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.parts.sources import data_folder
from lfp_lens.parts.texts import load_texts
from lfp_lens.parts.words import find_words
from lfp_lens.results import Learned
from lfp_lens.stages.finetune import finetune
from lfp_lens.stages.probe import probe
from tests.benchmarks.measure import one_thread

PRESET = "imdb-2m-vader"
RATED = "sentiment_ratings/movie_review_snippets.jsonl.gz"
FREQUENT = 300
SHUFFLE = 1
"""Seed of the shuffled lexicon; the seeds of the tunings are apart from it."""
FLOORS = (300, 100, 30)
"""Least occurrences of a word in the train reviews."""


@dataclass(frozen=True)
class Figure:
    """One figure, with what it should reach (None: nothing is asked)."""

    what: str
    value: float
    low: float
    high: float
    n: int
    aim: str = ""

    def line(self) -> str:
        """Give the JSON line."""
        rounded = {name: round(part, 3) if isinstance(part, float) else part for name, part in asdict(self).items()}
        return json.dumps({"bench": "learned_feedback", **rounded})


def learned_feedback(
    *, seeds: Sequence[int] = (0, 1, 2), n_texts: int = 6000, home: str = "runs/learned_feedback"
) -> Iterator[Figure]:
    """Tune (or find) the checkpoints, measure them all in one call, and give every figure."""
    config, vader = load_config(PRESET), load_lexicon("vader")
    other = shuffled(vader, seed=SHUFFLE)
    with one_thread():
        tuned = [_tuned(config, "vader", seed, home) for seed in seeds]
        permuted = [_tuned(config, other, seed, home) for seed in seeds]
        texts = load_texts("imdb", split="test", n=n_texts, seed=0)
        counts = occurrences()
        pair = load_pair(config.base, tuned[0])
        started = time.process_time()
        learned = probe(pair, texts=texts, replicates=tuned[1:], shuffled=permuted, min_contexts=6)
        yield Figure(
            "CPU seconds of the measurement", time.process_time() - started, np.nan, np.nan, len(learned.words)
        )
        yield from of_checkpoint(learned, counts)
        yield from of_recipe(learned)
        yield from of_flips(learned, "three tunings")
        for name, path in zip(learned.tunings.names if learned.tunings else (), tuned):
            for min_contexts in (3, 6):
                alone = probe(load_pair(config.base, path), texts=texts, min_contexts=min_contexts)
                yield _count(f"wrong words (FDR 10 %), {name} alone, {min_contexts} contexts or more", alone, "0")
                if min_contexts == 6:
                    yield from of_flips(alone, f"{name} alone")
        yield from of_sentences(pair, load_pair(config.base, permuted[0]), vader)
        own = probe(load_pair(config.base, permuted[0]), texts=texts, lexicon=other, min_contexts=6)
    yield from of_shuffled(own, vader, counts)


def _tuned(config: Any, reward: Any, seed: int, home: str) -> Path:
    options = {name: getattr(config.finetune, name) for name in type(config.finetune).model_fields} | {"reward": reward}
    prompts = load_texts(config.texts, split="train", n=config.n_texts, column=config.column, seed=0)
    name = "vader" if isinstance(reward, str) else "shuffled"
    found = finetune(
        config.base, prompts=prompts, **options, seed=seed, device="cpu", store=Store(Path(home) / f"{name}{seed}")
    )
    assert found.is_learned, (name, seed, found.reasons)
    return Path(found.path)


def occurrences() -> Counter[str]:
    """Count case-folded matches of [a-z']+ in the train reviews."""
    counts: Counter[str] = Counter()
    for text in load_texts("imdb", split="train", seed=0):
        counts.update(re.findall(r"[a-z']+", text.lower()))
    return counts


def of_checkpoint(learned: Learned, counts: Counter[str]) -> Iterator[Figure]:
    """Give the figures of the first checkpoint alone."""
    often = np.array([counts[word] for word in learned.words])
    lemma = np.array(learned.lemma)
    aims = {300: "at least 0.6", 100: "at least 0.45"}
    for least in FLOORS:
        rows = often >= least
        yield _tau(f"tau-b with VADER, {least}+ occurrences", learned, rows, aims.get(least, ""))
        for sign, name, aim in ((1, "positives", "at least 0.30"), (-1, "negatives", "at least 0.18")):
            within = rows & (np.sign(learned.stated) == sign)
            yield _tau(f"within {name}, {least}+", learned, within, aim if least == 300 else "")
        found = balanced_sign_accuracy(learned.measured[rows], learned.stated[rows], lemma[rows])
        aim = "at least 0.88" if least == 300 else ""
        yield Figure(f"balanced sign accuracy, {least}+", found.value, found.low, found.high, found.n, aim)
        null = polarity_null(
            learned.measured[rows],
            learned.stated[rows],
            frequency_deciles(learned.log_frequency[rows]),
            groups=lemma[rows],
        ).null
        yield Figure(
            f"values permuted within sign and frequency decile, {least}+", null.value, null.low, null.high, null.n
        )
    for name in ("tokens", "exposure"):
        for row in learned.by(name).itertuples():
            yield Figure(f"tau-b, {name} {row._1:.3g} to {row.to:.3g}", row.tau, row.low, row.high, row.n)
    yield _count("words learned with the wrong sign (FDR 10 %), first checkpoint and its replicates", learned, "0")


def of_recipe(learned: Learned) -> Iterator[Figure]:
    """Give the figures over tunings."""
    found = learned.tunings
    assert found is not None
    for name, tau in zip((*found.names, *found.shuffled_names), (*found.tau, *found.shuffled_tau)):
        yield Figure(f"tau-b with VADER, all words: {name}", float(tau), np.nan, np.nan, len(learned.words))
    yield Figure("correlation of two tunings", found.reliability, np.nan, np.nan, len(learned.words))
    if found.over_shuffled is not None:
        gap = found.over_shuffled
        yield Figure("headline: tau-b(VADER tunings) - tau-b(shuffled tunings)", gap.value, gap.low, gap.high, gap.n)


def of_flips(learned: Learned, name: str, words: int = 30, draws: int = 100) -> Iterator[Figure]:
    """Turn stated values of frequent strong words round and ask which words were learned otherwise than so stated."""
    strong = np.flatnonzero(np.abs(learned.stated) >= 1)
    frequent = strong[np.argsort(-learned.log_frequency[strong], kind="stable")[:FREQUENT]]
    generator = np.random.default_rng(0)
    found, false = [], []
    for _ in range(draws):
        turned = {learned.words[row] for row in generator.choice(frequent, words, replace=False)}
        against = {word: -value if word in turned else value for word, value in zip(learned.words, learned.stated)}
        listed = set(learned.wrong(against=against)["word"])
        found.append(len(listed & turned) / words)
        false.append(len(listed - turned))
    low, high = np.quantile(found, (0.025, 0.975))
    what = f"{words} of the {FREQUENT} most frequent strong words stated with the opposite sign, {name}"
    yield Figure(f"{what}: share found (mean, central 95 % of {draws} draws)", float(np.mean(found)), low, high, draws)
    yield Figure(f"{what}: other words listed per draw", float(np.mean(false)), np.nan, np.nan, draws)


def of_shuffled(own: Learned, vader: dict[str, float], counts: Counter[str]) -> Iterator[Figure]:
    """Give the figures of a tuning on the shuffled lexicon, with its own reward and with VADER."""
    rows = np.array([counts[word] for word in own.words]) >= FLOORS[0]
    yield _tau("shuffled tuning with its own reward, 300+", own, rows, "at least 0.45")
    words = np.array(own.words)[rows]
    stated = np.array([vader[word] for word in words])
    found = rank_agreement(own.measured[rows], stated, np.array(own.lemma)[rows])
    yield Figure(
        "shuffled tuning with VADER, 300+", found.tau, found.low, found.high, found.n, "at most 0.11 either way"
    )
    yield _count("wrong words of the shuffled tuning by its own reward (FDR 10 %)", own, "0")


def of_sentences(pair: Pair, other: Pair, vader: dict[str, float], n: int = 3000) -> Iterator[Figure]:
    """Compare whole sentences of movie reviews with the mean of their human ratings, which no tuning saw."""
    folder = data_folder()
    assert folder is not None, "LFP_LENS_DATA names the folder of the ratings"
    with gzip.open(folder / RATED, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [rows[at] for at in np.random.default_rng(0).permutation(len(rows))[:n]]
    texts, human = [row["text"] for row in rows], np.array([row["score"] for row in rows])
    encoded = encode(pair.tokenizer, texts, max_tokens=128)
    log_p = {
        name: [part.double().numpy() for part in text_log_probs(model, encoded, device=pair.device)]
        for name, model in (("base", pair.base_hf), ("tuned", pair.tuned_hf), ("shuffled", other.tuned_hf))
    }
    sums = {name: np.array([part.sum() for part in parts]) for name, parts in log_p.items()}
    length = np.array([len(part) for part in log_p["base"]])
    told = {
        "implicit reward, sum": sums["tuned"] - sums["base"],
        "implicit reward, mean per token": (sums["tuned"] - sums["base"]) / length,
        "implicit reward of the shuffled tuning, sum": sums["shuffled"] - sums["base"],
        "base log-probability, mean per token": sums["base"] / length,
        "length in tokens": length.astype(float),
        "VADER's own sum": np.array([sum(vader.get(spot.word, 0.0) for spot in find_words([text])) for text in texts]),
    }
    for name, values in told.items():
        found = rank_agreement(values, human, draws=500)
        yield Figure(f"sentences, tau-b with human ratings: {name}", found.tau, found.low, found.high, found.n)


def _tau(what: str, learned: Learned, rows: np.ndarray, aim: str) -> Figure:
    found = rank_agreement(learned.measured[rows], learned.stated[rows], np.array(learned.lemma)[rows])
    return Figure(what, found.tau, found.low, found.high, found.n, aim)


def _count(what: str, learned: Learned, aim: str) -> Figure:
    return Figure(what, float(len(learned.wrong())), np.nan, np.nan, len(learned.words), aim)
