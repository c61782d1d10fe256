"""The formula of MFU against torch's own counter, and the estimates of a dry run against what training really takes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from protembed.models.config import EncoderConfig, MlmHeadConfig
from protembed.models.packing import Packed
from protembed.models.protein_model import ProteinModel, skeleton
from protembed.sequences.alphabet import PROTEMBED
from protembed.training.corpus.corpus import prepare_corpus
from protembed.training.optimizer import build_optimizers
from protembed.training.pretrain.config import (
    DataSection,
    ModelSection,
    PretrainConfig,
    TrainSection,
    load_config,
    make_card,
)
from protembed.training.pretrain.forecast import (
    PEAKS,
    activation_bytes,
    count_parameters,
    forecast,
    look_at_corpus,
    optimizer_bytes,
    peak_flops,
    state_bytes,
    traffic_bytes,
    training_flops_per_token,
)
from tests.conftest import ROOT, write_fasta

SHAPE = ModelSection(name="tiny", d_model=32, n_layers=3, n_heads=4, d_ff=96)
LENGTHS = (70, 30, 100)
PLACES = torch.arange(0, sum(LENGTHS), 8)

CONFIG = PretrainConfig(
    model=SHAPE,
    data=DataSection(corpus="nowhere"),
    train=TrainSection(out="run", steps=1000, batch_tokens=sum(LENGTHS), accumulate=2),
)


def step(model: ProteinModel) -> Tensor:
    """One forward pass over packed proteins, the head on the places asked about."""
    tokens = torch.arange(sum(LENGTHS)) % 20 + 4
    logits = model.logits(model(tokens, Packed(LENGTHS))[PLACES])
    return torch.nn.functional.cross_entropy(logits, tokens[PLACES])


@pytest.mark.parametrize(
    "changes",
    [{}, {"activation": "swiglu", "bias": False, "norm": "rmsnorm"}, {"position": "learned", "max_length": 128}],
    ids=str,
)
def test_flops_equal_those_that_torch_counts(changes: dict[str, object]) -> None:
    card = make_card(replace(SHAPE, **changes))  # type: ignore[arg-type]
    model = ProteinModel(card)
    model.initialise(0)
    # Plain matrix products: torch does not count its fused attention for CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step(model).backward()  # type: ignore[no-untyped-call]
    lengths = np.array(LENGTHS)
    expected = training_flops_per_token(
        card.encoder,
        card.mlm_head,
        mask_rate=len(PLACES) / lengths.sum(),
        mean_squares_over_mean=(lengths**2).sum() / lengths.sum(),
    )
    assert counter.get_total_flops() == pytest.approx(expected * lengths.sum(), rel=0.01)


def test_flops_of_esm2_650m_are_about_six_a_weight() -> None:
    encoder = EncoderConfig(vocab_size=33, d_model=1280, n_layers=33, n_heads=20, d_ff=5120, mask_id=1)
    short = training_flops_per_token(encoder, MlmHeadConfig(), mask_rate=0.15, mean_squares_over_mean=0)
    assert short == pytest.approx(6 * 651e6, rel=0.01)
    assert training_flops_per_token(encoder, None, mask_rate=0.15, mean_squares_over_mean=0) < short


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_are_about_what_autograd_keeps(activation: str, precision: str) -> None:
    section = replace(SHAPE, d_model=64, d_ff=256, n_layers=8, activation=activation)  # type: ignore[arg-type]
    config = replace(CONFIG, model=section, train=replace(CONFIG.train, precision=precision))  # type: ignore[arg-type]
    model = ProteinModel(make_card(section))
    model.initialise(0)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    copied = {parameter.numel() * 2 for parameter in model.parameters() if parameter.ndim == 2}
    kept: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and storage.nbytes() not in copied:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())  # held, so that no address comes twice
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        step(model)
    measured = sum(size for _, size in kept.values())
    assert activation_bytes(config, activation_checkpointing=False) == pytest.approx(measured, rel=0.25)
    assert activation_bytes(config, activation_checkpointing=True) < measured / 3


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizer_states_are_those_that_a_step_makes(optimizer: str) -> None:
    config = replace(CONFIG, train=replace(CONFIG.train, optimizer=optimizer))  # type: ignore[arg-type]
    model = ProteinModel(make_card(SHAPE))
    model.initialise(0)
    step(model).backward()  # type: ignore[no-untyped-call]
    made = 0
    for built in build_optimizers(model.named_parameters(), config.train):
        built.step()
        states = (value for state in built.state.values() for value in state.values())
        made += sum(value.nbytes for value in states if isinstance(value, Tensor) and value.ndim)
    assert optimizer_bytes(skeleton(make_card(SHAPE)), config) == made


def test_memory_of_a_rank() -> None:
    model = skeleton(make_card(SHAPE))
    parameters = count_parameters(model)
    assert state_bytes(model, CONFIG, strategy="ddp", ranks=8) == 16 * parameters
    shared = [state_bytes(model, CONFIG, strategy="fsdp", ranks=ranks) for ranks in (2, 4, 8)]
    assert shared == sorted(shared, reverse=True)
    assert shared[0] - shared[1] == pytest.approx(4 * parameters, abs=1)


def test_shards_hold_whole_gradients_while_they_accumulate() -> None:
    """ESM-2 3B on 8 ranks, 4 batches per step: 17.7 GB and not 6.3."""
    model = skeleton(make_card(SHAPE))
    one, four = (replace(CONFIG, train=replace(CONFIG.train, accumulate=count)) for count in (1, 4))
    sizes = [state_bytes(model, config, strategy="fsdp", ranks=8) for config in (one, four)]
    assert sizes[1] - sizes[0] == 4 * count_parameters(model)
    assert state_bytes(model, one, strategy="ddp", ranks=8) == state_bytes(model, four, strategy="ddp", ranks=8)
    large = load_config(ROOT / "configs" / "esm2-3b.toml", ["train.accumulate=4"])
    found = state_bytes(skeleton(make_card(large.model)), large, strategy="fsdp", ranks=8)
    assert found == pytest.approx(17.7e9, rel=0.02)


def test_shards_in_float32_are_gathered_in_float32() -> None:
    model = skeleton(make_card(SHAPE))
    block = sum(parameter.numel() for parameter in model.encoder.blocks[0].parameters())
    narrow, wide = (replace(CONFIG, train=replace(CONFIG.train, precision=name)) for name in ("bfloat16", "float32"))  # type: ignore[arg-type]
    sizes = [state_bytes(model, config, strategy="fsdp", ranks=8) for config in (narrow, wide)]
    assert sizes[1] - sizes[0] == 4 * block
    sent = [traffic_bytes(1000, strategy="fsdp", ranks=4, precision=name) for name in ("bfloat16", "float32")]  # type: ignore[arg-type]
    assert sent == [6000, 9000]


def test_traffic_of_a_step() -> None:
    assert traffic_bytes(1000, strategy="ddp", ranks=1) == traffic_bytes(1000, strategy="fsdp", ranks=1) == 0
    assert traffic_bytes(1000, strategy="ddp", ranks=4) == traffic_bytes(1000, strategy="fsdp", ranks=4) == 6000
    assert traffic_bytes(1000, strategy="ddp", ranks=4, accumulate=2) == 6000
    assert traffic_bytes(1000, strategy="fsdp", ranks=4, accumulate=2) == 9000


def test_forecast() -> None:
    rows = dict(forecast(CONFIG, ranks=8, peak_flops=1e12))
    assert rows["tokens a step"] == "3,200"
    assert rows["parameters"] == f"{count_parameters(skeleton(make_card(SHAPE))):,}"
    slow, middle, fast = (float(word) for word in rows["days at 20, 40, 60 % MFU of 1 TFLOP/s"].split(", "))
    assert (slow / middle, slow / fast) == pytest.approx((2, 3), rel=0.02)
    operations = float(rows["operations in all"].split()[0])
    assert middle == pytest.approx(operations / 8 / 0.4e12 / 86_400, rel=0.02)
    assert {"memory of a process, fsdp", "sent by a process in a step, ddp"} <= set(rows)


def test_forecast_of_one_rank_has_nothing_to_send() -> None:
    rows = dict(forecast(CONFIG, ranks=1, peak_flops=None))
    assert not [name for name in rows if "sent" in name or "fsdp" in name]
    assert [name for name in rows if "H100" in name]
    assert [name for name in rows if "A100" in name]


@pytest.mark.parametrize("sampling", ["proteins", "clusters"])
def test_forecast_looks_at_a_prepared_corpus(tmp_path: Path, sampling: str) -> None:
    """Four proteins of 10, 20, 40 and 98 residues, the first two of one cluster; 50 are the most at once."""
    lengths = {"a cluster=x": 10, "b cluster=x": 20, "c cluster=y": 40, "d cluster=z": 98}
    residues = np.random.default_rng(0).choice(list("ACDEFGHIKL"), 98)
    fasta = write_fasta(tmp_path / "a.fasta", {name: "".join(residues[:count]) for name, count in lengths.items()})
    prepare_corpus([str(fasta)], tmp_path / "corpus", PROTEMBED)
    section = DataSection(corpus=f"{tmp_path}/corpus", max_residues=50, sampling=sampling)  # type: ignore[arg-type]
    config = replace(CONFIG, data=section, train=replace(CONFIG.train, steps=10))
    found = look_at_corpus(config, PROTEMBED)
    sizes = np.array([12, 22, 42, 52])
    assert found.context == pytest.approx((sizes**2).sum() / sizes.sum())
    assert found.epoch_tokens == (128 if sampling == "proteins" else 17 + 42 + 52)
    rows = dict(forecast(config, ranks=2, peak_flops=None))
    assert float(rows["epochs"]) == pytest.approx(200 * 2 * 2 * 10 / found.epoch_tokens, rel=0.01)
    assert f"{4 if sampling == 'proteins' else 3} {sampling}" in rows["corpus"]


def test_forecast_without_a_corpus_says_so() -> None:
    rows = dict(forecast(CONFIG, ranks=2, peak_flops=None))
    assert "ordinary lengths" in rows["corpus"]
    assert rows["epochs"] == "not known yet"


def test_peaks() -> None:
    assert peak_flops("NVIDIA H100 PCIe") == PEAKS["H100 PCIe"] < PEAKS["H100"]
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("a potato") is None
