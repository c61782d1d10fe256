"""Contact maps as pictures."""

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protembed.errors import DependencyError, OutputError

_SIDE = 5.0  # inches of the map
_DPI = 150
_TITLE = 60


def require_matplotlib() -> None:
    """Raise DependencyError unless pictures can be drawn here."""
    if importlib.util.find_spec("matplotlib") is None:
        raise DependencyError("--plot needs matplotlib, which is not installed", hint="pip install 'protembed[plot]'")


def file_name(key: str) -> str:
    """Name the picture of a record: safe on every system; a short digest tells names apart that had to be changed.

    >>> file_name("P12345"), file_name("sp|P12345|X")
    ('P12345.png', 'sp_P12345_X.fd276d.png')
    """
    plain = re.sub(r"^[.-]|[^A-Za-z0-9_.-]", "_", key)[:100]
    if plain != key:
        plain += "." + hashlib.sha256(key.encode()).hexdigest()[:6]
    return f"{plain}.png"


def make_folder(path: Path) -> None:
    """Make the folder of the pictures. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def draw_contacts(contacts: npt.NDArray[np.floating[Any]], path: Path, *, title: str) -> None:
    """Draw probabilities of contact (L, L) as a square map with residue numbers from 1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    length = len(contacts)
    figure = Figure(figsize=(_SIDE + 1.2, _SIDE + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    edges = (0.5, length + 0.5, length + 0.5, 0.5)
    picture = axes.imshow(contacts.astype(np.float32), cmap="Blues", vmin=0, vmax=1, extent=edges)
    axes.set(xlabel="residue", ylabel="residue")
    axes.locator_params(integer=True, min_n_ticks=2)
    axes.set_title(title if len(title) <= _TITLE else f"{title[: _TITLE - 1]}\N{HORIZONTAL ELLIPSIS}", parse_math=False)
    figure.colorbar(picture, ax=axes, label="probability of contact", shrink=0.85)
    try:
        figure.savefig(path, dpi=max(_DPI, 1.3 * length / _SIDE))  # no residue is less than a pixel wide
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written ({error.strerror})", hint="Check the folder that --plot names.")
