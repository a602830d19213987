"""What is kept of the texts while they stream by: memory that grows with features, not with texts.

`Best` holds for every feature what has the largest keys; a key is a peak, or a drawn number (`keys.py`), so that the same class
keeps the strongest windows and a uniform sample. `StrongTokens` holds the tokens a feature fires on most, `Holds` tells which
windows hold them.
"""

from dataclasses import dataclass

import numpy as np
import torch

from lfp_lens.stages.explain.windows import WINDOW

MAX_STRONG = 1000
"""Tokens kept per feature at most: beyond 100,000 shown tokens the strongest 1,000 stand for the strongest 1 %."""
STRONG_SHARE, TIE, LEAST = 0.01, 0.999, 1e-6
"""A feature fires strongly on the strongest 1 % of the shown tokens, rounding allowed for among equals."""
HOLD_BLOCK = 1024
"""Features looked up at a time."""
EARLY = 1.5
"""Where no activations are kept, so that a cut is cheap, a feature that holds more than so many times its `k` is cut before
others come, which raises the bar for them."""


class Best:
    """The `k` windows or tokens with the largest keys, for every feature; a key of 0 keeps one out.

    Whatever beats the `k`-th largest key known so far is appended; a feature that has no room left is cut to its `k` largest.
    There is room for twice `k`, so that all are seldom ranked.
    """

    def __init__(
        self, n_features: int, k: int, device: torch.device, *, width: int = WINDOW, dtype: torch.dtype = torch.float64
    ) -> None:
        """Make room for keys of this type, each with `width` activations."""
        self.k = k
        self._keys_FC = torch.zeros(n_features, 2 * k, dtype=dtype, device=device)
        self._items_FC = torch.full((n_features, 2 * k), -1, dtype=torch.int64, device=device)
        self._acts_FCT = torch.zeros(n_features, 2 * k, width, device=device)
        self._filled_F = torch.zeros(n_features, dtype=torch.int64, device=device)
        self._least_F = torch.zeros(n_features, dtype=dtype, device=device)

    def add(self, keys_NF: torch.Tensor, items_N: torch.Tensor, acts_NTF: torch.Tensor) -> None:
        """Take windows or tokens, named by `items_N`, with what the features do there."""
        if not self.k:
            return
        if not self._acts_FCT.shape[2]:
            self._cut(self._filled_F > EARLY * self.k)
        is_better_NF = keys_NF > self._least_F
        many = (is_better_NF.sum(0, dtype=torch.int32) > self.k).nonzero()[:, 0]
        if len(many):
            is_better_NF[:, many] = False
            best_FK, row_FK = keys_NF[:, many].T.topk(self.k, dim=1, sorted=False)
            self._append(many.repeat_interleave(self.k), row_FK.flatten(), keys_NF, items_N, acts_NTF)
            self._least_F[many] = torch.maximum(self._least_F[many], best_FK.amin(1))
        feature, row = _places(is_better_NF.T)
        self._append(feature, row, keys_NF, items_N, acts_NTF)

    def _append(
        self, feature: torch.Tensor, row: torch.Tensor,
        keys_NF: torch.Tensor, items_N: torch.Tensor, acts_NTF: torch.Tensor,
    ) -> None:  # fmt: skip
        """Put these rows behind what is kept of these features, which ascend; at most `k` of each."""
        count_F = feature.bincount(minlength=len(self._least_F))
        self._cut(self._filled_F + count_F > 2 * self.k)
        self._filled_F += count_F
        slot = torch.arange(len(feature), device=feature.device) + (self._filled_F - count_F.cumsum(0))[feature]
        self._keys_FC[feature, slot] = keys_NF[row, feature]
        self._items_FC[feature, slot] = items_N[row]
        self._acts_FCT[feature, slot] = acts_NTF[row, :, feature]

    def _cut(self, is_full_F: torch.Tensor) -> None:
        """Leave the `k` largest of the features that are full."""
        full = is_full_F.nonzero()[:, 0]
        if not len(full):
            return
        keys_FK, at_FK = self._keys_FC[full].topk(self.k, dim=1, sorted=False)
        items_FK, acts_FKT = self._items_FC[full[:, None], at_FK], self._acts_FCT[full[:, None], at_FK]
        self._keys_FC[full] = 0
        self._keys_FC[full, : self.k], self._items_FC[full, : self.k] = keys_FK, items_FK
        self._acts_FCT[full, : self.k] = acts_FKT
        self._filled_F[full], self._least_F[full] = self.k, keys_FK.amin(1)

    def keep(self, features: torch.Tensor) -> None:
        """Leave only these features."""
        self._keys_FC, self._items_FC, self._acts_FCT, self._filled_F, self._least_F = (
            kept[features] for kept in (self._keys_FC, self._items_FC, self._acts_FCT, self._filled_F, self._least_F)
        )

    def of(self, feature: int) -> list[tuple[int, np.ndarray]]:
        """Give (window, activations) of one feature, the largest key first."""
        keys_K, order = self._keys_FC[feature].topk(self.k)
        order = order[keys_K > 0]
        return list(zip(self._items_FC[feature, order].tolist(), self._acts_FCT[feature, order].cpu().numpy()))

    def ranked(self) -> tuple[np.ndarray, np.ndarray]:
        """Give (keys, windows or tokens) of all features, `[features, k]`, the largest key first; a key of 0 is none."""
        keys_FK, at_FK = self._keys_FC.topk(self.k, dim=1)
        return keys_FK.cpu().numpy(), self._items_FC.gather(1, at_FK).cpu().numpy()


def _places(is_FN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give (feature, row) of what is true, features in ascending order; on a CPU NumPy finds them several times faster."""
    if is_FN.device.type != "cpu":
        feature, row = is_FN.nonzero(as_tuple=True)
        return feature, row
    at = torch.from_numpy(np.flatnonzero(is_FN.contiguous().numpy()))
    feature = at // is_FN.shape[1]
    return feature, at - feature * is_FN.shape[1]


@dataclass(frozen=True, eq=False)
class Strongest:
    """The tokens each feature fires on most."""

    values_FK: np.ndarray
    """Activations, the strongest first; 0 where a feature fires on fewer tokens."""
    places_FK: np.ndarray
    """Which tokens."""

    def level(self) -> np.ndarray:
        """Give the activation from which each feature fires strongly; any at all, for one that fires on fewer tokens.

        Dictionaries of small models are dense: their features are active at some level nearly everywhere, and only the
        strongest activations tell what one of them is about.
        """
        return (TIE * self.values_FK[:, -1]).clip(min=LEAST)

    def of(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Give (places, values) of one feature's tokens, the strongest first."""
        n = np.count_nonzero(self.values_FK[feature])
        return self.places_FK[feature, :n], self.values_FK[feature, :n]


class StrongTokens:
    """The `n` tokens each feature fires on most, kept exactly while the texts stream by."""

    def __init__(self, n_features: int, n: int, device: torch.device) -> None:
        self._best = Best(n_features, n, device, width=0, dtype=torch.float32)

    def add(self, acts_NF: torch.Tensor, places_N: torch.Tensor) -> None:
        """Take tokens; `places_N` tells which they are."""
        self._best.add(acts_NF, places_N, acts_NF.new_zeros(len(acts_NF), 0, acts_NF.shape[1]))

    def keep(self, features: torch.Tensor) -> None:
        """Leave only these features."""
        self._best.keep(features)

    def ranked(self) -> Strongest:
        """Give them, ranked."""
        return Strongest(*self._best.ranked())


def n_strong(n_tokens: int) -> int:
    """Give how many tokens the strongest 1 % are."""
    return min(MAX_STRONG, max(1, int(np.ceil(STRONG_SHARE * n_tokens))))


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
