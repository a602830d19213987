"""The verb: measure every word, centre it by words outside the lexicon, test its sign, and read the models beside it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from lfp_lens.core.errors import GateError, LensError, unknown
from lfp_lens.core.stats import (
    RankAgreement,
    balanced_sign_accuracy,
    frequency_deciles,
    polarity_null,
    rank_agreement,
    tau_difference,
)
from lfp_lens.core.store import Store, keep
from lfp_lens.parts.cache import in_key, opened
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.replicates import listed, open_replicates
from lfp_lens.parts.saes import load_sae, load_weights, random_twin
from lfp_lens.parts.signals import DELTA, SIGNALS, Signal, make_signal
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.parts.words import stem
from lfp_lens.results.contrast import PreferenceTriples, Triples
from lfp_lens.results.preference_probe import LearnedPreference
from lfp_lens.results.probe import Learned
from lfp_lens.results.train_sae import SAESet
from lfp_lens.results.tunings import Tunings
from lfp_lens.stages.probe.grid import SPLITS, Reading, Rows, read_grid, score_grid
from lfp_lens.stages.probe.measure import Before, Measured, measure
from lfp_lens.stages.probe.preferences import probe_preferences
from lfp_lens.stages.probe.triples import TripleRows, read_triples
from lfp_lens.stages.probe.values import Values, delta_values, signal_values
from lfp_lens.stages.probe.words import MIN_NEUTRAL, MIN_WORDS, choose, matched_neutrals

GATES = ("refuse", "warn")
MIN_MATCHED = 20
PREFERENCE_ARGUMENTS = ("folds", "max_tokens", "gate", "cache", "seed")
"""What counts for preference triples too."""


def probe(
    pair: Pair,
    saes: SAESet | None = None,
    triples: Triples | PreferenceTriples | None = None,
    texts: Sequence[str] | None = None,
    *,
    signal: Any = "implicit_reward",
    lexicon: Any = "vader",
    split: str = "lemma",
    folds: int = 5,
    contexts: int = 8,
    min_contexts: int = 3,
    neutral_words: int = 2000,
    max_tokens: int = 128,
    replicates: Any = (),
    shuffled: Any = (),
    gate: str = "refuse",
    cache: Any = None,
    seed: int = 0,
    store: Store | None = None,
) -> Learned | LearnedPreference:
    """Measure what feedback the tuned model learned, word by word, with every control.

    Args:
        pair: base and tuned.
        saes: their dictionaries; None, with `triples=None`, measures words and reads nothing else of the models.
        triples: what the probes are fitted on. `PreferenceTriples` belong to a task, not to a lexicon: they get a logistic
            probe, need no `texts`, and give a `LearnedPreference`.
        texts: held-out texts, where words are measured in real contexts.
        signal: `implicit_reward` (no label enters), `valence_shift` (what the tuned model expects after the word),
            `activation_delta` (the paper's; signed by the label; needs SAEs and triples), a `Signal`, or a function of
            `parts.signals.Seen`.
        lexicon: the stated feedback the words are compared with.
        split: `lemma` keeps a word's whole family, and every text, on one side; `row` leaks both and is stamped.
        folds: of the cross-validation.
        contexts: occurrences measured per word, at most.
        min_contexts: words with fewer are left out.
        neutral_words: words outside the lexicon, matched on frequency and token count, that define zero; at most.
        max_tokens: texts are cut there.
        replicates: other tunings of the same base that differ from `tuned` by their seed alone (hub names, folders, models or
            pairs): they give the interval over tunings, and sharpen the test of a wrong sign.
        shuffled: tunings by the same recipe on a reward that says nothing (`parts.lexicons.shuffled`): the null over tunings.
        gate: `refuse` raises where no SAE is good enough to read features from; `warn` reads them all the same.
        cache: an `ActivationCache` of the triples, from `lfp_lens.cache(pair, sites, triples.up_to_word(), keep_end=True)` with
            this `max_tokens`, read in place of the models; or a folder, where one is made first. It saves the pass of each
            model over the triples for every further probe of them, with another split or signal. Texts that it lacks are
            read from the models; so are `texts`, and the log-probabilities of `implicit_reward`.
        seed: of contexts, folds, controls and bootstraps.
        store: a run's store, or None.

    Raises:
        GateError: if too few words occur, or no SAE passes its quality gates.
        LensError: for an unknown signal or split, SAEs or a cache of another pair, fewer lemmas than folds, a replicate that is
            another kind of tuning, or arguments that preference triples do not take.

    Source: arXiv 2310.08164, sections 3.3 and 4.1, with the split by word, the twins and the statistic corrected.

    >>> learned = probe(pair, saes, triples, texts); learned.wrong(fdr=0.1)  # doctest: +SKIP
    >>> probe(pair, texts=texts, replicates=["seed1", "seed2"]).tunings.reliability  # doctest: +SKIP
    """
    inputs = dict(locals())
    if gate not in GATES:
        raise unknown("gate", gate, GATES)
    if isinstance(triples, PreferenceTriples):
        return _preferences(inputs)
    name, made = (DELTA, None) if signal == DELTA else make_signal(signal)
    _check(inputs, name)
    stated = load_lexicon(lexicon)
    sites: tuple[str, ...] = ()
    if saes is not None:
        sites = saes.passing() if gate == "refuse" else saes.sites
    others = [open_replicates(pair, listed(given), kind=kind)
              for given, kind in ((replicates, "replicate"), (shuffled, "shuffled tuning"))]  # fmt: skip
    _check_copies(pair, *others)
    keyed = inputs | {
        "lexicon": stated,
        "signal": name if isinstance(signal, str) else made,
        "replicates": [other.fingerprint for other in others[0]],
        "shuffled": [other.fingerprint for other in others[1]],
    }

    def make(folder: Path | None) -> Learned:
        held = None
        if saes is not None and triples is not None:
            held = opened(cache, pair, saes.sites, triples.up_to_word(), max_tokens=max_tokens, keep_end=True)
        names = [_names(given, kind) for given, kind in ((replicates, "replicate"), (shuffled, "shuffled tuning"))]
        with fast_matmul():
            return _Work(pair, saes, sites, triples, stated, name, made, inputs | {"cache": held}).learned(
                others, names
            )

    return keep(store, "probe", in_key(keyed), make)


def _preferences(inputs: Mapping[str, Any]) -> LearnedPreference:
    """Hand preference triples to the logistic probe; what only words have is refused where it was changed."""
    import inspect

    usual = {name: part.default for name, part in inspect.signature(probe).parameters.items()}
    known = {"pair", "saes", "triples", "store", *PREFERENCE_ARGUMENTS}
    odd = [
        name for name in inputs if name not in known and inputs[name] is not usual[name] and inputs[name] != usual[name]
    ]
    if odd:
        raise LensError(
            f"Preference triples belong to a task, not to a lexicon: {', '.join(odd)} cannot be used with them. They take "
            f"{', '.join(PREFERENCE_ARGUMENTS)}."
        )
    if inputs["saes"] is None:
        raise LensError("A preference probe reads SAE features: give saes, of the base and of the tuned model.")
    options = {name: inputs[name] for name in PREFERENCE_ARGUMENTS}
    given = {name: inputs[name] for name in ("pair", "saes", "triples")}

    def make(folder: Path | None) -> LearnedPreference:
        return probe_preferences(*given.values(), **options)

    return keep(inputs["store"], "probe", in_key(given | options), make)


def _check(given: Mapping[str, Any], name: str) -> None:
    pair, saes, triples, texts = (given[part] for part in ("pair", "saes", "triples", "texts"))
    if (saes is None) != (triples is None):
        raise LensError("Probes are fitted on triples and read SAE features: give both saes and triples, or neither.")
    if texts is None:
        raise LensError("probe measures words in texts: give held-out texts.")
    if given["split"] not in SPLITS:
        raise LensError(f"split must be 'lemma' or 'row'; {given['split']!r} given.")
    if saes is None:
        if name == DELTA:
            raise LensError(f"{DELTA} is a distance between SAE features: give saes and triples.")
        return
    if saes.pair != pair.fingerprint:
        raise LensError("These SAEs were trained on another pair; train them on this one.")
    lacking = ({"tuned", "base"} if name == DELTA else {"tuned"}) - {sae.side for sae in saes.saes}
    if lacking:
        raise GateError(
            f"{name} is read from SAEs of the {' and the '.join(sorted(lacking))} model, which were not trained."
        )


def _check_copies(pair: Pair, replicates: Sequence[Pair], shuffled: Sequence[Pair]) -> None:
    """Refuse a checkpoint that is given twice: a copy would vary by nothing."""
    counts = Counter([pair.fingerprint, *(other.fingerprint for other in (*replicates, *shuffled))])
    if max(counts.values()) > 1:
        raise LensError(
            "The same checkpoint is given twice among tuned, replicates and shuffled: a copy is no further tuning."
        )


def _names(given: Any, kind: str) -> tuple[str, ...]:
    return tuple(
        Path(one).name if isinstance(one, (str, Path)) else f"{kind} {at}" for at, one in enumerate(listed(given), 1)
    )


class _Work:
    """One call of the verb."""

    def __init__(
        self, pair: Pair, saes: SAESet | None, sites: tuple[str, ...], triples: Triples | None, stated: Mapping[str, float],
        name: str, signal: Signal | None, given: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.pair, self.saes, self.sites, self.triples = pair, saes, sites, triples
        self.stated, self.name, self.signal, self.given, self.seed = stated, name, signal, given, given["seed"]

    def learned(self, others: Sequence[Sequence[Pair]], names: Sequence[tuple[str, ...]]) -> Learned:
        """Measure, test and read."""
        given, stated, seed = self.given, self.stated, self.seed
        dictionaries, rows = self._dictionaries(), None
        if self.triples is not None:
            rows = read_triples(
                self.pair, self.sites, dictionaries, self.triples, self.signal, stated=stated,
                **{option: given[option] for option in ("cache", "max_tokens", "seed")},
            )  # fmt: skip
        chosen = choose(
            given["texts"], self.pair.tokenizer, stated, max_tokens=self.pair.room(given["max_tokens"]),
            **{option: given[option] for option in ("contexts", "min_contexts", "seed")},
        )  # fmt: skip
        replicates, shuffled = ([other.tuned_hf for other in some] for some in others)
        measured, sweep, before = measure(
            self.pair, chosen, stated, self.signal or SIGNALS["implicit_reward"], replicates=replicates, shuffled=shuffled,
            dictionaries=dictionaries or None, min_contexts=given["min_contexts"], seed=seed,
        )  # fmt: skip
        rated = np.array([stated.get(word, 0.0) for word in measured.words])
        neutrals = _neutrals(measured, rated, given["neutral_words"])
        if self.signal is None:
            assert rows is not None
            found = delta_values(measured, rows.deltas["tuned"], rows.deltas["base"], Counter(rows.rows.words))
        else:
            found = signal_values(measured, rated, neutrals)
        kept = np.flatnonzero((rated != 0) & np.isfinite(found.values))
        _check_polarity(rated[kept])
        return self._result(measured, found, rated, kept, neutrals, rows, before, sweep, names)

    def _dictionaries(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Load the SAEs, and random ones of the same shape, by (side, name)."""
        if self.saes is None:
            return {}
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for side in sorted({sae.side for sae in self.saes.saes} & {"base", "tuned", "difference"}):
            own = {site: self.saes.one(site, side=side) for site in self.sites}
            found[side, "sae"] = {site: load_sae(sae, device=self.pair.device) for site, sae in own.items()}
            if side != "base":
                found[side, "random_sae"] = {
                    site: load_weights(random_twin(sae.weights, seed=self.seed), device=self.pair.device)
                    for site, sae in own.items()
                }
        return found

    def _result(
        self, measured: Measured, found: Values, rated: np.ndarray, kept: np.ndarray, neutrals: np.ndarray,
        rows: TripleRows | None, before: Before | None, sweep: Any, names: Sequence[tuple[str, ...]],
    ) -> Learned:  # fmt: skip
        seed = self.seed
        words = tuple(measured.words[row] for row in kept)
        lemma = np.array([stem(word) for word in words])
        stated, values, twin = rated[kept], found.values[kept], found.twin[kept]
        strata = frequency_deciles(measured.log_frequency[kept])
        agree = lambda part: rank_agreement(part, stated, lemma, strata=strata, seed=seed)  # noqa: E731
        cells, probed = self._grid(rows, before, dict(zip(words, lemma.tolist())))
        nothing = (np.nan,) * 3
        told = np.array([probed.values.get(word, nothing) if probed else nothing for word in words]).T / found.scale
        rescaled = np.array([probed.rescaled.get(word, np.nan) if probed else np.nan for word in words])
        return Learned(
            words=words, stated=stated, lemma=tuple(lemma.tolist()), measured=values, measured_low=found.low[kept],
            measured_high=found.high[kept], recipe=found.recipe[0, kept], recipe_low=found.recipe[1, kept],
            recipe_high=found.recipe[2, kept], raw=found.raw[kept], contexts=found.contexts[kept], tokens=measured.tokens[kept],
            log_frequency=measured.log_frequency[kept], exposure=measured.exposure[kept], predicted=told[0],
            predicted_low=told[1], predicted_high=told[2], rescaled=rescaled, p_wrong=found.p_wrong[kept], z=found.z[kept],
            neutral_z=found.z[neutrals] if len(found.null) else found.null,
            neutral_words=tuple(measured.words[row] for row in neutrals), neutral=found.null, signal=self.name,
            overall=agree(values), positive=_within(values, stated, lemma, stated > 0, seed),
            negative=_within(values, stated, lemma, stated < 0, seed),
            sign=balanced_sign_accuracy(values, stated, lemma, seed=seed), twin=agree(twin),
            by_polarity=polarity_null(values, stated, strata, groups=lemma, seed=seed),
            difference=tau_difference(values, twin, stated, lemma, seed=seed),
            baselines={"frequency": rank_agreement(measured.log_frequency[kept], stated, lemma, seed=seed),
                       "base_log_probability": agree(measured.base_log_p[kept])},
            grid=cells, sweep=sweep, tunings=_tunings(found, kept, stated, names), split=self.given["split"],
            n_triples=0 if self.triples is None else len(self.triples),
        )  # fmt: skip

    def _grid(self, rows: TripleRows | None, before: Before | None, lemma: Mapping[str, str]) -> tuple[Any, Any]:
        """Fit every probe at the word and before it, and score the direct path beside them."""
        if rows is None:
            return (), None
        options = {"split": self.given["split"], "folds": self.given["folds"], "seed": self.seed}
        readings, probed = read_grid(rows.rows, rows.readings, self.stated, **options)
        if before is not None and self.signal is not None:
            own = Rows(before.words, [stem(word) for word in before.words], before.source, before.target)
            readings += read_grid(own, before.readings, self.stated, place="before", **options)[0]
            for (side, name), values in before.direct.items():
                centre = float(np.median(list(values.values())))
                readings.append(Reading(side, name, "nothing", "before", "direct", values, centre))
        of = dict(zip(rows.rows.words, rows.rows.lemma)) | dict(lemma)
        return score_grid(readings, rows.rows, self.stated, of, seed=self.seed), probed


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
