"""The shapes of a head's weights, from its configuration alone: what a file must hold before anything reads it."""

from collections.abc import Callable, Mapping

from protembed.models.head_config import HeadConfig

Shapes = dict[str, tuple[int, ...]]


def head_shapes(config: HeadConfig) -> Shapes | None:
    """Return the shape of every tensor of a head by name; None for a design that is known to torch alone.

    >>> head_shapes(HeadConfig(kind="contacts", design="tape", outputs=1, d_input=8))
    {'products.weight': (1, 8), 'products.bias': (1,)}
    """
    make = _SHAPES.get((config.kind.partition("_")[0], config.design))
    return None if make is None else make(config)


def _linear(name: str, rows: int, *columns: int) -> Shapes:
    return {f"{name}.weight": (rows, *columns), f"{name}.bias": (rows,)}


def _standard(name: str, width: int) -> Shapes:
    return {f"{name}.running_mean": (width,), f"{name}.running_var": (width,), f"{name}.num_batches_tracked": ()}


def _with_neighbours(config: HeadConfig) -> Shapes:
    inward = _linear("inward", config.hidden, config.d_input)
    mix = _linear("mix", config.hidden, config.hidden, config.kernel)
    return _standard("scale", config.d_input) | inward | mix


def _residue_compact(config: HeadConfig) -> Shapes:
    return _with_neighbours(config) | _linear("outward", config.outputs, config.hidden)


def _residue_tape(config: HeadConfig) -> Shapes:
    norm = _standard("norm", config.d_input) | {f"norm.{part}": (config.d_input,) for part in ("weight", "bias")}
    first = _linear("first", config.hidden, config.d_input, 5)
    return norm | first | _linear("second", config.outputs, config.hidden, 3)


def _sequence_compact(config: HeadConfig) -> Shapes:
    width = config.hidden
    scale = {f"pooled_scale.{name}": (2 * width,) for name in ("running_mean", "running_var")}
    return {
        **_standard("scale", config.d_input),
        **_linear("inward", width, config.d_input),
        **_linear("attention", 1, width),
        **scale,
        "pooled_scale.batches": (),
        **_linear("middle", width, 2 * width),
        **_linear("outward", config.outputs, width),
    }


def _two_layers(config: HeadConfig) -> Shapes:
    return _linear("first", config.hidden, config.d_input) | _linear("second", config.outputs, config.hidden)


def _contacts_pair(config: HeadConfig) -> Shapes:
    width, channels = config.hidden, 8
    shapes = _with_neighbours(config) | _linear("left", width, width) | _linear("right", width, width)
    shapes["separation.weight"] = (41, channels)
    for name in ("first", "second"):
        shapes |= _linear(name, channels, channels, 3, 3)
    return shapes | _linear("outward", 1, channels)


_SHAPES: Mapping[tuple[str, str], Callable[[HeadConfig], Shapes]] = {
    ("residue", "compact"): _residue_compact,
    ("residue", "tape"): _residue_tape,
    ("residue", "transformers"): lambda config: _linear("outward", config.outputs, config.d_input),
    ("sequence", "compact"): _sequence_compact,
    ("sequence", "tape"): _two_layers,
    ("sequence", "transformers"): _two_layers,
    ("contacts", "compact"): lambda config: _linear("regression", 1, config.d_input),
    ("contacts", "pair"): _contacts_pair,
    ("contacts", "tape"): lambda config: _linear("products", 1, config.d_input),
}
