"""The pure parts of benchmarks/ and research/: what they compute must be right before anybody quotes it."""

import json
import math
import subprocess
import sys
from pathlib import Path

import attention_contacts
import contenders
import l1_regression
import loss_curve
import numpy as np
import perplexity
import profiles
import pytest
import regression
import torch

from protembed.backends.torch_backend import TorchBackend
from protembed.checkpoints import native as checkpoint
from protembed.errors import InputError
from protembed.models.protein_model import ProteinModel
from protembed.sequences.alphabet import PROTEMBED, STANDARD_RESIDUES
from protembed.training.pretrain.perplexity import perplexity as mean_perplexity


@pytest.fixture(scope="module")
def markov() -> list[str]:
    """Proteins of a first-order chain: after a residue one of two others."""
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(60):
        states = [int(rng.integers(20))]
        for jump in rng.integers(1, 3, size=199):
            states.append((3 * states[-1] + int(jump)) % 20)
        texts.append("".join(STANDARD_RESIDUES[state] for state in states))
    return texts


class TestCountModels:
    def test_windows_are_the_neighbours_of_standard_residues(self) -> None:
        assert perplexity.windows(["AXC", "D"]).tolist() == [
            [20, 20, 0, 20, 1],
            [0, 20, 1, 20, 20],
            [20, 20, 2, 20, 20],
        ]

    def test_counting_in_pieces_counts_the_same(self, markov: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        whole = perplexity.count(markov)
        monkeypatch.setattr(perplexity, "CHUNK", 500)
        assert np.array_equal(perplexity.count(markov), whole)
        assert whole.sum() == 60 * 200

    @pytest.mark.parametrize("name", perplexity.CONTEXTS)
    def test_probabilities_add_up_to_one(self, markov: list[str], name: str) -> None:
        probabilities = perplexity.estimate(perplexity.count(markov[:3]), perplexity.CONTEXTS[name])
        assert np.allclose(probabilities.sum(axis=perplexity.MIDDLE), 1)
        assert probabilities.min() > 0

    def test_context_pays_where_there_is_order(self, markov: list[str]) -> None:
        counts = perplexity.count(markov[:50])
        found = {
            name: mean_perplexity(perplexity.count_losses(perplexity.estimate(counts, contexts), markov[50:]))
            for name, contexts in perplexity.CONTEXTS.items()
        }
        assert 15 < found["unigram"] <= 20.5
        assert 2 <= found["3-gram"] < 2.5
        assert found["neighbours"] < found["3-gram"]

    def test_the_unigram_is_the_shares(self) -> None:
        probabilities = perplexity.estimate(perplexity.count(["A" * 30 + "C" * 70]), perplexity.CONTEXTS["unigram"])
        (loss,) = perplexity.count_losses(probabilities, ["C"])
        assert math.exp(-loss.loss) == pytest.approx(0.7, abs=0.01)


class TestRegressions:
    def test_softmax_regression_converges_to_the_generating_weights(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(3, [0.1, 1, 10, 1], size=(20_000, 4)).astype(np.float16)
        x[:, 3] = x[:, 1]  # a column twice: no unique solution, and yet one prediction
        scores = x[:, :3].astype(np.float64) @ np.array([[20, 0, 0], [0, 2, 0], [0, 0, 0.1]])
        y = (scores - scores.mean(axis=0) + rng.gumbel(size=scores.shape)).argmax(axis=1)
        fitted = regression.fit(x, y)
        ideal = float(((scores - scores.mean(axis=0)).argmax(axis=1) == y).mean())
        assert fitted.iterations < regression.ITERATIONS
        assert fitted.accuracy(x, y) == pytest.approx(ideal, abs=0.01)

    def test_l1_drops_noise_and_meets_the_optimality_conditions(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(4000, 6)).astype(np.float32)
        y = rng.random(4000) < 1 / (1 + np.exp(3 - 2 * x[:, 0] + x[:, 1]))
        penalty = 60.0
        found = l1_regression.fit(x, y, penalty=penalty)
        gradient = x.T.astype(np.float64) @ (1 / (1 + np.exp(-(x @ found.weights + found.bias))) - y)
        used = found.weights != 0
        assert used.tolist() == [True, True, False, False, False, False]
        assert np.allclose(gradient[used], -penalty * np.sign(found.weights[used]), atol=0.5)
        assert (np.abs(gradient[~used]) <= penalty).all()

    def test_a_regression_written_into_a_checkpoint_gives_the_same_contacts(
        self, model: ProteinModel, model_file: Path, tmp_path: Path
    ) -> None:
        weights = np.linspace(-20, 20, 8)
        fitted = l1_regression.L1Regression(weights=weights, bias=-1.0, iterations=1)
        attention_contacts.write(model_file, fitted, tmp_path / "with.safetensors")
        loaded = checkpoint.load(tmp_path / "with.safetensors", device=torch.device("cpu"))
        sequence = "MKTAYIAKQRQISFVKSHFSRQ"
        maps = attention_contacts.corrected_maps(TorchBackend(model), sequence)
        expected = 1 / (1 + np.exp(1.0 - np.tensordot(weights, maps, axes=1)))
        assert np.allclose(TorchBackend(loaded).contacts(PROTEMBED.encode(sequence)), expected, atol=1e-5)

    def test_a_perfect_predictor_is_perfect(self) -> None:
        rng = np.random.default_rng(0)
        contacts = rng.random((60, 60)) < 0.5
        contacts |= contacts.T
        fold = attention_contacts.Fold(sequence="A" * 60, contacts=contacts, known=np.ones_like(contacts))
        found = attention_contacts.precisions(lambda _: contacts.astype(float), [fold])
        assert set(found.values()) == {1.0}
        assert max(attention_contacts.precisions(lambda _: -contacts.astype(float), [fold]).values()) < 0.7


class TestLossCurve:
    def test_recovers_the_law_that_made_the_losses(self) -> None:
        tokens = np.geomspace(1e6, 3e8, 25)
        noise = np.random.default_rng(0).normal(scale=1e-4, size=25)
        best, others = loss_curve.fit(tokens, 2.3 + 40 * tokens**-0.3 + noise)
        assert best.floor == pytest.approx(2.3, abs=0.02)
        assert best.exponent == pytest.approx(0.3, abs=0.02)
        last = loss_curve.forecast(best, others, 3e8)[-1]
        assert last.low <= math.exp(2.3 + 40 * 3e10**-0.3) <= last.high

    def test_a_resumed_run_counts_each_step_once(self, tmp_path: Path) -> None:
        steps = [10, 20, 30, 20, 30, 40, 50]
        reports = [{"step": s, "tokens": 100 * s, "valid_perplexity": 18.0 - s / 50} for s in steps]
        path = tmp_path / "metrics.jsonl"
        path.write_text("\n".join(json.dumps(r) for r in [*reports, {**reports[0], "valid_perplexity": None}]))
        tokens, _ = loss_curve.read([path])
        assert tokens.tolist() == [1000, 2000, 3000, 4000, 5000]
        with pytest.raises(InputError, match="too few"):
            loss_curve.read([path], from_tokens=2500)


ESM_CPP = """
from pathlib import Path
import numpy as np
__version__, current_isa = "9.9", lambda: "avx512"
class Tokenizer:
    def encode(self, text, truncate=True):
        return [900, *map(ord, text[: 5 if truncate else None]), 900]
class Model:
    config = type("Config", (), {"hidden_size": 2})
    load_from_safetensors = load_from_gguf = staticmethod(lambda path: Model())
    apply_smoothquant = lambda self, statistics, alpha: setattr(self, "statistics", statistics)
    quantize_weights = lambda self: None
    save_to_gguf = lambda self, path: Path(path).write_text(str(getattr(self, "statistics", None)))
    def forward_with_hidden_states(self, tokens):
        last = np.stack([tokens, -tokens], axis=1).astype(np.float32)
        return None, [np.zeros_like(last), last]
"""
"""An engine whose hidden states are its tokens, which are letters; special ones are far off."""


class TestEmbedSpeed:
    @pytest.fixture
    def fasta(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        package = tmp_path / "site" / "esm_cpp"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(ESM_CPP)
        (package / "quantize.py").write_text("def calibrate(model, tokenizer, sequences): return sequences")
        monkeypatch.setenv("PYTHONPATH", str(package.parent))
        (tmp_path / "x.fasta").write_text(">one\nAACC\n>two\nACDEFGHIKL\nMNPQ\n")
        return tmp_path / "x.fasta"

    def admit(self, fasta: Path, *kinds: str) -> tuple[dict[str, str], list[contenders.Contender]]:
        folder = fasta.parent
        release = contenders.admit_esm_cpp(sys.executable, folder, folder, kinds, fasta, 1)
        everyone = contenders.contenders(folder, "esm2", fasta, folder, 1, sys.executable, "cpu")
        return release, [one for one in everyone if one.name.startswith("esm-cpp")]

    def test_esm_cpp_leaves_special_tokens_out_and_truncates_nothing(self, fasta: Path) -> None:
        release, (peer,) = self.admit(fasta, "float32")
        assert release == {"esm-cpp": "9.9 (avx512)"}
        subprocess.run(peer.command, check=True)
        two, one = peer.read(peer.output, ["two", "one"])
        assert one.tolist() == [66, -66]
        mean = sum(map(ord, "ACDEFGHIKLMNPQ")) / 14
        assert two.tolist() == pytest.approx([mean, -mean])

    def test_int8_of_esm_cpp_is_calibrated(self, fasta: Path) -> None:
        _, (peer,) = self.admit(fasta, "int8")
        assert peer.name == "esm-cpp-int8"
        assert (fasta.parent / "esm-cpp-int8.gguf").read_text() == "['AACC', 'ACDEFGHIKLMNPQ']"

    def test_esm_cpp_is_left_out_where_it_is_missing(self, fasta: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (fasta.parent / "site" / "esm_cpp" / "__init__.py").write_text("raise ImportError('numpy is too new')")
        assert self.admit(fasta, "float32") == ({}, [])
        assert "esm-cpp is left out" in (words := capsys.readouterr().err)
        assert "numpy is too new" in words

    def test_esm_cpp_runs_in_the_arithmetic_that_its_authors_ship(self) -> None:
        for size in contenders.SIZES:
            kind = "float32" if size in ("8m", "35m") else "int8"
            assert not any("esm-cpp" in name for name in contenders.usual_peers(size, "cuda"))
            assert [name for name in contenders.usual_peers(size, "cpu") if "esm-cpp" in name] == [f"esm-cpp-{kind}"]


class TestProfiles:
    background = np.full(20, 0.05)

    def test_blosum62_rows_are_probabilities_and_favour_what_is_alike(self) -> None:
        rows = profiles.blosum62(self.background)
        np.testing.assert_allclose(rows.sum(axis=1), 1)
        names = STANDARD_RESIDUES.index
        assert (rows.argmax(axis=1) == np.arange(20)).all()
        assert rows[names("I"), names("V")] > rows[names("I"), names("D")]
        assert rows[names("W"), names("W")] / rows[names("W"), names("Y")] == pytest.approx(2 ** ((11 - 2) / 2))

    def test_no_predictor_is_better_than_the_targets(self) -> None:
        rng = np.random.default_rng(0)
        targets = rng.dirichlet(np.ones(20), size=50)
        own = profiles.scores_of(targets, targets)
        assert own["correlation"] == pytest.approx(1)
        assert own["cross entropy"] == pytest.approx(-(targets * np.log(targets)).sum(axis=1).mean())
        other = profiles.scores_of(rng.dirichlet(np.ones(20), size=50), targets)
        assert other["cross entropy"] > own["cross entropy"]
        assert profiles.scores_of(np.full((50, 20), 0.05), targets)["cross entropy"] == pytest.approx(math.log(20))
