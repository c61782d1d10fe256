"""Models into ONNX files, each checked against torch before it gets its name."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from protembed.backends.load import ONNX, ModelOptions, find_source, open_model, says_everything
from protembed.backends.onnx.attention import FREQUENCIES, AttentionKind
from protembed.backends.onnx.backend import OnnxBackend
from protembed.backends.onnx.builder import Weights
from protembed.backends.onnx.cache import export_place
from protembed.backends.onnx.contents import COMPANION
from protembed.backends.onnx.graph import build_graph
from protembed.backends.onnx.heads import can_draw, draw_head
from protembed.backends.onnx.parity import Agreement, compare, require
from protembed.backends.onnx.signature import RUNTIMES
from protembed.backends.onnx.writer import write_onnx
from protembed.backends.trust import find_distrust
from protembed.checkpoints.find import bundled_head, find_head
from protembed.checkpoints.head_arrays import read_head
from protembed.errors import ModelError, OutputError, UsageError
from protembed.models.config import ModelCard
from protembed.models.head_config import require_distinct
from protembed.outputs.files import give_name, lock, sync, write_errors
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
    attention: AttentionKind
    agreement: Agreement

    def describe(self) -> list[str]:
        """Say what was written, and what it costs."""
        size = sum(file.stat().st_size for file in self.files) / 1e6
        lines = [f"{self.card.name}, {self.weights}: {size:,.1f} MB -> {', '.join(map(str, self.files))}"]
        if self.weights == "float32":
            lines.append(f"checked against torch: largest difference {self.agreement.difference:.0e}")
        else:
            lines.append(f"against float32: smallest cosine of mean-centred embeddings {self.agreement.cosine:.4f}")
        return [*lines, f"runs in {RUNTIMES[self.attention]}"]


def export_model(model: ModelOptions, options: ExportOptions) -> Exported:
    """Write a model as ONNX, run it beside torch, and keep it when both agree.

    Raises ModelError when they do not, OutputError when `out` exists, cannot be written, or is being written by
    another run.
    """
    if options.out is None and not says_everything(model):
        raise UsageError(
            "the cache holds exports of what a checkpoint says itself, without variant, version or heads",
            hint="Say where this one goes: -o FILE.onnx",
        )
    checkpoint = find_source(model)
    place, source = export_place(checkpoint)
    out = Path(os.path.realpath(options.out or place))
    if options.out is None:
        _make_private(out.parent)
    elif not out.parent.is_dir():
        raise OutputError(f"{out.parent}: no such folder", hint=f"mkdir -p {out.parent}")
    with lock(out, what="ONNX file"):
        _refuse_existing(out, checkpoint, overwrite=options.overwrite)
        loaded = open_model(model)
        with _folder_beside(out) as new:
            exported = _export(loaded, options, new / out.name, source)
            if export_place(checkpoint) != (place, source):
                raise ModelError(f"{checkpoint}: was changed while it was exported", hint="Export it again.")
            return _keep(exported, out, overwrite=options.overwrite, private=options.out is None)


def _make_private(folder: Path) -> None:
    """Make the folder of the cache, to which nobody else may write. Raises OutputError where others may."""
    with write_errors(folder):
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        for part in (folder.parent, folder):
            part.mkdir(mode=0o755, exist_ok=True)
        distrust = find_distrust(folder)
    if distrust:
        raise OutputError(
            f"{folder}: is not safe as a cache: {distrust}",
            hint="Name a folder of your own in $PROTEMBED_CACHE, or chmod go-w.",
        )


@contextlib.contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    """Make a folder of our own beside a file to be; it goes when the block ends."""
    with write_errors(out):
        folder = tempfile.TemporaryDirectory(prefix=f".{out.stem[:100]}.", suffix=".tmp", dir=out.parent)
    with folder as name:
        yield Path(name)


def _refuse_existing(out: Path, checkpoint: Path, *, overwrite: bool) -> None:
    """Raise OutputError where something would be lost: the model itself, whatever the options say, or another file."""
    for path in (out, out.with_name(f"{out.stem}{COMPANION}")):
        if not os.path.lexists(path):
            continue
        files = checkpoint.rglob("*") if checkpoint.is_dir() else [checkpoint]
        if any(file.exists() and path.exists() and os.path.samefile(path, file) for file in files):
            raise OutputError(f"{path}: is the model that is to be exported", hint="Choose another name.")
        if not path.is_file():
            raise OutputError(f"{path}: is not a file", hint="Choose another name.")
        if not overwrite:
            raise OutputError(f"{path} exists", hint="--overwrite replaces it.")


def _keep(exported: Exported, out: Path, *, overwrite: bool, private: bool) -> Exported:
    """Give files that are right their names: the weights first, so that a graph is never without them."""
    with write_errors(out):
        for file in reversed(exported.files):
            if private:
                file.chmod(file.stat().st_mode & 0o755)
            sync(file)
            give_name(file, out.with_name(file.name), overwrite=overwrite)
        sync(out.parent)
    return replace(exported, files=[out.with_name(file.name) for file in exported.files])


def _export(model: "ProteinModel", options: ExportOptions, out: Path, source: str) -> Exported:
    """Write a model, and check what was written."""
    from protembed.backends.torch_backend import TorchBackend

    attention, weights, reference = options.attention, options.weights, TorchBackend(model)
    graph = build_graph(model.card, arrays_of(model), attention=attention, weights=weights)
    heads = []
    for path in _find_heads(options.tasks, model.card):
        card, arrays = read_head(path)
        if not can_draw(card, attention):
            raise UsageError(
                f"{path}: a head of this design has no ONNX form",
                hint="It runs in torch: protembed predict --backend torch.",
            )
        reference.attach(path)
        heads.append(card)
        require_distinct(heads)
        graph.add(draw_head(model.card, card, arrays, attention))
    with write_errors(out):
        written = write_onnx(out, graph, model.card, attention=attention, weights=weights, heads=heads, source=source)
    device = "auto" if attention == "packed" else "cpu"
    agreement = compare(OnnxBackend(out, device=device), reference, [head.task for head in heads])
    require(agreement, weights)
    return Exported(files=written, card=model.card, weights=weights, attention=attention, agreement=agreement)


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
    from protembed.models.encoder import frequencies_by_formula

    arrays: dict[str, npt.NDArray[Any]] = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    config = model.card.encoder
    if config.position == "rotary":
        formula = frequencies_by_formula(config.d_model // config.n_heads).unsqueeze(0).numpy()
        arrays[FREQUENCIES] = arrays.pop("encoder.frequencies", formula)
    return arrays
