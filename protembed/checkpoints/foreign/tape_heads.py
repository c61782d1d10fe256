"""Fine-tuned models of TAPE and of ProteinLM's port of it: the forms of the heads above their encoders."""

from collections.abc import Callable, Sequence

from torch import Tensor

from protembed.checkpoints.foreign.checkpoint import Source
from protembed.checkpoints.foreign.conversion import Rule
from protembed.checkpoints.foreign.head_form import Form, Meaning, numbered, one
from protembed.models.heads.contact import ProteinLMContactHead

STATES = {3: ("ss3", tuple("HEC")), 8: ("ss8", tuple("GHIBESTC"))}
"""TAPE's tasks of secondary structure by their number of classes, and its order of the labels."""

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _normed(tensors: Sequence[Tensor]) -> Tensor:
    """Fold a weight norm over the whole matrix into the matrix: g * v / |v|."""
    gain, direction = (tensor.double() for tensor in tensors)
    matrix: Tensor = gain * direction / direction.norm()
    return matrix


def _touching(tensors: Sequence[Tensor]) -> Tensor:
    """Make one logit of two: contact less no contact."""
    return tensors[0][1:] - tensors[0][:1]


def _products(tensors: Sequence[Tensor]) -> Tensor:
    """Take the half of a pair layer that reads products."""
    return tensors[0].flatten(1).chunk(2, dim=1)[0]


def _differences(tensors: Sequence[Tensor]) -> Tensor:
    """Take the half of a pair layer that reads differences."""
    return tensors[0].flatten(1).chunk(2, dim=1)[1]


def _weight_normed(native: str, foreign: str) -> list[Rule]:
    return [
        one(f"{native}.weight", f"{foreign}.weight_g", f"{foreign}.weight_v", combine=_normed),
        one(f"{native}.bias", f"{foreign}.bias"),
    ]


def _residue() -> list[Rule]:
    main = "classify.classify.main"
    norm = [one(f"norm.{part}", f"{main}.0.{part}") for part in _NORM]
    return norm + _weight_normed("first", f"{main}.1") + _weight_normed("second", f"{main}.4")


def _sequence(main: str) -> Callable[[], list[Rule]]:
    return lambda: _weight_normed("first", f"{main}.0") + _weight_normed("second", f"{main}.3")


def _tape_contact() -> list[Rule]:
    def weight(tensors: Sequence[Tensor]) -> Tensor:
        return _products([_touching(tensors)])

    layer = "predict.predict.1"
    return [
        one("products.weight", f"{layer}.weight", combine=weight),
        one("products.bias", f"{layer}.bias", combine=_touching),
    ]


def _proteinlm_contact() -> list[Rule]:
    layer = "predict.predict.1"
    rules = [
        one("products.weight", f"{layer}.weight", combine=_products),
        one("products.bias", f"{layer}.bias"),
        one("differences.weight", f"{layer}.weight", combine=_differences),
        one("outward.weight", "predict.linear.0.weight", combine=_touching),
        one("outward.bias", "predict.linear.0.bias", combine=_touching),
    ]
    for number in range(ProteinLMContactHead.BLOCKS):
        for native, foreign in (("first", "1"), ("second", "2")):
            own, theirs = f"blocks.{number}.{native}", f"predict.predict.ResidualBlock{number}"
            rules.append(one(f"{own}.weight", f"{theirs}.conv{foreign}.weight"))
            rules += [one(f"{own}_norm.{part}", f"{theirs}.bn{foreign}.{part}") for part in _NORM]
    return rules


_CLASSES, _VALUE, _PAIRS = "classify.classify.main", "predict.value_prediction.main", "predict.predict.1.weight"


def _has(marker: str, dimensions: int) -> Callable[[Source], bool]:
    def matches(source: Source) -> bool:
        return marker in source.weights.specs and len(source.weights.specs[marker].shape) == dimensions

    return matches


def _states(source: Source, outputs: int) -> Meaning:
    """Name task and labels by the number of classes; a file does not say which another number stands for."""
    task, labels = STATES.get(outputs, ("residue_classes", numbered(outputs)))
    return Meaning(kind="residue_classes", task=task, labels=labels)


def _folds(source: Source, outputs: int) -> Meaning:
    return Meaning(kind="sequence_class", task="remote_homology", labels=tuple(map(str, range(outputs))))


def _value(source: Source, outputs: int) -> Meaning:
    return Meaning(kind="sequence_value", task="value")


def _contacts(source: Source, outputs: int) -> Meaning:
    return Meaning(kind="contacts", task="contact")


FORMS = (
    Form(
        matches=_has(f"{_CLASSES}.1.weight_v", 3),
        design="tape",
        reads="hidden",
        rules=_residue,
        meaning=_states,
        first="first.weight",
        last="second.weight",
    ),
    Form(
        matches=_has(f"{_CLASSES}.0.weight_v", 2),
        design="tape",
        reads="pooled",
        rules=_sequence(_CLASSES),
        meaning=_folds,
        first="first.weight",
        last="second.weight",
    ),
    Form(
        matches=_has(f"{_VALUE}.0.weight_v", 2),
        design="tape",
        reads="pooled",
        rules=_sequence(_VALUE),
        meaning=_value,
        first="first.weight",
        last="second.weight",
    ),
    Form(
        matches=_has(_PAIRS, 2),
        design="tape",
        reads="hidden",
        rules=_tape_contact,
        meaning=_contacts,
        first="products.weight",
        last=None,
        dropout=0.5,
    ),
    Form(
        matches=_has(_PAIRS, 4),
        design="proteinlm",
        reads="hidden",
        rules=_proteinlm_contact,
        meaning=_contacts,
        first="products.weight",
        last=None,
        dropout=0.5,
    ),
)
