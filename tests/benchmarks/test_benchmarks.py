"""Every benchmark runs at a tiny size and prints what was agreed; no speed is asserted."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.benchmarks import measure
from tests.benchmarks.__main__ import BENCHES, main
from tests.benchmarks.measure import Comparison, Floor, Growth, Profile, Shape
from tests.benchmarks.ppo import ppo
from tests.benchmarks.train_sae import flops_per_token

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
    "ablated_generation": {"prompts": 3, "prompt_tokens": 4, "new_tokens": 3, "features": 5, "repeats": 1},
    "harvest": {"texts": 2, "repeats": 1},
    "ppo": {"batch": 8, "new_tokens": 3, "turns": 2, "peer": (sys.executable, "-c", QUICK_PEER)},
    "sae_scale": {"short": 256, "long": 512, "tokens": 256, "batch_tokens": 128},
    "train_sae": {"tokens": 1024, "peer_tokens": 512, "batch_tokens": 128, "precisions": ("fp32", "bf16")},
}
OTHER_LINES = (
    "calibration",
    "carriers",
    "explain_features",
    "feature_screen",
    "labelling",
    "learned_feedback",
    "null_calibration",
    "organism_features",
    "published_protocol",
    "sae_scale",
    "crosscoder",
    "tied_quality",
    "word_speed",
)
"""Benchmarks that print something else, tested for themselves."""
KEYS = {"bench", "what", "ours", "peer", "peer_name", "precision", "ratio", "unit"}


@pytest.mark.parametrize("name", [name for name in BENCHES if name not in OTHER_LINES])
def test_a_benchmark_prints_comparisons_with_every_field(name: str) -> None:
    comparisons = [one for one in BENCHES[name](TINY, **SMALL[name]) if isinstance(one, Comparison)]
    assert comparisons
    for comparison in comparisons:
        line = json.loads(comparison.line())
        assert set(line) == KEYS
        assert line["bench"] == name
        assert line["ours"] > 0
        assert line["peer"] > 0


def test_growth_is_more_over_less_and_a_floor_tells_the_share_that_is_reached() -> None:
    for growth in BENCHES["sae_scale"](TINY, **SMALL["sae_scale"]):
        assert isinstance(growth, Growth)
        assert json.loads(growth.line())["ratio"] == round(growth.more / growth.less, 3) > 0
    assert json.loads(Floor("b", "w", 30.0, 40.0, "fp32", "u").line())["percent"] == 75


def test_the_crosscoder_benchmark_tells_what_each_flagged_feature_is() -> None:
    few = {"width": 16, "shared": 8, "tuned": 2, "base": 2, "weak": 2}
    found = list(
        BENCHES["crosscoder"](
            seeds=(0,), steps=60, planted=few, d_sae=32, trainers=({"architecture": "batchtopk", "k": 3},)
        )
    )
    lines = [json.loads(one.line()) for one in found]
    assert len({line["rule"] for line in lines}) == len(lines) == 2
    assert all(line["planted"] == 2 and line["cpu_seconds"] >= 0 for line in lines)


def test_the_tied_sae_is_judged_beside_saelens_runner_on_real_text(real_data: Path) -> None:
    found = list(BENCHES["tied_quality"](seeds=(0,), tokens=4096, n_texts=100))
    assert [one.unit for one in found] == ["explained_variance", "l0", "kl_recovered"]
    assert found[1].ours == pytest.approx(found[1].peer, rel=0.2)


def test_a_precision_that_means_nothing_here_is_skipped_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def inexact() -> Iterator[bool]:
        yield False

    monkeypatch.setattr(measure, "fast_matmul", inexact)
    monkeypatch.setattr(measure, "product_rate", {"bf16": 1.0, "fp32": 2.0}.__getitem__)
    found = [json.loads(one.line()) for one in BENCHES["harvest"](TINY, **SMALL["harvest"])]
    assert [line["precision"] for line in found if "skipped" in line] == ["fp32 oneDNN", "bf16"]
    assert all("here" in line["skipped"] for line in found if "skipped" in line)
    assert [line["precision"] for line in found if "skipped" not in line] == ["fp32", "fp32"]


def test_the_limit_counts_the_blocks_up_to_the_deepest_site_and_five_products_per_sae() -> None:
    one_layer = 24 * 16**2 + 2 * 32 * 16
    assert flops_per_token(TINY) == 5 * one_layer + 5 * 5 * 2 * 16 * (16 + 32)


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
    assert f"There is no benchmark harvets. Known: {', '.join(BENCHES)}." in capsys.readouterr().err


def test_the_cost_of_words_is_told_beside_the_forward_passes(real_data: Path) -> None:
    alone, with_vocabulary = BENCHES["word_speed"](n_texts=120, repeats=1)
    for growth in (alone, with_vocabulary):
        assert isinstance(growth, Growth)
        assert json.loads(growth.line())["ratio"] < 4, (
            "asked is 2 on whole reviews; these are few and the machine may be busy"
        )


def test_flipped_stated_values_are_counted_and_those_left_alone_are_not() -> None:
    from tests.benchmarks.learned_feedback import Figure, of_flips
    from tests.results.samples import a_learned

    share, others = of_flips(a_learned(), "a sample", words=3, draws=5)
    assert isinstance(share, Figure)
    assert 0 < share.value <= 1
    assert others.value >= 0
    assert json.loads(share.line())["bench"] == "learned_feedback"


def test_null_runs_that_list_a_word_are_counted_and_those_refused_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lfp_lens.results import Scorecard
    from tests.benchmarks import null_calibration as bench
    from tests.results.samples import a_null, planted_words

    def card(n: int, listing: int, refused: int = 0) -> Scorecard:
        runs = [a_null(f"run-{at}", false=2 * (at < listing)) for at in range(n)]
        none = {"signal": "none", "input": "none", "found": None, "false": None, "refused": "nothing was learned"}
        return Scorecard(
            (*runs, *(a_null(f"idle-{at}", **none) for at in range(refused))), planted_words("", [], []), 0.1
        )

    cheap = {1: card(100, 19, refused=3), 3: card(0, 0, refused=30)}
    monkeypatch.setattr(bench, "organism", lambda *given, **named: "clean")
    monkeypatch.setattr(bench, "cheap_nulls", lambda clean, n, *, replicates, store: cheap[replicates])
    monkeypatch.setattr(bench, "organism_grid", lambda *given, seeds, **named: list(seeds))
    monkeypatch.setattr(bench, "score", lambda made, store: card(len(made), 5))
    lines = [json.loads(one.line()) for one in bench.null_calibration(home=str(tmp_path))]
    told = [[line[name] for name in ("runs", "refused", "listing", "words", "allowed", "holds")] for line in lines]
    assert told == [[100, 3, 19, 38, 18, False], [0, 30, 0, 0, 0, None], [20, 0, 5, 10, 5, True]]
    assert {line["bench"] for line in lines} == {"null_calibration"}
