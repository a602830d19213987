"""The verb: measure every word, centre it by words outside the lexicon, test its sign, and fit the probes beside it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from lfp_lens.core.errors import GateError, LensError, unknown
from lfp_lens.core.stats import (
    Estimate,
    RankAgreement,
    balanced_sign_accuracy,
    bootstrap_interval,
    rank_agreement,
)
from lfp_lens.core.store import Store, keep
from lfp_lens.parts.activations import encode, word_ids
from lfp_lens.parts.cache import in_key, opened
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.readings import WordTokens, aligned, embeddings, random_vectors
from lfp_lens.parts.saes import load_sae, load_weights, random_twin
from lfp_lens.parts.signals import SIGNALS, activation_delta, implicit_reward
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.parts.twins import noise_twin
from lfp_lens.parts.words import stem
from lfp_lens.results.contrast import MEMBERS, Triples
from lfp_lens.results.probe import Learned
from lfp_lens.results.train_sae import SAESet
from lfp_lens.stages.probe.grid import Rows, fit_grid, per_word
from lfp_lens.stages.probe.values import delta_values, implicit_values
from lfp_lens.stages.probe.words import MIN_NEUTRAL, MIN_WORDS, Measured, choose, matched_neutrals

GATES = ("refuse", "warn")
MIN_MATCHED = 20


def probe(
    pair: Pair,
    saes: SAESet,
    triples: Triples,
    texts: Sequence[str],
    *,
    signal: str = "implicit_reward",
    lexicon: Any = "vader",
    split: str = "lemma",
    folds: int = 5,
    contexts: int = 8,
    min_contexts: int = 3,
    neutral_words: int = 2000,
    max_tokens: int = 128,
    gate: str = "refuse",
    cache: Any = None,
    seed: int = 0,
    store: Store | None = None,
) -> Learned:
    """Measure what feedback the tuned model learned, word by word, with every control.

    Args:
        pair: base and tuned.
        saes: their dictionaries.
        triples: what the probes are fitted on.
        texts: held-out texts, where words are measured in real contexts.
        signal: `implicit_reward` (no label enters) or `activation_delta` (the paper's; signed by the label).
        lexicon: the stated feedback the words are compared with.
        split: `lemma` keeps a word's whole family on one side; `row` leaks words and is stamped.
        folds: of the cross-validation.
        contexts: occurrences measured per word, at most.
        min_contexts: words with fewer are left out.
        neutral_words: words outside the lexicon, matched on frequency and token count, that define zero; at most.
        max_tokens: texts are cut there.
        gate: `refuse` raises where no SAE is good enough to read features from; `warn` reads them all the same.
        cache: an `ActivationCache` of the triples, from `lfp_lens.cache(pair, sites, triples.up_to_word(), keep_end=True)` with
            this `max_tokens`, read in place of the models; or a folder, where one is made first. It saves the pass of each
            model over the triples for every further probe of them, with another split or signal. Texts that it lacks are
            read from the models; so are `texts`, and the log-probabilities of `implicit_reward`.
        seed: of contexts, folds, controls and bootstraps.
        store: a run's store, or None.

    Raises:
        GateError: if too few words occur, or no SAE passes its quality gates.
        LensError: for an unknown signal or split, SAEs or a cache of another pair, or fewer lemmas than folds.

    Source: arXiv 2310.08164, sections 3.3 and 4.1, with the split by word, the twins and the statistic corrected.

    >>> learned = probe(pair, saes, triples, texts); learned.wrong(fdr=0.1)  # doctest: +SKIP
    """
    inputs = dict(locals())
    if signal not in SIGNALS:
        raise unknown("signal", signal, SIGNALS)
    if saes.pair != pair.fingerprint:
        raise LensError("These SAEs were trained on another pair; train them on this one.")
    if gate not in GATES:
        raise unknown("gate", gate, GATES)
    needed = {"tuned"} if signal == "implicit_reward" else {"tuned", "base"}
    lacking = needed - {sae.side for sae in saes.saes}
    if lacking:
        raise GateError(
            f"{signal} is read from SAEs of the {' and the '.join(sorted(lacking))} model, which were not trained."
        )
    sites = saes.passing() if gate == "refuse" else saes.sites
    stated = load_lexicon(lexicon)

    def make(folder: Path | None) -> Learned:
        held = opened(cache, pair, saes.sites, triples.up_to_word(), max_tokens=max_tokens, keep_end=True)
        with fast_matmul():
            return _probe(pair, saes, sites, triples, texts, stated, inputs | {"cache": held})

    return keep(store, "probe", in_key(inputs) | {"lexicon": stated}, make)


def _probe(
    pair: Pair,
    saes: SAESet,
    sites: tuple[str, ...],
    triples: Triples,
    texts: Sequence[str],
    stated: Mapping[str, float],
    given: Mapping[str, Any],
) -> Learned:
    seed, signal = given["seed"], given["signal"]
    rows, readings, deltas = _triple_rows(pair, saes, sites, triples, given)
    measured = _measure(pair, texts, stated, given)
    rated = np.array([stated.get(word, 0.0) for word in measured.words])
    neutrals = _neutrals(measured, rated, given["neutral_words"])
    if signal == "activation_delta":
        found = delta_values(measured, deltas["tuned"], deltas["base"], Counter(rows.words))
    else:
        found = implicit_values(measured, rated, neutrals)
    kept = np.flatnonzero((rated != 0) & np.isfinite(found.values))
    _check_polarity(rated[kept])
    words, lemma = tuple(measured.words[row] for row in kept), np.array([stem(measured.words[row]) for row in kept])
    of = {"values": found.values[kept], "rated": rated[kept], "lemma": lemma}
    cells, predicted = fit_grid(rows, readings, stated, split=given["split"], folds=given["folds"], seed=seed)
    agree = lambda part: rank_agreement(part, of["rated"], lemma, seed=seed)  # noqa: E731
    return Learned(
        words=words, stated=of["rated"], lemma=tuple(lemma.tolist()), measured=of["values"],
        measured_low=found.low[kept], measured_high=found.high[kept], raw=found.raw[kept],
        contexts=found.contexts[kept], tokens=measured.tokens[kept], log_frequency=measured.log_frequency[kept],
        predicted=np.array([predicted.get(word, np.nan) for word in words]) / found.scale,
        p_wrong=found.p_wrong[kept], neutral_words=tuple(measured.words[row] for row in neutrals), neutral=found.null,
        signal=signal, overall=agree(of["values"]), positive=_within(of, of["rated"] > 0, seed),
        negative=_within(of, of["rated"] < 0, seed),
        sign=balanced_sign_accuracy(of["values"], of["rated"], lemma, seed=seed), twin=agree(found.twin[kept]),
        shuffled=_shuffled(of, seed), difference=_difference(of, found.twin[kept], seed),
        baselines={"frequency": agree(measured.log_frequency[kept]),
                   "base_log_probability": agree(measured.base_log_p[kept])},
        grid=cells, between_tunings="unknown: one checkpoint", split=given["split"], n_triples=len(triples),
    )  # fmt: skip


def _neutrals(measured: Measured, rated: np.ndarray, n: int) -> np.ndarray:
    """Give the rows of the words that define zero. Raises `GateError` if too few words align with whole tokens."""
    n_stated = int((rated != 0).sum())
    if n_stated < MIN_WORDS or len(rated) - n_stated < MIN_NEUTRAL:
        raise GateError(
            f"{n_stated} lexicon words and {len(rated) - n_stated} others align with whole tokens often enough; "
            f"{MIN_WORDS} and {MIN_NEUTRAL} are needed. Give more texts, or a tokenizer that keeps words apart."
        )
    neutrals = matched_neutrals(measured.log_frequency, measured.tokens, rated != 0, n)
    if len(neutrals) < MIN_MATCHED:
        raise GateError(
            f"{len(neutrals)} words outside the lexicon match its words in token count; {MIN_MATCHED} are needed to define "
            "zero. Give more texts, or raise neutral_words."
        )
    return neutrals


def _check_polarity(rated: np.ndarray) -> None:
    up, down = int((rated > 0).sum()), int((rated < 0).sum())
    if not up or not down or len(rated) < 3:
        raise GateError(
            f"{up} positive and {down} negative words of the lexicon were measured; both are needed, and three words. Give "
            "more texts, or a lexicon with both."
        )


def _measure(pair: Pair, texts: Sequence[str], stated: Mapping[str, float], given: Mapping[str, Any]) -> Measured:
    """Measure the implicit reward of every frequent word in its own contexts, on the tuned model and on the noise twin."""
    options = {name: given[name] for name in ("contexts", "min_contexts", "seed")}
    options["max_tokens"] = pair.room(given["max_tokens"])
    encoded, spots, counts = choose(texts, pair.tokenizer, stated, **options)
    spans: list[list[tuple[int, int]]] = [[] for _ in texts]
    order: list[list[str]] = [[] for _ in texts]
    for spot in spots:
        spans[spot.text].append((spot.start, spot.end))
        order[spot.text].append(spot.word)
    twin = noise_twin(pair.base_hf, pair.tuned_hf, seed=given["seed"])
    (tuned_values, twin_values), base_log_p = implicit_reward(pair.base_hf, [pair.tuned_hf, twin], encoded, spans)
    words = np.array([word for row in order for word in row])
    fits = np.isfinite(tuned_values)
    names, codes, sizes = np.unique(words[fits], return_inverse=True, return_counts=True)
    enough = sizes >= given["min_contexts"]
    mean = lambda part: np.bincount(codes, part[fits]) / sizes  # noqa: E731
    value = mean(tuned_values)
    spread = np.sqrt(np.maximum(mean(tuned_values**2) - value**2, 0) * sizes / np.maximum(sizes - 1, 1))
    # One context has no spread: its interval is unknown, not empty.
    spread[sizes < 2] = np.nan
    margin = stats.t.ppf(0.975, np.maximum(sizes - 1, 1)) * spread / np.sqrt(sizes)
    tokens = np.array([len(ids) for ids in word_ids(pair.tokenizer, names.tolist())])
    log_frequency = np.log1p([counts[str(name)] for name in names])
    of_base, of_twin = mean(base_log_p), mean(twin_values)
    parts = (value, value - margin, value + margin, sizes, tokens, log_frequency, of_base, of_twin)
    return Measured(tuple(names[enough].tolist()), *(part[enough] for part in parts))


def _triple_rows(
    pair: Pair, saes: SAESet, sites: tuple[str, ...], triples: Triples, given: Mapping[str, Any]
) -> tuple[Rows, dict[tuple[str, str], np.ndarray], dict[str, dict[str, float]]]:
    """Read every member of every triple at its word; give rows, readings, and each side's delta by word (the paper's).

    Only the left context is encoded, its last `max_tokens` tokens: what follows a word cannot change what a causal model
    computes at it.
    """
    seed, signal, have = given["seed"], given["signal"], {sae.side for sae in saes.saes}
    room = pair.room(given["max_tokens"])
    encoded = {
        member: encode(pair.tokenizer, triples.up_to_word(member), max_tokens=room, keep_end=True) for member in MEMBERS
    }
    spans = {member: triples.spans(member) for member in MEMBERS}
    usable = sorted(set.intersection(*(set(aligned(encoded[member], spans[member])) for member in MEMBERS)))
    alone = _alone(pair, triples)
    usable = [row for row in usable if all(alone[triples.words(member)[row].lower()] for member in MEMBERS)]
    if len(usable) < 10:
        raise GateError(f"The words of {len(usable)} of {len(triples)} triples align with whole tokens; 10 are needed.")
    texts = [encoded[member][row] for member in MEMBERS for row in usable]
    places = [spans[member][row] for member in MEMBERS for row in usable]
    words = [triples.words(member)[row].lower() for member in MEMBERS for row in usable]
    readings: dict[tuple[str, str], np.ndarray] = {}
    n = len(usable)
    deltas: dict[str, np.ndarray] = {}
    by_word: dict[str, dict[str, float]] = {}
    for side in ("tuned", "base"):
        seen = WordTokens(pair.hf(side), texts, places, sites, cache=given["cache"], side=side)
        readings[side, "raw"] = seen.raw()
        if side not in have:
            continue
        features = seen.features({site: load_sae(saes.one(site, side=side)) for site in sites})
        readings[side, "sae"] = features
        up, down = activation_delta(features[:n], features[n : 2 * n], features[2 * n :])
        deltas[side] = np.concatenate([up, np.zeros(n), down])
        by_word[side] = per_word(np.concatenate([up, down]), words[:n] + words[2 * n :])
        if side == "tuned":
            untrained = {
                site: load_weights(random_twin(saes.one(site, side=side).weights, seed=seed)) for site in sites
            }
            readings[side, "random_sae"] = seen.features(untrained)
    readings["none", "embedding"] = embeddings(pair.base_hf, pair.tokenizer, words)
    readings["none", "random"] = random_vectors(words, seed=seed)
    if signal == "activation_delta":
        target = deltas["tuned"]
    else:
        (values,), _ = implicit_reward(pair.base_hf, [pair.tuned_hf], texts, [[place] for place in places])
        target = values
    return Rows(words, [stem(word) for word in words], target), readings, by_word


def _alone(pair: Pair, triples: Triples) -> dict[str, list[int]]:
    """Give the tokens of every word as it stands after another one, empty where it is not made of whole tokens."""
    words = sorted({word.lower() for member in MEMBERS for word in triples.words(member)})
    return dict(zip(words, word_ids(pair.tokenizer, words))) if words else {}


def _within(of: Mapping[str, np.ndarray], rows: np.ndarray, seed: int) -> RankAgreement | None:
    if rows.sum() < 3 or np.ptp(of["rated"][rows]) == 0:
        return None
    return rank_agreement(of["values"][rows], of["rated"][rows], of["lemma"][rows], seed=seed)


def _shuffled(of: Mapping[str, np.ndarray], seed: int, draws: int = 200) -> Estimate:
    """Give tau-b when stated values are permuted within each polarity: what polarity alone is worth."""
    generator = np.random.default_rng(seed)
    sign, found = np.sign(of["rated"]), []
    for _ in range(draws):
        rated = of["rated"].copy()
        for side in (-1, 1):
            rated[sign == side] = generator.permutation(rated[sign == side])
        found.append(stats.kendalltau(of["values"], rated).statistic)
    low, high = np.quantile(found, (0.025, 0.975))
    return Estimate(float(np.mean(found)), float(low), float(high), len(sign))


def _difference(of: Mapping[str, np.ndarray], twin: np.ndarray, seed: int) -> Estimate:
    """Give tau(tuned) - tau(twin), both computed on the same resampled lemmas."""

    def gap(rows: np.ndarray) -> float:
        tau = lambda part: stats.kendalltau(part[rows], of["rated"][rows]).statistic  # noqa: E731
        return float(tau(of["values"]) - tau(twin))

    low, high = bootstrap_interval(gap, of["lemma"], draws=500, seed=seed)
    return Estimate(gap(np.arange(len(twin))), low, high, len(twin))
