"""Where outputs go: how they are named, what lies beside them, and what they must not be."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from protembed.errors import OutputError, UsageError
from protembed.outputs.files import atomic, write_errors
from protembed.sequences.shard import Shard

ENDINGS: Mapping[str, tuple[str, ...]] = {
    "h5": (".h5", ".hdf5", ".hdf", ".he5"),
    "tsv": (".tsv", ".tab", ".txt"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "fasta": (".fasta", ".fa", ".faa", ".fas"),
    "safetensors": (".safetensors",),
    "onnx": (".onnx",),
}
"""What the ending of a name says of the format; the first is the one to advise."""

_NEVER = frozenset(
    [
        ".csv",
        ".gz",
        ".bgz",
        ".bz2",
        ".xz",
        ".zst",
        ".zip",
        ".tar",
        ".npy",
        ".npz",
        ".parquet",
        ".arrow",
        ".feather",
        ".pt",
        ".pth",
        ".pkl",
        ".pickle",
        ".xls",
        ".xlsx",
        ".ods",
        ".png",
        ".pdf",
        ".svg",
        ".jpg",
        ".jpeg",
        ".html",
        ".md",
        ".toml",
        ".yaml",
        ".yml",
        ".py",
        ".sh",
        ".a3m",
        ".pdb",
        ".cif",
        ".lmdb",
        ".sqlite",
        ".db",
    ]
)
"""Endings of formats that nothing here writes."""

_DESCRIPTOR = re.compile(r"/dev/(?:stdout|stderr|fd/\d+)|/proc/(?:self|\d+)/fd/\d+")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_HEADER = "id\treason"


def require_ending(path: Path, form: str) -> None:
    """Raise UsageError for a name whose ending says that it is something else.

    >>> require_ending(Path("out.csv"), "h5")
    Traceback (most recent call last):
    protembed.errors.UsageError: out.csv: the ending .csv is not one of HDF5
    """
    ending = path.suffix.lower()
    told = format_of(path)
    if (told is not None and told != form) or ending in _NEVER:
        name = {"h5": "HDF5", "onnx": "ONNX", "fasta": "FASTA"}.get(form, form)
        raise UsageError(
            f"{path}: the ending {path.suffix} is not one of {name}", hint=f"Name it {path.stem}{ENDINGS[form][0]}."
        )


def format_of(path: Path) -> str | None:
    """Return the format that the ending of a name says, None where it says nothing."""
    return next((form for form, endings in ENDINGS.items() if path.suffix.lower() in endings), None)


def name_shard(path: Path, shard: Shard) -> Path:
    """Name a shard's file OUT.shard-I-of-N.h5, so that all shards can get the same command."""
    if shard.count == 1:
        return path
    return path.with_name(f"{path.stem}.shard-{shard.number}-of-{shard.count}{path.suffix}")


def work_folder_of(path: Path) -> Path:
    """Name the folder that holds what a run has done until its output is complete; beside the file, not a link."""
    final = Path(os.path.realpath(path))
    return final.with_name(f"{final.name}.partial")


def run_file_of(path: Path) -> Path:
    """Name the file that says which run wrote a text output."""
    return path.with_name(f"{path.name}.run.json")


def failures_of(path: Path) -> Path:
    """Name the list of an output's records without a result. No other output has it: but for `.h5`, the ending stays.

    >>> [str(failures_of(Path(name))) for name in ("s.h5", "s.hdf5", "s.tsv")]
    ['s.failed.tsv', 's.hdf5.failed.tsv', 's.tsv.failed.tsv']
    """
    return path.with_name(f"{path.stem if path.suffix == '.h5' else path.name}.failed.tsv")


def require_own_list(path: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise OutputError where the list of failures that is there may be that of `x` beside `x.h5`, or the other way."""
    twin = path.with_suffix("") if path.suffix == ".h5" else path.with_name(f"{path.name}.h5")
    if os.path.exists(failures_of(path)) and os.path.isfile(twin) and not any(same_file(twin, name) for name in inputs):
        raise OutputError(
            f"{failures_of(path)} may be the list of {twin}, and {path} would replace it",
            hint="Choose another name, or move that list away.",
        )


def write_failures(path: Path, rows: Sequence[tuple[str, str]], *, folder: Path | None = None) -> None:
    """Write the list of an output's failures, (id, reason); where there are none, remove that of an earlier run.

    `folder` is that of the run, see `atomic`; a list beside a link to another place is made there.
    """
    failures = failures_of(path)
    if folder is not None and os.path.realpath(failures.parent) != os.path.realpath(folder.parent):
        folder = None
    if not rows:
        with write_errors(failures):
            failures.unlink(missing_ok=True)
        return
    with atomic(failures, folder=folder) as new, write_errors(failures):
        lines = (f"{cell(name)}\t{cell(reason)}\n" for name, reason in rows)
        new.write_text(f"{_HEADER}\n{''.join(lines)}", encoding="utf-8", errors="backslashreplace", newline="\n")


def read_failures(path: Path) -> list[tuple[str, str]]:
    """Return the (id, reason) of an output's failures, as `cell` wrote them; none where there is no list."""
    try:
        text = failures_of(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    rows = [line.partition("\t") for line in text.split("\n") if line]
    return [(name, reason) for name, _, reason in rows if (name, reason) != ("id", "reason")]


def cell(text: str) -> str:
    r"""Return text for a field of a table: tabs, ends of lines and other control characters are escaped.

    >>> cell("a\tb")
    'a\\tb'
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def is_stream(path: Path) -> bool:
    """Tell whether an output is written to as it comes, and never replaced: standard output, a pipe, a device."""
    if str(path) == "-" or _DESCRIPTOR.fullmatch(os.path.abspath(path)):
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Tell whether two names are of one file, by symbolic or hard links, too."""
    try:
        return os.path.realpath(one) == os.path.realpath(other) or os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def refuse_same(
    outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]], *, what: str = "an input"
) -> None:
    """Raise OutputError if an output is, or links to, a file that is read, or one in a folder that is read.

    Nor may an input lie in the folder of an output's unfinished run: that is cleared.
    """
    read = list(inputs)
    for output in outputs:
        for name in read:
            place = os.path.realpath(name)
            if any(same_file(output, file) for file in _files_of(place)):
                raise OutputError(f"{output} is {what}, too: {os.fspath(name)}", hint="Choose another output.")
            if Path(place).is_relative_to(work_folder_of(Path(output))):
                raise OutputError(f"{os.fspath(name)} lies in the work folder of {output}", hint="Move it elsewhere.")


def _files_of(place: str) -> Iterator[str]:
    """Yield a file, or those of a folder that is a checkpoint."""
    yield place
    if os.path.isdir(place):
        for number, (folder, _, names) in enumerate(os.walk(place)):
            if number > 100:
                return
            yield from (os.path.join(folder, name) for name in names)
