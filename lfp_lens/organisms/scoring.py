"""`score`: measure organisms blind, all of them; only then open the keys and compare."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.stats import Estimate, rank_agreement, tau_difference
from lfp_lens.core.stats.wrong import beside_usual
from lfp_lens.organisms.blind import CAUSAL, WORDS, Blind, Reading, check_verbs, measure
from lfp_lens.organisms.folder import Organism, open_organism
from lfp_lens.organisms.key import KEY_FILE, Key
from lfp_lens.parts.signals import DELTA, make_signal
from lfp_lens.results.score import PlantedWords, Score
from lfp_lens.results.scorecard import Scorecard
from lfp_lens.results.sweep import Sweep


def score(
    organisms: Any,
    *,
    verbs: Sequence[str] = ("probe",),
    causes: bool = False,
    signals: Sequence[Any] = ("implicit_reward",),
    fdr: float = 0.1,
    texts: str | None = None,
    n_texts: int | None = None,
    contexts: int = 8,
    lexicon: Any = None,
    device: str = "cpu",
    seed: int = 0,
    store: str | os.PathLike[str] | None = None,
) -> Scorecard:
    """Run the verbs blind on organisms whose truth is known to their keys, then compare.

    Args:
        organisms: an organism, its folder, a folder of organisms, or a list of these.
        verbs: `probe`; `train_sae` adds probes of SAE features; `attribute` and `ablate` what the features carry.
        causes: the same as naming `attribute` and `ablate`.
        signals: what `probe` measures; `activation_delta` (the paper's) needs `train_sae`.
        fdr: false discovery rate of the lists of wrong words.
        texts: where words are measured, in place of the organism's own text set.
        n_texts: how many of them; None takes the preset's number.
        contexts: occurrences measured per word, at most.
        lexicon: the stated feedback; None takes what the tuning record states.
        device: where models are read.
        seed: of contexts, folds, controls and intervals.
        store: folder of what was measured, keyed by the checkpoints' content: a run that was killed goes on, a second one reads.

    Raises:
        LensError: for a folder without organisms, an organism without a key, a key of other checkpoints.

    >>> score("organisms").summary()  # doctest: +SKIP
    >>> score(["organisms/world-1a2b3c4d"], verbs=("probe", "train_sae"), causes=True)  # doctest: +SKIP
    """
    wanted = tuple(dict.fromkeys((*verbs, *(CAUSAL if causes else ()))))
    _check(wanted, signals, fdr)
    found = find_organisms(organisms)
    lacking = [one.path for one in found if not (one.path / KEY_FILE).is_file()]
    if lacking:
        raise LensError(f"{lacking[0]} has no {KEY_FILE}: it can be measured, not scored. Put its key back.")
    options: dict[str, Any] = {
        "verbs": wanted, "signals": signals, "texts": texts, "n_texts": n_texts, "contexts": contexts, "lexicon": lexicon,
        "device": device, "seed": seed, "store": None if store is None else Path(store),
    }  # fmt: skip
    measured = [measure(one, **options) for one in found]
    return compared(measured, [one.organism.key() for one in measured], fdr=fdr, seed=seed)


def _check(verbs: Sequence[str], signals: Sequence[Any], fdr: float) -> None:
    """Refuse what would be refused after hours of measuring."""
    check_verbs(verbs)
    if not 0 < fdr < 1:
        raise LensError(f"fdr must lie between 0 and 1; {fdr} given.")
    if isinstance(signals, str) or not len(signals):
        raise LensError(f"signals must be a list that is not empty; {signals!r} given.")
    for signal in signals:
        if signal != DELTA:
            make_signal(signal)


def find_organisms(given: Any) -> list[Organism]:
    """Open organisms by folder, or all that a folder holds. Raises `LensError` where there are none, or one stands twice."""
    if isinstance(given, (str, os.PathLike, Organism)):
        given = [given]
    found: list[Organism] = []
    for one in given:
        path = one.path if isinstance(one, Organism) else Path(one).expanduser()
        inside = sorted(path.glob("[!.]*/base/config.json")) if not (path / "base").is_dir() else []
        found += [open_organism(config.parents[1]) for config in inside] or [open_organism(one)]
    if not found:
        raise LensError("Give organisms, each once; none was given.")
    places, names = (
        len({part(one) for one in found}) for part in (lambda one: one.path.resolve(), lambda one: one.name)
    )
    if places < len(found):
        raise LensError("An organism is given twice.")
    if names < len(found):
        raise LensError("Two organisms have folders of one name, by which scores are told: rename one.")
    return found


def compared(measured: Sequence[Blind], keys: Sequence[Key], *, fdr: float, seed: int) -> Scorecard:
    """Open the keys: what was planted beside what was found."""
    for blind, key in zip(measured, keys):
        key.check(blind.organism.path, blind.base, blind.tuned, fingerprint(dict(blind.stated)))
    _check_copies(measured, keys)
    scores, words = [], []
    for blind, key in zip(measured, keys):
        clean = [other for other, theirs in zip(measured, keys)
                 if theirs.recipe == "clean" and other is not blind and not theirs.refusal()
                 and (theirs.base, theirs.method, theirs.stated) == (key.base, key.method, key.stated)]  # fmt: skip
        scores += [_score(blind, key, reading, clean, fdr=fdr, seed=seed) for reading in blind.readings or (None,)]
        words += _words(blind, key, fdr)
    return Scorecard(tuple(scores), word_table(words), fdr)


def _check_copies(measured: Sequence[Blind], keys: Sequence[Key]) -> None:
    """Refuse one organism under two names: a copy is no further run."""
    owner: dict[str, str] = {}
    for blind, key in zip(measured, keys):
        first = owner.setdefault(key.spec, blind.organism.name)
        if first != blind.organism.name:
            raise LensError(
                f"{first} and {blind.organism.name} are one organism: a copy is no further run. Leave one out."
            )


def _score(
    blind: Blind, key: Key, reading: Reading | None, clean: Sequence[Blind], *, fdr: float, seed: int
) -> Score:  # fmt: skip
    told: dict[str, Any] = {
        "organism": blind.organism.name, "base": Path(blind.organism.record.get("base", "unknown")).name, "method": key.method,
        "recipe": key.recipe, "dose": key.dose, "seed": key.seed, "words": key.words, "is_null": key.is_null, "fdr": fdr,
        "refused": key.refusal(), "lacking": "; ".join(f"{verb}: {why}" for verb, why in blind.lacking.items()),
        "tunings": len(blind.organism.tuned),
        "share": blind.share, "percentile": blind.percentile, "seconds": blind.seconds,
    }  # fmt: skip
    pool, planted = _ranked(key, blind)
    rank, n_tokens = _rank(key, blind)
    told |= {"n_candidates": len(pool), "n_planted": len(planted), "rank": rank, "n_tokens": n_tokens}
    if reading is None:
        told["refused"] = told["refused"] or told["lacking"] or "no verb gave a number"
        unread: dict[str, Any] = dict.fromkeys(("auroc", "unsigned", "on_clean", "tau_twin"), float("nan"))
        unread |= dict.fromkeys(("found", "false", "tau_given", "tau_stated", "gain"))
        return Score(**told, **unread, auroc_tunings=np.zeros(0), signal="none", input="none")
    area = lambda values, unsigned=False: _auroc(key, blind, reading, values, unsigned)  # noqa: E731
    beside = [_auroc(key, other, theirs, theirs.values, False)
              for other in clean for theirs in other.readings
              if (theirs.signal, theirs.input) == (reading.signal, reading.input)]  # fmt: skip
    listed, why = _listed(reading, key.kind or "flipped", fdr)
    told["lacking"] = "; ".join(part for part in (told["lacking"], why) if part)
    named = {"found": None, "false": None} if listed is None else {
        "found": len(listed & planted), "false": len(listed - key.planted(blind.stated))
    }  # fmt: skip
    return Score(
        **told, signal=reading.signal, input=reading.input, auroc=area(reading.values),
        auroc_tunings=np.array([area(row) for row in reading.tunings]), unsigned=area(reading.values, True),
        on_clean=float(np.mean(beside)) if beside else float("nan"), **named, **_taus(blind, key, reading, seed),
    )  # fmt: skip


def _ranked(key: Key, blind: Blind) -> tuple[tuple[str, ...], frozenset[str]]:
    """Give the words that are ranked, the candidates, and those of them that were planted.

    A recipe of one's own may plant other words: they are ranked too, or could never be found. Where nothing single is wrong
    (`shuffled`) the candidates alone are ranked.
    """
    planted = key.planted(blind.stated)
    known = set(blind.candidates)
    pool = blind.candidates if key.is_null else (*blind.candidates, *sorted(planted - known))
    return pool, planted & set(pool)


def _auroc(key: Key, blind: Blind, reading: Reading, values: np.ndarray, unsigned: bool) -> float:
    """Tell planted from other candidates by how far each was learned against what was stated; not measured counts as 0."""
    pool, planted = _ranked(key, blind)
    is_planted = np.array([word in planted for word in pool])
    if is_planted.all() or not is_planted.any():
        return float("nan")
    stated = np.array([blind.stated[word] for word in reading.words])
    if unsigned:
        against = np.abs(beside_usual(values, stated))
    else:
        against = -np.sign(stated) * values * (-1 if key.kind == "inflated" else 1)
    of = dict(zip(reading.words, against.tolist()))
    return float(roc_auc_score(is_planted, [of.get(word, 0.0) for word in pool]))


def _listed(reading: Reading, kind: str, fdr: float) -> tuple[set[str] | None, str]:
    """Give the words that the reading lists as wrong, or None and why: only values measured in contexts are tested."""
    learned = reading.learned
    if reading.input != WORDS or not learned.is_tested:
        return None, ""
    try:
        return set(learned.wrong(fdr=fdr, kind=kind)["word"]), ""
    except GateError as refusal:
        return None, f"wrong(kind={kind!r}): {refusal}"


def _taus(blind: Blind, key: Key, reading: Reading, seed: int) -> dict[str, Any]:
    """Give tau-b with the feedback given and with the one stated, and their difference, paired by lemma."""
    lemma_of = dict(zip(reading.learned.words, reading.learned.lemma))
    lemma = np.array([lemma_of[word] for word in reading.words])
    stated = np.array([blind.stated[word] for word in reading.words])
    given = np.array([key.values.get(word, blind.stated[word]) for word in reading.words])
    found = {"tau_stated": _estimate(reading.values, stated, lemma, seed), "tau_given": None, "gain": None,
             "tau_twin": float("nan")}  # fmt: skip
    if key.recipe not in ("noise", "context") and (given != stated).any() and np.ptp(given):
        found["tau_given"] = _estimate(reading.values, given, lemma, seed)
        found["gain"] = tau_difference(reading.values, reading.values, given, lemma, second_given=stated, seed=seed)
    tunings = reading.learned.tunings
    if tunings is not None and len(tunings.shuffled_tau):
        found["tau_twin"] = float(np.mean(tunings.shuffled_tau))
    return found


def _estimate(values: np.ndarray, rated: np.ndarray, lemma: np.ndarray, seed: int) -> Estimate:
    found = rank_agreement(values, rated, lemma, seed=seed)
    return Estimate(found.tau, found.low, found.high, found.n)


def _rank(key: Key, blind: Blind) -> tuple[int | None, int | None]:
    """Give the place of what a hidden rule pays for among all tokens outside the lexicon, the most surprising first."""
    if blind.sweep is None or not (key.pattern or key.pays_length):
        return None, None
    frame = blind.sweep.surprising(len(blind.sweep.tokens))
    wanted = {blind.end} if key.pays_length else {_token(blind.sweep, word) for word in key.pattern}
    places = [at for at, token in enumerate(frame["token"], start=1) if token in wanted]
    return min(places, default=None), len(frame)


def _token(sweep: Sweep, word: str) -> str:
    """Give the longest token that the word begins with, at least half of it; the word itself where there is none."""
    tokens = set(sweep.tokens)
    # One letter would stand for half the vocabulary.
    least = max(2, (len(word) + 1) // 2)
    starts = (f" {word}"[:end] for end in range(len(word) + 1, least, -1))
    return next((start for start in starts if start in tokens), word)


def _words(blind: Blind, key: Key, fdr: float) -> list[dict[str, Any]]:
    """Give one row per planted word, by the first reading of words in their contexts."""
    reading = next((one for one in blind.readings if one.input == WORDS), None)
    if reading is None or key.kind is None:
        return []
    listed, _ = _listed(reading, key.kind, fdr)
    if listed is None:
        return []
    value, p_wrong = (dict(zip(reading.words, part.tolist())) for part in (reading.values, reading.learned.p_wrong))
    return [
        {
            "organism": blind.organism.name, "base": Path(blind.organism.record.get("base", "unknown")).name,
            "method": key.method, "recipe": key.recipe, "kind": key.kind, "word": word, "dose": key.dose,
            "occurrences": blind.counts[word],
            "stated": blind.stated.get(word, 0.0), "given": key.values[word], "measured": value.get(word, np.nan),
            "p_wrong": p_wrong.get(word, np.nan), "found": word in listed,
        }
        for word in sorted(key.planted(blind.stated))
    ]  # fmt: skip


def word_table(rows: Iterable[Mapping[str, Any]]) -> PlantedWords:
    """Turn rows into one array per column."""
    rows = list(rows)
    texts = ("organism", "base", "method", "recipe", "kind", "word")
    kinds = {"occurrences": int, "found": bool}
    columns: dict[str, Any] = {name: tuple(row[name] for row in rows) for name in texts}
    for name in ("dose", "occurrences", "stated", "given", "measured", "p_wrong", "found"):
        columns[name] = np.array([row[name] for row in rows], dtype=kinds.get(name, float))
    return PlantedWords(**columns)
