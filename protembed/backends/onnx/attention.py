"""How proteins lie in an ONNX graph, and the attention that goes with it: the counterpart of layout.py.

Legend: T tokens, N proteins, L tokens a protein, D d_model, H heads, K head dim.
"""

from abc import ABC, abstractmethod
from typing import Literal

from protembed.backends.onnx.builder import MICROSOFT, Attribute, Drawing, Value
from protembed.models.config import EncoderConfig
from protembed.sequences.alphabet import Alphabet

AttentionKind = Literal["fused", "plain", "packed"]
"""onnxruntime's own operators; those that every runtime has; those for CUDA over packed proteins."""

FREQUENCIES = "rotary.frequencies"
"""The weight that holds the rotary angles of one position: a row for all layers, or one per layer; (rows, K / 2)."""

QUERIES, KEYS, MAPS = "queries", "keys", "maps"
"""Values that a graph names layer by layer: turned queries and keys (N, L, D), or the maps (N, H, L, L) it makes."""

REAL, COUNT = "padding.real", "padding.count"
"""Values that every graph of rows names: 1 at real tokens and 0 at padding, (N, L, 1); real tokens of a row, (N, 1).

A row with padding before a real token has NaN in the first, so that all its outputs are NaN: nothing that is wrong
looks right.
"""

LOWEST = -1e30
"""What is added to the scores of padding before a softmax."""

_END = 2**31 - 1  # of a slice, however long what is sliced


class GraphLayout(ABC):
    """Where proteins begin and end in a graph.

    `tokens` and `positions` are values of the graph, `sizes` names the dimensions of the tokens.
    """

    tokens = "tokens"
    positions: str
    sizes: tuple[str | int, ...]

    def __init__(self, config: EncoderConfig, drawing: Drawing, padding: int) -> None:
        self._config, self._drawing, self._padding = config, drawing, padding
        self._lay_out()
        self._turns = [self._rotation(row) for row in range(config.frequencies or 1)] if self._is_rotary else []

    @property
    def _is_rotary(self) -> bool:
        return self._config.position == "rotary"

    @abstractmethod
    def _lay_out(self) -> None:
        """Declare the inputs, and draw what tells positions and shapes."""

    @abstractmethod
    def shape(self, width: int) -> str:
        """Return the shape of the tokens with a last dimension of `width`."""

    @abstractmethod
    def share(self, flags: str) -> str:
        """Return the share of flagged tokens in each one's protein, in a shape that fits the tokens'."""

    @abstractmethod
    def clear(self, x: str) -> str:
        """Set padding to zero; where padding is not allowed everything becomes NaN; (T, D)."""

    @abstractmethod
    def first(self, x: str) -> str:
        """Return the first token of every protein; (T, D) -> (N, D)."""

    @abstractmethod
    def attend(self, q: str, k: str, v: str, layer: int) -> str:
        """Turn q and k by their positions, and attend within every protein; all are (T, D).

        What contact heads read of a layer (from 0) is named: see heads.py.
        """

    def convolve(self, x: str, weight: str, width: int) -> str:
        """Convolve every column with its own of `weight` (width, D) within every protein; (T, D)."""
        drawing, add, gap = self._drawing, self._drawing.add, width // 2
        apart, axis = self._pad(x, gap)
        mixed = ""
        for row in range(width):
            stop = row - 2 * gap if row < 2 * gap else _END
            moved = add("Slice", apart, drawing.whole(row), drawing.whole(stop), drawing.whole(axis))
            term = add("Mul", self._inside(moved, row - gap), drawing.vector(weight, slice(row, row + 1)))
            mixed = add("Add", mixed, term) if mixed else term
        return add("Reshape", mixed, drawing.whole(-1, self._config.d_model))

    @abstractmethod
    def _pad(self, x: str, gap: int) -> tuple[str, int]:
        """Put `gap` rows of zeros before and after the tokens; return the axis of these, too."""

    def _inside(self, moved: str, offset: int) -> str:
        """Set tokens to zero that come from `offset` places away in another protein."""
        return moved

    def _rotation(self, row: int) -> tuple[str, str]:
        """Draw cosine and sine of the rotary angles, (positions, K / 2); in float32, they go into the thousands."""
        drawing = self._drawing
        places = drawing.add("Unsqueeze", drawing.cast(self.positions, "float32"), drawing.whole(1))
        angles = drawing.add("Mul", places, drawing.vector(FREQUENCIES, slice(row, row + 1), dtype="float32"))
        turns = drawing.add("Cos", angles), drawing.add("Sin", angles)
        if drawing.dtype == "float32":
            return turns
        return drawing.cast(turns[0], drawing.dtype), drawing.cast(turns[1], drawing.dtype)

    def _turn(self, x: str, layer: int) -> str:
        """Apply onnxruntime's rotary embedding; (rows, positions, D). A row begins at position 0 of the angles."""
        first, turn = self._drawing.whole(0), self._angles(layer)
        return self._drawing.add("RotaryEmbedding", x, first, *turn, domain=MICROSOFT)

    def _angles(self, layer: int) -> tuple[str, str]:
        """Return cosine and sine of a layer, from 0."""
        return self._turns[layer % len(self._turns)]


class Rows(GraphLayout):
    """N proteins in rows of one length: tokens (N, L), shorter ones padded behind their end.

    With onnxruntime's attention, which never holds a map (L, L) where nothing is padded.
    """

    def _lay_out(self) -> None:
        drawing = self._drawing
        # In 8 bits the step of activations is one for all that is computed at once: a protein goes alone.
        self.sizes = (1 if drawing.weights == "int8" else "proteins", "length")
        drawing.graph.inputs[self.tokens] = Value(dtype="int64", shape=self.sizes)
        self._dimensions = drawing.add("Shape", self.tokens)
        self._wide = drawing.add("Concat", self._dimensions, drawing.whole(-1), axis=0)  # [N, L, -1]
        length = drawing.add("Gather", self._dimensions, drawing.scalar(1, "int64"))
        self.positions = drawing.add("Range", drawing.scalar(0, "int64"), length, drawing.scalar(1, "int64"))  # (L,)
        self._find_padding()

    def _find_padding(self) -> None:
        """Draw what tells padding from tokens: see REAL and COUNT."""
        drawing, add = self._drawing, self._drawing.add
        padded = add("Equal", self.tokens, drawing.scalar(self._padding, "int64"))
        real = drawing.cast(add("Not", padded), "float32")  # (N, L)
        count = add("ReduceSum", real, drawing.whole(1), keepdims=1)  # (N, 1)
        places = add("Add", drawing.cast(self.positions, "float32"), drawing.scalar(1.0))
        last = add("ReduceMax", add("Mul", real, places), drawing.whole(1), keepdims=1)
        allowed = add("Where", add("Equal", last, count), real, drawing.scalar(float("nan")))
        self._real = drawing.named(REAL, add("Unsqueeze", allowed, drawing.whole(-1)))
        self._count = drawing.named(COUNT, count)
        self._mask_keys()

    def _mask_keys(self) -> None:
        """Draw the mask of attention: how many keys of every row count, (N,)."""
        drawing = self._drawing
        self._keys = drawing.cast(drawing.add("Reshape", self._count, drawing.whole(-1)), "int32")

    def shape(self, width: int) -> str:
        return self._wide

    def share(self, flags: str) -> str:
        drawing, add = self._drawing, self._drawing.add
        flagged = add("ReduceSum", flags, drawing.whole(1), keepdims=1)
        return add("Div", flagged, add("Max", self._count, drawing.scalar(1.0)))  # (N, 1)

    def clear(self, x: str) -> str:
        return self._drawing.masked("Mul", x, self._drawing.add("Reshape", self._real, self._drawing.whole(-1, 1)))

    def _pad(self, x: str, gap: int) -> tuple[str, int]:
        rows = self._drawing.add("Reshape", x, self._wide)  # (N, L, D)
        return self._drawing.add("Pad", rows, self._drawing.whole(0, gap, 0, 0, gap, 0)), 1

    def first(self, x: str) -> str:
        rows = self._drawing.add("Reshape", x, self._wide)  # (N, L, D)
        return self._drawing.add("Gather", rows, self._drawing.scalar(0, "int64"), axis=1)

    def attend(self, q: str, k: str, v: str, layer: int) -> str:
        add, config = self._drawing.add, self._config
        q, k, v = (add("Reshape", x, self._wide) for x in (q, k, v))  # (N, L, D)
        if self._is_rotary:
            q, k = self._turn(q, layer), self._turn(k, layer)
        self._drawing.named(f"{QUERIES}.{layer}", q)
        self._drawing.named(f"{KEYS}.{layer}", k)
        attention: dict[str, Attribute] = {"num_heads": config.n_heads, "mask_filter_value": LOWEST}
        mixed = self._drawing.masked("MultiHeadAttention", q, k, v, "", self._keys, domain=MICROSOFT, **attention)
        return add("Reshape", mixed, self._drawing.whole(-1, config.d_model))


class PlainRows(Rows):
    """The same with operators that every runtime has; it holds the maps of all heads, (N, H, L, L)."""

    def _mask_keys(self) -> None:
        self._keys = mask_scores(self._drawing, 1)  # (N, 1, 1, L)

    def attend(self, q: str, k: str, v: str, layer: int) -> str:
        drawing, config = self._drawing, self._config
        add, head_dim = drawing.add, config.d_model // config.n_heads
        split = add("Concat", self._dimensions, drawing.whole(config.n_heads, head_dim), axis=0)  # [N, L, H, K]
        q, k, v = (add("Reshape", x, split) for x in (q, k, v))
        q, k, v = (self._transpose(x) for x in (q, k, v))  # (N, H, L, K)
        if self._is_rotary:
            q, k = self._turn(q, layer), self._turn(k, layer)
        q = add("Mul", q, drawing.scalar(head_dim**-0.5, drawing.dtype))
        scores = add("MatMul", q, drawing.add("Transpose", k, perm=(0, 1, 3, 2)))  # (N, H, L, L)
        maps = add("Softmax", drawing.masked("Add", scores, self._keys), axis=-1)
        drawing.named(f"{MAPS}.{layer}", maps)
        mixed = add("MatMul", maps, v)  # (N, H, L, K)
        return add("Reshape", self._transpose(mixed), drawing.whole(-1, config.d_model))

    def _transpose(self, x: str) -> str:
        return self._drawing.add("Transpose", x, perm=(0, 2, 1, 3))

    def _turn(self, x: str, layer: int) -> str:
        """Turn the two halves of every head by the token's angles, as encoder.rotate does; (N, H, L, K)."""
        drawing, add = self._drawing, self._drawing.add
        half = self._config.d_model // self._config.n_heads // 2
        last = drawing.whole(-1)
        first = add("Slice", x, drawing.whole(0), drawing.whole(half), last)
        second = add("Slice", x, drawing.whole(half), drawing.whole(2 * half), last)
        cosine, sine = self._angles(layer)
        left = add("Sub", add("Mul", first, cosine), add("Mul", second, sine))
        right = add("Add", add("Mul", second, cosine), add("Mul", first, sine))
        return add("Concat", left, right, axis=-1)


class PackedRow(GraphLayout):
    """Any proteins end to end: tokens (T,), with onnxruntime's attention over packed tokens, which only CUDA has.

    Further inputs: `positions` (T,) of the tokens in their proteins; `proteins` (T,), the number of each token's
    protein, where their lengths count; `offsets` (N + 1,) where proteins begin; `places` (N, L), where in a batch
    padded to L tokens a protein the real tokens stand, in order, and then where the padding does.
    """

    sizes = ("tokens",)
    positions = "positions"

    def _lay_out(self) -> None:
        inputs, config = self._drawing.graph.inputs, self._config
        inputs[self.tokens] = inputs[self.positions] = Value(dtype="int64", shape=self.sizes)
        if config.token_dropout or config.stem:
            inputs["proteins"] = Value(dtype="int64", shape=self.sizes)
        padded = self._drawing.add("Equal", self.tokens, self._drawing.scalar(self._padding, "int64"))
        nan, one = self._drawing.scalar(float("nan")), self._drawing.scalar(1.0)
        allowed = self._drawing.add("Where", padded, nan, one)  # proteins end where `offsets` say
        self._real = self._drawing.add("Unsqueeze", allowed, self._drawing.whole(-1))  # (T, 1)
        inputs["offsets"] = Value(dtype="int32", shape=("proteins + 1",))
        inputs["places"] = Value(dtype="int32", shape=("proteins", "longest"))

    def shape(self, width: int) -> str:
        return self._drawing.whole(-1, width)

    def share(self, flags: str) -> str:
        drawing, add = self._drawing, self._drawing.add
        lengths = self._lengths()
        none = add("Mul", lengths, drawing.scalar(0.0))
        counts = add("ScatterElements", none, "proteins", flags, axis=0, reduction="add")
        return add("Gather", add("Div", counts, lengths), "proteins")  # (T,)

    def clear(self, x: str) -> str:
        real = self._real if self._drawing.dtype == "float32" else self._drawing.cast(self._real, self._drawing.dtype)
        return self._drawing.masked("Mul", x, real)

    def _pad(self, x: str, gap: int) -> tuple[str, int]:
        return self._drawing.add("Pad", x, self._drawing.whole(gap, 0, gap, 0)), 0

    def _inside(self, moved: str, offset: int) -> str:
        drawing, add = self._drawing, self._drawing.add
        place = add("Add", drawing.cast(self.positions, "float32"), drawing.scalar(offset))
        ends = add("Gather", self._lengths(), "proteins")
        inside = add("And", add("GreaterOrEqual", place, drawing.scalar(0.0)), add("Less", place, ends))
        return add("Mul", moved, add("Unsqueeze", drawing.cast(inside, drawing.dtype), drawing.whole(1)))

    def _lengths(self) -> str:
        """Return how many tokens every protein has; (N,), float32."""
        return self._drawing.cast(self._drawing.add("Sub", self._bounds(1, _END), self._bounds(0, -1)), "float32")

    def first(self, x: str) -> str:
        return self._drawing.add("Gather", x, self._bounds(0, -1), axis=0)

    def attend(self, q: str, k: str, v: str, layer: int) -> str:
        add, n_heads = self._drawing.add, self._config.n_heads
        if self._is_rotary:
            q, k = self._turn(q, layer), self._turn(k, layer)
        inputs = (q, k, v, "", "places", "offsets")
        return add("PackedMultiHeadAttention", *inputs, domain=MICROSOFT, num_heads=n_heads)

    def _turn(self, x: str, layer: int) -> str:
        """Turn all tokens as one row: the angles are those of each token's own position."""
        row = self._drawing.add("Reshape", x, self._drawing.whole(1, -1, self._config.d_model))
        return self._drawing.add("Reshape", super()._turn(row, layer), self._drawing.whole(-1, self._config.d_model))

    def _bounds(self, start: int, stop: int) -> str:
        """Return some of the offsets: those where proteins begin, or those where they end."""
        drawing = self._drawing
        return drawing.add("Slice", "offsets", drawing.whole(start), drawing.whole(stop), drawing.whole(0))


def mask_scores(drawing: Drawing, *axes: int) -> str:
    """Draw what is added to scores before a softmax over tokens: 0 at real ones; (N, 1, L), and further axes."""
    add = drawing.add
    scores = add("Mul", add("Sub", drawing.scalar(1.0), REAL), drawing.scalar(LOWEST))
    row = add("Transpose", scores, perm=(0, 2, 1))
    return add("Unsqueeze", row, drawing.whole(*axes)) if axes else row


def padding_id(alphabet: Alphabet) -> int:
    """Return the token that stands for padding; -1 where an alphabet uses it for something else, too."""
    others = {alphabet.start, alphabet.end, alphabet.mask, alphabet.unknown, *alphabet.letters}
    return -1 if alphabet.padding in others else alphabet.pad_id


def make_layout(config: EncoderConfig, drawing: Drawing, attention: AttentionKind, padding: int) -> GraphLayout:
    """Return the layout that goes with a kind of attention, its inputs declared; `padding` as padding_id gives it."""
    kinds: dict[AttentionKind, type[GraphLayout]] = {"fused": Rows, "plain": PlainRows, "packed": PackedRow}
    return kinds[attention](config, drawing, padding)
