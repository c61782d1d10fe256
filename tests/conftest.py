"""What the tests share: a tiny model with random weights, FASTA files, and a way to call the command line."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from protembed.backends.torch_backend import TorchBackend
from protembed.checkpoints import native as checkpoint
from protembed.models.protein_model import ProteinModel
from protembed.training.pretrain.config import ModelSection, make_card

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"

SEQUENCES = {
    "sp|P0A7Y4|RNH_ECOLI": "MLKQVEIFTDGSCLGNPGPGGYGAILRYRGREKTFSAGYTRTTNNRMELMAAIVALEALKEHCEVILSTDSQYVRQGITQWIHNWKKRGWKTADKKPVKNVDLWQRLDAALGQHQIKWEWVKGHAGHPENERCDELARAAAMNPTLEDTGYQVEV",  # noqa: E501
    "sp|P01308|INS_HUMAN": "MALWMRLLPLLALLALWGPDPAAAFVNQHLCGSHLVEALYLVCGERGFFYTPKTRREAEDLQVGQVELGGGPGAGSLQPLALEGSLQKRGIVEQCCTSICSLYQLENYCN",  # noqa: E501
    "sp|P69905|HBA_HUMAN": "MVLSPADKTNVKAAWGKVGAHAGEYGAEALERMFLSFPTTKTYFPHFDLSHGSAQVKGHGKKVADALTNAVAHVDDMPNALSALSDLHAHKLRVDPVNFKLLSHCLLVTLAAHLPAEFTPAVHASLDKFLASVSTVLTSKYR",  # noqa: E501
    "sp|P0CG48|UBC_HUMAN": "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG",
    "sp|P01112|RASH_HUMAN": "MTEYKLVVVGAGGVGKSALTIQLIQNHFVDEYDPTIEDSYRKQVVIDGETCLLDILDTAGQEEYSAMRDQYMRTGEGFLCVFAINNTKSFEDIHQYREQIKRVKDSDDVPMVLVGNKCDLAARTVESRQAQDLARSYGIPYIETSAKTRQGVEDAFYTLVREIRQH",  # noqa: E501
    "sp|P61626|LYSC_HUMAN": "MKALIVLGLVLLSVTVQGKVFERCELARTLKRLGMDGYRGISLANWMCLAKWESGYNTRATNYNAGDRSTDYGIFQINSRYWCNDGKTPGAVNACHLSCSALLQDNIADAVACAKRVVRDPQGIRAWVAWRNRCQNRDVRQYVQGCGV",  # noqa: E501
}
"""Proteins of UniProtKB/Swiss-Prot (CC BY 4.0)."""


def write_fasta(path: Path, sequences: dict[str, str]) -> Path:
    """Write id -> sequence as FASTA."""
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in sequences.items()))
    return path


def pytest_configure() -> None:
    """Listen to Ctrl-C: a shell that runs the tests in the background lets them, and what they start, ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return write_fasta(tmp_path / "proteins.fasta", SEQUENCES)


@pytest.fixture(scope="session")
def model() -> ProteinModel:
    """A model of two layers with random weights of ordinary size."""
    card = make_card(ModelSection(name="tiny", d_model=32, n_layers=2, n_heads=4, d_ff=64))
    model = ProteinModel(card)
    model.initialise(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.15)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def model_file(model: ProteinModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    checkpoint.save(model, path)
    return path


@pytest.fixture
def backend(model: ProteinModel) -> TorchBackend:
    return TorchBackend(model)


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Call the command line in a process of its own, in the test's folder."""

    def call(*words: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "protembed", *map(str, words)],
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=300,
            check=False,
        )

    return call
