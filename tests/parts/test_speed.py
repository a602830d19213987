"""Settings for speed are undone on every exit and change no number."""

import pytest
import torch

from lfp_lens.parts import speed
from lfp_lens.parts.speed import fast_matmul, short_text_attention
from tests.tiny import tiny_model


def test_the_fast_product_is_fp32_where_it_is_used() -> None:
    generator = torch.Generator().manual_seed(3)
    left, right = torch.randn(64, 300, generator=generator), torch.randn(300, 64, generator=generator)
    with fast_matmul():
        error = ((left @ right).double() - left.double() @ right.double()).norm() / (left @ right).double().norm()
    assert float(error) < 1e-6


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_the_precision_is_put_back_on_any_exit(before: str) -> None:
    whole = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(before)
        with fast_matmul():
            pass
        assert torch.get_float32_matmul_precision() == before
        with pytest.raises(KeyboardInterrupt), fast_matmul():
            raise KeyboardInterrupt
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(whole)


def test_a_machine_where_it_is_not_fp32_keeps_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SAME_AS_FP32", 0.0)
    before = torch.get_float32_matmul_precision()
    with fast_matmul() as is_used:
        assert is_used is False
        assert torch.get_float32_matmul_precision() == before


def test_trying_it_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with fast_matmul():
        pass
    assert torch.equal(before, torch.get_rng_state())


def test_plain_attention_gives_the_same_logits_and_is_undone() -> None:
    models = [tiny_model(), tiny_model("llama")]
    for model in models:
        model.set_attn_implementation("sdpa")
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        before = [model(ids).logits for model in models]
        with short_text_attention(*models):
            assert [model.config._attn_implementation for model in models] == ["eager", "eager"]
            inside = [model(ids).logits for model in models]
    for one, other in zip(before, inside):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    assert [model.config._attn_implementation for model in models] == ["sdpa", "sdpa"]
    with pytest.raises(RuntimeError, match="inside"), short_text_attention(*models):
        raise RuntimeError("inside")
    assert [model.config._attn_implementation for model in models] == ["sdpa", "sdpa"]
