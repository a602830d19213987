"""The largest values of a batch without sorting the batch: what BatchTopK dictionaries spend a third of a CPU step on.

Imported lazily by `parts.lean_saes`, because SAELens takes seconds to import.
"""

import numpy as np
import torch
from sae_lens.saes.batchtopk_sae import BatchTopK

EVERY = 16
"""One value of so many is looked at to bound the threshold from below."""
MARGIN = 1.2
"""The bound lies below the threshold as long as the sample holds less than so many times its share of the largest values."""


class QuickBatchTopK(BatchTopK):
    """SAELens' BatchTopK: the k times N largest values of a batch of N tokens stay, all others become 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give the chosen values [..., F]; their gradient reaches the chosen ones only."""
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return super().forward(x)
        acts = x.relu()
        flat = acts.detach().flatten()
        count = min(int(self.k * acts.shape[:-1].numel()), len(flat))
        if count < 1:
            return super().forward(x)
        threshold = kth_largest(flat.numpy(), count)
        chosen = flat >= threshold
        surplus = int(chosen.sum()) - count
        if surplus and threshold > 0:
            # Of equal values at the threshold, as many are dropped as are too many.
            chosen[torch.nonzero(flat == threshold)[-surplus:, 0]] = False
        return acts * chosen.reshape(acts.shape)


def kth_largest(values: np.ndarray, k: int) -> float:
    """Give the k-th largest value, exactly: a sample bounds it from below, and it is looked for among what lies above.

    >>> kth_largest(np.array([3.0, 1.0, 2.0]), 2)
    2.0
    """
    sample = values[::EVERY]
    at = len(sample) - int(MARGIN * k / EVERY) - 64
    if at > 0:
        above = values[values >= np.partition(sample, at)[at]]
        values = above if len(above) >= k else values
    return float(np.partition(values, len(values) - k)[len(values) - k])
