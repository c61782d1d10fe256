"""From a TOML file and `--set section.key=value` to the sections of a configuration, their types checked."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from protembed.errors import UsageError

Section = TypeVar("Section")


def read_sections(path: Path, overrides: Sequence[str], kinds: Mapping[str, type]) -> dict[str, Any]:
    """Read the sections of a TOML file as the dataclasses `kinds`; overrides as in `load_config`. Raises UsageError."""
    values = read_toml(path)
    if stray := next((name for name, value in values.items() if not isinstance(value, dict)), None):
        raise UsageError(f"{path}: {stray} is no section", hint=f"Write [{stray}], and below it a key a line.")
    for override in overrides:
        _apply(values, override)
    _refuse_unknown(values, kinds, str(path))
    return {name: _section(kind, values.get(name, {}), f"{path}, section [{name}]") for name, kind in kinds.items()}


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises UsageError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})", hint="Check the path.") from error
    except RecursionError as error:
        raise UsageError(f"{path}: not a configuration (values are nested too deep)") from error
    except ValueError as error:  # TOML's own, UTF-8's, and that of numbers with thousands of digits
        raise UsageError(f"{path}: not TOML ({error})") from error


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and section and name):
        raise UsageError(
            f"--set {override[:80]}: not of the form section.key=value", hint="Example: --set train.steps=100"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    values.setdefault(section, {})[name] = value


def _section(kind: type[Section], values: Mapping[str, Any], place: str) -> Section:
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    _refuse_unknown(values, known, place)
    required = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in values]:
        raise UsageError(f"{place}: {missing[0]} is missing")
    hints = get_type_hints(kind)
    checked = {key: _checked(value, hints[key], f"{place}: {key} is") for key, value in values.items()}
    with said_of(place):
        return kind(**checked)


@contextmanager
def said_of(place: str) -> Iterator[None]:
    """Name the place of what a section finds wrong with its values."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{place}: {error}", hint=error.hint) from error


def _checked(value: Any, hint: Any, place: str) -> Any:
    """Return a TOML value as the type that a field names; raises UsageError when it is of another."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        if type(value) is not str or value not in choices:
            raise UsageError(f"{place} {_shown(value)}, not one of {', '.join(map(str, choices))}")
        return value
    if get_origin(hint) is tuple:
        items = value if isinstance(value, list) else [value]
        if choices[-1] is not Ellipsis and len(items) != len(choices):
            raise UsageError(f"{place} {_shown(value)}, not {len(choices)} values")
        return tuple(_checked(item, choices[0], place.removesuffix("is") + "holds") for item in items)
    if get_origin(hint) is UnionType:
        return _checked(value, choices[0], place)
    if hint is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    if type(value) is not hint:
        raise UsageError(f"{place} {_shown(value)}, not {hint.__name__}")
    if hint is int and not -(2**63) <= value < 2**63:
        raise UsageError(f"{place} {_shown(value)}, which is no number that can be meant")
    return value


def _shown(value: Any) -> str:
    """Write a value of the user's, or its beginning, in a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # too many digits to print, nested too deep
        return f"of {type(value).__name__}, too large to show"
    return text if len(text) <= 60 else f"{text[:60]}..."


def _refuse_unknown(values: Mapping[str, Any], known: Mapping[str, Any], place: str) -> None:
    if unknown := sorted(set(values) - set(known)):
        raise UsageError(f"{place}: unknown key {_shown(unknown[0])}", hint=f"Known: {', '.join(known)}.")
