"""The verb: choose features, show a labeller where they fire, and score what it says on texts it did not see.

Section 3.4 and Appendix B of arXiv 2310.08164, with what their code got wrong put right: activations are the
SAE's own at the site's real output, divided by the feature's maximum over all texts (theirs: by each text's
own, so that every text looked equally strong), indices belong to the SAE they are read from, and every
description is scored.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.core.store import Store, keep
from lfp_lens.parts.activation_cache import ActivationCache
from lfp_lens.parts.activations import encode
from lfp_lens.parts.cache import in_key, opened
from lfp_lens.parts.labellers import Evidence, Labeller, Setting, make_labeller
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.sources import cache_folder
from lfp_lens.results.attribute import Effects
from lfp_lens.results.explain import Labels
from lfp_lens.results.train_sae import SAESet
from lfp_lens.stages.explain.features import Wanted, choose_sites, wanted_features
from lfp_lens.stages.explain.firing import Firing, collect
from lfp_lens.stages.explain.windows import Heldout, Trial, Words, examples, heldout, strong_level, trial, words_of

Item = TypeVar("Item")
Result = TypeVar("Result")


def explain(
    pair: Pair,
    saes: SAESet,
    texts: Sequence[str],
    *,
    labeller: Any = "lexicon",
    task: str = "positive or negative sentiment",
    lexicon: Any = "vader",
    select: str = "mmcs",
    effects: Effects | None = None,
    k: int = 10,
    n_examples: int = 5,
    max_tokens: int = 64,
    side: str = "tuned",
    size: float | None = None,
    gate: str = "refuse",
    cache: Any = None,
    seed: int = 0,
    store: Store | None = None,
) -> Labels:
    """Describe features in words, judge them against a task, and score the descriptions on held-out texts.

    Half of the texts (drawn by content and seed, so their order does not matter; repeated texts count once) is
    shown to the labeller; on the other half the descriptions are tested: up to 20 windows of 16 tokens where the
    feature fires strongly (as on the strongest 1 % of the shown tokens) and as many where it does not. The control
    scores each feature with the next one's description.

    Args:
        pair: the two models.
        saes: dictionaries trained on this pair.
        texts: what the features are watched on.
        labeller: `lexicon` (offline), `openai:MODEL`, or an object that follows `parts.labellers.Labeller`.
        task: what relevance is judged against.
        lexicon: `vader`, a file or a mapping: what the labeller `lexicon` knows.
        select: `mmcs` takes at each site the features best matched with the larger SAE, `attribution` those
            with the largest confirmed |effect|, `all` every one. Features that never fire on the shown half
            are passed over.
        effects: from `attribute`, for `select="attribution"`.
        k: features per site (`mmcs`) or over all sites (`attribution`); `all` ignores it.
        n_examples: windows of up to 16 tokens shown per feature: the strongest, and some from the middle, one
            per text.
        max_tokens: tokens read of each text.
        side: whose activations and dictionaries.
        size: which dictionaries; None is the smallest at each site.
        gate: `refuse` leaves out SAEs that fail a quality gate, `warn` keeps them; either notes the reason in
            `skipped`.
        cache: an `ActivationCache` that holds these texts at these sites (`lfp_lens.cache` with this `max_tokens`), read
            in place of the model; or a folder, where one is made first.
        seed: of the halves and of the windows drawn for scoring.
        store: a run's store, or None. Paid replies are kept in it, or in the user's cache folder.

    Returns:
        One row per feature, in layer order and best first, or by effect. A detection score is the balanced
        accuracy, NaN where the held-out half has fewer than 4 windows of one kind.

    Raises:
        LensError: for SAEs of another pair, an unknown choice, a task that the labeller cannot judge, missing
            effects, too few texts, a cache of another pair or of other texts, a chat model without a key or a usable
            answer, or if no feature fires.
        GateError: if no SAE passes the quality gates.

    >>> labels = explain(pair, saes, texts, task="positive sentiment")  # doctest: +SKIP
    >>> labels.relevant  # doctest: +SKIP
    """
    inputs = dict(locals())
    stated = load_lexicon(lexicon)
    _check(pair, saes, texts, k, n_examples, max_tokens)
    replies = (store.root if store else cache_folder()) / "replies"
    judge = make_labeller(labeller, Setting(stated, task, replies))
    sites, skipped = choose_sites(saes, side, size, gate)
    wanted = wanted_features(saes, sites, select, effects, k, side, size)

    def make(folder: Path | None) -> Labels:
        distinct = _by_content(texts, seed)
        held = opened(cache, pair, saes.sites, texts, sides=(side,), max_tokens=max_tokens)
        with tqdm(desc="explain", unit="step") as bar:
            fired, words, later = _watch(pair, saes, distinct, wanted, side, size, max_tokens, held, bar)
            bar.total = bar.n + 3 * len(fired.features)
            evidence = [_evidence(fired, words, row, n_examples) for row in range(len(fired.features))]
            trials = [trial(fired, later, row, seed) for row in range(len(fired.features))]
            labels = _label(judge, evidence, trials, task, bar)
        return Labels(
            saes=saes, site=tuple(site for site, _ in fired.features),
            index=np.array([index for _, index in fired.features]), n_scored=np.array([len(one.truth) for one
            in trials]), examples=tuple(one.examples for one in evidence), labeller=judge.name, task=task,
            select=select, side=side, size=size, skipped=skipped, **labels,
        )  # fmt: skip

    return keep(store, "explain", in_key(inputs) | {"lexicon": stated, "texts": list(texts)}, make)


def _check(pair: Pair, saes: SAESet, texts: Sequence[str], k: int, n_examples: int, max_tokens: int) -> None:
    if saes.pair != pair.fingerprint:
        raise LensError(
            f"These SAEs were trained on the pair {saes.pair}, this pair is {pair.fingerprint}: their "
            "features mean nothing here. Run train_sae on this pair."
        )
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise LensError("texts must be a list of strings.")
    for name, value, least in (("k", k, 1), ("n_examples", n_examples, 1), ("max_tokens", max_tokens, 2)):
        if value < least:
            raise LensError(f"{name} must be {least} or more; {value} given.")


def _by_content(texts: Sequence[str], seed: int) -> list[str]:
    """Give the distinct texts in an order that the seed and the texts decide, not the order they came in."""

    def place(text: str) -> bytes:
        return hashlib.blake2b(f"{seed}:{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()

    distinct = sorted({text for text in texts if text.strip()}, key=place)
    if len(distinct) < 2:
        raise LensError(f"{len(distinct)} different texts were given; half is shown and half is kept for scoring.")
    return distinct


def _watch(
    pair: Pair,
    saes: SAESet,
    texts: list[str],
    wanted: Wanted,
    side: str,
    size: float | None,
    max_tokens: int,
    cache: ActivationCache | None,
    bar: Any,
) -> tuple[Firing, Words, Heldout]:
    """Read the model or the cache once: where the chosen features fire, the words there, the windows kept for scoring."""
    encoded = encode(pair.tokenizer, texts, max_tokens=pair.room(max_tokens))
    n_shown = (len(texts) + 1) // 2
    dictionaries = {site: saes.one(site, side=side, size=size) for site in wanted.order}
    fired = collect(pair, side, dictionaries, texts, encoded, wanted, n_shown, bar, cache=cache)
    if not fired.features:
        raise LensError(
            f"None of the chosen features at {', '.join(wanted.order)} fires on the {n_shown} shown texts. "
            "Give more texts, or choose with select='all'."
        )
    return fired, words_of(fired), heldout(fired)


def _evidence(fired: Firing, words: Words, row: int, n_examples: int) -> Evidence:
    activations_N = fired.activations(row)
    shown_N = activations_N[: fired.shown_end]
    total, count = words.sums(np.where(shown_N >= strong_level(shown_N), shown_N, 0.0))
    site, index = fired.features[row]
    return Evidence(f"{site} {index}", examples(fired, activations_N, n_examples), words.vocabulary, total, count)


def _label(judge: Labeller, evidence: list[Evidence], trials: list[Trial], task: str, bar: Any) -> dict[str, Any]:
    """Ask the labeller everything and give the fields of the result that come from it."""
    descriptions = _each(judge, judge.describe, evidence, bar)
    others = descriptions[1:] + descriptions[:1]
    relevant = _each(
        judge, lambda pair: judge.is_relevant(pair[0], pair[1], task), list(zip(evidence, descriptions)), bar
    )

    def score(row: int) -> tuple[float, float]:
        name, held = evidence[row].feature, trials[row]
        if not len(held.truth):
            return np.nan, np.nan
        own = _balanced_accuracy(judge.detect(name, descriptions[row], held.windows), held.truth)
        if len(evidence) < 2:
            return own, np.nan
        return own, _balanced_accuracy(judge.detect(name, others[row], held.windows), held.truth)

    scores = np.array(_each(judge, score, range(len(evidence)), bar), float)
    return {
        "description": tuple(descriptions),
        "is_relevant": np.array(relevant, bool),
        "detection": scores[:, 0],
        "detection_shuffled": scores[:, 1],
    }


def _balanced_accuracy(said: Sequence[bool], truth: np.ndarray) -> float:
    given = np.asarray(said, bool)
    assert given.shape == truth.shape, (given.shape, truth.shape)
    return float((given[truth].mean() + (~given[~truth]).mean()) / 2)


def _each(judge: Labeller, ask: Callable[[Item], Result], items: Iterable[Item], bar: Any) -> list[Result]:
    """Ask for every item, at most `judge.workers` at once, and give the answers in the order of the items."""
    found = []
    with ThreadPoolExecutor(max_workers=judge.workers) as pool:
        try:
            for future in [pool.submit(ask, item) for item in items]:
                found.append(future.result())
                bar.update()
        except BaseException:
            # What was not asked yet stays unasked: after a failure or Ctrl-C nothing more is paid for.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found
