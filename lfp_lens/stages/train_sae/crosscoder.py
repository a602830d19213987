"""How a crosscoder starts, and latent scaling: which of its features the other model lacks (arXiv 2504.02922, section 2.3).

For a feature f with direction d in its owner (the model with the longer decoder half), each model m is fitted by least squares,

    target_m(token) = beta_m f(token) d + constant,    scaling = beta_other / beta_owner,

with two targets: the activation minus what all *other* features reconstruct (that is the error plus the feature's own part;
a high scaling means that training shrank the feature in the other model), and the whole reconstruction (a high scaling means
that other features stand for it there). The paper fits no constant; with one, a mean that moved between the models counts for
nothing. Everything needed is a sum over tokens: f, f^2, and f times the target's part along d.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lfp_lens.core.errors import LensError
from lfp_lens.parts.saes import load_weights
from lfp_lens.results.crosscoder import Crosscoder
from lfp_lens.results.train_sae import SAEWeights

Chunk = tuple[Float[torch.Tensor, "tokens width"], Float[torch.Tensor, "tokens width"]]
"""Activations of base and tuned at the same tokens."""
MAX_GROUPS = 64
"""Chunks beyond these join the first ones in turn, which bounds the memory of the intervals."""
DRAWS = 1000
"""Bootstrap draws of each interval."""
FEATURES_AT_ONCE = 512
DRAWN_WITH = 0.9
"""Share of draws in which a feature must fire for its interval to mean anything."""
LEARNING_RATE = 3e-3
"""Of crosscoders, falling to a tenth over the second half of the steps: see `start_with_unit_rows`."""
MODELS = ("base", "tuned")
TARGETS = ("error", "reconstruction")


def start_with_unit_rows(sae: Any) -> None:
    """Give a fresh crosscoder decoder rows of length 1 and the same rows as encoder, in place.

    SAELens starts with rows of length 0.1. On some seeds of planted pairs a feature of one model alone was then merged into
    others (docs/decisions/crosscoders.md); why is not known.
    """
    with torch.no_grad():
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        sae.W_enc.copy_(sae.W_dec.T)


def compare(
    weights: SAEWeights,
    chunks: Callable[[], Iterator[Chunk]],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Crosscoder:
    """Tell for every feature of a crosscoder which model has it, from one pass over held-out activations.

    Args:
        weights: a dictionary on concatenated activations, base first: its width is twice the site's.
        chunks: gives (base, tuned) activations, [tokens, width] each, row by row the same tokens. A chunk is what intervals
            resample, so it should hold whole texts; at least 2, better 20 or more.
        seed: of the bootstrap.
        device: where to compute.

    Memory: a few matrices of features x width and of chunk tokens x features, and 64 vectors of sums per feature.

    Raises:
        LensError: for a width that does not fit, activations that are not finite or differ in number, or fewer than 2 chunks.
    """
    sae = load_weights(weights, device=device)
    width, odd = divmod(sae.W_dec.shape[1], 2)
    if odd:
        raise LensError(
            f"A crosscoder reads two activations of one width; this dictionary reads {sae.W_dec.shape[1]} numbers. Train it "
            "with side='both'."
        )
    halves = {"base": sae.W_dec[:, :width], "tuned": sae.W_dec[:, width:]}
    norms = {model: half.norm(dim=1) for model, half in halves.items()}
    owned = norms["tuned"] >= norms["base"]
    directions_FD = torch.where(owned[:, None], halves["tuned"], halves["base"])
    sums = _Sums(len(owned))
    with torch.no_grad():
        for number, (base_ND, tuned_ND) in enumerate(chunks()):
            both = torch.cat(_checked(base_ND, tuned_ND, width), dim=1).to(device)
            sums.add(number % MAX_GROUPS, sae, both.float(), directions_FD)
    if sums.n_groups < 2:
        raise LensError(f"Latent scaling needs at least 2 chunks of tokens for its intervals; {sums.n_groups} given.")
    overlaps = {model: (half * directions_FD).sum(1).double().cpu().numpy() for model, half in halves.items()}
    return _crosscoder(sums, norms, halves, owned.cpu().numpy(), overlaps, seed)


def _checked(base_ND: torch.Tensor, tuned_ND: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    for name, given in (("base", base_ND), ("tuned", tuned_ND)):
        if given.ndim != 2 or given.shape[1] != width or given.shape != base_ND.shape:
            raise LensError(
                f"This crosscoder reads {width} numbers per token of each model, at the same tokens; activations of shape "
                f"{tuple(given.shape)} given for {name} ({tuple(base_ND.shape)} for base)."
            )
        if not torch.isfinite(given).all():
            raise LensError(
                f"The {name} activations are not all finite numbers: check the checkpoint and its precision."
            )
    return base_ND, tuned_ND


class _Sums:
    """Sums over tokens for each group of chunks, per feature: [groups, features] once finished."""

    def __init__(self, n_features: int) -> None:
        names = [
            "f",
            "ff",
            *(f"{part} {target} {model}" for part in ("y", "fy") for target in TARGETS for model in MODELS),
        ]
        self.by_name = {name: np.zeros((MAX_GROUPS, n_features)) for name in names}
        self.tokens = np.zeros(MAX_GROUPS)
        self.firings = np.zeros(n_features, np.int64)

    @property
    def n_groups(self) -> int:
        """Groups that hold a token."""
        return int((self.tokens > 0).sum())

    def add(self, group: int, sae: torch.nn.Module, both_ND: torch.Tensor, directions_FD: torch.Tensor) -> None:
        """Add a chunk of [base; tuned] activations."""
        features_NF = sae.encode(both_ND)
        rebuilt_ND = sae.decode(features_NF)
        self.tokens[group] += len(both_ND)
        self.firings += (features_NF > 0).sum(0).cpu().numpy()
        self._count(group, "f", features_NF.sum(0))
        self._count(group, "ff", features_NF.square().sum(0))
        for target, y_ND in (("error", both_ND - rebuilt_ND), ("reconstruction", rebuilt_ND)):
            for model, part_ND in zip(MODELS, y_ND.chunk(2, dim=1)):
                self._count(group, f"y {target} {model}", directions_FD @ part_ND.sum(0))
                along_F = ((features_NF.T @ part_ND) * directions_FD).sum(1)
                self._count(group, f"fy {target} {model}", along_F)

    def _count(self, group: int, name: str, values_F: torch.Tensor) -> None:
        self.by_name[name][group] += values_F.double().cpu().numpy()

    def scalings(
        self, target: str, owned: np.ndarray, overlaps: dict[str, np.ndarray], weights: np.ndarray, part: slice
    ) -> Float[np.ndarray, "draws part"]:
        """Give beta_other / beta_owner of a part of the features when groups count as often as `weights` ([draws, groups]) says.

        The common factor 1 / (|d|^2 var(f)) of both betas cancels. NaN where the owner does not have the feature either.
        """
        total = {
            name: weights @ values[:, part]
            for name, values in self.by_name.items()
            if target in name or name in ("f", "ff")
        }
        tokens = weights @ self.tokens[:, None]
        variance = total["ff"] - total["f"] ** 2 / tokens
        fits = {}
        for model in MODELS:
            fits[model] = total[f"fy {target} {model}"] - total["f"] * total[f"y {target} {model}"] / tokens
            if target == "error":
                fits[model] += overlaps[model][part] * variance
        owner = np.where(owned[part], fits["tuned"], fits["base"])
        other = np.where(owned[part], fits["base"], fits["tuned"])
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(owner > 0, other / owner, np.nan)


def _crosscoder(
    sums: _Sums, norms: dict[str, torch.Tensor], halves: dict[str, torch.Tensor], owned: np.ndarray,
    overlaps: dict[str, np.ndarray], seed: int,
) -> Crosscoder:  # fmt: skip
    everything, whole = slice(None), np.ones((1, MAX_GROUPS))
    low, high = _interval(sums, owned, overlaps, seed)
    base, tuned = (norms[model].double().cpu().numpy() for model in MODELS)
    inner = (halves["base"] * halves["tuned"]).sum(1).double().cpu().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.where(base * tuned > 0, inner / (base * tuned), np.nan)
    error, reconstruction = (sums.scalings(target, owned, overlaps, whole, everything)[0] for target in TARGETS)
    return Crosscoder(
        base_norm=base, tuned_norm=tuned, cosine=cosine, scaling=error, scaling_low=low, scaling_high=high,
        reconstruction_scaling=reconstruction, firings=sums.firings, n_tokens=int(sums.tokens.sum()), n_chunks=sums.n_groups,
    )  # fmt: skip


def _interval(
    sums: _Sums, owned: np.ndarray, overlaps: dict[str, np.ndarray], seed: int
) -> Float[np.ndarray, "2 features"]:
    """Give both ends of the 95 % percentile interval of the error's scaling; NaN for features hardly ever drawn."""
    used = np.flatnonzero(sums.tokens > 0)
    drawn = np.zeros((DRAWS, MAX_GROUPS))
    drawn[:, used] = np.random.default_rng(seed).multinomial(len(used), np.full(len(used), 1 / len(used)), size=DRAWS)
    ends = np.full((2, len(owned)), np.nan)
    for start in range(0, len(owned), FEATURES_AT_ONCE):
        part = slice(start, start + FEATURES_AT_ONCE)
        found = sums.scalings("error", owned, overlaps, drawn, part)
        enough = np.isfinite(found).mean(axis=0) > DRAWN_WITH
        if enough.any():
            ends[:, part][:, enough] = np.nanquantile(found[:, enough], (0.025, 0.975), axis=0)
    return ends
