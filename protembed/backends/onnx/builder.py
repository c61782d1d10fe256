"""An ONNX graph in the making: nodes, weights and named values, in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Attribute = int | float | str | tuple[int, ...]
Weights = Literal["float32", "float16", "int8"]
"""How the matrices of a graph are stored."""

OPSET = 20
"""Of ai.onnx: the first one that has Gelu. onnxruntime knows it from 1.17 on."""

MICROSOFT = "com.microsoft"
"""The domain of onnxruntime's own operators."""

MASK = "mask:"
"""How the names of values begin that are masked because of padding; see Drawing.masked."""

DTYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "float16": 10}
"""Numbers of the types in ONNX files."""

_STEPS = 127  # of a weight in 8 bits to either side of zero


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator: the values it reads, those it writes, its attributes."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]
    domain: str = ""


@dataclass(frozen=True, kw_only=True)
class Value:
    """An input or output of the graph: its type and its shape, where a name stands for any size."""

    dtype: str
    shape: tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What a file computes: nodes in order, weights, inputs and outputs by name."""

    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    inputs: dict[str, Value] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)

    def add(self, other: "Graph") -> None:
        """Put another graph behind, which reads values of this one and has no input of its own."""
        self.nodes.extend(other.nodes)
        self.weights.update(other.weights)
        self.outputs.update(other.outputs)


class Drawing:
    """Adds nodes to a graph; what a method returns names the value that its last node writes.

    `tensors` are the model's weights by name, float32. Matrices are stored as `weights` says; everything is computed
    in float32, or in float16 when `half` is set. `prefix` tells its values and weights from those of other drawings.
    """

    def __init__(self, tensors: Mapping[str, Array], *, weights: Weights, half: bool, prefix: str = "") -> None:
        self.graph = Graph()
        self.dtype = "float16" if half else "float32"
        self._prefix = prefix
        self.weights: Weights = weights
        self._tensors = tensors
        self._derived: dict[tuple[str, str], list[str]] = {}

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Attribute) -> str:
        """Add an operator with one output."""
        written = f"{self._prefix}{operator}.{len(self.graph.nodes)}"
        return self._append(operator, inputs, [written], domain, attributes)[0]

    def masked(self, operator: str, x: str, *rest: str, domain: str = "", **attributes: Attribute) -> str:
        """Add an operator that keeps padding out of real positions, by the last value that it reads.

        Where nothing is padded it can be left out: an attention takes no mask then, and of the others `x` remains as
        it is. OnnxFile.cut does so.
        """
        written = f"{self._prefix}{MASK}{operator}.{len(self.graph.nodes)}"
        return self._append(operator, (x, *rest), [written], domain, attributes)[0]

    def named(self, name: str, x: str) -> str:
        """Give values a name that another graph can go by."""
        self._append("Identity", (x,), [name], "", {})
        return name

    def cast(self, x: str, dtype: str) -> str:
        """Convert values to a type."""
        return self.add("Cast", x, to=DTYPES[dtype])

    def output(self, name: str, value: Value, operator: str, *inputs: str, **attributes: int) -> None:
        """Add an operator whose result is an output of the graph."""
        self._append(operator, inputs, [name], "", attributes)
        self.graph.outputs[name] = value

    def whole(self, *values: int) -> str:
        """Store whole numbers (n,), int64."""
        return self._store(f"whole.{'.'.join(map(str, values))}", np.array(values, dtype=np.int64))

    def scalar(self, value: float, dtype: str = "float32") -> str:
        """Store one number without dimensions."""
        return self._store(f"{dtype}.{value}", np.array(value, dtype=dtype))

    def has(self, name: str) -> bool:
        """Tell whether the model has a weight of this name."""
        return name in self._tensors

    def vector(self, name: str, rows: slice | None = None, dtype: str | None = None) -> str:
        """Store a bias or a gain in the type that is computed in, or another."""
        key, values = self._part(name, rows)
        return self._store(key, values.astype(dtype or self.dtype, copy=False))

    def matrix(self, name: str, rows: slice | None = None) -> str:
        """Store a matrix, or some of its rows; the value returned is of the type that is computed in.

        Where nothing is lost, as with weights that were published in half precision, it is stored in float16.
        """
        key, values = self._part(name, rows)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if self.weights != "float16" and not np.array_equal(half, values):
            return self._store(key, values)
        stored = self._store(key, half)
        return stored if self.dtype == "float16" else self._once("Cast", stored, 1, to=DTYPES[self.dtype])[0]

    def linear(self, x: str, name: str, rows: slice | None = None) -> str:
        """Multiply (T, in) with `name`.weight (out, in) or some of its rows, and add `name`.bias if there is one."""
        bias = [self.vector(f"{name}.bias", rows)] if self.has(f"{name}.bias") else []
        return self.add("Gemm", x, self.matrix(f"{name}.weight", rows), *bias, transB=1)

    def quantisable(self, x: str, name: str, rows: slice | None = None) -> str:
        """Do what `linear` does, under int8 in whole numbers.

        Activations are quantised as they come, with one step for all; weights have a step for every output.
        """
        if self.weights != "int8":
            return self.linear(x, name, rows)
        key, weight = self._part(f"{name}.weight", rows)
        steps = np.maximum(np.abs(weight).max(axis=1), np.finfo(np.float32).tiny * _STEPS) / _STEPS  # (out,)
        quantised = self._store(f"{key}.int8", np.rint(weight / steps[:, None]).astype(np.int8).T)  # (in, out)
        zeros = self._store(f"{key}.zeros", np.zeros(len(steps), dtype=np.int8))
        values, step, zero = self._once("DynamicQuantizeLinear", x, 3)
        product = self.cast(self.add("MatMulInteger", values, quantised, zero, zeros), "float32")
        y = self.add("Mul", product, self.add("Mul", step, self._store(f"{key}.steps", steps.astype(np.float32))))
        return self.add("Add", y, self.vector(f"{name}.bias", rows)) if self.has(f"{name}.bias") else y

    def _append(
        self,
        operator: str,
        inputs: tuple[str, ...],
        outputs: list[str],
        domain: str,
        attributes: Mapping[str, Attribute],
    ) -> list[str]:
        written = tuple(outputs)
        node = Node(operator=operator, inputs=inputs, outputs=written, attributes=attributes, domain=domain)
        self.graph.nodes.append(node)
        return outputs

    def _once(self, operator: str, x: str, n_outputs: int, **attributes: int) -> list[str]:
        """Add an operator on a value, unless it is there already; return the names of its outputs."""
        if (operator, x) not in self._derived:
            outputs = [f"{self._prefix}{operator}.{len(self.graph.nodes)}.{number}" for number in range(n_outputs)]
            self._derived[operator, x] = self._append(operator, (x,), outputs, "", attributes)
        return self._derived[operator, x]

    def _store(self, key: str, values: Array) -> str:
        key = self._prefix + key
        self.graph.weights.setdefault(key, values)
        return key

    def _part(self, name: str, rows: slice | None) -> tuple[str, Array]:
        """Return some rows of a weight, and the name that they go by."""
        values = self._tensors[name]
        return (name, values) if rows is None else (f"{name}.{rows.start}", values[rows])
