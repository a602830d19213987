"""The verb: choose features, show a labeller where they fire, and score what it says on texts it did not see.

Section 3.4 and Appendix B of arXiv 2310.08164, with what their code got wrong put right: activations are the
SAE's own at the site's real output, divided by the feature's maximum over all texts (theirs: by each text's
own, so that every text looked equally strong), indices belong to the SAE they are read from, and every
explanation is scored. Scores after Bills et al. (2023) and Paulo et al. (arXiv 2410.13928).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.store import Store, keep
from lfp_lens.parts.cache import in_key, opened
from lfp_lens.parts.labellers import SPENDING, Setting
from lfp_lens.parts.labellers.opinions import make_labellers
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.sources import cache_folder
from lfp_lens.results.attribute import Effects
from lfp_lens.results.explain import Labels
from lfp_lens.results.train_sae import SAESet
from lfp_lens.stages.explain.features import choose_sites, wanted_features
from lfp_lens.stages.explain.labelling import label
from lfp_lens.stages.explain.scoring import SCORES
from lfp_lens.stages.explain.seeing import Plan, see, windows_kept
from lfp_lens.stages.explain.windows import by_content, halves


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
    n_examples: int = 10,
    scores: Sequence[str] = SCORES,
    n_random: int = 20,
    repeat: bool = False,
    judge: Any = None,
    budget_usd: float | None = None,
    budget_tokens: int | None = None,
    prices: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    concurrency: int = 16,
    send: str = "async",
    base_url: str | None = None,
    max_tokens: int = 64,
    side: str = "tuned",
    size: float | None = None,
    gate: str = "refuse",
    cache: Any = None,
    seed: int = 0,
    store: Store | None = None,
) -> Labels:
    """Explain features in words, judge them against a task, and score the explanations on held-out texts.

    Half of the texts (drawn by content and seed, so their order does not matter) is shown to the labeller, in windows of up
    to 32 tokens; on windows of the other half the explanations are tried. Texts that are equal as far as they are read count
    once, and texts that begin with the same 32 tokens, such as two answers to a prompt, are in the same half. The labeller is
    blind: it sees windows, activations, tokens and the task, never a probe weight, an effect or a model's name.

    Scores: `detection` asks in which of up to 20 windows where the feature fires strongly (as on the strongest 1 % of the
    shown tokens) and as many where it does not it fires; up to half of the latter hold a token it fires on most. `fuzzing`
    asks in which windows the marked tokens are the right ones. `simulation` correlates predicted activations. Each stands
    beside the score of another feature's explanation and those of random directions.

    Args:
        pair: the two models.
        saes: dictionaries trained on this pair.
        texts: what the features are watched on.
        labeller: `lexicon` and `graph` work offline, `openai:MODEL` asks a model, `recorded:FILE` replays answers; or an
            object that follows `parts.labellers.Labeller`.
        task: what relevance is judged against, in words.
        lexicon: `vader`, a file or a mapping: what the offline labellers know.
        select: `mmcs` takes at each site the features best matched with the larger SAE, `attribution` those with the
            largest confirmed |effect|, `all` every one. The list is made before any labelling. A feature that never fires
            on the shown half is recorded as dead, and the next one is taken too.
        effects: from `attribute`, for `select="attribution"`.
        k: features that fire, per site (`mmcs`) or over all sites (`attribution`); `all` ignores it.
        n_examples: windows shown per feature where it fires: half the strongest, half of every quantile of its activation.
            Half as many are shown where it is silent.
        scores: which of `detection`, `fuzzing` and `simulation`; simulation is measured where the labeller can simulate.
        n_random: random directions (`parts.saes.random_twin` of the same dictionaries) explained and scored as control.
        repeat: whether the labeller is asked again with other windows of each feature; not for `lexicon` and `graph`, whose
            judgement does not depend on windows, nor for answers recorded without a key.
        judge: a second labeller, asked with the same windows; None for none. It must be another one than `labeller`.
        budget_usd: most USD that a paid labeller may spend; None for no bound.
        budget_tokens: most tokens, likewise.
        prices: USD per million tokens of questions and of answers, or a mapping from model to such a pair, which two
            different `openai:` models as labeller and judge need; None for the package's table.
        concurrency: requests that run at once.
        send: `async`, `sync` or `batch` (the Batch API).
        base_url: an OpenAI-compatible server, which serves both labeller and judge; None for OPENAI_BASE_URL or OpenAI's own.
        max_tokens: tokens read of each text.
        side: whose activations and dictionaries.
        size: which dictionaries; None is the smallest at each site.
        gate: `refuse` leaves out SAEs that fail a quality gate, `warn` keeps them; either notes the reason in
            `skipped`.
        cache: an `ActivationCache` that holds these texts at these sites (`lfp_lens.cache` with this `max_tokens`), read
            in place of the model; or a folder, where one is made first.
        seed: of the halves, the windows and the controls.
        store: a run's store, or None. Paid replies are kept in it, or in the user's cache folder.

    Returns:
        One row per feature, in layer order and best first, or by effect. A score is NaN where the held-out half has fewer
        than 4 windows of one kind.

    Raises:
        LensError: for SAEs of another pair, an unknown choice, a task that is empty or that the labeller cannot judge,
            missing effects, too few texts, texts that all begin alike, a cache of another pair or of other texts, a second
            opinion that could not differ, a chat model without a key, a price or a server, a budget that does not suffice,
            a pair on `mps`, which lacks 64-bit numbers, or if no feature fires.
        GateError: if no SAE passes the quality gates.

    >>> labels = explain(pair, saes, texts, task="positive sentiment")  # doctest: +SKIP
    >>> labels.relevant  # doctest: +SKIP
    """
    inputs = dict(locals())
    stated = load_lexicon(lexicon)
    _check(pair, saes, texts, k=k, n_examples=n_examples, max_tokens=max_tokens, n_random=n_random, scores=scores)
    replies = (store.root if store else cache_folder()) / "replies"
    setting = Setting(stated, task, replies, {name: inputs[name] for name in SPENDING})
    asked, second = make_labellers(labeller, judge, setting, repeat=repeat)
    sites, skipped = choose_sites(saes, side, size, gate)
    wanted = wanted_features(saes, sites, select, effects, k, side, size)

    def make(folder: Path | None) -> Labels:
        distinct = by_content(list(texts), seed)
        held = opened(cache, pair, saes.sites, texts, sides=(side,), max_tokens=max_tokens)
        width = pair.hf(side).config.hidden_size
        parts = halves(pair, distinct, max_tokens=max_tokens, width=width, seed=seed)
        with tqdm(total=sum(len(half.read.rows) for half in parts), desc="explain", unit="step") as bar:
            plan = Plan(pair, saes, side, size, *parts, windows_kept(n_examples, repeat), n_random, seed)
            seen = see(plan, wanted, held, bar)
            found = label(plan, seen, asked, second, task, n_examples, scores, repeat, bar)
        return Labels(saes=saes, task=task, select=select, side=side, size=size, skipped=skipped, **found)

    named = {name: value for name, value in inputs.items() if name not in SPENDING}
    # A labeller that a name stands for may depend on a file: its own fingerprint says what it would answer.
    named |= {"labeller": getattr(asked, "fingerprint", labeller), "judge": getattr(second, "fingerprint", judge)}
    return keep(store, "explain", in_key(named) | {"lexicon": stated, "texts": list(texts)}, make)


def _check(pair: Pair, saes: SAESet, texts: Sequence[str], *, scores: Sequence[str], **numbers: int) -> None:
    if saes.pair != pair.fingerprint:
        raise LensError(
            f"These SAEs were trained on the pair {saes.pair}, this pair is {pair.fingerprint}: their "
            "features mean nothing here. Run train_sae on this pair."
        )
    if pair.device.type == "mps":
        raise LensError("explain ranks windows by 64-bit numbers, which mps lacks: load the pair with device='cpu'.")
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise LensError("texts must be a list of strings.")
    for name, value in numbers.items():
        least = {"max_tokens": 2, "n_random": 0}.get(name, 1)
        if value < least:
            raise LensError(f"{name} must be {least} or more; {value} given.")
    if isinstance(scores, str):
        raise LensError(f"scores must be a list, such as ('detection',); {scores!r} given.")
    for kind in scores:
        if kind not in SCORES:
            raise unknown("score", kind, SCORES)
