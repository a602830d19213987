"""PPO: its optimum on a bandit, its advantages by hand, what it masks, what it leaves alone."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lfp_lens.core.errors import LensError
from lfp_lens.parts.rewards import make_reward
from lfp_lens.stages.finetune import ppo as module
from lfp_lens.stages.finetune.ppo import Rollout, Settings, _read, _update, _warm_then_fall, gae, ppo, roll_out
from tests.tiny import tiny_model, tiny_tokenizer

PROMPT = [0, 300]
SETTINGS = Settings(
    steps=3, batch_size=8, minibatches=2, epochs=2, max_new_tokens=4, lr=1e-3, kl_coefficient=0.1, seed=0
)


def no_reward(whole: list[str], completions: list[str]) -> np.ndarray:
    return np.zeros(len(completions))


def next_probs(model: object) -> torch.Tensor:
    """p(next token | PROMPT)."""
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0, -1].softmax(-1)  # type: ignore[operator]


def a_rollout(ids: list[int], n_new: int, real: list[bool]) -> Rollout:
    """One row without padding: its last `n_new` ids are the completion."""
    ids_BS, real_BT = torch.tensor([ids]), torch.tensor([real])
    mask_BS = torch.cat([torch.ones(1, len(ids) - n_new, dtype=torch.long), real_BT.long()], dim=1)
    return Rollout(ids_BS, mask_BS, real_BT, [""], [""])


def test_a_bandit_reaches_the_optimum_that_theory_gives() -> None:
    """Reward 1 for one token at KL coefficient beta has the optimum p_ref exp(r / beta) / Z."""
    base, beta = tiny_model(layers=1), 0.25
    reference = next_probs(base)
    winner = int((reference - 0.02).abs().argmin())
    tilted = reference * torch.exp((torch.arange(len(reference)) == winner) / beta)
    best = tilted / tilted.sum()
    word = tiny_tokenizer().decode([winner])
    policy = copy.deepcopy(base)
    score = lambda whole, completions: np.array([float(done == word) for done in completions])  # noqa: E731
    settings = Settings(100, 256, 2, 2, 1, 3e-3, beta, 0)
    curve = ppo(policy, base, tiny_tokenizer(), [PROMPT], score, settings)
    found = next_probs(policy)
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
    assert curve["reward"][-20:].mean() > curve["reward"][:5].mean() + 0.3


def test_advantages_and_returns_by_hand() -> None:
    """Rewards 0, 1 and values 0.5, 0.25; then a row of one token and padding."""
    rewards = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    values = torch.tensor([[0.5, 0.25], [1.0, 0.0]])
    real = torch.tensor([[True, True], [True, False]])
    advantages, returns = gae(rewards, values, real)
    # Last tokens: 1 - 0.25 = 0.75 and 2 - 1 = 1. First token: (0 + 0.25 - 0.5) + 0.95 * 0.75 = 0.4625.
    raw = torch.tensor([0.4625, 0.75, 1.0])
    assert torch.allclose(returns, torch.tensor([[0.9625, 1.0], [2.0, 0.0]]))
    assert torch.allclose(advantages[real], (raw - raw.mean()) / raw.std())
    assert float(advantages[1, 1]) == 0


def test_what_lies_after_the_end_of_text_counts_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = torch.tensor([[5, 0, 7, 8], [0, 9, 9, 9], [5, 6, 7, 8]])
    monkeypatch.setattr(module, "generate", lambda *given, **named: drawn)
    rollout = roll_out(tiny_model(layers=1), tiny_tokenizer(), [[0, 300], [0, 300, 301], [300]], 4, [0])
    assert rollout.real_BT.tolist() == [[True, True, False, False], [True, False, False, False], [True] * 4]
    assert rollout.mask_BS[:, :3].tolist() == [[0, 1, 1], [1, 1, 1], [0, 0, 1]]
    assert rollout.mask_BS[:, 3:].tolist() == rollout.real_BT.long().tolist()
    decode = tiny_tokenizer().decode
    assert rollout.texts == [decode([5]), "", decode([5, 6, 7, 8])]
    assert rollout.whole == [decode([300, 5]), decode([300, 301]), decode([300, 5, 6, 7, 8])]


def test_padding_does_not_change_a_log_probability() -> None:
    model, head = tiny_model(layers=2), nn.Linear(16, 1)
    plain = a_rollout([0, 300, 301, 302], 2, [True, True])
    padded = Rollout(
        torch.tensor([[9, 9, 0, 300, 301, 302]]),
        torch.tensor([[0, 0, 1, 1, 1, 1]]),
        plain.real_BT,
        [""],
        [""],
    )
    for one, other in zip(_read(model, head, plain), _read(model, head, padded)):
        assert torch.allclose(one, other, atol=1e-5)


def test_log_probabilities_are_those_of_the_models_own_logits() -> None:
    model = tiny_model(layers=2)
    ids = [0, 300, 301, 302]
    log_p, _, entropy = _read(model, nn.Linear(16, 1), a_rollout(ids, 2, [True, True]))
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert torch.allclose(log_p[0], torch.stack([wanted[1, 301], wanted[2, 302]]), atol=1e-5)
    assert float(entropy[0, 0]) == pytest.approx(float(-(wanted[1].exp() * wanted[1]).sum()), abs=1e-4)


def test_the_value_head_sends_no_gradient_into_the_policy() -> None:
    policy, head = tiny_model(layers=1), nn.Linear(16, 1)
    _, values, _ = _read(policy, head, a_rollout([0, 300, 301, 302], 2, [True, True]))
    values.square().sum().backward()
    assert head.weight.grad is not None
    assert all(weight.grad is None for weight in policy.parameters())


def test_with_zero_advantages_the_policy_stays_where_it_is() -> None:
    policy, head = tiny_model(layers=1), nn.Linear(16, 1)
    nn.init.zeros_(head.bias)
    before = copy.deepcopy(policy.state_dict())
    rollout = a_rollout([0, 300, 301, 302], 2, [True, True])
    weights = [*policy.parameters(), *head.parameters()]
    settings = Settings(1, 1, 1, 1, 2, 1e-2, 0.1, 0)
    with torch.no_grad():
        old, _, _ = _read(policy, head, rollout)
    optimizer, generator = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.0), np.random.default_rng(0)
    nothing, target = torch.zeros(1, 2), torch.ones(1, 2)
    _update(policy, head, optimizer, weights, rollout, old, nothing, target, settings, generator)
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.state_dict().items())
    assert float(head.bias.detach()) > 0, "the value head follows its target all the same"


def test_the_reference_is_not_touched_and_the_curve_is_finite() -> None:
    base = tiny_model(layers=1)
    before = copy.deepcopy(base.state_dict())
    policy = copy.deepcopy(base)
    score = lambda whole, completions: np.arange(len(completions), dtype=float)  # noqa: E731
    curve = ppo(policy, base, tiny_tokenizer(), [PROMPT, [0, 301, 302]], score, SETTINGS)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert any(not torch.equal(before[name], tensor) for name, tensor in policy.state_dict().items())
    assert set(curve) == {
        "step",
        "reward",
        "kl_nats",
        "entropy_nats",
        "length",
        "distinct2",
        "policy_loss",
        "value_loss",
    }
    assert all(len(values) == 3 and np.isfinite(values).all() for values in curve.values())
    assert curve["step"].tolist() == [0, 1, 2]
    assert curve["reward"].tolist() == [3.5, 3.5, 3.5]
    assert curve["kl_nats"][0] == pytest.approx(0, abs=1e-5)


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before() -> None:
    found = []
    for _ in range(2):
        policy = tiny_model(layers=1)
        torch.rand(len(found) + 1)
        score = lambda whole, completions: np.arange(len(completions), dtype=float)  # noqa: E731
        ppo(policy, tiny_model(layers=1), tiny_tokenizer(), [PROMPT], score, SETTINGS)
        found.append(policy.state_dict())
    assert all(torch.equal(found[0][name], tensor) for name, tensor in found[1].items())


def test_the_callers_random_numbers_go_on_undisturbed() -> None:
    policy, base = tiny_model(layers=1), tiny_model(layers=1)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    ppo(policy, base, tiny_tokenizer(), [PROMPT], no_reward, SETTINGS)
    assert torch.equal(torch.rand(3), wanted)


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


def test_a_reward_that_is_no_number_is_refused_with_its_text() -> None:
    reward = make_reward(lambda texts: [float("nan")] * len(texts))
    seen = []

    def score(whole: list[str], completions: list[str]) -> np.ndarray:
        seen.extend(completions)
        return reward(completions)

    with pytest.raises(LensError, match=r"is nan for the text .* must be finite") as caught:
        ppo(tiny_model(layers=1), tiny_model(layers=1), tiny_tokenizer(), [PROMPT], score, SETTINGS)
    assert repr(seen[0][:80]) in str(caught.value)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_policy_that_blows_up_is_said_and_not_raised_by_torch(steps: int) -> None:
    settings = Settings(steps, 8, 1, 1, 4, 1e30, 0.1, 0)
    score = lambda whole, completions: np.arange(len(completions), dtype=float)  # noqa: E731
    with pytest.raises(LensError, match=r"PPO diverged at step \d: .* Lower lr \(1e\+30\)"):
        ppo(tiny_model(layers=1), tiny_model(layers=1), tiny_tokenizer(), [PROMPT], score, settings)
