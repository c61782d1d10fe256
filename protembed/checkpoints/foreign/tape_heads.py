"""Fine-tuned models of TAPE and of ProteinLM's port of it: the head above the encoder, as a task head of ours."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from protembed.checkpoints.foreign.checkpoint import open_source
from protembed.checkpoints.foreign.conversion import Combine, Rule, join
from protembed.checkpoints.native import digest
from protembed.errors import ModelError
from protembed.models.config import ModelCard
from protembed.models.head_config import Design, HeadCard, HeadConfig, Kind, Reads
from protembed.models.heads.base import TaskHead
from protembed.models.heads.contact import ProteinLMContactHead
from protembed.models.heads.registry import make_head

STATES = {3: ("ss3", tuple("HEC")), 8: ("ss8", tuple("GHIBESTC"))}
"""TAPE's tasks of secondary structure by their number of classes, and its order of the labels."""

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of head: the tensor that tells it, with so many dimensions, and how ours is made of its tensors."""

    marker: str
    dimensions: int
    kind: Kind
    design: Design
    reads: Reads
    rules: Callable[[], Sequence[Rule]]


def _one(native: str, *sources: str, combine: Combine = join) -> Rule:
    return Rule(native=native, sources=sources, combine=combine)


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
        _one(f"{native}.weight", f"{foreign}.weight_g", f"{foreign}.weight_v", combine=_normed),
        _one(f"{native}.bias", f"{foreign}.bias"),
    ]


def _residue() -> list[Rule]:
    main = "classify.classify.main"
    norm = [_one(f"norm.{part}", f"{main}.0.{part}") for part in _NORM]
    return norm + _weight_normed("first", f"{main}.1") + _weight_normed("second", f"{main}.4")


def _sequence(main: str) -> Callable[[], list[Rule]]:
    return lambda: _weight_normed("first", f"{main}.0") + _weight_normed("second", f"{main}.3")


def _tape_contact() -> list[Rule]:
    def weight(tensors: Sequence[Tensor]) -> Tensor:
        return _products([_touching(tensors)])

    layer = "predict.predict.1"
    return [
        _one("products.weight", f"{layer}.weight", combine=weight),
        _one("products.bias", f"{layer}.bias", combine=_touching),
    ]


def _proteinlm_contact() -> list[Rule]:
    layer = "predict.predict.1"
    rules = [
        _one("products.weight", f"{layer}.weight", combine=_products),
        _one("products.bias", f"{layer}.bias"),
        _one("differences.weight", f"{layer}.weight", combine=_differences),
        _one("outward.weight", "predict.linear.0.weight", combine=_touching),
        _one("outward.bias", "predict.linear.0.bias", combine=_touching),
    ]
    for number in range(ProteinLMContactHead.BLOCKS):
        for native, foreign in (("first", "1"), ("second", "2")):
            own, theirs = f"blocks.{number}.{native}", f"predict.predict.ResidualBlock{number}"
            rules.append(_one(f"{own}.weight", f"{theirs}.conv{foreign}.weight"))
            rules += [_one(f"{own}_norm.{part}", f"{theirs}.bn{foreign}.{part}") for part in _NORM]
    return rules


_CLASSES, _VALUE, _PAIRS = "classify.classify.main", "predict.value_prediction.main", "predict.predict.1.weight"

FORMS = (
    Form(
        marker=f"{_CLASSES}.1.weight_v",
        dimensions=3,
        kind="residue_classes",
        design="tape",
        reads="hidden",
        rules=_residue,
    ),
    Form(
        marker=f"{_CLASSES}.0.weight_v",
        dimensions=2,
        kind="sequence_class",
        design="tape",
        reads="pooled",
        rules=_sequence(_CLASSES),
    ),
    Form(
        marker=f"{_VALUE}.0.weight_v",
        dimensions=2,
        kind="sequence_value",
        design="tape",
        reads="pooled",
        rules=_sequence(_VALUE),
    ),
    Form(marker=_PAIRS, dimensions=2, kind="contacts", design="tape", reads="hidden", rules=_tape_contact),
    Form(marker=_PAIRS, dimensions=4, kind="contacts", design="proteinlm", reads="hidden", rules=_proteinlm_contact),
)


def load_tape_head(path: Path, encoder: ModelCard, *, device: torch.device) -> tuple[TaskHead, HeadCard]:
    """Load the head of a fine-tuned checkpoint; `encoder` is the card of the encoder that was loaded from it.

    Raises ModelError when the file has no head of a known form, or `encoder` is another file's.
    """
    weights = open_source(path).weights
    form = next((f for f in FORMS if f.marker in weights.specs and _fits(weights.specs[f.marker].shape, f)), None)
    if form is None:
        raise ModelError(
            f"{path}: holds no task head of a known form",
            hint="Known: heads of `protembed train` (.safetensors); fine-tuned models of TAPE and ProteinLM's port.",
        )
    if Path(encoder.source).resolve() != path.resolve():
        raise ModelError(
            f"{path}: this head was trained together with the encoder in the same file, not with {encoder.name}",
            hint=f"Use both: -m {path} --task {path}",
        )
    rules = form.rules()
    names = {source for rule in rules for source in rule.sources}
    if missing := sorted(names - set(weights.specs)):
        raise ModelError(f"{path}: {len(missing)} weights of the head are missing, the first is {missing[0]}")
    found = {name: weights.read(name) for name in names}
    found = {name: t.float() if t.is_floating_point() else t for name, t in found.items()}
    tensors = {rule.native: rule.combine([found[name] for name in rule.sources]) for rule in rules}
    head = make_head(_config(form, tensors, encoder))
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(
            f"{path}: the weights of the head do not fit together", hint="Is the file complete?"
        ) from error
    card = _card(head.config, encoder, tensors)
    return head.to(device).requires_grad_(False).eval(), card


def _fits(shape: tuple[int, ...], form: Form) -> bool:
    return len(shape) == form.dimensions


def _config(form: Form, tensors: Mapping[str, Tensor], encoder: ModelCard) -> HeadConfig:
    """Read the sizes of a head off its tensors."""
    contacts = form.kind == "contacts"
    last = tensors["second.weight"] if not contacts else None
    first = tensors["products.weight" if contacts else "first.weight"]
    return HeadConfig(
        kind=form.kind,
        design=form.design,
        reads=form.reads,
        layers=(encoder.encoder.n_layers,) if form.reads == "hidden" else (),
        outputs=1 if last is None else len(last),
        d_input=first.shape[1],
        hidden=len(first),
        dropout=0.5 if contacts else 0.1,
    )


def _card(config: HeadConfig, encoder: ModelCard, tensors: Mapping[str, Tensor]) -> HeadCard:
    """Name task and labels. A file does not say which value, or which labels of another number, it predicts."""
    labels = tuple(map(str, range(config.outputs)))
    if config.kind == "residue_classes":
        task, labels = STATES.get(config.outputs, ("residue_classes", labels))
    elif config.kind == "sequence_class":
        task = "remote_homology"
    else:
        task, labels = ("contact" if config.kind == "contacts" else "value"), ()
    return HeadCard(
        task=task,
        config=config,
        encoder=encoder.name,
        encoder_sha256=encoder.sha256,
        labels=labels,
        training={"source": encoder.source},
        license=encoder.license,
        sha256=digest(dict(tensors)),
    )
