"""One pass over the texts for all features of all dictionaries: the shown half first, which decides what is held out for.

After the shown half every feature has its level (the activation of its strongest 1 % of tokens), and the features are chosen;
the held-out half is then read for the chosen ones alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from lfp_lens.parts.activation_cache import ActivationCache
from lfp_lens.parts.dictionaries import ONE_BY_ONE
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import load_weights
from lfp_lens.parts.speed import fast_matmul, short_text_attention
from lfp_lens.results.train_sae import SAERecord, SAEWeights
from lfp_lens.stages.explain.batches import Batch, batches, windows_batch
from lfp_lens.stages.explain.clusters import Clustering, clustering
from lfp_lens.stages.explain.kept import Best, Holds, StrongTokens, n_strong
from lfp_lens.stages.explain.keys import Draw, peak_keys, weighted_keys
from lfp_lens.stages.explain.windows import WINDOW, Half

POOL_VALUES, POOL_WINDOWS = 2**25, (128, 512)
"""Activations kept of a uniform sample of shown windows, over all sites; the fewest and the most windows that this may be."""
LAID_VALUES = 2**25
"""Activations of held-out windows that are held at once, over all dictionaries of all sites."""
POOL_BLOCK = 64
"""Windows encoded at a time."""
TOP_TOKENS = 5
"""A window that holds one of so many of a feature's strongest tokens, where it is silent, is a hard negative."""


@dataclass(frozen=True)
class Sizes:
    """How many windows are kept of each kind, for every feature."""

    top: int
    """Of the strongest, shown."""
    sample: int
    """Of those where it fires, drawn, shown."""
    silent: int
    """Of those where it is silent, shown; and as many hard negatives."""
    trial: int
    """Of those where it is silent, held out, and as many hard negatives; of those where it fires, twice as many."""


class Watched:
    """What one dictionary's features do, kept while the texts stream by."""

    def __init__(
        self, record: SAERecord, order: np.ndarray, limit: int | None, n_shown: int, sizes: Sizes, device: torch.device,
        *, is_control: bool = False,
    ) -> None:  # fmt: skip
        """Watch the features `order`, the first `limit` of those that fire; controls do not decide which windows are drawn."""
        self.record, self.order, self.limit, self.sizes, self.device = record, order, limit, sizes, device
        self.features, self.is_control = np.sort(order), is_control
        self._open()
        n = len(order)
        self.maximum_F = torch.zeros(n, device=device)
        self.top, self.sample = Best(n, sizes.top, device), Best(n, sizes.sample, device)
        self.strong = StrongTokens(n, n_strong(n_shown), device)

    def read(self, acts_ND: torch.Tensor) -> torch.Tensor:
        """Encode activations and give the features that are watched, `[tokens, features]`."""
        acts_NF = self.sae.encode(acts_ND)
        return acts_NF if self._columns is None else acts_NF[:, self._columns]

    def show(self, batch: Batch, acts_ND: torch.Tensor) -> None:
        """Take a batch of shown texts; drop the features that can no longer be among the first `limit` that fire."""
        acts_NF = self.read(acts_ND)
        acts_WTF = batch.lay(acts_NF)
        peaks_WF = acts_WTF.amax(1)
        self.maximum_F = torch.maximum(self.maximum_F, peaks_WF.amax(0))
        drawn_WF = self._draw(batch.priority_W)
        self.top.add(peak_keys(peaks_WF, drawn_WF), batch.windows_W, acts_WTF)
        self.sample.add(torch.where(peaks_WF > 0, drawn_WF, 0), batch.windows_W, acts_WTF)
        self.strong.add(acts_NF, batch.places_N)
        cut = self.n_listed()
        if cut < len(self.order):
            self.order = self.order[:cut]
            self.keep(np.sort(self.order))

    def n_listed(self) -> int:
        """Give how far down the order the first `limit` features that fire are, the dead ones among them counted."""
        fires = self.is_alive()
        return len(self.order) if self.limit is None or fires.sum() < self.limit else int(
            np.flatnonzero(fires)[self.limit - 1]) + 1  # fmt: skip

    def is_alive(self) -> np.ndarray:
        """Tell for each feature, in order, whether it has fired."""
        return (self.maximum_F > 0).cpu().numpy()[np.searchsorted(self.features, self.order)]

    def keep(self, features: np.ndarray) -> None:
        """Leave only these features, given in ascending order."""
        rows = torch.from_numpy(np.searchsorted(self.features, features)).to(self.device)
        self.features, self.maximum_F = features, self.maximum_F[rows]
        for kept in (self.top, self.sample, self.strong):
            kept.keep(rows)
        self._open()

    def settle(self, half: Half) -> None:
        """Fix levels and top tokens once the shown half is read, and make room for silent and for held-out windows."""
        n, sizes = len(self.features), self.sizes
        self.strongest = self.strong.ranked()
        del self.strong
        self.level_F = torch.from_numpy(self.strongest.level()).to(self.device)
        self.tokens = [_most(half.ids[places], values) for places, values in map(self.strongest.of, range(n))]
        self._hold = Holds([ids[:TOP_TOKENS] for ids in self.tokens], self.device)
        self.silent, self.hard = Best(n, sizes.silent, self.device), Best(n, sizes.silent, self.device)
        self.fires = Best(n, 2 * sizes.trial, self.device)
        self.quiet, self.decoys = Best(n, sizes.trial, self.device), Best(n, sizes.trial, self.device)

    def rest(self, batch: Batch, acts_ND: torch.Tensor) -> torch.Tensor:
        """Take shown windows of the pool, keep those where a feature is silent, and count the features that fire in each."""
        acts_WTF = batch.lay(self.read(acts_ND))
        fires_WF = acts_WTF.amax(1) >= self.level_F
        keys_WF = torch.where(fires_WF, 0, self._draw(batch.priority_W))
        self._add_silent(batch, acts_WTF, keys_WF, self.silent, self.hard)
        return fires_WF.sum(1)

    def hold_out(self, batch: Batch, acts_WTF: torch.Tensor, fires_WF: torch.Tensor, odds_W: torch.Tensor) -> None:
        """Take a batch of held-out texts; windows where a feature is silent are drawn in proportion to `odds_W`."""
        drawn_WF = self._draw(batch.priority_W)
        self.fires.add(torch.where(fires_WF, drawn_WF, 0), batch.windows_W, acts_WTF)
        keys_WF = torch.where(fires_WF, 0, weighted_keys(drawn_WF, odds_W))
        self._add_silent(batch, acts_WTF, keys_WF, self.quiet, self.decoys)

    def fire(self, acts_WTF: torch.Tensor) -> torch.Tensor:
        """Tell which features reach their level in which windows, and note the largest activations."""
        peaks_WF = acts_WTF.amax(1)
        self.maximum_F = torch.maximum(self.maximum_F, peaks_WF.amax(0))
        return peaks_WF >= self.level_F

    def _add_silent(
        self, batch: Batch, acts_WTF: torch.Tensor, keys_WF: torch.Tensor, silent: Best, hard: Best
    ) -> None:
        silent.add(keys_WF, batch.windows_W, acts_WTF)
        hard.add(torch.where(self._hold(batch.ids_WT), keys_WF, 0), batch.windows_W, acts_WTF)

    def _open(self) -> None:
        few = few_features(self.record.weights, self.features)
        self.sae = load_weights(self.record.weights if few is None else few, device=self.device)
        self._draw = Draw(f"{self.record.site} {'random' * self.is_control}", self.features, self.device)
        n_all = self.record.weights.tensors["W_dec"].shape[0]
        is_whole = few is not None or len(self.features) == n_all
        self._columns = None if is_whole else torch.from_numpy(self.features).to(self.device)


def few_features(weights: SAEWeights, features: np.ndarray) -> SAEWeights | None:
    """Give the dictionary of these features alone where features do not depend on one another, else None."""
    if weights.config["architecture"] not in ONE_BY_ONE:
        return None
    axis = {"W_enc": 1, "b_enc": 0, "W_dec": 0, "threshold": 0}
    tensors = {name: np.ascontiguousarray(np.take(tensor, features, axis[name])) if name in axis else tensor
               for name, tensor in weights.tensors.items()}  # fmt: skip
    return SAEWeights(weights.config | {"d_sae": len(features)}, tensors)


def watch(
    pair: Pair, side: str, watched: Mapping[str, list[Watched]], shown: Half, cache: ActivationCache | None, bar: Any
) -> "Pool":
    """Read the shown half once, and keep a uniform sample of its windows with the activations of every site."""
    widths = [group[0].record.width for group in watched.values()]
    pool = Pool(shown, sum(widths), pair.device)
    with _reading(pair.hf(side)):
        for batch, acts in batches(pair, side, list(watched), shown, cache, bar):
            for site, group in watched.items():
                for own in group:
                    own.show(batch, acts[site])
                pool.add(site, batch, acts[site])
    return pool


def hold_out(
    pair: Pair,
    side: str,
    watched: Mapping[str, list[Watched]],
    held: Half,
    clusters: Clustering,
    cache: ActivationCache | None,
    bar: Any,
) -> Int[np.ndarray, " tokens"]:
    """Read the held-out half once, for the features that are left; give how many explained ones fire strongly at each token.

    Strong firing clusters: on an odd text many features fire, and any explanation would find it. So windows where a feature is
    silent are drawn in proportion to the odds that a feature fires in them, given how many others do (`clusters`): over all
    features the silent windows are then as busy as those that fire, and an explanation of another feature is left with chance.
    Only features that are explained are counted: how many controls are watched beside them changes nothing.
    """
    busy = np.zeros(len(held.ids), np.int32)
    n_features = sum(len(own.features) for group in watched.values() for own in group)
    n_windows = max(1, LAID_VALUES // (WINDOW * n_features))
    with _reading(pair.hf(side)):
        for whole, acts in batches(pair, side, list(watched), held, cache, bar):
            for batch, mine in whole.blocks(n_windows):
                laid = [
                    (own, batch.lay(own.read(acts[site][mine]))) for site, group in watched.items() for own in group
                ]
                fires = [own.fire(acts_WTF) for own, acts_WTF in laid]
                counted = [
                    (own, acts_WTF, fires_WF) for (own, acts_WTF), fires_WF in zip(laid, fires) if not own.is_control
                ]
                fire_W = torch.stack([fires_WF.sum(1) for *_, fires_WF in counted]).sum(0)
                odds_W = clusters.odds(fire_W)
                strong = [(acts_WTF >= own.level_F).sum(-1, dtype=torch.int32) for own, acts_WTF, _ in counted]
                strong_N = torch.stack(strong).sum(0).flatten()[batch.slots_N]
                busy[batch.places_N.cpu().numpy()] = strong_N.cpu().numpy()
                for (own, acts_WTF), fires_WF in zip(laid, fires):
                    own.hold_out(batch, acts_WTF, fires_WF, odds_W)
    return busy


@contextmanager
def _reading(model: Any) -> Iterator[None]:
    with fast_matmul(), short_text_attention(model), torch.no_grad():
        yield


class Pool:
    """A uniform sample of the shown windows with the site's activations: once levels are known, it gives silent windows."""

    def __init__(self, half: Half, width: int, device: torch.device) -> None:
        """Make room; `width` is that of all sites together."""
        self.half, self.device = half, device
        self._acts: dict[str, torch.Tensor] = {}
        n = int(np.clip(POOL_VALUES // (WINDOW * width), *POOL_WINDOWS))
        self.windows = half.drawn(n)

    def add(self, site: str, batch: Batch, acts_ND: torch.Tensor) -> None:
        """Take what belongs to the sample."""
        if site not in self._acts:
            self._acts[site] = torch.zeros(len(self.windows), WINDOW, acts_ND.shape[1], device=self.device)
        windows_W = batch.windows_W.cpu().numpy()
        at_W = np.searchsorted(self.windows, windows_W).clip(max=max(0, len(self.windows) - 1))
        at_W = torch.from_numpy(np.where(self.windows[at_W] == windows_W, at_W, -1)).to(self.device)
        at_N, inside_N = at_W[batch.slots_N // WINDOW], batch.slots_N % WINDOW
        chosen = at_N >= 0
        self._acts[site][at_N[chosen], inside_N[chosen]] = acts_ND[chosen]

    @torch.no_grad()
    def rest(self, watched: Mapping[str, list[Watched]]) -> Clustering:
        """Give every dictionary the windows where its features are silent, and say how far firing clusters in windows."""
        found = []
        for start in range(0, len(self.windows), POOL_BLOCK):
            batch = windows_batch(self.half, self.windows[start : start + POOL_BLOCK], self.device)
            fire_W = torch.zeros(len(batch.windows_W), dtype=torch.int64, device=self.device)
            for site, group in watched.items():
                if site in self._acts:
                    acts_ND = self._acts[site][start : start + POOL_BLOCK].flatten(0, 1)[batch.slots_N]
                    for own in group:
                        fires_W = own.rest(batch, acts_ND)
                        fire_W += 0 if own.is_control else fires_W
            found.append(fire_W)
        n = sum(len(own.features) for group in watched.values() for own in group if not own.is_control)
        return clustering(torch.cat(found).double(), n)


def _most(ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Give token ids by the sum of their values, the largest first; of equal sums the smaller id."""
    distinct, inverse = np.unique(ids, return_inverse=True)
    return distinct[np.argsort(-np.bincount(inverse, weights=values, minlength=len(distinct)), kind="stable")]
