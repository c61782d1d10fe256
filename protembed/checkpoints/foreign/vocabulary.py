"""The tokens of a foreign model in the order of their rows, from the files beside its weights."""

from pathlib import Path
from typing import Any

from protembed.errors import ModelError
from protembed.schema import read_object, said

_BYTES = 16 * 2**20
_ROWS = 2**20


def read_vocabulary(folder: Path) -> tuple[str, ...] | None:
    """Read the tokens from vocab.txt, or from tokenizer.json with what was added to it; None when neither is there.

    Raises ModelError for a file that cannot be read, or does not say which row a token has.
    """
    rows = _from_text(folder / "vocab.txt")
    if rows is None:
        rows = _from_tokenizer(folder / "tokenizer.json")
    if rows is None:
        return None
    if (added := folder / "added_tokens.json").is_file():
        _add(rows, read_object(added), added)
    return _in_order(rows, folder)


def _from_text(path: Path) -> dict[str, int] | None:
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _BYTES:
            raise ModelError(f"{path}: has {path.stat().st_size:,} bytes, more than {_BYTES:,}: no vocabulary")
        tokens = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read as text ({error})") from error
    rows = {token: row for row, token in enumerate(tokens)}
    if len(rows) < len(tokens):
        repeated = next(token for row, token in enumerate(tokens) if rows[token] != row)
        raise ModelError(f"{path}: the token {said(repeated)} has two rows")
    return rows


def _from_tokenizer(path: Path) -> dict[str, int] | None:
    if not path.is_file():
        return None
    values = read_object(path)
    model = values.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict):
        raise ModelError(
            f"{path}: does not say which row a token has: its vocabulary is {said(vocabulary)}",
            hint="Put the model's vocab.txt beside it, a token per line in the order of the rows.",
        )
    rows: dict[str, int] = {}
    _add(rows, vocabulary, path)
    added = values.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise ModelError(f"{path}: added_tokens is {said(added)}, not a list of tokens")
    _add(rows, {str(token.get("content")): token.get("id") for token in added}, path)
    return rows


def _add(rows: dict[str, int], more: dict[str, Any], path: Path) -> None:
    for token, row in more.items():
        if type(row) is not int or not 0 <= row < _ROWS:
            raise ModelError(f"{path}: the token {said(token)} has the row {said(row)}")
        if rows.setdefault(token, row) != row:
            raise ModelError(f"{path}: the token {said(token)} has two rows, {rows[token]} and {row}")


def _in_order(rows: dict[str, int], folder: Path) -> tuple[str, ...]:
    """Return the tokens by row; a row without a token is one that was left free."""
    tokens = {row: token for token, row in rows.items()}
    if len(tokens) < len(rows):
        row = next(row for token, row in rows.items() if tokens[row] != token)
        raise ModelError(f"{folder}: the vocabulary has two tokens in row {row}")
    last = max(tokens, default=-1)
    return tuple(tokens.get(row, f"<free{row}>") for row in range(last + 1))
