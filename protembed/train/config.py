"""What a pretraining run is told: a TOML file, and `--set section.key=value` on top."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from protembed.alphabet import PROTEMBED
from protembed.card import EncoderConfig, MlmHeadConfig, ModelCard
from protembed.errors import UsageError
from protembed.train.limits import above_zero, at_least, share

Section = TypeVar("Section")


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """Shape of the encoder, as in card.EncoderConfig."""

    name: str
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    position: Literal["rotary", "learned"] = "rotary"
    max_length: int | None = None
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float = 1e-5
    qk_norm: bool = False
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu"
    bias: bool = True
    stem: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "d_model", "n_layers", "n_heads", "d_ff")
        above_zero(self, "norm_eps")


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Where the proteins are, and how they become batches.

    `corpus` is a folder that `protembed prepare` made; when it is not there, it is made of the files `train` and
    `valid`. `max_residues`: longer proteins give a random window of this length, another one each epoch. `sampling`:
    an epoch visits every protein, or every cluster and one member of it drawn at random.
    """

    corpus: str
    train: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    max_residues: int = 1022
    sampling: Literal["proteins", "clusters"] = "proteins"

    def __post_init__(self) -> None:
        at_least(self, 1, "max_residues")


@dataclass(frozen=True, kw_only=True)
class MaskSection:
    """The masked-language-model objective: share of residues chosen, and what becomes of them (the rest is kept)."""

    rate: float = 0.15
    masked: float = 0.8
    random: float = 0.1

    def __post_init__(self) -> None:
        above_zero(self, "rate")
        share(self, "rate", "masked", "random")
        if self.masked + self.random > 1 + 1e-9:
            raise UsageError(f"masked and random are {self.masked} and {self.random}, together more than 1")


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """The optimisation. `batch_tokens` go through the model at once, `accumulate` of them on every process make a step.

    `start_from` names a native checkpoint whose weights a new run begins with. The learning rate warms up, stays, and
    decays over the last `decay_share` of the steps behind the warm-up. `peak_tflops` is what the device can do at most,
    for the MFU; 0 looks it up by the device's name. `device` and `threads` are of one process.
    """

    out: str
    steps: int
    start_from: str = ""
    batch_tokens: int = 4096
    accumulate: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.0
    warmup_steps: int = 500
    decay: Literal["cosine", "linear"] = "cosine"
    decay_share: float = 1.0
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    threads: int = 0
    seed: int = 0
    log_every: int = 20
    evaluate_every: int = 500
    evaluate_proteins: int = 200
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    peak_tflops: float = 0.0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_tokens", "accumulate", "evaluate_proteins", "keep_checkpoints")
        at_least(self, 1, "log_every", "evaluate_every", "checkpoint_every")
        at_least(self, 0, "warmup_steps", "threads", "seed", "final_learning_rate", "weight_decay", "peak_tflops")
        above_zero(self, "learning_rate", "epsilon", "clip")
        share(self, "decay_share")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"betas are {list(self.betas)}, not from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class ParallelSection:
    """How the work is divided among processes and fitted into memory; none of it changes the function.

    `strategy`: `ddp` keeps all weights on every process, `fsdp` a share of them. `activation_checkpointing` computes
    activations twice instead of keeping them. `compile` needs a GPU: batches are filled up to one shape.
    """

    strategy: Literal["ddp", "fsdp"] = "ddp"
    activation_checkpointing: bool = False
    compile: bool = False


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """All of a pretraining run."""

    model: ModelSection
    data: DataSection
    train: TrainSection
    mask: MaskSection = field(default_factory=MaskSection)
    parallel: ParallelSection = field(default_factory=ParallelSection)

    def __post_init__(self) -> None:
        longest = self.data.max_residues + PROTEMBED.prefix + PROTEMBED.suffix
        limit = self.model.max_length
        if limit is not None and longest > limit:
            raise UsageError(
                f"[data] max_residues is {self.data.max_residues}: {longest} tokens, and [model] max_length is {limit}"
            )
        if self.parallel.compile and longest > self.train.batch_tokens:
            raise UsageError(
                f"[train] batch_tokens is {self.train.batch_tokens}: a protein of [data] max_residues takes {longest}",
                hint="[parallel] compile fills all batches up to one shape; without it a long protein may exceed it.",
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_card(section: ModelSection) -> ModelCard:
    """Describe the model that a configuration asks for."""
    shape = {key: value for key, value in asdict(section).items() if key != "name"}
    encoder = EncoderConfig(vocab_size=len(PROTEMBED), mask_id=PROTEMBED.mask_id, **shape)
    return ModelCard(
        name=section.name,
        encoder=encoder,
        alphabet=PROTEMBED,
        mlm_head=MlmHeadConfig(),
        license="Apache-2.0",
        source="trained by protembed pretrain",
    )


def load_config(path: Path, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Read a TOML file and apply overrides of the form `train.steps=100` (values are TOML; bare words are strings).

    Raises UsageError naming the file, section and key.
    """
    kinds = {
        "model": ModelSection,
        "data": DataSection,
        "mask": MaskSection,
        "train": TrainSection,
        "parallel": ParallelSection,
    }
    sections = read_sections(path, overrides, kinds)
    with _said_of(str(path)):
        return PretrainConfig(**sections)


def read_sections(path: Path, overrides: Sequence[str], kinds: Mapping[str, type]) -> dict[str, Any]:
    """Read the sections of a TOML file as the dataclasses `kinds`; overrides as in `load_config`. Raises UsageError."""
    values = read_toml(path)
    if stray := next((name for name, value in values.items() if not isinstance(value, dict)), None):
        raise UsageError(f"{path}: {stray} is no section", hint=f"Write [{stray}], and below it a key a line.")
    for override in overrides:
        _apply(values, override)
    _refuse_unknown(values, kinds, str(path))
    return {name: _section(kind, values.get(name, {}), f"{path}, section [{name}]") for name, kind in kinds.items()}


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises UsageError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})", hint="Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML ({error})") from error


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and section and name):
        raise UsageError(f"--set {override}: not of the form section.key=value", hint="Example: --set train.steps=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    values.setdefault(section, {})[name] = value


def _section(kind: type[Section], values: Mapping[str, Any], place: str) -> Section:
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    _refuse_unknown(values, known, place)
    required = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in values]:
        raise UsageError(f"{place}: {missing[0]} is missing")
    hints = get_type_hints(kind)
    checked = {key: _checked(value, hints[key], f"{place}: {key} is") for key, value in values.items()}
    with _said_of(place):
        return kind(**checked)


@contextmanager
def _said_of(place: str) -> Iterator[None]:
    """Name the place of what a section finds wrong with its values."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{place}: {error}", hint=error.hint) from error


def _checked(value: Any, hint: Any, place: str) -> Any:
    """Return a TOML value as the type that a field names; raises UsageError when it is of another."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        if value not in choices:
            raise UsageError(f"{place} {value!r}, not one of {', '.join(map(str, choices))}")
        return value
    if get_origin(hint) is tuple:
        items = value if isinstance(value, list) else [value]
        if choices[-1] is not Ellipsis and len(items) != len(choices):
            raise UsageError(f"{place} {value!r}, not {len(choices)} values")
        return tuple(_checked(item, choices[0], place.removesuffix("is") + "holds") for item in items)
    if get_origin(hint) is UnionType:
        return _checked(value, choices[0], place)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise UsageError(f"{place} {value!r}, not {hint.__name__}")
    return value


def _refuse_unknown(values: Mapping[str, Any], known: Mapping[str, Any], place: str) -> None:
    if unknown := sorted(set(values) - set(known)):
        raise UsageError(f"{place}: unknown key {unknown[0]!r}", hint=f"Known: {', '.join(known)}.")
