"""PPO for a causal LM with any reward on texts: clip, GAE, a per-token KL penalty to an exact copy of the start model.

TRL removed its PPO after 1.12, and a lexicon reward is a plain function. Equation numbers follow appendix A of
arXiv 2310.08164: the objective is E[min(r_t A_t, clip(r_t, 1 - eps, 1 + eps) A_t)]. Tokens after the first end-of-text are
masked out of everything. The value head reads detached hidden states: what moves in the policy is policy gradient alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.parts.activations import unembed
from lfp_lens.parts.generation import end_ids, generate, left_pad
from lfp_lens.parts.sites import trunk

GAMMA, LAMBDA, CLIP, VALUE_WEIGHT, MAX_GRAD_NORM, WARM_UP = 1.0, 0.95, 0.2, 0.1, 1.0, 10


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of one run."""

    steps: int
    batch_size: int
    minibatches: int
    epochs: int
    max_new_tokens: int
    lr: float
    kl_coefficient: float
    seed: int


@dataclass(frozen=True, eq=False)
class Rollout:
    """One batch of sampled completions; P prompt columns (left-padded), T new tokens."""

    ids_BS: torch.Tensor
    """Prompt and completion, S = P + T."""
    mask_BS: torch.Tensor
    """1 at prompt tokens and at completion tokens through the first end-of-text."""
    real_BT: torch.Tensor
    """True at completion tokens through the first end-of-text."""
    texts: list[str]
    """The completions, decoded."""
    whole: list[str]
    """Prompt and completion, decoded together."""


def ppo(
    policy: Any,
    reference: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    score: Callable[[list[str], list[str]], np.ndarray],
    settings: Settings,
) -> dict[str, np.ndarray]:
    """Tune `policy` in place and give its learning curve; `score(whole texts, completions)` is the reward.

    Raises `LensError` if the loss or the policy stops being finite.
    """
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return _ppo(policy, reference, tokenizer, prompts, score, settings)


def _ppo(
    policy: Any,
    reference: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    score: Callable[[list[str], list[str]], np.ndarray],
    settings: Settings,
) -> dict[str, np.ndarray]:
    value_head = nn.Linear(policy.config.hidden_size, 1).to(policy.device)
    nn.init.zeros_(value_head.weight)
    nn.init.zeros_(value_head.bias)
    weights = [*policy.parameters(), *value_head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=settings.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_then_fall(step, settings.steps))
    generator = np.random.default_rng(settings.seed)
    ends = end_ids(policy, tokenizer)
    curve: list[dict[str, float]] = []
    bar = tqdm(range(settings.steps), desc="finetune")
    for step in bar:
        chosen = [prompts[at] for at in generator.integers(len(prompts), size=settings.batch_size)]
        try:
            rollout = roll_out(policy, tokenizer, chosen, settings.max_new_tokens, ends)
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            # Torch refuses to draw from a distribution that is not finite.
            raise _diverged(f"the policy's predictions are not numbers ({error})", step, settings) from error
        rewards_B = torch.from_numpy(score(rollout.whole, rollout.texts)).float().to(policy.device)
        with torch.no_grad():
            old_BT, values_BT, entropy_BT = _read(policy, value_head, rollout)
            reference_BT, _, _ = _read(reference, value_head, rollout)
        gap_BT = (old_BT - reference_BT) * rollout.real_BT
        rewards_BT = -settings.kl_coefficient * gap_BT
        last_B = rollout.real_BT.sum(1) - 1
        rewards_BT[torch.arange(len(last_B)), last_B] += rewards_B
        advantages_BT, returns_BT = gae(rewards_BT, values_BT * rollout.real_BT, rollout.real_BT)
        losses = _update(
            policy,
            value_head,
            optimizer,
            weights,
            rollout,
            old_BT,
            advantages_BT,
            returns_BT,
            settings,
            generator,
        )
        schedule.step()
        if not np.isfinite(list(losses.values())).all():
            raise _diverged(f"the loss is not finite: {losses}", step, settings)
        n_tokens = float(rollout.real_BT.sum())
        curve.append(
            {
                "step": step,
                "reward": float(rewards_B.mean()),
                "kl_nats": float(gap_BT.sum(1).mean()),
                "entropy_nats": float((entropy_BT * rollout.real_BT).sum() / n_tokens),
                "length": n_tokens / settings.batch_size,
                "distinct2": _distinct2(rollout),
                **losses,
            }
        )
        bar.set_postfix(reward=f"{curve[-1]['reward']:.2f}", kl=f"{curve[-1]['kl_nats']:.1f}")
    with torch.no_grad():
        log_probs_BT, _, _ = _read(policy, value_head, rollout)
    if not torch.isfinite(log_probs_BT[rollout.real_BT]).all():
        raise _diverged("the tuned policy's predictions are not numbers", settings.steps - 1, settings)
    return {name: np.array([point[name] for point in curve]) for name in curve[0]}


def _diverged(what: str, step: int, settings: Settings) -> LensError:
    return LensError(
        f"PPO diverged at step {step}: {what}. Lower lr ({settings.lr:g}) or raise kl_coefficient "
        f"({settings.kl_coefficient:g})."
    )


def roll_out(
    policy: Any, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int, ends: Sequence[int]
) -> Rollout:
    """Sample one completion per prompt and mark what counts."""
    ids_BP, mask_BP = left_pad(prompts, policy.device)
    with torch.no_grad():
        new_BT = generate(policy, ids_BP, mask_BP, max_new_tokens=max_new_tokens, ends=ends)
    is_end_BT = torch.isin(new_BT, torch.tensor(list(ends), device=new_BT.device))
    real_BT = (is_end_BT.cumsum(1) - is_end_BT.long()) == 0
    kept = [ids[mask].tolist() for ids, mask in zip(new_BT, real_BT)]
    return Rollout(
        torch.cat([ids_BP, new_BT], dim=1),
        torch.cat([mask_BP, real_BT.long()], dim=1),
        real_BT,
        tokenizer.batch_decode(kept, skip_special_tokens=True),
        tokenizer.batch_decode([[*start, *ids] for start, ids in zip(prompts, kept)], skip_special_tokens=True),
    )


def gae(rewards_BT: torch.Tensor, values_BT: torch.Tensor, real_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give whitened advantages and returns `[B, T]` by generalised advantage estimation (Schulman et al. 2016, eq. 16)."""
    n_tokens = rewards_BT.shape[1]
    running = torch.zeros(len(rewards_BT), device=rewards_BT.device)
    advantages_BT = torch.zeros_like(rewards_BT)
    for at in reversed(range(n_tokens)):
        following = values_BT[:, at + 1] if at + 1 < n_tokens else torch.zeros_like(running)
        delta = rewards_BT[:, at] + GAMMA * following - values_BT[:, at]
        running = delta + GAMMA * LAMBDA * running
        advantages_BT[:, at] = running
    advantages_BT = advantages_BT * real_BT
    returns_BT = advantages_BT + values_BT
    kept = advantages_BT[real_BT]
    return (advantages_BT - kept.mean()) / (kept.std() + 1e-8) * real_BT, returns_BT


def _read(
    model: Any, value_head: nn.Module, rollout: Rollout, rows: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """Give log p, value and entropy of each completion token, `[B, T]` each, by one forward pass."""
    ids_BS, mask_BS = (
        (rollout.ids_BS, rollout.mask_BS) if rows is None else (rollout.ids_BS[rows], rollout.mask_BS[rows])
    )
    n_new = rollout.real_BT.shape[1]
    hidden_BSD = trunk(model)(
        input_ids=ids_BS,
        attention_mask=mask_BS,
        position_ids=(mask_BS.cumsum(1) - 1).clamp(min=0),
        use_cache=False,
    ).last_hidden_state
    hidden_BTD = hidden_BSD[:, -n_new - 1 : -1]
    log_probs_BTV = torch.log_softmax(unembed(model, hidden_BTD).float(), dim=-1)
    log_probs_BT = log_probs_BTV.gather(-1, ids_BS[:, -n_new:, None])[..., 0]
    entropy_BT = -(log_probs_BTV.exp() * log_probs_BTV).sum(-1).detach()
    return log_probs_BT, value_head(hidden_BTD.detach().float())[..., 0], entropy_BT


def _update(
    policy: Any,
    value_head: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: list[nn.Parameter],
    rollout: Rollout,
    old_BT: torch.Tensor,
    advantages_BT: torch.Tensor,
    returns_BT: torch.Tensor,
    settings: Settings,
    generator: np.random.Generator,
) -> dict[str, float]:
    """Run every epoch over the rollout's minibatches; give the mean losses."""
    losses: list[tuple[float, float]] = []
    for _ in range(settings.epochs):
        for part in np.array_split(generator.permutation(settings.batch_size), settings.minibatches):
            rows = torch.from_numpy(part).to(policy.device)
            real = rollout.real_BT[rows]
            new_BT, values_BT, _ = _read(policy, value_head, rollout, rows)
            ratio = torch.exp((new_BT - old_BT[rows])[real])
            wanted = advantages_BT[rows][real]
            policy_loss = -torch.minimum(ratio * wanted, ratio.clamp(1 - CLIP, 1 + CLIP) * wanted).mean()
            value_loss = (values_BT - returns_BT[rows])[real].square().mean()
            (policy_loss + VALUE_WEIGHT * value_loss).backward()
            nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
            optimizer.step()
            optimizer.zero_grad()
            losses.append((float(policy_loss.detach()), float(value_loss.detach())))
    policy_mean, value_mean = np.mean(losses, axis=0)
    return {"policy_loss": float(policy_mean), "value_loss": float(value_mean)}


def _warm_then_fall(step: int, steps: int) -> float:
    """Rise over the first 10 steps, then fall linearly to 0: the public code's schedule."""
    warm = min(WARM_UP, max(1, steps // 10))
    return (step + 1) / warm if step < warm else max(0.0, (steps - step) / max(1, steps - warm))


def _distinct2(rollout: Rollout) -> float:
    n_new = rollout.real_BT.shape[1]
    rows = [ids[real].tolist() for ids, real in zip(rollout.ids_BS[:, -n_new:], rollout.real_BT)]
    pairs = [pair for ids in rows for pair in pairwise(ids)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0
