"""The verb: what may be probed, by what. Pairs go to `job`, preference triples to `preferences`, reward models to `rewards`."""

import dataclasses
import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import GateError, LensError, unknown
from lfp_lens.core.store import Store, keep
from lfp_lens.parts.cache import in_key, opened
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.replicates import listed, names_of, open_replicates
from lfp_lens.parts.reward_models import RewardModel
from lfp_lens.parts.signals import DELTA, REWARD_HEAD, make_signal
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.results.contrast import PreferenceTriples, Triples
from lfp_lens.results.preference_probe import LearnedPreference
from lfp_lens.results.probe import Learned
from lfp_lens.results.train_sae import SAESet
from lfp_lens.stages.probe.grid import SPLITS
from lfp_lens.stages.probe.job import Facts, learned, read_pair
from lfp_lens.stages.probe.preferences import GATES, probe_preferences
from lfp_lens.stages.probe.rewards import measure_rewards
from lfp_lens.stages.probe.words import choose

PREFERENCE_ARGUMENTS = ("folds", "max_tokens", "gate", "cache", "seed")
"""What counts for preference triples too."""


def probe(
    pair: Pair | RewardModel,
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
        pair: base and tuned; or a reward model (`load_reward_model`), with `signal="reward_head"`: how much each word raises the
            reward of the text so far.
        saes: their dictionaries; None, with `triples=None`, measures words and reads nothing else of the models.
        triples: what the probes are fitted on. `PreferenceTriples` belong to a task, not to a lexicon: they get a logistic
            probe, need no `texts`, and give a `LearnedPreference`.
        texts: held-out texts, where words are measured in real contexts.
        signal: `implicit_reward` (no label enters), `valence_shift` (what the tuned model expects after the word),
            `activation_delta` (the paper's; signed by the label; needs SAEs and triples), `reward_head` (of a reward model), a
            `Signal`, or a function of `parts.signals.Seen`.
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
    replicates, shuffled = listed(replicates), listed(shuffled)
    texts = texts if texts is None or isinstance(texts, str) else list(texts)
    inputs = dict(locals())
    _check_types(inputs)
    if gate not in GATES:
        raise unknown("gate", gate, GATES)
    if isinstance(triples, PreferenceTriples):
        return _preferences(inputs)
    if isinstance(pair, RewardModel) or signal == REWARD_HEAD:
        return _reward_model(inputs)
    name, made = (DELTA, None) if signal == DELTA else make_signal(signal)
    _check(inputs, name)
    stated = load_lexicon(lexicon)
    sites: tuple[str, ...] = ()
    if saes is not None:
        sites = saes.passing() if gate == "refuse" else saes.sites
    others = [open_replicates(pair, given, kind=kind)
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
        names = names_of(replicates, "replicate"), names_of(shuffled, "shuffled tuning")
        with fast_matmul():
            facts = read_pair(pair, saes, sites, triples, stated, name, made, others, inputs | {"cache": held})
        return learned(dataclasses.replace(facts, names=names))

    return keep(store, "probe", in_key(keyed), make)


def _reward_model(inputs: Mapping[str, Any]) -> Learned:
    """Measure words on a reward model; it has no base, no SAEs here and no other tunings."""
    model, texts = inputs["pair"], inputs["texts"]
    if not isinstance(model, RewardModel) or inputs["signal"] != REWARD_HEAD:
        raise LensError(
            f"signal={REWARD_HEAD!r} is read from a reward model (load_reward_model), and a reward model has no other; "
            f"signal={inputs['signal']!r} and a {type(model).__name__} were given."
        )
    odd = [name for name in ("saes", "triples", "cache", "replicates", "shuffled") if inputs[name]]
    if odd or texts is None:
        raise LensError(
            f"A reward model is measured in texts alone: {'give texts' if texts is None else ', '.join(odd) + ' not taken'}."
        )
    stated = load_lexicon(inputs["lexicon"])
    keyed = {name: part for name, part in inputs.items() if name not in ("cache", "store")} | {"lexicon": stated}

    def make(folder: Path | None) -> Learned:
        room = getattr(model.hf.config, "max_position_embeddings", None) or inputs["max_tokens"]
        options = {name: inputs[name] for name in ("contexts", "min_contexts", "seed")}
        chosen = choose(texts, model.tokenizer, stated, max_tokens=min(inputs["max_tokens"], room), **options)
        measured = measure_rewards(model, chosen, min_contexts=inputs["min_contexts"], seed=inputs["seed"])
        return learned(Facts(measured, stated, REWARD_HEAD, inputs))

    return keep(inputs["store"], "probe", keyed, make)


def _preferences(inputs: Mapping[str, Any]) -> LearnedPreference:
    """Hand preference triples to the logistic probe; what only words have is refused where it was changed."""
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


def _check_types(given: Mapping[str, Any]) -> None:
    """Refuse what stands in the wrong place, before anything is read."""
    kinds = {"pair": (Pair, RewardModel), "saes": (SAESet, type(None)), "store": (Store, type(None)),
             "triples": (Triples, PreferenceTriples, type(None))}  # fmt: skip
    for name, allowed in kinds.items():
        if not isinstance(given[name], allowed):
            wanted = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
            raise LensError(f"{name} must be a {wanted}; a {type(given[name]).__name__} given.")
    for name, least in (("seed", 0), ("neutral_words", 1)):
        if not isinstance(given[name], int) or given[name] < least:
            raise LensError(f"{name} must be a whole number of at least {least}; {given[name]!r} given.")


def _check(given: Mapping[str, Any], name: str) -> None:
    pair, saes, triples, texts = (given[part] for part in ("pair", "saes", "triples", "texts"))
    if (saes is None) != (triples is None):
        raise LensError("Probes are fitted on triples and read SAE features: give both saes and triples, or neither.")
    if texts is None:
        raise LensError("probe measures words in texts: give held-out texts, a list of strings.")
    if name == DELTA and (given["replicates"] or given["shuffled"]):
        raise LensError(f"{DELTA} is read from SAEs of one pair: it has no replicates and no shuffled tunings.")
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
