"""Running sums from which the reconstruction figures of every dictionary follow; no activations are kept.

Sums are by text and in fp64, so that texts can be resampled and large means do not drown small variances.
"""

from typing import Any

import numpy as np
import torch

from lfp_lens.core.errors import LensError

CONSTANT = 1e-13
"""Variance below this share of the mean square is rounding of fp32: the activations are the same at every token."""


class Moments:
    """Count, sum and sum of squares of one stream's activations, by text."""

    def __init__(self, n_texts: int, stream: tuple[str, str]) -> None:
        self.stream = stream
        self.count_T = torch.zeros(n_texts, dtype=torch.float64)
        self.square_T = torch.zeros(n_texts, dtype=torch.float64)
        self.sum_TD = torch.zeros(0, dtype=torch.float64)

    def add(self, acts_ND: torch.Tensor, text_N: torch.Tensor) -> None:
        """Take in activations and the text of each. Raises `LensError` if one is not finite."""
        acts_ND = acts_ND.double().cpu()
        square_N = acts_ND.square().sum(1)
        if not torch.isfinite(square_N).all():
            side, site = self.stream
            raise LensError(
                f"The {side} activations at {site} are not finite on the held-out text: no SAE can be judged there."
            )
        if not len(self.sum_TD):
            self.sum_TD = acts_ND.new_zeros(len(self.count_T), acts_ND.shape[1])
        self.count_T.index_add_(0, text_N, torch.ones_like(square_N))
        self.square_T.index_add_(0, text_N, square_N)
        self.sum_TD.index_add_(0, text_N, acts_ND)

    @property
    def n_tokens(self) -> int:
        """Tokens taken in."""
        return int(self.count_T.sum())

    def variance(self, times_RT: np.ndarray) -> np.ndarray:
        """Give the summed squared distance to the mean when text t is counted `times_RT[r, t]` times, for every r."""
        total_RD = times_RT @ self.sum_TD.numpy()
        return times_RT @ self.square_T.numpy() - np.square(total_RD).sum(1) / (times_RT @ self.count_T.numpy())

    def whole_variance(self) -> float:
        """Give the same with every text once. Raises `LensError` if the activations are the same at every token."""
        found = float(self.variance(np.ones((1, len(self.count_T))))[0])
        if found <= CONSTANT * float(self.square_T.sum()):
            side, site = self.stream
            hint = " Base and tuned do not differ there." if side == "difference" else ""
            raise LensError(
                f"The {side} activations at {site} are the same at every held-out token: no SAE can be judged there.{hint}"
            )
        return found


class Reconstruction:
    """What one dictionary makes of a stream."""

    def __init__(self, sae: Any, n_texts: int) -> None:
        self.sae = sae
        self.error_T = torch.zeros(n_texts, dtype=torch.float64)
        self.fires_F = torch.zeros(len(sae.W_dec), dtype=torch.float64)
        self.ratio, self.rated, self.values, self.count = 0.0, 0, 0, 0

    def add(self, acts_ND: torch.Tensor, text_N: torch.Tensor) -> None:
        """Encode, decode and count."""
        features_NF = self.sae.encode(acts_ND)
        made_ND = self.sae.decode(features_NF)
        self.error_T.index_add_(0, text_N, (made_ND - acts_ND).square().sum(1, dtype=torch.float64).cpu())
        self.fires_F += torch.count_nonzero(features_NF > 0, dim=0).cpu()
        norm_N = acts_ND.norm(dim=1)
        has_norm = norm_N > 0
        self.ratio += float((made_ND.norm(dim=1)[has_norm] / norm_N[has_norm]).sum())
        self.rated += int(has_norm.sum())
        self.values += acts_ND.numel()
        self.count += len(acts_ND)

    def figures(self, variance: float) -> dict[str, Any]:
        """Give the fields that a record and a floor share, and the mean squared error."""
        rate_F = (self.fires_F / self.count).numpy()
        error = float(self.error_T.sum())
        return {
            "explained_variance": 1 - error / variance,
            "l0": float(rate_F.sum()),
            "dead_share": float((rate_F == 0).mean()),
            "shrinkage": 1 - self.ratio / max(1, self.rated),
            "firing_rate": rate_F,
            "mse": error / self.values,
        }


class Components:
    """Principal components of a stream as a dictionary, for every number of them at once.

    They are fitted on other text than they are judged on. n components are a dictionary of 2n features, one for each
    sign, of which n are active at every token; their figures are those of that dictionary, without running it.
    """

    def __init__(self, fit_ND: torch.Tensor) -> None:
        acts_ND = fit_ND.double().cpu()
        self.mean_D = acts_ND.mean(0)
        centred_ND = acts_ND - self.mean_D
        basis_DD = torch.linalg.eigh(centred_ND.T @ centred_ND).eigenvectors.flip(1)
        self.basis_DC = basis_DD[:, : max(1, min(acts_ND.shape[1], len(acts_ND) - 1))]
        n = self.basis_DC.shape[1]
        self.square_C, self.ratio_C, self.up_C, self.down_C = (torch.zeros(n, dtype=torch.float64) for _ in range(4))
        self.total, self.rated, self.count = 0.0, 0, 0

    def add(self, acts_ND: torch.Tensor) -> None:
        """Project and count."""
        acts_ND = acts_ND.double().cpu()
        centred_ND = acts_ND - self.mean_D
        along_NC = centred_ND @ self.basis_DC
        norm_N = acts_ND.norm(dim=1)
        has_norm = norm_N > 0
        # |mean + sum of along v|^2 = |mean|^2 + sum of along^2 + 2 along (mean . v), for every number of components.
        step_NC = along_NC.square() + 2 * along_NC * (self.mean_D @ self.basis_DC)
        made_NC = (self.mean_D.square().sum() + step_NC.cumsum(1)).clamp(min=0).sqrt()
        self.ratio_C += (made_NC[has_norm] / norm_N[has_norm, None]).sum(0)
        self.square_C += along_NC.square().sum(0)
        self.up_C += (along_NC > 0).sum(0)
        self.down_C += (along_NC < 0).sum(0)
        self.total += float(centred_ND.square().sum())
        self.rated += int(has_norm.sum())
        self.count += len(acts_ND)

    def number(self, l0: float) -> int:
        """Give how many components stand beside an SAE with this many active features: at least one."""
        return max(1, min(round(l0), self.basis_DC.shape[1]))

    def figures(self, n: int, variance: float) -> dict[str, Any]:
        """Give a floor's fields for the first `n` components."""
        rate_F = (torch.cat([self.up_C[:n], self.down_C[:n]]) / self.count).numpy()
        return {
            "explained_variance": 1 - (self.total - float(self.square_C[:n].sum())) / variance,
            "l0": float(rate_F.sum()),
            "dead_share": float((rate_F == 0).mean()),
            "shrinkage": 1 - float(self.ratio_C[n - 1]) / max(1, self.rated),
            "firing_rate": rate_F,
        }
