"""What every section shares: frozen, strict, and errors that name the key, the value and what is expected."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from lfp_lens.core.errors import LensError, nearest


class Strict(BaseModel):
    """A frozen model whose every error is a `LensError` with full key names."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    section: ClassVar[str] = ""

    def __init__(self, /, **values: Any) -> None:
        fields = type(self).model_fields
        try:
            super().__init__(**{name: _ready(fields.get(name), value) for name, value in values.items()})
        except ValidationError as error:
            names = dict.fromkeys(str(one["loc"][0]) for one in error.errors())
            raise LensError("\n".join(_told(type(self), name, values) for name in names)) from None


def expected(field: FieldInfo) -> str:
    """Say in words what values a field takes."""
    if field.title:
        return field.title
    return "one of " + ", ".join(get_args(field.annotation))


def refuse_repeats(key: str, values: tuple[Any, ...]) -> None:
    """Raise `LensError` if a list names something twice."""
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise LensError(f"{key} = {toml_value(values)}: {toml_value(twice)} is given twice. Give it once.")


def toml_lines(values: Mapping[str, Any]) -> str:
    """Write plain values as TOML lines; None, which TOML lacks, is left out."""
    return "".join(f"{name} = {toml_value(value)}\n" for name, value in values.items() if value is not None)


def toml_value(value: Any) -> str:
    """Write a plain value as TOML (the standard library only reads it); anything else as Python shows it.

    JSON's string escapes are TOML's too, but TOML also wants the delete character escaped.
    """
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(toml_value(part) for part in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_value(name)} = {toml_value(part)}" for name, part in value.items()) + "}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _ready(field: FieldInfo | None, value: Any) -> Any:
    """Turn TOML's tables into sections and its lists into tuples, so that strict types can be asked for."""
    kind = field.annotation if field else None
    if isinstance(kind, type) and issubclass(kind, Strict) and isinstance(value, Mapping):
        return kind(**value)
    return _as_tuples(value)


def _as_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_tuples(part) for name, part in value.items()}
    return tuple(_as_tuples(part) for part in value) if isinstance(value, (list, tuple)) else value


def _told(model: type[Strict], name: str, values: Mapping[str, Any]) -> str:
    """Say what is wrong with one key: unknown, missing, or what was given and what is expected."""
    key = f"{model.section}.{name}" if model.section else name
    given = values.get(name)
    if name not in model.model_fields:
        known = list(model.model_fields)
        what = f"section [{name}]" if isinstance(given, Mapping) else f"key {key!r}"
        where = f"[{model.section}] takes" if model.section else "Known"
        return f"Unknown {what}.{nearest(name, known)} {where}: {', '.join(known) or 'nothing'}."
    field = model.model_fields[name]
    if name not in values:
        return f"{key} is missing: expected {expected(field)}. {field.description or ''}".rstrip()
    hint = nearest(given, _names(field.annotation)) if isinstance(given, str) else ""
    return f"{key} = {toml_value(given)}: expected {expected(field)}.{hint}"


def _names(annotation: Any) -> tuple[str, ...]:
    """Give the names of a closed set, or of one that may stand alone or in a list; none for free text."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((get_args(part) for part in get_args(annotation) if get_origin(part) is Literal), ())
