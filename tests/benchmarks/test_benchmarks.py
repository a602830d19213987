"""Every benchmark runs at a tiny size and prints what was agreed; no speed is asserted."""

import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import BENCHES, main
from tests.benchmarks.measure import Comparison, Profile, Shape
from tests.benchmarks.ppo import ppo

QUICK_PEER = """
import json, pathlib, sys
facts = json.loads((pathlib.Path(sys.argv[1]) / "facts.json").read_text())
for turn in range(facts["turns"] + 1):
    print(json.dumps({"cpu_seconds": {"sdpa": 2.0, "eager": 4.0}[sys.argv[2]]}), flush=True)
    sys.stdin.readline()
"""
"""Stands in for the second environment: it says what the real peer says, and trains nothing."""
TINY = Shape(layers=5, width=16, heads=2, vocabulary=400, context=32)
SMALL = {
    "harvest": {"texts": 2, "repeats": 1},
    "ppo": {"batch": 8, "new_tokens": 3, "turns": 2, "peer": (sys.executable, "-c", QUICK_PEER)},
    "train_sae": {"tokens": 512, "peer_tokens": 256, "batch_tokens": 128, "precisions": ("fp32",)},
}
KEYS = {"bench", "what", "ours", "peer", "peer_name", "precision", "ratio", "unit"}


@pytest.mark.parametrize("name", BENCHES)
def test_a_benchmark_prints_comparisons_with_every_field(name: str) -> None:
    comparisons = [one for one in BENCHES[name](TINY, **SMALL[name]) if isinstance(one, Comparison)]
    assert comparisons
    for comparison in comparisons:
        line = json.loads(comparison.line())
        assert set(line) == KEYS
        assert line["bench"] == name
        assert line["ours"] > 0
        assert line["peer"] > 0


def test_the_ratio_is_ours_over_the_peer() -> None:
    assert json.loads(Comparison("b", "w", 30.0, 20.0, "p", "fp32", "tokens per CPU-second").line())["ratio"] == 1.5


def test_the_ppo_benchmark_compares_with_what_the_peer_says_and_shows_where_our_time_goes() -> None:
    sdpa, eager, profile = ppo(TINY, **SMALL["ppo"])
    assert isinstance(sdpa, Comparison) and isinstance(eager, Comparison) and isinstance(profile, Profile)
    assert (sdpa.peer, eager.peer) == (4.0, 2.0), "8 completions in 2 and in 4 seconds"
    line = json.loads(profile.line())
    assert line["cpu_seconds"] > 0
    parts = {
        name: share for name, share in profile.shares.items() if name != "model arithmetic" and "PyTorch" not in name
    }
    assert set(parts) == {
        "generation", "reference", "forward", "backward", "optimiser", "clipping", "decoding", "reward", "rest",
    }  # fmt: skip
    assert sum(parts.values()) == pytest.approx(100)
    assert profile.shares["model arithmetic"] == pytest.approx(
        100 - parts["decoding"] - parts["reward"] - parts["rest"]
    )


def test_a_peer_that_stops_or_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="The peer stopped"):
        list(ppo(TINY, **(SMALL["ppo"] | {"peer": (sys.executable, "-c", "")})))
    with pytest.raises(SystemExit, match="`make bench` makes it"):
        list(ppo(TINY, **(SMALL["ppo"] | {"peer": (str(tmp_path / "python"),)})))


def test_an_unknown_benchmark_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["harvets"]) == 2
    assert "There is no benchmark harvets. Known: harvest, ppo, train_sae." in capsys.readouterr().err
