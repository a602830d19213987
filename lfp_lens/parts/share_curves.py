"""What share of a tuning's gain the features of some dictionaries carry, at equal damage: the measurement behind the claim
that features, and not just any direction, carry what was learned.

Every contender is asked the same: its features are screened on some texts, ordered so that each beginning of the order has a
large effect for its damage (`parts.screening`), and removed in growing sets on other texts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lfp_lens.parts.activations import Batch
from lfp_lens.parts.dictionaries import (
    Dictionary,
    as_dictionary,
    components,
    mean_difference,
    mean_direction,
    neurons,
)
from lfp_lens.parts.interventions import Edit, feature_edit
from lfp_lens.parts.saes import random_twin
from lfp_lens.parts.scalars import expected_valence
from lfp_lens.parts.screening import screen
from lfp_lens.parts.sites import activations_at
from lfp_lens.parts.teacher_forced import Reading, TeacherForced
from lfp_lens.results.share_curves import ShareCurves
from lfp_lens.results.train_sae import SAERecord

MODES = ("zero", "mean", "resample")
SIZES, DOSES = (3, 10, 30, 100, 300), (1.0, 2.0, 4.0)
DRAWS = 2
"""Next tokens drawn at each place for the damage of the screen."""


@dataclass(frozen=True, eq=False)
class Contender:
    """Dictionaries that are asked what they carry."""

    name: str
    """Its name in the curves."""
    dictionaries: Mapping[str, Dictionary]
    """By site."""
    seed: int = 0
    """Which of several dictionaries of one name."""
    is_floor: bool = False
    """Whether it learned no features of the tuned model, or needs none."""
    order: tuple[tuple[str, int], ...] | None = None
    """(site, index), the first counting most; None orders the features by the screen."""


@dataclass(frozen=True, eq=False)
class Selection:
    """The texts that orders are made on."""

    data: Sequence[Batch]
    """Other texts than those that shares are measured on."""
    values_V: torch.Tensor
    """The lexicon value that each token promises."""
    n_texts: int
    """How many texts."""


def share_curves(
    forced: TeacherForced,
    contenders: Iterable[Contender],
    selection: Selection,
    *,
    modes: Sequence[str] = MODES,
    sizes: Sequence[int] = SIZES,
    doses: Sequence[float] = DOSES,
    seed: int = 0,
) -> ShareCurves:
    """Measure how much of the gain every contender removes, and at what KL.

    Args:
        forced: the tuned model on the texts to measure on, with the base beside it.
        contenders: what to compare, floors among them; made one after another, so that they may be a generator.
        selection: other texts.
        modes: what features are set to: `zero`, `mean`, `resample`.
        sizes: numbers of features to remove; a contender that has fewer is measured with all it has.
        doses: how often they are removed; 1 is ablation.
        seed: of drawn tokens and resampling.
    """
    assert forced.other is not None, "shares of the gain need the base beside the tuned model"
    rows: list[tuple[str, str, int, int, float, np.ndarray, np.ndarray]] = []
    floors = []
    for contender in tqdm(contenders, desc="share curves"):
        if contender.is_floor:
            floors.append(contender.name)
        ready = ordered(forced, contender, selection, modes=modes, most=max(sizes), seed=seed)
        for mode, k, dose, reading in _measured(forced, ready, sizes, doses, seed):
            rows.append((contender.name, mode, contender.seed, k, dose, reading.valence, reading.kl))
    name, mode_, seeds, ks, dosed, valence, kl = zip(*rows) if rows else ((),) * 7
    shape = (len(rows), len(forced.tokens))
    return ShareCurves(
        name=tuple(name), mode=tuple(mode_), seed=np.array(seeds, int), k=np.array(ks, int), dose=np.array(dosed, float),
        valence=np.array(valence).reshape(shape), kl=np.array(kl).reshape(shape), tokens=forced.tokens,
        tuned=forced.clean.valence, base=forced.other.clean.valence, floors=tuple(dict.fromkeys(floors)),
        n_select=selection.n_texts,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Ordered:
    """A contender whose features are in order, ready to be removed."""

    contender: Contender
    """Whose features."""
    orders: Mapping[str, tuple[tuple[str, int], ...]]
    """Mode -> (site, index), the first to be removed first; empty where no feature has a positive effect."""
    reference: Mapping[str, Mapping[str, torch.Tensor]]
    """Mode -> site -> features `[tokens, F]` that they are set to the mean of, or drawn from."""

    def edits(self, mode: str, k: int, dose: float, *, seed: int = 0) -> dict[str, Edit]:
        """Give the edits that remove the first k features `dose` times."""
        chosen: dict[str, list[int]] = {}
        for site, index in self.orders[mode][:k]:
            chosen.setdefault(site, []).append(index)
        return {
            site: feature_edit(
                dictionary,
                chosen[site],
                mode=mode,
                scale=1.0 - dose,
                reference_MF=self.reference[mode].get(site),
                seed=seed,
            )
            for site, dictionary in self.contender.dictionaries.items()
            if site in chosen
        }


def ordered(
    forced: TeacherForced, contender: Contender, selection: Selection, *, modes: Sequence[str] = MODES,
    most: int = max(SIZES), seed: int = 0,
) -> Ordered:  # fmt: skip
    """Screen a contender's features on the selection's texts and put them in order, once per mode."""
    found = screen(
        forced.model, contender.dictionaries, selection.data, expected_valence, values_V=selection.values_V,
        base=None if forced.other is None else forced.other.model, begin=forced.begin,
        draws=0 if contender.order else DRAWS, seed=seed,
    )  # fmt: skip
    places = list(zip(found.site, found.index.tolist()))
    orders: dict[str, tuple[tuple[str, int], ...]] = {}
    reference: dict[str, dict[str, torch.Tensor]] = {}
    for mode in modes:
        orders[mode] = contender.order or tuple(places[at] for at in found.joint_order(mode, most=most))
        sites = dict.fromkeys(site for site, _ in orders[mode]) if mode in ("mean", "resample") else ()
        if mode == "resample":
            reference[mode] = {site: forced.features(contender.dictionaries[site]) for site in sites}
        else:
            own = {site: found.mean_activation[[at == site for at in found.site]] for site in sites}
            reference[mode] = {site: torch.tensor(mean, dtype=torch.float32)[None] for site, mean in own.items()}
    return Ordered(contender, orders, reference)


def _measured(
    forced: TeacherForced, ready: Ordered, sizes: Sequence[int], doses: Sequence[float], seed: int
) -> Iterator[tuple[str, int, float, Reading]]:
    for mode, order in ready.orders.items():
        for k in dict.fromkeys(min(size, len(order)) for size in sizes if order):
            for dose in doses:
                yield mode, k, dose, forced.read(ready.edits(mode, k, dose, seed=seed))


def floor_contenders(
    tuned: Any, base: Any, records: Sequence[SAERecord], selection: Selection, *, begin: int | None, seed: int = 0
) -> Iterator[Contender]:
    """Give the floors of some SAEs, one per site and of one kind: what the same question finds without learned features.

    Untrained and random-direction twins of the SAEs, all principal components of what they read, the layers' neurons, and the
    mean difference of the two models, as a vector that is subtracted and as a direction that is projected away. The untrained
    twins are left out where they were not kept when the SAEs were trained.

    Args:
        tuned: the tuned model.
        base: the base model.
        records: SAEs of different sites.
        selection: the texts that means are taken over.
        begin: beginning-of-text token.
        seed: of the random directions.
    """
    device = tuned.device
    weights = {one.site: one.floors["untrained"].weights for one in records if "untrained" in one.floors}
    if len(weights) == len(records):
        yield Contender("untrained", {one.site: as_dictionary(_with(one, weights[one.site]), device=device) for one in records},
                        is_floor=True)  # fmt: skip
    side = records[0].side if records else "tuned"
    yield Contender("pca", principal_dictionaries(tuned, base, [one.site for one in records], side, selection.data, begin=begin),
                    is_floor=True)  # fmt: skip
    random = {
        one.site: as_dictionary(_with(one, random_twin(one.weights, seed=seed + at)), device=device)
        for at, one in enumerate(records)
        if one.side != "both"
    }
    if random:
        yield Contender("random directions", random, is_floor=True)
    layers = {one.site: neurons(tuned, one.site) for one in records}
    yield Contender("neurons", {own.site: own for own in layers.values()}, is_floor=True)
    sites = [one.site for one in records]
    means = [mean_activations(model, selection.data, sites, begin=begin) for model in (tuned, base)]
    for name, make in (("mean difference", mean_difference), ("mean direction", mean_direction)):
        yield Contender(name, {site: make(site, means[0][site], means[1][site]) for site in sites}, is_floor=True)


def _with(record: SAERecord, weights: Any) -> SAERecord:
    return replace(record, weights=weights)


def principal_dictionaries(
    tuned: Any, base: Any, sites: Sequence[str], side: str, data: Sequence[Batch], *, begin: int | None
) -> dict[str, Dictionary]:
    """Give all principal components of the tuned model's activations at every site, or for side `difference` of the change."""
    sums = {site: [torch.zeros(()), torch.zeros(())] for site in sites}
    count = 0
    for batch in data:
        content_BS = batch.content(begin)
        acts = activations_at(tuned, batch.ids_BS, batch.mask_BS, sites)
        other = activations_at(base, batch.ids_BS, batch.mask_BS, sites) if side == "difference" else {}
        count += int(content_BS.sum())
        for site in sites:
            rows_ND = acts[site][content_BS].double()
            if other:
                rows_ND = rows_ND - other[site][content_BS].double()
            sums[site] = [sums[site][0] + rows_ND.sum(0), sums[site][1] + rows_ND.T @ rows_ND]
    found = {}
    for site, (total_D, squares_DD) in sums.items():
        mean_D = total_D / max(count, 1)
        _, vectors_DC = torch.linalg.eigh(squares_DD / max(count, 1) - torch.outer(mean_D, mean_D))
        found[site] = components(site, mean_D.float(), vectors_DC.T.flip(0).float().contiguous(), side)
    return found


def mean_activations(
    model: Any, data: Sequence[Batch], sites: Sequence[str], *, begin: int | None
) -> dict[str, torch.Tensor]:
    """Give the mean activation `[D]` at content tokens of every site."""
    sums = {site: torch.zeros(()) for site in sites}
    count = 0
    for batch in data:
        content_BS = batch.content(begin)
        acts = activations_at(model, batch.ids_BS, batch.mask_BS, sites)
        count += int(content_BS.sum())
        for site in sites:
            sums[site] = sums[site] + acts[site][content_BS].double().sum(0)
    return {site: (total / max(count, 1)).float() for site, total in sums.items()}
