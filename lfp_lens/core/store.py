"""Results on disk: content-keyed, written aside and renamed, so that a half-written result does not exist.

    runs/NAME/VERB-KEY/   meta.json  result.json  arrays.npz  and the files a verb made (a checkpoint, SAEs)
    runs/NAME/VERB        a link to the current key

The key is the hash of the verb, its parameters, the fingerprints of its inputs and the code that makes it: changed
parameters, data or code never give an old result. Rerunning skips what is there.
"""

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.records import read_record, write_record
from lfp_lens.core.work import SUFFIX, is_alive

META_FILE = "meta.json"
LIBRARIES = (
    "lfp-lens",
    "torch",
    "transformers",
    "transformer-lens",
    "sae-lens",
    "trl",
    "scikit-learn",
    "numpy",
    "scipy",
)


class Store:
    """One run's folder. `Store("runs/tiny")` opens or makes it; nothing is written before a result is complete.

    Raises `LensError` if the folder cannot be made or written.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser().absolute()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LensError(f"The store folder {self.root} cannot be made: {error}. Choose another --store.") from error

    def get(self, verb: str, inputs: Mapping[str, Any], make: Callable[[Path], Any]) -> Any:
        """Give the stored result for these inputs, else make it: `make(folder)` may write files into `folder`.

        `inputs` are the verb's bound arguments. What is returned was read back from disk in both cases, so a rerun and
        a first run give the same object.
        """
        key = fingerprint({"verb": verb, "code": code_fingerprint(verb), "inputs": dict(inputs)})
        final = self.root / f"{verb}-{key}"
        if not final.exists():
            self._write(verb, key, inputs, make, final)
        result = read_record(final)
        self._link(verb, final)
        return result

    def has(self, verb: str) -> bool:
        """Tell whether a finished result of this verb is linked."""
        return (self.root / verb).is_dir()

    def read(self, verb: str) -> Any:
        """Give the current result of a verb. Raises `LensError` if this run has none."""
        self._require(verb)
        return read_record((self.root / verb).resolve())

    def meta(self, verb: str) -> dict[str, Any]:
        """Give the provenance of the current result of a verb: inputs, versions, seconds, device, git commit."""
        self._require(verb)
        path = self.root / verb / META_FILE
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LensError(f"The provenance {path} cannot be read ({error}). Delete its folder and rerun.") from error

    def _require(self, verb: str) -> None:
        if not self.has(verb):
            raise LensError(
                f"The run {self.root} has no finished {verb!r}. Present: {', '.join(self.verbs()) or 'nothing'}."
            )

    def verbs(self) -> tuple[str, ...]:
        """Name the verbs that have a current result."""
        return tuple(sorted(path.name for path in self.root.iterdir() if path.is_symlink() and path.is_dir()))

    def forget(self, verb: str) -> None:
        """Take away the link to a verb's current result; the result stays, and is linked again when its inputs recur."""
        link = self.root / verb
        if link.is_symlink():
            link.unlink()

    def write_text(self, name: str, text: str) -> Path:
        """Write a small text file (the summary, the config) at the top of the run, whole or not at all."""
        path = self.root / name
        aside = path.with_name(f".{name}.{os.getpid()}")
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
        return path

    def _write(self, verb: str, key: str, inputs: Mapping[str, Any], make: Callable[[Path], Any], final: Path) -> None:
        self._sweep(verb, key)
        aside = self.root / f".{verb}-{key}.{os.getpid()}"
        started, cpu = time.perf_counter(), time.process_time()
        try:
            aside.mkdir()
            write_record(make(aside), aside)
            seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
            meta = {"verb": verb, "key": key, **seconds, "inputs": _readable(inputs), **provenance()}
            (aside / META_FILE).write_text(json.dumps(meta, indent=1), encoding="utf-8")
            os.rename(aside, final)
        except BaseException as error:
            shutil.rmtree(aside, ignore_errors=True)
            if isinstance(error, OSError) and final.is_dir():
                return  # another process made the same result from the same inputs meanwhile
            if isinstance(error, OSError):
                raise LensError(f"The result of {verb!r} could not be written below {self.root}: {error}") from error
            raise

    def _sweep(self, verb: str, key: str) -> None:
        """Remove what a killed process left behind for this very result."""
        for left in self.root.glob(f".{verb}-{key}.*"):
            number = left.name.rsplit(".", 1)[1]
            if left.suffix == SUFFIX:
                continue  # checkpoints to resume from
            # Our own number was a dead process's: in a container every run may get the same one.
            if number == str(os.getpid()) or not is_alive(number):
                shutil.rmtree(left, ignore_errors=True)

    def _link(self, verb: str, final: Path) -> None:
        link = self.root / verb
        if link.is_symlink() and os.readlink(link) == final.name:
            return  # a finished run opens where nothing may be written
        aside = self.root / f".{verb}.link.{os.getpid()}"
        try:
            aside.unlink(missing_ok=True)
            aside.symlink_to(final.name)
            os.replace(aside, link)
        except OSError as error:
            raise LensError(f"The result of {verb!r} could not be written below {self.root}: {error}") from error


def keep(store: Store | None, verb: str, inputs: Mapping[str, Any], make: Callable[[Path | None], Any]) -> Any:
    """Run a verb: through the store if there is one, else in memory with `make(None)`.

    `inputs` may be the verb's own `locals()`; the store itself is left out of the key.
    """
    if store is None:
        return make(None)
    return store.get(verb, {name: value for name, value in inputs.items() if name != "store"}, make)


@cache
def code_fingerprint(verb: str) -> str:
    """Hash our version and the source that can change a verb's result: the core, the parts and its own stage."""
    package = Path(__file__).parents[1]
    stage = package / "stages"
    sources = [
        *package.glob("core/**/*.py"),
        *package.glob("parts/**/*.py"),
        *stage.glob(f"{verb}.py"),
        *stage.glob(f"{verb}/*.py"),
    ]
    texts = {path.relative_to(package).as_posix(): path.read_text(encoding="utf-8") for path in sources}
    return fingerprint([metadata.version("lfp-lens"), texts])


def provenance() -> dict[str, Any]:
    """Give what a result depends on beside its inputs: versions, machine, time, git commit of the working folder."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git_commit(),
    }


def _git_commit() -> str | None:
    """Give the commit of this package's own checkout, None outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _readable(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Keep plain parameters as they are and everything larger as its fingerprint."""
    plain = (bool, int, float, str, type(None))

    def is_small(value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return len(value) <= 16 and all(isinstance(part, plain) and len(str(part)) < 200 for part in value)
        return isinstance(value, plain)

    return {
        name: (list(value) if isinstance(value, tuple) else value)
        if is_small(value)
        else {"fingerprint": fingerprint(value)}
        for name, value in inputs.items()
    }
