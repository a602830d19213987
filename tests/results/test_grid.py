"""A reading counts as learned only if it beats its twin, the embedding and random features, each with the whole interval."""

import dataclasses

import numpy as np
import pytest

from lfp_lens.core.stats import Estimate, RankAgreement
from lfp_lens.results.grid import GridCell, grid_frame, verdict
from tests.results.samples import a_learned

GAPS = ("minus_twin", "minus_embedding", "minus_random")
ABOVE, ACROSS, BELOW = Estimate(0.2, 0.1, 0.3, 50), Estimate(0.2, -0.1, 0.5, 50), Estimate(-0.2, -0.3, -0.1, 50)


def a_cell(**changes: object) -> GridCell:
    agreement = RankAgreement(0.4, 0.01, 0.2, 0.6, 50, 45, "permutation")
    cell = GridCell("tuned", "sae", "signal", agreement, Estimate(0.7, 0.6, 0.8, 50), **dict.fromkeys(GAPS, ABOVE))
    return dataclasses.replace(cell, **changes)


def test_a_reading_that_beats_all_three_is_learned() -> None:
    assert a_cell().is_learned


@pytest.mark.parametrize("name", GAPS)
@pytest.mark.parametrize("gap", [ACROSS, BELOW, None, Estimate(0.2, float("nan"), 0.3, 50)])
def test_one_gap_that_is_not_above_zero_or_not_known_is_enough_to_claim_nothing(
    name: str, gap: Estimate | None
) -> None:
    assert not a_cell(**{name: gap}).is_learned


def test_a_gap_that_touches_zero_is_no_gap() -> None:
    assert not a_cell(minus_twin=Estimate(0.1, 0.0, 0.2, 50)).is_learned


def test_the_table_has_one_row_per_reading_with_every_gap_and_interval() -> None:
    cells = (a_cell(), a_cell(side="none", input="embedding", place="before", path="direct", minus_twin=None))
    frame = grid_frame(cells)
    assert list(frame.columns) == [
        "side", "input", "place", "path", "target", "tau", "low", "high", "p_value", "sign_accuracy", "n",
        "minus_twin", "minus_twin_low", "minus_twin_high", "minus_embedding", "minus_embedding_low",
        "minus_embedding_high", "minus_random", "minus_random_low", "minus_random_high", "is_learned",
    ]  # fmt: skip
    assert frame["side"].tolist() == ["tuned", "none"]
    assert frame.loc[0, ["tau", "low", "high", "p_value", "n"]].tolist() == [0.4, 0.2, 0.6, 0.01, 50]
    assert frame.loc[0, ["minus_random", "minus_random_low", "minus_random_high"]].tolist() == [0.2, 0.1, 0.3]
    assert np.isnan(frame.loc[1, ["minus_twin", "minus_twin_low", "minus_twin_high"]].astype(float)).all()
    assert frame["is_learned"].tolist() == [True, False]
    assert frame.loc[1, ["place", "path"]].tolist() == ["before", "direct"]


def test_an_empty_grid_is_an_empty_table() -> None:
    assert grid_frame(()).empty


def test_the_verdict_names_what_was_learned_strongest_first() -> None:
    strong = RankAgreement(0.6, 0.01, 0.5, 0.7, 50, 45, "permutation")
    control = a_cell(side="base", **dict.fromkeys(GAPS))
    told = verdict((a_cell(), a_cell(input="raw", place="before", path="direct", agreement=strong), control))
    assert told.startswith(
        "2 of 2 readings beat twin, embedding and random features: raw before the word, direct (tau-b 0.600"
    )
    assert "sae at the word, ridge (tau-b 0.400" in told


def test_where_no_reading_is_learned_the_verdict_says_that_nothing_was_found() -> None:
    told = verdict((a_cell(minus_random=ACROSS), a_cell(minus_twin=BELOW)))
    assert told.startswith("nothing was found: none of 2 readings")
    assert verdict(()) == "no reading was compared with its twin"


def test_under_a_row_split_the_verdict_is_no_evidence_whatever_it_found() -> None:
    learned = a_learned()
    leaked = dataclasses.replace(learned, split="row", grid=(a_cell(),))
    assert leaked.verdict.startswith("no evidence, the row split leaks words and texts; 1 of 1 readings beat")
    assert "no evidence" not in dataclasses.replace(leaked, split="lemma").verdict
