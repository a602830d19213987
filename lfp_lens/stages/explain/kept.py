"""What is kept of the texts while they stream by: memory that grows with features, not with texts.

`Best` holds for every feature the windows with the largest keys; a key is a peak, or a drawn priority, so that the same
class keeps the strongest windows and a uniform sample. `StrongTokens` holds the tokens a feature fires on most, `Holds` tells
which windows hold them.
"""

import numpy as np
import torch

from lfp_lens.stages.explain.windows import PRIORITIES, WINDOW

MAX_STRONG = 1000
"""Tokens kept per feature at most: beyond 100,000 shown tokens the strongest 1,000 stand for the strongest 1 %."""
STRONG_SHARE, TIE, LEAST = 0.01, 0.999, 1e-6
"""A feature fires strongly on the strongest 1 % of the shown tokens, rounding allowed for among equals."""
HOLD_BLOCK = 1024
"""Features looked up at a time."""
ROUNDED_BITS = 12
"""Bits of a peak that are left out when windows are ranked: equal up to rounding, they are ranked by priority."""


class Best:
    """The `k` windows with the largest keys, for every feature."""

    def __init__(self, n_features: int, k: int, device: torch.device) -> None:
        self.keys_FK = torch.full((n_features, k), -1, dtype=torch.int64, device=device)
        self.windows_FK = torch.full((n_features, k), -1, dtype=torch.int64, device=device)
        self.acts_FKT = torch.zeros(n_features, k, WINDOW, device=device)

    def add(self, keys_WF: torch.Tensor, windows_W: torch.Tensor, acts_WTF: torch.Tensor) -> None:
        """Take windows; a key below 0 keeps a window out."""
        k = self.keys_FK.shape[1]
        if not k or not len(keys_WF):
            return
        rows = (keys_WF.amax(0) > self.keys_FK.amin(1)).nonzero()[:, 0]
        if not len(rows):
            return
        both = torch.cat([self.keys_FK[rows], keys_WF[:, rows].T], dim=1)
        keys, places = both.topk(k, dim=1)
        stays = torch.zeros(len(rows), k + 1, dtype=torch.bool, device=both.device)
        stays.scatter_(1, places.clamp(max=k), True)
        new_row, new_at = (places >= k).nonzero(as_tuple=True)
        free_row, free_slot = (~stays[:, :k]).nonzero(as_tuple=True)
        assert torch.equal(new_row, free_row), "a window comes for each that goes"
        window, feature = places[new_row, new_at] - k, rows[new_row]
        found = keys[new_row, new_at]
        self.keys_FK[feature, free_slot] = found
        self.windows_FK[feature, free_slot] = torch.where(found >= 0, windows_W[window], -1)
        self.acts_FKT[feature, free_slot] = acts_WTF[window, :, feature]

    def keep(self, rows: torch.Tensor) -> None:
        """Leave only these features."""
        self.keys_FK, self.windows_FK, self.acts_FKT = self.keys_FK[rows], self.windows_FK[rows], self.acts_FKT[rows]

    def of(self, feature: int) -> list[tuple[int, np.ndarray]]:
        """Give (window, activations) of one feature, the largest key first."""
        order = self.keys_FK[feature].argsort(descending=True).tolist()
        acts_KT, windows = self.acts_FKT[feature].cpu().numpy(), self.windows_FK[feature].tolist()
        return [(windows[at], acts_KT[at]) for at in order if windows[at] >= 0]


class StrongTokens:
    """The `n` tokens each feature fires on most, kept exactly: a feature's level rises as better ones come."""

    def __init__(self, n_features: int, n: int, device: torch.device) -> None:
        self.n = n
        self._values_FC = torch.zeros(n_features, 2 * n, device=device)
        self._places_FC = torch.full((n_features, 2 * n), -1, dtype=torch.int64, device=device)
        self._filled_F = torch.zeros(n_features, dtype=torch.int64, device=device)
        self._level_F = torch.zeros(n_features, device=device)

    def add(self, acts_NF: torch.Tensor, places_N: torch.Tensor) -> None:
        """Take tokens; `places_N` tells which they are."""
        feature, row = (acts_NF > self._level_F).T.nonzero(as_tuple=True)
        count_F = feature.bincount(minlength=len(self._level_F))
        if int((self._filled_F + count_F).max()) > 2 * self.n:
            self._merge(acts_NF, places_N)
            return
        at = torch.arange(len(feature), device=feature.device) - (count_F.cumsum(0) - count_F)[feature]
        slot = self._filled_F[feature] + at
        self._values_FC[feature, slot] = acts_NF[row, feature]
        self._places_FC[feature, slot] = places_N[row]
        self._filled_F += count_F

    def _merge(self, acts_NF: torch.Tensor, places_N: torch.Tensor) -> None:
        values = torch.cat([self._values_FC, acts_NF.T], dim=1)
        best, at = values.topk(self.n, dim=1)
        old = self._places_FC.gather(1, at.clamp(max=2 * self.n - 1))
        new = places_N[(at - 2 * self.n).clamp(min=0)]
        self._values_FC.zero_()
        self._values_FC[:, : self.n] = best
        self._places_FC[:, : self.n] = torch.where(at < 2 * self.n, old, new)
        self._filled_F = (best > 0).sum(1)
        self._level_F = best[:, -1].clamp(min=0)

    def keep(self, rows: torch.Tensor) -> None:
        """Leave only these features."""
        self._values_FC, self._places_FC = self._values_FC[rows], self._places_FC[rows]
        self._filled_F, self._level_F = self._filled_F[rows], self._level_F[rows]

    def level(self) -> torch.Tensor:
        """Give the activation from which each feature fires strongly; any at all, for one that fires on fewer tokens.

        Dictionaries of small models are dense: their features are active at some level nearly everywhere, and only the
        strongest activations tell what one of them is about.
        """
        return (TIE * self._values_FC.topk(self.n, dim=1).values[:, -1]).clamp(min=LEAST)

    def of(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Give (places, values) of one feature's tokens, the strongest first."""
        values, at = self._values_FC[feature].topk(self.n)
        fires = values > 0
        return self._places_FC[feature][at[fires]].cpu().numpy(), values[fires].cpu().numpy()


def n_strong(n_tokens: int) -> int:
    """Give how many tokens the strongest 1 % are."""
    return min(MAX_STRONG, max(1, int(np.ceil(STRONG_SHARE * n_tokens))))


def peak_keys(peaks_WF: torch.Tensor, priority_W: torch.Tensor) -> torch.Tensor:
    """Give keys that rank windows by peak, those equal up to rounding by priority; -1 where nothing fires."""
    bits = peaks_WF.clamp(min=0).contiguous().view(torch.int32).long()
    rounded = (bits + 2 ** (ROUNDED_BITS - 1)) >> ROUNDED_BITS
    return torch.where(peaks_WF > 0, (rounded << 31) + priority_W[:, None], -1)


def weighted_keys(priority_W: torch.Tensor, weights_W: torch.Tensor) -> torch.Tensor:
    """Give keys whose largest are a sample drawn without replacement in proportion to weights (Efraimidis and Spirakis 2006)."""
    uniform_W = (priority_W.double() + 0.5) / PRIORITIES
    return (uniform_W ** (1 / weights_W.double()) * 2**52).long()


class Holds:
    """Tells which windows hold one of a feature's tokens."""

    def __init__(self, tokens: list[np.ndarray], device: torch.device) -> None:
        self.known = torch.from_numpy(np.unique(np.concatenate([*tokens, np.zeros(0, np.int64)]))).to(device)
        self.table_VF = torch.zeros(len(self.known) + 1, len(tokens), dtype=torch.uint8, device=device)
        for feature, ids in enumerate(tokens):
            self.table_VF[torch.searchsorted(self.known, torch.from_numpy(ids).to(device)), feature] = 1

    def __call__(self, ids_WT: torch.Tensor) -> torch.Tensor:
        """Give `[windows, features]`."""
        rows_WT = torch.searchsorted(self.known, ids_WT).clamp(max=max(0, len(self.known) - 1))
        is_known = self.known[rows_WT] == ids_WT if len(self.known) else torch.zeros_like(ids_WT, dtype=torch.bool)
        rows_WT = torch.where(is_known, rows_WT, len(self.known))
        blocks = self.table_VF.split(HOLD_BLOCK, dim=1)
        return torch.cat([block[rows_WT].amax(1) for block in blocks], dim=1).bool()
