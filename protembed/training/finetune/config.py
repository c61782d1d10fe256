"""What the training of a task head is told: a TOML file, and `--set section.key=value` on top."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from protembed.errors import UsageError
from protembed.models.config import DEFAULT_MODEL
from protembed.models.head_config import Design, Kind
from protembed.tasks import TASKS, Task, find_task, own_task
from protembed.tasks.labels.dataset import same_split
from protembed.tasks.labels.rows import Files
from protembed.training.config import read_sections
from protembed.training.limits import above_zero, at_least, at_most, share

_MANY = 2**31
"""More proteins, residues or tokens than a machine holds."""

_LARGE = 1e38
"""What float32 holds."""

Mode = Literal["frozen", "lora", "full"]
LoraTarget = Literal["qkv", "out", "up", "down"]


@dataclass(frozen=True, kw_only=True)
class TaskSection:
    """What is predicted: a task by its name, or one of your own, with `kind`.

    `labels` of your own task: classes or flags, letters for residues; empty: those in the data. Letters of `uncounted`
    do not count. `lmdb_field` is the label's name in your own LMDB, `lmdb_labels` the letters of its numbers.
    """

    name: str
    kind: Literal[Kind, ""] = ""
    labels: tuple[str, ...] = ()
    uncounted: str = ""
    lmdb_field: str = ""
    lmdb_labels: str = ""

    def __post_init__(self) -> None:
        # The name becomes part of the names of files, and a field of a table.
        if not self.name.isprintable() or set(self.name) & set("/\\,") or not self.name.strip():
            raise UsageError(f"name is {self.name!r}", hint="Letters, digits, - and _ will do.")
        _require_text(self)


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """The labelled proteins: a folder or file, and the names of its splits.

    `valid` empty: the validation split of the data, else `valid_share` of the training proteins, drawn by the seed, and
    by cluster where headers say CLUSTER= or a table has a column `cluster`. `test` splits are measured when training is
    over. Proteins whose sequences are validated or tested on are left out of training. `where` lists attributes that
    proteins must have (KEY=value). Proteins longer than `max_residues` are cut into windows when residues are
    predicted, and else to their first residues; or they are refused. `proteins` limits the training set to so many,
    drawn at random. `cache` is where hidden states are kept; empty: in the folder of the run.
    """

    path: str
    train: tuple[str, ...] = ("train",)
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    valid_share: float = 0.1
    max_residues: int = 1022
    long: Literal["cut", "error"] = "cut"
    proteins: int = 0
    cache: str = ""

    def __post_init__(self) -> None:
        _require_text(self, "path")
        at_least(self, 0, "proteins")
        at_most(self, _MANY, "proteins", "max_residues")
        uses = [(name, use) for use in ("train", "valid", "test") for name in getattr(self, use)]
        for number, (name, use) in enumerate(uses):
            if other := next((use for before, use in uses[:number] if same_split(name, before)), None):
                raise UsageError(f"the split {name} is named twice, in {other} and in {use}", hint="Each has one use.")


@dataclass(frozen=True, kw_only=True)
class NegativesSection:
    """Proteins whose residues all have one label (`label`), from a file with headers; none when `path` is empty.

    `train` and `valid` are its splits, `where` attributes that its proteins must have, one of them (KEY=value);
    `proteins` of them are drawn for training, and as many for validation as the share of the task's own proteins.
    """

    path: str = ""
    label: str = ""
    train: str = "train"
    valid: str = "val"
    where: tuple[str, ...] = ()
    proteins: int = 500

    def __post_init__(self) -> None:
        _require_text(self)
        at_least(self, 1, "proteins")
        at_most(self, _MANY, "proteins")


@dataclass(frozen=True, kw_only=True)
class EncoderSection:
    """The encoder, and what becomes of it.

    `frozen`: its hidden states are computed once. `lora`: matrices of low rank are added to `lora_targets` of every
    block (Hu et al. 2021, arXiv 2106.09685). `full`: all its weights are trained. The last two write an encoder of
    their own, in `store_dtype`. `layers` are those that the head reads, side by side; -1 is the last.
    """

    model: str = DEFAULT_MODEL
    mode: Mode = "frozen"
    layers: tuple[int, ...] = (-1,)
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_targets: tuple[LoraTarget, ...] = ("qkv", "out")
    store_dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        _require_text(self, "model")
        above_zero(self, "lora_alpha")
        at_most(self, 65_536, "lora_rank", "lora_alpha")
        for name in ("layers", "lora_targets"):
            if len(set(values := getattr(self, name))) < len(values):
                raise UsageError(f"{name} holds a value twice")


@dataclass(frozen=True, kw_only=True)
class HeadSection:
    """The head, as in heads.model.design_head, and the type that its weights are written in.

    `reads = "residue"` makes its one-hot twin, which needs no encoder. `license` goes into its file.
    """

    design: Design = "compact"
    reads: Literal["", "hidden", "pooled", "residue", "attention"] = ""
    hidden: int = 96
    kernel: int = 9
    dropout: float = 0.1
    store_dtype: Literal["float32", "float16"] = "float32"
    license: str = ""

    def __post_init__(self) -> None:
        _require_text(self)
        share(self, "dropout")
        at_most(self, 65_536, "hidden", "kernel")


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """The optimisation: AdamW, a warm-up over `warmup_share` of all steps, then cosine decay to nothing.

    It ends `patience` epochs after the best one by `metric` (empty: the task's first one; the higher the better).
    `class_weights` weigh a class by the inverse of its share (`balanced`), or by the root of that (`root`).
    """

    out: str
    epochs: int = 20
    batch_tokens: int = 4096
    learning_rate: float = 1e-3
    encoder_learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup_share: float = 0.05
    clip: float = 1.0
    patience: int = 3
    metric: str = ""
    class_weights: Literal["none", "root", "balanced"] = "none"
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    threads: int = 0
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        _require_text(self, "out")
        if "," in self.out:
            raise UsageError(f"out is {self.out!r}", hint="predict parts the paths of several heads at commas.")
        at_least(self, 0, "encoder_learning_rate", "weight_decay", "threads", "seed")
        above_zero(self, "learning_rate", "clip")
        at_most(self, _LARGE, "learning_rate", "encoder_learning_rate", "weight_decay")
        at_most(self, _MANY, "epochs", "patience", "batch_tokens", "seed")
        at_most(self, 4096, "threads")
        share(self, "warmup_share")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """All of the training of one head."""

    task: TaskSection
    data: DataSection
    train: TrainSection
    encoder: EncoderSection = field(default_factory=EncoderSection)
    head: HeadSection = field(default_factory=HeadSection)
    negatives: NegativesSection = field(default_factory=NegativesSection)

    @property
    def frozen(self) -> bool:
        return self.encoder.mode == "frozen"


def _require_text(section: object, *needed: str) -> None:
    """Raise UsageError for control characters in the words of a section, and for an empty one that is needed."""
    for name in (one.name for one in fields(section)):  # type: ignore[arg-type]
        value = getattr(section, name)
        for word in value if isinstance(value, tuple) else [value]:
            if isinstance(word, str) and not word.isprintable():
                raise UsageError(f"{name} holds {word!r}: a line break or another control character")
        if name in needed and not value.strip():
            raise UsageError(f"{name} is empty")


def load_task_config(path: Path, overrides: Sequence[str] = ()) -> TaskConfig:
    """Read a TOML file and apply overrides. Raises UsageError naming the file, section and key."""
    kinds = {
        "task": TaskSection,
        "data": DataSection,
        "train": TrainSection,
        "encoder": EncoderSection,
        "head": HeadSection,
        "negatives": NegativesSection,
    }
    config = TaskConfig(**read_sections(path, overrides, kinds))
    _require_sense(config, path)
    return config


def make_task(section: TaskSection) -> Task:
    """Return the task that a configuration means. Raises UsageError."""
    if not section.kind:
        if section.labels or section.uncounted:
            raise UsageError("[task] labels are those of the task; yours need a name of their own, and kind")
        return find_task(section.name)
    if section.name in TASKS:
        raise UsageError(f"[task] {section.name} is known, and takes no kind", hint="Give your own task another name.")
    if section.kind == "residue_flags" and not section.labels:
        raise UsageError("[task] labels are missing: the letters of the flags")
    letters = section.kind.startswith("residue_")
    for label in section.labels:
        if not label.strip() or not label.isprintable() or (letters and len(label) != 1):
            what = "one letter" if letters else "a line of printable characters"
            raise UsageError(f"[task] labels holds {label!r}", hint=f"A label of {section.kind} is {what}.")
    if len(set(section.labels)) < len(section.labels):
        raise UsageError("[task] labels holds a label twice")
    task = own_task(section.name, section.kind, section.labels)
    return replace(
        task,
        coding=replace(task.coding, uncounted=section.uncounted),
        files=Files(lmdb_field=section.lmdb_field, lmdb_labels=section.lmdb_labels),
    )


def attributes(words: Sequence[str], section: str) -> list[tuple[str, str]]:
    """Read `KEY=value` words. Raises UsageError."""
    pairs = [word.partition("=") for word in words]
    if wrong := next((word for word, (key, equals, _) in zip(words, pairs, strict=True) if not (key and equals)), None):
        raise UsageError(f"[{section}] where holds {wrong!r}, not KEY=value")
    return [(key, value) for key, _, value in pairs]


def _require_sense(config: TaskConfig, path: Path) -> None:
    head, encoder = config.head, config.encoder
    positive = {
        "data.max_residues": config.data.max_residues,
        "encoder.lora_rank": encoder.lora_rank,
        "head.hidden": head.hidden,
        "head.kernel": head.kernel,
        "train.epochs": config.train.epochs,
        "train.batch_tokens": config.train.batch_tokens,
        "train.patience": config.train.patience,
    }
    if low := next((name for name, value in positive.items() if value <= 0), None):
        raise UsageError(f"{path}: {low} is {positive[low]}, and must be above 0")
    if not 0 < config.data.valid_share < 1:
        raise UsageError(f"{path}: data.valid_share is {config.data.valid_share}, not between 0 and 1")
    if head.kernel % 2 == 0:
        raise UsageError(f"{path}: head.kernel is {head.kernel}, and must be odd: it has a residue in its middle")
    if not encoder.layers:
        raise UsageError(f"{path}: encoder.layers names no layer", hint="-1 is the last.")
    if head.reads == "residue" and not config.frozen:
        raise UsageError(f"{path}: a head that reads residues leaves no encoder to train", hint='encoder.mode="frozen"')
    if encoder.mode == "lora" and not encoder.lora_targets:
        raise UsageError(f"{path}: encoder.lora_targets is empty", hint="Known: qkv, out, up, down.")
