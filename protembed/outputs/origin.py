"""What an output says of itself, read with suspicion: what it holds, of which input, and how it was made.

Outputs of the first format (no `format_version`) say less and carry no checksums; what they lack is None or empty.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, get_args

from protembed.errors import OutputError, UsageError
from protembed.outputs.content import FORMAT_VERSION, digest_attributes
from protembed.outputs.printing import printable
from protembed.outputs.safe_dataset import Scalar
from protembed.outputs.target import failures_of, read_failures
from protembed.sequences.shard import Shard
from protembed.sequences.survey import DuplicatePolicy, KeyKind

_REQUIRED: Final[Mapping[str, type]] = {
    **dict.fromkeys(("content", "model_name", "weights_sha256", "tool_version", "computed_with"), str),
    **dict.fromkeys(("key", "duplicates", "unknown", "shard", "input_digest", "options"), str),
    **dict.fromkeys(("job_sha256", "run_sha256", "content_sha256", "attributes_sha256"), str),
    **dict.fromkeys(("input_records", "first_record", "records", "failed_records", "left_out_records"), int),
}
"""What every output of the present format says."""

_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "key": get_args(KeyKind),
    "duplicates": get_args(DuplicatePolicy),
    "unknown": ("x", "error"),
}
_MOST: Final = 2**48
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHARD_NAME = re.compile(r"\.shard-(\d{1,9})-of-(\d{1,9})$")
_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})")


@dataclass(frozen=True)
class Origin:
    """The attributes of one output, whole and in agreement with each other; made by `read_origin`."""

    path: Path
    attributes: Mapping[str, Scalar]

    @property
    def name(self) -> str:
        """The name of the file, for messages."""
        return printable(str(self.path))

    @property
    def sealed(self) -> bool:
        """Whether the file carries checksums, and says of what input and options it is."""
        return (self.number("format_version") or 1) > 1

    def text(self, name: str) -> str:
        """Return an attribute that is text; empty where it is not there."""
        value = self.attributes.get(name, "")
        if not isinstance(value, str):
            raise self.error(f"{name} is {value!r}, not a text")
        return value

    def number(self, name: str) -> int | None:
        """Return an attribute that counts something; None where it is not there."""
        value = self.attributes.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST:
            raise self.error(f"{name} is {value!r}, not a count")
        return value

    @property
    def content(self) -> str:
        """What the datasets are: per-protein, per-residue, contacts, or the kind of a head."""
        return self.text("content")

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """The options that its numbers depend on."""
        options: object = None
        with suppress(ValueError, RecursionError):
            options = json.loads(self.text("options") or "{}")
        if not isinstance(options, dict):
            raise self.error("options are not a JSON object")
        return options

    @cached_property
    def shard(self) -> Shard | None:
        """Which part of the input it is of, by its attribute; for older files by its name; None where neither says it.

        Raises OutputError where the two differ.
        """
        named = _SHARD_NAME.search(self.path.stem)
        by_name = self._shard(f"{named[1]}/{named[2]}") if named else None
        if not self.text("shard"):
            return by_name
        shard = self._shard(self.text("shard"))
        if by_name is not None and by_name != shard:
            raise self.error(
                f"is named shard {by_name.number} of {by_name.count}, and holds shard {shard.number} of {shard.count}",
                hint="Give it its own name again.",
            )
        return shard

    @property
    def taken(self) -> int:
        """How many records of the input it accounts for."""
        return sum(self.number(name) or 0 for name in ("records", "failed_records", "left_out_records"))

    @property
    def arithmetic(self) -> tuple[str, ...]:
        """Runtime, device and number format that it was computed with."""
        return tuple(self.text("computed_with").split(", "))

    def error(self, message: str, *, hint: str = "") -> OutputError:
        """Return an error about this file."""
        return OutputError(f"{self.name}: {message}", hint=hint)

    def _shard(self, text: str) -> Shard:
        if found := _SHARD.fullmatch(text):
            with suppress(UsageError):
                return Shard(int(found[1]), int(found[2]))
        raise self.error(f"shard {printable(text)!r} does not exist")


def read_origin(path: Path, attributes: Mapping[str, Scalar]) -> Origin:
    """Look over the attributes of an output. Raises OutputError where one is missing, was changed or makes no sense."""
    origin = Origin(path, attributes)
    if attributes.get("complete") is not True:
        raise origin.error("is not complete", hint="Its run did not finish: resume it. Or protembed did not write it.")
    if "attributes_sha256" in attributes and digest_attributes(attributes) != origin.text("attributes_sha256"):
        raise origin.error("what the file says of itself was changed after it was written", hint="Compute it again.")
    if not origin.content or not origin.text("model_name"):
        raise origin.error("does not say what it holds, or of which model", hint="Was it written by protembed?")
    for name, choices in _CHOICES.items():
        if origin.text(name) not in ("", *choices):
            raise origin.error(f"{name} is {printable(origin.text(name))!r}, not one of {', '.join(choices)}")
    if origin.sealed:
        _check_sealed(origin)
    return origin


def _check_sealed(origin: Origin) -> None:
    version = origin.number("format_version") or 0
    if version > FORMAT_VERSION:
        raise origin.error(
            f"has format {version}, this version knows {FORMAT_VERSION}", hint="pip install --upgrade protembed"
        )
    for name, kind in _REQUIRED.items():
        found = origin.text(name) if kind is str else origin.number(name)
        if found is None or found == "":
            raise origin.error(f"does not say its {name}", hint="The file is damaged, or not as protembed wrote it.")
    _ = origin.options
    if not _DIGEST.fullmatch(origin.text("weights_sha256")):
        raise origin.error("weights_sha256 is not a digest")


def read_listed(origin: Origin) -> list[tuple[str, str]]:
    """Return the records without a result that are listed beside an output, as (id, reason).

    Older versions named the list without the ending of the file. Raises OutputError for a list that cannot be read.
    """
    path = origin.path
    if not origin.sealed and not failures_of(path).exists():
        path = path.with_suffix(".h5")
    listed = failures_of(path)
    try:
        if not listed.exists():
            return []
        if listed.is_file():
            return read_failures(path)
        reason = "not a file"
    except OSError as error:
        reason = error.strerror or str(error)
    raise origin.error(f"its list of failures, {printable(str(listed))}, cannot be read ({reason})")
