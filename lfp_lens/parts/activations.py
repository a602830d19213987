"""Texts to token batches, and what a model computes on them: masked activations and log-probabilities.

Padding never reaches a stored number: batches carry their mask, and every function below gives values at real tokens only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.sites import trunk


@dataclass(frozen=True, eq=False)
class Encoded:
    """One text as tokens."""

    ids: list[int]
    """Token ids, beginning-of-text first where the tokenizer has one."""
    offsets: list[tuple[int, int]]
    """Character span of each token; (0, 0) for the beginning-of-text token."""
    text: str = ""
    """The text itself, which tells what a token holds beside a word."""
    n_prompt: int = 0
    """Tokens at the start that are a prompt: given to the model, not predicted."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Texts of like length, right-padded."""

    rows: list[int]
    """Index of each text in the list that was batched."""
    ids_BS: torch.Tensor
    """Token ids; padding holds 0 and is masked."""
    mask_BS: torch.Tensor
    """1 at real tokens, 0 at padding."""

    def content(self, begin: int | None) -> torch.Tensor:
        """Mark the tokens an SAE may see `[B, S]`: real ones, but not the beginning-of-text token, wherever it stands."""
        real_BS = self.mask_BS.bool()
        return real_BS if begin is None else real_BS & (self.ids_BS != begin)

    def next_ids(self) -> torch.Tensor:
        """Give the token that comes after each `[B, S]`; -1 after a text's last one and at padding."""
        next_BS = torch.full_like(self.ids_BS, -1)
        next_BS[:, :-1] = torch.where(self.mask_BS[:, 1:].bool(), self.ids_BS[:, 1:], -1)
        return next_BS


def encode(tokenizer: Any, texts: Sequence[str], *, max_tokens: int, keep_end: bool = False) -> list[Encoded]:
    """Tokenise texts with character offsets, beginning-of-text token first, cut to `max_tokens`.

    What is cut is the end of a text, or its start with `keep_end` (for a word in its left context). Raises `LensError` if
    there is no text.
    """
    if isinstance(texts, str):
        raise LensError("texts must be a list of strings; one string given. Write [text] for a single text.")
    texts = list(texts)
    if not texts:
        raise LensError("No texts were given.")
    odd = [text for text in texts if not isinstance(text, str)]
    if odd:
        raise LensError(f"texts must be a list of strings; it holds a {type(odd[0]).__name__}.")
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    held = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False,
                     verbose=False)  # fmt: skip
    room = max_tokens - len(begin)
    if room < 1:
        raise LensError(f"max_tokens={max_tokens} leaves no room for a token of text; give at least {len(begin) + 1}.")
    kept = slice(-room, None) if keep_end else slice(room)
    return [
        Encoded(begin + ids[kept], [(0, 0)] * len(begin) + [tuple(span) for span in spans[kept]], text)
        for ids, spans, text in zip(held["input_ids"], held["offset_mapping"], texts)
    ]


def batches(encoded: Sequence[Encoded], *, device: torch.device | str, max_batch_tokens: int = 8192) -> Iterator[Batch]:
    """Give batches of like length, longest first, each at most `max_batch_tokens` with its padding.

    The order is by length, not by input; `rows` tells which text is which. A text without tokens is left out.
    """
    order = sorted((row for row, text in enumerate(encoded) if text.ids), key=lambda row: (-len(encoded[row].ids), row))
    start = 0
    while start < len(order):
        width = len(encoded[order[start]].ids)
        rows = order[start : start + max(1, max_batch_tokens // width)]
        yield pad(encoded, rows, device=device)
        start += len(rows)


def pad(encoded: Sequence[Encoded], rows: Sequence[int], *, device: torch.device | str) -> Batch:
    """Right-pad the chosen texts into one batch."""
    width = max(len(encoded[row].ids) for row in rows)
    ids_BS = torch.zeros(len(rows), width, dtype=torch.long)
    mask_BS = torch.zeros_like(ids_BS)
    for at, row in enumerate(rows):
        ids_BS[at, : len(encoded[row].ids)] = torch.tensor(encoded[row].ids)
        mask_BS[at, : len(encoded[row].ids)] = 1
    return Batch(list(rows), ids_BS.to(device), mask_BS.to(device))


def unembed(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Give the logits of final hidden states `[..., D]` as `[..., V]`, with the model's own soft cap if it has one."""
    logits = model.get_output_embeddings()(hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if not cap else cap * torch.tanh(logits / cap)


def hidden_states(model: Any, batch: Batch) -> torch.Tensor:
    """Give the final hidden states `[B, S, D]`, the last norm included."""
    return trunk(model)(input_ids=batch.ids_BS, attention_mask=batch.mask_BS, use_cache=False).last_hidden_state


def next_token_log_probs(
    model: Any, hidden_ND: torch.Tensor, next_N: torch.Tensor, *, chunk: int = 2048
) -> torch.Tensor:
    """Give log p of each next token, in nats, a chunk of positions at a time so that no full logits are held."""
    found = []
    for start in range(0, len(hidden_ND), chunk):
        logits_NV = unembed(model, hidden_ND[start : start + chunk]).float()
        wanted = next_N[start : start + chunk, None]
        found.append(logits_NV.gather(-1, wanted)[:, 0] - torch.logsumexp(logits_NV, dim=-1))
    return torch.cat(found) if found else hidden_ND.new_zeros(0, dtype=torch.float32)


def text_log_probs(model: Any, encoded: Sequence[Encoded], *, device: torch.device | str) -> list[torch.Tensor]:
    """Give, for every text, log p of each of its tokens after the first, in nats, on the CPU."""
    found: list[torch.Tensor] = [torch.zeros(0)] * len(encoded)
    with torch.no_grad():
        for batch in batches(encoded, device=device):
            hidden_BSD = hidden_states(model, batch)[:, :-1]
            real_BS = batch.mask_BS[:, 1:].bool()
            log_probs_N = next_token_log_probs(model, hidden_BSD[real_BS], batch.ids_BS[:, 1:][real_BS]).cpu()
            parts = torch.split(log_probs_N, real_BS.sum(1).tolist())
            for row, part in zip(batch.rows, parts):
                found[row] = part
    return found


def tokens_of_span(text: Encoded, span: tuple[int, int]) -> list[int]:
    """Give the positions of the tokens that make up a character span; empty if they do not cover exactly that word.

    A token may begin with the space before the word; it may not hold any other character from outside the span.
    """
    start, end = span
    inside = [at for at, (low, high) in enumerate(text.offsets) if low < end and high > start and high > low]
    if not inside:
        return []
    low, high = text.offsets[inside[0]][0], text.offsets[inside[-1]][1]
    before = text.text[low:start] or " " * (start - low)
    return inside if high == end and (low == start or (low == start - 1 and before.isspace())) else []


def word_ids(tokenizer: Any, words: Sequence[str]) -> list[list[int]]:
    """Give the token ids of each word as it stands inside a sentence, after a space; empty where it does not align."""
    found = encode(tokenizer, [f"a {word}" for word in words], max_tokens=512) if words else []
    return [[text.ids[at] for at in tokens_of_span(text, (2, 2 + len(word)))] for text, word in zip(found, words)]
