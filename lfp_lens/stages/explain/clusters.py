"""How far strong firing clusters in windows: on odd text many features fire, and any explanation would find such text."""

from dataclasses import dataclass

import torch

MOST_SAME = 1e6
"""Where firing does not cluster at all, windows are taken to be as alike as if so many features had been counted."""


@dataclass(frozen=True)
class Clustering:
    """How many of `n` features fire in a window: beta-binomial, so that features that cluster in windows are told from such
    as are independent."""

    n: int
    """Features."""
    a: float
    """Of the beta distribution of a window's share of firing features."""
    b: float
    """Its other parameter."""

    def odds(self, fire_W: torch.Tensor) -> torch.Tensor:
        """Give the odds that a feature fires in windows where so many others do."""
        return (fire_W + self.a) / ((self.n - 1 - fire_W).clamp(min=0) + self.b)


def clustering(fire_W: torch.Tensor, n: int) -> Clustering:
    """Fit by moments: how much more the counts vary than those of independent features would."""
    share = float((fire_W.mean() / n).clamp(1e-3, 1 - 1e-3))
    spread = float(fire_W.var(correction=0)) / (n * share * (1 - share))
    excess = min(max((spread - 1) / max(1, n - 1), 1 / MOST_SAME), 1.0)
    same = max(1 / excess - 1, 1e-3)
    return Clustering(n, share * same, (1 - share) * same)
