"""The short form of the calibration: the same promises on fewer simulations, with room for their error."""

import json

import numpy as np
import pytest

from tests.benchmarks import calibration as bench
from tests.benchmarks.calibration import Check, group_intervals, p_values, word_intervals, wrong_signs


def test_p_values_are_uniform_where_nothing_is_there_and_the_check_would_see_it_if_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick = {name: one for name, one in bench.NULLS.items() if name != "control, lemmas not told"}
    monkeypatch.setattr(bench, "NULLS", quick)
    checks = list(p_values(60, seed=1, words=40))
    assert [check.line() for check in checks if not check.holds] == []
    assert sum("control" in check.what for check in checks) == 1


def test_few_null_runs_call_any_word_wrong() -> None:
    # The promise is 15 % of runs, 6 of 40; sigma is 2.
    assert wrong_signs(40, seed=1).found <= 9


def test_the_interval_of_a_words_value_covers_as_it_says() -> None:
    checks = list(word_intervals(400, seed=1))
    assert {check.n for check in checks} == {2, 3, 5, 8}
    # 4,000 intervals of 95 % have a standard error of 0.35 %.
    assert [check.line() for check in checks if check.holds is False] == []
    skewed = [check.found for check in checks if "skewed" in check.what]
    assert max(skewed) < 93.5, "t intervals of skewed contexts are too short: no promise is made there"


def test_intervals_over_lemmas_cover_nearly_as_they_say() -> None:
    checks = list(group_intervals(80, 100, seed=1, draws=300))
    assert [check.what for check in checks if check.holds is None] == []
    # 80 intervals of 95 % have a standard error of 2.4 %; 300 draws lose 1 %.
    assert [check.line() for check in checks if check.found < 86] == []


def test_a_broken_promise_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "p_of_wrong_sign", lambda values, rated, null: np.full(len(values), 1e-6))
    check = wrong_signs(10, seed=0)
    assert (check.found, check.holds) == (10, False)
    assert json.loads(check.line()) == {
        "bench": "calibration", "what": check.what, "n": 500, "found": 10, "promised": "at most 15 % of runs", "holds": False,
    }  # fmt: skip


def test_every_number_of_lemmas_asked_for_is_checked_and_few_claim_nothing() -> None:
    found = list(bench.calibration(nulls=4, runs=2, simulations=20, lemmas=(20,)))
    assert all(isinstance(check, Check) for check in found)
    over_lemmas = [check for check in found if check.n == 20]
    assert len(over_lemmas) == len(bench.NAMES)
    assert all(check.holds is None for check in over_lemmas)
