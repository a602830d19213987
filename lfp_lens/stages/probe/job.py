"""One probe of a pair: what is read of the models, and the result that is made of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from lfp_lens.core.errors import GateError
from lfp_lens.core.stats import (
    RankAgreement,
    balanced_sign_accuracy,
    frequency_deciles,
    polarity_null,
    rank_agreement,
    tau_difference,
)
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import load_sae, load_weights, random_twin
from lfp_lens.parts.signals import SIGNALS, Signal
from lfp_lens.parts.words import stem
from lfp_lens.results.contrast import Triples
from lfp_lens.results.grid import GridCell
from lfp_lens.results.probe import Learned
from lfp_lens.results.sweep import OutsideWords, Sweep
from lfp_lens.results.train_sae import SAESet
from lfp_lens.results.tunings import Tunings
from lfp_lens.stages.probe.grid import Predicted, Reading, Rows, read_grid, score_grid
from lfp_lens.stages.probe.measure import Before, Measured, measure
from lfp_lens.stages.probe.triples import TripleRows, read_triples
from lfp_lens.stages.probe.values import Values, delta_values, signal_values
from lfp_lens.stages.probe.words import MIN_NEUTRAL, MIN_WORDS, choose, matched_neutrals

MIN_MATCHED = 20


@dataclass(frozen=True, eq=False)
class Facts:
    """What was read, before any statistic."""

    measured: Measured
    stated: Mapping[str, float]
    signal: str
    given: Mapping[str, Any]
    """The arguments of the verb."""
    is_delta: bool = False
    """Whether the signal is the paper's, which takes its sign from the lexicon."""
    rows: TripleRows | None = None
    before: Before | None = None
    sweep: Sweep | None = None
    names: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """What replicates and shuffled tunings are called."""


def read_pair(
    pair: Pair, saes: SAESet | None, sites: tuple[str, ...], triples: Triples | None, stated: Mapping[str, float],
    name: str, signal: Signal | None, others: Sequence[Sequence[Pair]], given: Mapping[str, Any],
) -> Facts:  # fmt: skip
    """Read the triples, and every frequent word in its own contexts; `signal=None` is the paper's distance."""
    seed, dictionaries, rows = given["seed"], _dictionaries(pair, saes, sites, given), None
    if triples is not None:
        options = {option: given[option] for option in ("cache", "max_tokens", "seed")}
        rows = read_triples(pair, sites, dictionaries, triples, signal, stated=stated, **options)
    options = {option: given[option] for option in ("contexts", "min_contexts", "seed")}
    chosen = choose(given["texts"], pair.tokenizer, stated, max_tokens=pair.room(given["max_tokens"]), **options)
    replicates, shuffled = ([other.tuned_hf for other in some] for some in others)
    measured, sweep, before = measure(
        pair, chosen, stated, signal or SIGNALS["implicit_reward"], replicates=replicates, shuffled=shuffled,
        dictionaries=dictionaries or None, min_contexts=given["min_contexts"], seed=seed,
    )  # fmt: skip
    return Facts(measured, stated, name, given, signal is None, rows, before, sweep)


def learned(facts: Facts) -> Learned:
    """Centre, test and compare what was read."""
    measured, seed = facts.measured, facts.given["seed"]
    rated = np.array([facts.stated.get(word, 0.0) for word in measured.words])
    neutrals = _neutrals(measured, rated, facts.given["neutral_words"])
    if facts.is_delta:
        assert facts.rows is not None
        found = delta_values(
            measured, facts.rows.deltas["tuned"], facts.rows.deltas["base"], Counter(facts.rows.rows.words)
        )
    else:
        found = signal_values(measured, rated, neutrals)
    kept = np.flatnonzero((rated != 0) & np.isfinite(found.values))
    _check_polarity(rated[kept])
    words = tuple(measured.words[row] for row in kept)
    lemma = np.array([stem(word) for word in words])
    stated, values, twin, often = rated[kept], found.values[kept], found.twin[kept], measured.log_frequency[kept]
    strata = frequency_deciles(often)
    agree = lambda part: rank_agreement(part, stated, lemma, strata=strata, seed=seed)  # noqa: E731
    baselines = {"frequency": rank_agreement(often, stated, lemma, seed=seed)} if np.ptp(often) else {}
    if np.isfinite(measured.base_log_p[kept]).all():
        baselines["base_log_probability"] = agree(measured.base_log_p[kept])
    cells, probed = _grid(facts, dict(zip(words, lemma.tolist())))
    return Learned(
        words=words, stated=stated, lemma=tuple(lemma.tolist()), measured=values, measured_low=found.low[kept],
        measured_high=found.high[kept], recipe=found.recipe[0, kept], recipe_low=found.recipe[1, kept],
        recipe_high=found.recipe[2, kept], raw=found.raw[kept], contexts=found.contexts[kept], tokens=measured.tokens[kept],
        log_frequency=often, exposure=measured.exposure[kept], **_predictions(probed, words, found.scale[kept]),
        p_wrong=found.p_wrong[kept], z=found.z[kept], neutral_z=found.z[neutrals] if len(found.null) else found.null,
        neutral_words=tuple(measured.words[row] for row in neutrals), neutral=found.null,
        outside=None if facts.is_delta else _outside(measured, found, rated), signal=facts.signal,
        overall=agree(values), positive=_within(values, stated, lemma, stated > 0, seed),
        negative=_within(values, stated, lemma, stated < 0, seed),
        sign=balanced_sign_accuracy(values, stated, lemma, seed=seed), twin=agree(twin),
        by_polarity=polarity_null(values, stated, strata, groups=lemma, seed=seed),
        difference=tau_difference(values, twin, stated, lemma, seed=seed), baselines=baselines, grid=cells, sweep=facts.sweep,
        tunings=_tunings(found, kept, stated, facts.names), split=facts.given["split"],
        n_triples=0 if facts.given["triples"] is None else len(facts.given["triples"]),
    )  # fmt: skip


def _dictionaries(
    pair: Pair, saes: SAESet | None, sites: tuple[str, ...], given: Mapping[str, Any]
) -> dict[tuple[str, str], dict[str, Any]]:
    """Load the SAEs, and random ones of the same shape, by (side, name); of the change, those that pass their own gates."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    if saes is None:
        return found
    for side in sorted({sae.side for sae in saes.saes} & {"base", "tuned", "difference"}):
        own = {site: saes.one(site, side=side) for site in sites}
        if side == "difference" and given["gate"] == "refuse":
            own = {site: sae for site, sae in own.items() if not sae.failures}
        if not own:
            continue
        found[side, "sae"] = {site: load_sae(sae, device=pair.device) for site, sae in own.items()}
        if side != "base":
            found[side, "random_sae"] = {
                site: load_weights(random_twin(sae.weights, seed=given["seed"]), device=pair.device)
                for site, sae in own.items()
            }
    return found


def _grid(facts: Facts, lemma: Mapping[str, str]) -> tuple[tuple[GridCell, ...], Predicted | None]:
    """Fit every probe at the word and before it, and score the direct path beside them."""
    rows, before = facts.rows, facts.before
    if rows is None:
        return (), None
    options = {name: facts.given[name] for name in ("split", "folds", "seed")}
    readings, probed = read_grid(rows.rows, rows.readings, facts.stated, **options)
    if before is not None and not facts.is_delta:
        own = Rows(before.words, [stem(word) for word in before.words], before.source, before.target)
        readings += read_grid(own, before.readings, facts.stated, place="before", **options)[0]
        for (side, name), values in before.direct.items():
            centre = float(np.median(list(values.values())))
            readings.append(Reading(side, name, "nothing", "before", "direct", values, centre))
    of = dict(zip(rows.rows.words, rows.rows.lemma)) | dict(lemma)
    return score_grid(readings, rows.rows, facts.stated, of, seed=facts.given["seed"]), probed


def _predictions(probed: Predicted | None, words: Sequence[str], scale: np.ndarray) -> dict[str, np.ndarray]:
    """Give the probe's held-out values of these words, NaN where it has none."""
    nothing = (np.nan,) * 3
    told = np.array([probed.values.get(word, nothing) if probed else nothing for word in words]).T / scale
    rescaled = np.array([probed.rescaled.get(word, np.nan) if probed else np.nan for word in words])
    return {"predicted": told[0], "predicted_low": told[1], "predicted_high": told[2], "rescaled": rescaled}


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


def _outside(measured: Measured, found: Values, rated: np.ndarray) -> OutsideWords:
    rows = np.flatnonzero(rated == 0)
    return OutsideWords(
        tuple(measured.words[row] for row in rows), found.values[rows], found.low[rows], found.high[rows],
        found.contexts[rows], measured.tokens[rows],
    )  # fmt: skip


def _within(
    values: np.ndarray, stated: np.ndarray, lemma: np.ndarray, rows: np.ndarray, seed: int
) -> RankAgreement | None:
    if len(np.unique(lemma[rows])) < 3 or np.ptp(stated[rows]) == 0 or np.ptp(values[rows]) == 0:
        return None
    return rank_agreement(values[rows], stated[rows], lemma[rows], seed=seed)


def _tunings(found: Values, kept: np.ndarray, stated: np.ndarray, names: Sequence[tuple[str, ...]]) -> Tunings | None:
    if len(found.tunings) + len(found.shuffled) == 1:
        return None
    tau = lambda rows: np.array([stats.kendalltau(row, stated).statistic for row in rows])  # noqa: E731
    tunings, shuffled = found.tunings[:, kept], found.shuffled[:, kept]
    return Tunings(("tuned", *names[0]), tunings, tau(tunings), names[1], shuffled, tau(shuffled))
