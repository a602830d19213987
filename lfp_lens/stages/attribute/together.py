"""Features that carry a scalar together: a greedy set, screened again and again with what is already chosen removed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from lfp_lens.core.stats import Estimate
from lfp_lens.parts.activations import Batch
from lfp_lens.parts.interventions import Edit, feature_edit, intervening
from lfp_lens.parts.screening import Screen
from lfp_lens.results.joint import Joint
from lfp_lens.stages.attribute.confirm import Feature
from lfp_lens.stages.attribute.estimates import ratio_estimate, ratio_intervals
from lfp_lens.stages.attribute.reading import Reading
from lfp_lens.stages.attribute.screens import screened
from lfp_lens.stages.attribute.subject import Subject, text_scalars

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
N_RANDOM = 5
"""Random sets; each begins with the smaller one of its own."""
LIKE = 10
"""A random member is drawn from so many features of its site with the nearest firing rates."""


@dataclass(frozen=True, eq=False)
class Half:
    """Units of one half of the data."""

    data: Sequence[Batch]
    """Their batches."""
    units: Sequence[int]
    """Which."""


def together(
    subject: Subject, reading: Reading, select: Half, report: Half, first: Screen, *, base: object | None, most: int,
    per_token: bool, seed: int,
) -> Joint | None:  # fmt: skip
    """Choose features on one half one set after another, and measure the sets on the other half.

    Args:
        subject: the model.
        reading: all texts.
        select: where features are chosen.
        report: where their share is measured.
        first: the screen on `select` with nothing removed.
        base: the base model, where the share is of tuned minus base; None: of the scalar's value.
        most: features in the largest set.
        per_token: whether a unit counts by its tokens.
        seed: of the random sets and the intervals.

    Returns None if no feature carries any of it.
    """
    unit_values = _units(subject, reading, report, {})
    whole_U = unit_values - (0.0 if base is None else _units(subject, reading, report, {}, model=base))
    select_U = _units(subject, reading, select, {})
    select_U = select_U - (0.0 if base is None else _units(subject, reading, select, {}, model=base))
    direction = 1.0 if select_U.sum() >= 0 else -1.0
    chosen, sizes = _greedy(subject, reading, select, first, direction, most)
    if not chosen:
        return None
    draws = [_random_order(first, chosen, seed=seed + at) for at in range(N_RANDOM)]
    lost_SU, random_SU = [], np.full((len(sizes), N_RANDOM, len(report.units)), np.nan)
    for at, size in enumerate(tqdm(sizes, desc="joint")):
        lost_SU.append(unit_values - _units(subject, reading, report, edits(subject, chosen[:size])))
        for draw, order in enumerate(draws):
            if len(order) >= size:
                without = _units(subject, reading, report, edits(subject, order[:size]))
                random_SU[at, draw] = unit_values - without
    tokens_U = tokens_of(reading, report.units) if per_token else np.ones(len(report.units))
    low, high = ratio_intervals(np.array(lost_SU), whole_U, seed)
    total = whole_U.sum()
    divide = np.nan if total == 0 else 1 / total
    return Joint(
        features=tuple(chosen), sizes=np.array(sizes), share=np.array(lost_SU).sum(1) * divide, share_low=low, share_high=high,
        random=random_SU.sum(2) * divide, whole=_whole(whole_U, tokens_U, seed), of="value" if base is None else "gain",
    )  # fmt: skip


def _whole(whole_U: np.ndarray, tokens_U: np.ndarray, seed: int) -> Estimate:
    return ratio_estimate(whole_U, tokens_U, seed)


def edits(subject: Subject, features: Sequence[Feature]) -> dict[str, Edit]:
    """Give the edits that zero these features, by site."""
    sites = dict.fromkeys(site for site, _ in features)
    return {
        site: feature_edit(subject.dictionaries[site], [index for at, index in features if at == site])
        for site in sites
    }


def tokens_of(reading: Reading, units: Sequence[int]) -> np.ndarray:
    """Count the tokens of each unit."""
    lengths = np.bincount(reading.unit_T, [len(text.ids) for text in reading.encoded], reading.n_units)
    return lengths[list(units)]


def _units(
    subject: Subject, reading: Reading, half: Half, removed: Mapping[str, Edit], *, model: object | None = None
) -> np.ndarray:
    """Give the scalar of every unit of a half, with these edits in place."""
    if model is not None:
        by_text = text_scalars(subject, half.data, len(reading.encoded), model=model)
    else:
        with intervening(subject.model, removed, begin=subject.begin, base=subject.base if removed else None):
            by_text = text_scalars(subject, half.data, len(reading.encoded))
    by_unit = np.bincount(reading.unit_T, by_text.numpy() * reading.sign_T, reading.n_units)
    return by_unit[list(half.units)]


def _greedy(
    subject: Subject, reading: Reading, select: Half, first: Screen, direction: float, most: int
) -> tuple[list[Feature], list[int]]:
    """Give features in the order of choice, and the sizes at which the screen was run again."""
    chosen: list[Feature] = []
    sizes: list[int] = []
    found = first
    for size in [size for size in SIZES if size < most] + [most]:
        if chosen:
            found = screened(subject, reading, select.data, already=edits(subject, chosen))
        effect = direction * found.zero
        names = list(zip(found.site, found.index.tolist()))
        taken = set(chosen)
        order = [row for row in np.argsort(-effect, kind="stable") if effect[row] > 0 and names[row] not in taken]
        more = [names[row] for row in order[: size - len(chosen)]]
        chosen += more
        if more:
            sizes.append(len(chosen))
        if len(chosen) < size:
            break
    return chosen, sizes


def _random_order(first: Screen, chosen: Sequence[Feature], *, seed: int) -> list[Feature]:
    """Draw for each chosen feature one that was not chosen, of its site and of a like firing rate, until none is left."""
    generator = np.random.default_rng(seed)
    site, used = np.array(first.site), set(chosen)
    rate = {(at, index): value for at, index, value in zip(first.site, first.index.tolist(), first.firing_rate)}
    order: list[Feature] = []
    for feature in chosen:
        own = np.flatnonzero((site == feature[0]) & (first.firing_rate > 0))
        free = [row for row in own if (feature[0], int(first.index[row])) not in used]
        if not free:
            break
        gap = np.abs(np.log(first.firing_rate[free]) - np.log(rate[feature]))
        picked = free[int(generator.choice(np.argsort(gap, kind="stable")[:LIKE]))]
        order.append((feature[0], int(first.index[picked])))
        used.add(order[-1])
    return order
