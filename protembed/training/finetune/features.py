"""What a head reads of a batch: from a cache on disk, from the residues themselves, or from an encoder that runs.

Legend: T tokens, N proteins, D width of a layer, M attention maps, L residues of a protein.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from protembed.backends.base import Backend, Output
from protembed.errors import ModelError, OutputError
from protembed.models.head_config import HeadConfig
from protembed.models.heads.run import attention_inputs, read_inputs, required_layers
from protembed.models.protein_model import ProteinModel
from protembed.outputs.files import atomic
from protembed.sequences.batching import TokenBatch, pack
from protembed.training.finetune.examples import Batch, Examples

Inputs: TypeAlias = Callable[[Batch], Any]
"""From a batch to what a head takes: (T, d_input), (N, d_input), or attention maps (M, L, L) a protein."""


def residues_alone(config: HeadConfig) -> Inputs:
    """Return the inputs of a one-hot twin."""
    return lambda batch: functional.one_hot(batch.tokens, config.d_input).float()


def running(model: ProteinModel, config: HeadConfig) -> Inputs:
    """Return inputs that run the encoder each time, with gradients where its weights take them."""

    def run(batch: Batch) -> Tensor | list[Tensor]:
        if config.reads == "attention":
            return attention_inputs(model, batch.tokens, batch.layout)
        hidden = model.encoder(batch.tokens, batch.layout, required_layers(model, [config]))
        return read_inputs(model, config, batch.tokens, batch.layout, hidden)

    return run


def cached(backend: Backend, config: HeadConfig, examples: Examples, folder: Path, device: torch.device) -> Inputs:
    """Return inputs read from files of hidden states, which are computed now unless they are there."""
    wanted: list[Output]
    if config.reads == "pooled":
        wanted = [("pooled", backend.card.encoder.n_layers)]
    else:
        wanted = [("residues", layer) for layer in config.layers]
    states = compute_states(backend, examples, wanted, folder)

    def read(batch: Batch) -> Tensor:
        rows = batch.indices if config.reads == "pooled" else batch.rows
        parts = [torch.from_numpy(np.take(states[name], rows, axis=0)).float() for name in wanted]
        return torch.cat(parts, dim=1).to(device)

    return read


def compute_states(
    backend: Backend, examples: Examples, wanted: Sequence[Output], folder: Path
) -> Mapping[Output, npt.NDArray[np.float16]]:
    """Return what an encoder says of examples, float16 arrays in files: all that is missing takes one pass.

    Files go by the digest of the encoder and of the tokens: tasks on the same proteins share them. Raises ModelError
    for states that float16 does not hold, OutputError when the disk is too small.
    """
    places = {name: folder / f"{_digest(backend, examples)}-{name[0]}-{name[1]}.npy" for name in wanted}
    if missing := [name for name, path in places.items() if not path.is_file()]:
        folder.mkdir(parents=True, exist_ok=True)
        _compute(backend, examples, {name: places[name] for name in missing})
    return {name: _open(path) for name, path in places.items()}


def _open(path: Path) -> npt.NDArray[np.float16]:
    try:
        states: npt.NDArray[np.float16] = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ModelError(f"{path}: damaged hidden states ({error})", hint="Remove it: it is computed again.") from error
    return states


def _digest(backend: Backend, examples: Examples) -> str:
    state = hashlib.sha256(f"{backend.card.sha256} {backend.computed_with}".encode())
    for array in (examples.tokens, examples.offsets):
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()[:24]


def _compute(backend: Backend, examples: Examples, places: Mapping[Output, Path]) -> None:
    shapes = {
        name: (len(examples) if name[0] == "pooled" else len(examples.tokens), backend.card.encoder.d_model)
        for name in places
    }
    folder = next(iter(places.values())).parent
    needed, free = sum(2 * rows * width for rows, width in shapes.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{folder}: {needed / 1e9:.1f} GB of hidden states do not fit, {free / 1e9:.1f} GB are free",
            hint="[data] cache names another folder; fewer proteins or layers need less.",
        )
    with ExitStack() as stack:
        temporary = {name: stack.enter_context(atomic(path)) for name, path in places.items()}
        files = {
            name: np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shapes[name])
            for name, path in temporary.items()
        }
        _fill(backend, examples, files)
        for states in files.values():
            states.flush()


def _fill(backend: Backend, examples: Examples, files: Mapping[Output, npt.NDArray[np.float16]]) -> None:
    sizes, offsets = examples.lengths, examples.offsets
    for group in pack(range(len(examples)), size=lambda index: int(sizes[index]), budget=backend.budget()):
        first, stop = group[0], group[-1] + 1
        tokens = slice(offsets[first], offsets[stop])
        batch = TokenBatch(tokens=examples.tokens[tokens], lengths=tuple(sizes[first:stop].tolist()))
        for name, values in backend.run(batch, list(files)).items():
            if not np.abs(values).max() <= np.finfo(np.float16).max:
                raise ModelError(
                    f"hidden states of {backend.card.name} ({name[0]}, layer {name[1]}) do not fit into float16",
                    hint='Another of [encoder] layers, or encoder.mode="lora".',
                )
            files[name][slice(first, stop) if name[0] == "pooled" else tokens] = values
