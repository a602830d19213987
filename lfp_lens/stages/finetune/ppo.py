"""PPO for a causal LM with any reward on texts: clip, GAE, a per-token KL penalty to an exact copy of the start model.

TRL removed its PPO after 1.12, and a lexicon reward is a plain function. Equation numbers follow appendix A of
arXiv 2310.08164: the objective is E[min(r_t A_t, clip(r_t, 1 - eps, 1 + eps) A_t)]. Tokens after the first end-of-text are
masked out of everything. The value head reads detached hidden states: what moves in the policy is policy gradient alone.

Every step draws from a seed of its own, and every sum goes over all processes: a run that was killed and resumed ends at
the same bits, and all processes hold the same weights.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.parts.adapters import attach
from lfp_lens.parts.generation import distinct, end_ids
from lfp_lens.parts.sites import blocks
from lfp_lens.stages.finetune.job import Done, Job, Settings, warm_up
from lfp_lens.stages.finetune.ppo_checkpoint import Learner, resume, save
from lfp_lens.stages.finetune.processes import Team, join, tracking
from lfp_lens.stages.finetune.rollout import Rollout, read, reference_log_probs, roll_out

GAMMA, LAMBDA, CLIP, VALUE_WEIGHT, MAX_GRAD_NORM = 1.0, 0.95, 0.2, 0.1, 1.0
KL_HORIZON, KL_STEP = 10_000, 0.2


def ppo(job: Job) -> Done:
    """Tune `job.policy` in place, or an adapter on it, and give its learning curve.

    A checkpoint in `job.work` is gone on from. Raises `LensError` if the loss or the policy stops being finite, for a
    checkpoint of another run, or for a batch too small for its processes and minibatches.
    """
    settings, team = job.settings, join(job.policy.device)
    device = job.policy.device
    if team.size > 1 and device.type == "cuda":
        # The launcher gives every process a GPU of its own.
        device = team.device
        job.policy.to(device)
        job.reference.to(device)
    if settings.batch_size < settings.minibatches * team.size:
        raise LensError(
            f"{settings.minibatches} minibatches on {team.size} processes cannot be made of {settings.batch_size} "
            "completions: lower minibatches or raise batch_size."
        )
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        tracking(settings.report_to, device, job.work, dataclasses.asdict(settings)) as log,
    ):
        torch.manual_seed(settings.seed)
        model, learner = _start(job)
        n_done = resume(learner, job.work, settings, team.size)
        if team.max(n_done) != n_done:
            raise LensError(f"The processes find different checkpoints: {job.work} must be one folder that all share.")
        hidden = {} if team.is_first else {"disable": True}
        bar = tqdm(range(n_done, settings.steps), desc="finetune", initial=n_done, total=settings.steps, **hidden)
        for step in bar:
            point = _step(job, learner, team, step)
            learner.curve.append(point)
            log(point, step)
            bar.set_postfix(reward=f"{point['reward']:.2f}", kl=f"{point['kl_nats']:.1f}")
            is_due = settings.save_steps and ((step + 1) % settings.save_steps == 0 or step + 1 == settings.steps)
            if is_due and team.is_first:
                save(learner, job.work, settings, team.size)
        # Nobody goes on, and perhaps clears the folder, before the last checkpoint is whole.
        team.max(settings.steps)
    curve = {name: np.array([point[name] for point in learner.curve]) for name in learner.curve[0]}
    return Done(model, curve)


def _start(job: Job) -> tuple[Any, Learner]:
    """Give the model that is returned in the end, and what is trained on it."""
    model = policy = job.policy
    if job.lora is not None:
        model = attach(policy, job.lora)
        policy = model.get_base_model()
    # Dropout would make the second reading of a rollout differ from the first.
    model.eval()
    value_head = nn.Linear(policy.config.hidden_size, 1).to(policy.device)
    nn.init.zeros_(value_head.weight)
    nn.init.zeros_(value_head.bias)
    weights = [*(one for one in policy.parameters() if one.requires_grad), *value_head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=job.settings.lr, weight_decay=0.0, fused=True)
    return model, Learner(policy, value_head, optimizer, job.settings.kl_coefficient)


def _step(job: Job, learner: Learner, team: Team, step: int) -> dict[str, float]:
    """Sample one rollout, score it, learn from it; give the step's point of the learning curve."""
    settings, policy = job.settings, learner.policy
    assert job.score is not None, "PPO has a reward"
    everyones, own = _seeds(settings.seed, step, team.rank)
    chosen = team.share([job.prompts[at] for at in everyones.integers(len(job.prompts), size=settings.batch_size)])
    torch.manual_seed(int(own.integers(2**63)))
    with _autocast(settings, policy.device):
        rollout = roll_out(policy, job.tokenizer, chosen, settings.max_new_tokens, end_ids(policy, job.tokenizer))
        reference_BT = reference_log_probs(job.reference, rollout, settings.gradient_accumulation)
    real_BT = rollout.real_BT
    if not torch.isfinite(rollout.log_probs_BT[real_BT]).all():
        raise _diverged("the policy's predictions are not numbers", step, settings)
    rewards_B = torch.from_numpy(job.score(rollout.whole, rollout.texts)).float().to(policy.device)
    gap_BT = (rollout.log_probs_BT - reference_BT) * real_BT
    rewards_BT = -learner.kl_coefficient * gap_BT
    last_B = real_BT.sum(1) - 1
    rewards_BT[torch.arange(len(last_B)), last_B] += rewards_B
    with torch.no_grad():
        values_BT = learner.value_head(rollout.hidden_BTD.float())[..., 0]
    advantages_BT, returns_BT = gae(rewards_BT, values_BT * real_BT, real_BT)
    for group in learner.optimizer.param_groups:
        group["lr"] = settings.lr * _warm_then_fall(step, settings.steps)
    losses = _update(learner, rollout, whiten(advantages_BT, real_BT, team), returns_BT, settings, own, team)
    if not np.isfinite(losses).all():
        raise _diverged(f"the loss is not finite: policy {losses[0]}, value {losses[1]}", step, settings)
    if step + 1 == settings.steps:
        _check_end(learner, rollout, settings)
    point = {"step": step, **_measured(rollout, rewards_B, gap_BT, settings, team)}
    point |= {"kl_coefficient": learner.kl_coefficient, "policy_loss": losses[0], "value_loss": losses[1]}
    if settings.kl_target is not None:
        learner.kl_coefficient *= adaptation(point["kl_nats"], settings.kl_target, settings.batch_size)
    return point


def _measured(
    rollout: Rollout, rewards_B: torch.Tensor, gap_BT: torch.Tensor, settings: Settings, team: Team
) -> dict[str, float]:
    """Give what the rollouts of all processes say of the policy before its update."""
    real_BT = rollout.real_BT
    sums = (rewards_B, gap_BT, rollout.entropy_BT * real_BT, rollout.ended_B, real_BT)
    reward, kl_nats, entropy, ended, n_tokens = (float(team.sum(one.sum().float())) for one in sums)
    rows = [ids[kept].tolist() for ids, kept in zip(rollout.ids_BS[:, -real_BT.shape[1] :], real_BT)]
    return {
        "reward": reward / settings.batch_size,
        "kl_nats": kl_nats / settings.batch_size,
        "entropy_nats": entropy / n_tokens,
        "length": n_tokens / settings.batch_size,
        "ended": ended / settings.batch_size,
        "distinct2": distinct(team.gather_rows(rows, settings.max_new_tokens), 2),
    }


def _seeds(seed: int, step: int, rank: int) -> tuple[np.random.Generator, np.random.Generator]:
    """Give a step's random numbers: those that all processes share, and this one's own."""
    return np.random.default_rng([seed, step, 1]), np.random.default_rng([seed, step, 2 + rank])


def _diverged(what: str, step: int, settings: Settings) -> LensError:
    return LensError(
        f"PPO diverged at step {step}: {what}. Lower lr ({settings.lr:g}) or raise kl_coefficient "
        f"({settings.kl_coefficient:g})."
    )


def _check_end(learner: Learner, rollout: Rollout, settings: Settings) -> None:
    """Refuse a policy that its last update broke."""
    with torch.no_grad(), _autocast(settings, learner.policy.device):
        log_probs_BT, _ = read(learner.policy, rollout, torch.arange(len(rollout.ids_BS)))
    if not torch.isfinite(log_probs_BT[rollout.real_BT]).all():
        raise _diverged("the tuned policy's predictions are not numbers", settings.steps - 1, settings)


def gae(rewards_BT: torch.Tensor, values_BT: torch.Tensor, real_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give advantages and returns `[B, T]` by generalised advantage estimation (Schulman et al. 2016, eq. 16)."""
    n_tokens = rewards_BT.shape[1]
    running = torch.zeros(len(rewards_BT), device=rewards_BT.device)
    advantages_BT = torch.zeros_like(rewards_BT)
    for at in reversed(range(n_tokens)):
        following = values_BT[:, at + 1] if at + 1 < n_tokens else torch.zeros_like(running)
        delta = rewards_BT[:, at] + GAMMA * following - values_BT[:, at]
        running = delta + GAMMA * LAMBDA * running
        advantages_BT[:, at] = running
    advantages_BT = advantages_BT * real_BT
    return advantages_BT, advantages_BT + values_BT


def whiten(advantages_BT: torch.Tensor, real_BT: torch.Tensor, team: Team) -> torch.Tensor:
    """Give advantages of mean 0 and standard deviation 1 over the real tokens of all processes."""
    n = team.sum(real_BT.sum().float())
    mean = team.sum(advantages_BT[real_BT].sum()) / n
    variance = team.sum((advantages_BT[real_BT] - mean).square().sum()) / (n - 1)
    return (advantages_BT - mean) / (variance.sqrt() + 1e-8) * real_BT


def adaptation(kl_nats: float, target: float, n: int) -> float:
    """Give the factor that the KL coefficient moves by after `n` completions (Ziegler et al. 2019, section 2.2).

    >>> round(adaptation(12.0, 6.0, 128), 5), round(adaptation(5.7, 6.0, 128), 5)
    (1.00256, 0.99936)
    """
    return 1 + max(-KL_STEP, min(KL_STEP, kl_nats / target - 1)) * n / KL_HORIZON


def _update(
    learner: Learner,
    rollout: Rollout,
    advantages_BT: torch.Tensor,
    returns_BT: torch.Tensor,
    settings: Settings,
    generator: np.random.Generator,
    team: Team,
) -> tuple[float, float]:
    """Run every epoch over the rollout's minibatches; give the mean policy loss and value loss.

    Losses are means over the tokens of a minibatch, of all its parts and all processes together.
    """
    policy, weights = learner.policy, list(learner.named_weights.values())
    losses = torch.zeros(2, device=policy.device)
    with _recomputing(policy, settings.gradient_checkpointing):
        for _ in range(settings.epochs):
            for rows in np.array_split(generator.permutation(len(rollout.ids_BS)), settings.minibatches):
                n_tokens = team.sum(rollout.real_BT[rows].sum().float())
                for part in np.array_split(rows, min(settings.gradient_accumulation, len(rows))):
                    at = torch.from_numpy(part).to(policy.device)
                    policy_loss, value_loss = _losses(learner, rollout, advantages_BT, returns_BT, at, settings)
                    ((policy_loss + VALUE_WEIGHT * value_loss) / n_tokens).backward()
                    losses += torch.stack([policy_loss, value_loss]).detach() / n_tokens
                team.sum_gradients(weights)
                nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
                learner.optimizer.step()
                learner.optimizer.zero_grad()
    policy_mean, value_mean = (team.sum(losses) / (settings.epochs * settings.minibatches)).tolist()
    return policy_mean, value_mean


def _losses(
    learner: Learner,
    rollout: Rollout,
    advantages_BT: torch.Tensor,
    returns_BT: torch.Tensor,
    rows: torch.Tensor,
    settings: Settings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the clipped policy loss and the value loss, each summed over the tokens of some rows."""
    real = rollout.real_BT[rows]
    with _autocast(settings, learner.policy.device):
        new_BT, hidden_BTD = read(learner.policy, rollout, rows)
    values_BT = learner.value_head(hidden_BTD.detach().float())[..., 0]
    ratio = torch.exp((new_BT - rollout.log_probs_BT[rows])[real])
    wanted = advantages_BT[rows][real]
    policy_loss = -torch.minimum(ratio * wanted, ratio.clamp(1 - CLIP, 1 + CLIP) * wanted).sum()
    value_loss = (values_BT - returns_BT[rows])[real].square().sum()
    return policy_loss, value_loss


def _autocast(settings: Settings, device: torch.device) -> Any:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.bf16)


@contextmanager
def _recomputing(policy: Any, is_wanted: bool) -> Iterator[None]:
    """Keep no activations inside a block for the backward pass while inside: they are computed again, for memory.

    transformers' own switch works in training mode only, which would switch dropout on.
    """
    stack = blocks(policy) if is_wanted else []
    try:
        for block in stack:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        yield
    finally:
        for block in stack:
            # What hid the class's own method goes.
            block.__dict__.pop("forward", None)


def _warm_then_fall(step: int, steps: int) -> float:
    """Rise over the first steps, then fall linearly to 0: the public code's schedule."""
    warm = warm_up(steps)
    return (step + 1) / warm if step < warm else max(0.0, (steps - step) / max(1, steps - warm))
