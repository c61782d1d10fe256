"""Reading embedding files: lazy, by id or key, in the order of the input."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from protembed.outputs.printing import printable
from protembed.outputs.safe_dataset import Scalar, Values
from protembed.outputs.safe_hdf5 import SafeFile
from protembed.sequences.survey import id_key


class EmbeddingStore(Mapping[str, Values]):
    """An HDF5 file of embeddings as a mapping: nothing is read until it is asked for.

    Its names are record ids, in the order of the input; the HDF5 key of a record works too, and stands for a record
    whose id is that of an earlier one. The file may come from anyone: links, other files and filters are not followed.
    Raises InputError for what cannot be read, or is no plain dataset of numbers.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = SafeFile(path)
        self._index: dict[str, str] | None = None
        scheme, policy = self._file.attribute("key"), self._file.attribute("duplicates")
        self._keys_are_ids = scheme == "id" and policy in ("error", "first")
        self._hashed = scheme in ("md5", "biotrainer")

    @property
    def attributes(self) -> dict[str, Scalar]:
        """What the file says about itself: model_name, layer, pooling, ..."""
        return self._file.attributes

    def __getitem__(self, name: str) -> Values:
        """Return the values of a record. Raises KeyError for a name that is not there."""
        key = self._find(name)
        if key is None:
            raise KeyError(self._absent(name))
        return self._file[key].read()

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def __iter__(self) -> Iterator[str]:
        for key in self._file:
            name = self._id_of(key)
            if id_key(name) == key or (not self._keys_are_ids and self._names().get(name) == key):
                yield name
            else:
                yield key

    def __len__(self) -> int:
        return len(self._file)

    def close(self) -> None:
        """Close the file; the store cannot be read any more."""
        self._file.close()

    def __enter__(self) -> "EmbeddingStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find(self, name: str) -> str | None:
        """Return the key of an id or key; an id comes first where both could be meant."""
        key = id_key(name)
        if key not in self._file:
            return None if self._keys_are_ids else self._names().get(name)
        if key == name and (self._keys_are_ids or self._hashed):
            return key
        if self._id_of(key) == name:
            return key
        return None if self._keys_are_ids else self._names().get(name, key if key == name else None)

    def _id_of(self, key: str) -> str:
        stored = self._file.open(key).attribute("original_id")
        return stored if isinstance(stored, str) else key

    def _names(self) -> dict[str, str]:
        """Map ids that are those of one record to keys. Reading them takes a moment, so it happens when needed."""
        if self._index is None:
            ids = {key: self._id_of(key) for key in self._file}
            counts = Counter(ids.values())
            self._index = {name: key for key, name in ids.items() if counts[name] == 1}
        return self._index

    def _absent(self, name: str) -> str:
        first = next(iter(self), None)
        example = f", such as {printable(first)}" if first is not None else ""
        shown = printable(str(self._file.path))
        return f"{printable(str(name))} is not in {shown}: it holds {len(self):,} records{example}"
