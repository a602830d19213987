"""The settings that decide speed on a CPU, and quiet libraries. All but `keep_freed_memory` are undone on exit."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

SAME_AS_FP32 = 1e-6
"""Largest relative error against fp64 at which a faster fp32 product still counts as fp32 (plain fp32 has 2e-7)."""

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""What glibc's `mallopt` calls the two settings (malloc.h)."""
KEPT_BYTES, LARGEST_KEPT_BYTES = 2**30, 2**25
"""Freed memory that the process keeps, and the largest block that is taken from it (the most glibc allows)."""


@cache
def keep_freed_memory() -> bool:
    """Let this process keep up to 1 GiB of freed memory at the end of a heap, and give whether it does; for as long as it runs.

    A forward pass on a CPU frees and takes the same few dozen MB again for every batch. By default glibc gives them back to the
    system and the system clears each page anew: up to a fifth of the CPU time of a pass over a small model. Nothing is changed
    where the user has set these thresholds, nor where the C library is another.
    """
    if any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    # The first is refused where glibc allows less (32 bit): then nothing is changed.
    return bool(mallopt(MMAP_THRESHOLD, LARGEST_KEPT_BYTES) and mallopt(TRIM_THRESHOLD, KEPT_BYTES))


@contextmanager
def fast_matmul() -> Iterator[bool]:
    """Use the faster fp32 matrix product while inside, if on this machine it is fp32; yields whether it is in use.

    "medium" lets PyTorch route fp32 products through oneDNN: twice as fast on CPUs without AMX, and exact there. On a
    GPU or an AMX Xeon it would be bfloat16, so the setting is kept only where a product agrees with fp64.
    """
    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(256, 512, generator=generator), torch.randn(512, 256, generator=generator)
    exact = left.double() @ right.double()
    try:
        torch.set_float32_matmul_precision("medium")
        error = ((left @ right).double() - exact).norm() / exact.norm()
        is_exact = bool(error < SAME_AS_FP32) and not torch.cuda.is_available()
        if not is_exact:
            torch.set_float32_matmul_precision(before)
        yield is_exact
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def short_text_attention(*models: Any) -> Iterator[None]:
    """Use the plain attention while inside, on a CPU: on texts of some dozen tokens it is up to 3 times faster than SDPA."""
    before = [model.config._attn_implementation for model in models]
    try:
        for model in models:
            if model.device.type == "cpu":
                model.set_attn_implementation("eager")
        yield
    finally:
        for model, name in zip(models, before):
            model.set_attn_implementation(name)


def quiet_transformers() -> None:
    """Switch off the bars that transformers draws for every load and save; ours are one per stage."""
    from transformers.utils import logging

    logging.disable_progress_bar()


@contextmanager
def without_bars() -> Iterator[None]:
    """Draw no progress bar while inside. tqdm reads its environment variable once, when it is imported: too early."""
    from tqdm import tqdm

    original = tqdm.__init__

    def silent(self: Any, *given: Any, **named: Any) -> None:
        original(self, *given, **(named | {"disable": True}))

    tqdm.__init__ = silent
    try:
        yield
    finally:
        tqdm.__init__ = original
