"""Text of unknown origin, made fit for a message."""

_LONGEST = 200


def printable(text: str) -> str:
    r"""Return text for a message: control characters escaped, and not longer than a line.

    >>> printable("a\x1b[31m")
    'a\\x1b[31m'
    """
    if text.isprintable() and len(text) <= _LONGEST:
        return text
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."
