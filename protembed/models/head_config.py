"""What a task head says about itself: its kind, shape and labels, the encoder it belongs to, its origin. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from protembed.errors import ModelError, UsageError
from protembed.models.config import ModelCard

Kind = Literal["residue_classes", "residue_flags", "residue_values", "sequence_class", "sequence_value", "contacts"]
"""What is predicted: for every residue one class, several yes or no, or a number; for every protein a class or a
number; for every two residues whether they touch."""

Design = Literal["compact", "pair", "tape", "proteinlm"]
Reads = Literal["hidden", "pooled", "residue", "attention"]


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Shape and function of a task head.

    `reads`: hidden states of `layers` side by side; the model's pooled vector; the residue itself, one-hot (the twin
    that shows what an encoder is worth); or the attention maps of all layers, `n_heads` a layer. `d_input` is the
    width of that: numbers a token or a protein, or maps. `outputs`: classes, flags, or 1.
    """

    kind: Kind
    outputs: int
    d_input: int
    design: Design = "compact"
    reads: Reads = "hidden"
    layers: tuple[int, ...] = ()
    n_heads: int = 0
    hidden: int = 96
    kernel: int = 7
    dropout: float = 0.1

    @property
    def per_residue(self) -> bool:
        return self.kind.startswith("residue_")

    def map_bytes(self, length: int) -> int:
        """Guess the bytes that the maps of a protein of `length` tokens take at the most; 0 for what makes no maps."""
        if self.kind != "contacts":
            return 0
        maps = {"pair": 90, "compact": 3 * self.n_heads + 4, "tape": 4}.get(self.design, 4 * self.hidden)
        return 4 * maps * length**2

    def require_known(self) -> None:
        """Raise ModelError for a kind, design or input that this version does not know."""
        for name, known in (("kind", Kind), ("design", Design), ("reads", Reads)):
            if (value := getattr(self, name)) not in get_args(known):
                raise ModelError(
                    f"the head's card cannot be read: {name} is {value!r}", hint=f"Known: {', '.join(get_args(known))}."
                )


@dataclass(frozen=True, kw_only=True)
class HeadCard:
    """Task, labels, encoder and origin of one head.

    `labels` name the outputs: classes or flags, letters where they stand for residues. A logit divided by
    `temperature` is calibrated; a value is output times `scale` plus `offset`. `encoder_sha256` is the digest of the
    encoder's weights (card.sha256); `training` is what there is to tell: data, split, metric, its value.
    """

    task: str
    config: HeadConfig
    encoder: str
    encoder_sha256: str
    labels: tuple[str, ...] = ()
    temperature: float = 1.0
    scale: float = 1.0
    offset: float = 0.0
    training: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    license: str = ""
    sha256: str = ""

    @property
    def kind(self) -> Kind:
        return self.config.kind

    def require_encoder(self, card: ModelCard) -> None:
        """Raise ModelError unless the head was trained on this very encoder."""
        if self.encoder_sha256 != card.sha256:
            raise ModelError(
                f"the head for {self.task} belongs to the encoder {self.encoder} ({self.encoder_sha256[:12]}...), "
                f"not to {card.name} ({card.sha256[:12] or 'without a checksum'}...)",
                hint="Name its encoder with -m. A model of another program has one checksum for each --dtype: "
                "`protembed convert` makes it a native one, whose checksum is always the same.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "HeadCard":
        """Read what `to_dict` wrote; unknown fields are an error, because they would change the function."""
        config = values.get("config", {})
        known = {part: {f.name for f in fields(part)} for part in (cls, HeadConfig)}
        if unknown := sorted((set(values) - known[cls]) | (set(config) - known[HeadConfig])):
            raise ModelError(
                f"the head's card has fields that this version does not know: {', '.join(unknown)}",
                hint="It was probably written by a newer protembed: pip install --upgrade protembed",
            )
        try:
            shape = HeadConfig(**{**config, "layers": tuple(config["layers"])})
            card = cls(**{**values, "config": shape, "labels": tuple(values["labels"])})
        except (KeyError, TypeError) as error:
            raise ModelError(f"the head's card cannot be read: {error}") from error
        shape.require_known()
        return card


def require_distinct(heads: Sequence[HeadCard]) -> None:
    """Raise UsageError when one head stands twice, by its name or by its path."""
    names = [head.task for head in heads]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"the task {repeated} is named twice", hint="Name every task once, by its name or its path.")
