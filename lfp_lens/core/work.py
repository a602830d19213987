"""A folder for checkpoints that outlives a killed process, so that the next one can go on."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lfp_lens.core.errors import LensError

OWNER_FILE = "owner"
SUFFIX = ".work"


@contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """Lend the folder `path`, with what a killed process left in it, and remove it when the work inside is done.

    Done is also what ends in a `LensError`: the same inputs would end so again. Anything else keeps the folder, and so does
    a `LensError` that tells of another exception (a full disk, a server that a reward asks) once there is something in it.
    Raises `LensError` if the folder cannot be made.

    While another living process holds it, a folder of this process's own is lent. Processes that one launcher started
    together (`WORLD_SIZE`) share it, and the first of them (`RANK` 0) removes it.
    """
    if not is_one_of_many() and not _is_free(path):
        path = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / OWNER_FILE).write_text(str(os.getpid()), encoding="utf-8")
    except OSError as error:
        raise LensError(f"The folder for checkpoints {path} cannot be made: {error}.") from error
    try:
        yield path
    except LensError as error:
        if error.__cause__ is None or {file.name for file in path.iterdir()} <= {OWNER_FILE}:
            _remove(path)
        raise
    _remove(path)


def is_alive(pid: str) -> bool:
    """Tell whether a process of this number runs on this machine."""
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (ValueError, OSError):
        return False
    return True


def is_first() -> bool:
    """Tell whether this is the first of the processes that a launcher started together, or a process alone."""
    return os.environ.get("RANK", "0") == "0"


def is_one_of_many() -> bool:
    """Tell whether a launcher started several processes together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _remove(path: Path) -> None:
    if is_first():
        shutil.rmtree(path, ignore_errors=True)


def _is_free(path: Path) -> bool:
    try:
        owner = (path / OWNER_FILE).read_text(encoding="utf-8")
    except OSError:
        return True
    # Our own number was a dead process's: in a container every run may get the same one.
    return owner == str(os.getpid()) or not is_alive(owner)
