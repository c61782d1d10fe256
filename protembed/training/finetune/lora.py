"""Making an encoder trainable: all of it, or matrices of low rank beside its own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from protembed.checkpoints import native as checkpoint
from protembed.errors import ModelError
from protembed.models.config import ModelCard
from protembed.models.encoder import Block
from protembed.models.head_config import HeadConfig
from protembed.models.protein_model import ProteinModel, skeleton
from protembed.training.finetune.config import EncoderSection, LoraTarget


class LowRank(nn.Module):
    """A weight with a product of two thin matrices added: W + alpha / rank B A (Hu et al. 2021, arXiv 2106.09685).

    A is random and B zero: at first nothing is changed.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.randn(rank, columns, device=weight.device) * columns**-0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down)


def adapt(model: ProteinModel, section: EncoderSection, config: HeadConfig) -> None:
    """Let the weights of a model be trained as told, those of the blocks that the head's input comes from."""
    model.requires_grad_(False)
    highest = max(config.layers, default=len(model.encoder.blocks))
    if section.mode == "full":
        model.encoder.requires_grad_(True)
        for block in model.encoder.blocks[highest:]:
            block.requires_grad_(False)
        if config.reads == "pooled" and model.pooler is not None:
            model.pooler.requires_grad_(True)
        return
    layers = _linear_layers(model, section.lora_targets)[: highest * len(section.lora_targets)]
    if not layers:
        raise ModelError("[encoder] layers names the embedding alone, which no block comes before", hint="layers = -1")
    for layer in layers:
        parametrize.register_parametrization(
            layer, "weight", LowRank(layer.weight, section.lora_rank, section.lora_alpha)
        )


def settle(model: ProteinModel, dtype: torch.dtype) -> None:
    """Put low-rank matrices into the weights that they stand beside; round all weights to what a file of `dtype` holds.

    What is measured from here on is what is written.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).to(parameter.dtype)


def save_encoder(model: ProteinModel, task: str, mode: str, path: Path, dtype: torch.dtype) -> ModelCard:
    """Write an encoder that was trained for a task; heads that belong to the old one are left behind."""
    card = replace(
        model.card,
        name=f"{model.card.name}-{task}",
        mlm_head=None,
        contact_head=False,
        source=f"{model.card.name} ({model.card.sha256[:12]}), fine-tuned for {task} ({mode})",
        sha256="",
    )
    names = skeleton(card).state_dict()
    return checkpoint.save_weights(card, {n: t for n, t in model.state_dict().items() if n in names}, path, dtype=dtype)


def _linear_layers(model: ProteinModel, targets: Sequence[LoraTarget]) -> list[nn.Linear]:
    found = []
    for block in model.encoder.blocks:
        assert isinstance(block, Block)
        known = {
            "qkv": block.attention.qkv,
            "out": block.attention.out,
            "up": block.feed_forward.up,
            "down": block.feed_forward.down,
        }
        found += [known[target] for target in targets]
    return found
