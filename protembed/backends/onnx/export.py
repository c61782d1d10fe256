"""Models into ONNX files, each checked against torch before it gets its name."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from protembed.backends.load import ONNX, ModelOptions, open_model
from protembed.backends.onnx.attention import FREQUENCIES, AttentionKind
from protembed.backends.onnx.backend import OnnxBackend
from protembed.backends.onnx.builder import Weights
from protembed.backends.onnx.cache import export_place
from protembed.backends.onnx.graph import build_graph
from protembed.backends.onnx.heads import can_draw, draw_head
from protembed.backends.onnx.parity import Agreement, compare, require
from protembed.backends.onnx.writer import write_onnx
from protembed.checkpoints.find import bundled_head, find_head, find_model
from protembed.checkpoints.head_arrays import read_head
from protembed.errors import ModelError, OutputError, UsageError
from protembed.models.config import ModelCard
from protembed.models.head_config import require_distinct
from protembed.tasks import TASKS

if TYPE_CHECKING:
    from protembed.models.protein_model import ProteinModel


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is written, and where: `out` None stands for the user's cache, where --backend finds it.

    The heads of `tasks`, named or by path, become outputs of the graph; `all` are those that come with the model.
    """

    out: Path | None = None
    attention: AttentionKind = "fused"
    weights: Weights = "float32"
    tasks: tuple[str, ...] = ()
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.attention == "packed" and self.weights == "int8":
            raise UsageError("--attention packed is for CUDA, which has no int8", hint="--dtype float16")
        if self.attention == "packed" and self.tasks:
            raise UsageError("--attention packed is of the encoder alone", hint="Leave out --task.")
        if self.out is None and (self.attention, self.weights, self.tasks) != ("fused", "float32", ()):
            raise UsageError("the cache holds plain exports only", hint="Say where this one goes: -o FILE.onnx")
        if self.out is not None and self.out.suffix != ONNX:
            raise OutputError(f"{self.out}: an ONNX file ends in {ONNX}")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written: its files, the model's card, and how near it is to the model."""

    files: list[Path]
    card: ModelCard
    weights: Weights
    agreement: Agreement

    def describe(self) -> list[str]:
        """Say what was written, and what it costs."""
        size = sum(file.stat().st_size for file in self.files) / 1e6
        lines = [f"{self.card.name}, {self.weights}: {size:,.1f} MB -> {', '.join(map(str, self.files))}"]
        if self.weights == "float32":
            return [*lines, f"checked against torch: largest difference {self.agreement.difference:.0e}"]
        return [*lines, f"against float32: smallest cosine of mean-centred embeddings {self.agreement.cosine:.4f}"]


def export_model(model: ModelOptions, options: ExportOptions) -> Exported:
    """Write a model as ONNX, run it beside torch, and keep it when both agree.

    Raises ModelError when they do not, OutputError when `out` exists or cannot be written.
    """
    out = options.out or export_place(find_model(model.model, offline=model.offline))
    if options.out is not None and not out.parent.is_dir():
        raise OutputError(f"{out.parent}: no such folder", hint=f"mkdir -p {out.parent}")
    if out.exists() and not options.overwrite:
        raise OutputError(f"{out} exists", hint="--overwrite replaces it.")
    loaded = open_model(model)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)  # of the cache
        with tempfile.TemporaryDirectory(prefix=f".{out.stem}.", suffix=".tmp", dir=out.parent) as folder:
            return _export(loaded, options, Path(folder), out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error


def _export(model: "ProteinModel", options: ExportOptions, folder: Path, out: Path) -> Exported:
    """Write into a folder beside the target, check, and move what is right to its place: the weights first."""
    from protembed.backends.torch_backend import TorchBackend

    attention, weights, reference = options.attention, options.weights, TorchBackend(model)
    graph = build_graph(model.card, arrays_of(model), attention=attention, weights=weights)
    heads = []
    for path in _find_heads(options.tasks, model.card):
        card, arrays = read_head(path)
        if not can_draw(card, attention):
            raise UsageError(f"{path}: a head of this design has no ONNX form", hint="It runs in torch: protembed predict --backend torch.")
        reference.attach(path)
        heads.append(card)
        require_distinct(heads)
        graph.add(draw_head(model.card, card, arrays, attention))
    written = write_onnx(folder / out.name, graph, model.card, attention=attention, weights=weights, heads=heads)
    device = "auto" if attention == "packed" else "cpu"
    agreement = compare(OnnxBackend(folder / out.name, device=device), reference, [head.task for head in heads])
    require(agreement, weights)
    for file in reversed(written):
        os.replace(file, out.with_name(file.name))
    files = [out.with_name(file.name) for file in written]
    return Exported(files=files, card=model.card, weights=weights, agreement=agreement)


def _find_heads(tasks: Sequence[str], card: ModelCard) -> list[Path]:
    """Return the files of heads. Raises UsageError for an unknown task, ModelError when there is none."""
    if tuple(tasks) != ("all",):
        return [find_head(task, card) for task in tasks]
    found = [path for task in TASKS if (path := bundled_head(task, card.name)).is_file()]
    if not found:
        raise ModelError(f"no heads are bundled with the model {card.name}", hint="Name your own: --task FILE")
    return found


def arrays_of(model: "ProteinModel") -> dict[str, npt.NDArray[Any]]:
    """Return the weights of a float32 model on the CPU, not copied, and its rotary angles, as encoder.py has them."""
    import torch

    from protembed.models.encoder import ROTARY_BASE

    arrays: dict[str, npt.NDArray[Any]] = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    config = model.card.encoder
    if config.position == "rotary":
        head_dim = config.d_model // config.n_heads
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        arrays[FREQUENCIES] = (ROTARY_BASE**-exponents).numpy()
    return arrays
