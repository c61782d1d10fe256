"""Random ESM-2 weights, once as a transformers folder and once as a fair-esm file: one function for every contender."""

import argparse
import re
from argparse import Namespace
from pathlib import Path

import torch
from esm.model.esm2 import ESM2
from safetensors.torch import save_file
from torch import Tensor
from transformers import EsmConfig, EsmForMaskedLM, EsmTokenizer, logging
from transformers.models.esm.configuration_esm import get_default_vocab_list

N_HEADS = 20
"""Of the published models from 8M to 650M."""

FAIR_ESM_NAMES = (
    (r"^esm\.embeddings\.word_embeddings\.", "embed_tokens."),
    (r"^esm\.encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.", r"layers.\1.self_attn.\2_proj."),
    (r"self_attn\.(q|k|v)[a-z]*_proj", r"self_attn.\1_proj"),
    (r"^esm\.encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"layers.\1.self_attn.out_proj."),
    (r"^esm\.encoder\.layer\.(\d+)\.attention\.LayerNorm\.", r"layers.\1.self_attn_layer_norm."),
    (r"^esm\.encoder\.layer\.(\d+)\.intermediate\.dense\.", r"layers.\1.fc1."),
    (r"^esm\.encoder\.layer\.(\d+)\.output\.dense\.", r"layers.\1.fc2."),
    (r"^esm\.encoder\.layer\.(\d+)\.LayerNorm\.", r"layers.\1.final_layer_norm."),
    (r"^esm\.encoder\.emb_layer_norm_after\.", "emb_layer_norm_after."),
    (r"^esm\.contact_head\.", "contact_head."),
    (r"^lm_head\.decoder\.weight$", "lm_head.weight"),
)
"""Published names of transformers -> those of fair-esm inside its module."""


@torch.no_grad()
def random_model(layers: int, width: int, seed: int) -> EsmForMaskedLM:
    """Make ESM-2 of the published configuration; every matrix keeps its input's scale, so activations are ordinary."""
    config = EsmConfig(
        vocab_size=33,
        pad_token_id=1,
        mask_token_id=32,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=N_HEADS,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=1026,
        layer_norm_eps=1e-5,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=True,
    )
    model = EsmForMaskedLM(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "embeddings" in name:
            parameter.copy_(noise)
        elif parameter.ndim == 2:
            parameter.copy_(noise / parameter.shape[1] ** 0.5)
        else:
            parameter.copy_(0.1 * noise + float("norm" in name.lower() and name.endswith("weight")))
    model.esm.embeddings.word_embeddings.weight[config.pad_token_id] = 0
    return model.eval()


def fair_esm_weights(model: EsmForMaskedLM) -> dict[str, Tensor]:
    """Return the weights under fair-esm's names; its own module says that none is missing or too many."""
    config = model.config
    own = ESM2(config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
    weights = {name: values for name, values in own.state_dict().items() if name.endswith("inv_freq")}
    for name, values in model.state_dict().items():
        if "position_embeddings" in name or "inv_freq" in name or name == "lm_head.decoder.bias":
            continue  # without use in ESM-2; derived; the same as lm_head.bias
        for pattern, replacement in FAIR_ESM_NAMES:
            name = re.sub(pattern, replacement, name)
        weights[name] = values
    own.load_state_dict(weights, strict=True)
    return weights


def published_weights(model: EsmForMaskedLM) -> dict[str, Tensor]:
    """Return the weights under the names of the hub's files; save_pretrained of transformers 5 has its own variants."""
    config, rotary = model.config, "rotary_embeddings.inv_freq"
    weights = {name: values.contiguous() for name, values in model.state_dict().items() if rotary not in name}
    del weights["lm_head.decoder.weight"]  # tied to the embedding
    for layer in range(config.num_hidden_layers):
        name = f"esm.encoder.layer.{layer}.attention.self.{rotary}"
        weights[name] = model.esm.rotary_embeddings.inv_freq.clone()
    unused = torch.zeros(config.max_position_embeddings, config.hidden_size)
    return weights | {"esm.embeddings.position_embeddings.weight": unused}


def save_transformers(model: EsmForMaskedLM, folder: Path) -> None:
    """Write a folder as on the Hugging Face hub: configuration, weights, tokenizer with its vocab.txt."""
    model.config.architectures = ["EsmForMaskedLM"]
    model.config.save_pretrained(folder)
    save_file(published_weights(model), folder / "model.safetensors", metadata={"format": "pt"})
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(get_default_vocab_list()))
    EsmTokenizer(str(vocabulary)).save_pretrained(folder)


def save_fair_esm(model: EsmForMaskedLM, path: Path) -> None:
    """Write a file as fair-esm publishes it, and the contact regression that its loader wants beside it."""
    config = model.config
    settings = Namespace(
        arch="esm2",
        encoder_layers=config.num_hidden_layers,
        encoder_embed_dim=config.hidden_size,
        encoder_ffn_embed_dim=config.intermediate_size,
        encoder_attention_heads=config.num_attention_heads,
        token_dropout=config.token_dropout,
    )
    weights, regression = {}, {}
    for name, values in fair_esm_weights(model).items():
        if name.startswith("contact_head."):
            regression[name] = values
        elif name.startswith("lm_head."):
            weights[f"encoder.{name}"] = values
        else:
            weights[f"encoder.sentence_encoder.{name}"] = values
    torch.save({"cfg": {"model": settings}, "model": weights}, path)
    torch.save({"model": regression}, path.with_name(f"{path.stem}-contact-regression.pt"))


def main() -> None:
    """Write both forms into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True, help="of the published model")
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options.folder.mkdir(parents=True, exist_ok=True)
    model = random_model(options.layers, options.width, options.seed)
    save_transformers(model, options.folder / options.name)
    save_fair_esm(model, options.folder / f"{options.name}.pt")


if __name__ == "__main__":
    main()
