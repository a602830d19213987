"""Tables 2, 4, 5, 9 and 10 of the paper (arXiv 2310.08164) beside ours: our n, interval and control in the same row.

The paper's reading is a probe's rescaled output for words that were split by row; ours is the same on words whose lemma
the probe never saw (`rescaled`), beside the signal read directly (`measured`). Rows that begin with PUBLISHED are the
paper's, of its models.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import Estimate, RankAgreement, rank_agreement, tau_as_published
from lfp_lens.results import published

if TYPE_CHECKING:
    import pandas as pd

    from lfp_lens.results.grid import GridCell
    from lfp_lens.results.probe import Learned

AGREEMENT_COLUMNS = ["reading", "tau_b", "low", "high", "p_value", "test", "n", "tau_as_published",
                     "control", "control_tau", "control_low", "control_high"]  # fmt: skip
SIGN_COLUMNS = ["reading", "polarity", "percent_right", "low", "high", "n", "control", "control_percent"]
POLARITIES = {"positive": 1, "negative": -1}


def paper_table(learned: "Learned", number: int, *, words: int | Sequence[str] | None, seed: int) -> "pd.DataFrame":
    """Give one table of the paper beside ours; see `Learned.table`."""
    makers: Mapping[int, Callable[..., pd.DataFrame]] = {
        2: lambda: word_table(learned, published.TABLE_2, words, seed),
        4: lambda: agreement_table(learned, seed),
        5: lambda: sign_table(learned),
        9: lambda: word_table(learned, published.TABLE_9, words, seed),
        10: lambda: polarity_table(learned, seed),
    }
    if number not in makers:
        raise LensError(
            f"Table {number!r} is not among those of this result: give one of {', '.join(map(str, makers))}."
        )
    if isinstance(words, str):
        words = [words]
    if words is not None and number not in (2, 9):
        raise LensError(f"words= chooses the rows of Tables 2 and 9; Table {number} is of all words.")
    return makers[number]()


def word_table(
    learned: "Learned", printed: Mapping[str, tuple[float, float]], words: int | Sequence[str] | None, seed: int
) -> "pd.DataFrame":
    """Put the learned value of some words beside the reconstructed value the paper prints (Tables 2 and 9).

    `neutral_beyond` is the control of the row: the share of matched neutral words that lie at least as far from zero, on
    the word's stated side. A word that this run did not measure keeps its row, with 0 contexts.
    """
    import pandas as pd

    at = {word: row for row, word in enumerate(learned.words)}
    rows = []
    for word in _chosen(learned, printed, words, seed):
        given, rebuilt = printed.get(word, (np.nan, np.nan))
        row = at.get(word)
        ours = _word_row(learned, row) if row is not None else {"contexts": 0}
        rows.append({"word": word, "published_stated": given, "published": rebuilt, **ours})
    columns = ["word", "published_stated", "published", "stated", "rescaled", "measured", "measured_low", "measured_high",
               "contexts", "recipe", "recipe_low", "recipe_high", "neutral_beyond"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def agreement_table(learned: "Learned", seed: int) -> "pd.DataFrame":
    """Put our tau-b beside Table 4: of all words, and of the thirty words the paper prints values for."""
    import pandas as pd

    base = _cell(learned, "base", "sae")
    common = np.isin(learned.words, list(published.TABLE_9))
    rows = [
        _row(
            f"this run: {learned.signal}, measured", learned.overall, _as_published(learned, learned.measured),
            learned.twin_name, learned.twin,
        ),
        _row(
            _probe_name(learned), *_ours(learned, learned.rescaled, seed),
            f"same probe on the base model{f', its {base.n:,} words' if base else ''}", base,
        ),
        _row(
            f"this run: {learned.signal}, words of Table 9", *_ours(learned, learned.measured, seed, common),
            "word frequency, same words", _agreement(learned, learned.log_frequency, common, seed),
        ),
        _row(f"PUBLISHED {published.WORDS_MODEL}, words of Table 9, by value", *_recomputed(seed)),
        *_printed_taus(published.TABLE_4),
        ("PUBLISHED baseline: untrained probe, 128 other words, by value", published.TABLE_4_BASELINE, np.nan, np.nan,
         0.55, "asymptotic", 128, np.nan, "none printed", np.nan, np.nan, np.nan),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=AGREEMENT_COLUMNS)


def polarity_table(learned: "Learned", seed: int) -> "pd.DataFrame":
    """Put our tau-b within each polarity beside Table 10, which has negative words only."""
    import pandas as pd

    rows = []
    for name, sign in POLARITIES.items():
        within = np.sign(learned.stated) == sign
        for reading, values in (
            (f"this run: {learned.signal}, measured", learned.measured),
            (_probe_name(learned), learned.rescaled),
        ):
            control = _agreement(learned, learned.log_frequency, within & np.isfinite(values), seed)
            ours = _ours(learned, values, seed, within)
            rows.append(_row(f"{reading}, {name} words", *ours, "word frequency, same words", control))
    for name, sign in POLARITIES.items():
        among = f"{name} words of Table 9, by value"
        rows.append(_row(f"PUBLISHED {published.WORDS_MODEL}, {among}", *_recomputed(seed, sign)))
    return pd.DataFrame(rows + _printed_taus(published.TABLE_10, ", negative words"), columns=AGREEMENT_COLUMNS)


def sign_table(learned: "Learned") -> "pd.DataFrame":
    """Put our sign accuracy of each polarity beside Table 5, in percent.

    The interval is Wilson's with as many trials as there are lemmas: words of a family do not count twice. The control of
    `measured` is the share of matched neutral words on that side of zero; that of the probe is a probe on random vectors.
    """
    import pandas as pd

    rows: list[tuple[object, ...]] = []
    by_label = "" if learned.is_tested else " (signed by the label: no evidence)"
    random = _cell_sign(learned, "none", "random")
    for name, sign in POLARITIES.items():
        beside = 100 * float(np.mean(np.sign(learned.neutral) == sign)) if len(learned.neutral) else np.nan
        for reading, values, control in (
            (f"this run: {learned.signal}, measured{by_label}", learned.measured, ("neutral words", beside)),
            (_probe_name(learned), learned.rescaled, ("probe on random vectors, both polarities", random)),
        ):
            rows.append((reading, name, *_sign_accuracy(learned, values, sign), *control))
    rows += [
        (f"PUBLISHED {model}", name, share, np.nan, np.nan, np.nan, "none printed", np.nan)
        for model, shares in published.TABLE_5.items()
        for name, share in zip(POLARITIES, shares)
    ]
    return pd.DataFrame(rows, columns=SIGN_COLUMNS)


def _chosen(
    learned: "Learned", printed: Mapping[str, tuple[float, float]], words: int | Sequence[str] | None, seed: int
) -> Sequence[str]:
    """Give the paper's words, the words asked for, or so many drawn at random from the measured ones."""
    if words is None:
        return tuple(printed)
    if not isinstance(words, int):
        return tuple(words)
    if not 1 <= words <= len(learned.words):
        raise LensError(f"words={words} cannot be drawn from {len(learned.words)} measured words.")
    picked = np.random.default_rng(seed).choice(len(learned.words), size=words, replace=False)
    return tuple(learned.words[row] for row in picked)


def _word_row(learned: "Learned", row: int) -> dict[str, float]:
    names = ("stated", "rescaled", "measured", "measured_low", "measured_high", "recipe", "recipe_low", "recipe_high")
    side = np.sign(learned.stated[row])
    beyond = float(np.mean(side * learned.neutral >= side * learned.measured[row])) if len(learned.neutral) else np.nan
    values = {name: float(getattr(learned, name)[row]) for name in names}
    return values | {"contexts": int(learned.contexts[row]), "neutral_beyond": beyond}


def _row(
    reading: str, ours: RankAgreement | None = None, as_published: float = np.nan, control: str = "none printed",
    beside: RankAgreement | Estimate | None = None,
) -> tuple[object, ...]:  # fmt: skip
    """Give one row of a table of taus; what is missing is NaN."""
    found = (*(np.nan,) * 4, "", np.nan)
    if ours:
        found = (ours.tau, ours.low, ours.high, ours.p_value, ours.test, ours.n)
    against = (beside.tau, beside.low, beside.high) if isinstance(beside, RankAgreement) else (np.nan,) * 3
    return (reading, *found, as_published, control, *against)


def _printed_taus(taus: Mapping[str, float], what: str = "") -> list[tuple[object, ...]]:
    return [_row(f"PUBLISHED {model}{what}", as_published=tau) for model, tau in taus.items()]


def _recomputed(seed: int, sign: int = 0) -> tuple[RankAgreement, float]:
    """Give tau-b of the printed values of Table 9 (of one sign only), and the published statistic of the same words."""
    kept = {word: pair for word, pair in published.TABLE_9.items() if sign in (0, np.sign(pair[0]))}
    given, rebuilt = np.array(list(kept.values())).T
    return rank_agreement(rebuilt, given, seed=seed), tau_as_published(tuple(kept), rebuilt, given)


def _ours(
    learned: "Learned", values: Float[np.ndarray, " words"], seed: int, rows: Bool[np.ndarray, " words"] | None = None
) -> tuple[RankAgreement | None, float]:
    """Give tau-b with the stated values over the rows that have one, and the published statistic of the same words."""
    usable = np.isfinite(values) & (True if rows is None else rows)
    return _agreement(learned, values, usable, seed), _as_published(learned, values, usable)


def _agreement(
    learned: "Learned", values: Float[np.ndarray, " words"], rows: Bool[np.ndarray, " words"], seed: int
) -> RankAgreement | None:
    """Give tau-b over these rows; None where there are too few words, one lemma, or no order."""
    lemma = np.array(learned.lemma)[rows]
    if rows.sum() < 3 or len(set(lemma)) < 2 or not np.ptp(values[rows]) or not np.ptp(learned.stated[rows]):
        return None
    return rank_agreement(values[rows], learned.stated[rows], lemma, seed=seed)


def _as_published(
    learned: "Learned", values: Float[np.ndarray, " words"], rows: Bool[np.ndarray, " words"] | None = None
) -> float:
    kept = np.flatnonzero(np.isfinite(values) if rows is None else rows)
    if len(kept) < 3 or not np.ptp(values[kept]) or not np.ptp(learned.stated[kept]):
        return float("nan")
    return tau_as_published([learned.words[row] for row in kept], values[kept], learned.stated[kept])


def _sign_accuracy(
    learned: "Learned", values: Float[np.ndarray, " words"], sign: int
) -> tuple[float, float, float, int]:
    """Give the percentage of words of one polarity on their stated side, its interval, and how many words."""
    rows = (np.sign(learned.stated) == sign) & np.isfinite(values)
    if not rows.any():
        return np.nan, np.nan, np.nan, 0
    share = float(np.mean(np.sign(values[rows]) == sign))
    lemmas = len(set(np.array(learned.lemma)[rows]))
    interval = stats.binomtest(round(share * lemmas), lemmas).proportion_ci(method="wilson")
    return 100 * share, 100 * float(interval.low), 100 * float(interval.high), int(rows.sum())


def _probe_name(learned: "Learned") -> str:
    leak = "" if learned.split == "lemma" else f" ({learned.split} split: leaks words, no evidence)"
    return f"this run: held-out probe on SAE features{leak}"


def _cell(learned: "Learned", side: str, source: str) -> RankAgreement | None:
    """Give the agreement of one probe of the grid, fitted to the signal; None where it was not fitted."""
    found = [cell.agreement for cell in learned.grid if (cell.side, cell.input) == (side, source) and _is_real(cell)]
    return found[0] if found else None


def _cell_sign(learned: "Learned", side: str, source: str) -> float:
    found = [cell.sign.value for cell in learned.grid if (cell.side, cell.input) == (side, source) and _is_real(cell)]
    return 100 * found[0] if found else float("nan")


def _is_real(cell: "GridCell") -> bool:
    """Tell a probe at the word's own tokens, fitted to the signal, from the grid's controls and other readings."""
    return (cell.place, cell.path) == ("word", "ridge") and cell.target != "control_task"
