"""What a pretraining run begins with: its corpus, the checkpoint it goes on from, its first weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from protembed.checkpoints import native as checkpoint
from protembed.errors import TrainingError, UsageError
from protembed.models.config import ModelCard
from protembed.models.protein_model import ProteinModel
from protembed.sequences.alphabet import Alphabet
from protembed.training.checkpoints import list_checkpoints, read_config
from protembed.training.corpus.corpus import Corpus, open_corpus, prepare_corpus
from protembed.training.corpus.counts import Counts
from protembed.training.corpus.packing import TokenStore
from protembed.training.optimizer import learning_rate
from protembed.training.parallel import World
from protembed.training.pretrain.config import DataSection, ObjectiveSection, PretrainConfig, TrainSection
from protembed.training.pretrain.growth import can_grow, grow
from protembed.training.pretrain.profile import profile_targets


def find_corpus(data: DataSection, alphabet: Alphabet, world: World) -> Corpus:
    """Open the corpus; the main process makes it first when its sources are named.

    A complete corpus does without its sources: on another machine they need not be. Raises TrainingError.
    """
    folder = Path(data.corpus)
    at_hand = all(Path(source).exists() for source in (*data.train, *data.valid, *data.homologs))
    if data.train and world.is_main and (at_hand or not (folder / "index.json").exists()):
        prepare_corpus(data.train, folder, alphabet, valid=data.valid, homologs=data.homologs)
    world.wait()
    corpus = open_corpus(folder, alphabet)
    if not len(corpus.train):
        raise TrainingError(f"{folder}: there is no protein to train on", hint="Name proteins in [data] train.")
    return corpus


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The proteins that a run is evaluated on: tokens of each, and targets (T, 20) where profiles are predicted."""

    proteins: Sequence[npt.NDArray[np.int64]]
    profiles: Sequence[Counts] | None


def choose_valid(
    store: TokenStore, alphabet: Alphabet, config: PretrainConfig, background: npt.NDArray[np.float32] | None = None
) -> Validation:
    """Return the first proteins of the validation set; with `background` (20,), their profiles, too.

    Raises TrainingError when there is none.
    """
    count = min(len(store), config.train.evaluate_proteins)
    if count == 0:
        raise TrainingError("the validation set is empty", hint="Name proteins in [data] valid.")
    longest = config.data.max_residues
    proteins = [alphabet.surround(store[index][:longest]) for index in range(count)]
    if not any(np.isin(protein, alphabet.standard_ids).any() for protein in proteins):
        raise TrainingError("the validation set holds no residue that can be asked for", hint="All of it is X.")
    if background is None:
        return Validation(proteins=proteins, profiles=None)
    around = ((alphabet.prefix, alphabet.suffix), (0, 0))
    counts = [np.pad(store.counts(index)[:longest], around) for index in range(count)]
    targets = [profile_targets(*pair, alphabet, background) for pair in zip(proteins, counts, strict=True)]
    return Validation(proteins=proteins, profiles=targets)


def pseudocounts(corpus: Corpus, section: ObjectiveSection) -> npt.NDArray[np.float32] | None:
    """Return the pseudocounts (20,) of profiles; None when no profiles are asked for.

    Raises TrainingError when they are and the corpus has no homologs.
    """
    if not section.profile:
        return None
    if not corpus.train.homologs:
        raise TrainingError(
            f"{corpus.folder}: has no homologs, and [objective] profile is {section.profile:g}",
            hint="protembed prepare ... --homologs HITS.tsv --overwrite (what is made already is kept)",
        )
    return np.float32(section.background) * corpus.background


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


def require_schedule(newest: Path, section: TrainSection, done: int) -> None:
    """Raise TrainingError when a run with `decay_steps` would have been elsewhere in its schedule by now.

    Its end may be moved as long as the decay has not begun, by the old settings or by the new ones: the rates of the
    steps that are done are then those of an undisturbed run.
    """
    if not section.decay_steps:
        return
    names = ("learning_rate", "final_learning_rate", "warmup_steps", "decay", "decay_share", "decay_steps", "steps")
    saved = read_config(newest).get("train", {})
    try:
        before = replace(section, **{name: saved[name] for name in names if name in saved})
    except (TypeError, UsageError) as error:
        raise TrainingError(f"{newest}/progress.json: [train] makes no sense", hint=f"Delete {newest}.") from error
    if all(math.isclose(learning_rate(step, before), learning_rate(step, section)) for step in range(done)):
        return
    raise TrainingError(
        f"{newest}: the rate of the steps that are done is not that of the schedule that is asked for now",
        hint=f"To end this run, set [train] steps to {done + section.decay_steps} or more ({done} are done, and "
        f"decay_steps is {section.decay_steps}). learning_rate, warmup_steps and a decay that has begun must stay.",
    )


def first_weights(card: ModelCard, section: TrainSection, newest: Path | None) -> dict[str, Tensor]:
    """Return the weights to begin with: a checkpoint's, those of `start_from`, grown where it is smaller, or fresh."""
    if newest is None and not section.start_from:
        model = ProteinModel(card)
        model.initialise(section.seed)
    else:
        start = newest / "model.safetensors" if newest else Path(section.start_from)
        loaded = checkpoint.load(start, device=torch.device("cpu"), dtype=torch.float32)
        if newest and loaded.card.encoder == card.encoder:
            model = loaded
        elif newest or not can_grow(loaded.card.encoder, card.encoder):
            raise TrainingError(
                f"{start}: is of another shape than [model] says",
                hint="[train] start_from names a native checkpoint of the same encoder, or of one with fewer layers, "
                "a narrower feed-forward or no stem.",
            )
        else:
            model = grow(loaded, card, section.seed)
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
