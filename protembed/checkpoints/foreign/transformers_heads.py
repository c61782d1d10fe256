"""Fine-tuned ESM and BERT models of transformers: the forms of their classifiers."""

from collections.abc import Mapping, Sequence

from protembed.checkpoints.foreign.checkpoint import Source
from protembed.checkpoints.foreign.conversion import Rule
from protembed.checkpoints.foreign.head_form import LETTERS, Form, Meaning, numbered, one
from protembed.errors import ModelError
from protembed.schema import check, said

_LINEAR = "classifier.weight"
_ESM_DENSE, _BERT_DENSE = "classifier.dense", "bert.pooler.dense"


def _is(source: Source, family: str, ending: str | None = None) -> bool:
    """Tell whether a checkpoint is of a family, and of a class with that ending of its name, if one is given."""
    if source.config.get("model_type") != family:
        return False
    written = source.config.get("architectures")
    names = written if isinstance(written, list) else []
    return ending is None or any(isinstance(name, str) and name.endswith(ending) for name in names)


def _is_token_classifier(source: Source) -> bool:
    known = _is(source, "esm") or _is(source, "bert", "ForTokenClassification")
    return known and _LINEAR in source.weights.specs


def _is_esm_sequence_classifier(source: Source) -> bool:
    return _is(source, "esm") and f"{_ESM_DENSE}.weight" in source.weights.specs


def _is_bert_sequence_classifier(source: Source) -> bool:
    known = _is(source, "bert", "ForSequenceClassification") and _LINEAR in source.weights.specs
    return known and f"{_BERT_DENSE}.weight" in source.weights.specs


def _linear(native: str, foreign: str) -> list[Rule]:
    return [one(f"{native}.{part}", f"{foreign}.{part}") for part in ("weight", "bias")]


def _two_layers(first: str, second: str) -> Sequence[Rule]:
    return [*_linear("first", first), *_linear("second", second)]


def _labels(source: Source, outputs: int) -> list[str] | None:
    """Return the names of the classes that config.json gives, if it names every one. Raises ModelError."""
    place = source.config_place
    names = check(source.config.get("id2label") or {}, Mapping[str, str | int], "id2label", place)
    if any(str(number) not in names for number in range(outputs)):
        return None
    found = [str(names[str(number)]) for number in range(outputs)]
    if wrong := next((name for name in found if not name.isprintable() or len(name) > 1000), None):
        raise ModelError(f"{place}: id2label has {said(wrong)}, which does not fit into a line of a table")
    return found


def _of_residues(source: Source, outputs: int) -> Meaning:
    """Tell classes of residues, or a value where there is one output; names that are no letters stand in the card."""
    if outputs == 1:
        return Meaning(kind="residue_values", task="residue_values")
    if outputs > len(LETTERS):
        raise ModelError(f"{source.path}: its head has {outputs} classes of residues, more than {len(LETTERS)}")
    names = _labels(source, outputs) or list(numbered(outputs))
    if all(len(name) == 1 for name in names) and len(set(names)) == outputs:
        return Meaning(kind="residue_classes", task="residue_classes", labels=tuple(names))
    letters = numbered(outputs)
    said_by = ", ".join(f"{letter} = {name}" for letter, name in zip(letters, names, strict=True))
    return Meaning(kind="residue_classes", task="residue_classes", labels=letters, facts={"labels": said_by})


def _of_proteins(source: Source, outputs: int) -> Meaning:
    """Tell a class of the protein, or a value, as transformers chooses its loss."""
    problem = source.config.get("problem_type") or ("regression" if outputs == 1 else "single_label_classification")
    if problem == "regression" and outputs == 1:
        return Meaning(kind="sequence_value", task="value")
    if problem != "single_label_classification":
        raise ModelError(
            f"{source.path}: its head has {outputs} outputs for {said(problem)}, which is not run",
            hint="Heads for one class or one value per protein, or for residues, are.",
        )
    names = _labels(source, outputs) or [str(number) for number in range(outputs)]
    return Meaning(kind="sequence_class", task="sequence_class", labels=tuple(names))


FORMS = (
    Form(
        matches=_is_token_classifier,
        design="transformers",
        reads="hidden",
        rules=lambda: _linear("outward", "classifier"),
        meaning=_of_residues,
        first="outward.weight",
        last="outward.weight",
    ),
    Form(
        matches=_is_esm_sequence_classifier,
        design="transformers",
        reads="hidden",
        rules=lambda: _two_layers(_ESM_DENSE, "classifier.out_proj"),
        meaning=_of_proteins,
        first="first.weight",
        last="second.weight",
    ),
    Form(
        matches=_is_bert_sequence_classifier,
        design="transformers",
        reads="hidden",
        rules=lambda: _two_layers(_BERT_DENSE, "classifier"),
        meaning=_of_proteins,
        first="first.weight",
        last="second.weight",
    ),
)
