"""What can be read of a continuation after its prompt, one row per text: means over the continuation's own tokens.

The published collector averaged over all positions, padding among them (arXiv 2310.08164, public code), so a row depended
on what it was batched with. Here no padding and no prompt enters a mean, though both models read the prompt.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from sys import maxsize
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lfp_lens.core.errors import LensError
from lfp_lens.parts.activation_cache import ActivationCache, Place
from lfp_lens.parts.activations import Encoded, batches, encode, hidden_states, next_token_log_probs
from lfp_lens.parts.sites import activations_at

CHUNK_VALUES = 2**24
"""Feature values held at once."""
HELD_AT_ONCE = 64
"""Texts read from a cache at once."""


@dataclass(frozen=True, eq=False)
class Continuation:
    """A continuation after the end of its prompt, as tokens."""

    encoded: Encoded
    """Both, beginning-of-text first where the tokenizer has one."""
    tokens: range
    """Positions of the continuation's tokens; empty where it has none of its own."""
    is_cut: bool
    """True if the prompt lost its beginning or the continuation its end."""


def encode_continuations(
    tokenizer: Any, prompts: Sequence[str], continuations: Sequence[str], *, max_tokens: int
) -> list[Continuation]:
    """Tokenise prompt and continuation as one text, with at most `max_tokens` tokens.

    A prompt keeps its last tokens, at most half of the room, and the continuation its first ones in what is left: how much
    of a prompt is seen does not depend on what follows it, so it cannot tell the members of a triple apart. A token that
    holds letters of both is no token of the continuation.

    Raises `LensError` as `encode` does, or if `max_tokens` leaves no room for both.
    """
    whole = encode(tokenizer, [*map(str.__add__, prompts, continuations)], max_tokens=maxsize)
    n_begin = 0 if tokenizer.bos_token_id is None else 1
    room = max_tokens - n_begin
    if room < 2:
        raise LensError(f"max_tokens={max_tokens} leaves no room for a prompt and its continuation; give at least 3.")
    found = []
    for text, prompt in zip(whole, prompts):
        start = next((at for at in range(n_begin, len(text.ids)) if _is_after(text, at, len(prompt))), len(text.ids))
        first = start - min(start - n_begin, room // 2)
        end = min(len(text.ids), first + room)
        kept = [*range(n_begin), *range(first, end)]
        shown = Encoded([text.ids[at] for at in kept], [text.offsets[at] for at in kept], text.text)
        is_cut = first > n_begin or end < len(text.ids)
        found.append(Continuation(shown, range(n_begin + start - first, len(kept)), is_cut))
    return found


def _is_after(text: Encoded, at: int, end: int) -> bool:
    """Tell whether a token begins after the prompt's last letter; it may hold the white space at the prompt's end."""
    low, high = text.offsets[at]
    return high > max(low, end) and (low >= end or text.text[low:end].isspace())


def continuation_means(
    model: Any,
    texts: Sequence[Continuation],
    sites: Sequence[str],
    dictionaries: Mapping[str, Mapping[str, Any]],
    *,
    cache: ActivationCache | None = None,
    side: str = "tuned",
) -> dict[str, Float[np.ndarray, "texts width"]]:
    """Read activations and features, averaged over each continuation's tokens, sites one after another.

    Args:
        model: a Hugging Face model.
        texts: each with at least one token in its continuation.
        sites: hook names, in the order of the columns.
        dictionaries: name -> site -> SAELens SAE; each token is encoded, and the features are averaged.
        cache: what it holds of `side` is read from it, and the model runs on the other texts.
        side: `base` or `tuned`, the cache's name for the model.

    Returns:
        `raw`, the activations themselves, and one array per dictionary, in fp32.

    Raises:
        LensError: if a continuation has no token.
    """
    empty = sum(not text.tokens for text in texts)
    if empty:
        raise LensError(f"{empty} of {len(texts)} continuations have no token of their own.")
    readers: dict[str, Mapping[str, Any]] = {"raw": {}, **dictionaries}
    parts: dict[str, dict[str, np.ndarray]] = {name: {} for name in readers}
    for rows, acts in _blocks(model, texts, sites, cache, side):
        lengths = torch.tensor([len(texts[row].tokens) for row in rows])
        for name, saes in readers.items():
            for site in sites:
                means = _means(acts[site], lengths, saes.get(site))
                column = parts[name].setdefault(site, np.zeros((len(texts), means.shape[1]), np.float32))
                column[rows] = means.cpu().numpy()
    return {name: np.concatenate([by_site[site] for site in sites], axis=1) for name, by_site in parts.items()}


def _blocks(
    model: Any, texts: Sequence[Continuation], sites: Sequence[str], cache: ActivationCache | None, side: str
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Give some texts' rows and the activations at their continuations' tokens, text after text, by site [N, D]."""
    held: dict[int, Place] = {}
    if cache is not None and all((side, site) in cache.streams for site in sites):
        places = [cache.word(text.encoded, text.tokens) for text in texts]
        held = {row: place for row, place in enumerate(places) if place is not None}
        waiting = iter(held)
        while rows := list(islice(waiting, HELD_AT_ONCE)):
            yield rows, {site: torch.cat([cache.at(held[row], (side, site)) for row in rows]) for site in sites}
    asked = [row for row in range(len(texts)) if row not in held]
    for batch in batches([texts[row].encoded for row in asked], device=model.device):
        rows = [asked[row] for row in batch.rows]
        lines = [line for line, row in enumerate(rows) for _ in texts[row].tokens]
        at = [position for row in rows for position in texts[row].tokens]
        acts = activations_at(model, batch.ids_BS, batch.mask_BS, sites)
        yield rows, {site: acts[site][lines, at].float() for site in sites}


def _means(acts_ND: torch.Tensor, lengths: torch.Tensor, sae: Any) -> torch.Tensor:
    """Average activations, or an SAE's features of them, over each text's tokens; `lengths` says how many each has."""
    lengths = lengths.to(acts_ND.device)
    text_N = torch.repeat_interleave(torch.arange(len(lengths), device=acts_ND.device), lengths)
    width = acts_ND.shape[1] if sae is None else sae.cfg.d_sae
    sums = torch.zeros(len(lengths), width, device=acts_ND.device)
    step = max(1, CHUNK_VALUES // width)
    with torch.no_grad():
        for start in range(0, len(acts_ND), step):
            part = acts_ND[start : start + step]
            sums.index_add_(0, text_N[start : start + step], part if sae is None else sae.encode(part))
    return sums / lengths[:, None]


def continuation_log_p(model: Any, texts: Sequence[Continuation]) -> Float[np.ndarray, " texts"]:
    """Give the mean log p of each continuation's tokens after its prompt, in nats per token.

    A text's first token, without a beginning-of-text token before it, has no log p and is left out; NaN where no other is.
    """
    found = np.full(len(texts), np.nan)
    with torch.no_grad():
        for batch in batches([text.encoded for text in texts], device=model.device):
            places = [range(max(texts[row].tokens.start, 1), texts[row].tokens.stop) for row in batch.rows]
            lines = [line for line, own in enumerate(places) for _ in own]
            at = torch.tensor([position for own in places for position in own], dtype=torch.long)
            hidden_ND = hidden_states(model, batch)[lines, at - 1]
            # Logits cost as much as the model itself, so the prompt has none computed.
            log_p_N = next_token_log_probs(model, hidden_ND, batch.ids_BS[lines, at]).double().cpu()
            for row, part in zip(batch.rows, torch.split(log_p_N, [len(own) for own in places])):
                found[row] = float(part.mean()) if len(part) else np.nan
    return found


def continuation_embeddings(model: Any, texts: Sequence[Continuation]) -> Float[np.ndarray, "texts width"]:
    """Give the mean input embedding of each continuation's tokens: knows its tokens, neither their order nor the prompt."""
    table = model.get_input_embeddings().weight.detach().float().cpu()
    return torch.stack([table[[text.encoded.ids[at] for at in text.tokens]].mean(0) for text in texts]).numpy()
