"""A run: every verb in order, through one store, skipping what is finished, stopping where a gate refuses.

Data runs finetune, diverge, train_sae, contrast, probe, attribute, explain, ablate, report. The train split makes the tuned
model and the SAEs; the test split is measured. A verb that a gate refuses leaves its reason, and so do the verbs that
need it; the rest goes on, and the page shows both.
"""

import dataclasses
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lfp_lens.config import VERBS, RunConfig
from lfp_lens.core.errors import GateError, LensError, unknown
from lfp_lens.core.store import Store
from lfp_lens.pipeline.checks import check_names
from lfp_lens.pipeline.work import Run, Work

NEEDS = {
    "finetune": (),
    "diverge": ("finetune",),
    "train_sae": ("diverge",),
    "contrast": (),
    "probe": ("train_sae", "contrast"),
    "attribute": ("train_sae",),
    "explain": ("train_sae",),
    "ablate": ("explain",),
    "report": (),
}
"""Verb -> the verbs whose results it takes."""
CONFIG_FILE, SUMMARY_FILE = "config.toml", "summary.txt"


def run(
    config: RunConfig, *, store: str | os.PathLike[str] = "runs", until: str | None = None, quiet: bool = False
) -> Run:
    """Run every verb, or those that `until` needs and `until` itself; finished ones are read from the store.

    Args:
        config: from `load_config("tiny")`, a TOML file, or made in Python.
        store: folder of all runs; this one goes to `store/config.name`.
        until: the last verb wanted; None runs all nine.
        quiet: draw no progress bars.

    Raises:
        LensError: for whatever is wrong with the config's models and data. Refusals of gates are in `Run.refusals`.

    >>> run(load_config("tiny")).results["probe"].wrong()  # doctest: +SKIP
    """
    from lfp_lens.parts.speed import without_bars

    if until is not None and until not in VERBS:
        raise unknown("verb", until, VERBS)
    folder = Path(store) / config.name
    check_names(config, _wanted(until), is_explained=_is_kept(folder, config, "explain"))
    home = _home(folder, config)
    done = Run(config.name, home)
    work = Work(config, done)
    with warnings.catch_warnings(), without_bars() if quiet else nullcontext():
        # TransformerLens announces its own future on every construction; users can do nothing about it.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"transformer_lens|sae_lens")
        for verb in _wanted(until):
            _step(verb, done, getattr(work, verb))
    if "report" in done.results:
        home.write_text(SUMMARY_FILE, done.summary() + "\n")
    return done


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a stored run with every finished result; nothing is computed. Raises `LensError` if there is none."""
    import lfp_lens.results  # noqa: F401  (a record can only be read once its class is known)

    folder = Path(path)
    if not folder.is_dir():
        raise LensError(f"There is no run at {folder}: expected the folder of a run, such as runs/tiny.")
    store = Store(folder)
    results = {verb: store.read(verb) for verb in VERBS if store.has(verb)}
    if not results and not (folder / CONFIG_FILE).is_file():
        raise LensError(f"{folder} is no run: it holds neither {CONFIG_FILE} nor a finished result.")
    refusals: dict[str, str] = {}
    if "report" in results:
        from lfp_lens.stages.report import PAGE_FILE

        # The run may have been moved since.
        results["report"] = dataclasses.replace(results["report"], path=store.root / PAGE_FILE)
        refusals = dict(results["report"].refusals)
    return Run(folder.name, store, results, refusals)


def _is_kept(folder: Path, config: RunConfig, verb: str) -> bool:
    """Tell whether a verb of this very config is finished in the folder of a run."""
    written = folder.expanduser() / CONFIG_FILE
    return (
        written.is_file()
        and written.read_text(encoding="utf-8") == config.to_toml()
        and (written.parent / verb).is_dir()
    )


def _home(folder: Path, config: RunConfig) -> Store:
    """Open the run's folder. Under another config the links of the old one go: what is linked belongs to one config."""
    home, text = Store(folder), config.to_toml()
    written = home.root / CONFIG_FILE
    if written.is_file() and written.read_text(encoding="utf-8") != text:
        for verb in home.verbs():
            home.forget(verb)
    home.write_text(CONFIG_FILE, text)
    return home


def _wanted(until: str | None) -> tuple[str, ...]:
    """Give the verbs to run, in order."""
    if until is None or until == "report":
        return VERBS
    wanted, open_ = set(), [until]
    while open_:
        verb = open_.pop()
        wanted.add(verb)
        open_ += NEEDS[verb]
    return tuple(verb for verb in VERBS if verb in wanted)


def _step(verb: str, done: Run, make: Callable[[], Any]) -> None:
    """Run one verb unless something it needs was refused; keep a refusal's reason."""
    if verb in done.refusals:
        done.store.forget(verb)
        return
    missing = next((need for need in NEEDS[verb] if need in done.refusals), None)
    if missing is not None:
        done.store.forget(verb)
        done.refusals[verb] = f"it needs {missing}, which was refused: {done.refusals[missing]}"
        return
    try:
        result = make()
    except GateError as refusal:
        done.store.forget(verb)
        done.refusals[verb] = str(refusal)
        return
    if result is not None:
        done.results[verb] = result
