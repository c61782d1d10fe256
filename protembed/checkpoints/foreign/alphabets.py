"""The alphabets of foreign models, as published."""

from collections.abc import Sequence
from dataclasses import replace

from protembed.errors import ModelError
from protembed.sequences.alphabet import Alphabet


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


def fit(alphabet: Alphabet, rows: int, vocabulary: Sequence[str] | None = None) -> Alphabet:
    """Give an alphabet the tokens of the vocabulary file, if there is one, and a name to every padding row.

    >>> fit(TAPE, 32).tokens[29:]
    ('Z', '<unused30>', '<unused31>')
    """
    tokens = alphabet.tokens if vocabulary is None else tuple(vocabulary)
    if len(tokens) > rows:
        raise ModelError(
            f"the vocabulary has {len(tokens)} tokens and the embedding {rows} rows",
            hint="Does the vocabulary file belong to these weights?",
        )
    return replace(alphabet, tokens=(*tokens, *(f"<unused{row}>" for row in range(len(tokens), rows))))
