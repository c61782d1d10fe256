"""The alphabets of foreign models, as published, and whether a vocabulary is one of residues at all."""

import re
from collections.abc import Sequence
from dataclasses import replace

from protembed.errors import ModelError
from protembed.sequences.alphabet import STANDARD_RESIDUES, Alphabet


def _alphabet(tokens: str, *, start: str, end: str, mask: str, padding: str, unknown: str = "X") -> Alphabet:
    return Alphabet(tokens=tuple(tokens.split()), start=start, end=end, mask=mask, padding=padding, unknown=unknown)


ESM = _alphabet(
    "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>",
    start="<cls>",
    end="<eos>",
    mask="<mask>",
    padding="<pad>",
)
ESMC = replace(ESM, tokens=tuple("|" if token == "<null_1>" else token for token in ESM.tokens))
TAPE = _alphabet(
    "<pad> <mask> <cls> <sep> <unk> A B C D E F G H I K L M N O P Q R S T U V W X Y Z",
    start="<cls>",
    end="<sep>",
    mask="<mask>",
    padding="<pad>",
)
MEGATRON = _alphabet(
    "[PAD] [MASK] [CLS] [SEP] [UNK] [unused1] A B C D E F G H I K L M N O P Q R S T U V W X Y Z",
    start="[CLS]",
    end="[SEP]",
    mask="[MASK]",
    padding="[PAD]",
)
PROTBERT = _alphabet(
    "[PAD] [UNK] [CLS] [SEP] [MASK] L A G V E S I K R D T P N Q F Y M H C W X U B Z O",
    start="[CLS]",
    end="[SEP]",
    mask="[MASK]",
    padding="[PAD]",
)
AMPLIFY = _alphabet(
    "<pad> <unk> <mask> <bos> <eos> | L A G V S E R T I D P K Q N F Y M H W C B",
    start="<bos>",
    end="<eos>",
    mask="<mask>",
    padding="<pad>",
    unknown="<unk>",
)

_SPECIAL = re.compile(r"<.*>|\[.*\]|\W|_")
_PADDED_TO = 8
_MOST_PADDING = 128
_SAPROT = "that of SaProt, whose letters are pairs of a residue and a 3Di state"
_NUCLEOTIDES = "one of nucleotides"
_WORDS = "one of words or word pieces"


def fit(
    alphabet: Alphabet, rows: int, vocabulary: Sequence[str] | None = None, *, padded: Sequence[int] = ()
) -> Alphabet:
    """Give an alphabet the tokens of the vocabulary file, if there is one, and a name to every padding row.

    Without a vocabulary file the embedding must have a row for every token of the alphabet and no more, or as many as
    `padded` allows: more rows are another alphabet. Raises ModelError for a vocabulary that is not of residues.

    >>> fit(TAPE, 32, padded=(32,)).tokens[29:]
    ('Z', '<unused30>', '<unused31>')
    """
    tokens = alphabet.tokens if vocabulary is None else tuple(vocabulary)
    require_residues(tokens)
    if len(tokens) > rows:
        raise ModelError(
            f"the vocabulary has {len(tokens)} tokens and the embedding {rows} rows",
            hint="Does the vocabulary file belong to these weights?",
        )
    allowed = (len(tokens), *padded)
    if rows not in allowed and (vocabulary is None or not _is_padding(rows, len(tokens))):
        source = "the alphabet of this kind of model" if vocabulary is None else "the vocabulary file"
        raise ModelError(
            f"the embedding has {rows:,} rows, and {source} {len(tokens)} tokens: its vocabulary is {_guess(rows)}",
            hint="Models over other letters than residues are not run. If it is one of residues, put its vocab.txt "
            "beside the weights.",
        )
    return replace(alphabet, tokens=(*tokens, *(f"<unused{row}>" for row in range(len(tokens), rows))))


def require_residues(tokens: Sequence[str]) -> None:
    """Raise ModelError unless every token is one letter or a special token, and the standard residues are there.

    >>> require_residues(["<cls>", "ACGTAC", "ACGTAG"])
    Traceback (most recent call last):
    protembed.errors.ModelError: the vocabulary is one of nucleotides, not of residues
    """
    words = [token for token in tokens if len(token) > 1 and not _SPECIAL.fullmatch(token)]
    absent = set(STANDARD_RESIDUES) - set(tokens)
    if not words and not absent:
        return
    letters = {token for token in tokens if len(token) == 1 and token.isalpha()}
    if words and all(re.fullmatch(r"[A-Z#][a-z#]", word) for word in words):
        kind = _SAPROT
    elif all(set(word) <= set("ACGTUN") for word in words) and (words or letters <= set("ACGTUNacgtun")):
        kind = _NUCLEOTIDES
    elif words:
        kind = f"{_WORDS} ({words[0]!r})"
    else:
        kind = f"without a row for {', '.join(sorted(absent))}"
    raise ModelError(
        f"the vocabulary is {kind}, not of residues", hint="Models over other letters than residues are not run."
    )


def _is_padding(rows: int, tokens: int) -> bool:
    """Tell whether the rows beyond the tokens are what programs add to make matrices fit a GPU."""
    return rows % _PADDED_TO == 0 and rows - tokens < _MOST_PADDING


def _guess(rows: int) -> str:
    """Name the kind of vocabulary that has so many rows."""
    if rows == 446:
        return _SAPROT
    if any(4**size <= rows <= 4**size + 32 for size in range(3, 9)):
        return f"{_NUCLEOTIDES}, in words of several letters"
    return _WORDS if rows > 1000 else "another one"
