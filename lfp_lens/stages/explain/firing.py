"""Where the wanted features fire: one pass of the model or of a cache, everything in real tokens, sparse."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse

from lfp_lens.parts.activation_cache import ActivationCache
from lfp_lens.parts.activations import Encoded
from lfp_lens.parts.harvest import Models, Reader, TextBatches, text_batches
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import load_sae
from lfp_lens.parts.speed import fast_matmul, short_text_attention
from lfp_lens.results.train_sae import SAERecord
from lfp_lens.stages.explain.features import Wanted


@dataclass(frozen=True, eq=False)
class Firing:
    """Activations of the chosen features at every real token, text after text; the shown texts come first."""

    features: tuple[tuple[str, int], ...]
    """(site, index) of each chosen feature."""
    matrix_NF: sparse.csc_array
    """Activations [tokens, features]."""
    starts: Int[np.ndarray, " texts+1"]
    """First token of each text, and the number of tokens at the end."""
    n_shown: int
    """The first so many texts may be shown to the labeller."""
    texts: tuple[str, ...]
    """The texts."""
    spans: tuple[tuple[tuple[int, int], ...], ...]
    """Character span of each token, by text; the beginning-of-text token is left out."""

    @property
    def shown_end(self) -> int:
        """One past the last token that may be shown."""
        return int(self.starts[self.n_shown])

    def activations(self, row: int) -> Float[np.ndarray, " tokens"]:
        """Give one feature's activations divided by its maximum over all texts."""
        values_N = self.matrix_NF[:, [row]].toarray()[:, 0]
        return values_N / values_N.max()


def collect(
    pair: Pair,
    side: str,
    dictionaries: dict[str, SAERecord],
    texts: list[str],
    encoded: list[Encoded],
    wanted: Wanted,
    n_shown: int,
    bar: Any = None,
    *,
    cache: ActivationCache | None = None,
) -> Firing:
    """Read one side on the texts and keep what the features do that `wanted` picks among those that fire.

    Only a feature that fires on the first `n_shown` texts is picked. A feature that can no longer be among the first
    `wanted.per_site` is dropped while the texts stream, so memory is what the chosen features take. A beginning-of-text
    token that is written into a text stays one of its tokens, but no dictionary reads it, as in training. Of a `cache` that
    holds the sites, the model is not asked; raises `LensError` if it is another pair's or lacks a text.
    """
    model = pair.hf(side)
    skip = _skip(pair.tokenizer)
    spans = tuple(tuple(text.offsets[skip:]) for text in encoded)
    starts = np.concatenate([[0], np.cumsum([len(own) for own in spans])])
    read = text_batches(encoded, width=model.config.hidden_size, begin=pair.tokenizer.bos_token_id, device=pair.device)
    streams = [(side, site) for site in dictionaries]
    models = Models({side: model}, read, streams)
    reader: Reader = models if cache is None else cache.reader(read, streams, pair, models)
    modules = {site: load_sae(record, device=pair.device) for site, record in dictionaries.items()}
    kept = {site: _Kept(wanted.order[site], wanted.per_site) for site in dictionaries}
    with fast_matmul(), short_text_attention(model), torch.no_grad():
        for at in range(len(read.rows)):
            acts, tokens_N = reader.read(at), _tokens(read, at, skip, starts)
            for site, sae in modules.items():
                kept[site].add(sae.encode(acts[side, site]), tokens_N, int(starts[n_shown]))
            if bar is not None:
                bar.update()
    return _assemble(kept, wanted, starts, n_shown, tuple(texts), spans)


def _skip(tokenizer: Any) -> int:
    """Give how many tokens stand before each text: `encode` puts the beginning-of-text token there."""
    return int(tokenizer.bos_token_id is not None)


def _tokens(read: TextBatches, at: int, skip: int, starts: np.ndarray) -> Int[np.ndarray, " tokens"]:
    """Give where each content token of a batch stands among the real tokens of all texts."""
    places = [
        int(starts[row]) + place - skip
        for row in read.rows[at] for place, token in enumerate(read.encoded[row].ids) if token != read.begin
    ]  # fmt: skip
    return np.array(places, dtype=np.int64)


@dataclass
class _Kept:
    """The activations of one site's features while the texts stream by, best features first."""

    order: np.ndarray
    limit: int | None
    has_fired: np.ndarray = field(init=False)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.has_fired = np.zeros(len(self.order), bool)

    def add(self, acts_NF: torch.Tensor, tokens_N: np.ndarray, shown_end: int) -> None:
        """Take the activations of one batch, all features; `tokens_N` tells where its tokens stand."""
        picked_NF = acts_NF[:, torch.from_numpy(self.order).to(acts_NF.device)].cpu()
        rows, columns = picked_NF.nonzero(as_tuple=True)
        values, tokens, ranks = picked_NF[rows, columns].numpy(), tokens_N[rows.numpy()], columns.numpy()
        self.has_fired[np.unique(ranks[(values > 0) & (tokens < shown_end)])] = True
        self.parts.append((tokens, ranks, values))
        if self.limit is not None and self.has_fired.sum() >= self.limit:
            cut = int(np.flatnonzero(self.has_fired)[self.limit - 1]) + 1
            self.order, self.has_fired = self.order[:cut], self.has_fired[:cut]

    def chosen(self) -> np.ndarray:
        """Give the ranks of the features that fired, as many as wanted."""
        return np.flatnonzero(self.has_fired)[: self.limit]

    def columns(self, n_tokens: int) -> sparse.csc_array:
        """Give the activations of the chosen features, [tokens, chosen]."""
        if not self.parts:  # No text holds a token that a dictionary may read.
            return sparse.csc_array((n_tokens, 0))
        tokens, ranks, values = (np.concatenate(parts) for parts in zip(*self.parts))
        inside = ranks < len(self.order)
        shape = (n_tokens, len(self.order))
        return sparse.csc_array((values[inside], (tokens[inside], ranks[inside])), shape=shape)[:, self.chosen()]


def _assemble(
    kept: dict[str, _Kept],
    wanted: Wanted,
    starts: np.ndarray,
    n_shown: int,
    texts: tuple[str, ...],
    spans: tuple[tuple[tuple[int, int], ...], ...],
) -> Firing:
    features = [(site, int(one.order[rank])) for site, one in kept.items() for rank in one.chosen()]
    matrix_NF = sparse.csc_array(sparse.hstack([one.columns(int(starts[-1])) for one in kept.values()]))
    if wanted.strength is not None:
        strengths = [wanted.strength[feature] for feature in features]
        best = np.argsort(-np.array(strengths), kind="stable")[: wanted.overall]
        features, matrix_NF = [features[row] for row in best], matrix_NF[:, best]
    return Firing(tuple(features), matrix_NF, starts, n_shown, texts, spans)
