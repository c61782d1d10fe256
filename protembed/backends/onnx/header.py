"""The header of an ONNX file that protembed writes: JSON in its metadata, beside its own checksum."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from protembed import __version__
from protembed.backends.onnx.attention import AttentionKind
from protembed.backends.onnx.builder import Weights
from protembed.errors import ModelError
from protembed.models.config import ModelCard
from protembed.models.head_config import HeadCard

KEY = "protembed"
"""Of the metadata entry that holds the header."""

KEY_CHECKSUM = "protembed.sha256"
"""Of the entry that holds the sha256 of the header."""

FORMAT = 2
"""Of the header, the graph, and the names of inputs and outputs; a reader refuses every other one."""

_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says about itself.

    `digest` is the sha256 over the stored weights, `graph` that over nodes, inputs, outputs and small constants;
    `card.sha256` names the checkpoint's weights as they are stored there, whatever is stored here. `source` is the
    sha256 over the content of the files of a foreign checkpoint, empty for a native one. `heads` are in the graph.
    """

    attention: AttentionKind
    weights: Weights
    digest: str
    graph: str
    card: ModelCard
    heads: tuple[HeadCard, ...] = ()
    source: str = ""
    format: int = FORMAT
    tool_version: str = __version__

    def to_metadata(self) -> dict[str, str]:
        """Return what `from_metadata` reads."""
        heads = [head.to_dict() for head in self.heads]
        text = json.dumps({**asdict(self), "card": self.card.to_dict(), "heads": heads})
        return {KEY: text, KEY_CHECKSUM: checksum(text)}

    @classmethod
    def from_metadata(cls, texts: Mapping[str, str]) -> "Header":
        """Read the metadata of a file. Raises ModelError for another version, ValueError for what makes no sense."""
        if KEY not in texts:
            raise ModelError(
                "was not written by protembed, or lost its metadata",
                hint="protembed export MODEL -o FILE.onnx writes one from a checkpoint.",
            )
        values = json.loads(texts[KEY])
        _require(isinstance(values, dict), "the header is no object")
        if (number := values.get("format")) != FORMAT:
            newer = isinstance(number, int) and number > FORMAT
            version = str(values.get("tool_version"))[:50]
            raise ModelError(
                f"was exported by another version of protembed ({version})",
                hint="pip install --upgrade protembed" if newer else "Export it again: protembed export MODEL -o FILE",
            )
        _require(texts.get(KEY_CHECKSUM) == checksum(texts[KEY]), "the header does not match its checksum")
        return cls._checked(values)

    @classmethod
    def _checked(cls, values: dict[str, Any]) -> "Header":
        if unknown := sorted(set(values) - {field.name for field in fields(cls)}):
            raise ValueError(f"unknown fields {', '.join(unknown)[:100]}")
        for name, kinds in (("attention", AttentionKind), ("weights", Weights)):
            _require(values[name] in get_args(kinds), f"{name} is {str(values[name])[:50]!r}")
        for name in ("digest", "graph", "source"):
            text = values[name]
            known = isinstance(text, str) and (_DIGEST.fullmatch(text) or (name == "source" and not text))
            _require(bool(known), f"{name} is no sha256")
        _require(isinstance(values["tool_version"], str), "tool_version is no text")
        _require(isinstance(values["card"], dict) and isinstance(values["heads"], list), "card and heads are missing")
        _require(all(isinstance(head, dict) for head in values["heads"]), "a head is no object")
        heads = tuple(HeadCard.from_dict(head) for head in values["heads"])
        return cls(**{**values, "card": ModelCard.from_dict(values["card"]), "heads": heads})


def checksum(text: str) -> str:
    """Return the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
