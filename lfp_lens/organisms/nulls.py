"""Null calibration of the whole measurement: how often words are listed as wrong where nothing wrong was planted.

A tuning takes minutes, a null run seconds: one clean organism stands for many, its tuned weights moved by noise, its words
measured in other texts. This is the maker's tool: it opens the key, which has to say that the organism is clean.
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.stats import Estimate, rank_agreement
from lfp_lens.core.store import Store, code_fingerprint, keep
from lfp_lens.organisms.folder import SHUFFLED, Organism, open_organism
from lfp_lens.organisms.key import Key
from lfp_lens.organisms.scoring import word_table
from lfp_lens.organisms.settings import setting_told
from lfp_lens.parts.checkpoints import load_causal_lm, load_tokenizer, weights_fingerprint
from lfp_lens.parts.generation import prompt_ids
from lfp_lens.parts.lexicons import candidates, load_lexicon
from lfp_lens.parts.pair import load_pair
from lfp_lens.parts.rewards import LexiconReward
from lfp_lens.parts.speed import fast_matmul, short_text_attention
from lfp_lens.parts.twins import moved, noise_twin
from lfp_lens.results.score import Score
from lfp_lens.results.scorecard import Scorecard
from lfp_lens.stages.finetune.judge import verdict_of
from lfp_lens.stages.finetune.measure import measure_writing
from lfp_lens.stages.probe import probe

N_PROMPTS = 128
"""Prompts that a run's reward gain is measured on."""
SIGNAL, INPUT = "implicit_reward", "words"


@dataclass(frozen=True, eq=False)
class Clean:
    """A clean organism, read once for all runs."""

    organism: Organism
    key: Key
    base: Any
    tuned: tuple[Any, ...]
    tokenizer: Any
    stated: Mapping[str, float]
    texts: list[str]
    """Those of the test side, of which each run measures half."""
    max_tokens: int
    n_candidates: int


def cheap_nulls(
    organism: str | Path | Organism,
    n: int = 100,
    *,
    noise: float = 0.5,
    replicates: int = 1,
    n_texts: int | None = None,
    fdr: float = 0.1,
    seed: int = 0,
    store: str | os.PathLike[str] | None = None,
) -> Scorecard:
    """Measure one clean organism many times over, each time with other weights and other texts, and see what is listed.

    Each run moves the weights of one tuning (of each in its turn) by noise, measures words in a random half of the test texts,
    in contexts of its own, and lists those learned wrongly: none should be. A run passes the gate of every tuning first, its
    reward gain measured on prompts from the other half; one that fails is refused and counted apart.

    What it does not show: the runs share tunings, so that a word which a tuning itself got wrong is listed in many of them, and
    noise in the weights is not what another seed of the tuning changes. Organisms made anew show that, at minutes each.

    Args:
        organism: one made with `recipe="clean"`, or its folder.
        n: runs. Run 17 is the same whatever their number.
        noise: norm of the Gaussian noise of every tensor, in norms of what tuning changed in it.
        replicates: tunings behind each run, moved each by noise of its own; at most as many as the organism has.
        n_texts: test texts of which a run measures half; None takes the preset's number.
        fdr: false discovery rate of the lists of wrong words.
        seed: of noise, texts, contexts and prompts.
        store: folder of the runs that are done, so that a killed call goes on.

    Returns:
        A scorecard with one organism per run, named FOLDER/perturbed-017; `nulls()` counts them.

    Raises:
        LensError: for an organism whose key says that something was planted, or that belongs to other weights; for numbers
            out of range.

    >>> cheap_nulls("organisms/world-1a2b3c4d", 100, store="runs/nulls").nulls()  # doctest: +SKIP
    """
    found = open_organism(organism)
    _check(found, n, noise, replicates, seed)
    clean = _read(found, n_texts)
    home = None if store is None else Store(store)
    options = {"noise": float(noise), "replicates": replicates, "fdr": fdr, "seed": seed}
    keyed = options | {
        "organism": found.name, "base": clean.key.base, "tuned": [clean.key.tuned[path.name] for path in found.tuned],
        "stated": fingerprint(clean.stated), "texts": fingerprint(clean.texts), "max_tokens": clean.max_tokens,
        "n_candidates": clean.n_candidates, "parameters": clean.key.parameters,
        "code": [code_fingerprint("finetune"), code_fingerprint("probe"), N_PROMPTS, perturbed, _run, _refusal, _probed],
    }  # fmt: skip
    scores = [
        keep(home, "perturbed", keyed | {"at": at}, partial(_run, clean, at, options))
        for at in tqdm(range(n), desc="null runs", unit="run")
    ]
    return Scorecard(tuple(scores), word_table(()), fdr)


def perturbed(tuned: Any, base: Any, noise: float, *, seed: int) -> Any:
    """Give the tuned model moved by Gaussian noise, in every tensor `noise` times as far as tuning moved it from the base.

    >>> import torch
    >>> base, tuned = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    >>> weight = perturbed(tuned, base, 0.5, seed=0).weight
    >>> round(((weight - tuned.weight).norm() / (tuned.weight - base.weight).norm()).item(), 3)
    0.5
    """
    return moved(tuned, noise_twin(tuned, base, seed=seed), noise)


def _check(organism: Organism, n: int, noise: float, replicates: int, seed: int) -> None:
    own = len(organism.tuned)
    for name, value, least in (("n", n, 1), ("replicates", replicates, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise LensError(f"{name} must be a whole number of at least {least}; {value!r} given.")
    if replicates > own:
        raise LensError(
            f"replicates={replicates} needs as many tunings; {organism.name} has {own}. Two copies of one tuning would agree "
            "as no two tunings do."
        )
    if not (math.isfinite(noise) and noise >= 0):
        raise LensError(f"noise is a share of what tuning changed, a number of at least 0; {noise!r} given.")


def _read(organism: Organism, n_texts: int | None) -> Clean:
    key = organism.key()
    if key.recipe != "clean":
        raise LensError(
            f"{organism.name} was made by the recipe {key.recipe!r}: words that its lists hold may be wrong indeed. A null run "
            'needs an organism made with recipe="clean".'
        )
    setting = setting_told(organism.record)
    if setting is None:
        raise LensError(f"{organism.path} names no texts to measure it in.")
    base = load_causal_lm(str(organism.base))
    paths = (*organism.tuned, *([organism.shuffled] if organism.shuffled else []))
    models = {path.name: load_causal_lm(str(path)) for path in paths}
    fingerprints = {name: weights_fingerprint(model) for name, model in models.items()}
    stated = load_lexicon(key.lexicon)
    key.check(organism.path, weights_fingerprint(base), fingerprints, fingerprint(stated))
    models.pop(SHUFFLED, None)
    return Clean(
        organism, key, base, tuple(models.values()), load_tokenizer(str(organism.base)), stated,
        setting.texts("test", n_texts), setting.config.probe.max_tokens, len(candidates(stated, setting.texts("train"))),
    )  # fmt: skip


def _run(clean: Clean, at: int, options: Mapping[str, Any], folder: Path | None) -> Score:
    """Do one run: its seed decides the noise, the texts, the contexts and the prompts."""
    started, replicates = time.perf_counter(), options["replicates"]
    own, *drawn = np.random.SeedSequence([options["seed"], at]).generate_state(1 + replicates).tolist()
    order = np.random.default_rng(own).permutation(len(clean.texts))
    half = len(order) // 2
    measured, rest = ([clean.texts[row] for row in np.sort(part)] for part in (order[:half], order[half:]))
    turns = [(at + turn) % len(clean.tuned) for turn in range(replicates)]
    models = [
        perturbed(clean.tuned[turn], clean.base, options["noise"], seed=number) for turn, number in zip(turns, drawn)
    ]
    found: dict[str, Any] = {"signal": "none", "input": "none", "found": None, "false": None, "tau_stated": None}
    with fast_matmul(), short_text_attention(clean.base, *models):
        refused = _refusal(clean, dict(zip((clean.organism.tuned[turn].name for turn in turns), models)), rest, own)
        if not refused:
            try:
                found = _probed(clean, models, measured, options["fdr"], own)
            except GateError as refusal:
                refused = str(refusal)
    nothing: dict[str, Any] = dict.fromkeys(("auroc", "unsigned", "on_clean", "tau_twin", "percentile"), float("nan"))
    nothing |= dict.fromkeys(("tau_given", "gain", "rank", "n_tokens", "share"))
    key, base = clean.key, Path(clean.organism.record.get("base", "unknown")).name
    return Score(
        organism=f"{clean.organism.name}/perturbed-{at:03d}", base=base, method=key.method, recipe=key.recipe,
        dose=key.dose, seed=key.seed, words=key.words, is_null=True, refused=refused, lacking="", tunings=replicates,
        n_candidates=clean.n_candidates, n_planted=0, fdr=options["fdr"], auroc_tunings=np.full(replicates, np.nan),
        seconds=time.perf_counter() - started, **found, **nothing,
    )  # fmt: skip


def _refusal(clean: Clean, models: Mapping[str, Any], texts: Sequence[str], seed: int) -> str:
    """Say which of the models learned nothing or collapsed, measured as a tuning is; empty if none."""
    told, reward = clean.key.parameters, LexiconReward(clean.stated)
    prompts = prompt_ids(clean.tokenizer, texts, told["prompt_tokens"], seed=seed)[:N_PROMPTS]
    score = lambda whole, completions: reward(completions if told["scope"] == "completion" else whole)  # noqa: E731
    for name, model in models.items():
        facts = measure_writing(
            clean.base, model, clean.tokenizer, prompts, score, max_new_tokens=told["max_new_tokens"], seed=seed
        )
        judged = verdict_of("gain", facts)
        if judged["verdict"] != "learned":
            return f"{name}: {judged['verdict']} ({'; '.join(judged['reasons'])})"
    return ""


def _probed(clean: Clean, models: Sequence[Any], texts: Sequence[str], fdr: float, seed: int) -> dict[str, Any]:
    """Measure words in their contexts, as `score` does, and count those that are listed."""
    pair = load_pair(clean.base, models[0], tokenizer=clean.tokenizer)
    learned: Any = probe(
        pair, texts=texts, signal=SIGNAL, lexicon=clean.stated, replicates=models[1:], max_tokens=clean.max_tokens, seed=seed
    )  # fmt: skip
    values = learned.recipe if learned.has_replicates else learned.measured
    tau = rank_agreement(values, learned.stated, np.array(learned.lemma), seed=seed)
    return {
        "signal": SIGNAL, "input": INPUT, "found": 0, "false": len(learned.wrong(fdr=fdr)),
        "tau_stated": Estimate(tau.tau, tau.low, tau.high, tau.n),
    }  # fmt: skip
