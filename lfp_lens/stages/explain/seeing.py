"""What is seen: the list of features, which of them fire, what they do, and random directions watched beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from lfp_lens.core.errors import LensError
from lfp_lens.parts.activation_cache import ActivationCache
from lfp_lens.parts.harvest import Models
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import random_twin
from lfp_lens.results.train_sae import SAESet
from lfp_lens.stages.explain.evidence import Feature, n_silent_of, n_strongest
from lfp_lens.stages.explain.features import Listed, Wanted, listed
from lfp_lens.stages.explain.firing import Sizes, Watched, hold_out, watch
from lfp_lens.stages.explain.trials import MAX_WINDOWS
from lfp_lens.stages.explain.windows import Half, Words

SAMPLED = 3
"""Windows drawn per window shown, from which those of every quantile are taken."""
TRIED_RANDOM = 32
"""Random directions watched per one wanted, because some never fire."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is read, and how much is kept of it."""

    pair: Pair
    """The two models."""
    saes: SAESet
    """The dictionaries."""
    side: str
    """Whose activations and dictionaries."""
    size: float | None
    """Which dictionaries."""
    shown: Half
    """Texts that are shown to the labeller."""
    held: Half
    """Texts that explanations are tried on."""
    sizes: Sizes
    """How many windows are kept for every feature."""
    n_random: int
    """Random directions wanted."""
    seed: int
    """Of the random directions and of all draws."""


@dataclass(frozen=True, eq=False)
class Seen:
    """The list of features, those of it that fire, and the random directions."""

    listed: tuple[Listed, ...]
    """Every feature on the list, dead ones included."""
    alive: list[Feature]
    """Those that fire, in the order of the list."""
    random: list[Feature]
    """Random directions that fire."""
    words: Words
    """The words of the shown texts."""
    busy: Int[np.ndarray, " tokens"]
    """How many of the features that are explained fire strongly at each held-out token."""


def windows_kept(n_examples: int, repeat: bool) -> Sizes:
    """Give how many windows are kept; asking again needs as many once more."""
    times, n_silent = 1 + repeat, n_silent_of(n_examples)
    top = 2 * n_examples if repeat else n_strongest(n_examples)
    return Sizes(top, times * SAMPLED * n_examples, n_examples + 2 * times * n_silent, MAX_WINDOWS)


def see(plan: Plan, wanted: Wanted, cache: ActivationCache | None, bar: Any) -> Seen:
    """Read the model or the cache once, the shown half first, which decides the features that the rest is read for."""
    if cache is not None:
        _check_cache(plan, list(wanted.order), cache)
    own = _watched(plan, wanted)
    twins = _random_twins(plan, own)
    groups = {site: [own[site], *([twins[site]] if twins else [])] for site in own}
    pool = watch(plan.pair, plan.side, groups, plan.shown, cache, bar)
    chosen = listed(wanted, own)
    if not any(one.is_alive for one in chosen):
        raise LensError(
            f"None of the chosen features at {', '.join(wanted.order)} fires on the {len(plan.shown.encoded)} shown texts. "
            "Give more texts, or choose with select='all'."
        )
    for site, watched in own.items():
        watched.keep(np.sort(np.array([one.index for one in chosen if one.site == site and one.is_alive], int)))
    for watched in twins.values():
        n_first = watched.n_listed()
        watched.keep(np.sort(watched.order[:n_first][watched.is_alive()[:n_first]]))
    left = {site: [one for one in group if len(one.features)] for site, group in groups.items()}
    groups = {site: group for site, group in left.items() if group}
    for group in groups.values():
        for watched in group:
            watched.settle(plan.shown)
    clusters = pool.rest(groups)
    busy = hold_out(plan.pair, plan.side, groups, plan.held, clusters, cache, bar)
    alive = [Feature(f"{one.site} {one.index}", own[one.site], int(np.searchsorted(own[one.site].features, one.index)))
             for one in chosen if one.is_alive]  # fmt: skip
    random = [(twin, row) for twin in twins.values() for row in range(len(twin.features))][: plan.n_random]
    named = [Feature(f"random {number}", twin, row) for number, (twin, row) in enumerate(random)]
    return Seen(chosen, alive, named, plan.shown.words(), busy)


def _check_cache(plan: Plan, sites: list[str], cache: ActivationCache) -> None:
    """Refuse a cache that lacks a text of either half before anything is read."""
    for half in (plan.shown, plan.held):
        streams = [(plan.side, site) for site in sites]
        cache.reader(half.read, streams, plan.pair, Models({plan.side: plan.pair.hf(plan.side)}, half.read, streams))


def _watched(plan: Plan, wanted: Wanted) -> dict[str, Watched]:
    found = {}
    for site, order in wanted.order.items():
        record = plan.saes.one(site, side=plan.side, size=plan.size)
        found[site] = Watched(record, order, wanted.per_site, len(plan.shown.ids), plan.sizes, plan.pair.device)
    return found


def _random_twins(plan: Plan, own: Mapping[str, Watched]) -> dict[str, Watched]:
    """Watch random directions of the same norms and biases: what an explanation of nothing scores."""
    if not plan.n_random:
        return {}
    found, per_site = {}, -(-plan.n_random // len(own))
    for at, (site, watched) in enumerate(own.items()):
        record = watched.record
        drawn = np.random.default_rng((plan.seed, at)).permutation(record.n_features)[: TRIED_RANDOM * per_site]
        twin = replace(record, weights=random_twin(record.weights, seed=plan.seed + at))
        found[site] = Watched(twin, drawn, per_site, len(plan.shown.ids), plan.sizes, plan.pair.device, is_control=True)
    return found
