"""The edits of one call: ablation under every mode, reconstruction alone, and the reverse."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lfp_lens.parts.dictionaries import Dictionary
from lfp_lens.parts.interventions import Edit, feature_edit, reconstruction_edit
from lfp_lens.results.features import FeatureSet

Chosen = Mapping[str, Sequence[int]]
"""Site -> indices of features."""


class Edits:
    """Makes edits of some dictionaries, with one model's features on reference text for mean- and resample-ablation.

    Args:
        dictionaries: by site.
        reference: site -> features `[tokens, F]` on reference text.
        seed: of what is drawn for resampling.
    """

    def __init__(
        self, dictionaries: Mapping[str, Dictionary], reference: Mapping[str, torch.Tensor], *, seed: int
    ) -> None:
        self.dictionaries, self.reference, self.seed = dictionaries, reference, seed

    @property
    def needs_base(self) -> bool:
        """Whether any dictionary reads the base model too."""
        return any(dictionary.needs_base for dictionary in self.dictionaries.values())

    def __call__(self, chosen: Chosen, mode: str, scale: float = 0.0) -> dict[str, Edit]:
        """Give site -> edit of these features."""
        return {
            site: feature_edit(
                self.dictionaries[site], indices, mode=mode, scale=scale, reference_MF=self.reference[site], seed=self.seed
            )
            for site, indices in chosen.items()
        }  # fmt: skip


def reconstructed(features: FeatureSet, *, device: Any) -> dict[str, Edit]:
    """Give the edits that put each SAE's reconstruction in its site's place and remove no feature."""
    return {site: reconstruction_edit(features.sae(site), device=device) for site in features.by_site()}


def patched(dictionaries: Mapping[str, Dictionary], chosen: Chosen) -> dict[str, Edit]:
    """Give the edits of the base that set chosen features to what the tuned model has: the reverse of ablation.

    They are called with the base's activations and the tuned model's at the same tokens: y = x + (f_tuned - f_base) W_dec. Where
    an earlier site was patched too, x is what the base has by then, so that a feature becomes the tuned model's and no more.
    """
    return {site: _patch(dictionaries[site].some(list(indices))) for site, indices in chosen.items()}


def _patch(some: Dictionary) -> Edit:
    def edit(acts: torch.Tensor, tuned: torch.Tensor, place: torch.Tensor | None = None) -> torch.Tensor:
        return acts + ((some.read(tuned, acts) - some.read(acts, acts)) @ some.W_dec).to(acts.dtype)

    return edit
