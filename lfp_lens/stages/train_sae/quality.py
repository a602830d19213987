"""How good an SAE is on text it never saw, and how good it was before training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lfp_lens.parts.activations import Batch, Encoded, batches, hidden_states, unembed
from lfp_lens.parts.interventions import Edit, intervening, reconstruction_edit
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import load_weights
from lfp_lens.parts.sites import activations_at
from lfp_lens.results.train_sae import SAEWeights


def measure_quality(
    pair: Pair,
    side: str,
    dictionaries: Mapping[tuple[str, float], tuple[SAEWeights, SAEWeights]],
    heldout: Sequence[Encoded],
    n_tokens: int,
) -> dict[tuple[str, float], dict[str, Any]]:
    """Give the quality fields of every (site, size) from at most `n_tokens` held-out tokens.

    `dictionaries` holds each SAE as trained and as initialised. What a splice costs is measured against the model's own
    predictions: KL recovered = 1 - KL(clean || spliced) / KL(clean || zeroed); CE recovered is the same by loss on the text.
    """
    chosen = _up_to(heldout, n_tokens)
    sites = list(dict.fromkeys(site for site, _ in dictionaries))
    acts = _activations(pair, side, sites, chosen)
    found: dict[tuple[str, float], dict[str, Any]] = {}
    with torch.no_grad():
        saes = {key: [load_weights(part, device=pair.device) for part in both] for key, both in dictionaries.items()}
        edits: dict[Any, tuple[str, Edit]] = {("zero", site): (site, torch.zeros_like) for site in sites}
        edits |= {key: (key[0], reconstruction_edit(both[0])) for key, both in saes.items()}
        clean_ce, kl, ce = _splice_costs(pair, side, chosen, edits)
        for (site, size), both in saes.items():
            facts = _reconstruction(acts[site], *both)
            gap, zero = ce["zero", site] - clean_ce, kl["zero", site]
            facts["kl_recovered"] = 1 - kl[site, size] / zero if zero > 0 else float("nan")
            facts["ce_recovered"] = (ce["zero", site] - ce[site, size]) / gap if gap > 0 else float("nan")
            found[site, size] = facts
    return found


def _reconstruction(acts_ND: torch.Tensor, sae: Any, untrained: Any) -> dict[str, Any]:
    features_NF = sae.encode(acts_ND)
    error = (sae.decode(features_NF) - acts_ND).square()
    variance = (acts_ND - acts_ND.mean(0)).square().sum()
    rate = (features_NF > 0).double().mean(0).cpu().numpy()
    return {
        "explained_variance": float(1 - error.sum() / variance),
        "untrained_explained_variance": float(1 - (untrained(acts_ND) - acts_ND).square().sum() / variance),
        "l0": float(rate.sum()),
        "dead_share": float((rate == 0).mean()),
        "mse": float(error.mean()),
        "firing_rate": rate,
        "n_heldout_tokens": len(acts_ND),
    }


def _up_to(heldout: Sequence[Encoded], n_tokens: int) -> list[Encoded]:
    """Take texts until they hold `n_tokens`."""
    sizes = np.cumsum([len(text.ids) for text in heldout])
    return list(heldout[: max(1, int(np.searchsorted(sizes, n_tokens)))])


def _activations(pair: Pair, side: str, sites: list[str], chosen: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    parts: dict[str, list[torch.Tensor]] = {site: [] for site in sites}
    for batch in batches(chosen, device=pair.device):
        acts = activations_at(pair.hf(side), batch.ids_BS, batch.mask_BS, sites)
        kept = batch.content(pair.tokenizer.bos_token_id)
        for site in sites:
            parts[site].append(acts[site][kept].float())
    return {site: torch.cat(found) for site, found in parts.items()}


def _splice_costs(
    pair: Pair, side: str, chosen: Sequence[Encoded], edits: Mapping[Any, tuple[str, Edit]]
) -> tuple[float, dict[Any, float], dict[Any, float]]:
    """Give the clean loss, and KL(clean || edited) and loss under each edit, in nats per token.

    Each batch runs once untouched and once per edit; edits act everywhere but on the beginning-of-text token.
    """
    model, begin = pair.hf(side), pair.tokenizer.bos_token_id
    totals = dict.fromkeys(edits, (0.0, 0.0))
    clean_total, count = 0.0, 0
    for batch in batches(chosen, device=pair.device, max_batch_tokens=2048):
        real = batch.mask_BS[:, 1:].bool()
        wanted = batch.ids_BS[:, 1:][real][:, None]
        clean_NV = _log_probs(model, batch, real)
        probs_NV = clean_NV.exp()
        clean_total -= float(clean_NV.gather(-1, wanted).sum())
        count += len(wanted)
        for key, (site, edit) in edits.items():
            with intervening(model, {site: edit}, begin=begin):
                edited_NV = _log_probs(model, batch, real)
            kl = float((probs_NV * (clean_NV - edited_NV)).sum())
            totals[key] = (totals[key][0] + kl, totals[key][1] - float(edited_NV.gather(-1, wanted).sum()))
    kls, losses = ({key: total[at] / count for key, total in totals.items()} for at in (0, 1))
    return clean_total / count, kls, losses


def _log_probs(model: Any, batch: Batch, real: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(unembed(model, hidden_states(model, batch)[:, :-1][real]).float(), dim=-1)
