"""Which sites may be interpreted, and which of their features come first."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.results.attribute import Effects
from lfp_lens.results.train_sae import SAESet
from lfp_lens.stages.explain.firing import Watched

SELECTS = ("mmcs", "attribution", "all")


@dataclass(frozen=True, eq=False)
class Wanted:
    """Features by site, first choice first, and how many of those that fire are taken."""

    order: dict[str, np.ndarray]
    """Site -> feature indices."""
    per_site: int | None = None
    """How many at each site; None is all."""
    strength: dict[tuple[str, int], float] | None = None
    """|effect| of each feature, where they compete over all sites."""
    overall: int | None = None
    """How many over all sites, the strongest; None is all."""


@dataclass(frozen=True)
class Listed:
    """A feature on the list that was decided before any was labelled."""

    site: str
    """Where it is."""
    index: int
    """Which one."""
    is_alive: bool
    """Whether it fires on the shown texts."""


def choose_sites(saes: SAESet, side: str, size: float | None, gate: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Give the sites to explain, in layer order, and why some SAE there is not good enough to interpret."""
    if gate not in ("refuse", "warn"):
        raise unknown("gate", gate, ("refuse", "warn"))
    if side not in ("base", "tuned"):
        raise unknown("side", side, ("base", "tuned"))
    chosen = [saes.one(site, side=side, size=size) for site in saes.sites]
    skipped = {sae.site: "; ".join(sae.failures) for sae in chosen if sae.failures}
    return (saes.passing(side=side, size=size) if gate == "refuse" else saes.sites), skipped


def wanted_features(
    saes: SAESet,
    sites: tuple[str, ...],
    select: str,
    effects: Effects | None,
    k: int,
    side: str,
    size: float | None,
) -> Wanted:
    """Rank the features at the sites. Raises `LensError` where the choice needs what is not there."""
    if select not in SELECTS:
        raise unknown("way to select features", select, SELECTS)
    if select == "all":
        return Wanted({site: np.arange(saes.one(site, side=side, size=size).n_features) for site in sites})
    if select == "mmcs":
        return Wanted({site: _best_matched(saes, site, side, size) for site in sites}, per_site=k)
    return _strongest(saes, sites, effects, k, side, size)


def _best_matched(saes: SAESet, site: str, side: str, size: float | None) -> np.ndarray:
    smallest = saes.one(site, side=side)
    if size is not None and size != smallest.size:
        raise LensError(
            f"select='mmcs' ranks the features of the smallest SAE, which has size {smallest.size:g} at "
            f"{site}; size={size:g} was asked for. Leave size out, or use select='attribution' or 'all'."
        )
    if not any((match.relation, match.left) == ("sizes", smallest.name) for match in saes.matches):
        raise LensError(
            f"select='mmcs' needs {side} SAEs of two sizes at {site}, whose features can be matched. Train "
            "with sizes=(1, 2), or use select='attribution' or 'all'."
        )
    ranked = saes.match(smallest, "sizes").ranked()
    assert len(ranked) == smallest.n_features, (len(ranked), smallest.n_features)
    return ranked


def _strongest(
    saes: SAESet, sites: tuple[str, ...], effects: Effects | None, k: int, side: str, size: float | None
) -> Wanted:
    if effects is None:
        raise LensError("select='attribution' needs the effects: pass effects=attribute(pair, saes, texts).")
    strength = {
        (site, int(index)): abs(float(effect))
        for site, index, effect in zip(effects.site, effects.index, effects.exact)
        if np.isfinite(effect) and site in sites
    }
    if not strength:
        raise LensError(
            f"No feature at {', '.join(sites)} has a confirmed effect. Run attribute with a larger confirm."
        )
    ranked = sorted(strength, key=lambda feature: (-strength[feature], feature))
    order = {site: np.array([index for at, index in ranked if at == site]) for site in sites}
    order = {site: indices for site, indices in order.items() if len(indices)}
    for site in order:
        theirs = effects.saes.one(site, side=effects.side, size=effects.size)
        if theirs.weights != saes.one(site, side=side, size=size).weights:
            raise LensError(
                f"The effects were measured on the {effects.side} SAE of size {theirs.size:g}, not on the {side} "
                f"SAE asked for at {site}. Pass side={effects.side!r}, size={effects.size!r} and the same saes."
            )
    return Wanted(order, strength=strength, overall=k)


def listed(wanted: Wanted, watched: Mapping[str, Watched]) -> tuple[Listed, ...]:
    """Walk down the order of each site, or of all together, until enough features fire; dead ones on the way are listed."""
    found = [
        Listed(site, int(index), bool(is_alive))
        for site, own in watched.items()
        for index, is_alive in list(zip(own.order, own.is_alive()))[: own.n_listed()]
    ]
    if wanted.strength is None:
        return tuple(found)
    strength = wanted.strength
    ranked = sorted(found, key=lambda one: -strength[one.site, one.index])
    enough = np.flatnonzero(np.cumsum([one.is_alive for one in ranked]) == wanted.overall)
    return tuple(ranked[: int(enough[0]) + 1] if len(enough) else ranked)
