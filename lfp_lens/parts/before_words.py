"""What stands at the position before a word, where the model decides it: features to probe, and their direct path to the word.

The direct path is the first-order effect of a site on log p(word) that skips every later layer: the change of the site's
activation from base to another model, times the base's final norm (linearised at the place), times the word's unembedding row
minus the mean row under the base's own prediction (the gradient of log p). Nothing is fitted to any word's value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from lfp_lens.parts.signals import Seen
from lfp_lens.parts.sites import all_sites, final_norm
from lfp_lens.parts.word_passes import Look, log_probs


class BeforeWords:
    """Keeps each model's activations at the token before every wanted word; an observer of `read_words`."""

    def __init__(self, sites: Sequence[str], models: Sequence[int], wanted: Bool[np.ndarray, " words"]) -> None:
        self.sites = tuple(sites)
        self.wanted = wanted
        self._models = tuple(models)
        self._row_W = torch.tensor(np.where(wanted, np.cumsum(wanted) - 1, -1))
        self._n = int(wanted.sum())
        self._acts: dict[tuple[int, str], torch.Tensor] = {}

    def see_words(self, look: Look) -> None:
        """Take what is wanted of one batch."""
        places = look.places
        rows = self._row_W[places.word_N]
        keep = places.is_first_N & (rows >= 0)
        for model in self._models:
            for site in self.sites:
                part = look.acts[model][site][places.line_N[keep], places.at_N[keep] - 1].float()
                held = self._acts.setdefault((model, site), part.new_full((self._n, part.shape[1]), torch.nan))
                held[rows[keep]] = part

    def see_predictions(self, which: int, seen: Seen, word_N: np.ndarray) -> None:
        """Predictions are not wanted."""

    def raw(self, model: int) -> Float[np.ndarray, "rows width"]:
        """Give the activations themselves, sites side by side."""
        return torch.cat([self._acts[model, site] for site in self.sites], dim=1).cpu().numpy()

    def features(self, model: int, saes: Mapping[str, Any]) -> Float[np.ndarray, "rows features"]:
        """Give SAE features, sites side by side; the SAEs are where the models are."""
        with torch.no_grad():
            return torch.cat([saes[site].encode(self._acts[model, site]) for site in self.sites], dim=1).cpu().numpy()


@dataclass(frozen=True, eq=False)
class Dictionary:
    """SAEs by site, through which a change from the base is seen."""

    saes: Mapping[str, Any]
    """Site -> SAE; sites that it lacks count for nothing."""
    reads_change: bool = False
    """True if they were trained on the change itself (side `difference`); else each side is read, and the two subtracted."""

    def change(self, site: str, base_ND: torch.Tensor, other_ND: torch.Tensor) -> torch.Tensor:
        """Give what the SAE reconstructs of the change at one site `[N, D]`; biases cancel."""
        sae = self.saes[site]
        first, second = (torch.zeros_like(base_ND), other_ND - base_ND) if self.reads_change else (base_ND, other_ND)
        return sae.decode(sae.encode(second)) - sae.decode(sae.encode(first))


class DirectPath:
    """Adds up, word by word, the direct path of the change from the base to each other model, as dictionaries see it.

    The name `raw` needs no dictionary. `values[other, name]` is one number per word, in nats, summed over sites and over the
    word's tokens; an observer of `read_words`.
    """

    def __init__(
        self,
        base: Any,
        sites: Sequence[str],
        dictionaries: Mapping[str, Dictionary],
        others: Sequence[int],
        wanted: Bool[np.ndarray, " words"],
    ) -> None:
        self._last = all_sites(base, "hook_resid_post")[-1]
        self._inner = tuple(sites)
        self.sites = (*self._inner, self._last)
        self._base, self._dictionaries, self._others = base, dictionaries, tuple(others)
        self._wanted = torch.tensor(wanted)
        names = ("raw", *dictionaries)
        self.values = {(other, name): np.zeros(len(wanted)) for other in others for name in names}

    def see_words(self, look: Look) -> None:
        """Add one batch."""
        places = look.places
        keep = self._wanted[places.word_N].nonzero()[:, 0]
        if not len(keep):
            return
        line_N, at_N, word_N = places.line_N[keep], places.at_N[keep] - 1, places.word_N[keep].numpy()
        toward_ND = self._toward(look, line_N, at_N, places.ids_N[keep])
        for site in self._inner:
            base_ND = look.acts[0][site][line_N, at_N].float()
            for other in self._others:
                other_ND = look.acts[other][site][line_N, at_N].float()
                changes = {"raw": other_ND - base_ND}
                seen = {name: one for name, one in self._dictionaries.items() if site in one.saes}
                changes |= {name: one.change(site, base_ND, other_ND) for name, one in seen.items()}
                for name, change_ND in changes.items():
                    part = (change_ND * toward_ND).sum(-1).double().cpu().numpy()
                    np.add.at(self.values[other, name], word_N, part)

    def see_predictions(self, which: int, seen: Seen, word_N: np.ndarray) -> None:
        """Predictions are not wanted."""

    def _toward(self, look: Look, line_N: torch.Tensor, at_N: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
        """Give the gradient of the base's log p of each token with respect to the last block's output `[N, D]`."""
        with torch.enable_grad():
            resid_ND = look.acts[0][self._last][line_N, at_N].detach().requires_grad_()
            normed_ND = final_norm(self._base)(resid_ND)
            toward_ND = torch.zeros_like(resid_ND, dtype=torch.float32)
            for part, log_p_NV in log_probs(self._base, normed_ND):
                own = log_p_NV.gather(-1, ids_N[part, None].to(log_p_NV.device)).sum()
                toward_ND += torch.autograd.grad(own, resid_ND, retain_graph=True)[0].float()
        return toward_ND


class VocabularySweep:
    """The implicit reward of every token of the vocabulary, over the contexts in which words begin; an observer of `read_words`.

    A token's value is the mean of its context-centred change over those contexts, each weighted by the base's probability of
    the token there: what happens to it where the base model would say it.
    """

    sites: tuple[str, ...] = ()

    def __init__(self, others: int, vocabulary: int) -> None:
        self.weight_V = torch.zeros(vocabulary, dtype=torch.float64)
        """Exposure: the sum of the base's probabilities of each token."""
        self._square_V = torch.zeros_like(self.weight_V)
        self._sums = torch.zeros(others, 3, vocabulary, dtype=torch.float64)
        self.contexts = 0

    def see_words(self, look: Look) -> None:
        """Activations are not wanted."""

    def see_predictions(self, which: int, seen: Seen, word_N: np.ndarray) -> None:
        """Add a chunk of contexts: those before the first token of a word. Models after the first `others` are not swept."""
        if which >= len(self._sums):
            return
        base_NV = seen.base_NV[seen.is_first_N]
        p_NV, change_NV = base_NV.exp(), seen.other_NV[seen.is_first_N] - base_NV
        change_NV = change_NV - (p_NV * change_NV).sum(-1, keepdim=True)
        if which == 0:
            self.contexts += len(base_NV)
            self.weight_V += p_NV.sum(0).double().cpu()
            self._square_V += p_NV.square().sum(0).double().cpu()
        weighted_NV = p_NV * change_NV
        parts = (weighted_NV.sum(0), (p_NV * weighted_NV).sum(0), weighted_NV.square().sum(0))
        self._sums[which] += torch.stack([part.double().cpu() for part in parts])

    def result(self, which: int) -> tuple[Float[np.ndarray, " vocabulary"], Float[np.ndarray, " vocabulary"]]:
        """Give each token's value and its standard error over contexts, in nats."""
        first_V, second_V, third_V = self._sums[which]
        mean_V = first_V / self.weight_V
        # The delta method for a ratio of sums: squared weighted deviations, over the squared sum of weights.
        spread_V = third_V - 2 * mean_V * second_V + mean_V.square() * self._square_V
        return mean_V.numpy(), (spread_V.clamp(min=0).sqrt() / self.weight_V).numpy()
