"""What a task head says about itself: its kind, shape and labels, the encoder it belongs to, its origin. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from protembed.errors import ModelError, UsageError
from protembed.models.config import EncoderConfig, ModelCard, Name, Text, Width
from protembed.schema import Between, OneLine, Sha256, Size, build

Kind = Literal["residue_classes", "residue_flags", "residue_values", "sequence_class", "sequence_value", "contacts"]
"""What is predicted: for every residue one class, several yes or no, or a number; for every protein a class or a
number; for every two residues whether they touch."""

Design = Literal["compact", "pair", "tape", "proteinlm", "transformers"]
Reads = Literal["hidden", "pooled", "residue", "attention"]


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Shape and function of a task head.

    `reads`: hidden states of `layers` side by side; the model's pooled vector; the residue itself, one-hot (the twin
    that shows what an encoder is worth); or the attention maps of all layers, `n_heads` a layer. `d_input` is the
    width of that: numbers a token or a protein, or maps. `outputs`: classes, flags, or 1.
    """

    kind: Kind
    outputs: Annotated[int, Between(1, 2**16)]
    d_input: Annotated[int, Between(1, 2**22)]
    design: Design = "compact"
    reads: Reads = "hidden"
    layers: Annotated[tuple[Annotated[int, Between(0, 4096)], ...], Size(4097)] = ()
    n_heads: Annotated[int, Between(0, 4096)] = 0
    hidden: Width = 96
    kernel: Annotated[int, Between(1, 1023)] = 7
    dropout: Annotated[float, Between(0, 1)] = 0.1

    @property
    def per_residue(self) -> bool:
        return self.kind.startswith("residue_")

    def map_bytes(self, length: int) -> int:
        """Guess the bytes that the maps of a protein of `length` tokens take at the most; 0 for what makes no maps."""
        if self.kind != "contacts":
            return 0
        maps = {"pair": 90, "compact": 3 * self.n_heads + 4, "tape": 4}.get(self.design, 4 * self.hidden)
        return 4 * maps * length**2

    def width(self, encoder: EncoderConfig) -> int:
        """Return the width of what a head of this form reads from an encoder."""
        widths = {
            "hidden": len(self.layers) * encoder.d_model,
            "pooled": encoder.d_model,
            "residue": encoder.vocab_size,
            "attention": encoder.n_layers * encoder.n_heads,
        }
        return widths[self.reads]


@dataclass(frozen=True, kw_only=True)
class HeadCard:
    """Task, labels, encoder and origin of one head.

    `labels` name the outputs: classes or flags, letters where they stand for residues. A logit divided by
    `temperature` is calibrated; a value is output times `scale` plus `offset`. `encoder_sha256` is the digest of the
    encoder's weights (card.sha256); `training` is what there is to tell: data, split, metric, its value.
    """

    task: OneLine
    config: HeadConfig
    encoder: Name
    encoder_sha256: Sha256
    labels: Annotated[tuple[OneLine, ...], Size(2**16)] = ()
    temperature: Annotated[float, Between(1e-6, 1e6)] = 1.0
    scale: Annotated[float, Between(-1e30, 1e30)] = 1.0
    offset: Annotated[float, Between(-1e30, 1e30)] = 0.0
    training: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    license: Text = ""
    sha256: Sha256 = ""

    def __post_init__(self) -> None:
        named = self.kind in ("residue_classes", "residue_flags", "sequence_class")
        if named and len(self.labels) != self.config.outputs:
            raise ModelError(f"{len(self.labels)} labels for {self.config.outputs} outputs")
        wrong = next((label for label in self.labels if len(label) != 1), None)
        if wrong is not None and self.kind in ("residue_classes", "residue_flags"):
            raise ModelError(f"the label {wrong!r} of residues is not one letter")

    @property
    def kind(self) -> Kind:
        return self.config.kind

    def require_encoder(self, card: ModelCard) -> None:
        """Raise ModelError unless the head was trained on this very encoder."""
        if self.encoder_sha256 != card.sha256:
            raise ModelError(
                f"the head for {self.task} belongs to the encoder {self.encoder} ({self.encoder_sha256[:12]}...), "
                f"not to {card.name} ({card.sha256[:12] or 'without a checksum'}...)",
                hint="Name its encoder with -m.",
            )
        highest = max(self.config.layers, default=0)
        if self.config.d_input != self.config.width(card.encoder) or highest > card.encoder.n_layers:
            raise ModelError(
                f"the head for {self.task} reads {self.config.d_input} numbers of layers {self.config.layers}, "
                f"which {card.name} does not have",
                hint="The head's card is damaged: copy the file again.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "HeadCard":
        """Read what `to_dict` wrote; unknown fields are an error, because they would change the function.

        Raises ModelError, which names the field, for values of another type or out of bounds.
        """
        return build(cls, values, "the head's card cannot be read")


def require_distinct(heads: Sequence[HeadCard]) -> None:
    """Raise UsageError when one head stands twice, by its name or by its path."""
    names = [head.task for head in heads]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"the task {repeated} is named twice", hint="Name every task once, by its name or its path.")
