"""How good dictionaries are on text they never saw, beside what they were before training and what PCA gives.

One pass of each model over the held-out tokens gives the reconstruction figures of all dictionaries; splices, which cost
logits, are measured on fewer tokens. Intervals resample whole texts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.activations import Encoded, batches
from lfp_lens.parts.harvest import Stream, read_batch
from lfp_lens.parts.saes import load_weights
from lfp_lens.results.train_sae import SAEWeights
from lfp_lens.stages.train_sae.floors import components_sae, floor
from lfp_lens.stages.train_sae.reconstruction import Components, Moments, Reconstruction
from lfp_lens.stages.train_sae.splicing import Costs, Splice, splice_costs

K = TypeVar("K")
DRAWS = 1000
"""Bootstrap draws of every interval."""


@dataclass(frozen=True, eq=False)
class Judged:
    """A dictionary to measure."""

    side: str
    """What it reads: a model's name, `difference` (tuned - base) or `both` ([base; tuned])."""
    site: str
    """Where."""
    weights: SAEWeights
    """The dictionary."""
    untrained: SAEWeights | None
    """The same as it was initialised; None: no floors are measured for it."""

    @property
    def stream(self) -> Stream:
        """The activations it reads."""
        return self.side, self.site


def measure_quality(
    models: Mapping[str, Any],
    tokenizer: Any,
    dictionaries: Mapping[K, Judged],
    heldout: Sequence[Encoded],
    *,
    tokens: int,
    spliced: int,
    seed: int,
    fit: Mapping[Stream, torch.Tensor] | None = None,
) -> dict[K, dict[str, Any]]:
    """Give every dictionary's quality fields, as in `SAERecord`, with its floors `untrained` and `pca`.

    What a splice costs is measured against the model's own predictions: KL recovered = 1 - KL(clean || spliced) / KL(clean ||
    zeroed); CE recovered is the same by loss on the text. A dictionary of `difference` is judged in the tuned model, with
    base + reconstruction in the site's place, and base alone as what is left without it; one of `both` by the tuned
    half of its reconstruction.

    Args:
        models: side -> Hugging Face model: `base`, `tuned`, and any other that a dictionary reads.
        tokenizer: theirs.
        dictionaries: what to measure.
        heldout: texts that none was trained on; a seeded choice of them is used.
        tokens: tokens for the reconstruction figures, at most.
        spliced: predictions for KL and CE recovered, at most.
        seed: of the choice of texts and of the intervals.
        fit: activations [N, D] of training text by (side, site), on which principal components are fitted; a stream without
            any gets no `pca` floor.

    Raises:
        LensError: if the held-out texts hold no tokens, or activations are not finite or constant, with side and site.
    """
    begin = tokenizer.bos_token_id
    order = np.random.default_rng(seed).permutation(len(heldout))
    mixed = [heldout[at] for at in order]
    texts = up_to(mixed, tokens, lambda ids: sum(token != begin for token in ids))
    few = up_to(mixed, spliced, lambda ids: sum(token != begin for token in ids[:-1]))
    if not texts:
        raise LensError("The held-out texts hold no tokens to judge an SAE on: give others.")
    with torch.no_grad():
        found = _Reconstructions(models, dictionaries, texts, fit or {}, _resamples(len(texts), seed))
        found.read(models, begin)
        facts = {key: found.facts(key) for key in dictionaries}
        floors = {key: found.floors(key, facts[key]["l0"]) for key in dictionaries}
        splices = _splices(dictionaries, floors, found)
        costs, clean, n_spliced = splice_costs(models, begin, few, splices)
    times_RT = _resamples(len(few), seed)
    for key, judged in dictionaries.items():
        zero, clean_T = costs["zero", *judged.stream], clean[splices["zero", *judged.stream].host]
        facts[key] |= _recovered(costs["learned", key], zero, clean_T, times_RT)
        facts[key] |= {"n_heldout_tokens": found.moments[judged.stream].n_tokens, "n_spliced_tokens": n_spliced}
        facts[key]["floors"] = {
            low.kind: floor(low.kind, low.figures | _recovered(costs[low.at], zero, clean_T), low.weights)
            for low in floors[key]
        }
    return facts


@dataclass(frozen=True, eq=False)
class _Low:
    """A floor whose splices are not measured yet."""

    kind: str
    at: tuple[Any, ...]
    """Key of its splice; dictionaries of one stream share the one of as many components."""
    weights: SAEWeights
    figures: dict[str, Any]


class _Reconstructions:
    """The running sums of every dictionary, of its untrained twin, and of the components at every stream."""

    def __init__(
        self, models: Mapping[str, Any], dictionaries: Mapping[Any, Judged], texts: Sequence[Encoded],
        fit: Mapping[Stream, torch.Tensor], times_RT: np.ndarray,
    ) -> None:  # fmt: skip
        self.dictionaries, self.texts, self.times_RT = dictionaries, texts, times_RT
        self.device = next(iter(models.values())).device
        load = lambda weights: Reconstruction(load_weights(weights, device=self.device), len(texts))  # noqa: E731
        self.streams = list(dict.fromkeys(judged.stream for judged in dictionaries.values()))
        self.learned = {key: load(judged.weights) for key, judged in dictionaries.items()}
        self.untrained = {key: load(judged.untrained) for key, judged in dictionaries.items() if judged.untrained}
        low = dict.fromkeys(dictionaries[key].stream for key in self.untrained)
        self.components = {stream: Components(fit[stream]) for stream in low if stream in fit}
        self.moments = {stream: Moments(len(texts), stream) for stream in self.streams}
        self.variance: dict[Stream, tuple[float, np.ndarray]] = {}

    def read(self, models: Mapping[str, Any], begin: int | None) -> None:
        """Run every model once over the texts."""
        for batch in batches(self.texts, device=self.device, max_batch_tokens=2048):
            content_BS = batch.content(begin)
            text_N = torch.tensor(batch.rows)[:, None].expand(content_BS.shape)[content_BS.cpu()]
            for stream, acts_ND in read_batch(models, batch, self.streams, begin).items():
                self._add(stream, acts_ND, text_N)
        for stream, moments in self.moments.items():
            self.variance[stream] = (moments.whole_variance(), moments.variance(self.times_RT))

    def _add(self, stream: Stream, acts_ND: torch.Tensor, text_N: torch.Tensor) -> None:
        self.moments[stream].add(acts_ND, text_N)
        if stream in self.components:
            self.components[stream].add(acts_ND)
        for key, judged in self.dictionaries.items():
            for sums in (self.learned.get(key), self.untrained.get(key)) if judged.stream == stream else ():
                if sums is not None:
                    sums.add(acts_ND, text_N)

    def facts(self, key: Any) -> dict[str, Any]:
        """Give the reconstruction figures of one dictionary, with the interval of its explained variance."""
        whole, drawn_R = self.variance[self.dictionaries[key].stream]
        low, high = _interval(1 - (self.times_RT @ self.learned[key].error_T.numpy()) / drawn_R)
        interval = {"explained_variance_low": low, "explained_variance_high": high}
        return self.learned[key].figures(whole) | interval

    def floors(self, key: Any, l0: float) -> list[_Low]:
        """Give the floors of one dictionary with their reconstruction figures."""
        judged = self.dictionaries[key]
        if judged.untrained is None:
            return []
        variance, _ = self.variance[judged.stream]
        found = [_Low("untrained", ("untrained", key), judged.untrained, self.untrained[key].figures(variance))]
        if judged.stream in self.components:
            components = self.components[judged.stream]
            n = components.number(l0)
            weights = components_sae(components, n, judged.site)
            found.append(_Low("pca", ("pca", *judged.stream, n), weights, components.figures(n, variance)))
        return found


def _splices(
    dictionaries: Mapping[Any, Judged], floors: Mapping[Any, Sequence[_Low]], found: _Reconstructions
) -> dict[Any, Splice]:
    """Give everything that is spliced, each once: the dictionaries, their floors, and the zeros they are measured against."""
    splices: dict[Any, Splice] = {}
    for key, judged in dictionaries.items():
        zero = splices.setdefault(("zero", *judged.stream), Splice(*judged.stream, None))
        splices["learned", key] = replace(zero, sae=found.learned[key].sae)
        for low in floors[key]:
            if low.at not in splices:
                splices[low.at] = replace(zero, sae=load_weights(low.weights, device=found.device))
    return splices


def _recovered(costs: Costs, zero: Costs, clean_T: np.ndarray, times_RT: np.ndarray | None = None) -> dict[str, float]:
    """Give KL and CE recovered, and the interval of the former where resamples are given; NaN where zeroing costs nothing."""
    loss, gap = zero.loss_T.sum() - costs.loss_T.sum(), zero.loss_T.sum() - clean_T.sum()
    found = {
        "kl_recovered": float(1 - costs.kl_T.sum() / zero.kl_T.sum()) if zero.kl_T.sum() > 0 else float("nan"),
        "ce_recovered": float(loss / gap) if gap > 0 else float("nan"),
    }
    if times_RT is not None:
        zeroed_R = times_RT @ zero.kl_T
        drawn = np.divide(times_RT @ costs.kl_T, zeroed_R, out=np.full_like(zeroed_R, np.nan), where=zeroed_R > 0)
        found["kl_recovered_low"], found["kl_recovered_high"] = _interval(1 - drawn)
    return found


def _resamples(n_texts: int, seed: int) -> np.ndarray:
    """Give how often each text is drawn in every resample, [draws, texts]; none where one text alone cannot vary."""
    if n_texts < 2:
        return np.zeros((0, n_texts))
    return np.random.default_rng(seed).multinomial(n_texts, np.full(n_texts, 1 / n_texts), size=DRAWS).astype(float)


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    """Give the 95 % percentile interval of what was drawn; NaN where nothing could be."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def up_to(texts: Sequence[Encoded], limit: int, count: Callable[[list[int]], int]) -> list[Encoded]:
    """Take texts while they hold no more than `limit`; of a first one that alone holds more, its start.

    `count` tells what the ids of a text hold. Texts that hold nothing are left out.
    """
    found: list[Encoded] = []
    left = limit
    for text in texts:
        held = count(text.ids)
        if held > left and found:
            break
        ids = text.ids
        while count(ids) > left:
            ids = ids[:-1]
        if count(ids):
            found.append(text if ids is text.ids else Encoded(ids, text.offsets[: len(ids)], text.text))
        left -= count(ids)
        if left <= 0:
            break
    return found
