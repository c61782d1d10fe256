"""Datasets that another program has packed with gzip: unpacked here, where a bomb is bounded, and not by libhdf5.

libhdf5 inflates a chunk to whatever its stream says, a thousand times its size. Here no more comes out than fits into
the chunk; only gzip and the byte shuffle before it are known.
"""

import math
import zlib
from collections.abc import Sequence
from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from h5py import h5d, h5p, h5z

from protembed.errors import InputError
from protembed.outputs.printing import printable

_SAFE: Final = {h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32}
_MOST: Final = 16
"""How often float data can be packed together, by far; what claims more is a bomb."""

_SMALL: Final = 2**22


def filters_of(creation: h5p.PropDCID, place: str) -> tuple[int, ...]:
    """Return the filters of a dataset, in the order of writing. Raises InputError for one that is not run."""
    found = [creation.get_filter(number) for number in range(creation.get_nfilters())]
    numbers = {number for number, *_ in found}
    if not (numbers <= _SAFE or numbers <= {h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE}):
        number, _, _, name = next(item for item in found if item[0] not in (h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE))
        shown = printable(name.decode("utf-8", "replace")) or number
        raise InputError(
            f"{place} is packed with the filter {shown}, which is not run",
            hint="Only gzip is. If you trust the file: h5repack -f NONE FILE NEW",
        )
    return tuple(number for number, *_ in found)


def require_credible_size(dataset: h5d.DatasetID, chunk: Sequence[int], nbytes: int, itemsize: int, place: str) -> None:
    """Raise InputError for a packed dataset, or chunk of one, that claims to hold far more than it takes."""
    stored = dataset.get_storage_size()
    largest = max(nbytes, math.prod(chunk) * itemsize)
    if nbytes > _MOST * stored + 2**16 or largest > max(nbytes, _SMALL):
        raise InputError(
            f"{place} claims to hold {largest:,} bytes, packed into {stored:,}",
            hint="Numbers of a model cannot be packed so: this would fill the memory.",
        )


def read_packed(
    dataset: h5d.DatasetID, shape: tuple[int, ...], dtype: np.dtype[Any], filters: Sequence[int], most: int
) -> npt.NDArray[Any]:
    """Read a dataset chunk by chunk; a chunk takes at most `most` bytes in the file. Raises ValueError, zlib.error."""
    chunk = dataset.get_create_plist().get_chunk()
    values = np.empty(shape, dtype)
    for corner in product(*(range(0, length, step) for length, step in zip(shape, chunk, strict=True))):
        if dataset.get_chunk_info_by_coord(corner).size > most:
            raise ValueError("a chunk is larger than the file")
        mask, data = dataset.read_direct_chunk(corner)
        used = [number for place, number in enumerate(filters) if not mask >> place & 1]
        part = _unpack(bytes(data), used, math.prod(chunk), dtype).reshape(chunk)
        place = tuple(slice(at, min(at + step, end)) for at, step, end in zip(corner, chunk, shape, strict=True))
        values[place] = part[tuple(slice(0, cut.stop - cut.start) for cut in place)]
    return values


def _unpack(data: bytes, filters: Sequence[int], count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Undo the filters of one chunk of `count` values, the last first."""
    size = count * dtype.itemsize
    for number in reversed(filters):
        if number == h5z.FILTER_DEFLATE:
            data = zlib.decompressobj().decompress(data, size + 1)
        else:
            data = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, count).T.tobytes()
    if len(data) != size:
        raise ValueError(f"a chunk unpacks to {len(data):,} bytes, not {size:,}")
    return np.frombuffer(data, dtype)
