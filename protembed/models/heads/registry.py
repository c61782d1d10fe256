"""All task heads by what they predict for and by design.

Every head sees one protein at a time: what is beside it in the batch does not change its result. Special tokens are
tokens like others; who asks for residues leaves their rows out.
"""

from protembed.errors import ModelError
from protembed.models.head_config import Design, HeadConfig
from protembed.models.heads.base import TaskHead
from protembed.models.heads.contact import AttentionContactHead, PairContactHead, ProteinLMContactHead, TapeContactHead
from protembed.models.heads.residue import CompactResidueHead, TapeResidueHead, TransformersResidueHead
from protembed.models.heads.sequence import CompactSequenceHead, TapeSequenceHead, TransformersSequenceHead

HEADS: dict[tuple[str, Design], type[TaskHead]] = {
    ("residue", "compact"): CompactResidueHead,
    ("residue", "tape"): TapeResidueHead,
    ("residue", "transformers"): TransformersResidueHead,
    ("sequence", "compact"): CompactSequenceHead,
    ("sequence", "tape"): TapeSequenceHead,
    ("sequence", "transformers"): TransformersSequenceHead,
    ("contacts", "compact"): AttentionContactHead,
    ("contacts", "pair"): PairContactHead,
    ("contacts", "tape"): TapeContactHead,
    ("contacts", "proteinlm"): ProteinLMContactHead,
}
"""Head modules by what they predict for (the first word of a kind) and their design."""


def make_head(config: HeadConfig) -> TaskHead:
    """Build the head that a configuration describes, with torch's random weights. Raises ModelError."""
    key = (config.kind.partition("_")[0], config.design)
    if key not in HEADS:
        known = ", ".join(design for kind, design in HEADS if kind == key[0])
        raise ModelError(f"there is no head of design {config.design!r} for {config.kind}", hint=f"Known: {known}.")
    return HEADS[key](config)
