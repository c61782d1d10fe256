"""Checkpoints with random weights in published forms: ESM-2 650M, and ProteinLM of 3e9 weights.

ProteinLM-3B's sizes are not published; 36 layers of width 2560 with 40 heads are a guess near its name.
Matrices are N(0, 1 / sqrt(columns)), gains 1, biases 0: activations are ordinary, and values do not matter to memory.

    python benchmarks/memory/random_weights.py FOLDER --size 650m
"""

import argparse
import json
import math
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from protembed.checkpoints.foreign import esm, megatron
from protembed.checkpoints.foreign.alphabets import ESM, MEGATRON, fit
from protembed.checkpoints.foreign.conversion import Table, make_rules
from protembed.models.config import EncoderConfig, MlmHeadConfig, ModelCard
from protembed.models.protein_model import ProteinModel

ESM2 = EncoderConfig(
    vocab_size=33, d_model=1280, n_layers=33, n_heads=20, d_ff=5120, mask_id=ESM.mask_id, token_dropout=0.12
)
PROTEINLM = EncoderConfig(
    vocab_size=128,
    d_model=2560,
    n_layers=36,
    n_heads=40,
    d_ff=10_240,
    mask_id=MEGATRON.mask_id,
    position="learned",
    max_length=2176,
    norm_eps=1e-12,
    activation="gelu_tanh",
)
Shapes = dict[str, tuple[int, ...]]


def foreign_shapes(card: ModelCard, table: Table) -> Shapes:
    """Return the names and shapes that a family's file has, by its table of names."""
    with torch.device("meta"):
        native = {name: tuple(tensor.shape) for name, tensor in ProteinModel(card).state_dict().items()}
    shapes: Shapes = {}
    for rule in make_rules(table, n_layers=card.encoder.n_layers):
        rows, *rest = native[rule.native]
        shapes |= dict.fromkeys(rule.sources, (rows // len(rule.sources), *rest))
    return shapes


def draw(shapes: Shapes, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Draw the tensors, one at a time: matrices are pieces of one supply of noise, because drawing takes minutes."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2 * max(map(math.prod, shapes.values())), generator=generator)
    for name, shape in shapes.items():
        if len(shape) == 2:
            size = math.prod(shape)
            start = int(torch.randint(len(noise) - size, (), generator=generator))
            values = noise[start : start + size].view(shape) * shape[1] ** -0.5
        else:
            values = torch.full(shape, float("norm" in name.lower() and name.endswith("weight")))
        yield name, values.to(dtype)


def write_safetensors(path: Path, shapes: Shapes) -> None:
    """Write float32 tensors as they are drawn: a JSON header of places, then the bytes."""
    header, stop = {}, 0
    for name, shape in shapes.items():
        start, stop = stop, stop + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, values in draw(shapes, torch.float32):
            values.numpy().tofile(file)


def write_hugging_face(folder: Path, card: ModelCard) -> None:
    """Write ESM-2 as a folder of transformers, float32."""
    names, config = esm.HUGGING_FACE, card.encoder
    table = {**names.always, **names.head, "encoder.final_norm": names.final_norm}
    shapes = foreign_shapes(card, {**table, "contact_head.regression": names.contacts})
    folder.mkdir()
    published = {
        "model_type": "esm",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_ff,
        "position_embedding_type": "rotary",
        "layer_norm_eps": config.norm_eps,
        "token_dropout": True,
    }
    (folder / "config.json").write_text(json.dumps(published))
    write_safetensors(folder / "model.safetensors", shapes)


def write_fair(path: Path, card: ModelCard) -> None:
    """Write ESM-2 as a file of fair-esm, float32, and its contact regression beside it; held in memory once."""
    names, config = esm.FAIR, card.encoder
    shapes = foreign_shapes(card, {**names.always, **names.head, "encoder.final_norm": names.final_norm})
    settings = Namespace(
        encoder_layers=config.n_layers, encoder_attention_heads=config.n_heads, token_dropout=True, arch="esm2"
    )
    model = {f"encoder.sentence_encoder.{name}": values for name, values in draw(shapes, torch.float32)}
    torch.save({"cfg": {"model": settings}, "model": model}, path)
    regression = draw(foreign_shapes(card, {"contact_head.regression": names.contacts}), torch.float32)
    torch.save({"model": dict(regression)}, path.with_name(f"{path.stem}-contact-regression.pt"))


def write_megatron(folder: Path, card: ModelCard) -> None:
    """Write ProteinLM as its pretraining does, float16; held in memory once."""
    shapes = foreign_shapes(card, {**megatron.TABLE, **megatron.FINAL_NORM, **megatron.HEAD})
    args = Namespace(num_attention_heads=card.encoder.n_heads, num_layers=card.encoder.n_layers)
    model = {name if "lm_head" in name else f"language_model.{name}": t for name, t in draw(shapes, torch.float16)}
    rank = folder / "release" / "mp_rank_00"
    rank.mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("release")
    torch.save({"checkpoint_version": 3.0, "args": args, "model": model}, rank / "model_optim_rng.pt")


def main() -> None:
    """Write all forms of one size into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=("650m", "3b"), required=True)
    options = parser.parse_args()
    if options.size == "650m":
        head = MlmHeadConfig(norm_eps=ESM2.norm_eps)
        card = ModelCard(name="ESM-2", encoder=ESM2, alphabet=fit(ESM, 33), mlm_head=head, contact_head=True)
        write_hugging_face(options.folder / "hugging_face", card)
        write_fair(options.folder / "fair.pt", card)
    else:
        head = MlmHeadConfig(norm_eps=PROTEINLM.norm_eps)
        card = ModelCard(name="ProteinLM", encoder=PROTEINLM, alphabet=fit(MEGATRON, 128), mlm_head=head)
        write_megatron(options.folder / "megatron", card)


if __name__ == "__main__":
    main()
