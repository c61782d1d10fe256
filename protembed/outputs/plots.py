"""Contact maps and tracks of residues as pictures."""

import hashlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protembed.errors import DependencyError
from protembed.outputs.files import atomic, write_errors

_SIDE = 5.0  # inches of the map
_TRACK_WIDTH = 8.0  # inches of the shortest
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
    with write_errors(path):
        path.mkdir(parents=True, exist_ok=True)


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
    axes.set_title(_shorten(title), parse_math=False)
    figure.colorbar(picture, ax=axes, label="probability of contact", shrink=0.85)
    _save(figure, path, dpi=max(_DPI, 1.3 * length / _SIDE))  # no residue is less than a pixel wide


@dataclass(frozen=True, kw_only=True)
class Track:
    """What is said of every residue: a class by its number (L,), with the names of all classes; or a value (L,)."""

    name: str
    values: npt.NDArray[Any]
    classes: tuple[str, ...] = ()


def draw_tracks(tracks: Sequence[Track], path: Path, *, title: str) -> None:
    """Draw tracks of one protein below each other along its residues, numbered from 1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    length = len(tracks[0].values)
    width = min(max(_TRACK_WIDTH, length * 0.05), 3 * _TRACK_WIDTH)
    heights = [0.5 if track.classes else 1.0 for track in tracks]
    figure = Figure(figsize=(width, 0.9 + sum(heights) + 0.15 * len(tracks)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(tracks), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for track, axes in zip(tracks, rows, strict=True):
        _draw_track(track, axes, length)
    rows[-1].set(xlabel="residue", xlim=(0.5, length + 0.5))
    rows[0].set_title(_shorten(title), parse_math=False)
    _save(figure, path, dpi=_DPI)


def _draw_track(track: Track, axes: Any, length: int) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    axes.set_ylabel(track.name, rotation=0, ha="right", va="center", parse_math=False)
    if not track.classes:
        axes.plot(np.arange(1, length + 1), track.values, linewidth=1.2, drawstyle="steps-mid")
        return
    colours = ["whitesmoke" if name == "-" else colormaps["tab10"](k % 10) for k, name in enumerate(track.classes)]
    edges = (0.5, length + 0.5, 0, 1)
    shown = {"cmap": ListedColormap(colours), "vmin": -0.5, "vmax": len(colours) - 0.5, "interpolation": "nearest"}
    axes.imshow(track.values[None].astype(np.int64), aspect="auto", extent=edges, **shown)
    axes.set_yticks([])
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, track.classes, strict=True)]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), ncols=3, frameon=False, fontsize="small")


def _shorten(title: str) -> str:
    return title if len(title) <= _TITLE else f"{title[: _TITLE - 1]}\N{HORIZONTAL ELLIPSIS}"


def _save(figure: Any, path: Path, *, dpi: float) -> None:
    with atomic(path) as new, write_errors(path):
        figure.savefig(new, dpi=dpi, format="png")
