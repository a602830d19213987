"""Every benchmark runs at a tiny size and prints what was agreed; no speed is asserted."""

import json

import pytest

from tests.benchmarks.__main__ import BENCHES, main
from tests.benchmarks.measure import Comparison, Shape

TINY = Shape(layers=5, width=16, heads=2, vocabulary=400, context=32)
SMALL = {
    "harvest": {"texts": 2, "repeats": 1},
    "train_sae": {"tokens": 512, "peer_tokens": 256, "batch_tokens": 128, "precisions": ("fp32",)},
}
KEYS = {"bench", "what", "ours", "peer", "peer_name", "precision", "ratio", "unit"}


@pytest.mark.parametrize("name", BENCHES)
def test_a_benchmark_prints_comparisons_with_every_field(name: str) -> None:
    comparisons = list(BENCHES[name](TINY, **SMALL[name]))
    assert comparisons
    for comparison in comparisons:
        line = json.loads(comparison.line())
        assert set(line) == KEYS
        assert line["bench"] == name
        assert line["ours"] > 0
        assert line["peer"] > 0


def test_the_ratio_is_ours_over_the_peer() -> None:
    assert json.loads(Comparison("b", "w", 30.0, 20.0, "p", "fp32", "tokens per CPU-second").line())["ratio"] == 1.5


def test_an_unknown_benchmark_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["harvets"]) == 2
    assert "There is no benchmark harvets. Known: harvest, train_sae." in capsys.readouterr().err
