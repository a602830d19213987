"""`from_sae=`: which dictionary each SAE starts from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.parts.sae_files import read_sae
from lfp_lens.results.train_sae import SAERecord, SAESet, SAEWeights
from lfp_lens.stages.train_sae.plan import Spec

STANDS_IN = {"tuned": ("tuned", "base"), "base": ("base", "tuned"), "difference": ("difference",), "both": ("both",)}
"""Side -> the sides whose dictionaries may start it, best first: tuning moves activations little."""


def find_starts(from_sae: Any, specs: Sequence[Spec]) -> dict[Spec, SAEWeights]:
    """Give each spec the dictionary that it starts from; nothing for None.

    A set gives each spec its SAE of the same site, size and architecture, of the same side or else of the other model. One
    dictionary (a record, a folder, an original checkpoint) starts every spec, so they must all be of one site. Raises
    `LensError` where a spec would have none.
    """
    if from_sae is None:
        return {}
    if isinstance(from_sae, SAESet):
        return {spec: _of_set(from_sae, spec) for spec in specs}
    if not isinstance(from_sae, (SAERecord, str, Path)):
        raise LensError(
            f"from_sae is an SAESet, an SAERecord, a folder or an original checkpoint; a {type(from_sae).__name__} given."
        )
    weights = from_sae.weights if isinstance(from_sae, SAERecord) else read_sae(from_sae)
    sites = {spec.site for spec in specs}
    own = from_sae.site if isinstance(from_sae, SAERecord) else _site(weights.config)
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
            return found[0].weights
    have = ", ".join(sorted({f"{sae.side} {sae.site} x{sae.size:g} {sae.architecture}" for sae in saes.saes}))
    raise LensError(f"from_sae holds no SAE to start {spec.name} from. It holds {have}.")
