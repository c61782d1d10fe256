"""HDF5 files that were made to mislead: `check`, `merge` and `open` refuse them by name, and follow nothing."""

import os
import random
import resource
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import protembed
from protembed.errors import InputError, ProtembedError
from protembed.outputs.check import check_output
from protembed.outputs.merge import merge_shards
from protembed.outputs.safe_hdf5 import SafeFile
from tests.outputs.made import Change, changed, write_output, write_proteins

SECRET = b"the file of another user"


def soft_link(file: h5py.File) -> None:
    file["bad"] = h5py.SoftLink("/P0")


def dangling_link(file: h5py.File) -> None:
    file["bad"] = h5py.SoftLink("/nowhere")


def external_link(file: h5py.File) -> None:
    file["bad"] = h5py.ExternalLink("secret", "/P0")


def external_storage(file: h5py.File) -> None:
    file.create_dataset("bad", (len(SECRET) // 4,), "f4", external=[("secret", 0, len(SECRET))])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((8,), "f4")
    layout[:] = h5py.VirtualSource("secret", "P0", (8,))
    file.create_virtual_dataset("bad", layout)


def unlimited_virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((8,), "f4", maxshape=(None,))
    source = h5py.VirtualSource("secret", "P0", (8,), maxshape=(None,))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    file.create_virtual_dataset("bad", layout)


def never_written(file: h5py.File) -> None:
    file.create_dataset("bad", (10**6, 10**6), "f4", chunks=(1000, 1000), fillvalue=1)


def never_written_in_one_piece(file: h5py.File) -> None:
    file.create_dataset("bad", (10**6, 10**6), "f4", fillvalue=1)


def partly_written(file: h5py.File) -> None:
    file.create_dataset("bad", (9, 9), "f4", chunks=(8, 8))[:8, :8] = 1


def small_and_never_written(file: h5py.File) -> None:
    file.create_dataset("bad", (8,), "f4", fillvalue=1)


def bomb(file: h5py.File) -> None:
    file.create_dataset("bad", (20_000_000,), "f4", chunks=(20_000_000,), compression="gzip")[:] = 1


def bomb_in_a_stream(file: h5py.File) -> None:
    """One chunk that says it holds 32 bytes, and whose stream has a hundred million."""
    dataset = file.create_dataset("bad", (8,), "f4", chunks=(8,), compression="gzip")
    packer = zlib.compressobj()
    pieces = [packer.compress(bytes(10**6)) for _ in range(100)]
    dataset.id.write_direct_chunk((0,), b"".join([*pieces, packer.flush()]))


def checksum_filter(file: h5py.File) -> None:
    file.create_dataset("bad", (8,), "f4", chunks=(8,), compression="gzip", fletcher32=True)[:] = 1


def lzf(file: h5py.File) -> None:
    file.create_dataset("bad", (8,), "f4", chunks=(8,), compression="lzf")[:] = 1


def scale_offset(file: h5py.File) -> None:
    file.create_dataset("bad", (8,), "f4", chunks=(8,), scaleoffset=4)[:] = 1


def user_filter(file: h5py.File) -> None:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((8,))
    creation.set_filter(40_000, h5py.h5z.FLAG_OPTIONAL, (1, 2))
    h5py.h5d.create(file.id, b"bad", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((8,)), dcpl=creation)


def group(file: h5py.File) -> None:
    file.create_group("bad")["inside"] = np.ones(8, "f4")


def cycle(file: h5py.File) -> None:
    file["bad"] = file["/"]


def second_name(file: h5py.File) -> None:
    file["bad"] = file["P0"]


def text(file: h5py.File) -> None:
    file["bad"] = "text"


def texts(file: h5py.File) -> None:
    file["bad"] = [b"text"] * 8


def reference(file: h5py.File) -> None:
    file.create_dataset("bad", data=[file["P0"].ref] * 8, dtype=h5py.ref_dtype)


def region_reference(file: h5py.File) -> None:
    file.create_dataset("bad", data=file["P0"].regionref[:4], dtype=h5py.regionref_dtype)


def compound(file: h5py.File) -> None:
    file["bad"] = np.ones(8, np.dtype([("x", "f4"), ("y", "f4")]))


def integers(file: h5py.File) -> None:
    file["bad"] = np.ones(8, "i4")


def array_type(file: h5py.File) -> None:
    file.create_dataset("bad", (8,), np.dtype(("f4", (1000,))))


def strange_float(file: h5py.File) -> None:
    strange = h5py.h5t.IEEE_F32LE.copy()
    strange.set_ebias(3)
    h5py.h5d.create(file.id, b"bad", strange, h5py.h5s.create_simple((8,)))


def big_endian(file: h5py.File) -> None:
    file["bad"] = np.ones(8, ">f4")


def committed_type(file: h5py.File) -> None:
    file["bad"] = np.dtype("f4")


def of_a_committed_type(file: h5py.File) -> None:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.commit(file.id, b"type")
    h5py.h5d.create(file.id, b"bad", kind, h5py.h5s.create_simple((8,)))


def null_space(file: h5py.File) -> None:
    file["bad"] = h5py.Empty("f4")


def no_values(file: h5py.File) -> None:
    file["bad"] = np.ones((0, 8), "f4")


def many_axes(file: h5py.File) -> None:
    file["bad"] = np.ones((1,) * 32, "f4")


HOSTILE: dict[Change, str] = {
    soft_link: "bad is a soft link",
    dangling_link: "bad is a soft link",
    external_link: "bad is a link to another file",
    external_storage: "bad has its values in another file",
    virtual: "bad is virtual",
    unlimited_virtual: "bad is virtual",
    never_written: "bad claims 4,000,000,000,000 bytes",
    never_written_in_one_piece: "bad claims 4,000,000,000,000 bytes",
    partly_written: "bad was not written in full",
    small_and_never_written: "bad was not written in full",
    bomb: "bad claims to hold 80,000,000 bytes, packed into",
    checksum_filter: "bad is packed with the filter fletcher32",
    lzf: "bad is packed with the filter lzf",
    scale_offset: "bad is packed with the filter scaleoffset",
    user_filter: "bad is packed with the filter 40000",
    group: "bad is a group",
    cycle: "bad is a group",
    second_name: "(bad|P0) is a dataset of several names",
    text: "bad does not hold numbers",
    texts: "bad does not hold numbers",
    reference: "bad does not hold numbers",
    region_reference: "bad does not hold numbers",
    compound: "bad does not hold numbers",
    integers: "bad does not hold numbers",
    array_type: "bad does not hold numbers",
    strange_float: "bad does not hold numbers",
    big_endian: "bad does not hold numbers",
    committed_type: "bad is a data type",
    of_a_committed_type: "(type is a data type|bad does not hold numbers)",
    null_space: "bad is neither a vector nor a matrix",
    no_values: "bad is neither a vector nor a matrix",
    many_axes: "bad is neither a vector nor a matrix",
}


@pytest.fixture
def proteins(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(SECRET)
    return write_proteins(tmp_path / "proteins.fasta")


def opened(path: Path, proteins: Path) -> None:
    """Open as a user does, and read everything."""
    with protembed.open(path) as store:
        dict(store)
        dict(store.attributes)


def checked(path: Path, proteins: Path) -> None:
    check_output(path, [str(proteins)])


def merged(path: Path, proteins: Path) -> None:
    """Merge with a second shard that is in order."""
    other = write_output(path.with_name("out.shard-2-of-2.h5"), proteins, shard="2/2")
    path.rename(first := path.with_name("out.shard-1-of-2.h5"))
    try:
        merge_shards(path.with_name("merged.h5"), [first, other])
    finally:
        assert path.with_name("merged.h5").exists() is False


Reader = Callable[[Path, Path], None]
READERS = [opened, checked, merged]


def refused(path: Path, proteins: Path, reader: Reader, message: str) -> None:
    """Read a file, and see that nothing beside it is opened, and no memory taken that the file does not hold."""
    (path.with_name("secret")).unlink()
    os.mkfifo(path.with_name("secret"))  # whoever opens it waits for ever
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=message):
        reader(path, proteins)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("make", "message"), HOSTILE.items())
def test_what_is_no_plain_dataset_is_refused_by_name(
    tmp_path: Path, proteins: Path, make: Change, message: str, reader: Reader
) -> None:
    if reader is merged:
        out = write_output(tmp_path / "out.h5", proteins, shard="1/2")
        changed(out, make, sealed=False)
    else:
        out = changed(write_output(tmp_path / "out.h5", proteins), make, sealed=False)
    refused(out, proteins, reader, message)


def test_a_packed_stream_is_unpacked_no_further_than_its_values_go(tmp_path: Path, proteins: Path) -> None:
    out = changed(write_output(tmp_path / "out.h5", proteins), bomb_in_a_stream, sealed=False)
    refused(out, proteins, opened, "bad: cannot be read as HDF5 .a chunk unpacks to 33 bytes, not 32")


def huge_attribute(file: h5py.File) -> None:
    file.attrs["bad"] = "x" * 30_000_000


def many_attributes(file: h5py.File) -> None:
    for number in range(1_500):
        file.attrs[f"a{number}"] = number


def array_attribute(file: h5py.File) -> None:
    file.attrs["bad"] = np.arange(5)


def reference_attribute(file: h5py.File) -> None:
    file.attrs["bad"] = file["P0"].ref


def texts_attribute(file: h5py.File) -> None:
    file.attrs["bad"] = ["a", "b"]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (huge_attribute, "the attribute bad: .*a heap of texts takes 30,0.* bytes"),
        (many_attributes, r"has 1,5\d\d attributes"),
        (array_attribute, "the attribute bad is neither a text nor a number"),
        (reference_attribute, "the attribute bad is neither a text nor a number"),
        (texts_attribute, "the attribute bad is neither a text nor a number"),
    ],
)
def test_attributes_that_are_no_text_or_number_are_refused_by_name(
    tmp_path: Path, proteins: Path, make: Change, message: str, reader: Reader
) -> None:
    out = write_output(tmp_path / "out.h5", proteins, shard="1/2" if reader is merged else "1/1")
    refused(changed(out, make, sealed=False), proteins, reader, message)


def test_control_characters_of_names_do_not_reach_a_message(tmp_path: Path, proteins: Path) -> None:
    out = write_output(tmp_path / "out.h5", proteins)
    changed(out, lambda file: file.create_group("\x1b[31mred\n"))
    with pytest.raises(InputError) as caught:
        opened(out, proteins)
    assert str(caught.value).isprintable()
    assert r"\x1b[31mred\n is a group" in str(caught.value)


def test_a_sparse_file_that_takes_no_space_is_refused(tmp_path: Path, proteins: Path) -> None:
    out = write_output(tmp_path / "out.h5", proteins)
    with h5py.File(out, "r+") as file:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((10**6, 10**4))
        h5py.h5d.create(file.id, b"bad", h5py.h5t.IEEE_F32LE, space, dcpl=creation)
    assert out.stat().st_size > 4 * 10**10
    with pytest.raises(InputError, match="bad claims 40,000,000,000 bytes"):
        opened(out, proteins)


def test_datasets_whose_bytes_overlap_do_not_add_up_to_more_than_the_file(tmp_path: Path, proteins: Path) -> None:
    out = tmp_path / "out.h5"
    with h5py.File(out, "w") as file:
        for number in range(100):
            file[f"d{number}"] = np.full(5_000, number + 1, "f4")
        places = [file[f"d{number}"].id.get_offset() for number in range(100)]
    data = out.read_bytes()
    for place in places[1:]:  # all of them in the place of the first
        data = data.replace(place.to_bytes(8, "little"), places[0].to_bytes(8, "little"), 1)
    out.write_bytes(data[: len(data) // 4])
    with pytest.raises(ProtembedError), SafeFile(out) as file:
        list(file.datasets())


@pytest.mark.parametrize("reader", [opened, checked])
@pytest.mark.parametrize("what", ["folder", "fifo", "device", "missing", "empty", "text", "nul"])
def test_what_is_no_hdf5_file_is_refused_at_once(tmp_path: Path, proteins: Path, reader: Reader, what: str) -> None:
    path = tmp_path / "out.h5"
    match what:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/zero")
        case "empty":
            path.touch()
        case "text":
            path.write_text("no HDF5\n" * 100)
        case "nul":
            path = Path("a\0b")
    with pytest.raises(InputError):
        reader(path, proteins)


def test_a_file_that_another_process_writes_is_refused(tmp_path: Path, proteins: Path) -> None:
    out = write_output(tmp_path / "out.h5", proteins)
    code = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdin is not None
        writer.stdout.readline()
        with pytest.raises(InputError, match="another process is writing it"):
            opened(out, proteins)
        writer.stdin.close()


def mutate(data: bytes, seed: int) -> bytes:
    """Damage a file: bits, bytes, addresses, cuts, holes, copies of other places."""
    choose = random.Random(seed)
    changed, size = bytearray(data), len(data)
    kind = choose.choice(["bit", "bytes", "cut", "front", "hole", "ones", "copy", "address", "short"])
    for _ in range(choose.choice([1, 1, 2, 8])):
        place, count = choose.randrange(size), choose.choice([8, 64, 512, 4096])
        match kind:
            case "bit":
                changed[place] ^= 1 << choose.randrange(8)
            case "bytes":
                changed[place] = choose.randrange(256)
            case "front":
                changed[choose.randrange(512)] ^= 1 << choose.randrange(8)
            case "hole":
                changed[place : place + count] = bytes(len(changed[place : place + count]))
            case "ones":
                changed[place : place + 8] = b"\xff" * len(changed[place : place + 8])
            case "copy":
                other = choose.randrange(size)
                part = data[other : other + count]
                changed[place : place + len(part)] = part[: size - place]
            case "address":
                number = choose.choice([0, 1, choose.randrange(size), 2**63 + place, 2**64 - 1])
                changed[place & ~7 : (place & ~7) + 8] = number.to_bytes(8, "little")[: size - (place & ~7)]
            case "short":
                changed[place & ~1] = choose.randrange(256)
    return bytes(changed[: choose.randrange(size)] if kind == "cut" else changed)


FUZZ = """
import sys, faulthandler
from pathlib import Path
from protembed.errors import ProtembedError
from tests.outputs.test_hostile import READERS, mutate
from tests.outputs.made import write_output
folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
proteins = folder / "proteins.fasta"
for seed in range(first, last):
    reader = READERS[seed % 3]
    out = folder / "out.h5"
    out.write_bytes(mutate((folder / ("half.h5" if seed % 3 == 2 else "whole.h5")).read_bytes(), seed))
    faulthandler.dump_traceback_later(20, exit=True)
    print(seed, flush=True)
    try:
        reader(out, proteins)
    except ProtembedError:
        pass
    except AssertionError:
        (folder / "merged.h5").unlink()
"""


def test_damaged_files_end_in_one_error_and_never_in_a_crash_or_a_hang(tmp_path: Path, proteins: Path) -> None:
    write_output(tmp_path / "whole.h5", proteins)
    write_output(tmp_path / "half.h5", proteins, shard="1/2")
    first = 0
    words = [sys.executable, "-c", FUZZ, str(tmp_path), str(first), str(first + 330)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False)
    assert result.returncode == 0, f"seed {result.stdout.split()[-1]}: {result.stderr[-2000:]}"


def test_zeros_in_a_heap_of_texts_do_not_hang_the_reader(tmp_path: Path, proteins: Path) -> None:
    out = write_output(tmp_path / "out.h5", proteins)
    data = bytearray(out.read_bytes())
    heap = data.index(b"GCOL")
    data[heap + 16 : heap + 2048] = bytes(2032)
    out.write_bytes(data)
    with pytest.raises(InputError, match="a heap of texts is damaged"):
        opened(out, proteins)
