"""Task heads as ONNX graphs that read the values of a model's: the counterpart of heads/modules.py without torch.

A graph gets N proteins a call, shorter ones padded behind their end (attention `fused` or `plain`). Special tokens are
left out of what is said of residues: those of a protein come first in its row. The outputs are logits, or values before
HeadCard.scale, as everywhere.

Legend: T tokens, N proteins, L tokens a protein, R residues of one, D d_input, E hidden width of a head, C outputs,
H attention heads, K head dim, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from protembed.backends.onnx.attention import COUNT, KEYS, MAPS, QUERIES, REAL, AttentionKind, mask_scores
from protembed.backends.onnx.builder import Drawing, Graph, Value
from protembed.models.config import ModelCard
from protembed.models.head_config import HeadCard

Array = npt.NDArray[Any]
_END = 2**31 - 1  # of a slice, however long what is sliced
_EPS = 1e-5  # of BatchNorm1d
_RUNNING_EPS = 1e-8  # of RunningScale


def output_name(task: str) -> str:
    """Return the name of the output of a head."""
    return f"task.{task}"


def can_draw(head: HeadCard, attention: AttentionKind) -> bool:
    """Tell whether a head has an ONNX form: all have in graphs of rows, but for ProteinLM's 61 convolutions."""
    return attention != "packed" and (head.kind.partition("_")[0], head.config.design) in _DRAWERS


def draw_head(model: ModelCard, head: HeadCard, weights: Mapping[str, Array], attention: AttentionKind) -> Graph:
    """Draw a head on a graph of its model; its one output is `task.<name>`.

    (N, R, C) for residues, (N, C) for proteins, (N, R, R) for contacts. `can_draw` must hold.
    """
    tensors = {name: values.astype(np.float32) for name, values in weights.items() if values.dtype.kind == "f"}
    drawing = Drawing(tensors, weights="float32", half=False, prefix=f"{output_name(head.task)}/")
    pen = _Pen(model, head, drawing, tensors, attention)
    result = _DRAWERS[head.kind.partition("_")[0], head.config.design](pen)
    value = Value(dtype="float32", shape=_shape(head))
    drawing.output(output_name(head.task), value, "Identity", result)
    return drawing.graph


def _shape(head: HeadCard) -> tuple[str | int, ...]:
    if head.kind == "contacts":
        return ("proteins", "residues", "residues")
    rows = ("proteins", "residues") if head.config.per_residue else ("proteins",)
    return (*rows, head.config.outputs)


class _Pen:
    """What the drawers of all designs share: what a head reads, and moves between tokens (T, E) and rows (N, L, E)."""

    def __init__(
        self,
        model: ModelCard,
        head: HeadCard,
        drawing: Drawing,
        tensors: dict[str, Array],
        attention: AttentionKind,
    ) -> None:
        self.model, self.config, self.drawing, self.tensors = model, head.config, drawing, tensors
        self._attention: AttentionKind = attention
        self._inside = self._scores = ""
        self._wide = drawing.add("Concat", drawing.add("Shape", "tokens"), drawing.whole(-1), axis=0)  # [N, L, -1]

    def read(self) -> str:
        """Return what the head reads: (T, D), or (N, D) of the pooled vector."""
        drawing = self.drawing
        match self.config.reads:
            case "pooled":
                return "pooled"
            case "residue":
                self.tensors["one_hot"] = np.eye(self.config.d_input, dtype=np.float32)
                rows = drawing.add("Gather", drawing.matrix("one_hot"), "tokens")  # (N, L, V)
                return self.flat(rows, self.config.d_input)
            case _:
                width = self.model.encoder.d_model
                parts = [self.flat(f"hidden.{layer}", width) for layer in self.config.layers]
                return parts[0] if len(parts) == 1 else drawing.add("Concat", *parts, axis=1)

    def flat(self, x: str, width: int) -> str:
        """Return rows (N, L, width) as tokens (T, width)."""
        return self.drawing.add("Reshape", x, self.drawing.whole(-1, width))

    def rows(self, x: str) -> str:
        """Return tokens (T, E) as rows (N, L, E)."""
        return self.drawing.add("Reshape", x, self._wide)

    def residues(self, x: str, *axes: int) -> str:
        """Leave the special tokens out of some axes."""
        alphabet, drawing = self.model.alphabet, self.drawing
        stop = -alphabet.suffix if alphabet.suffix else _END
        starts, stops = drawing.whole(*(alphabet.prefix for _ in axes)), drawing.whole(*(stop for _ in axes))
        return drawing.add("Slice", x, starts, stops, drawing.whole(*axes))

    def standardised(self, x: str, norm: str, layer: str) -> str:
        """Multiply with a linear layer, the standardisation of its inputs (BatchNorm) in its weights; (T, E)."""
        weight = self.tensors[f"{layer}.weight"] * (self.tensors[f"{norm}.running_var"] + _EPS) ** -0.5
        bias = self.tensors[f"{layer}.bias"] - weight @ self.tensors[f"{norm}.running_mean"]
        self.tensors[f"{layer}.scaled.weight"], self.tensors[f"{layer}.scaled.bias"] = weight, bias
        return self.drawing.linear(x, f"{layer}.scaled")

    def scaled(self, x: str, name: str) -> str:
        """Do what RunningScale does; in weights the difference of two large numbers would lose its digits; (N, E)."""
        self.tensors[f"{name}.factor"] = (self.tensors[f"{name}.running_var"] + _RUNNING_EPS) ** -0.5
        apart = self.drawing.add("Sub", x, self.drawing.vector(f"{name}.running_mean"))
        return self.drawing.add("Mul", apart, self.drawing.vector(f"{name}.factor"))

    def gelu(self, x: str) -> str:
        return self.drawing.add("Gelu", x, approximate="none")

    def clear(self, rows: str) -> str:
        """Set padding to zero; (N, L, E)."""
        return self.drawing.masked("Mul", rows, REAL)

    def pairs_of_tokens(self) -> str:
        """Return 1 at pairs of real tokens, 0 at others; (N, 1, L, L)."""
        pairs = self.drawing.add("Mul", REAL, self.drawing.add("Transpose", REAL, perm=(0, 2, 1)))
        return self.drawing.add("Unsqueeze", pairs, self.drawing.whole(1))

    def pairs_of_residues(self) -> str:
        """Return 1 at pairs of residues that a protein has, 0 at others; (N, 1, R, R)."""
        add, drawing, alphabet = self.drawing.add, self.drawing, self.model.alphabet
        specials = alphabet.prefix + alphabet.suffix
        length = add("Gather", add("Shape", "tokens"), drawing.scalar(1, "int64"))
        rows = add("Sub", length, drawing.scalar(specials, "int64"))
        place = drawing.cast(add("Range", drawing.scalar(0, "int64"), rows, drawing.scalar(1, "int64")), "float32")
        inside = add("Less", place, add("Sub", COUNT, drawing.scalar(float(specials))))  # (N, R)
        inside = drawing.cast(inside, "float32")
        pairs = add("Mul", add("Unsqueeze", inside, drawing.whole(2)), add("Unsqueeze", inside, drawing.whole(1)))
        return add("Unsqueeze", pairs, drawing.whole(1))

    def along_chain(self, x: str, name: str) -> str:
        """Convolve every protein on its own, zeros beyond its ends; (T, D) -> (T, E)."""
        drawing, weight = self.drawing, self.tensors[f"{name}.weight"]  # (E, D, kernel)
        width, kernel = weight.shape[0], weight.shape[2]
        columns = drawing.add("Transpose", self.clear(self.rows(x)), perm=(0, 2, 1))  # (N, D, L)
        pads = (kernel // 2, kernel - 1 - kernel // 2)
        inputs = (columns, drawing.matrix(f"{name}.weight"), drawing.vector(f"{name}.bias"))
        mixed = drawing.add("Conv", *inputs, kernel_shape=(kernel,), pads=pads)
        return self.flat(drawing.add("Transpose", mixed, perm=(0, 2, 1)), width)

    def separations(self) -> str:
        """Look up what the separation of two residues says, as PairContactHead does; (1, 8, L, L)."""
        drawing, add = self.drawing, self.drawing.add
        table = self.tensors["separation.weight"]
        length = add("Gather", add("Shape", "tokens"), drawing.scalar(1, "int64"))
        place = add("Range", drawing.scalar(0, "int64"), length, drawing.scalar(1, "int64"))
        place = drawing.cast(place, "float32")
        apart = add("Abs", add("Sub", add("Unsqueeze", place, drawing.whole(1)), place))  # (L, L)
        bins = add("Mul", add("Log", add("Add", apart, drawing.scalar(1.0))), drawing.scalar(5.0))
        bins = add("Min", drawing.cast(bins, "int64"), drawing.scalar(len(table) - 1, "int64"))
        rows = add("Gather", drawing.matrix("separation.weight"), bins)  # (L, L, 8)
        return add("Unsqueeze", add("Transpose", rows, perm=(2, 0, 1)), drawing.whole(0))

    def maps(self, layer: int) -> str:
        """Return the attention maps of a layer between residues, zero where a protein has none; (N, H, R, R)."""
        maps = self.residues(f"{MAPS}.{layer}" if self._attention == "plain" else self._attend(layer), 2, 3)
        self._inside = self._inside or self.pairs_of_residues()
        return self.drawing.masked("Mul", maps, self._inside)

    def _attend(self, layer: int) -> str:
        """Compute the attention maps of a layer from its queries and keys; (N, H, L, L)."""
        drawing, encoder = self.drawing, self.model.encoder
        head_dim = encoder.d_model // encoder.n_heads
        split = drawing.whole(0, 0, encoder.n_heads, head_dim)  # 0: as it is
        q, k = (drawing.add("Reshape", f"{name}.{layer}", split) for name in (QUERIES, KEYS))  # (N, L, H, K)
        q = drawing.add("Transpose", q, perm=(0, 2, 1, 3))
        k = drawing.add("Transpose", k, perm=(0, 2, 3, 1))
        scores = drawing.add("MatMul", drawing.add("Mul", q, drawing.scalar(head_dim**-0.5)), k)  # (N, H, L, L)
        self._scores = self._scores or mask_scores(drawing, 1)
        return drawing.add("Softmax", drawing.masked("Add", scores, self._scores), axis=-1)


def _with_neighbours(pen: _Pen) -> str:
    """Draw what the residues of a compact and of a pair head begin with; (T, E)."""
    x = pen.gelu(pen.standardised(pen.read(), "scale", "inward"))  # (T, E)
    return pen.drawing.add("Add", x, pen.gelu(pen.along_chain(x, "mix")))


def _residues_compact(pen: _Pen) -> str:
    x = _with_neighbours(pen)
    return pen.residues(pen.rows(pen.drawing.linear(x, "outward")), 1)


def _residues_tape(pen: _Pen) -> str:
    names = [f"norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    inputs = [pen.drawing.vector(name) for name in names]
    x = pen.drawing.add("BatchNormalization", pen.read(), *inputs, epsilon=_EPS)
    x = pen.drawing.add("Relu", pen.along_chain(x, "first"))
    return pen.residues(pen.rows(pen.along_chain(x, "second")), 1)


def _residues_transformers(pen: _Pen) -> str:
    return pen.residues(pen.rows(pen.drawing.linear(pen.read(), "outward")), 1)


def _sequence_transformers(pen: _Pen) -> str:
    first = pen.drawing.add("Gather", pen.rows(pen.read()), pen.drawing.scalar(0, "int64"), axis=1)  # (N, D)
    return pen.drawing.linear(pen.drawing.add("Tanh", pen.drawing.linear(first, "first")), "second")


def _sequence_compact(pen: _Pen) -> str:
    add, drawing = pen.drawing.add, pen.drawing
    x = pen.gelu(pen.standardised(pen.read(), "scale", "inward"))  # (T, E)
    scores = pen.rows(drawing.linear(x, "attention"))  # (N, L, 1)
    mask = add("Transpose", mask_scores(drawing), perm=(0, 2, 1))
    weight = add("Softmax", drawing.masked("Add", scores, mask), axis=1)
    rows, chain = pen.rows(x), drawing.whole(1)
    attended = add("ReduceSum", add("Mul", rows, weight), chain, keepdims=0)  # (N, E)
    total = add("ReduceSum", pen.clear(rows), chain, keepdims=0)
    mean = add("Div", total, add("Max", COUNT, drawing.scalar(1.0)))
    pooled = add("Concat", attended, mean, axis=1)  # (N, 2E)
    pooled = pen.gelu(drawing.linear(pen.scaled(pooled, "pooled_scale"), "middle"))
    return drawing.linear(pooled, "outward")


def _sequence_tape(pen: _Pen) -> str:
    return pen.drawing.linear(pen.drawing.add("Relu", pen.drawing.linear(pen.read(), "first")), "second")


def _contacts_compact(pen: _Pen) -> str:
    """Weigh the maps of all heads and layers first, and make their sum symmetric: see AttentionContactHead.score."""
    add, drawing, n_heads = pen.drawing.add, pen.drawing, pen.config.n_heads
    weights = pen.tensors["regression.weight"][0].reshape(-1, n_heads)  # (layers, H)
    total = ""
    for layer, weight in enumerate(weights):
        maps = pen.maps(layer)  # (N, H, R, R)
        pen.tensors[f"row.{layer}"] = weight.reshape(1, 1, n_heads)
        pen.tensors[f"column.{layer}"] = weight.reshape(1, n_heads, 1)
        sums = add("Add", _sum(pen, maps, -1), _sum(pen, maps, -2))  # (N, H, R)
        mixed = add("MatMul", drawing.vector(f"row.{layer}"), add("Reshape", maps, drawing.whole(0, 0, -1)))
        sizes = add("Gather", add("Shape", sums), drawing.whole(0, 2, 2))  # [N, R, R]
        square = add("Reshape", mixed, sizes)  # (N, R, R)
        total_sums = add("ReduceSum", sums, drawing.whole(-1), keepdims=1)
        share = add("Div", drawing.vector(f"column.{layer}"), total_sums)  # (N, H, 1)
        scaled = add("Transpose", add("Mul", sums, share), perm=(0, 2, 1))  # (N, R, H)
        product = add("Mul", add("MatMul", scaled, sums), drawing.scalar(0.5))  # (N, R, R)
        part = add("Sub", square, product)
        total = add("Add", total, part) if total else part
    both = add("Add", total, add("Transpose", total, perm=(0, 2, 1)))
    return add("Add", both, drawing.vector("regression.bias"))


def _contacts_pair(pen: _Pen) -> str:
    add, drawing, channels = pen.drawing.add, pen.drawing, len(pen.tensors["outward.weight"][0])
    x = _with_neighbours(pen)
    width = pen.config.hidden
    split = drawing.whole(0, 0, channels, width // channels)  # 0: as it is
    sides = (add("Reshape", pen.rows(drawing.linear(x, name)), split) for name in ("left", "right"))  # (N, L, 8, R)
    left, right = sides
    left = add("Mul", add("Transpose", left, perm=(0, 2, 1, 3)), drawing.scalar((width // channels) ** -0.5))
    products = add("MatMul", left, add("Transpose", right, perm=(0, 2, 3, 1)))  # (N, 8, L, L)
    both = add("Add", products, add("Transpose", products, perm=(0, 1, 3, 2)))
    pairs = add("Add", both, pen.separations())
    real = pen.pairs_of_tokens()
    for name in ("first", "second"):
        inputs = drawing.masked("Mul", pairs, real)
        mixed = add("Conv", inputs, drawing.matrix(f"{name}.weight"), drawing.vector(f"{name}.bias"), pads=(1, 1, 1, 1))
        pairs = add("Add", pairs, pen.gelu(mixed))
    pen.tensors["last.weight"] = pen.tensors["outward.weight"].reshape(1, channels, 1, 1)
    logits = add("Conv", pairs, drawing.matrix("last.weight"), drawing.vector("outward.bias"))  # (N, 1, L, L)
    logits = pen.residues(add("Squeeze", logits, drawing.whole(1)), 1, 2)
    halves = add("Add", logits, add("Transpose", logits, perm=(0, 2, 1)))
    return add("Mul", halves, drawing.scalar(0.5))


def _contacts_tape(pen: _Pen) -> str:
    add, drawing = pen.drawing.add, pen.drawing
    x = pen.residues(pen.rows(pen.read()), 1)  # (N, R, D)
    scaled = add("Mul", x, drawing.vector("products.weight"))
    product = add("MatMul", scaled, add("Transpose", x, perm=(0, 2, 1)))  # (N, R, R)
    return add("Add", product, drawing.vector("products.bias"))


def _sum(pen: _Pen, maps: str, axis: int) -> str:
    return pen.drawing.add("ReduceSum", maps, pen.drawing.whole(axis), keepdims=0)


_DRAWERS: Mapping[tuple[str, str], Callable[[_Pen], str]] = {
    ("residue", "compact"): _residues_compact,
    ("residue", "tape"): _residues_tape,
    ("residue", "transformers"): _residues_transformers,
    ("sequence", "compact"): _sequence_compact,
    ("sequence", "tape"): _sequence_tape,
    ("sequence", "transformers"): _sequence_transformers,
    ("contacts", "compact"): _contacts_compact,
    ("contacts", "pair"): _contacts_pair,
    ("contacts", "tape"): _contacts_tape,
}
