"""Sampling completions, and what can be read off them: length, distinct bigrams, KL.

Sampling is at temperature 1 from the whole distribution, so that a completion is a draw from the model itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lfp_lens.core.errors import LensError

OPENINGS = (
    "The movie", "I watched", "This film was", "We saw the", "The story of", "My neighbor", "It was a", "The acting",
    "There is a", "In the end", "The first time", "When we", "One day", "The man in", "She told", "They went to",
    "At the start", "The second half", "Last night", "Some people", "The book", "He walked", "Our house", "The day",
)  # fmt: skip
"""Neutral openings, the prompts that `ablate` samples from when it is given none."""


@dataclass(frozen=True, eq=False)
class Completions:
    """Sampled continuations, one per prompt, in the order of the prompts."""

    prompts: list[str]
    """The prompts as text."""
    texts: list[str]
    """The completions as text, special tokens left out."""
    ids: list[list[int]]
    """Their tokens, up to and including the first end-of-text."""
    ended: list[bool]
    """Whether each ended by itself."""
    whole: list[str]
    """Prompt and completion, decoded together: a SentencePiece tokenizer drops the space where they meet if decoded apart."""

    @property
    def mean_length(self) -> float:
        """Mean tokens per completion, end-of-text included."""
        return float(np.mean([len(ids) for ids in self.ids]))

    @property
    def distinct1(self) -> float:
        """Distinct tokens divided by tokens, over all completions: compare it at equal n only."""
        return distinct(self.ids, 1)

    @property
    def distinct2(self) -> float:
        """Distinct bigrams divided by bigrams, over all completions: compare it at equal n only."""
        return distinct(self.ids, 2)


def distinct(rows: Sequence[Sequence[int]], n: int) -> float:
    """Give distinct runs of `n` tokens divided by all runs of `n` tokens; 0 where there are none.

    >>> distinct([[1, 2, 1, 2], [1, 2]], 2)
    0.5
    """
    runs = [tuple(ids[at : at + n]) for ids in rows for at in range(len(ids) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Give every token id that ends a text."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = named if isinstance(named, list) else [named]
    ends = [end for end in ids if end is not None] or [tokenizer.eos_token_id]
    if ends[0] is None:
        raise LensError("Neither the model nor its tokenizer names an end-of-text token, so no completion could end.")
    return ends


def prompt_ids(tokenizer: Any, texts: Sequence[str], lengths: tuple[int, int], *, seed: int) -> list[list[int]]:
    """Cut each text to its first n tokens, n uniform on `lengths` (both ends included), beginning-of-text first.

    Texts shorter than the cut are left out. The paper draws n from 2 to 9 (public code, `LengthSampler(2, 10)`).
    """
    low, high = lengths
    if not 1 <= low <= high:
        raise LensError(f"Prompt lengths must satisfy 1 <= low <= high; {lengths} given.")
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    cuts = np.random.default_rng(seed).integers(low, high + 1, size=len(texts))
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    found = [begin + ids[:cut] for ids, cut in zip(encoded, cuts) if len(ids) >= cut]
    if not found:
        raise LensError(f"None of the {len(texts)} texts has {low} tokens to make a prompt of.")
    return found


def prompt_texts(tokenizer: Any, texts: Sequence[str], lengths: tuple[int, int], *, seed: int) -> list[str]:
    """Give the same prompts as text, without special tokens."""
    ids = prompt_ids(tokenizer, texts, lengths, seed=seed)
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    seed: int,
    batch_size: int = 128,
) -> Completions:
    """Sample one completion per prompt with a KV cache; the same seed and prompts give the same random draws.

    `model` is a Hugging Face model or a TransformerLens one; hooks that are on the model are active at every step. The draws
    of a prompt depend on its place among the prompts, not on the model or on when other completions end, so that completions
    before and after an intervention are paired.
    Raises `LensError` without prompts, for a prompt without tokens, or where nothing ends a text.
    """
    is_hooked = hasattr(model, "hook_dict")
    device = model.cfg.device if is_hooked else model.device
    ends = end_ids(model, tokenizer)
    if not prompts:
        raise LensError("Sampling needs at least one prompt; none given.")
    for at, prompt in enumerate(prompts):
        if not prompt:
            raise LensError(f"prompt {at} has no tokens: give every prompt at least one, such as beginning-of-text.")
    rows: list[list[int]] = [[] for _ in prompts]
    with torch.no_grad(), torch.random.fork_rng():
        for number, picked in enumerate(_groups(prompts, batch_size, same_length=is_hooked)):
            # Each group has a seed of its own, because one whose completions all end early draws less.
            torch.manual_seed(_group_seed(seed, number))
            chosen = [prompts[at] for at in picked]
            if is_hooked:
                new_BT = _generate_hooked(model, torch.tensor(chosen, device=device), max_new_tokens)
            else:
                new_BT = generate(model, *left_pad(chosen, device), max_new_tokens=max_new_tokens, ends=ends)
            for at, ids in zip(picked, new_BT.tolist()):
                rows[at] = _through_end(ids, ends)
    return Completions(
        tokenizer.batch_decode([list(ids) for ids in prompts], skip_special_tokens=True),
        tokenizer.batch_decode(rows, skip_special_tokens=True),
        rows,
        [bool(ids) and ids[-1] in ends for ids in rows],
        tokenizer.batch_decode([[*start, *ids] for start, ids in zip(prompts, rows)], skip_special_tokens=True),
    )


def generate(
    model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor, *, max_new_tokens: int, ends: Sequence[int]
) -> torch.Tensor:
    """Sample new tokens `[B, T]` from left-padded prompts; after its end a row holds the first end id."""
    with _no_recipe(model):
        whole = model.generate(
            input_ids=ids_BS, attention_mask=mask_BS, max_new_tokens=max_new_tokens, do_sample=True, temperature=1.0,
            top_k=0, top_p=1.0, eos_token_id=list(ends), pad_token_id=ends[0],
        )  # fmt: skip
    return whole[:, ids_BS.shape[1] :]


@contextmanager
def _no_recipe(model: Any) -> Iterator[None]:
    """Set aside the checkpoint's own sampling recipe (a repetition penalty, say), which would bend the distribution."""
    from transformers import GenerationConfig

    before = model.generation_config
    try:
        model.generation_config = GenerationConfig()
        yield
    finally:
        model.generation_config = before


def left_pad(prompts: Sequence[list[int]], device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """Give ids and mask `[B, S]` with every prompt ending in the last column."""
    width = max(len(ids) for ids in prompts)
    ids_BS = torch.zeros(len(prompts), width, dtype=torch.long)
    mask_BS = torch.zeros_like(ids_BS)
    for row, ids in enumerate(prompts):
        ids_BS[row, width - len(ids) :] = torch.tensor(ids)
        mask_BS[row, width - len(ids) :] = 1
    return ids_BS.to(device), mask_BS.to(device)


def _generate_hooked(model: Any, ids_BS: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    whole = model.generate(
        ids_BS, max_new_tokens=max_new_tokens, do_sample=True, temperature=1.0, stop_at_eos=False, prepend_bos=False,
        verbose=False, return_type="tokens",
    )  # fmt: skip
    return whole[:, ids_BS.shape[1] :]


def _groups(prompts: Sequence[list[int]], size: int, *, same_length: bool) -> list[list[int]]:
    """Batch prompts in order, or by equal length where the model takes no padding mask."""
    keys = sorted({len(ids) for ids in prompts}) if same_length else [None]
    groups = []
    for key in keys:
        rows = [at for at, ids in enumerate(prompts) if key in (None, len(ids))]
        groups += [rows[start : start + size] for start in range(0, len(rows), size)]
    return groups


def _group_seed(seed: int, number: int) -> int:
    """Give the sampling seed of a group of prompts; the first has the seed itself."""
    if number == 0:
        return seed
    return int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1, np.uint64)[0])


def _through_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    for at, token in enumerate(ids):
        if token in ends:
            return ids[: at + 1]
    return ids
