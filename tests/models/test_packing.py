"""Packed, padded and one at a time are the same function."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from protembed.errors import ModelError
from protembed.models.config import EncoderConfig
from protembed.models.encoder import Encoder
from protembed.models.packing import Packed, Padded
from protembed.models.protein_model import ProteinModel
from tests.conftest import SEQUENCES

FORMS = [
    {},
    {"activation": "swiglu", "bias": False, "qk_norm": True},
    {"position": "learned", "max_length": 200, "norm_order": "post", "embed_norm": True, "final_norm": False},
    {"norm": "rmsnorm", "activation": "gelu_tanh", "token_dropout": 0.12, "stem": 7},
]


@pytest.mark.parametrize("form", FORMS)
def test_packed_equals_padded_equals_alone(form: dict[str, object]) -> None:
    config = EncoderConfig(vocab_size=29, d_model=32, n_layers=3, n_heads=4, d_ff=64, mask_id=1, **form)  # type: ignore[arg-type]
    torch.manual_seed(0)
    encoder = Encoder(config).eval()
    lengths = [5, 17, 1, 160]
    proteins = [torch.randint(0, 29, (length,)) for length in lengths]
    proteins[1][3:6] = config.mask_id
    with torch.inference_mode():
        alone = [encoder(tokens, Packed([len(tokens)]), {1, 3}) for tokens in proteins]
        packed = encoder(torch.cat(proteins), Packed(lengths), {1, 3})
        table = torch.nn.utils.rnn.pad_sequence(proteins, batch_first=True)
        mask = torch.arange(160) < torch.tensor(lengths)[:, None]
        padded = encoder(table, Padded(mask), {1, 3})
    for layer in (1, 3):
        expected = torch.cat([hidden[layer] for hidden in alone])
        torch.testing.assert_close(packed[layer], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(padded[layer][mask], expected, atol=1e-5, rtol=0)


def test_only_asked_for_layers_are_run() -> None:
    config = EncoderConfig(vocab_size=29, d_model=16, n_layers=3, n_heads=2, d_ff=32, mask_id=1)
    encoder = Encoder(config)
    encoder.blocks[1].register_forward_hook(lambda *_: pytest.fail("block 2 ran for layer 1"))
    assert set(encoder(torch.tensor([2, 4, 3]), Packed([3]), {0, 1})) == {0, 1}


def test_training_attention_in_bfloat16_equals_the_fused_one() -> None:
    layout = Packed([7, 20])
    q, k, v = (torch.randn(27, 4, 8, dtype=torch.bfloat16) for _ in range(3))
    plain = layout.attend(q.clone().requires_grad_(), k, v)
    torch.testing.assert_close(plain, layout.attend(q, k, v), atol=2e-2, rtol=0)


def test_pooling_leaves_special_tokens_out() -> None:
    x = torch.tensor([[100.0], [1], [3], [100], [100], [5], [100]])
    layout = Packed([4, 3])
    assert layout.pool(x, "mean", prefix=1, suffix=1).tolist() == [[2], [5]]
    assert layout.pool(-x, "max", prefix=1, suffix=1).tolist() == [[-1], [-5]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_attention_on_cuda_equals_one_call_a_sequence(dtype: torch.dtype) -> None:
    layout = Packed([7, 300, 1], "cuda")
    q, k, v = (torch.randn(308, 4, 32, dtype=dtype, device="cuda") for _ in range(3))
    torch.testing.assert_close(layout.attend(q, k, v), layout._attend_each(q, k, v), atol=2e-2, rtol=0)


def test_attention_is_the_textbook_one() -> None:
    q, k, v = (torch.randn(6, 2, 4) for _ in range(3))
    expected = scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in (q, k, v)))[0].transpose(0, 1)
    torch.testing.assert_close(Packed([6]).attend(q, k, v), expected)


def test_model_outputs_have_their_shapes(model: ProteinModel) -> None:
    tokens = [torch.from_numpy(model.card.alphabet.encode(sequence)) for sequence in SEQUENCES.values()]
    lengths = [len(part) for part in tokens]
    wanted = {("residues", 1), ("mean", 2), ("max", 0), ("cls", 2), ("logits", 2)}
    with torch.inference_mode():
        outputs = model.outputs(torch.cat(tokens), Packed(lengths), wanted)
    total, count = sum(lengths), len(lengths)
    shapes = {name: tuple(values.shape) for name, values in outputs.items()}
    assert shapes == {
        ("residues", 1): (total, 32),
        ("mean", 2): (count, 32),
        ("max", 0): (count, 32),
        ("cls", 2): (count, 32),
        ("logits", 2): (total, 20),
    }


class TestStem:
    """A convolution over the embeddings sees its own protein only, however the batch lies."""

    lengths = (7, 1, 12, 3)

    def test_packed_equals_padded_equals_torch(self) -> None:
        torch.manual_seed(0)
        weight = torch.randn(5, 6)
        proteins = [torch.randn(length, 6) for length in self.lengths]
        expected = [
            torch.nn.functional.conv1d(x.T.unsqueeze(0), weight.T.unsqueeze(1), padding=2, groups=6)[0].T
            for x in proteins
        ]
        packed = Packed(self.lengths).convolve(torch.cat(proteins), weight)
        torch.testing.assert_close(packed, torch.cat(expected))
        mask = torch.arange(12) < torch.tensor(self.lengths).unsqueeze(1)
        rows = torch.nn.utils.rnn.pad_sequence(proteins, batch_first=True, padding_value=9.0)
        padded = Padded(mask).convolve(rows, weight)
        torch.testing.assert_close(padded[mask], torch.cat(expected))

    def test_a_stem_of_zeros_changes_nothing_and_another_does(self, model: ProteinModel) -> None:
        card = replace(model.card, encoder=replace(model.card.encoder, stem=5))
        stemmed = ProteinModel(card).eval()
        stemmed.load_state_dict(model.state_dict(), strict=False)
        tokens, layout = torch.tensor([2, 4, 9, 7, 3, 2, 5, 3]), Packed([5, 3])
        with torch.no_grad():
            assert torch.equal(stemmed(tokens, layout), model(tokens, layout))
            stemmed.encoder.stem.weight.normal_()
            both = stemmed(tokens, layout)
            assert not torch.allclose(both, model(tokens, layout))
            torch.testing.assert_close(both[:5], stemmed(tokens[:5], Packed([5])))

    @pytest.mark.parametrize("width", [4, -1])
    def test_an_even_width_is_refused(self, model: ProteinModel, width: int) -> None:
        with pytest.raises(ModelError, match="stem"):
            replace(model.card.encoder, stem=width)
