"""What windows are ranked by: their peak, or a number drawn for each feature.

Every feature has its own draw. With one draw for all, the features of a run would be tried on the same silent windows, and
their scores would be less independent than intervals over features take them to be.
"""

import zlib

import numpy as np
import torch

from lfp_lens.stages.explain.windows import PRIORITIES

ROUNDED_BITS = 12
"""Bits of a peak that are left out when windows are ranked: those equal up to rounding are in the drawn order."""
MIXER = 0x45D9F3B
"""Odd and below 2^27: a number below 2^36 times this is below 2^63."""


class Draw:
    """A number between 0 and 1 for every window and feature: that of a feature, whatever is read or watched beside it."""

    def __init__(self, name: str, features: np.ndarray, device: torch.device) -> None:
        """Draw for these features; `name` tells the dictionaries of a run apart: the site, and whether it is a control."""
        self.keys_F = _mixed(torch.from_numpy(features).to(device) + zlib.crc32(name.encode()))

    def __call__(self, priority_W: torch.Tensor) -> torch.Tensor:
        """Give `[windows, features]` for windows of these priorities."""
        return (_mixed(priority_W[:, None] ^ self.keys_F).double() + 0.5) / PRIORITIES


def _mixed(numbers: torch.Tensor) -> torch.Tensor:
    """Give a number below 2^31 for each number from 0 to 2^36, as good as drawn: shifts and products, as in SplitMix64."""
    for shift in (16, 15):
        numbers = ((numbers ^ (numbers >> shift)) * MIXER) & (PRIORITIES - 1)
    return numbers ^ (numbers >> 16)


def peak_keys(peaks_WF: torch.Tensor, drawn_WF: torch.Tensor) -> torch.Tensor:
    """Give keys that rank windows by peak, those equal up to rounding as drawn; 0 where nothing fires."""
    bits = peaks_WF.clamp(min=0).contiguous().view(torch.int32)
    rounded = (bits + 2 ** (ROUNDED_BITS - 1)) >> ROUNDED_BITS
    return torch.where(peaks_WF > 0, rounded + drawn_WF, 0)


def weighted_keys(drawn_WF: torch.Tensor, weights_W: torch.Tensor) -> torch.Tensor:
    """Give keys whose largest are a sample drawn without replacement in proportion to weights (Efraimidis and Spirakis 2006)."""
    return -weights_W[:, None] / drawn_WF.log()
