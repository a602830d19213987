"""The command line: what reaches the pipeline, what is printed, and how every failure ends."""

import os
import subprocess
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import lfp_lens
from lfp_lens import cli, config
from lfp_lens.core.errors import GateError, LensError


@dataclass
class FakeResult:
    rows: int = 2
    word: str = "good"

    def to_frame(self) -> pd.DataFrame:
        return pd.DataFrame({"word": [f"{self.word}{row}" for row in range(self.rows)], "value": 1.5})


@dataclass
class FakeStore:
    root: Path


@dataclass
class FakeRun:
    store: FakeStore
    results: dict[str, Any] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        return "reward gain 0.7"


@dataclass
class Calls:
    """What the pipeline was asked, and what it answers."""

    answer: FakeRun
    runs: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    opened: list[Path] = field(default_factory=list)
    raises: BaseException | None = None

    def run(self, config: Any, **named: Any) -> FakeRun:
        self.runs.append((config, named))
        if self.raises is not None:
            raise self.raises
        return self.answer

    def open_run(self, path: Path) -> FakeRun:
        self.opened.append(path)
        return self.answer


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """Put a pipeline in the real one's place that only remembers its calls."""
    made = Calls(FakeRun(FakeStore(tmp_path)))
    fake = types.ModuleType("lfp_lens.pipeline")
    fake.run, fake.open_run = made.run, made.open_run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lfp_lens.pipeline", fake)
    monkeypatch.setattr(lfp_lens, "pipeline", fake, raising=False)
    return made


def finished(store: Path, name: str, *verbs: str) -> None:
    """Make a stored run by hand, as far as its listing goes."""
    (store / name).mkdir(parents=True)
    (store / name / "config.toml").write_text("", encoding="utf-8")
    for verb in verbs:
        (store / name / f"{verb}-0123").mkdir()
        (store / name / verb).symlink_to(f"{verb}-0123")


def test_every_command_has_an_action() -> None:
    assert set(cli._KINDS) == set(cli.COMMANDS)
    assert {"organism", "score"} <= set(cli.COMMANDS) - set(cli.VERBS)


def test_the_verbs_are_the_configs_sections() -> None:
    assert tuple(cli.VERBS) == config.VERBS


def test_run_passes_the_preset_and_the_defaults_on(calls: Calls, told: Any) -> None:
    code, out, _ = told("run", "tiny")
    assert code == 0
    assert calls.runs == [(config.load_config("tiny"), {"store": "runs", "until": None, "quiet": False})]
    assert "reward gain 0.7" in out


def test_a_run_whose_tuning_was_refused_exits_with_its_own_code(calls: Calls, told: Any) -> None:
    calls.answer.refusals.update(diverge="the policy collapsed", probe="the policy collapsed")
    assert told("run", "tiny")[0] == cli.REFUSED == 3
    calls.answer.results["diverge"] = object()
    assert told("run", "tiny")[0] == 0


def test_run_passes_changed_values_on(calls: Calls, told: Any) -> None:
    told(
        "run",
        "tiny",
        "--set",
        "finetune.steps=3",
        "--set",
        "train_sae.sizes=1,4",
        "--name",
        "b",
        "--store",
        "s",
        "--quiet",
    )
    ((given, named),) = calls.runs
    assert (given.finetune.steps, given.train_sae.sizes, given.name) == (3, (1, 4), "b")
    assert named == {"store": "s", "until": None, "quiet": True}


def test_run_reads_a_file(calls: Calls, told: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('base = "world"\ntexts = "world"\nseed = 9\n', encoding="utf-8")
    told("run", str(path))
    assert calls.runs[0][0].seed == 9


def test_run_says_where_the_page_is(calls: Calls, told: Any) -> None:
    page = calls.answer.store.root / "report.html"
    page.write_text("", encoding="utf-8")
    calls.answer.results["report"] = types.SimpleNamespace(path=Path("elsewhere"))
    assert f"Report: {page}" in told("run", "tiny")[1]


@pytest.mark.parametrize("verb", config.VERBS)
def test_a_verb_runs_up_to_itself_and_prints_its_table(verb: str, calls: Calls, told: Any) -> None:
    calls.answer.results[verb] = FakeResult() if verb != "report" else types.SimpleNamespace(path=Path("page.html"))
    code, out, _ = told(verb, "tiny")
    assert code == 0
    assert calls.runs[0][1]["until"] == verb
    assert ("good1" if verb != "report" else "page.html") in out


@pytest.mark.parametrize("verb", config.VERBS)
def test_every_value_of_a_section_is_an_option_of_its_verb(verb: str, told: Any, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for name in config.section_fields(verb):
        assert f"--{name.replace('_', '-')}" in shown


def test_an_option_of_a_verb_equals_set(calls: Calls, told: Any) -> None:
    calls.answer.results |= {"ablate": FakeResult(), "train_sae": FakeResult()}
    told("ablate", "tiny", "--mode", "mean", "--max-new-tokens", "5")
    told("ablate", "tiny", "--set", "ablate.mode=mean", "--set", "ablate.max_new_tokens=5")
    told("train_sae", "tiny", "--sizes", "1,2,4", "--l1", "none", "--batch_tokens=512")
    (first, _), (second, _), (third, _) = calls.runs
    assert first == second
    assert (first.ablate.mode, first.ablate.max_new_tokens) == ("mean", 5)
    assert (third.train_sae.sizes, third.train_sae.batch_tokens) == ((1, 2, 4), 512)


def test_a_long_table_is_cut_and_says_so(calls: Calls, told: Any) -> None:
    calls.answer.results["probe"] = FakeResult(rows=cli.TABLE_ROWS + 7)
    out = told("probe", "tiny")[1]
    assert "... and 7 rows more" in out
    assert f"good{cli.TABLE_ROWS}" not in out


def test_text_from_models_cannot_command_the_terminal(calls: Calls, told: Any) -> None:
    calls.answer.results["probe"] = FakeResult(word="\x1b[2Jbad\u202e")
    out = told("probe", "tiny")[1]
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "\\x1b[2Jbad\\u202e" in out


def test_a_refused_verb_ends_with_its_reason(calls: Calls, told: Any) -> None:
    calls.answer.refusals["explain"] = "No tuned SAE is good enough to interpret"
    code, out, err = told("explain", "tiny")
    assert (code, out) == (2, "")
    assert "explain gave no number: No tuned SAE is good enough" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("rn", "tiny"), "Unknown command 'rn'. Did you mean 'run'?"),
        (("organisms", "world"), "Unknown command 'organisms'. Did you mean 'organism'?"),
        (("--setup",), "Unknown option '--setup'."),
        (("run",), "PRESET|FILE.toml. See `lfp-lens run --help`."),
        (("run", "tinny"), "Unknown preset 'tinny'. Did you mean 'tiny'?"),
        (("run", "tiny", "--sett", "a=1"), "unexpected argument '--sett' (Did you mean '--set'?)"),
        (("run", "tiny", "other"), "unexpected argument 'other'"),
        (("run", "tiny", "--set", "seed"), "--set seed: expected KEY=VALUE"),
        (("run", "tiny", "--set", "sed=1"), "Unknown key 'sed'. Did you mean 'seed'?"),
        (("run", "tiny", "--set", "seed=many"), 'seed = "many": expected a whole number'),
        (("run", "tiny", "--name", "a/b"), 'name = "a/b": expected a folder name'),
        (("ablate", "tiny", "--mod", "mean"), "unexpected argument '--mod' (Did you mean '--mode'?)"),
        (("ablate", "tiny", "--mode", "meen"), "Did you mean 'mean'?"),
        (("ablate", "tiny", "--scale", "2"), "ablate.scale = 2.0 contradicts ablate.mode = 'zero'"),
        (("show", "nothing", "--store", "nowhere"), "There is no run 'nothing' in nowhere."),
        (("doctor", "tinny"), "Unknown preset 'tinny'."),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(
    argv: tuple[str, ...], message: str, calls: Calls, told: Any
) -> None:
    code, out, err = told(*argv)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("lfp-lens: ")
    assert "Traceback" not in err
    assert calls.runs == []


@pytest.mark.parametrize("error", [LensError("too few texts"), GateError("too few texts")])
def test_an_error_of_a_stage_is_one_message_too(error: Exception, calls: Calls, told: Any) -> None:
    calls.raises = error
    assert told("run", "tiny") == (2, "", "lfp-lens: too few texts\n")


def test_an_interrupt_says_that_finished_stages_are_kept(calls: Calls, told: Any) -> None:
    calls.raises = KeyboardInterrupt()
    code, _, err = told("run", "tiny")
    assert code == 130
    assert "Finished stages are kept" in err


def test_our_own_mistake_keeps_its_traceback(calls: Calls) -> None:
    calls.raises = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError, match="ours"):
        cli.main(["run", "tiny"])


def test_list_names_presets_and_runs_with_what_they_finished(told: Any, tmp_path: Path) -> None:
    finished(tmp_path, "first", "probe", "finetune")
    finished(tmp_path, "second")
    (tmp_path / "no-run").mkdir()
    code, out, _ = told("list", "--store", str(tmp_path))
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["first", "finetune,", "probe"] in lines
    assert ["second", "nothing", "finished"] in lines
    assert "no-run" not in out
    assert all(name in out for name in config.presets())


def test_list_makes_no_store(told: Any, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    assert "no runs in" in told("list", "--store", str(store))[1]
    assert not store.exists()


def test_show_prints_summary_tables_and_refusals(calls: Calls, told: Any, tmp_path: Path) -> None:
    finished(tmp_path, "mine", "probe")
    calls.answer.results["probe"] = FakeResult()
    calls.answer.refusals["explain"] = "nothing to explain"
    code, out, _ = told("show", "mine", "--store", str(tmp_path))
    assert code == 0
    assert calls.opened == [tmp_path / "mine"]
    assert all(
        part in out for part in ("reward gain 0.7", "== probe", "good1", "== explain: refused", "nothing to explain")
    )


def test_show_takes_a_folder_too(calls: Calls, told: Any, tmp_path: Path) -> None:
    finished(tmp_path, "mine")
    assert told("show", str(tmp_path / "mine"))[0] == 0
    assert calls.opened == [tmp_path / "mine"]


def test_show_points_to_the_nearest_run(told: Any, tmp_path: Path) -> None:
    finished(tmp_path, "tiny-flipped")
    code, _, err = told("show", "tiny-fliped", "--store", str(tmp_path))
    assert code == 2
    assert "Did you mean 'tiny-flipped'? Runs: tiny-flipped." in err


def test_doctor_prints_its_findings_and_fails_on_a_conflict(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lfp_lens import doctor

    found = [doctor.Finding("python", "ok", "3.11"), doctor.Finding("data", "missing", "not set")]
    monkeypatch.setattr(doctor, "examine", lambda given: found)
    code, out, _ = told("doctor")
    assert code == 0
    assert [line.split(maxsplit=2) for line in out.splitlines()] == [
        ["ok", "python", "3.11"],
        ["missing", "data", "not set"],
    ]
    found.append(doctor.Finding("torch", "conflict", "too old"))
    assert told("doctor")[0] == 1


def test_doctor_tells_what_a_changed_config_costs_at_the_named_prices(
    told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lfp_lens import doctor

    asked: list[Any] = []

    def estimate(config: Any, *, at: Any) -> list[Any]:
        asked.append((config.seed, at))
        return [doctor.Finding("finetune: time", "ok", "about 1 min")]

    monkeypatch.setattr(doctor, "examine", lambda config: [doctor.Finding("base", "ok", config.base)])
    monkeypatch.setattr(doctor, "estimate", estimate)
    code, out, _ = told("doctor", "tiny", "--set", "seed=7", "--price-in", "2.5", "--price-out", "10")
    assert code == 0
    assert asked == [(7, doctor.Prices(2.5, 10.0))]
    assert [line.split(maxsplit=1)[1].strip() for line in out.splitlines()] == [
        "base            world",
        "finetune: time  about 1 min",
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--price-in", "3"), "--price-in belongs to a config"),
        (("--set", "seed=1"), "--set belongs to a config"),
        (("tiny", "--price-in", "3"), "A price has two parts"),
        (("tiny", "--price-in", "much"), "invalid float value: 'much'"),
        (("tiny", "--set", "sed=1"), "Unknown key 'sed'"),
    ],
)
def test_doctor_refuses_prices_and_changes_it_cannot_use(argv: tuple[str, ...], message: str, told: Any) -> None:
    code, out, err = told("doctor", *argv)
    assert (code, out) == (2, "")
    assert message in err


def test_the_help_lists_every_command_and_where_to_begin(told: Any) -> None:
    for argv in ((), ("--help",), ("-h",)):
        code, out, _ = told(*argv)
        assert code == 0
        assert all(f"  {name} " in out for name in cli.COMMANDS)
        assert "lfp-lens run tiny" in out


def test_the_version_is_printed(told: Any) -> None:
    assert told("--version")[1] == f"lfp-lens {lfp_lens.__version__}\n"


def test_idle_threads_sleep_unless_the_user_says_otherwise(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    told("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    told("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_a_process_ends_with_the_exit_code_and_no_traceback() -> None:
    command = [sys.executable, "-m", "lfp_lens", "run", "tinny"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Did you mean 'tiny'?" in done.stderr
    assert "Traceback" not in done.stderr
