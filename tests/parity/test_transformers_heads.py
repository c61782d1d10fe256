"""Fine-tuned ESM and BERT models of transformers: their classifiers run as task heads."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import protembed
from protembed.checkpoints.foreign import load_foreign
from protembed.checkpoints.foreign.alphabets import PROTBERT
from protembed.checkpoints.foreign.heads import load_foreign_head
from protembed.checkpoints.head_files import load_head, save_head
from protembed.errors import ModelError
from tests.conftest import GOLDEN, Run, write_fasta
from tests.parity.test_transformers import ESM1B, ESM2, esm, randomise

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
TOKENS = GOLDEN / "esm2_token_classification"
SEQUENCE = "MKTAYIAKQRQISFVKSH"

pytestmark = pytest.mark.filterwarnings("ignore:.*task head is left out")


def softmax(logits: Any) -> Any:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_token_classifier_gives_the_probabilities_of_the_original(run: Run, tmp_path: Path) -> None:
    model = protembed.load(TOKENS)
    with np.load(TOKENS / "expected.npz") as arrays:
        logits = {name: arrays[f"{name}.logits"] for name in ("p2", "pa")}
        tokens = {name: arrays[f"{name}.tokens"].flatten()[1:-1] for name in logits}
    alphabet = load_foreign(TOKENS, device=CPU).card.alphabet
    sequences = {name: "".join(alphabet.tokens[row] for row in rows) for name, rows in tokens.items()}
    for name, sequence in sequences.items():
        expected = softmax(logits[name][1:-1] if len(logits[name]) > len(sequence) else logits[name])
        for task in (TOKENS, TOKENS / "model.safetensors"):
            found = protembed.load(TOKENS).predict([sequence], task=str(task))[0]
            np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
            assert found.labels == "".join("HEC"[best] for best in expected.argmax(axis=1))
    fasta = write_fasta(tmp_path / "in.fasta", sequences)
    result = run("predict", fasta, "-m", TOKENS, "--task", TOKENS)
    assert result.returncode == 0, result.stderr
    labels = "".join(line.split("\t")[5] for line in result.stdout.splitlines()[1:])
    assert labels == "".join(model.predict([sequence], task=str(TOKENS))[0].labels for sequence in sequences.values())
    assert f"`--task {TOKENS}` runs it" in result.stderr


def encoded(path: Path, sequence: str) -> torch.Tensor:
    return torch.from_numpy(load_foreign(path, device=CPU).card.alphabet.encode(sequence))[None]


@pytest.mark.parametrize("form", [ESM2, ESM1B], ids=["esm2", "esm1b"])
@pytest.mark.parametrize("labels", [{0: "inside", 1: "outside", 2: "across"}, {0: "value"}], ids=["classes", "value"])
def test_sequence_classifier_of_esm(form: dict[str, Any], labels: dict[int, str], tmp_path: Path) -> None:
    original = esm("EsmForSequenceClassification", **form, id2label=labels)
    original.save_pretrained(tmp_path)
    with torch.inference_mode():
        logits = original(encoded(tmp_path, SEQUENCE)).logits[0].numpy()
    found = protembed.load(tmp_path).predict([SEQUENCE], task=str(tmp_path))[0]
    if len(labels) == 1:
        np.testing.assert_allclose(found.values, logits[0], atol=1e-5)
    else:
        np.testing.assert_allclose(found.probabilities, softmax(logits), atol=1e-5)
        assert found.labels == labels[int(logits.argmax())]


@pytest.mark.parametrize("kind", ["BertForTokenClassification", "BertForSequenceClassification"])
def test_classifiers_of_bert(kind: str, tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        id2label={0: "a", 1: "b", 2: "c"},
    )
    original = getattr(transformers, kind)(config).eval()
    randomise(original)
    original.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(PROTBERT.tokens))
    with torch.inference_mode():
        logits = original(encoded(tmp_path, SEQUENCE)).logits[0].numpy()
    expected = softmax(logits[1:-1] if "Token" in kind else logits)
    found = protembed.load(tmp_path).predict([SEQUENCE], task=str(tmp_path))[0]
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)


def test_long_names_of_residue_classes_become_letters_that_the_card_explains(tmp_path: Path) -> None:
    esm("EsmForTokenClassification", **ESM2, id2label={0: "LABEL_0", 1: "helix", 2: "E"}).save_pretrained(tmp_path)
    model = load_foreign(tmp_path, device=CPU)
    head, card = load_foreign_head(tmp_path, model.card, device=CPU)
    assert card.labels == ("0", "1", "2")
    assert card.training["labels"] == "0 = LABEL_0, 1 = helix, 2 = E"
    save_head(head, card, tmp_path / "head.safetensors")
    assert load_head(tmp_path / "head.safetensors", device=CPU)[1] == card.__class__(
        **{**card.__dict__, "sha256": load_head(tmp_path / "head.safetensors", device=CPU)[1].sha256}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"problem_type": "multi_label_classification"},
            "3 outputs for 'multi_label_class.*, which is not run",
        ),
        ({"problem_type": "regression"}, "3 outputs for 'regression', which is not run"),
        ({"id2label": {"0": "a\tb", "1": "b", "2": "c"}}, "does not fit into a line of a table"),
        ({"id2label": [1, 2]}, "id2label is .*, not an object"),
    ],
)
def test_heads_that_are_not_run_say_so(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    esm("EsmForSequenceClassification", **ESM2, num_labels=3).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    model = load_foreign(tmp_path, device=CPU)
    with pytest.raises(ModelError, match=message):
        load_foreign_head(tmp_path, model.card, device=CPU)


def test_a_head_of_unknown_form_is_not_said_to_run(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((TOKENS / name).read_bytes())
    state = load_file(TOKENS / "model.safetensors")
    for part in ("weight", "bias"):
        state[f"classifier.0.{part}"] = state.pop(f"classifier.{part}")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="left out of the model.*of a form that is not run"):
        model = load_foreign(tmp_path, device=CPU)
    with pytest.raises(ModelError, match="holds no task head of a known form"):
        load_foreign_head(tmp_path, model.card, device=CPU)


def test_the_head_of_another_file_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = load_foreign(GOLDEN / "esm2_stored_frequencies", device=CPU)
    with pytest.raises(ModelError, match="trained together with the encoder in the same file"):
        load_foreign_head(TOKENS, other.card, device=CPU)
