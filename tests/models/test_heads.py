"""Task heads: no leak between proteins, the right input, losses, and the file that a head lives in."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from protembed.checkpoints.head_arrays import read_head_card
from protembed.checkpoints.head_files import load_head, round_weights, save_head
from protembed.errors import ModelError
from protembed.models.config import ModelCard
from protembed.models.head_config import Design, HeadCard, HeadConfig, Kind, Reads
from protembed.models.heads.base import TaskHead, along_chain
from protembed.models.heads.contact import AttentionContactHead
from protembed.models.heads.registry import make_head
from protembed.models.heads.run import attention_inputs, design_head, lay_out, read_inputs, run_heads
from protembed.models.heads.sequence import RunningScale
from protembed.models.packing import Packed
from protembed.models.pretrained_heads import ContactHead
from protembed.models.protein_model import ProteinModel
from tests.conftest import SEQUENCES

CPU = torch.device("cpu")
PROTEINS = [sequence[:length] for sequence, length in zip(SEQUENCES.values(), (30, 2, 17, 1, 44, 9), strict=True)]
SHAPES: list[tuple[Kind, Design, Reads | None]] = [
    ("residue_classes", "compact", None),
    ("residue_flags", "compact", None),
    ("residue_values", "compact", "residue"),
    ("residue_classes", "tape", None),
    ("residue_classes", "transformers", None),
    ("sequence_class", "compact", None),
    ("sequence_value", "compact", "residue"),
    ("sequence_class", "tape", None),
    ("sequence_class", "transformers", None),
    ("contacts", "compact", None),
    ("contacts", "pair", None),
    ("contacts", "pair", "residue"),
    ("contacts", "tape", None),
    ("contacts", "tape", "residue"),
    ("contacts", "proteinlm", None),
]


@pytest.fixture(scope="module")
def pooled(model: ProteinModel) -> ProteinModel:
    """The shared model with a vector of the protein, which TAPE's sequence heads read."""
    other = ProteinModel(replace(model.card, pooler="first"))
    other.load_state_dict(model.state_dict())
    return other.eval()


def head_of(card: ModelCard, kind: Kind, design: Design = "compact", reads: Reads | None = None) -> TaskHead:
    """Make a head whose running statistics are not those of a fresh one."""
    torch.manual_seed(0)
    layers = (1, -1) if design == "compact" else (-1,)
    outputs = 3 if kind in ("residue_classes", "residue_flags", "sequence_class") else 1
    head = make_head(design_head(card, kind, outputs=outputs, design=design, reads=reads, layers=layers, hidden=16))
    with torch.no_grad():
        for name, buffer in head.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.2 * (torch.rand(buffer.shape) - 0.5))
    return head.requires_grad_(False).eval()


def tokens_of(model: ProteinModel, sequences: list[str]) -> tuple[Tensor, Packed]:
    encoded = [torch.from_numpy(model.card.alphabet.encode(sequence)) for sequence in sequences]
    return torch.cat(encoded), Packed([len(tokens) for tokens in encoded])


@pytest.mark.parametrize(("kind", "design", "reads"), SHAPES)
def test_a_protein_alone_equals_itself_in_any_batch(
    pooled: ProteinModel, kind: Kind, design: Design, reads: Reads | None
) -> None:
    head = head_of(pooled.card, kind, design, reads)
    together = run_heads(pooled, {"x": head}, *tokens_of(pooled, PROTEINS))["x"]
    assert len(together) == len(PROTEINS)
    for sequence, output in zip(PROTEINS, together, strict=True):
        alone = run_heads(pooled, {"x": head}, *tokens_of(pooled, [sequence]))["x"][0]
        torch.testing.assert_close(output, alone, atol=1e-5, rtol=0)
        length = len(sequence)
        expected = {"residue": (length, head.config.outputs), "sequence": (head.config.outputs,)}
        assert output.shape == expected.get(kind.partition("_")[0], (length, length))
    spread = torch.cat([output.flatten() for output in together]).std()
    assert spread > 1e-3, "a constant would pass, too"


def test_all_heads_in_one_pass_equal_each_on_its_own(pooled: ProteinModel) -> None:
    heads = {str(number): head_of(pooled.card, *shape) for number, shape in enumerate(SHAPES)}
    batch = tokens_of(pooled, PROTEINS)
    together = run_heads(pooled, heads, *batch)
    for name, head in heads.items():
        for one, other in zip(together[name], run_heads(pooled, {name: head}, *batch)[name], strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_convolution_sees_zeros_beyond_both_ends() -> None:
    convolution = torch.nn.Conv1d(4, 5, 7, padding=3)
    proteins = [torch.randn(length, 4) for length in (1, 2, 9, 30)]
    found = along_chain(convolution, torch.cat(proteins), Packed([len(x) for x in proteins]))
    expected = torch.cat([convolution(x.T[None])[0].T for x in proteins])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_running_scale_follows_its_input() -> None:
    scale, generator = RunningScale(3), torch.Generator().manual_seed(0)
    spread, centre = torch.tensor([1e-3, 1.0, 30]), torch.tensor([0.5, -2, 0])
    for size in (1, 2, 7) * 100:
        scale(centre + spread * torch.randn(size, 3, generator=generator))
    found = scale.eval()(centre + spread * torch.randn(5000, 3, generator=generator))
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(3), atol=0.2, rtol=0)
    torch.testing.assert_close(found.std(dim=0), torch.ones(3), atol=0.25, rtol=0)
    before = scale.running_mean.clone()
    scale(torch.ones(1, 3))
    assert torch.equal(scale.running_mean, before), "statistics stand still after training"


def test_weights_are_rounded_and_statistics_are_not(model: ProteinModel, tmp_path: Path) -> None:
    head = head_of(model.card, "sequence_class")
    head.pooled_scale.running_var.fill_(1e-7)  # type: ignore[union-attr, operator]
    round_weights(head, torch.float16)
    save_head(head, card_for(model.card, head.config), tmp_path / "x.safetensors", dtype=torch.float16)
    loaded, _ = load_head(tmp_path / "x.safetensors", device=CPU)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, head.state_dict()[name]), name


def test_attention_head_is_the_contact_regression(model: ProteinModel) -> None:
    other = ProteinModel(replace(model.card, contact_head=True))
    other.load_state_dict({**other.state_dict(), **model.state_dict()})
    assert isinstance(other.contact_head, ContactHead)
    head = head_of(other.card, "contacts")
    assert isinstance(head, AttentionContactHead)
    head.regression.load_state_dict(other.contact_head.regression.state_dict())
    tokens, layout = tokens_of(other, [PROTEINS[0]])
    with torch.inference_mode():
        (found,) = run_heads(other.eval(), {"x": head}, tokens, layout)["x"]
        torch.testing.assert_close(found.sigmoid(), other.contacts(tokens), atol=1e-6, rtol=0)


def test_attention_head_for_training_equals_that_for_use(model: ProteinModel) -> None:
    head = head_of(model.card, "contacts")
    tokens, layout = tokens_of(model, PROTEINS)
    with torch.inference_mode():
        whole = head(attention_inputs(model, tokens, layout), layout)
        for one, other in zip(whole, run_heads(model, {"x": head}, tokens, layout)["x"], strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_twin_reads_residues_and_nothing_of_the_encoder(model: ProteinModel) -> None:
    head = head_of(model.card, "residue_classes", reads="residue")
    other = ProteinModel(model.card)
    other.initialise(5)
    batch = tokens_of(model, PROTEINS)
    for one, same in zip(*(run_heads(m, {"x": head}, *batch)["x"] for m in (model, other)), strict=True):
        assert torch.equal(one, same)
    assert read_inputs(model, head.config, *batch, {}).sum(dim=1).eq(1).all()


def test_layers_are_read_side_by_side(model: ProteinModel) -> None:
    config = design_head(model.card, "residue_classes", outputs=3, layers=(0, -1))
    assert (config.layers, config.d_input) == ((0, 2), 64)
    tokens, layout = tokens_of(model, PROTEINS)
    hidden = model.encoder(tokens, layout, {0, 2})
    inputs = read_inputs(model, config, tokens, layout, hidden)
    assert torch.equal(inputs, torch.cat((hidden[0], hidden[2]), dim=1))


def test_loss_counts_only_what_counts(model: ProteinModel) -> None:
    outputs = torch.tensor([[2.0, 0, 0], [0, 3.0, 0], [9.0, 0, 0]])
    targets, counts = torch.tensor([0, 0, 1]), torch.tensor([True, True, False])
    head = head_of(model.card, "residue_classes")
    first, second = -torch.tensor([2.0, 0]) + torch.logsumexp(outputs[:2], dim=1)
    assert head.loss(outputs, targets, counts) == pytest.approx(float(first + second) / 2)
    weights = torch.tensor([1.0, 5, 1])
    assert head.loss(outputs, targets, counts, weights) == pytest.approx(float(first + second) / 2)
    mixed = head.loss(outputs, torch.tensor([0, 1, 1]), counts, weights)
    right = -torch.tensor([2.0, 3.0]) + torch.logsumexp(outputs[:2], dim=1)
    assert mixed == pytest.approx(float(right[0] + 5 * right[1]) / 6)


def test_loss_of_the_other_kinds(model: ProteinModel) -> None:
    values = head_of(model.card, "sequence_value")
    loss = values.loss(torch.tensor([[1.0], [4.0]]), torch.tensor([2.0, 0]), torch.tensor([True, False]))
    assert loss == pytest.approx(1.0)
    flags = head_of(model.card, "residue_flags")
    loss = flags.loss(torch.zeros(2, 3), torch.tensor([[1, 0, 0], [0, 0, 0]]), torch.tensor([True, False]))
    assert loss == pytest.approx(np.log(2))
    contacts = head_of(model.card, "contacts")
    maps = [torch.zeros(2, 2), torch.full((1, 1), 50.0)]
    counts = [torch.tensor([[False, True], [False, False]]), torch.tensor([[True]])]
    loss = contacts.loss(maps, [torch.ones(2, 2), torch.ones(1, 1)], counts)
    assert loss == pytest.approx(np.log(2) / 2)


@pytest.mark.parametrize(("kind", "design", "reads"), [shape for shape in SHAPES if shape[0] != "contacts"])
def test_heads_learn(pooled: ProteinModel, kind: Kind, design: Design, reads: Reads | None) -> None:
    head = head_of(pooled.card, kind, design, reads).requires_grad_(True).train()
    tokens, layout = tokens_of(pooled, list(SEQUENCES.values()))
    hidden = pooled.encoder(tokens, layout, {1, 2})
    x = read_inputs(pooled, head.config, tokens, layout, hidden).detach()
    flags = [torch.ones(len(sequence), 2, dtype=torch.bool) for sequence in SEQUENCES.values()]
    inner = lay_out(flags, pooled.card.alphabet)
    assert inner.shape == (len(tokens), 2)
    assert tokens[~inner[:, 0]].tolist() == [2, 3] * len(SEQUENCES)
    rows = len(layout.sizes) if kind.startswith("sequence") else len(tokens)
    target = torch.arange(rows) % 3 if kind == "sequence_class" else tokens % 3
    if kind.endswith("value") or kind == "residue_values":
        target = target[:rows].float()
    elif kind == "residue_flags":
        target = torch.stack([target == number for number in range(3)], dim=1)
    counts = torch.ones(rows, dtype=torch.bool) if kind.startswith("sequence") else inner[:, 0]
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = head.loss(head(x, layout), target, counts)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_unknown_design_and_missing_pooler(model: ProteinModel) -> None:
    with pytest.raises(ModelError, match="no head of design 'proteinlm' for sequence_class") as caught:
        head_of(model.card, "sequence_class", "proteinlm")
    assert "compact, tape" in caught.value.hint
    with pytest.raises(ModelError, match="tiny has no pooler"):
        run_heads(model, {"x": head_of(model.card, "sequence_class", "tape")}, *tokens_of(model, PROTEINS))


def card_for(model: ModelCard, config: HeadConfig) -> HeadCard:
    return HeadCard(
        task="ss3",
        config=config,
        encoder=model.name,
        encoder_sha256=model.sha256 or "0" * 64,
        labels=tuple("HEC"),
        temperature=1.5,
        training={"data": "made up", "accuracy": 0.5},
        license="Apache-2.0",
    )


@pytest.fixture
def head_path(model: ProteinModel, tmp_path: Path) -> Path:
    head = head_of(model.card, "residue_classes")
    save_head(head, card_for(model.card, head.config), tmp_path / "head.safetensors")
    return tmp_path / "head.safetensors"


def test_file_round_trip(model: ProteinModel, head_path: Path) -> None:
    head, card = load_head(head_path, device=CPU)
    expected = head_of(model.card, "residue_classes")
    assert card == replace(card_for(model.card, expected.config), sha256=card.sha256)
    assert read_head_card(head_path) == card
    assert len(card.sha256) == 64
    assert not any(parameter.requires_grad for parameter in head.parameters())
    batch = tokens_of(model, PROTEINS)
    for one, other in zip(*(run_heads(model, {"x": h}, *batch)["x"] for h in (head, expected)), strict=True):
        assert torch.equal(one, other)
    assert list(head_path.parent.iterdir()) == [head_path]


def test_another_encoder_is_refused(model: ProteinModel, head_path: Path) -> None:
    card = read_head_card(head_path)
    card.require_encoder(replace(model.card, sha256=card.encoder_sha256))
    with pytest.raises(ModelError, match=r"for ss3 belongs to the encoder tiny \(000000000000\.\.\.\), not to other"):
        card.require_encoder(replace(model.card, name="other", sha256="1" * 64))


def test_damaged_files(head_path: Path, model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a task head"):
        load_head(model_file, device=CPU)
    content = bytearray(head_path.read_bytes())
    content[-1] ^= 1
    (tmp_path / "bent.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="do not match their checksum"):
        load_head(tmp_path / "bent.safetensors", device=CPU)
    (tmp_path / "cut.safetensors").write_bytes(content[:2000])
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        load_head(tmp_path / "cut.safetensors", device=CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "2"}, "another version"),
        ({"later": 1}, "fields that this version does not know: later"),
        ({"labels": None}, "the head's card cannot be read"),
        ({"config": {"kind": "residue_clarses", "outputs": 3, "d_input": 32, "layers": [2]}}, "kind is 'residue_cl"),
    ],
)
def test_cards_that_cannot_be_read(head_path: Path, change: dict[str, object], message: str) -> None:
    content = head_path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    card = {**json.loads(header["__metadata__"]["protembed_head"]), **change}
    header["__metadata__"]["protembed_head"] = json.dumps(card)
    new = json.dumps(header).encode()
    head_path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + size :])
    with pytest.raises(ModelError, match=message):
        load_head(head_path, device=CPU)


def test_a_bit_that_flipped_in_a_card(head_path: Path) -> None:
    content = head_path.read_bytes()
    head_path.write_bytes(content.replace(b'{\\"format', b'[\\"format'))
    with pytest.raises(ModelError, match=r"head.safetensors: the head's card cannot be read \(.*delimiter"):
        read_head_card(head_path)


def test_weights_of_another_shape(model: ProteinModel, tmp_path: Path) -> None:
    head = head_of(model.card, "residue_classes")
    head.config = replace(head.config, hidden=8)
    save_head(head, card_for(model.card, head.config), tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="do not fit the head's card"):
        load_head(tmp_path / "x.safetensors", device=CPU)
