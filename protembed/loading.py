"""From what a user calls a model to a backend that runs it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from protembed.backend import Backend
from protembed.card import DEFAULT_MODEL, ModelCard
from protembed.errors import OutputError, UsageError
from protembed.names import find_model
from protembed.registry import show_terms

if TYPE_CHECKING:
    from protembed.model import ProteinModel


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, where and how it runs; `offline`: a model that is not there is not downloaded.

    The last three tell what a ProteinLM file may not say itself.
    """

    model: str = DEFAULT_MODEL
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    offline: bool = False
    variant: Literal["trained", "tape-port"] | None = None
    checkpoint_version: float | None = None
    n_heads: int | None = None


def open_model(options: ModelOptions) -> "ProteinModel":
    """Load a model of any supported form into torch."""
    import torch

    from protembed import checkpoint, convert
    from protembed.torch_backend import choose_device, choose_dtype

    path = find_model(options.model, offline=options.offline)
    if options.threads is not None:
        if options.threads < 1:
            raise UsageError("--threads must be at least 1")
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    if checkpoint.is_native(path):
        if (options.variant, options.checkpoint_version, options.n_heads) != (None, None, None):
            raise UsageError(
                f"{path}: a native checkpoint says everything itself; it takes no variant, version or heads"
            )
        model = checkpoint.load(path, device=device, dtype=dtype)
    else:
        model = convert.load_foreign(
            path,
            device=device,
            dtype=dtype,
            variant=options.variant,
            checkpoint_version=options.checkpoint_version,
            n_heads=options.n_heads,
        )
    show_terms(model.card.license)
    return model


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
