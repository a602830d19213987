"""Tables 6 and 7 of the paper beside ours, with the intervals and controls that they lacked."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lfp_lens.results import published
from lfp_lens.results.ablate_readings import FEATURES, FiringRates

if TYPE_CHECKING:
    import pandas as pd

    from lfp_lens.results.share_curves import ShareCurves

OURS, PRINTED = "this run", "PUBLISHED"
CLAIM_KL = 0.03
"""Nats per token at which the claim is made."""
CLAIM_MARGIN = 0.1
"""Points of share by which features must lead every floor before they are said to carry the gain."""
NEEDED = ("untrained", "pca", "base SAE")
"""Floors without which nothing is claimed: the others are always there."""
NO_FLOORS = "no floor was measured, so nothing is claimed of features rather than of any direction"


def rewards_table(ours: Mapping[str, Any]) -> "pd.DataFrame":
    """Give Table 6, reward before and after ablation: this run's row, then the published ones."""
    import pandas as pd

    printed = published.ablation_table().set_index("table")
    rows: list[Mapping[str, Any]] = [{"source": OURS, **ours}]
    for model in printed:
        before, after = (float(printed.loc[f"6: mean reward {when}", model]) for when in ("before", "after"))
        rows.append({
            "source": f"{PRINTED}: {model}", "before": before, "after": after, "difference": round(after - before, 2)
        })  # fmt: skip
    return pd.DataFrame(rows)


def rates_table(rates: FiringRates) -> "pd.DataFrame":
    """Give Table 7: firing rates in percent."""
    import pandas as pd

    ours = rates.to_frame()
    ours.insert(0, "source", OURS)
    printed = published.ablation_table().set_index("table")
    rows = [
        {
            "source": f"{PRINTED}: {model}",
            "group": group,
            "high": float(printed.loc[f"7: firing rate, {group} (%)", model]),
        }
        for model in printed
        for group in ("flagged features", "all features")
    ]
    return pd.concat([ours, pd.DataFrame(rows)], ignore_index=True)


def verdict(curves: "ShareCurves | None") -> str:
    """Say whether the features of the SAEs carry the gain: only if they lie 10 points of share above every floor, zeroed and set
    to their mean, at a KL of 0.03 nats per token."""
    if curves is None or not curves.floors:
        return NO_FLOORS
    names = [name for name in curves.names if name not in curves.floors and name != FEATURES]
    if not names:
        return "no feature of these dictionaries lifts valence on the texts that screen, so none is said to carry it"
    lacking = [floor for floor in NEEDED if floor not in (*curves.floors, *names)]
    if lacking:
        return f"not measured beside {' and '.join(lacking)}, so nothing is claimed of features rather than of any direction"
    told = []
    for name in names:
        verb = "does not lie above every floor"
        if curves.carries(name, kl=CLAIM_KL, margin=CLAIM_MARGIN):
            verb = "carries it"
        elif curves.carries(name, kl=CLAIM_KL):
            verb = f"lies above every floor by less than {CLAIM_MARGIN:g}"
        n_seeds = len(set(curves.seed[[own == name for own in curves.name]].tolist()))
        parts = []
        for mode in ("zero", "mean"):
            share, leads = curves.share(name, mode=mode, kl=CLAIM_KL), curves.lead(name, mode=mode, kl=CLAIM_KL)
            if not leads or not np.isfinite(share.value):
                parts.append(f"{mode}: no share, because the tuned model gained nothing")
                continue
            floor = min(leads, key=lambda one: leads[one].value)
            lead = leads[floor]
            parts.append(
                f"{mode} {share.value:.2f}, best floor ({floor}) {share.value - lead.value:.2f}, "
                f"lead {lead.value:+.2f} [{lead.low:+.2f}, {lead.high:+.2f}]"
            )
        seeds = "one seed" if n_seeds == 1 else f"{n_seeds} seeds"
        told.append(f"{name} ({seeds}) {verb}: share of the gain at KL {CLAIM_KL:g}: {'; '.join(parts)}")
    return ". ".join(told)
