"""Shards of one run: whether some outputs are all of them, and what the whole says of itself."""

from collections.abc import Mapping, Sequence
from typing import Final

from protembed.errors import InputError
from protembed.outputs.content import run_digest
from protembed.outputs.origin import Origin, read_listed
from protembed.outputs.printing import printable
from protembed.outputs.safe_dataset import Scalar
from protembed.sequences.shard import Shard

_COUNTS: Final = ("failed_records", "left_out_records")
_OWN: Final = frozenset(("shard", "first_record", "records", *_COUNTS, "bytes"))
_DIGESTS: Final = frozenset(("run_sha256", "content_sha256", "attributes_sha256"))
"""What each shard says for itself, with the one before."""

_WRITTEN: Final = frozenset(("records", "bytes", "content_sha256", "complete", "format_version", "attributes_sha256"))
"""What is said by whatever writes a file."""

_DIFFERENCES: Final[Mapping[str, str]] = {
    "input_digest": "was made from another input",
    "input_records": "was made from another input",
    "content": "holds something else",
    "task": "is of another task",
    "weights_sha256": "was computed with other weights",
    "model_name": "was computed with another model",
    "computed_with": "was computed with other arithmetic",
    "head_sha256": "was predicted with another head",
}
"""How to say it; any other attribute is named."""


def in_order(shards: Sequence[Origin]) -> list[Origin]:
    """Return shards in the order of the input. Raises InputError unless they are all those of one run, each once."""
    found: dict[int, Origin] = {}
    for origin in shards:
        number = _shard_of(origin).number
        _require_same_run(origin, shards[0])
        if number in found:
            raise InputError(
                f"{found[number].name} and {origin.name} are both shard {number}", hint="Name each shard once."
            )
        found[number] = origin
    count = _shard_of(shards[0]).count
    if missing := sorted(set(range(1, count + 1)) - set(found)):
        also = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"shard {missing[0]} is missing{also}, of {count}", hint="Name the files of all shards.")
    ordered = [found[number] for number in sorted(found)]
    _require_whole_input(ordered)
    return ordered


def merged_attributes(shards: Sequence[Origin]) -> dict[str, Scalar]:
    """Return what the whole says of itself: what its run would have said without shards, in the same order."""
    first = shards[0]
    merged: dict[str, Scalar] = {name: value for name, value in first.attributes.items() if name not in _WRITTEN}
    if not first.sealed:
        policies = [origin.text("long_proteins") for origin in shards]
        policy = next((policy for policy in policies if policy not in ("", "none")), "none")
        return {**merged, "long_proteins": policy, "format_version": 1}
    counts = {name: sum(origin.number(name) or 0 for origin in shards) for name in _COUNTS}
    run = run_digest(first.text("job_sha256"), "1/1")
    return {**merged, **counts, "shard": "1/1", "first_record": 0, "run_sha256": run}


def listed_failures(shards: Sequence[Origin]) -> list[tuple[str, str]]:
    """Return the records without a result of all shards. Raises InputError where a list is not there or not whole."""
    rows: list[tuple[str, str]] = []
    for origin in shards:
        own = read_listed(origin)
        said = origin.number("failed_records")
        if said is not None and said != len(own):
            raise InputError(
                f"{origin.name} has {said:,} records without a result, the list beside it {len(own):,}",
                hint="Keep the shard and its .failed.tsv together.",
            )
        rows += own
    return rows


def _shard_of(origin: Origin) -> Shard:
    shard = origin.shard
    if shard is None or shard.count == 1:
        raise InputError(f"{origin.name} is not a shard", hint="Runs with a shard write OUT.shard-I-of-N.")
    return shard


def _require_same_run(origin: Origin, first: Origin) -> None:
    """Raise InputError at the first thing that two shards say differently."""
    shard, other = _shard_of(origin), _shard_of(first)
    if shard.count != other.count:
        raise InputError(f"{origin.name} is one of {shard.count} shards, {first.name} one of {other.count}")
    if origin.sealed != first.sealed:
        raise InputError(f"{origin.name} and {first.name} are of different versions of protembed")
    for name in _to_compare(origin, first):
        mine, theirs = origin.attributes.get(name), first.attributes.get(name)
        if mine != theirs:
            hint = "Only shards of one run make a whole: the same input, model and options."
            if name in _DIFFERENCES:
                raise InputError(f"{origin.name} {_DIFFERENCES[name]} than {first.name}", hint=hint)
            shown = [printable(str(value)) or "nothing" for value in (mine, theirs)]
            raise InputError(f"{origin.name} says {shown[0]} for {name}, {first.name} says {shown[1]}", hint=hint)


def _to_compare(origin: Origin, first: Origin) -> list[str]:
    """Return the attributes in which two shards must agree, those first that explain the others."""
    skipped = set(_OWN | _DIGESTS)
    if not origin.sealed:
        skipped.add("long_proteins")  # older shards say it only where there was a long protein
    elif origin.text("job_sha256") == first.text("job_sha256"):
        skipped.add("computed_with")  # one GPU or another: what is not the same arithmetic is another job
    known = [*_DIFFERENCES, "options"]
    others = sorted({*origin.attributes, *first.attributes} - {*known, "job_sha256"})
    return [name for name in (*known, *others, "job_sha256") if name not in skipped]


def _require_whole_input(ordered: Sequence[Origin]) -> None:
    """Raise InputError unless the shards take up the input from its first record to its last."""
    if not ordered[0].sealed:
        return
    place = 0
    for origin in ordered:
        if origin.number("first_record") != place:
            raise InputError(f"{origin.name} begins at record {origin.number('first_record')}, not at {place}")
        place += origin.taken
    if place != ordered[0].number("input_records"):
        raise InputError(f"the shards have {place:,} of {ordered[0].number('input_records'):,} records of the input")
