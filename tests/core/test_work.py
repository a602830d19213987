"""work_folder: what outlives a killed process, and who may use it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.work import OWNER_FILE, is_alive, work_folder


def test_it_is_gone_when_the_work_is_done(tmp_path: Path) -> None:
    with work_folder(tmp_path / "a.work") as folder:
        (folder / "checkpoint").write_text("1")
    assert list(tmp_path.iterdir()) == []


def test_it_stays_when_the_work_is_cut_off_and_is_lent_again(tmp_path: Path) -> None:
    def work_and_stop() -> None:
        with work_folder(tmp_path / "a.work") as folder:
            (folder / "checkpoint").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_and_stop()
    with work_folder(tmp_path / "a.work") as folder:
        assert (folder / "checkpoint").read_text() == "1"


def test_an_error_that_would_come_again_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(LensError), work_folder(tmp_path / "a.work"):
        raise LensError("bad input")
    assert list(tmp_path.iterdir()) == []


def test_an_error_from_outside_keeps_what_was_done(tmp_path: Path) -> None:
    def work_and_stop(*, is_begun: bool) -> None:
        with work_folder(tmp_path / "a.work") as folder:
            if is_begun:
                (folder / "checkpoint").write_text("1")
            raise LensError("the disk is full") from OSError()

    with pytest.raises(LensError, match="the disk is full"):
        work_and_stop(is_begun=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LensError, match="the disk is full"):
        work_and_stop(is_begun=True)
    with work_folder(tmp_path / "a.work") as folder:
        assert (folder / "checkpoint").read_text() == "1"


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LensError, match="cannot be made"), work_folder(tmp_path / "file" / "a.work"):
        pass


def test_a_living_process_keeps_its_folder_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.work"
    path.mkdir()
    (path / OWNER_FILE).write_text(str(os.getppid()))
    with work_folder(path) as folder:
        assert folder == tmp_path / f"a.work.{os.getpid()}"
    assert path.is_dir()
    assert not folder.exists()


def test_processes_of_one_launcher_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    path = tmp_path / "a.work"
    path.mkdir()
    (path / OWNER_FILE).write_text(str(os.getppid()))
    with work_folder(path) as folder:
        assert folder == path


def test_a_dead_process_owns_nothing(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not is_alive(str(ended.pid))
    assert is_alive(str(os.getpid()))
    assert not is_alive("no number")
    path = tmp_path / "a.work"
    path.mkdir()
    (path / OWNER_FILE).write_text(str(ended.pid))
    with work_folder(path) as folder:
        assert folder == path
