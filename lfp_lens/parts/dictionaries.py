"""Dictionaries as interventions use them: features read at a site, and the direction each of them writes there.

An SAE is one; so are what it must be better than: neurons, principal components, the mean difference of two models. All are
read and changed in the same way, so a floor is asked exactly what an SAE is asked.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float

from lfp_lens.core.errors import LensError
from lfp_lens.parts.harvest import sides_of
from lfp_lens.parts.saes import load_sae
from lfp_lens.parts.sites import INNER_HOOK, down_projection, layer_of
from lfp_lens.results.train_sae import SAERecord

Read = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
ONE_BY_ONE = ("standard", "jumprelu")
"""SAELens architectures whose features do not depend on one another, so that a few of them can be read alone."""


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Features at one site: f = read(x), and what each of them adds to the site, f W_dec."""

    site: str
    """Where it reads and writes."""
    read: Read
    """Gives the features `[..., F]` of activations `[..., D]`; takes the base model's activations at the same tokens beside
    them, where `needs_base`."""
    W_dec: Float[torch.Tensor, "features width"]
    """The direction that each feature writes, per unit of activation."""
    side: str = "tuned"
    """What it was made from: `base`, `tuned`, `difference` or `both`."""
    _few: Callable[[torch.Tensor], Read] | None = None

    @property
    def n_features(self) -> int:
        """Number of features."""
        return len(self.W_dec)

    @property
    def needs_base(self) -> bool:
        """Whether features are read from the base model's activations too."""
        return "base" in sides_of(self.side) and self.side != "base"

    def some(self, indices: Sequence[int]) -> "Dictionary":
        """Give the dictionary of these features alone, in this order. Raises `LensError` for one that does not exist."""
        for index in indices:
            if not 0 <= index < self.n_features:
                raise LensError(
                    f"Feature {index} does not exist at {self.site}: its dictionary has features 0 to {self.n_features - 1}."
                )
        chosen = torch.tensor(list(indices), dtype=torch.long, device=self.W_dec.device)
        whole = self.read
        few = self._few(chosen) if self._few else lambda acts, base: whole(acts, base)[..., chosen]
        return replace(self, read=few, W_dec=self.W_dec[chosen], _few=None)


def as_dictionary(record: SAERecord, *, device: torch.device | str = "cpu") -> Dictionary:
    """Give an SAE as a dictionary.

    A dictionary of `difference` reads tuned - base; a crosscoder (`both`) reads the two side by side and writes its tuned
    half. Raises `LensError` for an SAE whose decoder scales its output token by token: its features add nothing up.
    """
    sae = load_sae(record, device=device)
    scaled = sae.cfg.normalize_activations
    if scaled not in ("none", "expected_average_only_in"):
        raise LensError(
            f"The SAE at {record.site} scales its output token by token (normalize_activations {scaled!r}), so a feature has no "
            "direction of its own: give an SAE whose scale is folded into its weights."
        )
    side = record.side
    W_dec = sae.W_dec.detach()
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        W_dec = W_dec / W_dec.norm(dim=-1, keepdim=True)
    if side == "both":
        W_dec = W_dec[:, W_dec.shape[1] // 2 :]

    def read(acts: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
        return sae.encode(joined(side, acts, base).float())

    few = _few(sae, side) if sae.cfg.architecture() in ONE_BY_ONE else None
    return Dictionary(record.site, read, W_dec.float(), side, few)


def joined(side: str, acts: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
    """Give what a dictionary of this side reads, from the activations of the model and of the base at the same tokens.

    Raises `LensError` where the base is needed and missing.
    """
    if side not in ("difference", "both"):
        return acts
    if base is None:
        raise LensError(f"A dictionary of {side!r} reads both models at the same tokens: give a pair, not one model.")
    return acts - base if side == "difference" else torch.cat([base, acts], dim=-1)


def _few(sae: Any, side: str) -> Callable[[torch.Tensor], Read]:
    """Give the reader of some features of an SAE whose features do not depend on one another."""
    shift = sae.b_dec if sae.cfg.apply_b_dec_to_input else None

    def some(chosen: torch.Tensor) -> Read:
        W_enc, b_enc = sae.W_enc[:, chosen].contiguous(), sae.b_enc[chosen]
        if shift is not None:
            b_enc = b_enc - shift @ W_enc
        threshold = sae.threshold[chosen] if hasattr(sae, "threshold") else None

        def read(acts: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
            before = joined(side, acts, base).to(W_enc.dtype) @ W_enc + b_enc
            features = before.relu()
            return features if threshold is None else features * (before > threshold)

        return read

    return some


def neurons(model: Any, site: str) -> Dictionary:
    """Give the MLP neurons of a site's layer as a dictionary: read and written where the MLP's down-projection reads them."""
    layer = layer_of(site)
    reader = down_projection(model, layer)
    # GPT-2 keeps its matrices the other way round, and names no width.
    n = getattr(reader, "in_features", None) or reader.weight.shape[0]
    eye = torch.eye(n, device=reader.weight.device)

    def few(chosen: torch.Tensor) -> Read:
        return lambda acts, base: acts[..., chosen].float()

    return Dictionary(f"blocks.{layer}.{INNER_HOOK}", lambda acts, base: acts.float(), eye, _few=few)


def components(site: str, mean_D: torch.Tensor, basis_CD: torch.Tensor, side: str) -> Dictionary:
    """Give orthonormal directions as a dictionary of two features each: how far an activation (of `difference`, the change)
    lies beyond the mean along the direction, and against it.

    A half-line has a mean of its own, as an SAE feature has, so that setting it to 0 shifts the site too. Signed components
    do not, and are the weaker floor.
    """
    own = "difference" if side == "difference" else "tuned"
    both_FD = torch.cat([basis_CD, -basis_CD])

    def few(chosen: torch.Tensor) -> Read:
        some_FD = both_FD[chosen]
        return lambda acts, base: ((joined(own, acts, base).float() - mean_D) @ some_FD.T).relu()

    return Dictionary(site, few(torch.arange(len(both_FD), device=both_FD.device)), both_FD, own, few)


def mean_difference(site: str, tuned_D: torch.Tensor, base_D: torch.Tensor) -> Dictionary:
    """Give the mean of tuned - base at a site as a dictionary of one feature that is always 1: removing it subtracts it."""
    return Dictionary(
        site, lambda acts, base: torch.ones_like(acts[..., :1], dtype=torch.float32), (tuned_D - base_D).float()[None]
    )


def mean_direction(site: str, tuned_D: torch.Tensor, base_D: torch.Tensor) -> Dictionary:
    """Give the direction of the mean difference as a dictionary of one feature: how far an activation lies along it from
    the base model's mean. Removing it projects the activation back."""
    change_D = (tuned_D - base_D).float()
    unit_D = change_D / change_D.norm().clamp(min=1e-12)
    return Dictionary(site, lambda acts, base: ((acts.float() - base_D.float()) @ unit_D)[..., None], unit_D[None])


def by_layer(dictionaries: Mapping[str, Dictionary]) -> dict[str, Dictionary]:
    """Give dictionaries by site in layer order, the inside of an MLP before its output."""
    return dict(sorted(dictionaries.items(), key=lambda item: (layer_of(item[0]), not item[0].endswith(INNER_HOOK))))
