"""Activations as training data: one pass of each model, real tokens only, shuffled token by token, the same on every run.

Texts are cut into batches once, by their content alone. The stream is an endless sequence of those batches, each epoch in
a new seeded order; a block is a fixed number of the tokens it holds, shuffled. Which tokens a block holds follows from the
seed and its number, so that a run goes on at any block exactly as if it had never stopped, and an activation read from a
cache (`parts.cache`) is the very one that the model would give, computed in the same batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.activations import Batch, Encoded, pad
from lfp_lens.parts.sites import activations_at

VALUES_AT_ONCE = 2**19
"""Tokens times width of one forward pass on a CPU: more does not fit its caches."""

Stream = tuple[str, str]
"""(side, site): one sequence of activations."""


class Reader(Protocol):
    """Where a batch's activations come from: the models (`Models`) or a cache."""

    def read(self, at: int) -> Mapping[Stream, torch.Tensor]:
        """Give every stream's activations at the content tokens of batch `at`, [n, D] in fp32, text after text."""
        ...


@dataclass(frozen=True, eq=False)
class TextBatches:
    """Texts cut into batches by length and content alone."""

    encoded: Sequence[Encoded]
    """The texts."""
    rows: list[list[int]]
    """Indices of the texts in each batch."""
    begin: int | None
    """The beginning-of-text token, which no SAE sees."""

    @property
    def n_tokens(self) -> np.ndarray:
        """Content tokens of each batch."""
        return np.array([sum(self.content(row) for row in rows) for rows in self.rows], dtype=np.int64)

    def content(self, row: int) -> int:
        """Count the tokens of one text that an SAE may see."""
        return sum(token != self.begin for token in self.encoded[row].ids)


def text_batches(encoded: Sequence[Encoded], *, width: int, begin: int | None, device: torch.device) -> TextBatches:
    """Cut texts into batches of like length. Texts of one length are mixed, because neighbours are often about one thing.

    `width` is the model's: a batch holds about as many tokens as fit the processor's caches. Texts without content are left
    out.
    """
    limit = 8192 if device.type != "cpu" else min(8192, max(1024, VALUES_AT_ONCE // width))
    mixed = np.random.default_rng(0).permutation(len(encoded)).tolist()
    order = sorted((row for row in mixed if encoded[row].ids), key=lambda row: -len(encoded[row].ids))
    found = TextBatches(encoded, [], begin)
    order = [row for row in order if found.content(row)]
    start = 0
    while start < len(order):
        n = max(1, limit // len(encoded[order[start]].ids))
        found.rows.append(order[start : start + n])
        start += n
    return found


def split(encoded: Sequence[Encoded]) -> tuple[list[Encoded], list[Encoded]]:
    """Part texts into those that train an SAE and the last tenth, which is held out."""
    n_heldout = max(1, len(encoded) // 10)
    return list(encoded[:-n_heldout]), list(encoded[-n_heldout:])


@dataclass(frozen=True, eq=False)
class Models:
    """Reads activations from the models themselves."""

    models: Mapping[str, Any]
    """Side -> Hugging Face model (`base`, `tuned`, and any twin)."""
    texts: TextBatches
    """What they read."""
    streams: Sequence[Stream]
    """What is wanted."""
    bf16: bool = False
    """Compute in bfloat16 (autocast)."""

    def read(self, at: int) -> dict[Stream, torch.Tensor]:
        """Run every model that is needed once, up to its deepest wanted site, and give each stream's activations."""
        device = next(iter(self.models.values())).device
        batch = pad(self.texts.encoded, self.texts.rows[at], device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            return read_batch(self.models, batch, self.streams, self.texts.begin)


def read_batch(
    models: Mapping[str, Any], batch: Batch, streams: Sequence[Stream], begin: int | None
) -> dict[Stream, torch.Tensor]:
    """Give every stream's activations at a batch's content tokens, [n, D] in fp32, from one run of each model they need."""
    content_BS = batch.content(begin)
    seen: dict[Stream, torch.Tensor] = {}
    for side in dict.fromkeys(side for wanted, _ in streams for side in sides_of(wanted)):
        sites = list(dict.fromkeys(site for wanted, site in streams if side in sides_of(wanted)))
        acts = activations_at(models[side], batch.ids_BS, batch.mask_BS, sites)
        seen |= {(side, site): acts[site][content_BS].float() for site in sites}
    return {stream: combined(stream, seen) for stream in streams}


def sides_of(side: str) -> tuple[str, ...]:
    """Name the models whose activations a side is made of."""
    return ("base", "tuned") if side in ("difference", "both") else (side,)


def combined(stream: Stream, seen: Mapping[Stream, torch.Tensor]) -> torch.Tensor:
    """Make a stream's activations [n, D] (2D for `both`) from those of its models at the same tokens."""
    side, site = stream
    if side == "difference":
        return seen["tuned", site] - seen["base", site]
    if side == "both":
        return torch.cat([seen["base", site], seen["tuned", site]], dim=1)
    return seen[side, site]


@dataclass(frozen=True, eq=False)
class Blocks:
    """An endless, seeded sequence of shuffled blocks of activations."""

    reader: Reader
    """Where activations come from."""
    n_tokens: np.ndarray
    """Content tokens of each batch that the reader has."""
    block_tokens: int
    """Tokens per block."""
    seed: int
    """Of the order of batches and tokens."""

    def blocks(self, start: int, sizes: Sequence[int]) -> Iterator[dict[Stream, torch.Tensor]]:
        """Give blocks `start`, `start + 1`, ...: block i holds `sizes[i]` tokens, and all but the last `block_tokens`.

        The tensors of one block are overwritten by the next. Raises `LensError` for activations that are not finite or, in
        the first block, constant.
        """
        rest: dict[Stream, torch.Tensor] = {}
        buffers: dict[Stream, torch.Tensor] = {}
        batches = self._from(start * self.block_tokens)
        for number in range(start, len(sizes)):
            size = sizes[number]
            places = torch.from_numpy(np.random.default_rng([self.seed, 1, number]).permutation(size))
            filled = 0
            while filled < size:
                if not rest:
                    at, skipped = next(batches)
                    rest = {stream: acts[skipped:] for stream, acts in self.reader.read(at).items()}
                taken = min(size - filled, len(next(iter(rest.values()))))
                for stream, acts_ND in rest.items():
                    if stream not in buffers:
                        buffers[stream] = acts_ND.new_empty(max(sizes[start:]), acts_ND.shape[1])
                    spots = places[filled : filled + taken].to(acts_ND.device)
                    buffers[stream].index_copy_(0, spots, acts_ND[:taken])
                left = len(next(iter(rest.values()))) - taken
                rest = {stream: acts_ND[taken:] for stream, acts_ND in rest.items()} if left else {}
                filled += taken
            block = {stream: buffer[:size] for stream, buffer in buffers.items()}
            for stream, acts_ND in block.items():
                _check(stream, acts_ND, is_first=number == 0)
            yield block

    def _from(self, token: int) -> Iterator[tuple[int, int]]:
        """Give the batches of the endless sequence from its `token`-th token on, and how many tokens of each to skip."""
        per_epoch = int(self.n_tokens.sum())
        epoch, left = divmod(token, per_epoch)
        while True:
            for at in np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.n_tokens)):
                if left >= self.n_tokens[at]:
                    left -= int(self.n_tokens[at])
                    continue
                yield int(at), left
                left = 0
            epoch += 1


def _check(stream: Stream, acts_ND: torch.Tensor, *, is_first: bool) -> None:
    side, site = stream
    if not torch.isfinite(acts_ND.sum()):
        raise LensError(
            f"Activations of the {side} model at {site} are not finite: an SAE cannot be trained on them. Load the "
            "models in float32, and check the checkpoint."
        )
    if is_first and not (acts_ND != acts_ND[:1]).any():
        raise LensError(
            f"Activations of the {side} model at {site} are the same at every token: there is nothing to learn."
        )
