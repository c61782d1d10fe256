"""One .safetensors file, read one tensor at a time so that a model is never in memory twice."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from protembed.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Shape and type of one tensor; two tensors of one file with the same address are one."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    address: int = 0

    @classmethod
    def of(cls, tensor: Tensor) -> "Spec":
        """Describe a tensor without reading it."""
        return cls(shape=tuple(tensor.shape), dtype=tensor.dtype, address=tensor.data_ptr())


class SafetensorsFile:
    """Header and tensors of one file; every read maps it anew, so what was read before does not stay in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                self.metadata: dict[str, str] = dict(file.metadata() or {})
                self.specs = {name: Spec.of(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path}: cannot be read as safetensors ({error})", hint="Is the file complete? Copy it again."
            ) from error

    def read(self, name: str) -> Tensor:
        """Return one tensor, a view of the file: copy what is kept."""
        with safe_open(self.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor
