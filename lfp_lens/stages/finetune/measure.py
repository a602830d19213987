"""What a tuning did, on prompts, pairs and texts that it never saw: nothing here looks at the training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lfp_lens.core.stats import Estimate, mean_estimate
from lfp_lens.parts.activations import Encoded, encode, text_log_probs
from lfp_lens.parts.adapters import read_adapter
from lfp_lens.parts.checkpoints import load_causal_lm
from lfp_lens.parts.generation import Completions, sample
from lfp_lens.parts.merging import merge
from lfp_lens.parts.preferences import Preference
from lfp_lens.parts.reward_models import load_reward_model
from lfp_lens.parts.speed import short_text_attention
from lfp_lens.results.finetune import Behaviour
from lfp_lens.stages.finetune.data import Data
from lfp_lens.stages.finetune.job import Score, Settings
from lfp_lens.stages.finetune.judge import verdict_of
from lfp_lens.stages.finetune.methods import Method

N_SAMPLES = 8


def measure_checkpoint(
    way: Method, start: Any, place: Path, tokens: Any, data: Data, score: Score | None, settings: Settings, is_adapter: bool
) -> dict[str, Any]:  # fmt: skip
    """Measure the checkpoint as it lies on disk, and judge."""
    options = {"max_tokens": settings.max_tokens, "seed": settings.seed}
    facts: dict[str, Any] = dict.fromkeys(
        ("gain", "accuracy", "accuracy_base", "accuracy_length", "fit", "kl_nats", "kl_per_token", "behaviour_base",
         "behaviour_tuned")
    ) | {"samples": ()}  # fmt: skip
    if not way.makes_policy:
        model = load_reward_model(place, base=start if is_adapter else None, device=str(start.device))
        rewards = model([pair.prompt + text for pair in data.test.pairs for text in pair[1:]]).reshape(-1, 2)
        facts |= measure_pairs(start, rewards @ np.array([1, -1]), tokens, data.test.pairs, **options)
        return facts | verdict_of("accuracy", facts)
    device = str(start.device)
    tuned = merge(start, read_adapter(place, str(place))).model if is_adapter else load_causal_lm(place, device=device)
    with short_text_attention(tuned):
        facts |= measure_writing(
            start, tuned, tokens, data.test.prompts, score, max_new_tokens=settings.max_new_tokens, seed=settings.seed
        )
        if data.test.pairs and way.learns_from == "pairs":
            margins = implicit_margins(start, tuned, tokens, data.test.pairs, max_tokens=settings.max_tokens)
            facts |= measure_pairs(start, margins, tokens, data.test.pairs, **options)
        if way.learns_from == "texts":
            facts["fit"] = measure_fit(start, tuned, tokens, data.test.texts, **options)
    aim = "fit" if way.learns_from == "texts" else "accuracy" if facts["gain"] is None else "gain"
    return facts | verdict_of(aim, facts)


def measure_writing(
    base: Any,
    tuned: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    score: Score | None,
    *,
    max_new_tokens: int,
    seed: int,
) -> dict[str, Any]:
    """Sample both models from the same prompts with the same seed, and compare."""
    models = (base, tuned)
    drawn = [sample(model, tokenizer, prompts, max_new_tokens=max_new_tokens, seed=seed + 1) for model in models]
    rewards = [None if score is None else score(done.whole, done.texts) for done in drawn]
    own = [_log_probs(model, prompts, done) for model, done in zip(models, drawn)]
    base_on_tuned = _log_probs(base, prompts, drawn[1])
    gaps = [float((tuned_T - base_T).sum()) for tuned_T, base_T in zip(own[1], base_on_tuned)]
    before, after = (_behaviour(*facts) for facts in zip(drawn, rewards, own))
    gain = None if rewards[0] is None or rewards[1] is None else mean_estimate(rewards[1] - rewards[0], seed=seed)
    return {
        "gain": gain,
        "kl_nats": float(np.mean(gaps)),
        "kl_per_token": float(np.sum(gaps) / sum(len(ids) for ids in drawn[1].ids)),
        "behaviour_base": before,
        "behaviour_tuned": after,
        "samples": tuple(zip(drawn[0].prompts, drawn[0].texts, drawn[1].texts))[:N_SAMPLES],
    }


def _log_probs(model: Any, prompts: list[list[int]], done: Completions) -> list[np.ndarray]:
    """Give log p of every token of every completion under `model`, in nats."""
    whole = [Encoded(prompt + ids, []) for prompt, ids in zip(prompts, done.ids)]
    found = text_log_probs(model, whole, device=model.device)
    return [values[-len(ids) :].double().numpy() for values, ids in zip(found, done.ids)]


def _behaviour(done: Completions, rewards: np.ndarray | None, log_probs: list[np.ndarray]) -> Behaviour:
    return Behaviour(
        n=len(done.ids),
        reward=None if rewards is None else float(rewards.mean()),
        entropy_nats=float(-np.concatenate(log_probs).mean()),
        length=done.mean_length,
        ended=float(np.mean(done.ended)),
        distinct1=done.distinct1,
        distinct2=done.distinct2,
    )


def measure_pairs(
    base: Any, learned: np.ndarray, tokenizer: Any, pairs: Sequence[Preference], *, max_tokens: int, seed: int
) -> dict[str, Estimate]:
    """Say how many held-out pairs are ordered right by what was learned, by the base's likelihood and by length alone.

    `learned` is the learned reward of chosen minus rejected, one value per pair.
    """
    likelihood = pair_log_probs(base, tokenizer, pairs, max_tokens=max_tokens)
    length = np.array([[len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
                       for texts in (tuple(pair[1:]) for pair in pairs)])  # fmt: skip
    margins = {
        "accuracy": learned,
        "accuracy_base": likelihood[:, 0] - likelihood[:, 1],
        "accuracy_length": (length[:, 0] - length[:, 1]).astype(float),
    }
    # A tie is half a hit: a guess would get it so.
    return {name: mean_estimate((np.sign(margin) + 1) / 2, seed=seed) for name, margin in margins.items()}


def implicit_margins(
    base: Any, tuned: Any, tokenizer: Any, pairs: Sequence[Preference], *, max_tokens: int
) -> np.ndarray:
    """Give the implicit reward, log p_tuned - log p_base of the completion, of chosen minus rejected, in nats."""
    gaps = [pair_log_probs(model, tokenizer, pairs, max_tokens=max_tokens) for model in (tuned, base)]
    return (gaps[0] - gaps[1]) @ np.array([1.0, -1.0])


def pair_log_probs(model: Any, tokenizer: Any, pairs: Sequence[Preference], *, max_tokens: int) -> np.ndarray:
    """Give log p(chosen | prompt) and log p(rejected | prompt), `[pairs, 2]`, in nats."""
    starts = [len(pair.prompt) for pair in pairs for _ in range(2)]
    texts = [pair.prompt + text for pair in pairs for text in pair[1:]]
    encoded = encode(tokenizer, texts, max_tokens=max_tokens)
    found = text_log_probs(model, encoded, device=model.device)
    sums = [
        float(values.double()[[end > start for _, end in text.offsets[1:]]].sum())
        for values, text, start in zip(found, encoded, starts)
    ]
    return np.array(sums).reshape(-1, 2)


def measure_fit(base: Any, tuned: Any, tokenizer: Any, texts: Sequence[str], *, max_tokens: int, seed: int) -> Estimate:
    """Give the log-likelihood of held-out texts, tuned minus base, in nats per token, paired by text."""
    encoded = encode(tokenizer, texts, max_tokens=max_tokens)
    by_model = [text_log_probs(model, encoded, device=model.device) for model in (tuned, base)]
    gaps = [float((ours - theirs).double().mean()) for ours, theirs in zip(*by_model) if len(ours)]
    return mean_estimate(np.array(gaps), seed=seed)
