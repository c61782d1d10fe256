"""protembed: protein sequences to embeddings and predictions with a pretrained Transformer.

>>> import protembed
>>> model = protembed.load()
>>> record, vector = next(model.embed(["MKTAYIAKQR"]))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protembed.api import Model, load
    from protembed.errors import ProtembedError
    from protembed.outputs.store import EmbeddingStore
    from protembed.sequences.records import Record

    open = EmbeddingStore  # noqa: A001 (protembed.open reads as h5py.File does)

__all__ = ["EmbeddingStore", "Model", "ProtembedError", "Record", "load", "open"]
__version__ = "0.1.0"

_LAZY = {
    "load": ("protembed.api", "load"),
    "Model": ("protembed.api", "Model"),
    "Record": ("protembed.sequences.records", "Record"),
    "ProtembedError": ("protembed.errors", "ProtembedError"),
    "EmbeddingStore": ("protembed.outputs.store", "EmbeddingStore"),
    "open": ("protembed.outputs.store", "EmbeddingStore"),
}


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562), so that `import protembed` costs nothing."""
    if name not in _LAZY:
        raise AttributeError(f"module 'protembed' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
