"""What this machine has and lacks: libraries, device, data, keys, disk, and what one config needs."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lfp_lens.core.errors import LensError
from lfp_lens.parts.sources import LOCAL_MODELS, VARIABLE, data_folder, model_path

if TYPE_CHECKING:
    from lfp_lens.config import RunConfig

PACKAGE = "lfp-lens"
DATA = (
    "imdb/train.parquet", "imdb/test.parquet", "hh_rlhf/train.jsonl.gz", "hh_rlhf/test.jsonl.gz",
    "sentiment_ratings/movie_review_snippets.jsonl.gz", "tinystories/tinystories_1000.jsonl.gz",
    "tokenizers/gpt-neox-20b", "tokenizers/gpt2", *(f"models/{name}" for name in LOCAL_MODELS),
)  # fmt: skip
LOCAL_TEXTS = {
    "imdb": "imdb/train.parquet", "tinystories": "tinystories/tinystories_1000.jsonl.gz", "hh": "hh_rlhf/train.jsonl.gz",
}  # fmt: skip
HUB_TEXTS = {
    "imdb": "stanfordnlp/imdb", "tinystories": "roneneldan/TinyStories", "hh": "Anthropic/hh-rlhf",
    "toxic": "unalignment/toxic-dpo-v0.2",
}  # fmt: skip
KEYS = ("OPENAI_API_KEY", "OPENAI_BASE_URL")
SMALL_DISK_GB = 2.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    """What was looked at."""
    status: Literal["ok", "warn", "missing", "conflict"]
    """`ok`, `warn` (may matter), `missing` (something will not run), `conflict` (broken installation)."""
    text: str
    """What was found, and what to do about it."""


def examine(config: "str | Path | RunConfig | None" = None) -> list[Finding]:
    """Look at everything a run may need; nothing is downloaded and no secret is shown.

    Args:
        config: a preset, a .toml file or a config, whose models, data and keys are looked for too.

    Raises:
        LensError: if the config itself cannot be used.

    >>> any(finding.status == "conflict" for finding in examine())
    False
    """
    from lfp_lens.config import load_config

    loaded = load_config(config) if isinstance(config, (str, Path)) else config
    found = [_python(), *_libraries(), *_each_other(), *_device(), *_data(), *_keys(), _disk()]
    return found + (list(_needs(loaded)) if loaded else [])


def _python() -> Finding:
    running, wanted = platform.python_version(), metadata.metadata(PACKAGE)["Requires-Python"]
    good = wanted is None or SpecifierSet(wanted).contains(running, prereleases=True)
    return Finding("python", "ok" if good else "conflict", f"{running} (declared: {wanted})")


def _declared(package: str) -> list[Requirement]:
    """Give what a package requires here, extras left out."""
    wanted = [Requirement(line) for line in metadata.requires(package) or []]
    return [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]


def _libraries() -> Iterator[Finding]:
    for wanted in _declared(PACKAGE):
        version = _version(wanted.name)
        if version is None:
            yield Finding(
                wanted.name, "conflict", f"not installed (declared: {wanted.specifier}). Reinstall {PACKAGE}."
            )
        elif not wanted.specifier.contains(version, prereleases=True):
            text = f"{version} is outside the declared range {wanted.specifier}. Run: pip install '{wanted}'"
            yield Finding(wanted.name, "conflict", text)
        else:
            yield Finding(wanted.name, "ok", f"{version} (declared: {wanted.specifier})")


def _each_other() -> Iterator[Finding]:
    """Check what our libraries ask of one another and of theirs: an installer may have broken it later."""
    for library in _declared(PACKAGE):
        if _version(library.name) is None:
            continue
        for wanted in _declared(library.name):
            version = _version(wanted.name)
            if version is None:
                yield Finding(library.name, "warn", f"asks for {wanted}, which is not installed")
            elif not wanted.specifier.contains(version, prereleases=True):
                yield Finding(library.name, "warn", f"asks for {wanted}; {version} is installed")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    there = memory()
    told = "" if there is None else f", {there / 2**30:.0f} GB memory"
    yield Finding("processor", "ok", f"{platform.machine()}, {cores} cores{told}")
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("device", "conflict", f"torch cannot be imported: {error}. Reinstall torch.")
        return
    if not torch.cuda.is_available():
        yield Finding("device", "ok", "CPU only (no CUDA device is visible to torch)")
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        yield Finding("device", "ok", f"cuda:{index} {card.name}, {card.total_memory / 2**30:.0f} GB")


def memory() -> int | None:
    """Give this machine's memory in bytes; None where the system does not tell."""
    if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(getattr(os, "sysconf_names", {})):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def is_here(device: str) -> bool:
    """Tell whether torch sees this device on this machine."""
    import torch

    kind, _, index = device.partition(":")
    if kind == "cuda":
        return torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()
    return kind == "cpu" or torch.backends.mps.is_available()


def _data() -> Iterator[Finding]:
    try:
        folder = data_folder()
    except LensError as error:
        yield Finding(VARIABLE, "missing", str(error))
        return
    if folder is None:
        text = "not set: presets on real data take models and texts from the hub where it has them"
        yield Finding(VARIABLE, "warn", text)
        return
    yield Finding(VARIABLE, "ok", str(folder))
    for name in DATA:
        there = (folder / name).exists()
        yield Finding(f"  {name}", "ok" if there else "missing", "found" if there else f"not in {folder}")


def _keys() -> Iterator[Finding]:
    for name in KEYS:
        # The value stays unread: it is a secret.
        yield Finding(name, "ok", "set" if os.environ.get(name) else "not set (only labellers openai:MODEL use it)")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    text = f"{free:.1f} GB free in {Path.cwd()}"
    return Finding("disk", "ok" if free >= SMALL_DISK_GB else "warn", text)


def _needs(config: "RunConfig") -> Iterator[Finding]:
    yield _model("base", config.base)
    if config.tuned is not None:
        yield _model("tuned", config.tuned)
    else:
        yield from _tuning_needs(config)
    yield _texts("texts", config.texts)
    if config.lexicon != "vader" and not Path(config.lexicon).expanduser().is_file():
        yield Finding("lexicon", "missing", f"there is no file {config.lexicon!r}")
    if config.explain.labeller.startswith("openai:") and not os.environ.get("OPENAI_API_KEY"):
        yield Finding("labeller", "missing", f"{config.explain.labeller} needs OPENAI_API_KEY")
    if config.device.startswith("cuda"):
        there = is_here(config.device)
        text = config.device if there else f"{config.device} is not there"
        yield Finding("config device", "ok" if there else "missing", text)


def _tuning_needs(config: "RunConfig") -> Iterator[Finding]:
    given = config.finetune
    if given.reference is not None:
        yield _model("reference", given.reference)
    if given.preferences is not None:
        yield _texts(
            "preferences", given.preferences.partition(":")[0] if given.preferences[:3] == "hh:" else given.preferences
        )
        return
    for name in given.reward_models:
        yield _model("reward", name)


def _model(role: str, name: str) -> Finding:
    if name == "world":
        return Finding(role, "ok", "world: trained by the run itself")
    try:
        path = Path(model_path(name)).expanduser()
    except LensError as error:
        return Finding(role, "missing", str(error))
    if path.is_dir():
        if (path / "config.json").is_file():
            return Finding(role, "ok", f"{name}: found in {path}")
        return Finding(role, "missing", f"{path} holds no config.json: it is no checkpoint")
    if name.startswith((".", "/", "~")):
        return Finding(role, "missing", f"there is no folder {name!r}")
    return _from_hub(role, name, "model")


def _texts(role: str, name: str) -> Finding:
    if name == "world":
        return Finding(role, "ok", "world: written by the run itself")
    try:
        folder = data_folder()
    except LensError:
        folder = None
    if name in LOCAL_TEXTS and folder and (folder / LOCAL_TEXTS[name]).is_file():
        return Finding(role, "ok", f"{name}: found in {folder}")
    path = Path(name).expanduser()
    if path.exists():
        return Finding(role, "ok", f"found: {path}")
    if path.suffix in (".parquet", ".jsonl", ".gz", ".csv", ".txt") or name.startswith((".", "/", "~")):
        return Finding(role, "missing", f"there is no file {name!r}")
    return _from_hub(role, HUB_TEXTS.get(name, name), "dataset")


def _from_hub(role: str, name: str, kind: str) -> Finding:
    """Look in the local cache of the hub only: asking the hub itself would be a download."""
    from huggingface_hub import constants, try_to_load_from_cache

    file = "config.json" if kind == "model" else "README.md"
    try:
        cached = try_to_load_from_cache(name, file, repo_type=kind)
    except ValueError as error:
        return Finding(role, "missing", f"{name!r} is neither a local path nor a name the hub can have: {error}")
    if isinstance(cached, str):
        return Finding(role, "ok", f"{name}: in the hub's local cache")
    if constants.HF_HUB_OFFLINE:
        return Finding(
            role, "missing", f"{name} is not in the hub's local cache, and HF_HUB_OFFLINE forbids a download"
        )
    return Finding(role, "warn", f"{name}: not here yet; the run will ask the Hugging Face hub for it")
