"""What a pretraining run is told: a TOML file, and `--set section.key=value` on top."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from protembed.errors import UsageError
from protembed.models.config import EncoderConfig, MlmHeadConfig, ModelCard
from protembed.sequences.alphabet import PROTEMBED
from protembed.training.config import read_sections, said_of
from protembed.training.limits import above_zero, at_least, at_most, share


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
        at_least(self, 0, "stem")
        # Far above any model: what is above them is a slip of the hand, and would take the machine's memory.
        at_most(self, 1_000, "n_layers")
        at_most(self, 100_000, "d_model", "n_heads", "stem")
        at_most(self, 1_000_000, "d_ff")
        at_most(self, 10_000_000, "max_length")
        above_zero(self, "norm_eps")
        at_most(self, 1.0, "norm_eps")


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Where the proteins are, and how they become batches.

    `corpus` is a folder that `protembed prepare` made; when it is not there, it is made of the files `train`, `valid`
    and `homologs` (hits or alignments, for [objective] profile). `max_residues`: longer proteins give a random window
    of this length, another one each epoch. `sampling`: an epoch visits every protein, or every cluster and one member
    of it drawn at random.
    """

    corpus: str
    train: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    homologs: tuple[str, ...] = ()
    max_residues: int = 1022
    sampling: Literal["proteins", "clusters"] = "proteins"

    def __post_init__(self) -> None:
        at_least(self, 1, "max_residues")
        at_most(self, 10_000_000, "max_residues")


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
class ObjectiveSection:
    """What is learnt: the loss is `masked` times that of masked residues plus `profile` times that of profiles."""

    masked: float = 1.0
    """Weight of the cross entropy (nats) of a masked residue: BERT's objective, and alone the default."""

    profile: float = 0.0
    """Weight of the cross entropy (nats) between what the homologs of a protein have at a residue and what the model
    predicts there, at every residue, hidden or not (Sturmfels et al. 2020, arXiv 2012.00195). Above 0 it takes a corpus
    that was prepared with homologs, and the model gets a profile head, one linear layer on the last hidden state. The
    target is the protein's own residue, plus each homolog's by max(0.05, 1 - identity), plus `background`, normalised;
    a protein without homologs keeps its own residues."""

    background: float = 1.0
    """Pseudocount of the corpus' amino acid composition in every target, in residues."""

    def __post_init__(self) -> None:
        at_least(self, 0, "masked", "profile", "background")
        if not 0 < self.masked + self.profile < float("inf"):
            raise UsageError("masked and profile are both 0, or infinite: there is nothing to learn")


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """The optimisation. `batch_tokens` go through the model at once, `accumulate` of them on every process make a step.

    `start_from` names a native checkpoint whose weights a new run begins with; one with fewer layers or a narrower
    feed-forward than [model] is grown first, and computes the same (growth.py). The learning rate warms up, stays, and
    decays over the last `decay_steps` steps, or, where that is 0, over the last `decay_share` of the steps behind the
    warm-up. With `decay_steps` (warmup-stable-decay) the end can be chosen late: give a run more steps than it will
    need, and when it is time, set `steps` to those done plus `decay_steps` and start it again. `peak_tflops` is what
    the device can do at most, for the MFU; 0 looks it up by the device's name. `device` and `threads` are of one
    process.
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
    decay_steps: int = 0
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
        at_most(self, 10**12, "steps", "warmup_steps", "decay_steps")
        at_most(self, 10**9, "batch_tokens", "evaluate_proteins")
        at_most(self, 10**6, "accumulate", "threads")
        at_most(self, 1e6, "learning_rate", "final_learning_rate", "weight_decay", "epsilon", "peak_tflops")
        at_least(
            self,
            0,
            "warmup_steps",
            "decay_steps",
            "threads",
            "seed",
            "final_learning_rate",
            "weight_decay",
            "peak_tflops",
        )
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
    objective: ObjectiveSection = field(default_factory=ObjectiveSection)
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

    @property
    def card(self) -> ModelCard:
        """The model that this run trains."""
        return make_card(self.model, profile=self.objective.profile > 0)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_card(section: ModelSection, *, profile: bool = False) -> ModelCard:
    """Describe the model that a configuration asks for, with a profile head or without one."""
    shape = {key: value for key, value in asdict(section).items() if key != "name"}
    encoder = EncoderConfig(vocab_size=len(PROTEMBED), mask_id=PROTEMBED.mask_id, **shape)
    return ModelCard(
        name=section.name,
        encoder=encoder,
        alphabet=PROTEMBED,
        mlm_head=MlmHeadConfig(),
        profile_head=profile,
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
        "objective": ObjectiveSection,
        "train": TrainSection,
        "parallel": ParallelSection,
    }
    sections = read_sections(path, overrides, kinds)
    with said_of(str(path)):
        return PretrainConfig(**sections)
