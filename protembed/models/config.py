"""What a model says about itself: the shape of its encoder, its alphabet, its origin. No torch here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from protembed.errors import ModelError
from protembed.schema import Between, Sha256, Size, build
from protembed.sequences.alphabet import Alphabet

DEFAULT_MODEL = "protembed-6m"
"""The bundled model that is used when none is named."""

Rows = Annotated[int, Between(1, 2**20)]
Width = Annotated[int, Between(1, 2**18)]
Layers = Annotated[int, Between(1, 4096)]
Epsilon = Annotated[float, Between(0, 1)]
Name = Annotated[str, Size(255)]
Text = Annotated[str, Size(10_000)]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape and function of a Transformer encoder; every supported family is a value of this class.

    Only what changes the function is a field: what algebra can absorb is done when a foreign checkpoint
    is converted. `max_length` counts tokens, specials included; None means no limit. `token_dropout` is the
    share of masked tokens that ESM-2 saw in training and rescales for (0.12; 0 switches it off). `stem` is the width of
    a depthwise convolution over the embeddings that is added to them (odd; 0: none); our own small models have one.
    `frequencies` counts the rows of rotary frequencies that the weights hold: one for all layers or one per layer;
    0: none, they follow from the formula with base 10,000. Published models hold theirs, rounded as in training.

    >>> config = EncoderConfig(vocab_size=29, d_model=192, n_layers=6, n_heads=6, d_ff=768, mask_id=1)
    >>> config.layer(-1)
    6
    """

    vocab_size: Rows
    d_model: Width
    n_layers: Layers
    n_heads: Layers
    d_ff: Width
    mask_id: Annotated[int, Between(0, 2**20)]
    position: Literal["rotary", "learned"] = "rotary"
    max_length: Annotated[int, Between(1, 2**24)] | None = None
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_order: Literal["pre", "post"] = "pre"
    norm_eps: Epsilon = 1e-5
    embed_norm: bool = False
    final_norm: bool = True
    qk_norm: bool = False
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu"
    bias: bool = True
    token_dropout: Annotated[float, Between(0, 0.99)] = 0.0
    stem: Annotated[int, Between(0, 1023)] = 0
    frequencies: Annotated[int, Between(0, 4096)] = 0

    def __post_init__(self) -> None:
        if min(self.vocab_size, self.d_model, self.n_layers, self.n_heads, self.d_ff) < 1:
            raise ModelError("vocab_size, d_model, n_layers, n_heads and d_ff must be at least 1")
        if self.d_model % self.n_heads:
            raise ModelError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.position == "rotary" and (self.d_model // self.n_heads) % 2:
            raise ModelError(f"rotary positions need an even head size, not {self.d_model // self.n_heads}")
        if self.position == "learned" and self.max_length is None:
            raise ModelError("learned positions need max_length")
        if self.stem < 0 or (self.stem and self.stem % 2 == 0):
            raise ModelError(f"stem is {self.stem}: not an odd width, or 0 for none")
        if self.frequencies and (self.position != "rotary" or self.frequencies not in (1, self.n_layers)):
            raise ModelError(f"frequencies is {self.frequencies}: not 0, 1 or the number of layers of a rotary model")

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
    norm_eps: Epsilon = 1e-5


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Name, configuration, alphabet and origin of one model.

    `sha256` is the digest of the weights as they are stored (see `native.digest` and `foreign.conversion.build`),
    whatever type they are loaded in; empty while they are in training.
    `contact_head`: contacts are a regression over all attention maps (ESM). `pooler`: how the first token becomes
    the vector of the protein: through a dense layer and tanh (BERT), or as it is; None when training made none.
    `profile_head`: a linear layer says what the homologs of a protein have at every residue.
    """

    name: Name
    encoder: EncoderConfig
    alphabet: Alphabet
    mlm_head: MlmHeadConfig | None = None
    contact_head: bool = False
    pooler: Literal["dense", "first"] | None = None
    profile_head: bool = False
    license: Text = ""
    source: Text = ""
    sha256: Sha256 = ""

    def __post_init__(self) -> None:
        rows, mask_id = len(self.alphabet), self.alphabet.mask_id
        if self.encoder.vocab_size != rows:
            raise ModelError(f"encoder.vocab_size is {self.encoder.vocab_size}, and the alphabet has {rows} tokens")
        if self.encoder.mask_id != mask_id:
            raise ModelError(f"encoder.mask_id is {self.encoder.mask_id}, and row {mask_id} is the mask token")

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
        """Return what `from_dict` reads, ready for JSON; what older versions do not know is named where it is set."""
        values = {**asdict(self), "alphabet": self.alphabet.to_dict()}
        encoder = {k: v for k, v in values["encoder"].items() if v or k != "frequencies"}
        return {k: v for k, v in {**values, "encoder": encoder}.items() if v or k != "profile_head"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelCard":
        """Read what `to_dict` wrote; unknown fields are an error, because they would change the function.

        Raises ModelError, which names the field, for values of another type or out of bounds.
        """
        return build(cls, values, "the model card cannot be read")
