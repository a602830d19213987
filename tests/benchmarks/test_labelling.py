"""The benchmark of labelling over HTTP, small: every aim that it states is met."""

import pytest

from tests.benchmarks import labelling as bench


def test_a_small_benchmark_meets_every_aim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STALL_SECONDS", 1.5)
    monkeypatch.setattr(bench, "TIMEOUT_SECONDS", 0.5)
    found = list(bench.labelling(60, 1))
    assert {one.bench for one in found} == {"labelling"}
    for one in found:
        if one.aim.startswith("at most "):
            assert one.value <= float(one.aim.removeprefix("at most ")), one
        elif one.aim:
            assert one.value == float(one.aim), one
    by_name = {one.what: one.value for one in found}
    assert by_name["killed: kills"] == 1 and by_name["budget ends: replies kept by then"] > 10
