"""Configs from presets, files and command-line values."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from lfp_lens.config.run import VERBS, RunConfig
from lfp_lens.config.strict import Strict
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

    Raises:
        LensError: for an unknown preset (with the nearest), a file that is missing or no TOML, and every
            wrong key, value or contradiction in it.

    >>> load_config("tiny").base
    'world'
    """
    given = str(name_or_path)
    if given in presets():
        return _read(PRESETS / f"{given}.toml", f"preset {given!r}")
    path = Path(name_or_path).expanduser()
    if path.suffix == ".toml" or len(path.parts) > 1:
        if not path.is_file():
            raise LensError(
                f"There is no config file {given!r}. Give a .toml file or a preset: {', '.join(presets())}."
            )
        return _read(path, given)
    raise LensError(f"{unknown('preset', given, presets())} A config file of your own ends in .toml.")


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
    if str in types and not (tuple in types or int in types or float in types):
        return text
    for attempt in (text, f"[{text}]") if tuple in types else (text,):
        try:
            value = tomllib.loads(f"value = {attempt}")["value"]
        except tomllib.TOMLDecodeError:
            continue
        return [value] if tuple in types and not isinstance(value, list) and int not in types else value
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


def _read(path: Path, where: str) -> RunConfig:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise LensError(f"{where}: cannot be read ({error}).") from error
    except tomllib.TOMLDecodeError as error:
        raise LensError(f"{where}: is not valid TOML: {error}.") from error
    values.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "run")
    try:
        return RunConfig(**values)
    except LensError as error:
        raise LensError(f"{where}: " + f"\n{where}: ".join(str(error).splitlines())) from None


def _types(annotation: Any) -> set[type]:
    """Give the plain types of an annotation: those a typed value may have."""
    origin = get_origin(annotation)
    if origin is Literal:
        return {str}
    if origin is tuple or isinstance(annotation, type):
        return {origin or annotation}
    return set().union(*(_types(part) for part in get_args(annotation)[: 1 if origin is Annotated else None]))
