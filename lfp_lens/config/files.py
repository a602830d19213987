"""Configs from presets, files and command-line values."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from lfp_lens.config.run import VERBS, RunConfig
from lfp_lens.config.strict import Strict, toml_value
from lfp_lens.core.errors import LensError, nearest, unknown

PRESETS = Path(__file__).parent.parent / "presets"


def presets() -> tuple[str, ...]:
    """Name the presets that come with the package."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.toml")))


def describe_presets() -> dict[str, str]:
    """Give every preset's name and the comment its file opens with."""
    told = {}
    for name in presets():
        first = (PRESETS / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0]
        told[name] = first.removeprefix("#").strip()
    return told


def load_config(name_or_path: str | Path) -> RunConfig:
    """Read a preset by name, or a .toml file by path. A file without `name` is named after itself.

    A file that begins with `like = "PRESET or FILE.toml"` starts from that config, all but its name, and changes what it
    writes itself: sections are merged key by key, and `"none"` takes a key back that may be left out. A path in `like` is
    read from the folder of the file that says it. A file that writes `tuned` takes no [finetune] over, and the reverse.

    Raises:
        LensError: for an unknown preset (with the nearest), a file that is missing or no TOML, a `like` that leads back to
            where it came from, and every wrong key, value or contradiction in it.

    >>> load_config("tiny").base
    'world'
    """
    path, where = _place(str(name_or_path), Path())
    return _read(path, where, ())


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Give a copy with some values changed, by key: `steps` of `[finetune]` is `finetune.steps`.

    Raises `LensError` for an unknown key (with the nearest), a wrong value and a contradiction.

    >>> with_values(load_config("tiny"), {"finetune.steps": 10, "seed": 1}).seed
    1
    """
    plain: dict[str, Any] = config.model_dump(exclude_unset=True)
    for key, value in values.items():
        field_of(key)
        section, _, name = key.rpartition(".")
        (plain.setdefault(section, {}) if section else plain)[name] = value
    return RunConfig(**plain)


def parse_value(key: str, text: str) -> Any:
    """Read a value typed on a command line, by its key's type: TOML, bare text, a list a,b or `none`.

    >>> parse_value("train_sae.sizes", "1,2"), parse_value("ablate.mode", "mean")
    ([1, 2], 'mean')
    """
    field = field_of(key)
    types = _types(field.annotation)
    if text.lower() == "none" and type(None) in types:
        return None
    is_plain = not text.startswith("[") if tuple in types else not types & {int, float}
    if str in types and is_plain:
        return text
    for attempt in (text, f"[{text}]") if tuple in types else (text,):
        try:
            value = tomllib.loads(f"value = {attempt}")["value"]
        except tomllib.TOMLDecodeError:
            continue
        return [value] if tuple in types and not isinstance(value, (list, dict)) and int not in types else value
    return [part.strip() for part in text.split(",")] if tuple in types else text


def field_of(key: str) -> FieldInfo:
    """Give the field of a dotted key. Raises `LensError` for an unknown one, with the nearest."""
    known = {name: field for name, field in RunConfig.model_fields.items() if name not in VERBS}
    for verb in VERBS:
        known |= {f"{verb}.{name}": field for name, field in section_fields(verb).items()}
    if key not in known:
        # A bare `steps` is most likely the key of that name in some section.
        hint = nearest(key, known) or nearest(key, [name.rpartition(".")[2] for name in known])
        inside = [name for name in known if name.endswith(f".{key}")]
        hint = f" Did you mean {' or '.join(map(repr, inside))}?" if inside else hint
        raise LensError(f"Unknown key {key!r}.{hint} Keys are written as in the TOML file: seed, finetune.steps.")
    return known[key]


def section_fields(verb: str) -> dict[str, FieldInfo]:
    """Give the fields of one verb's section, in their order."""
    section = RunConfig.model_fields[verb].annotation
    assert isinstance(section, type) and issubclass(section, Strict), verb
    return dict(section.model_fields)


def _place(given: str, folder: Path) -> tuple[Path, str]:
    """Give the file of a preset or path, and what messages call it."""
    if given in presets():
        return PRESETS / f"{given}.toml", f"preset {given!r}"
    path = folder / Path(given).expanduser()
    if path.suffix == ".toml" or len(Path(given).parts) > 1:
        if not path.is_file():
            raise LensError(
                f"There is no config file {str(path)!r}. Give a .toml file or a preset: {', '.join(presets())}."
            )
        return path, str(path)
    raise LensError(f"{unknown('preset', given, presets())} A config file of your own ends in .toml.")


def _read(path: Path, where: str, children: tuple[Path, ...]) -> RunConfig:
    """Read one file; `children` are the files that led here through `like`, the first one first."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise LensError(f"{where}: cannot be read ({error}).") from error
    except tomllib.TOMLDecodeError as error:
        raise LensError(f"{where}: is not valid TOML: {error}.") from error
    chain = (*children, path.resolve())
    if path.resolve() in children:
        way = " -> ".join(one.name for one in chain[children.index(path.resolve()) :])
        raise LensError(f"{where}: `like` leads back to where it came from ({way}). Remove one of them.")
    if "like" in values:
        values = _changed(_parent(values.pop("like"), path, where, chain), values)
    values.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "run")
    try:
        return RunConfig(**values)
    except LensError as error:
        raise LensError(f"{where}: " + f"\n{where}: ".join(str(error).splitlines())) from None


def _parent(like: Any, path: Path, where: str, chain: tuple[Path, ...]) -> RunConfig:
    if not isinstance(like, str) or not like:
        raise LensError(f"{where}: like = {toml_value(like)}: expected a preset or a .toml file.")
    try:
        parent, called = _place(like, path.parent)
    except LensError as error:
        raise LensError(f"{where}: like = {toml_value(like)}: {error}") from None
    return _read(parent, called, chain)


def _changed(parent: RunConfig, values: dict[str, Any]) -> dict[str, Any]:
    """Give the parent's values with these in their place."""
    merged: dict[str, Any] = parent.model_dump(exclude_unset=True, exclude={"name"})
    # A checkpoint is examined as it is: it and the way to make one replace each other.
    merged = {
        name: value
        for name, value in merged.items()
        if {"tuned": "finetune", "finetune": "tuned"}.get(name) not in values
    }
    for name, value in values.items():
        if name in VERBS and isinstance(value, Mapping):
            inner = {key: _or_none(f"{name}.{key}", one) for key, one in value.items()}
            merged[name] = merged.get(name, {}) | inner
        else:
            merged[name] = _or_none(name, value)
    return merged


def _or_none(key: str, value: Any) -> Any:
    """Give None for "none" where the key may be left out; an unknown key is told of with all others."""
    section, _, name = key.rpartition(".")
    field = (section_fields(section) if section else RunConfig.model_fields).get(name)
    return None if value == "none" and field and type(None) in _types(field.annotation) else value


def _types(annotation: Any) -> set[type]:
    """Give the plain types of an annotation: those a typed value may have."""
    origin = get_origin(annotation)
    if origin is Literal:
        return {str}
    if origin in (tuple, dict) or isinstance(annotation, type):
        return {origin or annotation}
    return set().union(*(_types(part) for part in get_args(annotation)[: 1 if origin is Annotated else None]))
