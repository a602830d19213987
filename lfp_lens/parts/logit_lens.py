"""The logit lens of decoder rows: which tokens a feature makes likelier through the unembedding alone.

A row is what one unit of the feature adds to the residual stream. It is centred where the final norm centres, scaled by that
norm's weight, and unembedded; what later layers make of it, and the norm's division, are left out (nostalgebraist 2020).
"""

from typing import Any

import torch
from torch import nn

from lfp_lens.parts.sites import final_norm, is_inner

SHOWN, BLOCK = 10, 64


def promoted(
    model: Any, tokenizer: Any, site: str, rows_FD: torch.Tensor
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Give for each decoder row the tokens it makes likelier and those it makes less likely, the first the most.

    Nothing inside an MLP, whose features do not write into the residual stream.
    """
    if is_inner(site):
        return [((), ())] * len(rows_FD)
    norm, unembedding_VD = final_norm(model), model.get_output_embeddings().weight.detach().float()
    unembedding_VD = unembedding_VD[: len(tokenizer)]
    rows_FD = rows_FD.to(unembedding_VD)
    if isinstance(norm, nn.LayerNorm):
        rows_FD = rows_FD - rows_FD.mean(-1, keepdim=True)
    weight = getattr(norm, "weight", None)
    if weight is not None:
        # Gemma's norm multiplies by 1 + weight.
        rows_FD = rows_FD * (weight.detach().float() + ("Gemma" in type(norm).__name__))
    found = []
    for block_FD in rows_FD.split(BLOCK):
        logits_FV = block_FD @ unembedding_VD.T
        k = min(SHOWN, logits_FV.shape[1])
        for most, least in zip(logits_FV.topk(k).indices.tolist(), (-logits_FV).topk(k).indices.tolist()):
            found.append((spelled(tokenizer, most), spelled(tokenizer, least)))
    return found


def spelled(tokenizer: Any, ids: list[int]) -> tuple[str, ...]:
    """Give tokens as text."""
    return tuple(tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids)
