"""`from_sae=`: which dictionary each SAE starts from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.parts.sae_files import read_sae
from lfp_lens.parts.sae_starts import unfolded
from lfp_lens.parts.saes import new_sae
from lfp_lens.results.train_sae import SAERecord, SAESet, SAEWeights
from lfp_lens.stages.train_sae.plan import Spec

STANDS_IN = {"tuned": ("tuned", "base"), "base": ("base", "tuned"), "difference": ("difference",), "both": ("both",)}
"""Side -> the sides whose dictionaries may start it, best first: tuning moves activations little."""


def find_starts(from_sae: Any, specs: Sequence[Spec], own: Mapping[str, str]) -> dict[Spec, SAEWeights]:
    """Give each spec the dictionary that it starts from; nothing for None.

    A set gives each spec its SAE of the same site, size and architecture, of the same side or else of the other model, and
    among those the one with the most settings in common. One dictionary (a record, a folder, an original checkpoint) starts
    every spec, so they must all be of one site. `own` holds the fingerprints of base, tuned and the pair. Raises `LensError`
    where a spec would have none, where a dictionary does not fit or is another checkpoint's, and where two seeds would start
    from one dictionary: they would be copies.
    """
    if from_sae is None:
        return {}
    if isinstance(from_sae, SAESet):
        starts = {spec: _of_set(from_sae, spec) for spec in specs}
    elif isinstance(from_sae, (SAERecord, str, Path)):
        starts = _of_one(from_sae, specs)
    else:
        raise LensError(
            f"from_sae is an SAESet, an SAERecord, a folder or an original checkpoint; a {type(from_sae).__name__} given."
        )
    seen: dict[tuple[Spec, str], int] = {}
    for spec, weights in starts.items():
        owner = (weights.config.get("metadata") or {}).get("lfp_model")
        if owner is not None and owner not in own.values():
            raise LensError(
                f"The SAE to start {spec.name} from was trained on another checkpoint: its fingerprint is {owner}; base, tuned "
                f"and pair here are {', '.join(own.values())}."
            )
        fits(spec, weights)
        other = seen.setdefault((replace(spec, seed=0), weights.fingerprint), spec.seed)
        if other != spec.seed:
            raise LensError(
                f"Seeds {other} and {spec.seed} would both start from one dictionary at {spec.side} {spec.site}: they would be "
                "copies. Give a set with as many replicates, or replicates=1."
            )
    return starts


def fits(spec: Spec, weights: SAEWeights) -> None:
    """Raise `LensError` unless the dictionary can start this spec; a fresh SAE is made to ask it."""
    fresh = new_sae(
        spec.architecture, d_in=spec.d_in, d_sae=spec.d_sae, l1=spec.l1, k=spec.k, steps=1, seed=spec.start_seed
    )
    unfolded(fresh.cfg, weights, None)


def _of_one(given: SAERecord | str | Path, specs: Sequence[Spec]) -> dict[Spec, SAEWeights]:
    weights = given.weights if isinstance(given, SAERecord) else read_sae(given)
    sites = {spec.site for spec in specs}
    own = given.site if isinstance(given, SAERecord) else _site(weights.config)
    if len(sites) > 1 or (own is not None and own not in sites):
        raise LensError(
            f"from_sae is one SAE{f' of {own}' if own else ''}; SAEs at {', '.join(sorted(sites))} were asked for. Ask for that "
            "site alone, or give an SAESet."
        )
    return dict.fromkeys(specs, weights)


def _site(config: Mapping[str, Any]) -> str | None:
    metadata = config.get("metadata") or {}
    return metadata.get("hook_name") or config.get("hook_name")


def _of_set(saes: SAESet, spec: Spec) -> SAEWeights:
    for side in STANDS_IN[spec.side]:
        found = [
            sae for sae in saes.saes
            if (sae.side, sae.site, sae.architecture, sae.n_features) == (side, spec.site, spec.architecture, spec.d_sae)
        ]  # fmt: skip
        if found:
            return max(
                found, key=lambda sae: [sae.k == spec.k, sae.seed == spec.seed, sae.l1 == spec.l1, sae.lr == spec.lr]
            ).weights
    have = ", ".join(sorted({f"{sae.side} {sae.site} x{sae.size:g} {sae.architecture}" for sae in saes.saes}))
    raise LensError(f"from_sae holds no SAE to start {spec.name} from. It holds {have}.")
