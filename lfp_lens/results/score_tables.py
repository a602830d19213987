"""What scores add up to: means over organisms and tunings, words listed where nothing was planted, recall by frequency and dose.

Only organisms that count as evidence enter; those refused are counted beside them.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate
from lfp_lens.view.score_plots import PLANTED

if TYPE_CHECKING:
    import pandas as pd

    from lfp_lens.results.score import Score

GROUP = ("base", "method", "recipe", "is_null", "dose", "signal", "input")
"""Scores that agree in these are averaged."""
ESTIMATES = ("tau_given", "tau_stated", "gain", "share")
MEANS = ("unsigned", "on_clean", "tau_twin", "percentile")
NOTHING = ("none", "none")
"""Signal and input of an organism of which nothing could be read."""
NULL_OF = {"clean": "wrong", "noise": "wrong, tau", "seed": "wrong, tau", "shuffled": "tau"}
"""Recipe that plants nothing -> what should find nothing in it; in one of a user's own it is `wrong`."""
HALF = 0.5
"""The recall that `reach` asks for."""
SUMMARY = (
    *GROUP, "organisms", "refused", "auroc", "auroc_low", "auroc_high", "auroc_tuning", "auroc_tuning_low", "auroc_tuning_high",
    "tunings", "unsigned", "on_clean", "planted", "found", "recall", "recall_low", "recall_high", "false", "precision",
    "false_share", "false_share_low", "false_share_high", "gain", "gain_low", "gain_high", "tau_twin", "rank", "share",
    "percentile",
)  # fmt: skip
NULLS = (
    "base", "method", "recipe", "signal", "input", "null_of", "runs", "listing", "share", "low", "high", "words", "refused",
    "tau", "off_zero",
)  # fmt: skip
BINS = (*PLANTED, "from", "middle", "to", "n", "found", "recall", "low", "high")


@record
class Reach:
    """From where on the tool finds at least half of what was planted, for one base, method, recipe and kind.

    Recall is fitted as a curve that never falls (isotonic regression), so that a few words found by luck among rare ones, or
    many frequent ones, do not stand for the others. It has no interval: `Scorecard.recall_by` gives one per part.
    """

    base: str
    """The base model."""
    method: str
    """How it was tuned."""
    recipe: str
    """The recipe."""
    kind: str
    """The list that its words were looked for in: `flipped`, `muted` or `inflated`."""
    words: int
    """Planted words at all doses."""
    largest_dose: float
    """The dose that `occurrences` is told at."""
    least_occurrences: int
    """Occurrences of the rarest word planted at that dose."""
    occurrences: int | None
    """Least occurrences in the training texts from which recall is one half or more; None if it never is."""
    least_dose: float
    """The smallest dose planted."""
    dose: float | None
    """Least dose from which recall is one half or more, words of every frequency together; None if it never is."""


def summary(scores: "Sequence[Score]", *, draws: int = 2000, seed: int = 0) -> "pd.DataFrame":
    """Give one row per group of scores, as `Scorecard.summary` tells."""
    import pandas as pd

    rows = [
        dict(zip(GROUP, key)) | _row([one for one in group if one.is_evidence], refused, draws, seed)
        for key, (group, refused) in _by_reading(scores, GROUP).items()
    ]
    return pd.DataFrame(rows, columns=list(SUMMARY))


def _row(counted: "Sequence[Score]", refused: int, draws: int, seed: int) -> dict[str, Any]:
    # On a shuffled reward nearly every word of the lexicon is wrong: there is no list that they should be on.
    wrong = [one for one in counted if not one.is_null]
    tested = [one for one in wrong if one.is_tested]
    planted, found, false = (sum(getattr(one, name) for one in tested) for name in ("n_planted", "found", "false"))
    recall, low, high = share_of(found, planted)
    between = two_way_mean([np.array([one.recall]) for one in tested], draws=draws, seed=seed)
    if between.n > 1:
        low, high = between.low, between.high
    means = {
        "auroc": [np.array([one.auroc]) for one in counted],
        "auroc_tuning": [one.auroc_tunings for one in counted],
        "false_share": [np.array([one.false_share]) for one in counted],
        "gain": [np.array([one.gain.value]) for one in counted if one.gain],
    }
    ranks = [one.rank for one in counted if one.rank is not None]
    return {
        "organisms": len(counted),
        "refused": refused,
        **_with_ends({name: two_way_mean(values, draws=draws, seed=seed) for name, values in means.items()}),
        "tunings": sum(len(one.auroc_tunings) or one.tunings for one in counted),
        **{name: mean_of(getattr(one, name) for one in counted) for name in MEANS},
        **{"planted": planted if tested else sum(one.n_planted for one in wrong), "found": found, "false": false},
        **{"recall": recall, "recall_low": low, "recall_high": high},
        "precision": found / (found + false) if found + false else np.nan,
        "rank": float(np.median(ranks)) if ranks else np.nan,
        "share": mean_of(one.share.value for one in counted if one.share),
    }


def _with_ends(estimates: "Mapping[str, Estimate | None]") -> dict[str, float]:
    """Give three columns per estimate: its value and either end of its interval; NaN for one that is missing."""
    row: dict[str, float] = {}
    for name, found in estimates.items():
        ends = (np.nan,) * 3 if found is None else (found.value, found.low, found.high)
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends))
    return row


def spread(score: "Score") -> dict[str, Any]:
    """Give the row of one score, as `Scorecard.to_frame` tells."""
    row: dict[str, Any] = {}
    for field in dataclasses.fields(score):
        value = getattr(score, field.name)
        if field.name in ESTIMATES:
            row |= _with_ends({field.name: value})
        elif field.name == "auroc_tunings":
            row["auroc_tuning"] = mean_of(value)
        else:
            row[field.name] = np.nan if value is None else value
    return row | {name: getattr(score, name) for name in ("recall", "precision", "false_share", "is_evidence")}


def two_way_mean(values: "Sequence[Float[np.ndarray, ' tunings']]", *, draws: int = 2000, seed: int = 0) -> Estimate:
    """Give the mean over organisms of their mean over tunings, with a 95 % interval over both.

    A draw takes organisms, and then tunings within each, with replacement (the hierarchical bootstrap); the interval is the
    central 95 % of the draws' means. With one organism it says nothing of other organisms, with one tuning of each nothing of
    other tunings; with one of both there is none (NaN). It is too narrow for few organisms: of three tunings each, and normal
    values whose spread lies in the organisms, in the tunings or in both, it covers 76 to 93 % of the time with 3 organisms,
    84 to 96 % with 5, 91 to 98 % with 10.

    Args:
        values: for each organism, the values of its tunings; NaN are left out.
        draws: bootstrap draws.
        seed: of the draws.

    >>> two_way_mean([np.array([0.9, 0.9]), np.array([1.0])]).value
    0.95
    """
    kept = [known for found in values if len(known := np.asarray(found, float)[np.isfinite(found)])]
    if not kept:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    value = float(np.mean([known.mean() for known in kept]))
    counts = np.array([len(known) for known in kept])
    if counts.sum() < 2:
        return Estimate(value, float("nan"), float("nan"), 1)
    padded = np.full((len(kept), counts.max()), np.nan)
    for row, known in zip(padded, kept):
        row[: len(known)] = known
    generator = np.random.default_rng(seed)
    organisms = generator.integers(len(kept), size=(draws, len(kept)))[..., None]
    picks = generator.integers(counts[organisms], size=(draws, len(kept), counts.max()))
    is_drawn = np.arange(counts.max()) < counts[organisms]
    means = padded[organisms, picks].mean(axis=2, where=is_drawn).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(value, float(low), float(high), len(kept))


def nulls(scores: "Sequence[Score]") -> "pd.DataFrame":
    """Give one row per recipe that plants nothing, base, method and tested reading, as `Scorecard.nulls` tells."""
    import pandas as pd

    rows = []
    without = [one for one in scores if one.is_null]
    for key, (group, refused) in _by_reading(without, ("base", "method", "recipe", "signal", "input")).items():
        if not any(one.is_tested for one in group) and key[-2:] != NOTHING:
            continue
        counted = [one for one in group if one.is_evidence]
        listing = sum(one.listed > 0 for one in counted)
        taus = [one.tau_stated for one in counted if one.tau_stated]
        rows.append(
            dict(zip(("base", "method", "recipe", "signal", "input"), key))
            | {"null_of": NULL_OF.get(key[2], "wrong"), "runs": len(counted), "refused": refused, "listing": listing}
            | dict(zip(("share", "low", "high"), share_of(listing, len(counted))))
            | {"words": sum(one.listed for one in counted), "tau": mean_of(tau.value for tau in taus)}
            | {"off_zero": sum(tau.low > 0 or tau.high < 0 for tau in taus)}
        )
    return pd.DataFrame(rows, columns=list(NULLS))


def recall_by(words: "pd.DataFrame", name: str, bins: int = 4) -> "pd.DataFrame":
    """Give the share of planted words found per group of them and part of a column, as `Scorecard.recall_by` tells."""
    import pandas as pd

    if name not in ("occurrences", "dose", "stated"):
        raise unknown("column to divide by", name, ("occurrences", "dose", "stated"))
    if bins < 1:
        raise LensError(f"Planted words are cut into at least 1 part; bins={bins} given.")
    rows = []
    for key, group in words.groupby(list(PLANTED), sort=False):
        values, found = group[name].to_numpy(float), group["found"].to_numpy(bool)
        edges = np.unique(values) if name == "dose" else np.quantile(values, np.arange(1, bins) / bins)
        part = np.searchsorted(edges, values, side="left")
        for at in np.unique(part):
            here = values[part == at]
            hits = int(found[part == at].sum())
            rows.append((*key, here.min(), np.median(here), here.max(), len(here), hits, *share_of(hits, len(here))))
    return pd.DataFrame(rows, columns=list(BINS))


def at_largest_dose(words: "pd.DataFrame") -> "pd.DataFrame":
    """Keep, of each group, the words of its largest dose: other doses would pass for an effect of frequency."""
    return words[words["dose"] == words.groupby(list(PLANTED))["dose"].transform("max")]


def reach(words: "pd.DataFrame") -> tuple[Reach, ...]:
    """Tell, per group of planted words, from what frequency and what dose at least half of them are found."""
    told = []
    for key, group in words.groupby(list(PLANTED), sort=False):
        full = at_largest_dose(group)
        least = _least_above(full["occurrences"].to_numpy(float), full["found"].to_numpy(bool))
        told.append(Reach(
            **dict(zip(PLANTED, key)), words=len(group), largest_dose=float(group["dose"].max()),
            least_occurrences=int(full["occurrences"].min()), occurrences=None if least is None else int(least),
            least_dose=float(group["dose"].min()),
            dose=_least_above(group["dose"].to_numpy(float), group["found"].to_numpy(bool)),
        ))  # fmt: skip
    return tuple(told)


def _least_above(values: Float[np.ndarray, " words"], found: np.ndarray) -> float | None:
    """Give the least value from which a recall that never falls with the value is at least one half."""
    from scipy.optimize import isotonic_regression

    distinct, codes, n = np.unique(values, return_inverse=True, return_counts=True)
    fitted = isotonic_regression(np.bincount(codes, found) / n, weights=n).x
    # The fit averages: one half may come out a rounding below itself.
    above = np.flatnonzero(fitted >= HALF - 1e-9)
    return float(distinct[above[0]]) if len(above) else None


def share_of(hits: int, n: int) -> tuple[float, float, float]:
    """Give hits / n and its Clopper-Pearson 95 % interval; NaN of nothing.

    >>> [round(end, 3) for end in share_of(0, 20)]
    [0.0, 0.0, 0.168]
    """
    assert hits <= n, f"{hits} of {n}: count the words that were listed among those that count as planted"
    if not n:
        return float("nan"), float("nan"), float("nan")
    interval = stats.binomtest(hits, n).proportion_ci()
    return hits / n, float(interval.low), float(interval.high)


def mean_of(values: Iterable[float]) -> float:
    """Give the mean of the finite values; NaN where there is none.

    >>> mean_of([1.0, float("nan"), 3.0]), mean_of([])
    (2.0, nan)
    """
    found = np.array(list(values), float)
    found = found[np.isfinite(found)]
    return float(found.mean()) if len(found) else float("nan")


def _by_reading(scores: "Iterable[Score]", names: tuple[str, ...]) -> "dict[tuple[Any, ...], tuple[list[Score], int]]":
    """Group scores by `names`, of which the last two are signal and input; give each group's scores and its refused organisms.

    An organism that a gate refused before anything was read counts as refused in every reading of the others like it.
    """
    groups: dict[tuple[Any, ...], list[Score]] = {}
    refused: dict[tuple[Any, ...], set[str]] = {}
    for one in scores:
        key = tuple(getattr(one, name) for name in names)
        groups.setdefault(key, []).append(one)
        refused.setdefault(key[:-2], set()).update([one.organism] if one.refused else [])
    read = {key[:-2] for key in groups if key[-2:] != NOTHING}
    kept = {key: group for key, group in groups.items() if key[-2:] != NOTHING or key[:-2] not in read}
    return {key: (group, len(refused[key[:-2]])) for key, group in kept.items()}
