"""Foreign checkpoints as native models: the kinds are listed in kinds.py, one table of names a family."""

from pathlib import Path

import torch

from protembed.checkpoints.foreign.checkpoint import Told, Variant, open_source
from protembed.checkpoints.foreign.conversion import build
from protembed.checkpoints.foreign.families import recognise
from protembed.checkpoints.foreign.heads import warn_of_head
from protembed.models.protein_model import ProteinModel


def load_foreign(
    path: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    variant: Variant | None = None,
    checkpoint_version: float | None = None,
    n_heads: int | None = None,
) -> ProteinModel:
    """Load a checkpoint of another program, in the widest type it holds unless `dtype` is given.

    `variant`, `checkpoint_version` and `n_heads` tell what a ProteinLM checkpoint may not say itself.
    Raises ModelError when the kind is not known, or the file is damaged or incomplete.
    """
    told = Told(variant=variant, checkpoint_version=checkpoint_version, n_heads=n_heads)
    source = open_source(path)
    recipe = recognise(source, told)
    warn_of_head(source, recipe)
    return build(recipe, path=path, device=device, dtype=dtype)


__all__ = ["load_foreign"]
