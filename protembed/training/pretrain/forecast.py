"""What a pretraining run will take, on paper: operations, memory, days and traffic. And the formula behind MFU.

Legend: D d_model, F d_ff, L n_layers, P parameters, R ranks. Everything but `training_flops_per_token` is approximate.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from protembed.errors import TrainingError
from protembed.models.config import EncoderConfig, MlmHeadConfig
from protembed.models.protein_model import ProteinModel, skeleton
from protembed.sequences.alphabet import STANDARD_RESIDUES, Alphabet
from protembed.training.corpus.corpus import open_corpus
from protembed.training.corpus.packing import Packing
from protembed.training.optimizer import build_optimizers
from protembed.training.parallel import Precision
from protembed.training.pretrain.config import PretrainConfig

PEAKS = {
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}
"""Dense bfloat16 FLOP/s by a part of the device's name, special ones first. Source: NVIDIA's data sheets."""

TYPICAL_CONTEXT = 560.0
"""Sum of squared lengths over sum of lengths, for a corpus not yet seen: UniClust50's proteins cut at 1,022."""

Strategy = Literal["ddp", "fsdp"]


def peak_flops(device: str) -> float | None:
    """Return the dense bfloat16 FLOP/s of a GPU, None when its name is not known.

    >>> peak_flops("NVIDIA H100 80GB HBM3")
    989000000000000.0
    """
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def training_flops_per_token(
    card_encoder: EncoderConfig,
    mlm_head: MlmHeadConfig | None,
    *,
    mask_rate: float,
    mean_squares_over_mean: float,
    profile: bool = False,
) -> float:
    """Count the floating-point operations that training needs for a token: the numerator of MFU.

    A weight of a matrix product takes 6 (a multiplication and an addition, once forward and twice backward):
    6 L (4 D^2 + 2 D F), three matrices of D F with SwiGLU. Attention takes 12 L D times `mean_squares_over_mean`, the
    sum of the squared lengths over the sum of the lengths: packed proteins see themselves only. The head, dense layer
    and decoder, works on masked tokens: 6 (D^2 + vocab_size D) `mask_rate`, the share of all tokens that are asked
    about; a profile head works on all: 6 times 20 D. Looking up embeddings, norms, biases and activations count
    nothing; nor does what activation checkpointing or flash attention computes twice (utilisation of the model, not of
    the hardware).

    PaLM (arXiv 2204.02311, appendix B) has the same 6 and 12, but N in 6 N is every parameter, and attention is over
    the full context for every token. nanoGPT does so, too, less its position table; both have the decoder work on
    every token. At 650M parameters that adds 0.3 % for the weights and 6 % for a context of 1,024 (ours: 560).
    """
    config = card_encoder
    feed_forward = (3 if config.activation == "swiglu" else 2) * config.d_model * config.d_ff
    layer = 6 * (4 * config.d_model**2 + feed_forward) + 12 * config.d_model * mean_squares_over_mean
    head = 0
    if mlm_head is not None:
        head = config.d_model**2 * mlm_head.transform + config.vocab_size * config.d_model
    return config.n_layers * layer + 6 * head * mask_rate + 6 * len(STANDARD_RESIDUES) * config.d_model * profile


def state_bytes(model: ProteinModel, config: PretrainConfig, *, strategy: Strategy, ranks: int) -> int:
    """Estimate a rank's memory for weights, gradients and optimizer states, all float32.

    AdamW keeps two states per weight, Muon one. ddp: 8 P and the states, and with bfloat16 another 2 P for autocast's
    copies of the weights. fsdp: a share 1/R of 8 P and the states, and two blocks gathered in the type that is computed
    in (the one that computes and the one that comes) with the float32 gradient of one; with `accumulate` above 1,
    gradients stay whole until the last batch of a step: another 4 P.
    """
    total = count_parameters(model)
    kept = 8 * total + optimizer_bytes(model, config)
    if strategy == "ddp":
        return kept + (2 * total if config.train.precision == "bfloat16" else 0)
    block = sum(parameter.numel() for parameter in model.encoder.blocks[0].parameters())
    gathered = 2 if config.train.precision == "bfloat16" else 4
    whole = 4 * total if config.train.accumulate > 1 else 0
    return kept // ranks + (2 * gathered + 4) * block + whole


def optimizer_bytes(model: ProteinModel, config: PretrainConfig) -> int:
    """Return the bytes of all optimizer states, from the optimizers that training builds."""
    total = 0
    for optimizer in build_optimizers(model.named_parameters(), config.train):
        states = 4 if isinstance(optimizer, torch.optim.Muon) else 8
        total += states * sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    return total


def activation_bytes(config: PretrainConfig, *, activation_checkpointing: bool) -> int:
    """Estimate what the forward pass keeps for the backward pass, for `batch_tokens` at once.

    A layer keeps for a token, with `a` bytes a value of a matrix product (4, or 2 under bfloat16): the residual stream
    before either norm, 8 D; what q, k, v and the two linear layers out of the norms read, 6 a D, and the turned q and k
    of rotary positions, 2 a D; and 2 a F around GELU, 4 a F with SwiGLU. Attention keeps no scores (flash attention).
    With checkpointing a layer keeps its input, 4 D, and one layer at a time the rest. The head is small: its tokens
    are few. Compare Korthikanti et al., arXiv 2205.05198: 34 D with dropout's masks, for a = 2 and F = 4 D.
    """
    model = config.model
    a = 2 if config.train.precision == "bfloat16" else 4
    within = (8 if model.position == "rotary" else 6) * model.d_model
    within += (4 if model.activation == "swiglu" else 2) * model.d_ff
    layer = 8 * model.d_model + a * within
    if activation_checkpointing:
        return config.train.batch_tokens * (4 * model.d_model * model.n_layers + layer)
    return config.train.batch_tokens * layer * model.n_layers


def traffic_bytes(
    parameters: int, *, strategy: Strategy, ranks: int, accumulate: int = 1, precision: Precision = "bfloat16"
) -> float:
    """Return how many bytes a rank sends in a step, collectives done as rings.

    ddp: one all-reduce of float32 gradients, 2 (R - 1) / R times 4 P. fsdp, by parallel.py's policy: weights gathered
    in bfloat16 (or float32) before forward and before backward of every batch, (R - 1) / R times 2 P (4 P) each, and
    float32 gradients scattered once, (R - 1) / R times 4 P. At one batch per step in bfloat16 they are equal.
    """
    share = (ranks - 1) / ranks
    if strategy == "ddp":
        return 2 * share * 4 * parameters
    return share * (2 * (2 if precision == "bfloat16" else 4) * accumulate + 4) * parameters


def count_parameters(model: ProteinModel) -> int:
    """Return the number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True, kw_only=True)
class Proteins:
    """What of the data counts: sum of squares over sum of lengths, tokens of an epoch if known, and a line on it."""

    context: float
    epoch_tokens: float | None
    description: str


def look_at_corpus(config: PretrainConfig, alphabet: Alphabet) -> Proteins:
    """Read the lengths of the corpus; ordinary ones stand in while it is not prepared."""
    data = config.data
    try:
        store = open_corpus(Path(data.corpus), alphabet).train
        if not len(store):
            raise TrainingError(f"{data.corpus}: there is no protein to train on")
    except TrainingError as error:
        longest = data.max_residues + alphabet.prefix + alphabet.suffix
        return Proteins(
            context=min(TYPICAL_CONTEXT, longest),
            epoch_tokens=None,
            description=f"{error}; ordinary lengths are assumed",
        )
    packing = Packing(
        store=store,
        alphabet=alphabet,
        batch_tokens=config.train.batch_tokens,
        max_residues=data.max_residues,
        seed=config.train.seed,
        sampling=data.sampling,
    )
    sizes = packing.sizes(np.arange(len(store))).astype(np.float64)
    drawn = sizes
    if data.sampling == "clusters":
        drawn = np.add.reduceat(sizes, store.clusters[:-1]) / np.diff(store.clusters)  # the mean member of each
    return Proteins(
        context=float((sizes**2).sum() / sizes.sum()),
        epoch_tokens=float(drawn.sum()),
        description=f"{data.corpus}: {len(store):,} proteins, {store.residues:,} residues; "
        f"an epoch is {packing.epoch_size:,} {data.sampling}",
    )


def forecast(config: PretrainConfig, *, ranks: int, peak_flops: float | None) -> list[list[str]]:
    """Describe a run before it is done, as rows of what and how much; takes no memory for weights, and trains nothing.

    `peak_flops`: FLOP/s of one GPU for the expected days; without it those of `[train] peak_tflops`, else of H100 and
    A100.
    """
    card, train = config.card, config.train
    model = skeleton(card)
    proteins = look_at_corpus(config, card.alphabet)
    tokens = train.batch_tokens * train.accumulate * ranks
    operations = training_flops_per_token(
        card.encoder,
        card.mlm_head,
        mask_rate=config.mask.rate,
        mean_squares_over_mean=proteins.context,
        profile=card.profile_head,
    )
    total = operations * tokens * train.steps
    epochs = f"{tokens * train.steps / proteins.epoch_tokens:,.3g}" if proteins.epoch_tokens else "not known yet"
    return [
        ["model", config.model.name],
        ["parameters", f"{count_parameters(model):,}"],
        ["corpus", proteins.description],
        ["processes", f"{ranks:,}"],
        ["tokens a step", f"{tokens:,}"],
        ["steps", f"{train.steps:,}"],
        ["tokens in all", f"{tokens * train.steps:,}"],
        ["epochs", epochs],
        ["operations a token", f"{operations / 1e9:,.3g} GFLOP"],
        ["operations in all", f"{total:.3g} FLOP"],
        *_needs(model, config, ranks),
        *_days(total / ranks, peak_flops or train.peak_tflops * 1e12),
    ]


def _needs(model: ProteinModel, config: PretrainConfig, ranks: int) -> list[list[str]]:
    """Return rows on memory, disk and traffic; where there are several processes, for both strategies."""
    train, parameters = config.train, count_parameters(model)
    strategies: tuple[Strategy, ...] = ("ddp", "fsdp") if ranks > 1 else ("ddp",)
    plain, checkpointed = (size(activation_bytes(config, activation_checkpointing=flag)) for flag in (False, True))
    rows = [
        [f"memory of a process, {strategy}", f"{size(state_bytes(model, config, strategy=strategy, ranks=ranks))}"]
        for strategy in strategies
    ]
    rows += [
        ["activations beside it", f"about {plain}, {checkpointed} with activation checkpointing"],
        ["a checkpoint", f"{size(4 * parameters + optimizer_bytes(model, config))}; {train.keep_checkpoints} are kept"],
    ]
    for strategy in strategies if ranks > 1 else ():
        sent = traffic_bytes(
            parameters, strategy=strategy, ranks=ranks, accumulate=train.accumulate, precision=train.precision
        )
        rows.append([f"sent by a process in a step, {strategy}", size(sent)])
    return rows


def _days(operations: float, peak: float) -> list[list[str]]:
    """Return the days that operations of one rank take, a row for every peak."""
    peaks = {f"{peak / 1e12:,.4g} TFLOP/s": peak} if peak else {name: PEAKS[name] for name in ("H100", "A100")}
    return [
        [
            f"days at 20, 40, 60 % MFU of {name}",
            ", ".join(f"{operations / (share * peak) / 86_400:,.3g}" for share in (0.2, 0.4, 0.6)),
        ]
        for name, peak in peaks.items()
    ]


def size(count: float) -> str:
    """Write a number of bytes for people.

    >>> size(2_840_000_000)
    '2.84 GB'
    """
    unit, divisor = next(
        ((unit, divisor) for unit, divisor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)) if count >= divisor), ("kB", 1e3)
    )
    return f"{count / divisor:,.3g} {unit}"
