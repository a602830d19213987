"""Tables 1 and 8 of the paper, and the counts of its appendix B: how many features a labeller relates to the task, by side.

The paper prints descriptions without a score. Here each stands beside its scores on held-out windows and their controls, and a
count stands beside its interval and beside whether a second judgement agreed.
"""

from typing import TYPE_CHECKING

import numpy as np

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import Estimate, share_difference, share_estimate
from lfp_lens.results import published

if TYPE_CHECKING:
    import pandas as pd

    from lfp_lens.results.explain import Labels

OURS, PRINTED, ALL = "this run", "PUBLISHED", "all sites"
COUNT_COLUMNS = ["source", "side", "site", "chosen", "labelled", "relevant", "percent", "low", "high", "judgements"]
RELIABILITY = {True: "reliable", False: "unreliable: kappa below 0.6", None: "agreement not measured"}


def table1(labels: "Labels", n: int, seed: int) -> "pd.DataFrame":
    """Give a random draw of labelled features; see `Labels.table1`."""
    frame = table8(labels)
    frame = frame[frame["status"] == "labelled"]
    if not 1 <= n <= len(frame):
        raise LensError(f"n={n} features cannot be drawn from {len(frame)} labelled ones.")
    rows = np.sort(np.random.default_rng(seed).choice(len(frame), size=n, replace=False))
    return frame.iloc[rows].drop(columns="status").reset_index(drop=True)


def table8(labels: "Labels") -> "pd.DataFrame":
    """Give every chosen feature in layer order; see `Labels.table8`."""
    frame = labels.to_frame()
    frame.insert(0, "layer", [int(site.split(".")[1]) for site in labels.site])
    frame["judgements"] = RELIABILITY[labels.is_reliable]
    order = np.argsort([labels.saes.sites.index(site) for site in labels.site], kind="stable")
    return frame.iloc[order].reset_index(drop=True)


def counts(labels: "Labels", base: "Labels | None") -> "pd.DataFrame":
    """Count relevant among labelled features by site, beside the base's and the published counts; see `Labels.counts`."""
    import pandas as pd

    rows = _rows(labels)
    if base is not None:
        rows += _rows(base)
        rows.append(_difference(OURS, f"{labels.side} - {base.side}", share_gap(labels, base)))
    source = f"{PRINTED} ({published.APPENDIX_B_MODEL})"
    printed = {side: share_estimate(*count) for side, count in published.APPENDIX_B.items()}
    for side, (hits, n) in published.APPENDIX_B.items():
        rows.append((source, side, ALL, n, n, hits, *_percent(printed[side]), "one judge"))
    rows.append(_difference(source, "tuned - base", share_difference(printed["tuned"], printed["base"])))
    return pd.DataFrame(rows, columns=COUNT_COLUMNS)


def share_gap(labels: "Labels", base: "Labels") -> Estimate:
    """Give the difference of the shares of relevant features; see `Labels.minus`."""
    for name in ("labeller", "task", "select"):
        ours, theirs = getattr(labels, name), getattr(base, name)
        if ours != theirs:
            raise LensError(
                f"Two labellings can be compared if they differ in side only; {name} is {ours!r} here, {theirs!r} there."
            )
    if labels.side == base.side:
        raise LensError(f"Both labellings are of the {labels.side} side: give the labels of the other one.")
    if labels.saes.pair != base.saes.pair:
        raise LensError("The two labellings are of different pairs.")
    return share_difference(*(share_estimate(*_relevant(one, _everywhere(one))) for one in (labels, base)))


def _rows(labels: "Labels") -> list[tuple[object, ...]]:
    site = np.array(labels.site)
    wheres = [(name, site == name) for name in labels.saes.sites if name in labels.site]
    rows: list[tuple[object, ...]] = []
    for name, where in [*wheres, (ALL, _everywhere(labels))]:
        hits, n = _relevant(labels, where)
        share = _percent(share_estimate(hits, n))
        rows.append((OURS, labels.side, name, int(where.sum()), n, hits, *share, RELIABILITY[labels.is_reliable]))
    return rows


def _everywhere(labels: "Labels") -> np.ndarray:
    return np.ones(len(labels.site), bool)


def _relevant(labels: "Labels", where: np.ndarray) -> tuple[int, int]:
    """Count (relevant, labelled) features among those of a mask; a dead or unanswered one is neither."""
    labelled = where & (np.array(labels.status) == "labelled")
    return int(labels.is_relevant[labelled].sum()), int(labelled.sum())


def _percent(share: Estimate) -> tuple[float, float, float]:
    return 100 * share.value, 100 * share.low, 100 * share.high


def _difference(source: str, side: str, gap: Estimate) -> tuple[object, ...]:
    return (source, side, ALL, np.nan, gap.n, np.nan, *_percent(gap), "")
