"""What identifies the content of an output: checksums of datasets, of a whole file, of its attributes, of a run.

The writer stores them, and `check`, `merge` and `--resume` compare them: all use the functions of this file.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

FORMAT_VERSION = 2
"""Of HDF5 outputs: 2 has checksums. Files without this attribute are older."""


def stored_bytes(values: npt.NDArray[Any]) -> bytes:
    """Return the bytes of an array as outputs store them: C order, little-endian."""
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()


def checksum(values: npt.NDArray[Any]) -> int:
    """Return the CRC-32 of an array's stored bytes.

    >>> checksum(np.zeros(2, np.float32))
    1696784233
    """
    return zlib.crc32(stored_bytes(values))


class ContentDigest:
    """SHA-256 over the datasets of a file in their order; the parts of a run put together have that of the whole."""

    def __init__(self) -> None:
        self._state = hashlib.sha256()

    def add(self, key: str, attributes: Mapping[str, Any], dtype: str, shape: tuple[int, ...], crc: int) -> None:
        """Add one dataset: its key, its attributes original_id, description and length, its form and its checksum."""
        words = (key, attributes["original_id"], attributes["description"], int(attributes["length"]), dtype, shape)
        self._state.update(("\0".join(map(str, words)) + f"\0{crc:08x}\n").encode("utf-8", "surrogatepass"))

    def hexdigest(self) -> str:
        """Return the digest of what was added so far."""
        return self._state.hexdigest()


def digest_attributes(attributes: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a file's root attributes but `attributes_sha256` itself.

    >>> digest_attributes({"layer": np.int64(3)}) == digest_attributes({"layer": 3, "attributes_sha256": "..."})
    True
    """
    plain = {name: plain_value(value) for name, value in attributes.items() if name != "attributes_sha256"}
    return digest_of(plain)


def plain_value(value: Any) -> Any:
    """Turn a numpy scalar into Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def digest_of(facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a mapping that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def run_digest(job: str, shard: str) -> str:
    """Identify a run: the digest of all that its content depends on but the shard, and the shard as `I/N`."""
    return hashlib.sha256(f"{job} {shard}".encode()).hexdigest()
