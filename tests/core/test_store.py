"""The store keeps whole results only, finds them by what made them, and never reads what it did not write."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import home_of, record
from lfp_lens.core.store import Store, code_fingerprint, keep


@record
class Number:
    value: float
    more: np.ndarray
    path: Path


def number(value: float = 1.0) -> Number:
    return Number(value, np.arange(4), Path("/elsewhere"))


def never(folder: Path) -> Number:
    raise AssertionError("this must not be made again")


def hidden(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name.startswith("."))


SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np
from lfp_lens.core.records import record
from lfp_lens.core.store import Store

@record
class Number:
    value: float
    more: np.ndarray
    path: Path

def make(folder):
    (folder / "half").write_text("half a checkpoint")
    print("making", flush=True)
    {act}
    return Number(1.0, np.arange(4), Path("/elsewhere"))

Store(sys.argv[1]).get("probe", {{"a": 1}}, make)
print("made", flush=True)
"""


def process(root: Path, act: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(act=act), str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip


def test_the_same_inputs_are_made_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.get("probe", {"a": 1, "b": [1.0]}, lambda folder: number())
    again = Store(tmp_path).get("probe", {"b": [1.0], "a": 1}, never)
    assert (first.value, again.value) == (1.0, 1.0)
    assert home_of(first) == home_of(again)


@pytest.mark.parametrize(
    "inputs",
    [{"a": 2, "b": [1.0]}, {"a": 1, "b": [2.0]}, {"a": 1, "b": np.array([1.0])}, {"a": 1}, {"a": True, "b": [1.0]},
     {"a": 1, "b": [1.0], "c": None}],
)  # fmt: skip
def test_changed_parameters_or_data_are_made_anew(inputs: dict[str, Any], tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.get("probe", {"a": 1, "b": [1.0]}, lambda folder: number(1.0))
    assert store.get("probe", inputs, lambda folder: number(2.0)).value == 2.0
    assert store.get("probe", {"a": 1, "b": [1.0]}, never).value == 1.0


def test_the_link_points_at_what_was_asked_for_last(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.get("probe", {"a": 1}, lambda folder: number(1.0))
    store.get("probe", {"a": 2}, lambda folder: number(2.0))
    assert store.read("probe").value == 2.0
    store.get("probe", {"a": 1}, never)
    assert store.read("probe").value == 1.0
    assert store.verbs() == ("probe",)


def test_a_verb_without_a_result_is_refused_with_those_there_are(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(LensError, match=r"has no finished 'probe'\. Present: nothing\."):
        store.read("probe")
    store.get("diverge", {}, lambda folder: number())
    for asked in (store.read, store.meta):
        with pytest.raises(LensError, match=r"has no finished 'probe'\. Present: diverge\."):
            asked("probe")


def test_meta_tells_inputs_versions_and_time(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.get("probe", {"a": 1, "texts": ["x" * 500], "many": list(range(100))}, lambda folder: number())
    meta = store.meta("probe")
    assert meta["inputs"]["a"] == 1
    assert set(meta["inputs"]["texts"]) == set(meta["inputs"]["many"]) == {"fingerprint"}
    assert meta["versions"]["numpy"] == np.__version__
    assert meta["seconds"] >= 0 and (tmp_path / "probe").resolve().name == f"probe-{meta['key']}"


def test_a_verb_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def make(folder: Path) -> Number:
        (folder / "half").write_text("half")
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        Store(tmp_path).get("probe", {}, make)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def make(folder: Path) -> Number:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).get("probe", {}, make)
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a record cannot hold"):
        Store(tmp_path).get("probe", {}, lambda folder: Number(object(), np.arange(1), folder))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_nothing_that_can_be_read_and_the_rerun_clears_it(tmp_path: Path) -> None:
    killed = process(tmp_path, "time.sleep(60)")
    assert killed.stdout is not None and killed.stdout.readline() == "making\n"
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    store = Store(tmp_path)
    assert store.verbs() == () and not store.has("probe")
    assert len(hidden(tmp_path)) == 1 and list(tmp_path.rglob("half"))
    made = store.get("probe", {"a": 1}, lambda folder: number(7.0))
    assert made.value == 7.0
    assert hidden(tmp_path) == [] and not list(tmp_path.rglob("half"))


def test_what_a_killed_process_of_the_same_number_left_is_cleared(tmp_path: Path) -> None:
    """In a container every run may have the same process number."""
    store = Store(tmp_path)
    store.get("probe", {"a": 1}, lambda folder: number())
    kept = (tmp_path / "probe").resolve()
    left = tmp_path / f".{kept.name}.{os.getpid()}"
    kept.rename(left)
    assert store.get("probe", {"a": 1}, lambda folder: number(7.0)).value == 7.0
    assert hidden(tmp_path) == []


def test_what_a_living_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    other = process(tmp_path, "time.sleep(1.5)")
    assert other.stdout is not None and other.stdout.readline() == "making\n"
    assert Store(tmp_path).get("probe", {"a": 1}, lambda folder: number(7.0)).value == 7.0
    out, err = other.communicate(timeout=30)
    assert (other.returncode, out) == (0, "made\n"), err
    assert Store(tmp_path).read("probe").value == 7.0
    assert hidden(tmp_path) == []


def test_two_processes_that_write_the_same_result_at_once_both_succeed(tmp_path: Path) -> None:
    start = time.time() + 1.5
    wait = f"time.sleep(max(0, {start} - time.time()))"
    both = [process(tmp_path, wait) for _ in range(2)]
    for one in both:
        out, err = one.communicate(timeout=60)
        assert (one.returncode, out) == (0, "making\nmade\n"), err
    assert Store(tmp_path).read("probe").value == 1.0
    assert hidden(tmp_path) == []
    assert len([path for path in tmp_path.iterdir() if not path.is_symlink()]) == 1


def test_a_damaged_result_names_its_folder_and_is_not_made_again_silently(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = home_of(store.get("probe", {}, lambda folder: number()))
    assert folder is not None
    (folder / "arrays.npz").write_bytes((folder / "arrays.npz").read_bytes()[:50])
    for read in (lambda: store.read("probe"), lambda: store.get("probe", {}, never)):
        with pytest.raises(LensError, match=rf"{folder.name} cannot be read.*Delete that folder and rerun"):
            read()


def test_provenance_that_is_damaged_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.get("probe", {}, lambda folder: number())
    (tmp_path / "probe" / "meta.json").write_text("{", encoding="utf-8")
    with pytest.raises(LensError, match=r"meta\.json.*cannot be read"):
        store.meta("probe")


def test_a_moved_run_still_loads_with_its_files(tmp_path: Path) -> None:
    def make(folder: Path) -> Number:
        (folder / "checkpoint").mkdir()
        (folder / "checkpoint" / "weights").write_text("1")
        return Number(1.0, np.arange(4), folder / "checkpoint")

    Store(tmp_path / "here").get("probe", {}, make)
    (tmp_path / "here").rename(tmp_path / "there")
    found = Store(tmp_path / "there").read("probe")
    assert (found.path / "weights").read_text() == "1"
    assert (tmp_path / "there" / "probe").resolve() in found.path.parents
    assert Store(tmp_path / "there").get("probe", {}, never).value == 1.0


def test_a_store_where_a_file_lies_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LensError, match=r"file cannot be made.*Choose another --store"):
        Store(tmp_path / "file")


@pytest.mark.parametrize("step", ["mkdir", "symlink_to"])
def test_a_folder_that_cannot_be_written_is_refused(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The superuser may write everywhere, so the refusal of the system is played."""
    store = Store(tmp_path)

    def denied(*given: Any, **named: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, step, denied)
    with pytest.raises(LensError, match=rf"'probe' could not be written below {tmp_path}.*Permission denied"):
        store.get("probe", {}, lambda folder: number())


def test_a_finished_run_opens_where_nothing_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.get("probe", {}, lambda folder: number())
    for step in ("mkdir", "symlink_to", "unlink"):
        monkeypatch.setattr(Path, step, lambda *given, **named: 1 / 0)
    assert store.get("probe", {}, never).value == 1.0


def test_a_small_text_is_replaced_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for text in ("first", "second ä"):
        store.write_text("summary.txt", text)
    assert (tmp_path / "summary.txt").read_text(encoding="utf-8") == "second ä"
    assert hidden(tmp_path) == []


def test_without_a_store_a_verb_runs_in_memory() -> None:
    folders: list[Path | None] = []
    keep(None, "probe", {"a": 1}, lambda folder: folders.append(folder))
    assert folders == [None]


def test_the_store_itself_is_no_part_of_the_key(tmp_path: Path) -> None:
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    names = [
        home_of(keep(store, "probe", {"a": 1, "store": store}, lambda folder: number())).name for store in (one, two)
    ]
    assert names[0] == names[1]
    assert "store" not in json.loads((one.root / "probe" / "meta.json").read_text())["inputs"]


def test_every_source_that_statistics_stand_in_is_in_the_key_of_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder inside the core counts as the core does: a changed test of words must not give old results."""
    read: set[str] = set()
    text = Path.read_text

    def watch(self: Path, *given: Any, **named: Any) -> str:
        read.add(self.as_posix())
        return text(self, *given, **named)

    monkeypatch.setattr(Path, "read_text", watch)
    code_fingerprint.__wrapped__("probe")
    for name in ("core/stats/wrong.py", "core/stats/agreement.py", "parts/word_passes.py", "stages/probe/values.py"):
        assert any(path.endswith(f"lfp_lens/{name}") for path in read), name
