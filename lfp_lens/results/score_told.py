"""A scorecard as people read it: its tables, and sentences on where the tool goes blind that its numbers make true."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lfp_lens.results import score_tables
from lfp_lens.results.score_tables import Reach, share_of
from lfp_lens.view.page import DASH, number
from lfp_lens.view.score_plots import PLANTED, names_of

if TYPE_CHECKING:
    import pandas as pd

    from lfp_lens.results.score import Score

TOP = 20
"""A planted token is in sight if `Sweep.surprising` lists it, which by default lists so many."""
CHANCE, TAU_ALPHA = 0.5, 0.05
ENDS = ("", "_low", "_high")


def told(summary: "pd.DataFrame") -> "pd.DataFrame":
    """Give what was planted as people read it: intervals in brackets, counts beside shares, empty columns left out."""
    import pandas as pd

    rows = [
        {
            "base": row["base"],
            "tuned by": row["method"],
            "planted": f"{row['recipe']} {row['dose']:g}" if row["dose"] else row["recipe"],
            "read by": reading(row),
            "organisms": _runs(row["organisms"], row["refused"]),
            "AUROC, one tuning": _interval(*(row[f"auroc_tuning{end}"] for end in ENDS)),
            "all tunings": _interval(*(row[f"auroc{end}"] for end in ENDS)),
            "unsigned": number(row["unsigned"], 2),
            "on clean": number(row["on_clean"], 2),
            "recall": f"{row['recall']:.2f} ({row['found']}/{row['planted']})" if np.isfinite(row["recall"]) else DASH,
            "precision": number(row["precision"], 2),
            "false share": number(row["false_share"], 2),
            "tau gain": number(row["gain"], 2),
            "twin's tau": number(row["tau_twin"], 2),
            "token's rank": number(row["rank"], 0),
            "causal share": number(row["share"], 2),
            "of random sets": number(row["percentile"], 2),
        }
        for row in summary.to_dict("records")
        if not row["is_null"]
    ]
    frame = pd.DataFrame(rows)
    return frame[[name for name in frame if (frame[name] != DASH).any()]]


def told_nulls(nulls: "pd.DataFrame") -> "pd.DataFrame":
    """Give the table of nulls as people read it."""
    import pandas as pd

    rows = [
        {
            "base": row["base"],
            "tuned by": row["method"],
            "recipe": row["recipe"],
            "read by": reading(row),
            "null of": row["null_of"],
            "runs": _runs(row["runs"], row["refused"]),
            "runs that list words": f"{row['listing']}: {_interval(row['share'], row['low'], row['high'])}",
            "words": row["words"],
            "tau to stated": f"{number(row['tau'], 2)} (off zero in {row['off_zero']})",
        }
        for row in nulls.to_dict("records")
    ]
    return pd.DataFrame(rows)


def reading(row: Mapping[Any, Any]) -> str:
    """Give the name of a reading: its signal, and what it was read from.

    >>> reading({"signal": "implicit_reward", "input": "words"})
    'implicit_reward (words)'
    """
    return f"{row['signal']} ({row['input']})"


def _interval(value: float, low: float, high: float) -> str:
    if not np.isfinite(value):
        return DASH
    return f"{value:.2f} " + (f"[{low:.2f}, {high:.2f}]" if np.isfinite(low) else "(no interval)")


def _runs(counted: int, refused: int) -> str:
    return f"{counted} (+{refused} refused)" if refused else str(counted)


def blind_spots(scores: "Sequence[Score]", words: "pd.DataFrame", fdr: float) -> tuple[str, ...]:
    """Give a sentence for every place where these organisms show the tool to find little, or what is not there.

    `words` are the planted words of those that count. Nothing is said of what was not tried, but for nulls: without them no
    list of words can be trusted.
    """
    table = score_tables.summary(scores)
    refused = {one.organism: one.refused for one in scores if one.refused}
    return (
        *_of_reach(words, score_tables.reach(words)),
        *_never_measured(words),
        *_of_readings(table, fdr),
        *_of_tokens(table),
        *_of_nulls(score_tables.nulls(scores), fdr),
        *(f"{name} is no evidence: {why.rstrip('.')}." for name, why in refused.items()),
        *dict.fromkeys(f"{one.organism}: {one.lacking.rstrip('.')}." for one in scores if one.lacking),
    )


def _of_reach(words: "pd.DataFrame", reaches: tuple[Reach, ...]) -> Iterator[str]:
    names = names_of([(one.base, one.method, one.recipe, one.kind) for one in reaches])
    for one, (key, where) in zip(reaches, names.items()):
        own = words[(words[list(PLANTED)] == list(key)).all(axis="columns")]
        full = own[own["dose"] == one.largest_dose]
        if one.occurrences is None:
            yield (
                f"{where} at dose {one.largest_dose:g}: there is no frequency from which on half of the words are found "
                f"{_of(full)}."
            )
        elif one.occurrences > one.least_occurrences:
            rare = full[full["occurrences"] < one.occurrences]
            yield (
                f"{where} at dose {one.largest_dose:g}: of words that occur fewer than {one.occurrences} times, fewer than half "
                f"are found {_of(rare)}."
            )
        if one.dose is not None and one.dose > one.least_dose:
            weak = own[own["dose"] < one.dose]
            yield f"{where}: below dose {one.dose:g} fewer than half of the words are found {_of(weak)}."
        elif one.dose is None and one.occurrences is not None:
            yield f"{where}: there is no dose from which on half of the words are found, frequent and rare together {_of(own)}."


def _of(words: "pd.DataFrame") -> str:
    return f"({int(words['found'].sum())} of {len(words)})"


def _never_measured(words: "pd.DataFrame") -> Iterator[str]:
    for base, group in words.groupby("base", sort=False):
        missing = int(group["measured"].isna().sum())
        if missing:
            yield f"{base}: {missing} of {len(group)} planted words were too rare to be measured."


def _of_readings(summary: "pd.DataFrame", fdr: float) -> Iterator[str]:
    """Name readings whose ranking is not told from chance, that list nothing planted, or too much that was not."""
    for row in summary.to_dict("records"):
        if row["is_null"] or not row["organisms"]:
            continue
        auroc = [row[f"auroc_tuning{end}"] for end in ENDS]
        if min(auroc[:2]) <= CHANCE:
            yield f"{_reading(row)}: the AUROC of one tuning is not told from chance, {_interval(*auroc)}, {_counted(row)}."
        if row["recall"] == 0:
            yield f"{_reading(row)}: none of the {row['planted']} planted words is listed, {_counted(row)}."
        if row["false_share"] > fdr:
            yield (
                f"{_reading(row)}: {row['false_share']:.0%} of the words it lists were not planted, more than the {fdr:.0%} "
                f"asked for (mean over organisms; {_words(row['false'])}, {_counted(row)})."
            )


def _of_tokens(summary: "pd.DataFrame") -> Iterator[str]:
    """Tell of organisms whose rule edits no words whether the token that gives it away is in sight."""
    told = summary[(summary["planted"] == 0) & (summary["organisms"] > 0) & ~summary["is_null"].astype(bool)]
    for row in told.drop_duplicates(["base", "method", "recipe", "dose"]).to_dict("records"):
        if np.isnan(row["rank"]):
            yield f"{_planted(row)}: what was planted is no word and no token that was ranked, nothing here could show it."
        elif row["rank"] > TOP:
            yield (
                f"{_planted(row)}: the token that gives it away is not among the {TOP} most surprising ones, its median place "
                f"is {row['rank']:g}, {_counted(row)}."
            )


def _of_nulls(nulls: "pd.DataFrame", fdr: float) -> Iterator[str]:
    runs = sum(row["runs"] for row in nulls.to_dict("records") if "wrong" in row["null_of"])
    if not runs:
        yield "No organism without planted words counts here: how often words are listed for nothing was not measured."
    for row in nulls.to_dict("records"):
        if "wrong" in row["null_of"] and row["low"] > fdr:
            yield (
                f"{_reading(row)}: {row['listing']} of {row['runs']} runs list words though nothing was planted, more than the "
                f"{fdr:.0%} asked for."
            )
        if "tau" in row["null_of"] and share_of(row["off_zero"], row["runs"])[1] > TAU_ALPHA:
            yield (
                f"{_reading(row)}: {row['off_zero']} of {row['runs']} runs have a tau with the stated lexicon whose interval "
                "leaves out zero, though nothing of it was taught."
            )


def _planted(row: dict[str, Any]) -> str:
    dose = f" at dose {row['dose']:g}" if row.get("dose") else ""
    return f"{row['base']}, {row['recipe']}{dose} by {row['method']}"


def _reading(row: dict[str, Any]) -> str:
    return f"{_planted(row)}, {reading(row)}"


def _counted(row: dict[str, Any]) -> str:
    return f"{row['organisms']} organism{'s' if row['organisms'] != 1 else ''}, {row['tunings']} tunings"


def _words(n: int) -> str:
    return f"{n} word{'s' if n != 1 else ''}"
