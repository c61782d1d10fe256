"""What a pretraining run begins with: its corpus, the checkpoint it goes on from, its first weights."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from protembed.checkpoints import native as checkpoint
from protembed.errors import TrainingError
from protembed.models.config import ModelCard
from protembed.models.protein_model import ProteinModel
from protembed.sequences.alphabet import Alphabet
from protembed.training.checkpoints import list_checkpoints
from protembed.training.corpus.corpus import Corpus, open_corpus, prepare_corpus
from protembed.training.corpus.packing import TokenStore
from protembed.training.parallel import World
from protembed.training.pretrain.config import DataSection, PretrainConfig, TrainSection
from protembed.training.pretrain.growth import can_grow, grow


def find_corpus(data: DataSection, alphabet: Alphabet, world: World) -> Corpus:
    """Open the corpus; the main process makes it first when its sources are named.

    A complete corpus does without its sources: on another machine they need not be. Raises TrainingError.
    """
    folder = Path(data.corpus)
    at_hand = all(Path(source).exists() for source in (*data.train, *data.valid))
    if data.train and world.is_main and (at_hand or not (folder / "index.json").exists()):
        prepare_corpus(data.train, folder, alphabet, valid=data.valid)
    world.wait()
    corpus = open_corpus(folder, alphabet)
    if not len(corpus.train):
        raise TrainingError(f"{folder}: there is no protein to train on", hint="Name proteins in [data] train.")
    return corpus


def choose_valid(store: TokenStore, alphabet: Alphabet, config: PretrainConfig) -> list[npt.NDArray[np.int64]]:
    """Return the tokens of the first proteins of the validation set. Raises TrainingError when there is none."""
    count = min(len(store), config.train.evaluate_proteins)
    if count == 0:
        raise TrainingError("the validation set is empty", hint="Name proteins in [data] valid.")
    longest = config.data.max_residues
    proteins = [alphabet.surround(store[index][:longest]) for index in range(count)]
    if not any(np.isin(protein, alphabet.standard_ids).any() for protein in proteins):
        raise TrainingError("the validation set holds no residue that can be asked for", hint="All of it is X.")
    return proteins


def find_checkpoint(run: Path, world: World) -> Path | None:
    """Return the newest checkpoint of a run, if it has one; every process must have found the same one."""
    found = list_checkpoints(run)
    newest = found[-1] if found else None
    if not world.agrees(int(newest.name.rpartition("_")[2]) if newest else 0):
        raise TrainingError(
            f"{run}: not all processes find the same checkpoints there",
            hint="[train] out must be on a file system that all machines share.",
        )
    return newest


def first_weights(card: ModelCard, section: TrainSection, newest: Path | None) -> dict[str, Tensor]:
    """Return the weights to begin with: a checkpoint's, those of `start_from`, grown where it is smaller, or fresh."""
    if newest is None and not section.start_from:
        model = ProteinModel(card)
        model.initialise(section.seed)
    else:
        start = newest / "model.safetensors" if newest else Path(section.start_from)
        loaded = checkpoint.load(start, device=torch.device("cpu"), dtype=torch.float32)
        same = loaded.card.encoder == card.encoder
        if not same and (newest or not can_grow(loaded.card.encoder, card.encoder)):
            raise TrainingError(
                f"{start}: is of another shape than [model] says",
                hint="[train] start_from names a native checkpoint of the same encoder, or of one with fewer layers, "
                "a narrower feed-forward or no stem.",
            )
        model = loaded if same else grow(loaded, card, section.seed)
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
