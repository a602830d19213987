"""The verb: check everything, prepare data and reward, tune, then measure what the saved checkpoint does."""

import copy
import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.store import Store, keep
from lfp_lens.core.work import SUFFIX, is_first, is_one_of_many, work_folder
from lfp_lens.parts.adapters import make_lora
from lfp_lens.parts.checkpoints import load_causal_lm, load_tokenizer, weights_fingerprint
from lfp_lens.parts.lexicons import choose_flips, edited
from lfp_lens.parts.preferences import Preferences, load_preferences
from lfp_lens.parts.rewards import LexiconReward, Reward, make_reward
from lfp_lens.parts.speed import fast_matmul, short_text_attention
from lfp_lens.results.finetune import Tuning
from lfp_lens.stages.finetune.checks import (
    check_adapter,
    check_pairs,
    check_place,
    check_prompts,
    check_reward,
    check_settings,
    check_tokenizer,
    fill_settings,
    load_reference,
)
from lfp_lens.stages.finetune.data import Data, from_preferences, from_prompts, with_sampled_pairs
from lfp_lens.stages.finetune.files import keep_trackers, own_folder, save_checkpoint
from lfp_lens.stages.finetune.job import Job, Score, Settings
from lfp_lens.stages.finetune.measure import measure_checkpoint
from lfp_lens.stages.finetune.methods import METHODS, Method
from lfp_lens.stages.finetune.processes import check_tracker, wait
from lfp_lens.stages.finetune.trainer import own_randomness, quiet_trl, same_config

SCOPES = ("completion", "text")


def finetune(
    base: Any,
    *,
    prompts: Sequence[str] = (),
    preferences: str | Path | Preferences | None = None,
    method: str = "ppo",
    reward: Any = "vader",
    scope: str = "completion",
    flip: int = 0,
    edits: Mapping[str, float] | None = None,
    min_gap: float = 0.2,
    steps: int | None = None,
    batch_size: int | None = None,
    minibatches: int | None = None,
    epochs: int | None = None,
    group_size: int = 8,
    max_new_tokens: int = 20,
    max_tokens: int = 256,
    prompt_tokens: tuple[int, int] = (2, 9),
    lr: float | None = None,
    kl_coefficient: float | None = None,
    kl_target: float | None = None,
    lora: Any = None,
    reference: Any = None,
    heldout: int = 256,
    gradient_accumulation: int = 1,
    gradient_checkpointing: bool = False,
    bf16: bool | None = None,
    save_steps: int = 50,
    report_to: str = "none",
    tokenizer: Any = None,
    output: str | Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    store: Store | None = None,
) -> Tuning:
    """Tune a causal LM on a reward, on preferences or on texts, and say what happened on held-out data.

    Where a number is None, the method's own is used (`METHODS[method].defaults`); the result's `parameters` say which.
    A run that was killed goes on from its last checkpoint when the same call is made again.

    Args:
        base: hub name, local folder, or a Hugging Face model in memory (it is copied, not changed).
        prompts: texts whose first tokens become the prompts (`sft` trains on the whole texts); the last `heldout` of them are
            only measured on.
        preferences: for `dpo`, `kto`, `reward_model` and `sft`, instead of `prompts`: a name that `load_preferences` takes (`hh`,
            `hh:SUBSET`, `toxic`, a file, a hub data set), or a `Preferences`. `sft` trains on the chosen texts. No reward is
            used then.
        method: `ppo`, `rloo`, `grpo` (its own completions, scored), `dpo`, `kto`, `reward_model` (pairs), `sft` (texts as they
            are: the twin that saw no reward). Pairs that nobody gave are made from two samples of the base per prompt,
            ordered by the reward.
        reward: a registered name (`vader`), a lexicon (a file, or word -> value), `classifier:MODEL@LABEL`,
            `reward_model:PATH`, a callable `texts -> floats`, or a list of (reward, weight).
        scope: score the `completion` alone, or the whole `text` (prompt and completion, as in the paper).
        flip: plant this many wrong words: their values in a lexicon reward are multiplied by -1. They are drawn with the
            seed from the most frequent words of `prompts` and stand in the result's `key` only, never in the checkpoint.
        edits: word -> factor that its lexicon value is multiplied by (-1 flips, 0 mutes, 3 inflates); also in the `key` only.
        min_gap: smallest difference in reward of the two samples of a pair, where pairs are made from samples.
        steps: rollouts (ppo, rloo, grpo) or optimiser steps (the others).
        batch_size: completions, pairs or texts per step.
        minibatches: optimiser steps per pass over a rollout (ppo, rloo, grpo).
        epochs: passes over a rollout (ppo, rloo, grpo).
        group_size: completions per prompt (rloo, grpo); it must divide `batch_size / minibatches`.
        max_new_tokens: longest completion that is sampled, in training and in measuring, in tokens.
        max_tokens: longest text that is trained on, prompt included (dpo, kto, sft, reward_model), in tokens; longer ones are
            cut, and counted in the result's `data`.
        prompt_tokens: shortest and longest prompt, in tokens, cut from `prompts`.
        lr: AdamW's learning rate, warmed up over 10 steps, then falling linearly to 0.
        kl_coefficient: weight of the KL penalty, in reward units per nat; the `beta` of dpo and kto.
        kl_target: nats per completion that the KL coefficient of ppo adapts to (Ziegler et al. 2019); None keeps it fixed.
        lora: rank of a LoRA adapter, or a PEFT `LoraConfig`; None trains every weight.
        reference: what KL is measured to in training, of the base's shape; None is an exact copy of the base.
        heldout: prompts that are only measured on; of given preferences, at most so many test pairs. A short prompt may also
            begin a training text: the result's `data` counts such ones, and they make no held-out pair.
        gradient_accumulation: parts that a batch is computed in, for memory.
        gradient_checkpointing: recompute activations in the backward pass, for memory.
        bf16: compute under bf16 autocast, weights in fp32; None does so on a CUDA device that has it.
        save_steps: steps between checkpoints that a killed run goes on from; 0 writes none.
        report_to: a tracker (`tensorboard`, `wandb`, ...), or `none`.
        tokenizer: for a model in memory.
        output: folder of the checkpoint; None puts it into the store, or into the user's cache folder without one.
        device: where to train: `cpu`, `cuda`, ...
        seed: of everything random.
        store: a run's store, or None.

    Returns:
        The checkpoint's path, the paired gain with its interval (or the accuracy on held-out pairs, or the fit to held-out
        texts), KL, how base and tuned write, and a verdict: `learned`, `nothing was learned` or `the policy collapsed`.

    Raises:
        LensError: before any training, for an unknown method or reward, data that the method cannot use, a batch that does
            not divide, prompts beyond the context, a reference of another shape, a tokenizer without an end-of-text token;
            later for a loss or reward that is not finite.

    Source: arXiv 2310.08164, section 3.1 and appendix A.

    >>> tuned = finetune("EleutherAI/pythia-70m", prompts=texts, reward="vader")  # doctest: +SKIP
    >>> tuned = finetune("EleutherAI/pythia-70m", preferences="hh", method="dpo", lora=16)  # doctest: +SKIP
    """
    inputs = dict(locals())
    way = METHODS[method]
    pairs = _preferences(way, method, prompts, preferences, reward, flip, edits)
    if pairs is None:
        check_prompts(prompts, heldout)
    elif way.learns_from == "pairs":
        check_pairs(pairs)
    given, key = (None, {}) if pairs is not None else _reward(reward, flip, edits, prompts, seed, device)
    if scope not in SCOPES:
        raise LensError(f"scope must be 'completion' or 'text'; {scope!r} given.")
    if output is not None:
        check_place(output, base, lora is not None)
    check_tracker(report_to, by_trl=method != "ppo")
    start = load_causal_lm(base, device=device)
    tokens = load_tokenizer(base) if tokenizer is None else tokenizer
    settings = fill_settings(inputs, way, start)
    check_settings(settings, way, heldout, prompt_tokens, is_sampled=pairs is None)
    check_tokenizer(tokens, start, method)
    anchor = start if reference is None else load_reference(reference, start, lora, method, device)
    adapter = None if lora is None else make_lora(lora, start)
    if adapter is not None:
        check_adapter(adapter, start)
    inputs |= {
        "base": weights_fingerprint(start), "reward": given, "preferences": pairs, "output": str(output),
        "tokenizer": fingerprint(tokens.backend_tokenizer.to_str()), "edits": dict(edits or {}),
        "reference": None if reference is None else weights_fingerprint(anchor),
        "lora": None if adapter is None else {name: _ordered(value) for name, value in adapter.to_dict().items()},
    }  # fmt: skip

    def make(folder: Path | None) -> Tuning:
        ours = folder or own_folder(inputs)
        place = Path(output) if output else ours / "checkpoint"
        score = None if given is None else _scored(given, scope)
        if score is not None:
            check_reward(score, prompts)
        with work_folder(ours.with_suffix(SUFFIX)) as work, fast_matmul(), short_text_attention(start):
            data = _data(way, tokens, start, prompts, pairs, score, settings, prompt_tokens, heldout, min_gap)
            job = Job(
                policy=copy.deepcopy(start), reference=anchor, tokenizer=tokens, prompts=data.train.prompts,
                score=score if way.learns_from == "rewards" else None, preferences=data.train.pairs,
                texts=data.train.texts, lora=adapter, settings=settings, work=work,
                is_sampled=pairs is None,
            )  # fmt: skip
            with quiet_trl(), own_randomness(), same_config(job.policy):
                done = way.tune(job)
            record = {
                "method": method, "reward": None if given is None else given.name, "scope": scope, "base": _name(base),
                "base_fingerprint": weights_fingerprint(start), "max_new_tokens": max_new_tokens,
            } | ({"beta": settings.kl_coefficient} if method in ("dpo", "kto") else {})  # fmt: skip
            # Of several processes the first one writes, where all can read.
            written = work / "written" if is_one_of_many() else place
            if is_first():
                save_checkpoint(done.model, tokens, written, record, base)
                keep_trackers(work, written)
            wait()
            facts = measure_checkpoint(way, start, written, tokens, data, score, settings, adapter is not None)
            if written != place and (is_first() or not output):
                shutil.copytree(written, place, dirs_exist_ok=True)
            wait()
        parameters = dataclasses.asdict(settings) | {
            "prompt_tokens": tuple(prompt_tokens), "scope": scope, "device": str(start.device), "heldout": heldout,
            "lora_rank": None if adapter is None else adapter.r, "min_gap": min_gap,
        }  # fmt: skip
        return Tuning(
            path=place, base=_name(base), method=method, key=key, parameters=parameters, data=data.counts,
            reward={} if given is None else {"name": given.name, "scope": scope}, curve=done.curve, **facts,
        )  # fmt: skip

    return keep(store, "finetune", inputs, make)


def _preferences(
    way: Method, method: str, prompts: Sequence[str], preferences: Any, reward: Any, flip: int, edits: Any
) -> Preferences | None:
    """Give the pairs that were asked for; None where prompts are used instead."""
    if preferences is None:
        return None
    if way.learns_from == "rewards":
        raise LensError(f"{method} learns from its own completions: give prompts and a reward, not preferences.")
    if len(prompts):
        raise LensError("Give prompts (pairs are then made from samples) or preferences, not both.")
    if flip or edits:
        raise LensError("flip and edits change a lexicon reward; given preferences have none.")
    return preferences if isinstance(preferences, Preferences) else load_preferences(preferences)


def _reward(
    reward: Any, flip: int, edits: Mapping[str, float] | None, prompts: Sequence[str], seed: int, device: str
) -> tuple[Reward, dict[str, float]]:
    """Give the reward, with words planted wrong if asked, and the planted values."""
    given = make_reward(reward)
    if edits is not None and not isinstance(edits, Mapping):
        raise LensError(f"edits is a table of words and factors; {type(edits).__name__} given.")
    factors = dict(edits or {})
    if flip == 0 and not factors:
        return given, {}
    if flip < 0 or not isinstance(given, LexiconReward):
        what = f"flip={flip}" if flip else "edits"
        raise LensError(f"{what} needs a lexicon reward and a number of words; the reward is {given.name!r}.")
    if flip:
        drawn = choose_flips(given.lexicon, prompts, flip, seed)
        both = sorted(set(drawn) & set(factors))
        if both:
            raise LensError(f"{both[0]!r} was drawn to be flipped and stands in edits too: use one of the two.")
        factors |= dict.fromkeys(drawn, -1.0)
    planted = edited(given.lexicon, factors)
    return LexiconReward(planted, name=given.name), {word: planted[word] for word in sorted(factors)}


def _scored(reward: Reward, scope: str) -> Score:
    if scope == "completion":
        return lambda whole, completions: reward(completions)
    return lambda whole, completions: reward(whole)


def _data(
    way: Method, tokens: Any, start: Any, prompts: Sequence[str], pairs: Preferences | None, score: Score | None,
    settings: Settings, lengths: tuple[int, int], heldout: int, min_gap: float,
) -> Data:  # fmt: skip
    if pairs is not None:
        options = {"max_tokens": settings.max_tokens, "max_new_tokens": settings.max_new_tokens}
        return from_preferences(tokens, pairs, heldout=heldout, **options)
    longest = settings.max_tokens if way.learns_from == "texts" else None
    found = from_prompts(tokens, prompts, lengths, heldout=heldout, seed=settings.seed, max_tokens=longest)
    if way.learns_from != "pairs":
        return found
    assert score is not None
    return with_sampled_pairs(found, start, tokens, score, settings, min_gap=min_gap)


def _ordered(value: Any) -> str:
    """Write a setting out, the same in every process: a set has another order in each."""
    return str(sorted(value) if isinstance(value, set) else value)


def _name(base: Any) -> str:
    return str(base) if isinstance(base, (str, Path)) else f"{type(base).__name__} in memory"
