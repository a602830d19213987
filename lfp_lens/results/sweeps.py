"""Sweeps: quality by one setting, averaged over sites and seeds (Figure 8, Tables 11 and 12 of the paper)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.stats import mean_estimate
from lfp_lens.results.saes import SAERecord

if TYPE_CHECKING:
    import pandas as pd

SETTINGS = ("l1", "k", "lr", "architecture", "size", "seed", "site", "side", "n_train_tokens")
"""What dictionaries of one set may differ in."""
MEASURES = ("mse", "l0", "explained_variance", "kl_recovered", "ce_recovered", "dead_share", "shrinkage")
"""What is averaged; `mse` is the paper's "reconstruction loss", `l0` its "true sparsity" times 100."""
PAPER_SPARSITY_UNIT = 100
"""The paper prints mean L0 divided by this (most likely: Table 11's 0.291 is then 29.1 active features, as in Table 7)."""


def sweep(records: Sequence[SAERecord], name: str) -> "pd.DataFrame":
    """Give one row per value of a setting: every measure's mean over the dictionaries, with a 95 % interval.

    Args:
        records: the dictionaries; what else they differ in is averaged over.
        name: the setting that makes the rows: one of `SETTINGS`.

    Returns:
        Columns: the setting; `n_saes`; `n_units`, the different (side, site, seed) among them, which are what the
        interval resamples; each of `MEASURES` with `_low` and `_high` (NaN with fewer than two units); `true_sparsity`,
        mean L0 in the paper's unit. Rows are sorted where the setting is a number, else in the set's order.

    Raises `LensError` for an unknown setting or one that none of the dictionaries has.
    """
    import pandas as pd

    if name not in SETTINGS:
        raise unknown("setting of a sweep", name, SETTINGS)
    values = list(dict.fromkeys(getattr(sae, name) for sae in records if getattr(sae, name) is not None))
    if not values:
        kinds = ", ".join(dict.fromkeys(sae.architecture for sae in records)) or "none"
        raise LensError(f"No dictionary here has a setting {name!r}; architectures: {kinds}.")
    values = values if isinstance(values[0], str) else sorted(values)
    return pd.DataFrame(
        [{name: value} | _row([sae for sae in records if getattr(sae, name) == value]) for value in values]
    )


def _row(records: Sequence[SAERecord]) -> dict[str, float]:
    units: dict[tuple[str, str, int], list[SAERecord]] = {}
    for sae in records:
        units.setdefault((sae.side, sae.site, sae.seed), []).append(sae)
    row: dict[str, float] = {"n_saes": len(records), "n_units": len(units)}
    for measure in MEASURES:
        found = np.array([np.mean([getattr(sae, measure) for sae in unit]) for unit in units.values()], float)
        low = high = float("nan")
        if len(found) > 1 and np.isfinite(found).all():
            estimate = mean_estimate(found)
            low, high = estimate.low, estimate.high
        row |= {measure: float(found.mean()), f"{measure}_low": low, f"{measure}_high": high}
    return row | {"true_sparsity": row["l0"] / PAPER_SPARSITY_UNIT}
