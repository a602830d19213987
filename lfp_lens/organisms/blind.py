"""What the verbs say of an organism, without its key: nothing here knows where the key lies."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    refused: str = ""
    """Why a verb gave no number; empty if all did."""
    seconds: float = 0.0
    notes: tuple[str, ...] = field(default=())


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

    Raises `LensError` for unknown verbs and for an organism that names no texts where none are given.
    """
    for verb in verbs:
        if verb not in VERBS:
            raise unknown("verb of a score", verb, VERBS)
    record = organism.record
    setting = _setting(organism, record, texts)
    stated = load_lexicon(record.get("reward", "vader") if lexicon is None else lexicon)
    train, test = setting.texts("train"), setting.texts("test", n_texts)
    started = time.perf_counter()
    pair = organism.pair(device=device)
    others = [str(path) for path in organism.tuned[1:]]
    shuffled = [] if organism.shuffled is None else [str(organism.shuffled)]
    own = {path.name: path for path in (*organism.tuned, *([organism.shuffled] if organism.shuffled else []))}
    found: dict[str, Any] = {
        "organism": organism, "base": weights_fingerprint(pair.base_hf), "stated": stated,
        "tuned": {name: weights_fingerprint(load_causal_lm(str(path))) for name, path in own.items()},
        "candidates": candidates(stated, train), "counts": word_counts(train), "end": str(pair.tokenizer.eos_token),
    }  # fmt: skip
    home = None if store is None else Store(store / pair.fingerprint[:12])
    given: dict[str, Any] = {
        "lexicon": stated, "contexts": contexts, "max_tokens": setting.config.probe.max_tokens, "seed": seed, "store": home,
    }  # fmt: skip
    try:
        readings, sweep = [], None
        for signal in signals:
            if signal == DELTA:
                continue
            learned = _words_of(probe(pair, texts=test, signal=signal, replicates=others, shuffled=shuffled, **given))
            readings.append(_in_contexts(learned))
            sweep = sweep or learned.sweep
        if set(verbs) - {"probe"} or DELTA in signals:
            more = _with_saes(pair, setting.config, train, test, given, verbs, signals, home)
            readings += more.pop("readings")
            found |= more
        found |= {"readings": tuple(readings), "sweep": sweep}
    except GateError as refusal:
        found["refused"] = str(refusal)
    return Blind(**found, seconds=time.perf_counter() - started)


def _setting(organism: Organism, record: Mapping[str, Any], texts: str | None) -> Setting:
    setting = setting_told(record)
    if setting is None and texts is None:
        raise LensError(f"{organism.path} names no texts to measure it in: give texts, a text set or a file.")
    if setting is None or texts is not None:
        told = {**(record.get("texts") or {}), "texts": texts}
        setting = setting_told({**record, "texts": told})
    assert setting is not None, "texts were given"
    return setting


def _words_of(found: Learned | LearnedPreference) -> Learned:
    assert isinstance(found, Learned), "lexicon triples, or none, give words"
    return found


def _in_contexts(learned: Learned) -> Reading:
    tunings = learned.measured[None] if learned.tunings is None else learned.tunings.values
    values = learned.recipe if learned.has_replicates else learned.measured
    return Reading(learned.signal, WORDS, learned.words, values, tunings, learned)


def _with_saes(
    pair: Pair, config: RunConfig, train: list[str], test: list[str], given: Mapping[str, Any], verbs: Sequence[str],
    signals: Sequence[Any], home: Store | None,
) -> dict[str, Any]:  # fmt: skip
    """Train dictionaries on the first tuning, probe their features, and find what carries the reward."""
    saes, triples = dictionaries(pair, config, train, test, given["lexicon"], seed=given["seed"], store=home)
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
    return {"readings": readings} | _causes(pair, saes, config, test, given, verbs, home)


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
    home: Store | None,
) -> dict[str, Any]:  # fmt: skip
    """Ablate the features whose removal costs the most of the stated feedback; the reward is the stated one."""
    if not set(verbs) & set(CAUSAL):
        return {}
    from lfp_lens.parts.generation import prompt_texts
    from lfp_lens.parts.rewards import LexiconReward
    from lfp_lens.stages.ablate import ablate
    from lfp_lens.stages.attribute import attribute

    options = {"seed": given["seed"], "store": home}
    effects = attribute(
        pair, saes, test[:EFFECT_TEXTS], lexicon=given["lexicon"], max_tokens=min(64, given["max_tokens"]), **options
    )
    prompts = prompt_texts(pair.tokenizer, test, config.finetune.prompt_tokens, seed=given["seed"])
    lost = ablate(
        pair, effects.top(TOP_FEATURES), reward=LexiconReward(given["lexicon"], name="stated"), prompts=prompts,
        controls=CONTROLS, **options,
    )  # fmt: skip
    return {"share": lost.gain_share, "percentile": lost.percentile, "notes": lost.notes}
