"""Reading embedding files: lazy, by id or key, in the order of the input."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from protembed.errors import InputError
from protembed.sequences.survey import id_key


class EmbeddingStore(Mapping[str, npt.NDArray[np.floating[Any]]]):
    """An HDF5 file of embeddings as a mapping: nothing is read until it is asked for.

    Keys are record ids; the HDF5 key of a record works too. Iteration gives ids in the order of the input.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise InputError(f"{path}: cannot be read as HDF5 ({error})", hint="Is the file complete?") from error
        self._keys: dict[str, str] | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        """What the file says about itself: model_name, layer, pooling, ..."""
        return dict(self._file.attrs)

    def __getitem__(self, name: str) -> npt.NDArray[np.floating[Any]]:
        key = id_key(name)
        if key not in self._file:
            key = self._index().get(name, key)
        if key not in self._file:
            raise KeyError(name)
        values: npt.NDArray[np.floating[Any]] = self._file[key][()]
        return values

    def __iter__(self) -> Iterator[str]:
        for key in self._file:
            yield str(self._file[key].attrs.get("original_id", key))

    def __len__(self) -> int:
        return len(self._file)

    def _index(self) -> dict[str, str]:
        """Map ids to keys; built when a name is not a key itself."""
        if self._keys is None:
            self._keys = {str(self._file[key].attrs.get("original_id", key)): key for key in self._file}
        return self._keys

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "EmbeddingStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
