"""The verb: prepare prompts and reward, tune, then measure what happened on prompts that the tuning never saw."""

import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.registry import Registry
from lfp_lens.core.stats import Estimate, mean_estimate
from lfp_lens.core.store import Store, keep
from lfp_lens.parts.activations import Encoded, text_log_probs
from lfp_lens.parts.generation import Completions, prompt_ids, sample
from lfp_lens.parts.lexicons import choose_flips
from lfp_lens.parts.lexicons import flip as flipped
from lfp_lens.parts.pair import TUNING_FILE, load_causal_lm, load_tokenizer, weights_fingerprint
from lfp_lens.parts.rewards import LexiconReward, Reward, make_reward
from lfp_lens.parts.sources import cache_folder
from lfp_lens.parts.speed import fast_matmul, quiet_transformers, short_text_attention
from lfp_lens.results.finetune import Tuning
from lfp_lens.stages.finetune.ppo import Settings, ppo

METHODS: Registry[Callable[..., dict[str, np.ndarray]]] = Registry("tuning method")
METHODS.add("ppo")(ppo)
SCOPES = ("completion", "text")
MAX_KL_NATS, MAX_KL_PER_TOKEN, MIN_DISTINCT2_SHARE = 20.0, 1.0, 0.5
N_SAMPLES = 8


def finetune(
    base: Any,
    *,
    prompts: Sequence[str],
    method: str = "ppo",
    reward: Any = "vader",
    scope: str = "completion",
    flip: int = 0,
    steps: int = 150,
    batch_size: int = 128,
    minibatches: int = 2,
    epochs: int = 2,
    max_new_tokens: int = 20,
    prompt_tokens: tuple[int, int] = (2, 9),
    lr: float = 3e-4,
    kl_coefficient: float = 0.3,
    heldout: int = 256,
    tokenizer: Any = None,
    output: str | Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    store: Store | None = None,
) -> Tuning:
    """Tune a causal LM on a reward, save the checkpoint, and say what happened on held-out prompts.

    Args:
        base: hub name, local folder, or a Hugging Face model in memory (it is copied, not changed).
        prompts: texts whose first tokens become the prompts; the last `heldout` of them are only measured on.
        method: `ppo`.
        reward: a registered name (`vader`), a lexicon file, or a callable `texts -> floats`.
        scope: score the `completion` alone, or the whole `text` (prompt and completion, as in the paper).
        flip: plant this many wrong words: their values in a lexicon reward are multiplied by -1. They are drawn with the
            seed from the most frequent words of `prompts` and stand in the result's `key` only, never in the checkpoint.
        steps: PPO steps, one rollout each.
        batch_size: completions per rollout.
        minibatches: optimiser steps per epoch over a rollout.
        epochs: passes over a rollout.
        max_new_tokens: longest completion, in tokens.
        prompt_tokens: shortest and longest prompt, in tokens.
        lr: AdamW's learning rate, warmed up over 10 steps, then falling linearly to 0.
        kl_coefficient: weight of the per-token KL penalty, in reward units per nat.
        heldout: prompts for the reported gain.
        tokenizer: for a model in memory.
        output: folder of the checkpoint; None puts it into the store, or into the user's cache folder without one.
        device: where to train.
        seed: of everything random.
        store: a run's store, or None.

    Returns:
        The checkpoint's path, the paired gain with its interval, KL, distinct bigrams, and a verdict: `learned`,
        `nothing was learned` or `the policy collapsed`.

    Raises:
        LensError: for an unknown method or reward, too few prompts, or a loss or reward that is not finite.

    >>> tuned = finetune("EleutherAI/pythia-70m", prompts=texts, reward="vader")  # doctest: +SKIP
    """
    inputs = dict(locals())
    tune = METHODS[method]
    given, key = _reward(reward, flip, prompts, seed)
    if scope not in SCOPES:
        raise LensError(f"scope must be 'completion' or 'text'; {scope!r} given.")
    if len(prompts) < heldout + 2:
        raise LensError(f"{heldout} held-out prompts and some to train on are needed; {len(prompts)} texts given.")
    settings = Settings(steps, batch_size, minibatches, epochs, max_new_tokens, lr, kl_coefficient, seed)
    _check(settings, heldout)
    start = load_causal_lm(base, device=device)
    longest, context = 1 + prompt_tokens[1] + max_new_tokens, getattr(start.config, "max_position_embeddings", None)
    if context is not None and longest > context:
        raise LensError(
            f"A prompt of {prompt_tokens[1]} tokens and {max_new_tokens} new ones need {longest} with the beginning of "
            f"text; the model's context has {context}. Lower prompt_tokens or max_new_tokens."
        )
    inputs |= {"base": weights_fingerprint(start), "reward": given, "tokenizer": None, "output": str(output)}

    def make(folder: Path | None) -> Tuning:
        tokens = tokenizer or load_tokenizer(base)
        place = Path(output) if output else (folder or cache_folder() / fingerprint(inputs)) / "checkpoint"
        train, test = prompts[: len(prompts) - heldout], prompts[len(prompts) - heldout :]
        train_ids = prompt_ids(tokens, train, prompt_tokens, seed=seed)
        test_ids = prompt_ids(tokens, test, prompt_tokens, seed=seed + 1)
        if len(test_ids) < 2:
            raise LensError(
                f"{len(test_ids)} of {len(test)} held-out texts are long enough to make a prompt of; 2 needed."
            )
        policy = copy.deepcopy(start)
        with fast_matmul(), short_text_attention(start, policy):
            curve = tune(policy, start, tokens, train_ids, _scored(given, scope), settings)
            policy.eval()
            facts = _measure(start, policy, tokens, test_ids, _scored(given, scope), settings)
        quiet_transformers()
        policy.save_pretrained(place)
        tokens.save_pretrained(place)
        record = {"method": method, "reward": given.name, "scope": scope, "max_new_tokens": max_new_tokens}
        (place / TUNING_FILE).write_text(json.dumps(record), encoding="utf-8")
        parameters = dataclasses.asdict(settings) | {
            "prompt_tokens": tuple(prompt_tokens),
            "scope": scope,
            "device": device,
        }
        verdict, reasons = judge(**{name: facts[name] for name in JUDGED})
        return Tuning(
            path=place, base=_name(base), method=method, reward={"name": given.name, "scope": scope}, key=key,
            parameters=parameters, curve=curve, verdict=verdict, reasons=reasons, **facts,
        )  # fmt: skip

    return keep(store, "finetune", inputs, make)


def _check(settings: Settings, heldout: int) -> None:
    """Refuse settings that cannot be run."""
    counts = dataclasses.asdict(settings) | {"heldout": heldout}
    for name, least in (("steps", 1), ("batch_size", 2), ("minibatches", 1), ("epochs", 1), ("max_new_tokens", 1),
                        ("heldout", 2), ("kl_coefficient", 0)):  # fmt: skip
        if not counts[name] >= least:
            raise LensError(f"{name} must be at least {least}; {counts[name]} given.")
    if not 0 < settings.lr < float("inf"):
        raise LensError(f"lr must be a finite number above 0; {settings.lr} given.")
    if settings.minibatches > settings.batch_size:
        raise LensError(
            f"{settings.minibatches} minibatches cannot be made of {settings.batch_size} completions: lower minibatches."
        )


def _reward(reward: Any, flips: int, prompts: Sequence[str], seed: int) -> tuple[Reward, dict[str, float]]:
    """Give the reward, with words planted wrong if asked, and the planted values."""
    given = make_reward(reward)
    if flips == 0:
        return given, {}
    if flips < 0 or not isinstance(given, LexiconReward):
        raise LensError(f"flip={flips} needs a lexicon reward and a number of words; the reward is {given.name!r}.")
    words = choose_flips(given.lexicon, prompts, flips, seed)
    planted = flipped(given.lexicon, words)
    return LexiconReward(planted, name=given.name), {word: planted[word] for word in words}


def _scored(reward: Reward, scope: str) -> Callable[[list[str], list[str]], np.ndarray]:
    if scope == "completion":
        return lambda whole, completions: reward(completions)
    return lambda whole, completions: reward(whole)


def _measure(
    base: Any,
    tuned: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    score: Callable[[list[str], list[str]], np.ndarray],
    settings: Settings,
) -> dict[str, Any]:
    """Sample both models from the same prompts with the same seed, and compare."""
    options = {"max_new_tokens": settings.max_new_tokens, "seed": settings.seed + 1}
    before, after = (sample(model, tokenizer, prompts, **options) for model in (base, tuned))
    rewards = [score(done.whole, done.texts) for done in (before, after)]
    kl_nats, kl_per_token = _kl(base, tuned, prompts, after)
    return {
        "gain": mean_estimate(rewards[1] - rewards[0], seed=settings.seed),
        "reward_base": float(rewards[0].mean()),
        "reward_tuned": float(rewards[1].mean()),
        "kl_nats": kl_nats,
        "kl_per_token": kl_per_token,
        "distinct2_base": before.distinct2,
        "distinct2_tuned": after.distinct2,
        "length_base": before.mean_length,
        "length_tuned": after.mean_length,
        "samples": tuple(zip(before.prompts, before.texts, after.texts))[:N_SAMPLES],
    }


def _kl(base: Any, tuned: Any, prompts: list[list[int]], done: Completions) -> tuple[float, float]:
    """Give KL(tuned || base) per completion and per token, in nats, from the tuned model's own samples."""
    whole = [Encoded(prompt + ids, []) for prompt, ids in zip(prompts, done.ids)]
    by_model = [text_log_probs(model, whole, device=tuned.device) for model in (tuned, base)]
    gaps = [float((t - b)[-len(ids) :].sum()) for t, b, ids in zip(*by_model, done.ids)]
    return float(np.mean(gaps)), float(np.sum(gaps) / sum(len(ids) for ids in done.ids))


JUDGED = ("gain", "kl_nats", "kl_per_token", "distinct2_base", "distinct2_tuned")


def judge(
    gain: Estimate, kl_nats: float, kl_per_token: float, distinct2_base: float, distinct2_tuned: float
) -> tuple[str, tuple[str, ...]]:
    """Say whether the tuning learned, learned nothing, or collapsed, and why (DESIGN.md section 6, rule 10).

    >>> judge(Estimate(0.7, 0.6, 0.8, 256), 3.4, 0.2, 0.5, 0.4)[0]
    'learned'
    >>> judge(Estimate(9.0, 8.9, 9.1, 256), 91.0, 4.5, 0.5, 0.1)[0]
    'the policy collapsed'
    """
    collapse = {
        f"KL {kl_nats:.1f} nats per completion, at most {MAX_KL_NATS:g} allowed": not kl_nats <= MAX_KL_NATS,
        f"KL {kl_per_token:.2f} nats per token, at most {MAX_KL_PER_TOKEN:g} allowed": (
            not kl_per_token <= MAX_KL_PER_TOKEN
        ),
        f"distinct-2 fell from {distinct2_base:.2f} to {distinct2_tuned:.2f}, at least half must stay": (
            distinct2_tuned < MIN_DISTINCT2_SHARE * distinct2_base
        ),
    }
    broken = tuple(reason for reason, is_so in collapse.items() if is_so)
    if broken:
        return "the policy collapsed", broken
    if gain.low <= 0:
        return "nothing was learned", (f"the reward gain {gain} is not certainly above 0",)
    return "learned", (f"the whole interval of the reward gain lies above 0: {gain}",)


def _name(base: Any) -> str:
    return str(base) if isinstance(base, (str, Path)) else f"{type(base).__name__} in memory"
