"""`diverge`: how far each layer moved, in weights, activations and predictions (arXiv 2310.08164, 3.2 and appendix C)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lfp_lens.core.store import Store, keep
from lfp_lens.parts.activations import Batch, batches, encode, unembed
from lfp_lens.parts.merging import change_norm
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.sites import blocks, trunk, watching
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.results.diverge import Divergence

CHUNK_VALUES = 2**23


def diverge(
    pair: Pair, texts: Sequence[str], *, max_tokens: int = 128, seed: int = 0, store: Store | None = None
) -> Divergence:
    """Measure the distance between base and tuned at every layer.

    Args:
        pair: base and tuned.
        texts: held-out texts for activations and KL; each is cut to `max_tokens`.
        max_tokens: longest text, in tokens.
        seed: kept with the result; nothing here is random.
        store: a run's store, or None.

    Returns:
        Parameter divergence as published (sum of per-tensor L2 norms) and relative to the base, activation divergence,
        and KL by position; `.top(k)` gives the sites to train SAEs at.

    Raises:
        LensError: if there are no texts.

    Source: arXiv 2310.08164, section 3.2; tensors are matched by name, in fp32. The change of a LoRA adapter (`pair.adapter`)
    is measured in closed form, in fp64, and is 0 wherever the adapter is not.

    >>> diverge(pair, texts).top(5)  # doctest: +SKIP
    """
    inputs = dict(locals())

    def make(folder: Path | None) -> Divergence:
        with fast_matmul():
            parameters = _parameters(pair)
            activations = _activations(pair, texts, pair.room(max_tokens))
        return Divergence(sites=pair.sites, n_texts=len(texts), **parameters, **activations)

    return keep(store, "diverge", inputs, make)


def _parameters(pair: Pair) -> dict[str, Any]:
    """Give every parameter measure, one value per layer."""
    rows = []
    for base, tuned in zip(blocks(pair.base_hf), blocks(pair.tuned_hf)):
        change = _change(pair, base, tuned)
        size = {name: float(weight.detach().float().norm()) for name, weight in base.named_parameters()}
        rows.append(
            {
                "parameter_sum": sum(change.values()),
                "parameter_l2": _l2(change.values()),
                "parameter_relative": _l2(change.values()) / _l2(size.values()),
                "mlp_relative": _relative(change, size, "mlp"),
                "attention_relative": _relative(change, size, "att"),
            }
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _change(pair: Pair, base: torch.nn.Module, tuned: torch.nn.Module) -> dict[str, float]:
    """Give the norm of each tensor's change: of a low-rank adapter in closed form, without the rounding of the sum."""
    if pair.adapter is not None:
        whole = {weight: name for name, weight in pair.base_hf.named_parameters()}
        factors = {name: pair.adapter.get(whole[weight]) for name, weight in base.named_parameters()}
        return {name: 0.0 if found is None else change_norm(found) for name, found in factors.items()}
    moved = dict(tuned.named_parameters())
    return {
        name: float((moved[name].detach().float() - weight.detach().float()).norm())
        for name, weight in base.named_parameters()
    }


def _l2(norms: Any) -> float:
    return float(np.sqrt(sum(norm**2 for norm in norms)))


def _relative(change: dict[str, float], size: dict[str, float], part: str) -> float:
    """Relative change of the tensors inside the block's MLP or attention module (`attention`, `attn`, `self_attn`)."""
    names = [name for name in change if any(piece.removeprefix("self_").startswith(part) for piece in name.split("."))]
    base = _l2(size[name] for name in names)
    return _l2(change[name] for name in names) / base if base else 0.0


def _activations(pair: Pair, texts: Sequence[str], max_tokens: int) -> dict[str, Any]:
    """Run both models once over the texts and compare every site and every prediction, at real tokens only."""
    n_layers = len(pair.sites)
    squared = np.zeros((2, n_layers))
    cosine = np.zeros(n_layers)
    kl_sum, kl_count = np.zeros(max_tokens), np.zeros(max_tokens, dtype=int)
    encoded = encode(pair.tokenizer, texts, max_tokens=max_tokens)
    with torch.no_grad():
        for batch in tqdm(list(batches(encoded, device=pair.device)), desc="diverge"):
            real = batch.mask_BS.bool()
            (base_acts, base_hidden), (tuned_acts, tuned_hidden) = (
                _run(pair, side, batch) for side in ("base", "tuned")
            )
            for layer, site in enumerate(pair.sites):
                base_ND, tuned_ND = base_acts[site][real].float(), tuned_acts[site][real].float()
                squared[0, layer] += float((tuned_ND - base_ND).square().sum())
                squared[1, layer] += float(base_ND.square().sum())
                cosine[layer] += float(torch.cosine_similarity(base_ND, tuned_ND, dim=-1).sum())
            places = real.nonzero()[:, 1].cpu().numpy()
            np.add.at(kl_sum, places, _kl(pair, base_hidden[real], tuned_hidden[real]))
            np.add.at(kl_count, places, 1)
    reached = kl_count > 0
    n_tokens = int(kl_count.sum())
    return {
        "activation_relative": np.sqrt(squared[0] / squared[1]),
        "activation_cosine_distance": 1 - cosine / n_tokens,
        "kl_by_position": kl_sum[reached] / kl_count[reached],
        "tokens_by_position": kl_count[reached],
        "n_tokens": n_tokens,
    }


def _run(pair: Pair, side: str, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    model = pair.hf(side)
    with watching(model, pair.sites) as found:
        hidden = trunk(model)(input_ids=batch.ids_BS, attention_mask=batch.mask_BS, use_cache=False).last_hidden_state
    return found, hidden


def _kl(pair: Pair, base_ND: torch.Tensor, tuned_ND: torch.Tensor) -> np.ndarray:
    """Give KL(tuned || base) of the next token at each position, in nats."""
    step = max(16, CHUNK_VALUES // pair.tuned_hf.config.vocab_size)
    parts = []
    for start in range(0, len(base_ND), step):
        tuned_NV, base_NV = (
            torch.log_softmax(unembed(model, hidden[start : start + step]).float(), dim=-1)
            for model, hidden in ((pair.tuned_hf, tuned_ND), (pair.base_hf, base_ND))
        )
        parts.append((tuned_NV.exp() * (tuned_NV - base_NV)).sum(-1).cpu())
    return torch.cat(parts).double().numpy()
