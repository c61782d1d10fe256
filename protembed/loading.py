"""From what a user calls a model to a backend that runs it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from protembed.backend import Backend
from protembed.card import DEFAULT_MODEL, ModelCard
from protembed.errors import ModelError, OutputError, UsageError

if TYPE_CHECKING:
    from protembed.model import ProteinModel


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, where and how it runs; the last three tell what a ProteinLM file may not say itself."""

    model: str = DEFAULT_MODEL
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    variant: Literal["trained", "tape-port"] | None = None
    checkpoint_version: float | None = None
    n_heads: int | None = None


def weights_folder() -> Path:
    """Return the folder of the bundled models: inside an installed package, at the top of a source tree."""
    here = Path(__file__).parent
    installed = here / "weights"
    return installed if installed.is_dir() else here.parent / "weights"


def bundled_models() -> dict[str, Path]:
    """Return the models that are shipped, by name."""
    return {path.stem: path for path in sorted(weights_folder().glob("*.safetensors"))}


def find_model(name: str) -> Path:
    """Return the file or folder of a model: a bundled name, or a path. Raises ModelError."""
    bundled = bundled_models()
    if name in bundled:
        return bundled[name]
    if Path(name).exists():
        return Path(name)
    raise ModelError(
        f"no model is called {name!r}, and no file or folder",
        hint=f"Bundled: {', '.join(bundled) or 'none'}. Or give the path of a checkpoint (native, ESM-2, ...).",
    )


def open_model(options: ModelOptions) -> "ProteinModel":
    """Load a model of any supported form into torch."""
    import torch

    from protembed import checkpoint, convert
    from protembed.torch_backend import choose_device, choose_dtype

    path = find_model(options.model)
    if options.threads is not None:
        if options.threads < 1:
            raise UsageError("--threads must be at least 1")
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    if checkpoint.is_native(path):
        return checkpoint.load(path, device=device, dtype=dtype)
    return convert.load_foreign(
        path,
        device=device,
        dtype=dtype,
        variant=options.variant,
        checkpoint_version=options.checkpoint_version,
        n_heads=options.n_heads,
    )


def open_backend(options: ModelOptions) -> Backend:
    """Open a model for running. Raises ModelError or UsageError."""
    if options.backend not in ("auto", "torch"):
        raise UsageError(f"backend {options.backend!r} is not available", hint="Known: auto, torch.")
    from protembed.torch_backend import TorchBackend

    return TorchBackend(open_model(options))


def convert_model(options: ModelOptions, out: Path, *, overwrite: bool) -> ModelCard:
    """Write any checkpoint as a native one. Raises OutputError when `out` exists and is not to be replaced."""
    from protembed import checkpoint

    if out.suffix != ".safetensors":
        raise OutputError(f"{out}: a native checkpoint ends in .safetensors")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists", hint="--overwrite replaces it.")
    model = open_model(options)
    return checkpoint.save(model, out, dtype=model.encoder.embedding.weight.dtype)


def describe_bundled() -> list[list[str]]:
    """Return name, parameters, layers, width, limit of length and licence of every bundled model."""
    from protembed import checkpoint

    rows = []
    for name, path in bundled_models().items():
        card = checkpoint.read_card(path)
        limit = "none" if card.max_residues is None else f"{card.max_residues:,} residues"
        parameters = f"{checkpoint.count_parameters(path) / 1e6:.1f} M"
        rows.append([name, parameters, str(card.encoder.n_layers), str(card.encoder.d_model), limit, card.license])
    return rows
