"""The benchmark of the screen runs at a tiny size; no speed is asserted."""

import json

import pytest

from tests.benchmarks.feature_screen import Ranking, feature_screen
from tests.benchmarks.measure import Growth, Shape, Skipped

TINY = Shape(layers=5, width=16, heads=2, vocabulary=400, context=32)


def test_it_prints_what_screen_and_exact_confirmation_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LFP_LENS_DATA", raising=False)
    lines = list(feature_screen(TINY, features=24, texts=2, exact_texts=1, tokens=8, top=5, drawn=4, repeats=1))
    costs = [line for line in lines if isinstance(line, Growth)]
    assert len(costs) == 4
    for cost in costs:
        told = json.loads(cost.line())
        assert told["bench"] == "feature_screen" and told["ratio"] > 0
    assert "5 sites x 24 features" in costs[0].what and "all 120 features" in costs[1].what
    assert isinstance(lines[-1], Skipped), "the real model needs the shared data"


def test_a_ranking_is_one_line_of_json() -> None:
    told = json.loads(Ranking("feature_screen", "what", 0.99912, 0.9, 0.8, 1.0, 48, 128).line())
    assert told["same_texts"] == 0.999 and told["features"] == 48
