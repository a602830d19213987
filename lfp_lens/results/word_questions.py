"""What is asked of learned words: which are wrong, how parts of them agree with the lexicon, which another lexicon rates."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.core.errors import GateError, LensError, unknown
from lfp_lens.core.stats import RankAgreement, discoveries, rank_agreement
from lfp_lens.core.stats.wrong import KINDS, p_of_strength, p_of_wrong_sign

if TYPE_CHECKING:
    import pandas as pd

    from lfp_lens.results.probe import Learned

DIVIDING = ("tokens", "exposure", "log_frequency")
"""Columns by which words can be told apart."""


def wrong_words(learned: "Learned", *, fdr: float, kind: str, against: str | Mapping[str, float]) -> "pd.DataFrame":
    """List the words learned otherwise than stated; see `Learned.wrong`."""
    check_tested(learned)
    if kind not in KINDS:
        raise unknown("kind of wrong words", kind, KINDS)
    if not isinstance(against, Mapping) and against != "stated":
        raise LensError(
            f"against is 'stated' or a mapping of words to values (lfp_lens.parts.lexicons.load_lexicon reads one from a "
            f"name or a file); {against!r} given."
        )
    rows, rated = np.arange(len(learned.words)), learned.stated
    if not isinstance(against, str):
        rows, rated = shared_words(learned, against, signed=True)
    p_value = p_of_wrong_sign(learned.z[rows], rated, learned.neutral_z)
    flipped = discoveries(p_value, fdr)
    name, found = "p_wrong", flipped
    if kind != "flipped":
        name, p_value = "p_value", p_of_strength(learned.z[rows], rated, kind)
        found = discoveries(p_value, fdr) & ~flipped
    frame = learned.to_frame().drop(columns="p_wrong").iloc[rows].assign(stated=rated)
    return frame.assign(**{name: p_value})[found].sort_values(name, ignore_index=True)


def agreement_by(learned: "Learned", name: str, *, bins: int, seed: int) -> "pd.DataFrame":
    """Give tau-b apart for parts of the words; see `Learned.by`."""
    import pandas as pd

    if name not in DIVIDING:
        raise unknown("column to divide by", name, DIVIDING)
    values = np.asarray(getattr(learned, name), float)
    if not np.isfinite(values).all():
        raise GateError(f"{learned.signal} was measured without {name}: words cannot be told apart by it.")
    edges = [1.5, 2.5] if name == "tokens" else np.quantile(values, np.arange(1, bins) / bins)
    part = np.searchsorted(edges, values, side="left")
    rows = []
    for at in np.unique(part):
        here = part == at
        found = _tau(learned, here, seed)
        told = {"tau": np.nan, "low": np.nan, "high": np.nan, "p_value": np.nan} if found is None else {
            "tau": found.tau, "low": found.low, "high": found.high, "p_value": found.p_value
        }  # fmt: skip
        rows.append({"from": values[here].min(), "to": values[here].max(), "n": int(here.sum())} | told)
    return pd.DataFrame(rows)


def check_tested(learned: "Learned") -> None:
    """Raise `GateError` where no word can be said to be wrong."""
    if not learned.is_tested:
        raise GateError(
            f"{learned.signal} takes its sign from the stated lexicon, so it cannot say which words were learned wrongly: "
            "probe with signal='implicit_reward'."
        )


def shared_words(
    learned: "Learned", lexicon: Mapping[str, float], *, signed: bool = False
) -> tuple[Int[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Give the rows that a lexicon rates (other than 0, if `signed`), with its values."""
    values = {word.lower(): float(value) for word, value in lexicon.items()}
    odd = [word for word, value in values.items() if not np.isfinite(value)]
    if odd:
        raise LensError(f"The values of a lexicon are finite numbers; that of {odd[0]!r} is {values[odd[0]]}.")
    rows = [row for row, word in enumerate(learned.words) if word in values and (values[word] or not signed)]
    if len(rows) < 3:
        raise GateError(f"The lexicon shares {len(rows)} words with the {len(learned.words)} measured; 3 are needed.")
    return np.array(rows), np.array([values[learned.words[row]] for row in rows])


def _tau(learned: "Learned", rows: np.ndarray, seed: int) -> RankAgreement | None:
    """Give tau-b over some words; None where they are too few or all rated alike."""
    lemma = np.array(learned.lemma)[rows]
    if len(np.unique(lemma)) < 3 or not np.ptp(learned.stated[rows]) or not np.ptp(learned.measured[rows]):
        return None
    return rank_agreement(learned.measured[rows], learned.stated[rows], lemma, seed=seed)
