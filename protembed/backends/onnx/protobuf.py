"""The protobuf wire format, as far as ONNX files need it: without the package onnx, and without copies of weights.

https://protobuf.dev/programming-guides/encoding
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

Buffer = bytes | memoryview

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Message:
    """A message to be written: fields in the order in which they are added.

    >>> b"".join(Message((1, 150), (2, "testing")).parts)
    b'\\x08\\x96\\x01\\x12\\x07testing'
    """

    def __init__(self, *fields: "tuple[int, int | float | str | Buffer | Message]") -> None:
        self.parts: list[Buffer] = []
        self.size = 0
        for number, value in fields:
            self.add(number, value)

    def add(self, number: int, value: "int | float | str | Buffer | Message") -> None:
        """Append a field; its type follows from the value's."""
        match value:
            case int():
                self._append(_varint(number << 3 | _VARINT) + _varint(value))
            case float():
                self._append(_varint(number << 3 | _FIXED32) + struct.pack("<f", value))
            case str():
                self.add(number, value.encode())
            case Message():
                self._append(_varint(number << 3 | _BYTES) + _varint(value.size))
                self.parts += value.parts
                self.size += value.size
            case _:
                self._append(_varint(number << 3 | _BYTES) + _varint(memoryview(value).nbytes))
                self._append(value)

    def _append(self, data: Buffer) -> None:
        self.parts.append(data)
        self.size += memoryview(data).nbytes


class Field(NamedTuple):
    """A field that was read: its number, its value (the bytes of floats and doubles), and where its bytes stand.

    `start` is the place of the field itself, `inside` that of its value, `stop` the end of both.
    """

    number: int
    value: int | memoryview
    start: int
    inside: int
    stop: int

    @property
    def data(self) -> memoryview:
        """The value of a field of bytes. Raises ValueError for a number."""
        if isinstance(self.value, int):
            raise ValueError(f"field {self.number} is a number")
        return self.value

    @property
    def text(self) -> str:
        """The value of a field of text."""
        return str(self.data, "utf-8")


def read_fields(data: memoryview, start: int = 0, stop: int | None = None) -> Iterator[Field]:
    """Read the fields of the message that stands in `data[start:stop]`. Raises ValueError when it is none."""
    end = len(data) if stop is None else stop
    while start < end:
        key, place = _read_varint(data, start, end)
        number, kind = key >> 3, key & 7
        value: int | memoryview
        if kind == _VARINT:
            inside = place
            value, place = _read_varint(data, place, end)
        else:
            if kind == _BYTES:
                size, inside = _read_varint(data, place, end)
            elif kind in (_FIXED64, _FIXED32):
                size, inside = (8 if kind == _FIXED64 else 4), place
            else:
                raise ValueError(f"wire type {kind}")
            place = inside + size
            if place > end:
                raise ValueError("the file ends within a field")
            value = data[inside:place]
        if number == 0:
            raise ValueError("field 0")
        yield Field(number, value, start, inside, place)
        start = place


def _varint(value: int) -> bytes:
    """Write a whole number in groups of seven bits; negative ones as 64 bits."""
    value &= (1 << 64) - 1
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _read_varint(data: memoryview, place: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while place < end and shift < 64:
        group = data[place]
        value |= (group & 127) << shift
        place, shift = place + 1, shift + 7
        if group < 128:
            return value, place
    raise ValueError("the file ends within a number")
