"""Rollouts: what is masked, that padding and the cache change no value, and that draws follow the distribution."""

import pytest
import torch

from lfp_lens.stages.finetune import rollout as module
from lfp_lens.stages.finetune.rollout import _draw, read, reference_log_probs, roll_out
from tests.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

PROMPTS = [[0, 300], [0, 300, 301, 302, 303], [300]]


def test_what_lies_after_the_end_of_text_counts_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = torch.tensor([[5, 0, 7, 8], [0, 9, 9, 9], [5, 6, 7, 8]])
    nothing = torch.zeros(3, 4)
    monkeypatch.setattr(module, "_sample", lambda *given: (drawn, nothing, nothing, nothing[..., None]))
    rollout = roll_out(tiny_model(layers=1), tiny_tokenizer(), [[0, 300], [0, 300, 301], [300]], 4, [0])
    assert rollout.real_BT.tolist() == [[True, True, False, False], [True, False, False, False], [True] * 4]
    assert rollout.ended_B.tolist() == [True, True, False]
    assert rollout.mask_BS[:, :3].tolist() == [[0, 1, 1], [1, 1, 1], [0, 0, 1]]
    assert rollout.mask_BS[:, 3:].tolist() == rollout.real_BT.long().tolist()
    decode = tiny_tokenizer().decode
    assert rollout.texts == [decode([5]), "", decode([5, 6, 7, 8])]
    assert rollout.whole == [decode([300, 5]), decode([300, 301]), decode([300, 5, 6, 7, 8])]


def test_sampling_stops_when_every_row_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def always_end(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.zeros(len(logits), dtype=torch.long), logits[:, 0], logits[:, 0]

    monkeypatch.setattr(module, "_draw", always_end)
    rollout = roll_out(tiny_model(layers=1), tiny_tokenizer(), PROMPTS, 50, [0])
    assert rollout.real_BT.shape == (3, 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_sampling_saw_is_what_one_plain_pass_gives(architecture: str) -> None:
    """Left-padded prompts through a cache, against each text alone, without padding, through the model's own logits."""
    model = tiny_model(architecture, layers=2)
    torch.manual_seed(0)
    rollout = roll_out(model, tiny_tokenizer(), PROMPTS, 6, [0])
    log_probs, hidden = read(model, rollout, torch.arange(3))
    reference = reference_log_probs(model, rollout, parts=2)
    for row, prompt in enumerate(PROMPTS):
        ids = rollout.ids_BS[row, -6:][rollout.real_BT[row]].tolist()
        with torch.no_grad():
            wanted = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        n, at = len(ids), torch.arange(len(ids))
        for found in (rollout.log_probs_BT, log_probs, reference):
            assert torch.allclose(found[row, :n], wanted[at, torch.tensor(ids)], atol=1e-5)
        assert torch.allclose(rollout.entropy_BT[row, :n], -(wanted.exp() * wanted).sum(-1), atol=1e-4)
        assert torch.allclose(rollout.hidden_BTD[row, :n], hidden[row, :n], atol=1e-5)


def test_the_reward_sees_a_rows_real_tokens_and_no_padding() -> None:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    rollout = roll_out(tiny_model(layers=1), tokenizer, PROMPTS, 4, [0])
    for row, prompt in enumerate(PROMPTS):
        ids = rollout.ids_BS[row, -4:][rollout.real_BT[row]].tolist()
        assert rollout.texts[row] == tokenizer.decode(ids, skip_special_tokens=True)
        assert rollout.whole[row] == tokenizer.decode(prompt + ids, skip_special_tokens=True)


def test_draws_follow_the_distribution() -> None:
    torch.manual_seed(0)
    probs, n = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05]), 20_000
    tokens, log_probs, entropy = _draw(probs.log().expand(n, -1))
    shares = torch.bincount(tokens, minlength=5) / n
    # The s.d. of a share is at most sqrt(0.25 / 20,000) = 0.0035; 0.015 is four of them.
    assert torch.allclose(shares, probs, atol=0.015)
    assert shares[1] == 0, "what has no probability is never drawn"
    assert torch.allclose(log_probs, probs.log()[tokens])
    wanted = -(probs[probs > 0] * probs[probs > 0].log()).sum()
    assert torch.allclose(entropy, wanted.expand(n))


def test_predictions_that_are_not_numbers_stay_visible() -> None:
    _, log_probs, _ = _draw(torch.tensor([[0.0, float("nan"), 1.0], [0.0, 1.0, 2.0]]))
    assert torch.isnan(log_probs).tolist() == [True, False]
