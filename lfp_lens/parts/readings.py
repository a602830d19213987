"""Readings: what a probe can see of a word in its left context, one row per occurrence.

Every reading is averaged over the word's own tokens, beginning-of-text and padding never included. Sites are
concatenated in layer order (numeric).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts.activation_cache import ActivationCache, Place
from lfp_lens.parts.activations import Encoded, batches, tokens_of_span, word_ids
from lfp_lens.parts.signals import Seen
from lfp_lens.parts.sites import activations_at
from lfp_lens.parts.word_passes import Look

RANDOM_WIDTH = 256


class WordTokens:
    """Activations at the tokens of one word per text, and which row each token belongs to."""

    def __init__(
        self, rows: torch.Tensor, tokens_ND: Mapping[str, torch.Tensor], n_rows: int, device: torch.device | str
    ) -> None:
        self.rows, self.tokens_ND, self.n_rows = rows, tokens_ND, n_rows
        self.sites = tuple(tokens_ND)
        self._device = device

    def raw(self) -> Float[np.ndarray, "rows width"]:
        """Give the activations themselves, averaged over each word's tokens."""
        return self._stacked([self.tokens_ND[site] for site in self.sites])

    def features(self, saes: dict[str, Any]) -> Float[np.ndarray, "rows features"]:
        """Give SAE features, encoded token by token and then averaged; `saes`: site -> SAELens SAE, where the model is."""
        with torch.no_grad():
            return self._stacked(
                [saes[site].encode(self.tokens_ND[site].to(self._device)).cpu() for site in self.sites]
            )

    def _stacked(self, parts: list[torch.Tensor]) -> np.ndarray:
        counts = torch.bincount(self.rows, minlength=self.n_rows)[:, None]
        means = []
        for part_NF in parts:
            sums = torch.zeros(self.n_rows, part_NF.shape[1]).index_add_(0, self.rows, part_NF)
            means.append(sums / counts)
        return torch.cat(means, dim=1).double().numpy()


class AtWords:
    """Keeps some models' activations at the tokens of every word; an observer of `read_words` for texts of one word each."""

    def __init__(self, sites: Sequence[str], models: Sequence[int]) -> None:
        self.sites = tuple(sites)
        self._models = tuple(models)
        self._rows: list[torch.Tensor] = []
        self._acts: dict[tuple[int, str], list[torch.Tensor]] = {}

    def see_words(self, look: Look) -> None:
        """Take the words of one batch."""
        places = look.places
        self._rows.append(places.word_N)
        for model in self._models:
            for site in self.sites:
                part = look.acts[model][site][places.line_N, places.at_N].float().cpu()
                self._acts.setdefault((model, site), []).append(part)

    def see_predictions(self, which: int, seen: Seen, word_N: np.ndarray) -> None:
        """Predictions are not wanted."""

    def tokens(self, model: int, n_rows: int, device: torch.device | str) -> WordTokens:
        """Give what one model showed."""
        found = {site: torch.cat(self._acts[model, site]) for site in self.sites}
        return WordTokens(torch.cat(self._rows), found, n_rows, device)


def word_tokens(
    model: Any,
    encoded: Sequence[Encoded],
    spans: Sequence[tuple[int, int]],
    sites: Sequence[str],
    *,
    cache: ActivationCache | None = None,
    side: str = "tuned",
) -> WordTokens:
    """Read the activations at one word per text; what a `cache` holds of `side` is read from it, the rest from the model.

    Occurrences that do not align with whole tokens are refused with a `LensError`, so filter them with `aligned` first.
    """
    positions = [tokens_of_span(text, span) for text, span in zip(encoded, spans)]
    if not all(positions):
        raise LensError(f"{sum(not tokens for tokens in positions)} words do not align with whole tokens.")
    held: dict[int, Place] = {}
    if cache is not None and all((side, site) in cache.streams for site in sites):
        places = [cache.word(text, own) for text, own in zip(encoded, positions)]
        held = {row: place for row, place in enumerate(places) if place is not None}
    asked = [row for row in range(len(encoded)) if row not in held]
    rows, found = _read_model(model, encoded, positions, asked, sites)
    if cache is not None:
        rows += [row for row, place in held.items() for _ in range(place.n)]
        for site in sites:
            found[site] += [cache.at(place, (side, site)) for place in held.values()]
    tokens = {site: torch.cat(parts) for site, parts in found.items()}
    return WordTokens(torch.tensor(rows), tokens, len(encoded), model.device)


def _read_model(
    model: Any,
    encoded: Sequence[Encoded],
    positions: Sequence[Sequence[int]],
    asked: Sequence[int],
    sites: Sequence[str],
) -> tuple[list[int], dict[str, list[torch.Tensor]]]:
    """Run the model on the texts `asked` for; give which text each kept token belongs to, and parts [n, D] by site."""
    rows: list[int] = []
    found: dict[str, list[torch.Tensor]] = {site: [] for site in sites}
    for batch in batches([encoded[row] for row in asked], device=model.device):
        texts = [asked[row] for row in batch.rows]
        lines = [line for line, text in enumerate(texts) for _ in positions[text]]
        places = [at for text in texts for at in positions[text]]
        rows += [text for text in texts for _ in positions[text]]
        acts = activations_at(model, batch.ids_BS, batch.mask_BS, sites)
        for site in sites:
            found[site].append(acts[site][lines, places].float().cpu())
    return rows, found


def aligned(encoded: Sequence[Encoded], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Give the rows whose word is made of whole tokens, at least one token into the text."""
    return [
        row for row, (text, span) in enumerate(zip(encoded, spans)) if min(tokens_of_span(text, span), default=0) > 0
    ]


def embeddings(model: Any, tokenizer: Any, words: Sequence[str]) -> Float[np.ndarray, "rows width"]:
    """Give the input embedding of each word, averaged over its tokens inside a sentence: knows the word, no context.

    Raises `LensError` if a word does not align with whole tokens.
    """
    table = model.get_input_embeddings().weight.detach().float().cpu()
    found = word_ids(tokenizer, words)
    odd = [word for word, ids in zip(words, found) if not ids]
    if odd:
        raise LensError(f"{len(odd)} of {len(words)} words (first {odd[0]!r}) have no tokens of their own.")
    return torch.stack([table[ids].mean(0) for ids in found]).double().numpy()


def random_vectors(words: Sequence[str], *, seed: int) -> Float[np.ndarray, "rows width"]:
    """Give one random vector per word plus fresh noise per row: the dead salmon, no language model at all."""
    generator = np.random.default_rng(seed)
    own = {
        word: np.random.default_rng(int(fingerprint([seed, word]), 16)).normal(size=RANDOM_WIDTH)
        for word in sorted(set(words))
    }
    return np.stack([own[word] for word in words]) + 0.3 * generator.normal(size=(len(words), RANDOM_WIDTH))
