"""Every frequent word measured in its own contexts: one pass of base, tuned, noise twin and other tunings over the texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import Means, mean_intervals
from lfp_lens.parts.activations import word_ids
from lfp_lens.parts.before_words import BeforeWords, Dictionary, DirectPath, VocabularySweep
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.signals import Signal
from lfp_lens.parts.twins import noise_twin
from lfp_lens.parts.valence import token_values
from lfp_lens.parts.word_passes import read_words
from lfp_lens.parts.words import is_word
from lfp_lens.results.sweep import Sweep
from lfp_lens.stages.probe.words import Chosen

SPACES = ("\u0120", "\u2581")
"""How byte-level and SentencePiece vocabularies write the space before a word."""
TUNED, TWIN = 0, 1
"""Rows of what `read_words` compares with the base; replicates and shuffled tunings come after them."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Words with their contexts; arrays are aligned with `words`."""

    words: tuple[str, ...]
    values: Float[np.ndarray, " words"]
    low: Float[np.ndarray, " words"]
    high: Float[np.ndarray, " words"]
    contexts: Int[np.ndarray, " words"]
    tokens: Int[np.ndarray, " words"]
    log_frequency: Float[np.ndarray, " words"]
    base_log_p: Float[np.ndarray, " words"]
    twin: Float[np.ndarray, " words"]
    exposure: Float[np.ndarray, " words"]
    replicates: tuple[Float[np.ndarray, " words"], ...] = ()
    shuffled: tuple[Float[np.ndarray, " words"], ...] = ()


@dataclass(frozen=True, eq=False)
class Before:
    """What stands before the words of the lexicon."""

    words: tuple[str, ...]
    """The word of each row that a probe may read."""
    source: Int[np.ndarray, " rows"]
    """Its text: no two rows share one."""
    target: Float[np.ndarray, " rows"]
    """The signal there."""
    readings: dict[tuple[str, str], np.ndarray]
    """(side, input) -> activations or features at the position before."""
    direct: dict[tuple[str, str], dict[str, float]]
    """(side, input) -> word -> mean of the direct path over all its contexts, in nats."""


def measure(
    pair: Pair,
    chosen: Chosen,
    stated: Mapping[str, float],
    signal: Signal,
    *,
    replicates: Sequence[Any] = (),
    shuffled: Sequence[Any] = (),
    dictionaries: Mapping[tuple[str, str], Mapping[str, Any]] | None = None,
    min_contexts: int,
    seed: int,
) -> tuple[Measured, Sweep, Before | None]:
    """Run every model once over the texts, and give what the signal, the whole vocabulary and the places before words say.

    `dictionaries` maps (side, name) to site -> SAE: `sae` and `random_sae` of the tuned side, `sae` of the base and both of the
    `difference` where there are some. None leaves out what is read before words.
    """
    words = np.array([spot.word for spot in chosen.spots])
    is_stated = np.array([word in stated for word in words])
    twin = noise_twin(pair.base_hf, pair.tuned_hf, seed=seed)
    others = [pair.tuned_hf, twin, *replicates, *shuffled]
    vocabulary = pair.base_hf.get_output_embeddings().weight.shape[0]
    sweep = VocabularySweep(2, vocabulary)
    direct = probed = None
    if dictionaries is not None:
        sites = tuple(dictionaries["tuned", "sae"])
        seen = {
            name if side == "tuned" else f"{side}_{name}": Dictionary(saes, reads_change=side == "difference")
            for (side, name), saes in dictionaries.items()
            if side in ("tuned", "difference")
        }
        direct = DirectPath(pair.base_hf, sites, seen, (TUNED + 1, TWIN + 1), is_stated)
        probed = BeforeWords(sites, (0, TUNED + 1), one_per_text(chosen, is_stated, seed))
    worth_V = None
    if signal.needs_lexicon:
        worth_V = token_values(pair.tokenizer, stated, chosen.texts, vocabulary=vocabulary, device=pair.device)
    observers = [part for part in (sweep, direct, probed) if part is not None]
    read = read_words(
        pair.base_hf, others, chosen.encoded, chosen.spans, {"signal": signal}, worth_V=worth_V, observers=observers
    )
    values, fits = read.values["signal"], read.is_read
    odd = ~np.isfinite(values[:, fits]).all(0)
    if odd.any():
        raise LensError(
            f"The signal is no finite number at {odd.sum()} of the {odd.size} occurrences it was measured at."
        )
    names, codes = np.unique(words[fits], return_inverse=True)
    means: list[Means] = [mean_intervals(row[fits], codes) for row in (*values, read.base_log_p)]
    enough = means[0].n >= min_contexts
    ids = word_ids(pair.tokenizer, names.tolist())
    column = lambda part: np.asarray(part)[enough]  # noqa: E731
    first = 2 + len(replicates)
    measured = Measured(
        tuple(names[enough].tolist()), values=column(means[TUNED].value), low=column(means[TUNED].low),
        high=column(means[TUNED].high), contexts=column(means[TUNED].n),
        tokens=column([len(own) for own in ids]), log_frequency=column(np.log1p([chosen.counts[str(name)] for name in names])),
        base_log_p=column(means[-1].value), twin=column(means[TWIN].value),
        exposure=column([float(sweep.weight_V[own[0]]) if own else 0.0 for own in ids]),
        replicates=tuple(column(one.value) for one in means[2:first]),
        shuffled=tuple(column(one.value) for one in means[first:-1]),
    )  # fmt: skip
    before = None
    if direct is not None and probed is not None and (probed.wanted & fits).any():
        before = _before(chosen, words, is_stated & fits, probed, direct, dictionaries or {}, values[TUNED])
    return measured, _sweep(pair, sweep, stated), before


def one_per_text(chosen: Chosen, wanted: np.ndarray, seed: int) -> np.ndarray:
    """Mark at most one wanted word of each text, drawn with the seed: then no split can part a text."""
    texts = np.array([spot.text for spot in chosen.spots])
    order = np.random.default_rng([seed, 3]).permutation(np.flatnonzero(wanted))
    first = order[np.unique(texts[order], return_index=True)[1]]
    return np.isin(np.arange(len(texts)), first)


def _before(
    chosen: Chosen, words: np.ndarray, fits: np.ndarray, probed: BeforeWords, direct: DirectPath,
    dictionaries: Mapping[tuple[str, str], Mapping[str, Any]], values: np.ndarray,
) -> Before:  # fmt: skip
    rows = np.flatnonzero(probed.wanted)
    kept = fits[rows]
    readings = {}
    for side, model in (("tuned", TUNED + 1), ("base", 0)):
        readings[side, "raw"] = probed.raw(model)[kept]
        for name in ("sae", "random_sae"):
            if (side, name) in dictionaries:
                readings[side, name] = probed.features(model, dictionaries[side, name])[kept]
    names, codes = np.unique(words[fits], return_inverse=True)
    paths = {
        ({TUNED + 1: "tuned", TWIN + 1: "noise"}[other], name): dict(
            zip(names.tolist(), (np.bincount(codes, found[fits]) / np.bincount(codes)).tolist())
        )
        for (other, name), found in direct.values.items()
    }
    rows = rows[kept]
    source = np.array([chosen.spots[row].text for row in rows])
    return Before(tuple(words[rows].tolist()), source, values[rows], readings, paths)


def _sweep(pair: Pair, found: VocabularySweep, stated: Mapping[str, float]) -> Sweep:
    pieces = pair.tokenizer.convert_ids_to_tokens(range(len(found.weight_V)))
    texts = [pair.tokenizer.decode([at]) for at in range(len(pieces))]
    # SentencePiece tokenizers drop a leading space when they decode; their pieces keep it.
    begins = [(bool(piece) and piece[:1] in SPACES) or text[:1] == " " for piece, text in zip(pieces, texts)]
    tokens = tuple(f" {text.lstrip(' ')}" if begin else text for text, begin in zip(texts, begins))
    value, error = found.result(TUNED)
    rated = np.full(len(pieces), np.nan)
    words = [word for word in stated if is_word(word)]
    for word, ids in zip(words, word_ids(pair.tokenizer, words)):
        if len(ids) == 1:
            rated[ids[0]] = stated[word]
    return Sweep(
        tokens, value=value, error=error, exposure=found.weight_V.numpy(), stated=rated,
        twin=found.result(TWIN)[0], contexts=np.array(found.contexts),
    )  # fmt: skip
