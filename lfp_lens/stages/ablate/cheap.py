"""The cheap metric: what an edit does to predictions on fixed texts, with no sampling and so little variance.

It carries the controls: hundreds of matched random feature sets would be unaffordable on sampled completions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lfp_lens.parts.activations import Encoded, batches
from lfp_lens.parts.interventions import Edit, intervening
from lfp_lens.parts.sites import trunk
from lfp_lens.results.features import FeatureSet


@dataclass(frozen=True, eq=False)
class Reading:
    """What a model predicts on the reference texts, one value per text."""

    valence: Float[np.ndarray, " texts"]
    """Mean expected lexicon value of the next word."""
    log_p: Float[np.ndarray, " texts"]
    """Sum of log p of the text's tokens, in nats."""
    kl: Float[np.ndarray, " texts"]
    """Sum over tokens of KL(this || untouched), in nats; 0 for the untouched model itself."""
    tokens: Float[np.ndarray, " texts"]
    """Predicted tokens."""


def read(
    model: Any,
    texts: Sequence[Encoded],
    values_V: torch.Tensor,
    edits: Mapping[str, Edit],
    *,
    begin: int | None,
    with_kl: bool = False,
) -> Reading:
    """Read the model on the texts under the edits; with `with_kl` the untouched model is run beside it."""
    columns = np.zeros((4, len(texts)))
    with torch.no_grad():
        for batch in batches(texts, device=values_V.device, max_batch_tokens=4096):
            real = batch.mask_BS[:, 1:].bool()
            line_N = real.nonzero()[:, 0]
            with intervening(model, edits, begin=begin):
                log_probs_NV = _log_probs(model, batch.ids_BS, batch.mask_BS, real)
            probs_NV = log_probs_NV.exp()
            parts = [probs_NV @ values_V, log_probs_NV.gather(-1, batch.ids_BS[:, 1:][real][:, None])[:, 0]]
            if with_kl:
                clean_NV = _log_probs(model, batch.ids_BS, batch.mask_BS, real)
                parts.append((probs_NV * (log_probs_NV - clean_NV)).sum(-1))
            else:
                parts.append(torch.zeros_like(parts[0]))
            parts.append(torch.ones_like(parts[0]))
            for column, part in enumerate(parts):
                sums = torch.zeros(len(batch.rows), device=part.device).index_add_(0, line_N, part)
                columns[column, batch.rows] = sums.double().cpu().numpy()
    return Reading(columns[0] / columns[3], columns[1], columns[2], columns[3])


def _log_probs(model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Give log-probabilities `[N, V]` of the next token at real positions, from either kind of model."""
    if hasattr(model, "hook_dict"):
        logits_NV = model(ids_BS, attention_mask=mask_BS, return_type="logits")[:, :-1][real]
    else:
        from lfp_lens.parts.activations import unembed

        hidden = trunk(model)(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).last_hidden_state
        logits_NV = unembed(model, hidden[:, :-1][real])
    return torch.log_softmax(logits_NV.float(), dim=-1)


def matched_random_sets(features: FeatureSet, n: int, *, seed: int) -> list[dict[str, tuple[int, ...]]]:
    """Draw n sets of other features, each member matched to one of `features` on site, firing rate and decoder norm.

    A match is drawn from the ten unused features of the same site nearest in log firing rate and log decoder norm, both in
    units of their spread at that site. Where the set takes most of a site, members may be drawn again.
    """
    generator = np.random.default_rng(seed)
    near = {site: _neighbours(features, site, own) for site, own in features.by_site().items()}
    sets = []
    for _ in range(n):
        drawn: dict[str, tuple[int, ...]] = {}
        for site, candidates in near.items():
            picked: list[int] = []
            for options in candidates:
                free = [index for index in options if index not in picked][:10] or list(options[:10])
                picked.append(int(generator.choice(free)))
            drawn[site] = tuple(picked)
        sets.append(drawn)
    return sets


def _neighbours(features: FeatureSet, site: str, own: tuple[int, ...]) -> list[np.ndarray]:
    """Give, for each chosen feature, the site's other features from nearest to furthest."""
    record = features.sae(site)
    norms = np.linalg.norm(record.weights.tensors["W_dec"], axis=1)
    traits = np.stack([np.log(record.firing_rate + 1e-4), np.log(norms + 1e-8)], axis=1)
    traits = traits / np.maximum(traits.std(axis=0), 1e-6)
    others = np.array([index for index in range(record.n_features) if index not in own])
    if not len(others):
        others = np.arange(record.n_features)
    return [others[np.argsort(((traits[others] - traits[index]) ** 2).sum(1), kind="stable")] for index in own]
