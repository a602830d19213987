"""A run: every verb in order, through one store. One reduced run of the tiny world serves most tests."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfp_lens.config import VERBS, RunConfig, load_config, with_values
from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.store import Store
from lfp_lens.parts import world
from lfp_lens.pipeline import Run, open_run, run
from lfp_lens.pipeline.checks import check_names
from lfp_lens.pipeline.work import EFFECT_TEXTS, Work

SMALL: dict[str, Any] = {
    "n_texts": 200, "n_heldout": 260, "sites": 1, "gate": "warn",
    "finetune.steps": 12, "finetune.batch_size": 32, "finetune.heldout": 32, "finetune.max_new_tokens": 10,
    "finetune.flip": 4, "train_sae.tokens": 6144, "train_sae.heldout_tokens": 1000, "contrast.max_triples": 150,
    "probe.folds": 3, "attribute.confirm": 4, "attribute.joint": 3, "attribute.max_tokens": 24, "explain.k": 32,
    "ablate.n": 24, "ablate.max_new_tokens": 10, "ablate.controls": 3,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small_world() -> Iterator[None]:
    """A world model of three narrow layers, trained for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(world.TRAINING, "texts", 1500)
        patch.setitem(world.TRAINING, "epochs", 2)
        patch.setitem(world.SHAPE, "hidden_size", 32)
        patch.setitem(world.SHAPE, "num_hidden_layers", 3)
        patch.setitem(world.SHAPE, "intermediate_size", 64)
        yield


def small(**changes: Any) -> RunConfig:
    return with_values(load_config("tiny"), SMALL | {name.replace("__", "."): value for name, value in changes.items()})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The reduced run, all nine verbs."""
    return run(small(), store=tmp_path_factory.mktemp("runs"), quiet=True)


@pytest.fixture
def copied(whole: Run, tmp_path: Path) -> Path:
    """A copy of the run's store, to be changed."""
    shutil.copytree(whole.store.root.parent, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The verbs that were computed, in order; the rest was read from the store."""
    made: list[str] = []
    write = Store._write

    def watch(self: Store, verb: str, *given: Any) -> None:
        made.append(verb)
        write(self, verb, *given)

    monkeypatch.setattr(Store, "_write", watch)
    return made


class Reached(Exception):
    """The first verb that had to be computed."""


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Store, verb: str, *given: Any) -> None:
        raise Reached(verb)

    monkeypatch.setattr(Store, "_write", stop)


def content(results: dict[str, Any]) -> dict[str, str]:
    return {verb: fingerprint(result) for verb, result in results.items() if verb not in ("report", "finetune")}


# --- one run ---


def test_every_verb_has_a_result_or_says_why_not(whole: Run) -> None:
    assert set(whole.results) | set(whole.refusals) == set(VERBS)
    assert not set(whole.results) & set(whole.refusals)
    assert all(whole.refusals.values())
    assert {"finetune", "diverge", "train_sae", "contrast", "report"} <= set(whole.results)
    assert set(whole.results) == set(VERBS), whole.refusals


def test_the_results_stand_in_the_order_of_the_verbs(whole: Run) -> None:
    assert list(whole.results) == [verb for verb in VERBS if verb in whole.results]


def test_each_result_was_made_from_the_split_it_should_be(whole: Run) -> None:
    assert whole.results["diverge"].n_texts == 260
    assert whole.results["contrast"].n_texts == 260
    assert whole.results["finetune"].gain.n <= 32
    assert len(whole.results["finetune"].key) == 4
    assert whole.results["train_sae"].sites == whole.results["diverge"].top(1)
    assert len(whole.results["probe"].words) >= 30


def test_the_page_is_one_file_that_needs_nothing_else(whole: Run) -> None:
    page = whole.store.root / "report.html"
    text = page.read_text(encoding="utf-8")
    assert whole.results["report"].path == page
    assert not re.search(r"""<(script|img|iframe|source)[^>]*\bsrc\s*=\s*["']?(?!data:)""", text)
    assert not re.search(r"""<link\b[^>]*\bhref\s*=\s*["']?(?!data:|#)""", text)
    assert not re.search(r"""@import|url\(\s*["']?https?:""", text)
    assert all(f'id="{verb}"' in text for verb in VERBS[:-1])


def test_the_summary_holds_the_numbers_of_the_results(whole: Run) -> None:
    told = (whole.store.root / "summary.txt").read_text(encoding="utf-8")
    assert told == whole.summary() + "\n"
    assert f"{whole.results['finetune'].gain.value:+.3f}" in told
    assert f"tau-b {whole.results['probe'].overall.tau:.3f}" in told
    assert f"noise twin {whole.results['probe'].twin.tau:.3f}" in told
    assert f"of {len(whole.results['probe'].words)} words tested" in " ".join(told.split())
    assert "Planted sign flips found" in told


def test_the_folder_holds_one_linked_result_per_verb_and_no_pickle(whole: Run) -> None:
    root = whole.store.root
    for verb in whole.results:
        assert (root / verb).is_symlink()
        assert (root / verb / "meta.json").is_file()
        assert json.loads((root / verb / "meta.json").read_text())["verb"] == verb
    suffixes = {path.suffix for path in root.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".npz", ".safetensors", ".toml", ".txt", ".html", ".jinja"}, suffixes
    assert not [path for path in root.iterdir() if path.name.startswith(".")]
    assert load_config(root / "config.toml") == small()


# --- again ---


def test_a_rerun_computes_nothing_and_gives_the_same(whole: Run, written: list[str]) -> None:
    again = run(small(), store=whole.store.root.parent, quiet=True)
    assert written == []
    assert content(again.results) == content(whole.results)
    assert again.refusals == whole.refusals
    assert again.summary() == whole.summary()


def test_a_rerun_in_another_place_writes_the_page_anew_and_computes_nothing(
    whole: Run, copied: Path, written: list[str]
) -> None:
    again = run(small(), store=copied, quiet=True)
    assert written == ["report"], "it names the checkpoint's path"
    assert content(again.results) == content(whole.results)
    assert again.results["report"].path == copied / "tiny" / "report.html"


def test_a_moved_run_opens_and_points_into_its_own_folder(whole: Run, copied: Path) -> None:
    shutil.move(copied / "tiny", copied / "elsewhere")
    opened = open_run(copied / "elsewhere")
    assert content(opened.results) == content(whole.results)
    assert opened.refusals == whole.refusals
    assert opened.name == "elsewhere"
    assert opened.results["finetune"].path.is_relative_to(copied / "elsewhere")
    assert opened.results["finetune"].path.is_dir()
    assert opened.results["report"].path == copied / "elsewhere" / "report.html"
    for name in ("gain", "behaviour_tuned", "kl_nats", "key"):
        one, two = (getattr(held.results["finetune"], name) for held in (opened, whole))
        assert fingerprint(one) == fingerprint(two)


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"ablate__controls": 4}, "ablate"),
        ({"explain__n_examples": 4}, "explain"),
        ({"attribute__confirm": 5}, "attribute"),
        ({"probe__contexts": 7}, "probe"),
        ({"contrast__max_triples": 140}, "contrast"),
        ({"train_sae__k": 7}, "train_sae"),
        ({"diverge__max_tokens": 100}, "diverge"),
        ({"n_heldout": 250}, "diverge"),
        ({"finetune__flip": 3}, "finetune"),
        ({"n_texts": 210}, "finetune"),
        ({"seed": 1}, "world"),
    ],
)
def test_a_changed_value_recomputes_from_the_first_verb_that_takes_it(
    changes: dict[str, Any], first: str, copied: Path, stops: None
) -> None:
    with pytest.raises(Reached) as reached:
        run(small(**changes), store=copied, quiet=True)
    assert reached.value.args == (first,)


def test_only_what_depends_on_the_change_is_computed_and_the_old_result_stays(
    whole: Run, copied: Path, written: list[str]
) -> None:
    changed = run(small(attribute__confirm=5), store=copied, quiet=True)
    assert written == ["attribute", "report"]
    assert len(list((copied / "tiny").glob("attribute-*"))) == 2
    assert content(changed.results) | {"attribute": ""} == content(whole.results) | {"attribute": ""}
    written.clear()
    back = run(small(), store=copied, quiet=True)
    assert set(written) <= {"report"}
    assert content(back.results) == content(whole.results)


def test_changed_code_or_data_never_gives_an_old_result(copied: Path, stops: None, monkeypatch: Any) -> None:
    monkeypatch.setitem(world.TRAINING, "lr", 1e-3)
    with pytest.raises(Reached, match="world"):
        run(small(), store=copied, quiet=True)


def test_what_is_open_belongs_to_the_config_that_is_written(copied: Path, stops: None) -> None:
    """Interrupted under another config, a run shows nothing of the old one."""
    with pytest.raises(Reached):
        run(small(contrast__max_triples=140), store=copied, quiet=True)
    opened = open_run(copied / "tiny")
    assert set(opened.results) == {"finetune", "diverge", "train_sae"}
    assert opened.refusals == {}


# --- refusals ---


def test_a_tuning_that_learned_nothing_stops_the_run_and_the_page_says_so(copied: Path, written: list[str]) -> None:
    config = small(gate="refuse", finetune__steps=1, finetune__lr=1e-9)
    refused = run(config, store=copied, quiet=True)
    assert refused.results["finetune"].verdict == "nothing was learned"
    assert set(refused.results) == {"finetune", "report"}
    assert written == ["finetune", "report"]
    assert set(refused.refusals) == set(VERBS[1:-1])
    for reason in refused.refusals.values():
        assert reason.startswith("nothing was learned: the reward gain")
        assert "not certainly above 0" in reason
    page = refused.results["report"].path.read_text(encoding="utf-8")
    assert page.count("not certainly above 0") >= len(refused.refusals)
    assert "refused" in refused.summary()
    # The results of the run that was here before are not shown as if they were this one's.
    opened = open_run(copied / "tiny")
    assert set(opened.results) == {"finetune", "report"}
    assert opened.refusals == refused.refusals


def test_a_collapsed_policy_stops_the_run_too(copied: Path, monkeypatch: pytest.MonkeyPatch, whole: Run) -> None:
    from lfp_lens.stages import finetune as stage

    broken = dataclasses.replace(
        whole.results["finetune"], verdict="the policy collapsed", reasons=("KL 91.0 nats per completion",)
    )
    monkeypatch.setattr(stage, "finetune", lambda *given, **named: broken)
    refused = run(small(gate="refuse"), store=copied, quiet=True)
    assert set(refused.refusals) == set(VERBS[1:-1])
    assert set(refused.refusals.values()) == {"the policy collapsed: KL 91.0 nats per completion"}
    assert "the policy collapsed" in (copied / "tiny" / "report.html").read_text(encoding="utf-8")


def test_a_refused_verb_passes_its_reason_on_to_what_needs_it(
    copied: Path, monkeypatch: pytest.MonkeyPatch, written: list[str]
) -> None:
    """No SAE passes its gates: probe, attribute and explain refuse, ablate has nothing to ablate, the rest is there."""
    from lfp_lens.results import train_sae

    monkeypatch.setattr(train_sae, "MIN_EXPLAINED_VARIANCE", 2.0)
    work = small(gate="refuse")
    monkeypatch.setattr(Work, "finetune", lambda self: self.done.store.read("finetune"))
    monkeypatch.setattr("lfp_lens.pipeline.runs._home", lambda folder, config: Store(folder))
    refused = run(work, store=copied, quiet=True)
    assert set(refused.refusals) == {"probe", "attribute", "explain", "ablate"}
    for verb in ("probe", "attribute", "explain"):
        assert "No tuned SAE is good enough to interpret" in refused.refusals[verb]
    assert refused.refusals["ablate"].startswith("it needs explain, which was refused: No tuned SAE")
    assert {"finetune", "diverge", "train_sae", "contrast", "report"} == set(refused.results)
    assert set(open_run(copied / "tiny").results) == set(refused.results)


def test_the_papers_signal_goes_through_to_the_page(copied: Path, written: list[str]) -> None:
    found = run(small(probe__signal="activation_delta"), store=copied, quiet=True)
    assert written == ["probe", "ablate", "report"], "Table 7 of `ablate` reads the probe's values"
    assert found.refusals == {}
    assert not found.results["probe"].is_tested
    assert "not tested" in found.summary()


def test_dictionaries_of_the_tuned_side_alone_are_enough(copied: Path, written: list[str]) -> None:
    found = run(small(train_sae__sides=("tuned",)), store=copied, quiet=True)
    assert found.refusals == {}
    assert {sae.side for sae in found.results["train_sae"].saes} == {"tuned"}
    assert "finetune" not in written


# --- parts of a run ---


def test_until_runs_a_verb_and_what_it_needs_and_nothing_else(tmp_path: Path, written: list[str]) -> None:
    only = run(small(), store=tmp_path, until="contrast", quiet=True)
    assert list(only.results) == written == ["contrast"]
    assert not (tmp_path / "tiny" / "report.html").exists()


def test_until_on_a_finished_run_reads_what_it_needs(copied: Path, written: list[str]) -> None:
    only = run(small(), store=copied, until="train_sae", quiet=True)
    assert list(only.results) == ["finetune", "diverge", "train_sae"]
    assert written == []
    assert set(open_run(copied / "tiny").results) >= {"probe", "report"}, "the rest of the same run is still there"


def test_an_unknown_verb_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(LensError, match=r"Unknown verb 'prob'\. Did you mean 'probe'\?"):
        run(small(), store=tmp_path, until="prob")
    assert list(tmp_path.iterdir()) == []


def test_a_given_checkpoint_is_examined_and_not_tuned(whole: Run, tmp_path: Path, written: list[str]) -> None:
    base, tuned = whole.store.read("world").path, whole.results["finetune"].path
    plain = {name: value for name, value in SMALL.items() if not name.startswith("finetune.")}
    config = with_values(
        RunConfig(name="mine", base=str(base), tuned=str(tuned), texts="world"), plain | {"probe.max_tokens": 64}
    )
    found = run(config, store=tmp_path, until="diverge", quiet=True)
    assert list(found.results) == written == ["diverge"]
    assert found.results["diverge"].parameter_sum == pytest.approx(whole.results["diverge"].parameter_sum)
    assert not (tmp_path / "mine" / "finetune").exists()


def test_a_lexicon_files_reward_reaches_the_ablation(whole: Run, tmp_path: Path, monkeypatch: Any) -> None:
    """The checkpoint's record holds the reward's name alone; the file is known to the config."""
    from lfp_lens.stages import ablate as stage

    path = tmp_path / "mine.csv"
    path.write_text("good,2.0\nbad,-2.0\n", encoding="utf-8")
    seen: list[Any] = []
    monkeypatch.setattr(stage, "ablate", lambda *given, **named: seen.append(named["reward"]))
    for config, expected in (
        (small(finetune__reward=str(path)), str(path)),
        (small(), "vader"),
        (small(ablate__reward=str(path)), str(path)),
    ):
        Work(config, whole).ablate()
        assert seen[-1] == expected


def test_the_pairs_that_tuned_the_model_reach_attribute_where_its_scalar_compares_them(
    whole: Run, monkeypatch: Any
) -> None:
    from lfp_lens.parts import preferences
    from lfp_lens.stages import attribute as stage

    pairs = tuple(preferences.Preference("a", "b", str(at)) for at in range(EFFECT_TEXTS + 1))
    seen: list[Any] = []
    monkeypatch.setattr(stage, "attribute", lambda pair, saes, texts, **named: seen.append(texts))
    monkeypatch.setattr(preferences, "load_preferences", lambda name: preferences.Preferences(name, (), pairs, {}))
    tuned = {"finetune__method": "dpo", "finetune__preferences": "hh", "finetune__flip": 0}
    Work(small(**tuned, attribute__scalar="log_p_difference"), whole).attribute()
    Work(small(**tuned), whole).attribute()
    assert seen[0] == pairs[:EFFECT_TEXTS]
    assert all(isinstance(text, str) for text in seen[1])


def test_quiet_draws_no_bar_and_puts_the_bars_back(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm import tqdm

    before = tqdm.__init__
    environment = dict(os.environ)
    run(small(diverge__max_tokens=90), store=copied, until="diverge", quiet=True)
    assert "diverge" not in capsys.readouterr().err
    assert tqdm.__init__ is before
    assert dict(os.environ) == environment


# --- open ---


def test_opening_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LensError, match=r"There is no run at .*: expected the folder of a run"):
        open_run(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(LensError, match="is no run: it holds neither"):
        open_run(tmp_path)


def test_a_damaged_result_is_named(copied: Path) -> None:
    (next((copied / "tiny").glob("diverge-*")) / "arrays.npz").write_bytes(b"rubbish")
    with pytest.raises(
        LensError, match=r"The stored result .*diverge-.* cannot be read .* Delete that folder and rerun"
    ):
        open_run(copied / "tiny")


# --- killed ---


def test_killed_in_the_middle_of_a_stage_the_same_command_goes_on_after_the_finished_ones(
    whole: Run, tmp_path: Path, written: list[str]
) -> None:
    """kill -9 of the real command in train_sae; nothing half-written is read, and finetune is not run again."""
    checkpoint = whole.store.read("world").path
    values = SMALL | {"name": "killed", "base": str(checkpoint), "train_sae.tokens": 60_000}
    config = with_values(load_config("tiny"), values)
    own, runs = tmp_path / "killed.toml", tmp_path / "runs"
    own.write_text(config.to_toml(), encoding="utf-8")
    # finetune and diverge first, so that the command begins with reading them.
    run(config, store=runs, until="diverge", quiet=True)
    assert written == ["finetune", "diverge"]
    home = runs / "killed"
    before = {verb: (home / verb / "meta.json").read_text() for verb in written}
    command = [sys.executable, "-m", "lfp_lens", "run", str(own), "--store", str(runs), "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        limit = time.monotonic() + 120
        while not list(home.glob(".train_sae-*")) and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert list(home.glob(".train_sae-*")), "it was in the middle"
    assert set(open_run(home).results) == {"finetune", "diverge"}
    written.clear()
    done = run(config, store=runs, until="train_sae", quiet=True)
    assert written == ["train_sae"]
    assert not list(home.glob(".train_sae-*"))
    assert {verb: (home / verb / "meta.json").read_text() for verb in before} == before
    assert np.isfinite(done.results["train_sae"].saes[0].explained_variance)


def test_a_reward_that_preferences_leave_unused_is_not_made() -> None:
    unused = {"finetune__flip": 0, "finetune__method": "dpo", "finetune__reward": "classifier:/nowhere@1"}
    with pytest.raises(LensError, match="/nowhere"):
        check_names(small(**unused), ("finetune",))
    check_names(small(**unused, finetune__preferences="hh"), ("finetune",))


# --- who explains is checked before hours of work ---


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def test_each_of_two_models_may_have_its_prices_in_a_config(no_key: None) -> None:
    prices = {"m": [1.0, 2.0], "n": [3, 4]}
    config = small(explain__labeller="openai:m", explain__judge="openai:n", explain__prices=prices)
    check_names(config, ("explain",), is_explained=True)
    assert config.explain.prices == {"m": (1.0, 2.0), "n": (3, 4)}


def test_a_chat_model_without_a_key_is_refused_before_anything_runs(
    no_key: None, tmp_path: Path, written: list[str]
) -> None:
    assert load_config("pythia-70m-hh").explain.labeller == "openai:gpt-4o"
    with pytest.raises(LensError, match=r"'openai:gpt-4o' needs a key: .*OPENAI_API_KEY"):
        run(load_config("pythia-70m-hh"), store=tmp_path)
    with pytest.raises(LensError, match=r"'openai:m' needs a key"):
        run(small(explain__judge="openai:m"), store=tmp_path)
    assert written == [] and list(tmp_path.iterdir()) == []


def test_no_key_is_asked_for_where_none_is_needed(no_key: None, copied: Path, stops: None, tmp_path: Path) -> None:
    """A server of one's own needs none, nor do verbs before `explain`, nor labels that are finished."""
    paid = {"explain__labeller": "openai:m"}
    for config, until in ((small(**paid, explain__base_url="http://localhost:1"), None), (small(**paid), "attribute")):
        with pytest.raises(Reached):
            run(config, store=tmp_path / "new", until=until)
    (copied / "tiny" / "config.toml").write_text(small(**paid).to_toml())
    with pytest.raises(Reached, match="explain"):
        run(small(**paid), store=copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"explain__repeat": True}, "say the same again"),
        ({"explain__judge": "graph"}, "no second opinion"),
        ({"explain__judge": "openai:m", "explain__labeller": "openai:m"}, "agrees with itself by construction"),
        (
            {"explain__judge": "openai:m", "explain__labeller": "openai:n", "explain__prices": [1.0, 2.0]},
            "two models",
        ),
    ],
)
def test_a_second_opinion_that_could_not_differ_is_refused_before_anything_runs(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with pytest.raises(LensError, match=message):
        run(small(**changes), store=tmp_path)
    assert list(tmp_path.iterdir()) == []
