"""What the verbs say of an organism, without its key: nothing here opens one, and a folder without a key is measured alike."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lfp_lens.config import RunConfig
from lfp_lens.core.errors import GateError, LensError, unknown
from lfp_lens.core.stats import Estimate
from lfp_lens.core.store import Store
from lfp_lens.organisms.folder import Organism
from lfp_lens.organisms.settings import Setting, setting_told
from lfp_lens.parts.checkpoints import load_causal_lm, weights_fingerprint
from lfp_lens.parts.lexicons import candidates, load_lexicon
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.signals import DELTA
from lfp_lens.parts.texts import load_texts
from lfp_lens.parts.words import word_counts
from lfp_lens.results import Learned, LearnedPreference, SAESet, Triples
from lfp_lens.results.sweep import Sweep
from lfp_lens.stages.probe import probe

VERBS = ("probe", "train_sae", "attribute", "ablate")
"""What may be run on an organism; `attribute` and `ablate` are the causal half."""
CAUSAL = ("attribute", "ablate")
WORDS, SAE = "words", "sae"
"""What a reading of a word's value rests on: its own contexts, or a probe of SAE features on words it never saw."""
TOP_FEATURES, EFFECT_TEXTS, CONTROLS = 20, 256, 50


@dataclass(frozen=True, eq=False)
class Reading:
    """The values of words, read one way."""

    signal: str
    input: str
    words: tuple[str, ...]
    values: Float[np.ndarray, " words"]
    """Over all tunings."""
    tunings: Float[np.ndarray, "tunings words"]
    """Of each."""
    learned: Learned


@dataclass(frozen=True, eq=False)
class Blind:
    """One organism, measured."""

    organism: Organism
    base: str
    """Fingerprint of the base's weights."""
    tuned: dict[str, str]
    """Name of each tuned checkpoint -> fingerprint."""
    stated: Mapping[str, float]
    """The stated lexicon."""
    candidates: tuple[str, ...]
    """Words that could have been planted: the most frequent strong ones of the training texts."""
    counts: Counter[str]
    """How often each word occurs in the training texts."""
    end: str
    """The end-of-text token."""
    readings: tuple[Reading, ...] = ()
    sweep: Sweep | None = None
    share: Estimate | None = None
    """Share of the stated reward's gain that ablating the attributed features removes."""
    percentile: float = float("nan")
    """Share of matched random feature sets that remove less."""
    lacking: dict[str, str] = field(default_factory=dict)
    """Verb -> why it gave no number; what the others gave counts all the same."""
    seconds: float = 0.0


def measure(
    organism: Organism,
    *,
    verbs: Sequence[str] = ("probe",),
    signals: Sequence[Any] = ("implicit_reward",),
    texts: str | None = None,
    n_texts: int | None = None,
    contexts: int = 8,
    lexicon: Any = None,
    device: str = "cpu",
    seed: int = 0,
    store: Path | None = None,
) -> Blind:
    """Measure one organism with the verbs that an auditor has.

    A verb that a gate refuses leaves its reason in `lacking`, and what was read before it stays. Raises `LensError` for unknown
    verbs, and for an organism that names no texts or no lexicon where none are given.
    """
    check_verbs(verbs)
    record = organism.record
    setting = _setting(organism, record, texts)
    if lexicon is None and "reward" not in record:
        raise LensError(f"{organism.path} names no stated feedback: give lexicon, 'vader' or a file.")
    stated = load_lexicon(record["reward"] if lexicon is None else lexicon)
    train = setting.texts("train")
    test = setting.texts("test", n_texts) if texts is None else load_texts(texts, split="test", n=n_texts)
    started = time.perf_counter()
    pair = organism.pair(device=device)
    checkpoints = {path.name: path for path in (*organism.tuned, organism.shuffled) if path is not None}
    blind = Blind(
        organism, base=weights_fingerprint(pair.base_hf), stated=stated, candidates=candidates(stated, train),
        tuned={name: weights_fingerprint(load_causal_lm(str(path))) for name, path in checkpoints.items()},
        counts=word_counts(train), end=str(pair.tokenizer.eos_token),
    )  # fmt: skip
    home = None if store is None else Store(store / pair.fingerprint[:12])
    given: dict[str, Any] = {
        "lexicon": stated, "contexts": contexts, "max_tokens": setting.config.probe.max_tokens, "seed": seed, "store": home,
    }  # fmt: skip
    found: list[Reading] = []
    lacking: dict[str, str] = {}
    sweep = None
    copies: dict[str, Any] = {"replicates": [str(path) for path in organism.tuned[1:]],
              "shuffled": [] if organism.shuffled is None else [str(organism.shuffled)]}  # fmt: skip
    for signal in (one for one in signals if one != DELTA):
        try:
            learned = _words_of(probe(pair, texts=test, signal=signal, **copies, **given))
        except GateError as refusal:
            lacking["probe"] = str(refusal)
            continue
        found.append(_in_contexts(learned))
        sweep = sweep or learned.sweep
    more: dict[str, Any] = {}
    if set(verbs) - {"probe"} or DELTA in signals:
        try:
            saes, triples = dictionaries(pair, setting.config, train, test, stated, seed=seed, store=home)
            found += _of_features(pair, saes, triples, test, given, signals)
        except GateError as refusal:
            lacking["train_sae"] = str(refusal)
        else:
            more = _causes(pair, saes, setting.config, test, given, verbs, home, lacking)
    seconds = time.perf_counter() - started
    return replace(blind, readings=tuple(found), sweep=sweep, lacking=lacking, seconds=seconds, **more)


def check_verbs(verbs: Sequence[str]) -> None:
    """Raise `LensError` for a verb that is not run on organisms."""
    for verb in verbs:
        if verb not in VERBS:
            raise unknown("verb of a score", verb, VERBS)


def _setting(organism: Organism, record: Mapping[str, Any], texts: str | None) -> Setting:
    """Give where the organism comes from: its training texts say which words could have been planted."""
    setting = setting_told(record)
    if setting is None and texts is not None:
        setting = setting_told({**record, "texts": {"texts": texts}})
    if setting is None:
        raise LensError(f"{organism.path} names no texts to measure it in: give texts, a text set or a file.")
    return setting


def _words_of(found: Learned | LearnedPreference) -> Learned:
    assert isinstance(found, Learned), "lexicon triples, or none, give words"
    return found


def _in_contexts(learned: Learned) -> Reading:
    tunings = learned.measured[None] if learned.tunings is None else learned.tunings.values
    values = learned.recipe if learned.has_replicates else learned.measured
    return Reading(learned.signal, WORDS, learned.words, values, tunings, learned)


def _of_features(
    pair: Pair, saes: SAESet, triples: Triples, test: list[str], given: Mapping[str, Any], signals: Sequence[Any]
) -> list[Reading]:  # fmt: skip
    """Probe the features of the first tuning."""
    readings = []
    for signal in signals:
        learned = _words_of(probe(pair, saes, triples, test, signal=signal, **given))
        if signal == DELTA:
            readings.append(_in_contexts(learned))
        known = np.isfinite(learned.predicted)
        words = tuple(word for word, here in zip(learned.words, known) if here)
        readings.append(
            Reading(learned.signal, SAE, words, learned.predicted[known], learned.predicted[None, known], learned)
        )
    return readings


def dictionaries(
    pair: Pair, config: RunConfig, train: list[str], test: list[str], lexicon: Mapping[str, float], *,
    sides: Sequence[str] = ("base", "tuned"), seed: int, store: Store | None,
) -> tuple[SAESet, Triples]:  # fmt: skip
    """Train dictionaries as wide as the sites that moved most, and make the triples that probes of them are fitted on."""
    from lfp_lens.stages.contrast import contrast
    from lfp_lens.stages.diverge import diverge
    from lfp_lens.stages.train_sae import train_sae

    sites = config.sites
    chosen = diverge(pair, test, seed=seed, store=store).top(sites) if isinstance(sites, int) else sites
    options = {name: getattr(config.train_sae, name) for name in type(config.train_sae).model_fields}
    saes = train_sae(pair, chosen, train, **options | {"sizes": (1,), "sides": tuple(sides)}, seed=seed, store=store)
    triples = contrast(test, lexicon=lexicon, max_triples=config.contrast.max_triples, seed=seed, store=store)
    return saes, triples


def _causes(
    pair: Pair, saes: SAESet, config: RunConfig, test: list[str], given: Mapping[str, Any], verbs: Sequence[str],
    home: Store | None, lacking: dict[str, str],
) -> dict[str, Any]:  # fmt: skip
    """Ablate the features whose removal costs the most of the stated feedback; the reward is the stated one."""
    if not set(verbs) & set(CAUSAL):
        return {}
    from lfp_lens.parts.generation import prompt_texts
    from lfp_lens.parts.rewards import LexiconReward
    from lfp_lens.stages.ablate import ablate
    from lfp_lens.stages.attribute import attribute

    options = {"seed": given["seed"], "store": home}
    try:
        effects = attribute(
            pair,
            saes,
            test[:EFFECT_TEXTS],
            lexicon=given["lexicon"],
            max_tokens=min(64, given["max_tokens"]),
            joint=0,
            **options,
        )
        features = effects.top(TOP_FEATURES)
    # A model that learned nothing may have no feature with an effect.
    except LensError as refusal:
        lacking["attribute"] = str(refusal)
        return {}
    prompts = prompt_texts(pair.tokenizer, test, config.finetune.prompt_tokens, seed=given["seed"])
    try:
        lost = ablate(
            pair,
            features,
            reward=LexiconReward(given["lexicon"], name="stated"),
            prompts=prompts,
            controls=CONTROLS,
            floors=False,
            **options,
        )
    except GateError as refusal:
        lacking["ablate"] = str(refusal)
        return {}
    return {"share": lost.gain_share, "percentile": lost.percentile}
