"""A prepared corpus as one small file: what a machine without network needs to train on the same proteins.

xz's literal coder without context (lc = pb = 0) finds residues at little more than their entropy, and members of a
cluster, which lie side by side, nearly for nothing: 146 million residues of UniClust90 take 3.2 bits each. The file is
one xz stream: a line of JSON, lengths and clusters of both splits, then all tokens in the order of the splits.
"""

import json
import lzma
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from protembed.errors import InputError, OutputError
from protembed.sequences.alphabet import Alphabet
from protembed.training.corpus.corpus import Corpus, open_corpus
from protembed.training.corpus.packing import TokenStore

FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 26, "lc": 0, "lp": 0, "pb": 0}]
PART = "packed.part"
SPLITS = ("train", "valid")
_PROTEINS = 4096  # read at once
_BLOCK = 1 << 22


def pack(folder: Path, target: Path, alphabet: Alphabet) -> Iterator[int]:
    """Write the corpus of a folder as one file; yield how many residues are written. One core, minutes."""
    corpus = open_corpus(folder, alphabet)
    index = json.loads((folder / "index.json").read_text())
    stores = {"train": corpus.train, "valid": corpus.valid}
    header = {
        "job": index["job"],
        "statistics": index["statistics"],
        "splits": {name: [len(store), len(store.clusters), store.residues] for name, store in stores.items()},
    }
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with lzma.open(temporary, "wb", format=lzma.FORMAT_XZ, filters=FILTERS) as file:
            file.write(f"{json.dumps(header)}\n".encode())
            for store in stores.values():
                file.write(np.asarray(store.lengths).astype("<i4").tobytes())
                file.write(np.diff(store.clusters, prepend=0).astype("<i4").tobytes())
            written = 0
            for store in stores.values():
                for tokens in _tokens(store):
                    file.write(tokens.tobytes())
                    written += len(tokens)
                    yield written
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def unpack(path: Path, folder: Path, alphabet: Alphabet) -> Corpus:
    """Make a corpus folder of what `pack` wrote: proteins, their order, clusters and splits are the same.

    Raises InputError when the file is damaged, OutputError when the folder is there.
    """
    if folder.exists():
        raise OutputError(f"{folder} exists", hint="Choose another folder, or delete it.")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    (temporary / "parts" / PART).mkdir(parents=True)
    try:
        with lzma.open(path, "rb") as file:
            _unpack(file, temporary)
        os.replace(temporary, folder)
    except (lzma.LZMAError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{path}: is damaged ({error})", hint="Send it again.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return open_corpus(folder, alphabet)


def _unpack(file: IO[bytes], folder: Path) -> None:
    header = json.loads(file.readline())
    start = 0
    for name in SPLITS:
        proteins, borders, residues = header["splits"][name]
        lengths = _read(file, proteins).astype(np.int32)
        clusters = np.cumsum(_read(file, borders), dtype=np.int64)
        starts = start + np.cumsum(lengths, dtype=np.int64) - lengths
        start += residues
        for array, values in (("starts", starts), ("lengths", lengths), ("clusters", clusters)):
            np.save(folder / f"{name}.{array}.npy", values)
    with (folder / "parts" / PART / "tokens.bin").open("wb") as tokens:
        shutil.copyfileobj(file, tokens, _BLOCK)
        if tokens.tell() != start:
            raise ValueError(f"{tokens.tell()} residues, not {start}")
    proteins = sum(header["splits"][name][0] for name in SPLITS)
    counts = {"proteins": proteins, "residues": start, "gaps": 0, "letters": {}}
    (folder / "parts" / PART / "part.json").write_text(json.dumps(counts))
    index: dict[str, Any] = {"job": header["job"], "paths": [], "parts": [PART], "statistics": header["statistics"]}
    (folder / "index.json").write_text(json.dumps(index, indent=1))


def _tokens(store: TokenStore) -> Iterator[npt.NDArray[np.uint8]]:
    """Read the tokens of all proteins in order, many proteins at a time."""
    for first in range(0, len(store), _PROTEINS):
        yield np.concatenate([store[index] for index in range(first, min(first + _PROTEINS, len(store)))])


def _read(file: IO[bytes], count: int) -> npt.NDArray[np.int32]:
    return np.frombuffer(file.read(4 * count), dtype="<i4", count=count)
