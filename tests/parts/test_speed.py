"""Settings for speed are undone on every exit and change no number."""

import json
import os
import platform
import resource
import subprocess
import sys

import pytest
import torch

from lfp_lens.parts import speed
from lfp_lens.parts.checkpoints import load_causal_lm
from lfp_lens.parts.speed import fast_matmul, keep_freed_memory, short_text_attention
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


def test_loading_a_model_keeps_freed_memory() -> None:
    keep_freed_memory.cache_clear()
    load_causal_lm(tiny_model())
    assert keep_freed_memory.cache_info().misses == 1


FAULTS = """
import ctypes, json, resource, torch
libc = ctypes.CDLL(None)
libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: huge pages would hide what is counted
libc.mallopt(-3, 2**17)  # glibc's first threshold, which it raises while it runs: every block is given back
from lfp_lens.parts.speed import keep_freed_memory

def used():
    blocks = [torch.ones(2**21) for _ in range(10)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def new_pages():
    used()
    before = used()
    return used() - before

print(json.dumps([new_pages(), keep_freed_memory(), new_pages()]))
"""
"""Ten blocks of 8 MB are taken and freed, as a forward pass does."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc, nothing is set there")
@pytest.mark.parametrize("given", [{}, {"MALLOC_TRIM_THRESHOLD_": "100000"}])
def test_freed_memory_is_used_again_unless_the_user_has_set_that(given: dict[str, str]) -> None:
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    made = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    before, is_set, after = json.loads(made.stdout)
    pages = 10 * 2**21 * 4 // resource.getpagesize()
    assert before > pages / 2, "given back, pages are cleared anew"
    # What lies between the blocks may leave no room for one of the ten.
    assert (is_set, after < pages / 4) == ((False, False) if given else (True, True))
