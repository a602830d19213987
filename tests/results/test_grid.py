"""A reading counts as learned only if it beats its twin, the embedding and random features, each with the whole interval."""

import dataclasses

import numpy as np
import pytest

from lfp_lens.core.stats import Estimate, RankAgreement
from lfp_lens.results.grid import GridCell, grid_frame

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
