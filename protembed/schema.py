"""Values of JSON and TOML against the fields of a dataclass: right types, within bounds, nothing unknown or missing.

Everything that is read from a file goes through here before anything is allocated, built or counted by it. A bound
stands beside the type of a field: `n_layers: Annotated[int, Between(1, 4096)]`. This is done by hand because the
command line starts in a tenth of the time that a validation library takes to import.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from reprlib import Repr
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from protembed.errors import ModelError, ProtembedError

T = TypeVar("T")

JSON_BYTES = 64 * 2**20
"""Larger files of JSON are not read: the largest tokenizer of a published protein model takes a hundredth of it."""

_NEWER = "It was probably written by a newer protembed: pip install --upgrade protembed"


@dataclass(frozen=True)
class Between:
    """A number from `low` to `high`."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"from {self.low:,} to {self.high:,}"

    def allows(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Size:
    """Text or a list of at most `most` letters or entries."""

    most: int

    def __str__(self) -> str:
        return f"of at most {self.most:,}"

    def allows(self, value: Any) -> bool:
        return len(value) <= self.most


@dataclass(frozen=True)
class Pattern:
    """Text of one form; `said` describes it."""

    form: str
    said: str

    def __str__(self) -> str:
        return self.said

    def allows(self, value: str) -> bool:
        return re.fullmatch(self.form, value) is not None


OneLine = Annotated[str, Size(1000), Pattern(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]*", "without control characters")]
"""Text that stands in one cell of a table."""

Sha256 = Annotated[str, Pattern(r"(?:[0-9a-f]{64})?", "of 64 hexadecimal digits")]


class _WrongError(Exception):
    """A value is not what a field wants."""


def read_json(path: Path, *, error: type[ProtembedError] = ModelError) -> Any:
    """Read a file of JSON. Raises `error` for whatever can be wrong with it."""
    try:
        if path.stat().st_size > JSON_BYTES:
            raise error(f"{path}: has {path.stat().st_size:,} bytes, more than {JSON_BYTES:,}")
        data = path.read_bytes()
    except OSError as failure:
        raise error(f"{path}: cannot be read ({failure.strerror})") from failure
    return parse_json(data, f"{path}: cannot be read as JSON", error=error)


def parse_json(data: str | bytes, complaint: str, *, error: type[ProtembedError] = ModelError) -> Any:
    """Read JSON: without NaN and infinity, without numbers of thousands of digits, not nested without end.

    Raises `error`, which begins with `complaint` and gives the reason.
    """
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as failure:  # UnicodeDecodeError, JSONDecodeError and too many digits are all of this kind
        reason = str(failure)[:200]
    raise error(f"{complaint} ({reason})", hint="Is the file complete? Copy it again.")


def read_object(path: Path, *, error: type[ProtembedError] = ModelError) -> dict[str, Any]:
    """Read a file that holds a JSON object."""
    values = read_json(path, error=error)
    if not isinstance(values, dict):
        raise error(f"{path}: is not a JSON object")
    return values


def build(cls: type[T], values: Any, place: str, *, error: type[ProtembedError] = ModelError) -> T:
    """Make a dataclass of a mapping, each value of the type of its field and within its bounds.

    Lists become tuples, mappings the dataclass that a field names. Raises `error`, which names `place` and the field.

    >>> @dataclass(kw_only=True)
    ... class Point:
    ...     x: Annotated[int, Between(0, 9)]
    >>> build(Point, {"x": 3}, "a.json")
    Point(x=3)
    >>> build(Point, {"x": 10}, "a.json")
    Traceback (most recent call last):
    protembed.errors.ModelError: a.json: x is 10, not a whole number from 0 to 9
    """
    if not isinstance(values, Mapping):
        raise error(f"{place}: is {said(values)}, not an object")
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(str(name) for name in set(values) - set(known)):
        names = ", ".join(map(said, unknown[:5])).replace("'", "")
        raise error(f"{place}: fields that this version does not know: {names}", hint=_NEWER)
    required = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in values]:
        raise error(f"{place}: {missing[0]} is missing")
    hints = get_type_hints(cls, include_extras=True)
    try:
        return cls(**{name: _checked(value, hints[name], name) for name, value in values.items()})
    except _WrongError as failure:
        raise error(f"{place}: {failure}") from None
    except ProtembedError as failure:
        raise error(f"{place}: {failure}", hint=failure.hint) from failure


def check(value: Any, hint: Any, name: str, place: str, *, error: type[ProtembedError] = ModelError) -> Any:
    """Return the value of one field as the type that `hint` names; `error` names `place` and the field."""
    try:
        return _checked(value, hint, name)
    except _WrongError as failure:
        raise error(f"{place}: {failure}") from None
    except ProtembedError as failure:
        raise error(f"{place}: {failure}", hint=failure.hint) from failure


def said(value: Any) -> str:
    """Show a value of any size in an error.

    >>> said([1] * 1000)
    '[1, 1, 1, 1, ...]'
    """
    short = Repr()
    short.maxlist = short.maxdict = short.maxtuple = 4
    short.maxstring = short.maxother = short.maxlong = 60
    try:
        return short.repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        return f"a {type(value).__name__}"


def _checked(value: Any, hint: Any, name: str) -> Any:
    origin = get_origin(hint)
    if origin is Annotated:
        base, *limits = get_args(hint)
        found = _checked(value, base, name)
        if not all(limit.allows(found) for limit in limits):
            raise _wrong(value, hint, name)
        return found
    if origin in (Union, UnionType):
        return _any_of(value, get_args(hint), hint, name)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_checked(item, get_args(hint)[0], f"{name}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {_checked(k, str, name): _checked(v, get_args(hint)[1], f"{name}.{k}"[:80]) for k, v in value.items()}
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return build(hint, value, name)
    if origin is Literal and any(type(value) is type(known) and value == known for known in get_args(hint)):
        return value
    if hint is float and type(value) in (int, float) and abs(value) < math.inf:
        return _to_float(value, hint, name)
    if isinstance(hint, type) and type(value) is hint and hint is not float:
        return value
    raise _wrong(value, hint, name)


def _any_of(value: Any, kinds: tuple[Any, ...], hint: Any, name: str) -> Any:
    """Take the first of several types that fits; where None is the only other one, say what the type lacks."""
    if value is None and NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not NoneType]
    for kind in others[:-1]:
        try:
            return _checked(value, kind, name)
        except _WrongError:
            continue
    if len(others) == 1:
        return _checked(value, others[0], name)
    try:
        return _checked(value, others[-1], name)
    except _WrongError:
        raise _wrong(value, hint, name) from None


def _to_float(value: float, hint: Any, name: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise _wrong(value, hint, name) from None


def _wrong(value: Any, hint: Any, name: str) -> _WrongError:
    return _WrongError(f"{name} is {said(value)}, not {_described(hint)}")


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}


def _described(hint: Any) -> str:
    """Describe a type in words.

    >>> _described(Annotated[int, Between(1, 9)] | None)
    'a whole number from 1 to 9 or null'
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([_described(args[0]), *map(str, args[1:])])
    if origin in (Union, UnionType):
        return " or ".join(map(_described, args))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is tuple:
        return "a list"
    if origin in (dict, Mapping) or is_dataclass(hint):
        return "an object"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
