"""Values of files against the fields of dataclasses: nonsense is one error that names the place and the field."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from protembed.errors import ModelError, UsageError
from protembed.models.config import ModelCard
from protembed.models.head_config import HeadCard
from protembed.models.protein_model import ProteinModel
from protembed.schema import Between, OneLine, Size, build, check, parse_json, read_json, read_object, said


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: Annotated[int, Between(1, 100)]
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: OneLine
    inner: Inner
    scale: float = 1.0
    flag: bool = False
    limit: Annotated[int, Between(0, 9)] | None = None
    rows: Annotated[tuple[int, ...], Size(3)] = ()
    notes: Mapping[str, str | int] | None = None


GOOD: dict[str, Any] = {"name": "x", "inner": {"width": 3}}


def test_right_values_become_what_the_fields_name() -> None:
    values = {**GOOD, "scale": 2, "rows": [1, 2], "notes": {"a": 1, "b": "c"}, "limit": None}
    found = build(Outer, values, "a.json")
    assert found == Outer(name="x", inner=Inner(width=3), scale=2.0, rows=(1, 2), notes={"a": 1, "b": "c"})
    assert type(found.scale) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "name is 3, not text"),
        ({"name": "a\tb"}, r"name is 'a\\tb', not text of at most 1,000 without control characters"),
        ({"name": "x" * 5000}, "name is '.*', not text"),
        ({"inner": []}, r"inner is \[\], not an object"),
        ({"inner": {}}, "inner: width is missing"),
        ({"inner": {"width": 0}}, "inner: width is 0, not a whole number from 1 to 100"),
        ({"inner": {"width": True}}, "inner: width is True, not a whole number"),
        ({"inner": {"width": 3.0}}, "inner: width is 3.0"),
        ({"inner": {"width": 10**400}}, "inner: width is 1000"),
        ({"inner": {"width": 3, "kind": "c"}}, "inner: kind is 'c', not one of a, b"),
        ({"inner": {"width": 3, "kind": ["a"]}}, r"inner: kind is \['a'\]"),
        ({"inner": {"width": 3, "later": 1}}, "inner: fields that this version does not know: later"),
        ({"scale": float("nan")}, "scale is nan, not a number"),
        ({"scale": float("inf")}, "scale is inf, not a number"),
        ({"scale": 10**400}, "scale is 1000"),
        ({"scale": "1"}, "scale is '1'"),
        ({"flag": 1}, "flag is 1, not true or false"),
        ({"limit": 10}, "limit is 10, not a whole number from 0 to 9"),
        ({"rows": [1, 2, 3, 4]}, "rows is .*, not a list of at most 3"),
        ({"rows": [1, "2"]}, r"rows\[1\] is '2'"),
        ({"rows": "12"}, "rows is '12', not a list"),
        ({"notes": {"a": []}}, r"notes.a is \[\], not text or a whole number"),
        ({"notes": {3: "a"}}, "notes is 3, not text"),
    ],
)
def test_nonsense_names_the_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^a.toml: {message}"):
        build(Outer, {**GOOD, **change}, "a.toml", error=UsageError)


@pytest.mark.parametrize("values", [None, [], "x", 3, [GOOD]])
def test_what_is_no_object_is_none(values: Any) -> None:
    with pytest.raises(ModelError, match=r"^a\.json: is .*, not an object"):
        build(Outer, values, "a.json")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("1" * 5000, "digits"),
        ("NaN", "NaN is not JSON"),
        ("[Infinity]", "Infinity is not JSON"),
        ("{", "Expecting property name"),
        (b"\xff\xfe\x00", "decode"),
        ("", "Expecting value"),
    ],
)
def test_json_that_cannot_be_read(text: str | bytes, reason: str) -> None:
    with pytest.raises(ModelError, match=rf"^x: cannot be read as JSON \(.*{reason}"):
        parse_json(text, "x: cannot be read as JSON")


def test_files_of_json(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.json: cannot be read"):
        read_json(tmp_path / "absent.json")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(2**32)
    with pytest.raises(ModelError, match=r"huge\.json: has 4,294,967,296 bytes, more than"):
        read_json(tmp_path / "huge.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ModelError, match=r"list\.json: is not a JSON object"):
        read_object(tmp_path / "list.json")


def test_values_of_any_size_are_shown_briefly() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 10**6, list(range(10**6)), {str(i): i for i in range(10**5)}, deep):
        assert len(said(value)) < 300
    assert check(3, int, "a", "b") == 3


CARDS: list[tuple[dict[str, Any], str]] = [
    ({"encoder": {"n_layers": 10**9}}, "encoder: n_layers is 1000000000, not a whole number from 1 to 4,096"),
    ({"encoder": {"n_heads": -4}}, "encoder: n_heads is -4"),
    ({"encoder": {"norm": "batchnorm"}}, "encoder: norm is 'batchnorm', not one of layernorm, rmsnorm"),
    ({"encoder": {"position": "relative"}}, "encoder: position is 'relative', not one of rotary, learned"),
    ({"encoder": {"activation": "relu"}}, "encoder: activation is 'relu', not one of gelu, gelu_tanh, swiglu"),
    ({"encoder": {"norm_order": "both"}}, "encoder: norm_order is 'both'"),
    ({"encoder": {"norm_eps": "1e-5"}}, "encoder: norm_eps is '1e-5', not a number"),
    ({"encoder": {"d_model": 33}}, "encoder: d_model 33 is not a multiple of n_heads 4"),
    ({"encoder": {"vocab_size": 30}}, "encoder.vocab_size is 30, and the alphabet has 29 tokens"),
    ({"encoder": {"mask_id": 7}}, "encoder.mask_id is 7, and row 1 is the mask token"),
    ({"encoder": {"frequencies": 5}}, "encoder: frequencies is 5"),
    ({"alphabet": {"start": "?"}}, r"alphabet: the alphabet has no row for \?"),
    ({"alphabet": {"tokens": ["A", "A"]}}, "alphabet: the alphabet has no row"),
    ({"pooler": "attention"}, "pooler is 'attention', not one of dense, first"),
    ({"sha256": "abc"}, "sha256 is 'abc', not text of 64 hexadecimal digits"),
    ({"mlm_head": []}, r"mlm_head is \[\]"),
    ({"name": None}, "name is None, not text"),
]


@pytest.mark.parametrize(("change", "message"), CARDS)
def test_model_cards_that_make_no_sense(model: ProteinModel, change: dict[str, Any], message: str) -> None:
    values = json.loads(json.dumps(model.card.to_dict()))
    assert ModelCard.from_dict(values) == model.card
    for name, value in change.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    with pytest.raises(ModelError, match=f"^the model card cannot be read: {message}"):
        ModelCard.from_dict(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["H", "E", "C\tx"]}, r"labels\[2\] is 'C\\tx', not text .* without control characters"),
        ({"labels": ["H", "E", "a\nb"]}, r"labels\[2\] is 'a\\nb'"),
        ({"labels": ["H", "E", "coil"]}, "the label 'coil' of residues is not one letter"),
        ({"labels": ["H", "E"]}, "2 labels for 3 outputs"),
        ({"task": "ss3\x1b[2J"}, "task is"),
        ({"temperature": 0}, "temperature is 0, not a number"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"scale": None}, "scale is None"),
        ({"config": {"kernel": 10**9}}, "config: kernel is 1000000000"),
        ({"config": {"d_input": 0}}, "config: d_input is 0"),
        ({"config": {"layers": [-1]}}, r"config: layers\[0\] is -1"),
        ({"config": {"design": "novel"}}, "config: design is 'novel'"),
        ({"training": {"a": [1]}}, r"training.a is \[1\]"),
    ],
)
def test_head_cards_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    config = {"kind": "residue_classes", "outputs": 3, "d_input": 8, "layers": [1]}
    values = {"task": "ss3", "config": config, "encoder": "x", "encoder_sha256": "0" * 64, "labels": ["H", "E", "C"]}
    assert HeadCard.from_dict(values).labels == ("H", "E", "C")
    for name, value in change.items():
        values[name] = {**config, **value} if name == "config" else value
    with pytest.raises(ModelError, match=f"^the head's card cannot be read: {message}"):
        HeadCard.from_dict(values)


def test_the_command_line_does_not_import_a_validation_library_for_it() -> None:
    code = "import sys, protembed.models.head_config; print(sorted({'pydantic', 'torch', 'attrs'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
