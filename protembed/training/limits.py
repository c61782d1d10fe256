"""Limits of the numbers in a configuration, for the sections that hold them."""

from protembed.errors import UsageError


def at_least(section: object, least: int, *names: str) -> None:
    """Raise UsageError unless all these fields are `least` or more; NaN is not.

    >>> from protembed.training.pretrain.config import TrainSection
    >>> at_least(TrainSection(out="run", steps=5), 1, "steps")
    """
    for name in names:
        if not (value := getattr(section, name)) >= least:
            raise UsageError(f"{name} is {value}, not {least} or more")


def at_most(section: object, most: float, *names: str) -> None:
    """Raise UsageError unless all these fields are `most` or less, or not given (None); NaN is not."""
    for name in names:
        value = getattr(section, name)
        if value is not None and not value <= most:
            raise UsageError(f"{name} is {value}, not {most:,} or less")


def above_zero(section: object, *names: str) -> None:
    """Raise UsageError unless all these fields are above 0."""
    for name in names:
        if not (value := getattr(section, name)) > 0:
            raise UsageError(f"{name} is {value}, not above 0")


def share(section: object, *names: str) -> None:
    """Raise UsageError unless all these fields are from 0 to 1."""
    for name in names:
        if not 0 <= (value := getattr(section, name)) <= 1:
            raise UsageError(f"{name} is {value}, not between 0 and 1")
