"""The batches in which the texts stream by, as windows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lfp_lens.parts.activation_cache import ActivationCache
from lfp_lens.parts.harvest import Models, Reader
from lfp_lens.parts.pair import Pair
from lfp_lens.stages.explain.windows import WINDOW, Half


@dataclass(frozen=True, eq=False)
class Batch:
    """The windows of one batch of texts."""

    windows_W: torch.Tensor
    """Which windows."""
    priority_W: torch.Tensor
    """A number below 2^31 each, from which every feature draws its own (`keys.Draw`)."""
    ids_WT: torch.Tensor
    """Their token ids, -1 beyond the end."""
    places_N: torch.Tensor
    """Which token of the half each activation belongs to."""
    slots_N: torch.Tensor
    """Where it stands in `[windows, 32]`."""

    def lay(self, acts_NF: torch.Tensor) -> torch.Tensor:
        """Give activations as `[windows, 32, features]`, 0 where no dictionary reads."""
        laid = acts_NF.new_zeros(len(self.windows_W) * WINDOW, acts_NF.shape[1])
        laid[self.slots_N] = acts_NF
        return laid.view(len(self.windows_W), WINDOW, -1)

    def blocks(self, n: int) -> Iterator[tuple["Batch", slice]]:
        """Give `n` windows at a time, and which of the activations are theirs."""
        starts = range(0, len(self.windows_W), n)
        edges = torch.tensor([*starts, len(self.windows_W)], device=self.slots_N.device) * WINDOW
        ends = torch.searchsorted(self.slots_N, edges).tolist()
        for start, low, high in zip(starts, ends, ends[1:]):
            part, mine = slice(start, start + n), slice(low, high)
            windows = self.windows_W[part], self.priority_W[part], self.ids_WT[part]
            yield Batch(*windows, self.places_N[mine], self.slots_N[mine] - start * WINDOW), mine


def batches(
    pair: Pair, side: str, sites: list[str], half: Half, cache: ActivationCache | None, bar: Any
) -> Iterator[tuple[Batch, dict[str, torch.Tensor]]]:
    """Read a half from the model or the cache: its windows, batch after batch, with the activations of every site."""
    model = pair.hf(side)
    streams = [(side, site) for site in sites]
    models = Models({side: model}, half.read, streams)
    reader: Reader = models if cache is None else cache.reader(half.read, streams, pair, models)
    for at, rows in enumerate(half.read.rows):
        acts = reader.read(at)
        windows = np.concatenate([np.arange(*half.first_window[row : row + 2]) for row in rows])
        yield windows_batch(half, windows, pair.device), {site: acts[side, site] for site in sites}
        bar.update()


def windows_batch(half: Half, windows: np.ndarray, device: torch.device) -> Batch:
    """Give these windows as a batch; tokens that no dictionary reads have no slot."""
    lengths = half.window_starts[windows + 1] - half.window_starts[windows]
    ends = np.cumsum(lengths)
    local, inside = np.repeat(np.arange(len(windows)), lengths), np.arange(int(lengths.sum()))
    inside -= np.repeat(ends - lengths, lengths)
    places = np.repeat(half.window_starts[windows], lengths) + inside
    ids_WT = np.full((len(windows), WINDOW), -1, np.int64)
    ids_WT[local, inside] = half.ids[places]
    is_read = half.ids[places] != (-1 if half.read.begin is None else half.read.begin)
    given = (windows, half.priority[windows], ids_WT, places[is_read], (local * WINDOW + inside)[is_read])
    return Batch(*(torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in given))
