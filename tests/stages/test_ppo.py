"""PPO: its optimum on a bandit, its advantages by hand, what it leaves alone, and that memory savers change nothing."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lfp_lens.core.errors import LensError
from lfp_lens.parts.rewards import make_reward
from lfp_lens.parts.sites import blocks
from lfp_lens.stages.finetune.ppo import (
    _losses,
    _recomputing,
    _start,
    _update,
    _warm_then_fall,
    adaptation,
    gae,
    ppo,
    whiten,
)
from lfp_lens.stages.finetune.processes import Team
from lfp_lens.stages.finetune.rollout import roll_out
from tests.stages.ppo_jobs import PROMPT, SETTINGS, a_job, one_update, same_bits, weights_of
from tests.tiny import tiny_model, tiny_tokenizer

ALONE = Team(0, 1)


def no_reward(whole: list[str], completions: list[str]) -> np.ndarray:
    return np.zeros(len(completions))


def rising(whole: list[str], completions: list[str]) -> np.ndarray:
    return np.arange(len(completions), dtype=float)


def next_probs(model: object) -> torch.Tensor:
    """p(next token | PROMPT)."""
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0, -1].softmax(-1)  # type: ignore[operator]


def test_a_bandit_reaches_the_optimum_that_theory_gives(tmp_path: Path) -> None:
    """Reward 1 for one token at KL coefficient beta has the optimum p_ref exp(r / beta) / Z."""
    base, beta = tiny_model(layers=1), 0.25
    reference = next_probs(base)
    winner = int((reference - 0.02).abs().argmin())
    tilted = reference * torch.exp((torch.arange(len(reference)) == winner) / beta)
    best = tilted / tilted.sum()
    word = tiny_tokenizer().decode([winner])
    score = lambda whole, completions: np.array([float(done == word) for done in completions])  # noqa: E731
    job = a_job(
        tmp_path, base=base, score=score, prompts=[PROMPT], steps=100, batch_size=256, max_new_tokens=1, lr=3e-3,
        kl_coefficient=beta,
    )  # fmt: skip
    done = ppo(job)
    found = next_probs(done.model)
    # At the optimum p is about 0.5; one batch of 256 estimates it with an s.d. of 0.03, and the policy follows the
    # last few batches: 0.06 is two of those s.d.
    assert 0.45 < float(best[winner]) < 0.6
    assert abs(float(found[winner] - best[winner])) < 0.06
    # The other tokens keep their proportions (total variation distance): nothing is gained by changing them.
    rest = torch.arange(len(reference)) != winner
    gap = (found[rest] / found[rest].sum() - reference[rest] / reference[rest].sum()).abs().sum() / 2
    assert float(gap) < 0.1
    # The objective E[r] - beta KL is flat around its maximum, beta log Z, so it is reached more closely.
    objective = float(found[winner]) - beta * float((found * (found / reference).log()).sum())
    assert objective == pytest.approx(beta * float(tilted.sum().log()), abs=0.01)
    assert done.curve["reward"][-20:].mean() > done.curve["reward"][:5].mean() + 0.3


def test_advantages_and_returns_by_hand() -> None:
    """Rewards 0, 1 and values 0.5, 0.25; then a row of one token and padding."""
    rewards = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    values = torch.tensor([[0.5, 0.25], [1.0, 0.0]])
    real = torch.tensor([[True, True], [True, False]])
    advantages, returns = gae(rewards, values, real)
    # Last tokens: 1 - 0.25 = 0.75 and 2 - 1 = 1. First token: (0 + 0.25 - 0.5) + 0.95 * 0.75 = 0.4625.
    raw = torch.tensor([0.4625, 0.75, 1.0])
    assert torch.allclose(advantages, torch.tensor([[0.4625, 0.75], [1.0, 0.0]]))
    assert torch.allclose(returns, torch.tensor([[0.9625, 1.0], [2.0, 0.0]]))
    white = whiten(advantages, real, ALONE)
    assert torch.allclose(white[real], (raw - raw.mean()) / raw.std())
    assert float(white[1, 1]) == 0


def test_the_value_head_sends_no_gradient_into_the_policy(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    _, learner = _start(job)
    nn.init.ones_(learner.value_head.weight)
    rollout = roll_out(learner.policy, job.tokenizer, [PROMPT] * 2, 3, [0])
    zeros = torch.zeros_like(rollout.log_probs_BT)
    _losses(learner, rollout, zeros, zeros, torch.arange(2), job.settings)[1].backward()
    assert learner.value_head.weight.grad is not None
    assert all(weight.grad is None for weight in learner.policy.parameters())


def test_with_zero_advantages_the_policy_stays_where_it_is(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    _, learner = _start(job)
    before = weights_of(learner.policy)
    torch.manual_seed(0)
    rollout = roll_out(learner.policy, job.tokenizer, [PROMPT] * 2, 3, [0])
    zeros = torch.zeros_like(rollout.log_probs_BT)
    _update(learner, rollout, zeros, zeros + 1, job.settings, np.random.default_rng(0), ALONE)
    assert same_bits(before, weights_of(learner.policy))
    assert float(learner.value_head.bias.detach()) > 0, "the value head follows its target all the same"


def test_the_reference_is_not_touched_and_the_curve_is_finite(tmp_path: Path) -> None:
    base = tiny_model(layers=1)
    before = weights_of(base)
    done = ppo(a_job(tmp_path, base=base, score=rising))
    assert same_bits(before, weights_of(base))
    assert not same_bits(before, weights_of(done.model))
    assert set(done.curve) == {
        "step", "reward", "kl_nats", "kl_coefficient", "entropy_nats", "length", "ended", "distinct2", "policy_loss",
        "value_loss",
    }  # fmt: skip
    assert all(len(values) == 3 and np.isfinite(values).all() for values in done.curve.values())
    assert done.curve["step"].tolist() == [0, 1, 2]
    assert done.curve["reward"].tolist() == [3.5, 3.5, 3.5]
    assert done.curve["kl_coefficient"].tolist() == [0.1] * 3
    assert done.curve["kl_nats"][0] == pytest.approx(0, abs=1e-5)
    assert list(tmp_path.iterdir()) == [], "no checkpoint was asked for"


def test_a_model_that_always_ends_is_said_to(tmp_path: Path) -> None:
    base = tiny_model(layers=1)
    first = ppo(a_job(tmp_path, base=base, score=no_reward, steps=1)).curve
    assert first["ended"][0] < 0.5
    with torch.no_grad():
        # The last norm gives its bias alone, so the end-of-text token, whose row it is, always wins.
        base.gpt_neox.final_layer_norm.weight.zero_()
        base.gpt_neox.final_layer_norm.bias.copy_(base.get_output_embeddings().weight[0] * 100)
    curve = ppo(a_job(tmp_path, base=base, score=no_reward, steps=1, lr=1e-9)).curve
    assert (curve["ended"][0], curve["length"][0]) == (1.0, 1.0)


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before(tmp_path: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        torch.rand(len(found) + 1)
        np.random.default_rng().random(3)
        found.append(weights_of(ppo(a_job(tmp_path, seed=seed)).model))
    assert same_bits(found[0], found[1])
    assert not same_bits(found[0], found[2])


def test_the_side_that_a_tokenizer_pads_on_changes_neither_rewards_nor_weights(tmp_path: Path) -> None:
    seen: dict[str, list[str]] = {"left": [], "right": []}
    found = {}
    for side, texts in seen.items():
        tokenizer = copy.deepcopy(tiny_tokenizer())
        tokenizer.padding_side = side
        score = lambda whole, done, texts=texts: texts.extend(whole) or rising(whole, done)  # noqa: E731
        found[side] = weights_of(ppo(dataclasses.replace(a_job(tmp_path, score=score), tokenizer=tokenizer)).model)
    assert seen["left"] == seen["right"]
    assert len(seen["left"]) == 24
    assert same_bits(found["left"], found["right"])


def test_the_callers_random_numbers_go_on_undisturbed(tmp_path: Path) -> None:
    job = a_job(tmp_path, score=no_reward)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    ppo(job)
    assert torch.equal(torch.rand(3), wanted)


def test_accumulated_parts_give_the_update_of_the_whole_minibatch() -> None:
    """One minibatch of 8 in parts of 3, 3 and 2: a mean of means would weigh their tokens wrongly."""
    whole, parts, many = (one_update(ALONE, gradient_accumulation=n) for n in (1, 3, 100))
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)
    assert all(torch.allclose(whole[name], many[name], atol=1e-6) for name in whole)
    start = tiny_model(layers=1).named_parameters()
    assert any(not torch.allclose(whole[f"policy.{name}"], weight, atol=1e-4) for name, weight in start)


def test_recomputed_activations_change_no_bit_and_leave_no_trace(tmp_path: Path) -> None:
    base = tiny_model(layers=2)
    plain = ppo(a_job(tmp_path, base=base))
    saving = ppo(a_job(tmp_path, base=base, gradient_checkpointing=True))
    assert same_bits(weights_of(plain.model), weights_of(saving.model))
    assert all("forward" not in vars(block) for block in blocks(saving.model))


@pytest.mark.parametrize("architecture", ["neox", "llama", "gpt2", "gpt_neo", "gemma"])
def test_blocks_really_run_again_in_the_backward_pass(architecture: str, tmp_path: Path) -> None:
    job = a_job(tmp_path, base=tiny_model(architecture, layers=2))
    _, learner = _start(job)
    rollout = roll_out(learner.policy, job.tokenizer, [PROMPT] * 2, 3, [0])
    # A hook inside the first block counts its runs.
    inside, runs = next(module for module in blocks(learner.policy)[0].children()), []
    handle = inside.register_forward_hook(lambda *given: runs.append(1))
    ones = torch.ones_like(rollout.log_probs_BT)
    with _recomputing(learner.policy, True):
        sum(_losses(learner, rollout, ones, ones, torch.arange(2), job.settings)).backward()
    handle.remove()
    assert len(runs) == 2


def test_bf16_computes_in_bf16_and_keeps_fp32_weights(tmp_path: Path) -> None:
    base = tiny_model(layers=1)
    seen = set()
    job = a_job(tmp_path, base=base, score=rising, bf16=True)
    blocks(job.policy)[0].mlp.register_forward_hook(lambda module, given, out: seen.add(out.dtype))
    done = ppo(job)
    assert seen == {torch.bfloat16}
    assert {weight.dtype for weight in done.model.parameters()} == {torch.float32}
    # bfloat16 has 8 bits: the two readings of one token may differ in the third decimal, four tokens more.
    assert done.curve["kl_nats"][0] == pytest.approx(0, abs=0.1)
    assert not same_bits(weights_of(base), weights_of(done.model))


@pytest.mark.parametrize("architecture", ["neox", "gpt2", "llama"])
def test_lora_trains_the_adapter_alone(architecture: str, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel

    base = tiny_model(architecture, layers=2)
    before = weights_of(base)
    lora = LoraConfig(r=2, target_modules="all-linear", fan_in_fan_out=architecture == "gpt2")
    done = ppo(a_job(tmp_path, base=base, score=rising, lora=lora, steps=2))
    assert isinstance(done.model, PeftModel)
    assert same_bits(before, weights_of(base))
    moved = {name for name, weight in done.model.named_parameters() if "lora_B" in name and bool(weight.detach().any())}
    assert moved, "adapters start at 0 and were trained"
    assert not torch.allclose(next_probs(done.model), next_probs(base), atol=1e-6)
    with done.model.disable_adapter():
        assert torch.equal(next_probs(done.model), next_probs(base)), "the weights under the adapter are the start's"


def test_the_kl_coefficient_moves_towards_its_target(tmp_path: Path) -> None:
    """By the clipped error times n / 10,000 (Ziegler et al. 2019)."""
    assert adaptation(12.0, 6.0, 500) == pytest.approx(1 + 0.2 * 0.05)
    assert adaptation(0.0, 6.0, 500) == pytest.approx(1 - 0.2 * 0.05)
    assert adaptation(6.6, 6.0, 500) == pytest.approx(1 + 0.1 * 0.05)
    curve = ppo(a_job(tmp_path, kl_target=5.0, steps=3)).curve
    wanted = [0.1]
    for kl_nats in curve["kl_nats"][:2]:
        wanted.append(wanted[-1] * adaptation(float(kl_nats), 5.0, 8))
    assert curve["kl_coefficient"].tolist() == pytest.approx(wanted)
    assert wanted[0] > wanted[1] > wanted[2], "the policy is nearer than the target, so the penalty falls"


def test_the_rate_rises_over_a_tenth_of_the_steps_and_falls_to_nearly_nothing() -> None:
    assert [round(_warm_then_fall(step, 200), 3) for step in (0, 4, 9, 10, 105, 199)] == [
        0.1,
        0.5,
        1.0,
        1.0,
        0.5,
        0.005,
    ]
    assert [_warm_then_fall(step, 20) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert [_warm_then_fall(step, 1) for step in (0, 1)] == [1.0, 0.0]
    assert all(0 < _warm_then_fall(step, steps) <= 1 for steps in range(1, 40) for step in range(steps))


def test_a_reward_that_is_no_number_is_refused_with_its_text(tmp_path: Path) -> None:
    reward = make_reward(lambda texts: [float("nan")] * len(texts))
    seen = []

    def score(whole: list[str], completions: list[str]) -> np.ndarray:
        seen.extend(completions)
        return reward(completions)

    with pytest.raises(LensError, match=r"is nan for the text .* must be finite") as caught:
        ppo(a_job(tmp_path, score=score))
    assert repr(seen[0][:80]) in str(caught.value)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_policy_that_blows_up_is_said_and_not_raised_by_torch(steps: int, tmp_path: Path) -> None:
    with pytest.raises(LensError, match=r"PPO diverged at step \d: .* Lower lr \(1e\+30\)"):
        ppo(a_job(tmp_path, score=rising, steps=steps, lr=1e30, save_steps=1))


def test_more_minibatches_than_completions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="9 minibatches on 1 processes cannot be made of 8 completions"):
        ppo(a_job(tmp_path, minibatches=9))


def test_dropout_stays_off(tmp_path: Path) -> None:
    """With dropout, the second reading of a rollout would differ from the first and the KL of step 0 would not be 0."""
    base = tiny_model("gpt2", layers=1)
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    job = a_job(tmp_path, base=base, gradient_checkpointing=True)
    job.policy.train()
    assert ppo(job).curve["kl_nats"][0] == pytest.approx(0, abs=1e-5)
    twin = dataclasses.replace(job, policy=copy.deepcopy(base), settings=dataclasses.replace(SETTINGS, lr=1e-12))
    assert abs(ppo(twin).curve["policy_loss"]).max() < 1e-6, "ratios of 1 and white advantages have mean 0"
