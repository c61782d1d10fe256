"""One .safetensors file, read one tensor at a time so that a model is never in memory twice."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from protembed.checkpoints.header import open_tensors

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Types that weights are stored in; whole numbers and 8-bit floats are quantised weights, which need their scales."""


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
        with open_tensors(path, "pt") as file:
            self.metadata: dict[str, str] = dict(file.metadata() or {})
            self.specs = {name: Spec.of(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118

    def read(self, name: str, *, keep: bool = False) -> Tensor:
        """Return one tensor, a view of the file: copy what is kept. It can be read again, `keep` or not."""
        with open_tensors(self.path, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor
