"""A model as an ONNX graph, built from its card: the counterpart of encoder.py and pretrained_heads.py without torch.

Hidden states are flat, (T, D), outside of attention: a product of two matrices is what every runtime is best at.
`fused` and `plain` graphs take N proteins a call, tokens (N, L), shorter ones padded behind their end: no real position
sees padding. `packed` ones take any proteins end to end, tokens (T,), as CUDA's PackedMultiHeadAttention does, and no
padding. protembed itself pads nothing, and runs graphs without their masks: see OnnxFile.cut.

Legend: T tokens, N proteins, L tokens a protein, D d_model, H heads, K head dim, F d_ff, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from protembed.backends.onnx.attention import AttentionKind, make_layout, padding_id
from protembed.backends.onnx.builder import Drawing, Graph, Value, Weights
from protembed.models.config import MlmHeadConfig, ModelCard
from protembed.sequences.alphabet import STANDARD_RESIDUES


def build_graph(
    card: ModelCard, tensors: Mapping[str, npt.NDArray[Any]], *, attention: AttentionKind, weights: Weights
) -> Graph:
    """Build the graph of a model from its weights by name, float32.

    Outputs: `hidden.0` (embedding layer) to `hidden.<n_layers>` (last, after the final norm), each (N, L, D); `logits`
    (N, L, V) over the whole vocabulary, `profile` (N, L, 20), probabilities over the standard residues, and `pooled`
    (N, D) where the model has them. Packed: (T, D), (T, V) and (T, 20).
    """
    drawing = Drawing(tensors, weights=weights, half=attention == "packed" and weights == "float16")
    _Model(card, drawing, attention).draw()
    return drawing.graph


class _Model:
    def __init__(self, card: ModelCard, drawing: Drawing, attention: AttentionKind) -> None:
        self._card, self._config, self._drawing = card, card.encoder, drawing
        self._layout = make_layout(card.encoder, drawing, attention, padding_id(card.alphabet))

    def draw(self) -> None:
        config = self._config
        x = self._embed()
        self._output("hidden.0", x, config.d_model)
        for number in range(1, config.n_layers + 1):
            x = self._block(x, number - 1)
            if number == config.n_layers and config.final_norm:
                x = self._norm(x, "encoder.final_norm")
            self._output(f"hidden.{number}", x, config.d_model)
        if self._card.mlm_head is not None:
            self._output("logits", self._logits(x, self._card.mlm_head), config.vocab_size)
        if self._card.profile_head:
            scores = self._drawing.linear(x, "profile_head")
            self._output("profile", self._drawing.add("Softmax", scores, axis=-1), len(STANDARD_RESIDUES))
        if self._card.pooler is not None:
            self._pooled(x)

    def _output(self, name: str, x: str, width: int) -> None:
        """Name hidden states (T, width) as an output, in the shape of the tokens."""
        drawing = self._drawing
        if drawing.dtype != "float32":
            x = drawing.cast(x, "float32")
        value = Value(dtype="float32", shape=(*self._layout.sizes, width))
        drawing.output(name, value, "Reshape", x, self._layout.shape(width))

    def _embed(self) -> str:
        """Look the tokens up, as Encoder.embed does; (T, D)."""
        drawing, config = self._drawing, self._config
        ids = self._layout.tokens  # (N, L) or (T,)
        x = drawing.add("Gather", drawing.matrix("encoder.embedding.weight"), ids)
        if config.token_dropout:
            masked = drawing.add("Equal", ids, drawing.scalar(config.mask_id, "int64"))
            share = self._layout.share(drawing.cast(masked, "float32"))
            rest = drawing.add("Sub", drawing.scalar(1.0), share)
            scale = drawing.add("Div", drawing.scalar(1 - config.token_dropout), rest)
            scale = drawing.add("Where", masked, drawing.scalar(0.0), scale)
            scale = drawing.cast(scale, drawing.dtype) if drawing.dtype != "float32" else scale
            x = drawing.add("Mul", x, drawing.add("Unsqueeze", scale, drawing.whole(-1)))
        if config.position == "learned":
            table = drawing.matrix("encoder.positions.weight")
            x = drawing.add("Add", x, drawing.add("Gather", table, self._layout.positions))
        x = drawing.add("Reshape", x, drawing.whole(-1, config.d_model))  # (T, D)
        x = self._norm(x, "encoder.embed_norm") if config.embed_norm else x
        x = self._layout.clear(x)
        if config.stem:
            x = drawing.add("Add", x, self._layout.convolve(x, "encoder.stem.weight", config.stem))
        return x

    def _block(self, x: str, layer: int) -> str:
        add, name = self._drawing.add, f"encoder.blocks.{layer}"
        if self._config.norm_order == "post":
            x = self._norm(add("Add", x, self._attention(x, layer)), f"{name}.attention_norm")
            wide = self._feed_forward(x, f"{name}.feed_forward")
            return self._norm(add("Add", x, wide), f"{name}.feed_forward_norm")
        x = add("Add", x, self._attention(self._norm(x, f"{name}.attention_norm"), layer))
        return add("Add", x, self._feed_forward(self._norm(x, f"{name}.feed_forward_norm"), f"{name}.feed_forward"))

    def _attention(self, x: str, layer: int) -> str:
        """Project to queries, keys and values one by one, so that nothing has to be cut apart; (T, D)."""
        width, name = self._config.d_model, f"encoder.blocks.{layer}.attention"
        thirds = [slice(start, start + width) for start in range(0, 3 * width, width)]
        q, k, v = (self._drawing.quantisable(x, f"{name}.qkv", rows) for rows in thirds)
        if self._config.qk_norm:
            q, k = self._norm(q, f"{name}.q_norm"), self._norm(k, f"{name}.k_norm")
        return self._drawing.quantisable(self._layout.attend(q, k, v, layer), f"{name}.out")

    def _feed_forward(self, x: str, name: str) -> str:
        drawing, width = self._drawing, self._config.d_ff
        if self._config.activation == "swiglu":
            gate = drawing.quantisable(x, f"{name}.up", slice(0, width))  # (T, F)
            value = drawing.quantisable(x, f"{name}.up", slice(width, 2 * width))
            x = drawing.add("Mul", drawing.add("Mul", gate, drawing.add("Sigmoid", gate)), value)
        else:
            form = "tanh" if self._config.activation == "gelu_tanh" else "none"
            x = drawing.add("Gelu", drawing.quantisable(x, f"{name}.up"), approximate=form)
        return drawing.quantisable(x, f"{name}.down")

    def _norm(self, x: str, name: str) -> str:
        """Normalise over D; onnxruntime makes one operator of the RMS norm's."""
        drawing = self._drawing
        if self._config.norm == "layernorm":
            return self._layer_norm(x, name, self._config.norm_eps)
        wide = drawing.cast(x, "float32") if drawing.dtype != "float32" else x
        square = drawing.add("Pow", wide, drawing.scalar(2.0))
        mean = drawing.add("ReduceMean", square, drawing.whole(-1), keepdims=1)
        root = drawing.add("Sqrt", drawing.add("Add", mean, drawing.scalar(self._config.norm_eps)))
        scaled = drawing.add("Div", wide, root)
        scaled = drawing.cast(scaled, drawing.dtype) if drawing.dtype != "float32" else scaled
        return drawing.add("Mul", scaled, drawing.vector(f"{name}.weight"))

    def _layer_norm(self, x: str, name: str, eps: float) -> str:
        drawing = self._drawing
        bias = [drawing.vector(f"{name}.bias")] if drawing.has(f"{name}.bias") else []
        return drawing.add("LayerNormalization", x, drawing.vector(f"{name}.weight"), *bias, axis=-1, epsilon=eps)

    def _logits(self, x: str, head: MlmHeadConfig) -> str:
        """Score the vocabulary, as MaskedLanguageModelHead does; in full precision, it takes little; (T, V)."""
        drawing = self._drawing
        if head.transform:
            x = drawing.add("Gelu", drawing.linear(x, "mlm_head.dense"), approximate="none")
            x = self._layer_norm(x, "mlm_head.norm", head.norm_eps)
        decoder = drawing.matrix("encoder.embedding.weight" if head.tied else "mlm_head.weight")
        return drawing.add("Gemm", x, decoder, drawing.vector("mlm_head.bias"), transB=1)

    def _pooled(self, x: str) -> None:
        """Make the vector of every protein of its first token, as ProteinModel.pooled does; (N, D)."""
        drawing = self._drawing
        first = self._layout.first(x)
        if self._card.pooler == "dense":
            first = drawing.add("Tanh", drawing.linear(first, "pooler.dense"))
        value = Value(dtype="float32", shape=("proteins", self._config.d_model))
        drawing.output("pooled", value, "Cast", first, to=1)
