"""The head of a fine-tuned model of another program, as a task head of ours."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from protembed.checkpoints.foreign import tape_heads, transformers_heads
from protembed.checkpoints.foreign.checkpoint import Source, open_source
from protembed.checkpoints.foreign.conversion import Recipe
from protembed.checkpoints.foreign.head_form import Form, Meaning
from protembed.checkpoints.header import in_file
from protembed.checkpoints.native import digest
from protembed.errors import ModelError
from protembed.models.config import ModelCard
from protembed.models.head_config import HeadCard, HeadConfig
from protembed.models.heads.base import TaskHead
from protembed.models.heads.registry import make_head
from protembed.schema import build, said

FORMS = (*tape_heads.FORMS, *transformers_heads.FORMS)


def find_form(source: Source) -> Form | None:
    """Return the form of the head that a checkpoint holds beside its encoder, if it is a known one."""
    return next((form for form in FORMS if form.matches(source)), None)


def warn_of_head(source: Source, recipe: Recipe) -> None:
    """Tell that a trained head is left out of the model, and how it is run, if it can be."""
    names = recipe.names_of_heads()
    if not names:
        return
    runs = f"`--task {source.path}` runs it" if find_form(source) else "it is of a form that is not run"
    warnings.warn(f"{source.path}: the task head is left out of the model ({names[0]}, ...); {runs}", stacklevel=4)


def load_foreign_head(path: Path, encoder: ModelCard, *, device: torch.device) -> tuple[TaskHead, HeadCard]:
    """Load the head of a fine-tuned checkpoint; `encoder` is the card of the encoder that was loaded from it.

    Raises ModelError when the file has no head of a known form, or `encoder` is another file's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the encoder was loaded
        source = open_source(path)
    form = find_form(source)
    if form is None:
        raise ModelError(
            f"{path}: holds no task head of a known form",
            hint="Known: heads of `protembed train` (.safetensors); fine-tuned models of TAPE and ProteinLM's port; "
            "ESM and BERT of transformers for token and sequence classification.",
        )
    if not _is_same(Path(encoder.source), path):
        raise ModelError(
            f"{path}: this head was trained together with the encoder in the same file, not with {encoder.name}",
            hint=f"Use both: -m {path} --task {path}",
        )
    tensors = _read(source, form)
    meaning, config = _describe(source, form, tensors, encoder)
    head = make_head(config)
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(
            f"{path}: the weights of the head do not fit together", hint="Is the file complete?"
        ) from error
    card = _card(meaning, config, encoder, tensors, path)
    return head.to(device).requires_grad_(False).eval(), card


def _is_same(one: Path, other: Path) -> bool:
    """Tell whether two paths are one checkpoint: the same, or a folder and a file in it."""
    one, other = one.resolve(), other.resolve()
    return one == other or one.parent == other or other.parent == one


def _read(source: Source, form: Form) -> dict[str, Tensor]:
    """Read the tensors of a head, float32, under our names. Raises ModelError."""
    specs, rules = source.weights.specs, form.rules()
    names = {name for rule in rules for name in rule.sources}
    if missing := sorted(names - set(specs)):
        raise ModelError(f"{source.path}: {len(missing)} weights of the head are missing, the first is {missing[0]}")
    found = {name: source.weights.read(name) for name in names}
    found = {name: t.float() if t.is_floating_point() else t for name, t in found.items()}
    if wrong := next((name for name, t in found.items() if t.is_floating_point() and not t.isfinite().all()), None):
        raise ModelError(f"{source.path}: {wrong} holds NaN or infinite values", hint="The checkpoint is damaged.")
    try:
        return {rule.native: rule.combine([found[name] for name in rule.sources]).clone() for rule in rules}
    except (RuntimeError, IndexError) as error:
        raise ModelError(f"{source.path}: the weights of the head do not fit together ({said(str(error))})") from error


def _describe(
    source: Source, form: Form, tensors: Mapping[str, Tensor], encoder: ModelCard
) -> tuple[Meaning, HeadConfig]:
    """Read the sizes of a head off its tensors. Raises ModelError."""
    first, last = tensors[form.first], None if form.last is None else tensors[form.last]
    if first.ndim < 2 or (last is not None and not last.ndim):
        raise ModelError(f"{source.path}: the weights of the head do not fit together")
    meaning = form.meaning(source, 1 if last is None else len(last))
    fields = {
        "kind": meaning.kind,
        "design": form.design,
        "reads": form.reads,
        "layers": (encoder.encoder.n_layers,) if form.reads == "hidden" else (),
        "outputs": 1 if last is None else len(last),
        "d_input": first.shape[1],
        "hidden": len(first),
        "dropout": form.dropout,
    }
    return meaning, build(HeadConfig, fields, f"{source.path}: its head")


def _card(
    meaning: Meaning, config: HeadConfig, encoder: ModelCard, tensors: Mapping[str, Tensor], path: Path
) -> HeadCard:
    with in_file(path):
        return HeadCard(
            task=meaning.task,
            config=config,
            encoder=encoder.name,
            encoder_sha256=encoder.sha256,
            labels=meaning.labels,
            training={"source": encoder.source, **meaning.facts},
            license=encoder.license,
            sha256=digest(tensors),
        )
