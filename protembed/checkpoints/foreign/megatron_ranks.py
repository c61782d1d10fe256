"""A checkpoint of Megatron: one file a rank, of tensor-parallel parts and pipeline stages, read as one model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protembed.checkpoints.foreign.tensors import TorchFile, Weights
from protembed.checkpoints.tensor_file import Spec
from protembed.errors import ModelError

_FILE = "model_optim_rng.pt"
_TRACKER = "latest_checkpointed_iteration.txt"
_RANK = re.compile(r"mp_rank_(\d{2})(?:_(\d{3}))?")
_LAYER = re.compile(r"(language_model\.transformer\.layers\.)(\d+)(\..*)")

SPLIT: Mapping[str, int] = {
    "attention.query_key_value.weight": 0,
    "attention.query_key_value.bias": 0,
    "mlp.dense_h_to_4h.weight": 0,
    "mlp.dense_h_to_4h.bias": 0,
    "word_embeddings.weight": 0,
    "word_embeddings_for_head.weight": 0,
    "lm_head.bias": 0,
    "attention.dense.weight": 1,
    "mlp.dense_4h_to_h.weight": 1,
}
"""Dimension along which the parts lie, by the end of the name; what is not named here every part has in full."""


@dataclass(frozen=True, kw_only=True)
class RankFile:
    """One file: tensor-parallel part and pipeline stage, from 0."""

    part: int
    stage: int
    path: Path


def find(path: Path) -> list[RankFile]:
    """Find all files of the checkpoint that `path` is or belongs to; none when it is not Megatron's."""
    if path.is_file():
        return find(path.parent.parent) if path.name == _FILE and _RANK.fullmatch(path.parent.name) else []
    if _RANK.fullmatch(path.name) and (path / _FILE).is_file():
        return find(path.parent)
    folder = _iteration(path)
    return [
        RankFile(part=int(rank[1]), stage=int(rank[2] or 0), path=child / _FILE)
        for child in sorted(folder.iterdir())
        if (rank := _RANK.fullmatch(child.name)) and (child / _FILE).is_file()
    ]


def named_part(path: Path) -> Path:
    """Climb to the folder or file whose name says which model this is."""
    while _RANK.fullmatch(path.name) or re.fullmatch(rf"iter_\d+|release|{re.escape(_FILE)}", path.name):
        path = path.parent
    return path


def _iteration(folder: Path) -> Path:
    """Return the folder of the iteration that the tracker names, else the only one, else the folder itself."""
    tracker = folder / _TRACKER
    if tracker.is_file():
        newest = tracker.read_text(encoding="utf-8").strip()
        chosen = folder / (newest if newest == "release" else f"iter_{newest.zfill(7)}")
        if not chosen.is_dir():
            raise ModelError(f"{tracker}: names {newest!r}, and {chosen.name} is not there", hint="Name the folder.")
        return chosen
    iterations = sorted(folder.glob("iter_*"))
    if len(iterations) > 1:
        raise ModelError(f"{folder}: holds {len(iterations)} iterations and no {_TRACKER}", hint="Name one of them.")
    return iterations[0] if iterations else folder


class Ranks:
    """All ranks as one set of weights: layers numbered through the stages, parts put together again."""

    def __init__(self, files: Sequence[RankFile]) -> None:
        self.parts = 1 + max(file.part for file in files)
        n_stages = 1 + max(file.stage for file in files)
        opened = {(file.part, file.stage): TorchFile(file.path) for file in files}
        for part in range(self.parts):
            for stage in range(n_stages):
                if (part, stage) not in opened:
                    raise ModelError(f"{files[0].path.parent.parent}: part {part} of stage {stage} is not there")
        self.header = opened[0, 0].header
        self._check_size(files[0].path.parent.parent, n_stages)
        self._places: dict[str, tuple[str, list[TorchFile]]] = {}
        n_layers = 0
        for stage in range(n_stages):
            n_layers = self._add([opened[part, stage] for part in range(self.parts)], n_layers)
        self.specs = {name: self._spec(name) for name in self._places}

    @classmethod
    def alone(cls, weights: Weights) -> "Ranks":
        """Take one file by another name for the only rank."""
        if not isinstance(weights, TorchFile):
            raise ModelError("a Megatron checkpoint is one file of torch.save a rank")
        return cls([RankFile(part=0, stage=0, path=weights.path)])

    def read(self, name: str, *, keep: bool = False) -> Tensor:
        local, files = self._places[name]
        tensors = [file.read(local, keep=keep) for file in files]
        if len(tensors) == 1:
            return tensors[0]
        if (dimension := _dimension(name)) is not None:
            return torch.cat(tensors, dim=dimension)
        for file, tensor in zip(files, tensors, strict=True):
            if not torch.equal(tensor, tensors[0]):
                raise ModelError(
                    f"{file.path}: {local} is not the same in all tensor-parallel parts",
                    hint="The parts do not come from one checkpoint.",
                )
        return tensors[0]

    def _add(self, files: list[TorchFile], first_layer: int) -> int:
        """Enter the names of one stage; return the number of layers so far."""
        n_layers = first_layer
        for file in files:
            if different := sorted(set(file.specs) ^ set(files[0].specs)):
                raise ModelError(f"{file.path}: not the same weights as in part 0, the first is {different[0]}")
        for local in files[0].specs:
            name = local
            if layer := _LAYER.fullmatch(local):
                number = first_layer + int(layer[2])
                n_layers = max(n_layers, number + 1)
                name = f"{layer[1]}{number}{layer[3]}"
            self._places[name] = (local, files)
        return n_layers

    def _spec(self, name: str) -> Spec:
        local, files = self._places[name]
        shape = list(files[0].specs[local].shape)
        if (dimension := _dimension(name)) is not None:
            shape[dimension] = sum(file.specs[local].shape[dimension] for file in files)
        return Spec(shape=tuple(shape), dtype=files[0].specs[local].dtype)

    def _check_size(self, folder: Path, n_stages: int) -> None:
        """Compare the number of files with what the training said of itself, where it did."""
        args: Any = self.header.get("args")
        parts = getattr(args, "tensor_model_parallel_size", self.parts)
        stages = getattr(args, "pipeline_model_parallel_size", n_stages)
        if (parts, stages) != (self.parts, n_stages):
            raise ModelError(
                f"{folder}: was written by {parts} x {stages} ranks, and files of {self.parts} x {n_stages} are there",
                hint="Copy all folders mp_rank_*.",
            )


def _dimension(name: str) -> int | None:
    return next((dimension for ending, dimension in SPLIT.items() if name.endswith(ending)), None)
