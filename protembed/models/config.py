"""What a model says about itself: the shape of its encoder, its alphabet, its origin. No torch here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from protembed.errors import ModelError
from protembed.sequences.alphabet import Alphabet

DEFAULT_MODEL = "protembed-6m"
"""The bundled model that is used when none is named."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape and function of a Transformer encoder; every supported family is a value of this class.

    Only what changes the function is a field: what algebra can absorb is done when a foreign checkpoint
    is converted. `max_length` counts tokens, specials included; None means no limit. `token_dropout` is the
    share of masked tokens that ESM-2 saw in training and rescales for (0.12; 0 switches it off). `stem` is the width of
    a depthwise convolution over the embeddings that is added to them (odd; 0: none); our own small models have one.

    >>> config = EncoderConfig(vocab_size=29, d_model=192, n_layers=6, n_heads=6, d_ff=768, mask_id=1)
    >>> config.layer(-1)
    6
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    mask_id: int
    position: Literal["rotary", "learned"] = "rotary"
    max_length: int | None = None
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_order: Literal["pre", "post"] = "pre"
    norm_eps: float = 1e-5
    embed_norm: bool = False
    final_norm: bool = True
    qk_norm: bool = False
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu"
    bias: bool = True
    token_dropout: float = 0.0
    stem: int = 0

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads:
            raise ModelError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.position == "rotary" and (self.d_model // self.n_heads) % 2:
            raise ModelError(f"rotary positions need an even head size, not {self.d_model // self.n_heads}")
        if self.position == "learned" and self.max_length is None:
            raise ModelError("learned positions need max_length")
        if self.stem < 0 or (self.stem and self.stem % 2 == 0):
            raise ModelError(f"stem is {self.stem}: not an odd width, or 0 for none")

    def layer(self, number: int) -> int:
        """Resolve a layer number: 0 is the embedding layer, n_layers or -1 the last, after the final norm."""
        resolved = number + self.n_layers + 1 if number < 0 else number
        if not 0 <= resolved <= self.n_layers:
            raise ModelError(
                f"layer {number} does not exist",
                hint=f"The model has layers 0 (embedding) to {self.n_layers}, or -1 for the last.",
            )
        return resolved


@dataclass(frozen=True, kw_only=True)
class MlmHeadConfig:
    """Shape of a masked-language-model head.

    `transform` is the BERT form (dense, GELU, norm, decoder), otherwise the decoder alone;
    `tied`: the decoder's matrix is the token embedding.
    """

    transform: bool = True
    tied: bool = True
    norm_eps: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Name, configuration, alphabet and origin of one model.

    `sha256` is the digest of the weights (see `checkpoint.digest`), empty while they are in training.
    `contact_head`: contacts are a regression over all attention maps (ESM). `pooler`: how the first token becomes
    the vector of the protein: through a dense layer and tanh (BERT), or as it is; None when training made none.
    `profile_head`: a linear layer says what the homologs of a protein have at every residue.
    """

    name: str
    encoder: EncoderConfig
    alphabet: Alphabet
    mlm_head: MlmHeadConfig | None = None
    contact_head: bool = False
    pooler: Literal["dense", "first"] | None = None
    profile_head: bool = False
    license: str = ""
    source: str = ""
    sha256: str = ""

    @property
    def max_residues(self) -> int | None:
        """Longest protein that the model takes in one piece; None means no limit."""
        if self.encoder.max_length is None:
            return None
        return self.encoder.max_length - self.alphabet.prefix - self.alphabet.suffix

    def require_contacts(self) -> None:
        """Raise ModelError unless the model has a regression from attention maps to contacts."""
        if not self.contact_head:
            raise ModelError(
                f"{self.name} has no contact regression",
                hint="Checkpoints of ESM-2 and ESM-1b have one; fair-esm keeps it in a file of its own beside the "
                "weights, NAME-contact-regression.pt.",
            )

    def require_profile(self) -> None:
        """Raise ModelError unless the model was trained to predict the profiles of homologs."""
        if not self.profile_head:
            raise ModelError(
                f"{self.name} has no profile head",
                hint="Models trained with [objective] profile above 0 have one (protembed pretrain).",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads, ready for JSON; a head that is not there is not named (older versions)."""
        values = {**asdict(self), "alphabet": self.alphabet.to_dict()}
        return values if self.profile_head else {k: v for k, v in values.items() if k != "profile_head"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelCard":
        """Read what `to_dict` wrote; unknown fields are an error, because they would change the function."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ModelError(
                f"the model card has fields that this version does not know: {', '.join(unknown)}",
                hint="It was probably written by a newer protembed: pip install --upgrade protembed",
            )
        try:
            head = values.get("mlm_head")
            return cls(
                **{
                    **values,
                    "encoder": EncoderConfig(**values["encoder"]),
                    "alphabet": Alphabet.from_dict(values["alphabet"]),
                    "mlm_head": MlmHeadConfig(**head) if head else None,
                }
            )
        except (KeyError, TypeError) as error:
            raise ModelError(f"the model card cannot be read: {error}") from error
