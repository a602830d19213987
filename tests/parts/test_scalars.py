"""Scalars: each is what its definition says, place by place."""

import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.scalars import SCALARS, Predictions, Scalar, make_scalar


def seen(**changes: object) -> Predictions:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    given = {"logits_NV": logits, "next_N": torch.tensor([2, 5, -1, -1]), "text_N": torch.tensor([0, 0, 0, 1])}
    return Predictions(**(given | changes))


def test_expected_valence_is_the_mean_value_of_the_next_word() -> None:
    values = torch.tensor([0.0, 1.0, -2.0, 0.0, 0.5, 3.0])
    found = SCALARS["expected_valence"].measure(seen(values_V=values))
    by_hand = [sum(p * value for p, value in zip(row.softmax(0), values)) for row in seen().logits_NV]
    assert torch.allclose(found, torch.stack(by_hand))


def test_log_p_and_implicit_reward_are_of_the_token_that_comes() -> None:
    found = SCALARS["log_p"].measure(seen())
    assert found[0] == pytest.approx(float(seen().logits_NV[0].log_softmax(0)[2]))
    assert found[2:].tolist() == [0, 0], "nothing comes after a text's last token"
    base = torch.tensor([-1.0, -2.0, 0.0, 0.0])
    assert torch.allclose(SCALARS["implicit_reward"].measure(seen(base_log_p_N=base)), found - base)


def test_the_reward_head_counts_at_the_last_token_only() -> None:
    rewards = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert SCALARS["reward_head"].measure(seen(logits_NV=rewards)).tolist() == [0, 0, 3, 4]
    with pytest.raises(LensError, match="reward model"):
        SCALARS["reward_head"].measure(seen())


def test_a_scalar_is_a_name_a_scalar_or_a_function() -> None:
    def mine(seen: Predictions) -> torch.Tensor:
        return seen.logits_NV[:, 0]

    assert make_scalar(mine)[0] == "mine"
    assert make_scalar(Scalar(mine, needs_base=True))[1].needs_base
    with pytest.raises(LensError, match="Did you mean"):
        make_scalar("expected_valance")
    with pytest.raises(LensError, match="a name"):
        make_scalar(3)
