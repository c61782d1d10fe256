"""How a head is optimised: clipping, schedule, decay, dropout, class weights, low rank; each by hand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protembed.backends.torch_backend import TorchBackend
from protembed.checkpoints import native as checkpoint
from protembed.checkpoints.head_files import load_head
from protembed.inference.evaluate import EvaluateOptions, Evaluation
from protembed.models.head_config import HeadConfig, Kind
from protembed.models.heads.registry import HEADS, make_head
from protembed.models.packing import Packed
from protembed.models.protein_model import ProteinModel
from protembed.sequences.alphabet import PROTEMBED, STANDARD_RESIDUES
from protembed.tasks import TASKS, own_task
from protembed.tasks.metrics import auc
from protembed.training.finetune.calibration import fit_temperature
from protembed.training.finetune.config import EncoderSection, TrainSection, load_task_config
from protembed.training.finetune.examples import Examples
from protembed.training.finetune.lora import LowRank, adapt, settle
from protembed.training.finetune.scoring import Answers, score
from protembed.training.finetune.setup import class_weights
from protembed.training.finetune.trainer import HeadTrainer
from protembed.training.finetune.weights import Weights
from tests.training.test_finetune import TOML, proteins, write_residues, write_targets

CPU = torch.device("cpu")


def small_head() -> nn.Module:
    torch.manual_seed(0)
    return make_head(HeadConfig(kind="residue_classes", outputs=3, d_input=4, hidden=8, kernel=3, layers=(1,)))


def weights_of(head: nn.Module, model: ProteinModel, steps: int = 20, **changes: object) -> Weights:
    return Weights(head, model, replace(TrainSection(out="x"), **changes), steps)  # type: ignore[arg-type]


@pytest.fixture
def encoder(model_file: Path) -> ProteinModel:
    """A model of one's own, for training changes it."""
    return checkpoint.load(model_file, device=CPU)


def groups(head: nn.Module) -> list[list[nn.Parameter]]:
    trained = list(head.parameters())
    return [[p for p in trained if p.ndim > 1], [p for p in trained if p.ndim == 1]]


def test_gradients_are_clipped(encoder: ProteinModel) -> None:
    head = small_head()
    trained = weights_of(head, encoder, clip=0.5)
    trained.update(1e3 * sum(p.square().sum() + p.sum() for p in head.parameters()))  # type: ignore[arg-type]
    for group in groups(head):
        norm = torch.linalg.vector_norm(torch.cat([p.grad.ravel() for p in group if p.grad is not None]))
        assert float(norm) == pytest.approx(0.5, rel=1e-4)
    trained.update(1e-6 * sum(p.sum() for p in head.parameters()))  # type: ignore[arg-type]
    assert all(torch.allclose(p.grad, torch.tensor(1e-6)) for p in head.parameters() if p.grad is not None)


def test_the_learning_rate_warms_up_and_falls_to_nothing(encoder: ProteinModel) -> None:
    head = small_head()
    encoder.encoder.requires_grad_(True)
    trained = weights_of(head, encoder, 20, learning_rate=0.3, encoder_learning_rate=0.07, warmup_share=0.2)
    seen, moved = [], []
    for _ in range(20):
        before = next(head.parameters()).detach().clone()
        total = sum((p.sum() for p in [*head.parameters(), *encoder.encoder.parameters()]), torch.tensor(0.0))
        trained.update(total)
        moved.append(float((next(head.parameters()).detach() - before).abs().max()))
        seen.append([group["lr"] for group in trained._optimizer.param_groups])
        assert trained.learning_rate == seen[-1][0]
    factors = [(step + 1) / 5 for step in range(4)] + [
        0.5 * (1 + math.cos(math.pi * (step - 4) / 16)) for step in range(4, 20)
    ]
    assert [rates[0] for rates in seen] == pytest.approx([0.3 * factor for factor in factors])
    assert [rates[-1] for rates in seen] == pytest.approx([0.07 * factor for factor in factors])
    assert factors[19] < 0.01 < factors[0] < factors[3] < factors[4] == 1
    # AdamW moves a weight of constant gradient by the learning rate: it is the one that is used.
    assert moved == pytest.approx([0.3 * factor for factor in factors], rel=0.05, abs=2e-3)


def test_matrices_decay_and_nothing_else(encoder: ProteinModel) -> None:
    head = small_head()
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    trained = weights_of(head, encoder, learning_rate=0.1, weight_decay=0.5, warmup_share=0.0)
    trained.update(sum((0.0 * p.sum() for p in head.parameters()), torch.tensor(0.0)))
    rate = trained.learning_rate
    for name, parameter in head.named_parameters():
        expected = before[name] * (1 - 0.5 * rate) if parameter.ndim > 1 else before[name]
        torch.testing.assert_close(parameter.detach(), expected)
    assert rate > 0.04


def test_the_best_weights_come_back_also_their_statistics(encoder: ProteinModel) -> None:
    head = small_head()
    encoder.encoder.requires_grad_(True)
    trained = weights_of(head, encoder)
    trained.remember()
    kept = {name: tensor.clone() for name, tensor in (*head.state_dict().items(), *encoder.state_dict().items())}
    head(torch.randn(6, 4), Packed([6], CPU))  # moves running statistics
    trained.update(sum((p.sum() for p in [*head.parameters(), *encoder.encoder.parameters()]), torch.tensor(0.0)))
    changed = {**head.state_dict(), **encoder.state_dict()}
    assert sum(not torch.equal(changed[name], tensor) for name, tensor in kept.items()) > 10
    trained.go_back()
    changed = {**head.state_dict(), **encoder.state_dict()}
    assert all(torch.equal(changed[name], tensor) for name, tensor in kept.items())


@pytest.mark.parametrize(("kind", "design"), sorted(HEADS))
def test_every_head_drops_out_in_training_and_never_else(kind: str, design: str) -> None:
    full: dict[str, Kind] = {"residue": "residue_classes", "sequence": "sequence_class", "contacts": "contacts"}
    width = 16 if design in ("pair", "compact") else 8
    config = HeadConfig(
        kind=full[kind], outputs=1 if kind == "contacts" else 3, d_input=width, design=design,  # type: ignore[arg-type]
        reads="attention" if (kind, design) == ("contacts", "compact") else "hidden",
        layers=(1,), n_heads=4, hidden=16, kernel=3, dropout=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    head = make_head(config)
    inputs: Tensor | list[Tensor] = torch.randn(24, width)
    if config.reads == "attention":
        inputs = [torch.rand(width, 12, 12) for _ in range(2)]
    elif (kind, design) == ("sequence", "tape"):
        inputs = torch.randn(2, width)
    layout = Packed([12, 12], CPU)

    def run() -> Tensor:
        found = head(inputs, layout)
        return torch.cat([x.ravel() for x in found]) if isinstance(found, list) else found.ravel()

    head.train()
    plain = (kind, design) == ("contacts", "compact")  # a regression of attention maps: it has nothing to drop
    assert torch.equal(run(), run()) is plain
    head.eval()
    assert torch.equal(run(), run())


def make(folder: Path, model: Path, *changes: str) -> HeadTrainer:
    """Labels drawn at random: what is learned of them does not hold for others."""
    rng = np.random.default_rng(0)
    made = {name: (s, "".join(rng.choice(list("abb"), len(s)))) for name, s in proteins(60).items()}
    write_residues(folder / "data", made, ("train", "val", "test"))
    path = folder / "task.toml"
    path.write_text(TOML.format(folder=folder, model=model, name="own", kind="residue_classes"))
    return HeadTrainer(load_task_config(path, ["train.overwrite=true", *changes]))


def test_dropout_is_on_while_training_and_off_while_measuring(tmp_path: Path, model_file: Path) -> None:
    trainer = make(tmp_path, model_file, "head.dropout=0.4", "train.epochs=3")
    assert {module.p for module in trainer.head.modules() if isinstance(module, nn.Dropout)} == {0.4}
    seen: list[tuple[bool, bool]] = []
    forward, loss = trainer.head.forward, trainer.head.loss

    def watched_forward(*words: object) -> object:
        seen.append((trainer.head.training, torch.is_grad_enabled()))
        return forward(*words)

    trainer.head.forward = watched_forward  # type: ignore[method-assign]
    losses: list[bool] = []
    trainer.head.loss = lambda *words: (losses.append(trainer.head.training), loss(*words))[1]  # type: ignore
    list(trainer.run())
    assert len(losses) == trainer.trained.step > 3
    assert all(losses)
    assert seen.count((True, True)) == len(losses)
    assert set(seen) == {(True, True), (False, False)}


def test_the_temperature_is_of_the_validation_set(tmp_path: Path, model_file: Path) -> None:
    """A head that has learned its training set by heart is right to be sure there, and wrong elsewhere."""
    trainer = make(tmp_path, model_file, "train.epochs=20", "train.patience=20", "head.hidden=128", "train.metric=mcc")
    list(trainer.run())
    _, card = load_head(trainer.result, device=CPU)
    found = {name: answers_of(trainer, name) for name in ("train", "valid")}
    fitted = {name: fit_temperature(answers.outputs, answers.targets) for name, answers in found.items()}
    assert card.temperature == pytest.approx(fitted["valid"], rel=1e-3)
    assert card.temperature > 1.3 * fitted["train"]


def answers_of(trainer: HeadTrainer, name: str) -> Answers:
    examples = {"train": trainer.train, "valid": trainer.valid}[name]
    return trainer._answers(examples, trainer._inputs(examples))


def test_figures_are_of_the_set_that_names_them(tmp_path: Path, model_file: Path) -> None:
    """What stands in the head's file is what `evaluate` finds for its sets, one by one."""
    trainer = make(tmp_path, model_file, "train.epochs=8", "train.patience=8", "head.hidden=128", 'data.test=["test"]')
    list(trainer.run())
    facts = load_head(trainer.result, device=CPU)[1].training
    backend = TorchBackend(checkpoint.load(model_file, device=CPU))
    found = {}
    for split, name in (("test", "test"), ("val", "valid"), ("train", "train")):
        options = EvaluateOptions(task=str(trainer.result), data=tmp_path / "data", split=split, draws=2)
        evaluation = Evaluation(backend, options)
        assert len(list(evaluation.run())) == 20
        found[name] = {score.name: score.value for score in evaluation.report().scores}
    for name in ("test", "valid"):
        for metric in ("accuracy", "mcc", "macro_f1"):
            assert facts[f"{name}_{metric}"] == pytest.approx(found[name][metric], abs=2e-5)
    accuracies = sorted(found[name]["accuracy"] for name in found)
    assert accuracies[1] - accuracies[0] > 1e-3 < accuracies[2] - accuracies[1], "they are told apart"
    assert trainer.results["test_mcc"] == facts["test_mcc"]


def count(kind: Kind, targets: np.typing.NDArray[np.generic], counts: list[bool]) -> Examples:
    return Examples(
        kind=kind,
        alphabet=PROTEMBED,
        tokens=np.zeros(len(counts), dtype=np.int64),
        offsets=np.array([0, len(counts)]),
        targets=targets,
        counts=np.array(counts),
    )


def test_rare_classes_weigh_more() -> None:
    some = count("residue_classes", np.array([0] * 8 + [1] * 2 + [1] * 90), [True] * 10 + [False] * 90)
    balanced = class_weights(some, 2, "balanced", CPU)
    assert balanced is not None
    # Shares 0.8 and 0.2: 1 / share, and 1 on average over the examples.
    assert balanced.tolist() == pytest.approx([0.625, 2.5])
    root = class_weights(some, 2, "root", CPU)
    assert root is not None
    assert (root[1] / root[0]).item() == pytest.approx(2)
    assert 0.8 * root[0].item() + 0.2 * root[1].item() == pytest.approx(1)
    assert class_weights(some, 2, "none", CPU) is None
    assert class_weights(count("residue_values", np.zeros(3), [True] * 3), 1, "balanced", CPU) is None


@pytest.mark.parametrize("how", ["none", "balanced"])
def test_the_weights_of_classes_reach_the_loss(tmp_path: Path, model_file: Path, how: str) -> None:
    trainer = make(tmp_path, model_file, f"train.class_weights={how}", "train.epochs=1")
    given: list[Tensor | None] = []
    loss = trainer.head.loss
    trainer.head.loss = lambda *words: (given.append(words[3]), loss(*words))[1]  # type: ignore
    list(trainer.run())
    shares = np.bincount(trainer.train.targets[trainer.train.counts]) / trainer.train.counts.sum()
    for weights in given:
        if how == "none":
            assert weights is None
        else:
            assert weights is not None
            assert weights.tolist() == pytest.approx((0.5 / shares).tolist())


def test_rare_flags_weigh_more() -> None:
    flags = np.array([[True, True]] + [[False, True]] * 3 + [[False, False]] * 4 + [[True, True]] * 9)
    some = count("residue_flags", flags, [True] * 8 + [False] * 9)
    balanced, root = (class_weights(some, 2, how, CPU) for how in ("balanced", "root"))  # type: ignore[arg-type]
    assert balanced is not None
    assert root is not None
    assert balanced.tolist() == pytest.approx([7, 1])
    assert root.tolist() == pytest.approx([math.sqrt(7), 1])


def test_low_rank_matrices_are_scaled_by_alpha_over_rank() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 5)
    adapter = LowRank(weight, rank=4, alpha=12.0)
    assert torch.equal(adapter(weight), weight), "at first nothing is changed"
    with torch.no_grad():
        adapter.up.copy_(torch.randn(6, 4))
    torch.testing.assert_close(adapter(weight), weight + 3.0 * adapter.up @ adapter.down)
    assert adapter.down.std().item() == pytest.approx(5**-0.5, rel=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_settled_encoder_computes_what_its_adapters_did(encoder: ProteinModel, dtype: torch.dtype) -> None:
    section = EncoderSection(mode="lora", lora_rank=2, lora_alpha=5.0, lora_targets=("qkv", "down"))
    adapt(encoder, section, HeadConfig(kind="residue_classes", outputs=2, d_input=32, layers=(1,)))
    names = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert {name.split(".")[2] for name in names} == {"0"}, "only blocks that the head's input comes from"
    assert {part for name in names for part in ("qkv", "out", "up", "down") if f".{part}.param" in name} == {
        "qkv",
        "down",
    }
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name in names:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    tokens = torch.from_numpy(encoder.card.alphabet.encode(STANDARD_RESIDUES))
    layout = Packed([len(tokens)], CPU)
    with torch.no_grad():
        before = encoder.encoder(tokens, layout, [2])[2]
        settle(encoder, dtype)
        after = encoder.encoder(tokens, layout, [2])[2]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5 if dtype == torch.float32 else 2e-2)
    assert all(torch.equal(p, p.to(dtype).float()) for p in encoder.parameters())
    assert not [name for name, _ in encoder.named_parameters() if "parametrizations" in name]


def test_a_fully_trained_encoder_leaves_blocks_alone_that_the_head_does_not_read(encoder: ProteinModel) -> None:
    adapt(encoder, EncoderSection(mode="full"), HeadConfig(kind="residue_classes", outputs=2, d_input=32, layers=(1,)))
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert {name.split(".")[2] for name in trained if name.startswith("encoder.blocks")} == {"0"}
    assert "encoder.embedding.weight" in trained


def test_flags_are_on_above_one_half() -> None:
    """A logit of 0 is a probability of one half."""
    task = own_task("own", "residue_flags", ("P", "Q"))
    answers = Answers(
        outputs=np.array([[0.1, -3.0], [0.4, -0.1], [-0.1, 2.0], [-2.0, 0.3]]),
        targets=np.array([[True, False], [True, False], [False, True], [False, True]]),
    )
    assert score(task, answers) == {"mean_mcc": pytest.approx(1)}


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_what_is_measured_is_what_is_written(tmp_path: Path, model_file: Path, store: str) -> None:
    """Of encoder and head: figures in the head's file are those of its files, to the last digit."""
    changes = ("encoder.mode=full", f"encoder.store_dtype={store}", f"head.store_dtype={store}", "train.epochs=2")
    trainer = make(tmp_path, model_file, *changes, 'data.test=["test"]', "train.encoder_learning_rate=1e-2")
    list(trainer.run())
    written = checkpoint.load(tmp_path / "run" / "encoder.safetensors", device=CPU, dtype=torch.float32)
    here = trainer.model.state_dict()
    assert all(torch.equal(tensor, here[name]) for name, tensor in written.state_dict().items())
    head, _ = load_head(trainer.result, device=CPU)
    own = trainer.head.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in head.state_dict().items())


def test_values_are_told_in_their_own_unit(tmp_path: Path, model_file: Path) -> None:
    made = {name: (sequence, 100 + 7.5 * (len(sequence) % 5)) for name, sequence in proteins(60).items()}
    write_targets(tmp_path / "data", made, ("train", "val", "test"))
    path = tmp_path / "task.toml"
    path.write_text(TOML.format(folder=tmp_path, model=model_file, name="own", kind="sequence_value"))
    trainer = HeadTrainer(load_task_config(path, ["train.epochs=2", 'data.test=["test"]']))
    list(trainer.run())
    values = [value for _, value in made.values()][::3]
    card = load_head(trainer.result, device=CPU)[1]
    assert (card.scale, card.offset) == pytest.approx((np.std(values), np.mean(values)))
    backend = TorchBackend(checkpoint.load(model_file, device=CPU))
    evaluation = Evaluation(backend, EvaluateOptions(task=str(trainer.result), data=tmp_path / "data", draws=2))
    list(evaluation.run())
    found = {score.name: score.value for score in evaluation.report().scores}
    for name in ("spearman", "rmse"):
        assert card.training[f"test_{name}"] == pytest.approx(found[name], rel=2e-3, abs=2e-5)
    assert found["rmse"] > 5


def test_a_head_alone_is_measured_in_float32(tmp_path: Path, model_file: Path) -> None:
    """It is trained in bfloat16 and used in float32."""
    trainer = make(tmp_path, model_file, "train.precision=bfloat16", "train.epochs=1")
    list(trainer.run())
    outputs = torch.from_numpy(answers_of(trainer, "valid").outputs)
    assert (outputs != outputs.bfloat16().float()).float().mean() > 0.9


def test_figures_with_a_threshold_see_values_in_their_own_unit() -> None:
    target, predicted = np.array([2.0, 7.0, 9.0, 14.0]), np.array([4.0, 10.0, 8.0, 13.0])
    answers = Answers(outputs=(predicted - 6) / 5, targets=(target - 6) / 5)
    found = score(TASKS["disorder"], answers, scale=5.0, offset=6.0)
    assert found["auc"] == auc(target < 8, -predicted) == 0.75
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((target - predicted) ** 2)))
