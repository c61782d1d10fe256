"""Every figure of weights/README.md by one command: the bundled heads on their test sets, beside what is simpler.

For each task (configs/tasks/*.toml say on which splits): the head, its one-hot twin, trained in the same way on the
residues alone, and two baselines that need no training to speak of. Residues: the most frequent class; the most
frequent class, or the mean value, of the amino acid. Proteins: the most frequent class; a regression on amino-acid
composition and length. Contacts: the pairs that are nearest in the chain. Test proteins whose sequence is in the
training data, too, are left out. Intervals of 95 % are of a bootstrap over proteins, 1,000 draws, seed 0.
DATA holds a folder a task, named as in the configurations.

    python benchmarks/accuracy/accuracy.py --data data --json accuracy.json > accuracy.md
    python benchmarks/accuracy/accuracy.py --data data --tasks ss3 stability --heads runs/heads --twins runs/twins

Files of heads and twins are named ENCODER-TASK.safetensors. Where weights/ENCODER-TASK.safetensors is an encoder that
was trained for a task, its head is measured, too.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from regression import fit, rotate

from protembed.backends.load import ModelOptions, open_backend
from protembed.checkpoints.find import find_model, heads_folder
from protembed.cli.console import Console
from protembed.inference.evaluate import ContactFigures, EvaluateOptions, Evaluation
from protembed.inference.report import Score
from protembed.sequences.alphabet import STANDARD_RESIDUES
from protembed.tasks import TASKS, Task
from protembed.tasks.labels.dataset import DataSet
from protembed.tasks.labels.encoding import Labelled
from protembed.tasks.metrics import bootstrap_interval, same_proteins
from protembed.training.finetune.config import TaskConfig, load_task_config
from protembed.training.finetune.splits import unseen

Array = npt.NDArray[Any]
CONFIGS = Path(__file__).parents[2] / "configs" / "tasks"
DRAWS = 1000
TWIN = "one-hot twin"

METRICS = {
    "ss3": ("accuracy",),
    "ss8": ("accuracy",),
    "contact": ("precision_at_l5", "precision_long_l5", "precision_long_l"),
    "remote_homology": ("accuracy", "macro_accuracy"),
    "fluorescence": ("spearman",),
    "stability": ("spearman",),
    "disorder": ("spearman", "auc"),
    "localisation": ("accuracy", "mcc"),
    "membrane": ("accuracy", "macro_f1", "mcc"),
    "conservation": ("accuracy", "mcc_2_states"),
    "binding": ("mean_mcc", "f1_M", "f1_N", "f1_S"),
}
"""The metrics that the table shows; JSON has all."""

Predictor = Callable[[Labelled], Array]
"""What a baseline says of a protein: a row for each residue, or one."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """The figures of one way to predict a task, on one test set."""

    task: str
    split: str
    way: str
    proteins: int
    counted: int
    scores: Sequence[Score]


def letters(protein: Labelled) -> npt.NDArray[np.int64]:
    """Return the number of each residue's amino acid, 20 for any other letter; (L,)."""
    return np.array([STANDARD_RESIDUES.find(letter) % 21 for letter in protein.record.sequence])


def composition(proteins: Sequence[Labelled]) -> npt.NDArray[np.float16]:
    """Return the shares of the amino acids, and the logarithm of the length; (N, 22)."""
    counts = np.array([np.bincount(letters(protein), minlength=21) for protein in proteins], dtype=np.float64)
    lengths = counts.sum(axis=1, keepdims=True)
    return np.hstack((counts / lengths, np.log(lengths))).astype(np.float16)


def by_amino_acid(task: Task, train: DataSet) -> Predictor:
    """Predict every residue by its letter alone: the most frequent class, the flags of most, the mean value."""
    kinds = np.concatenate([letters(protein)[protein.counts] for protein in train.proteins])
    targets = np.concatenate([protein.target[protein.counts] for protein in train.proteins])
    if task.kind == "residue_classes":
        targets = np.eye(len(train.labels))[targets]
    overall = targets.mean(axis=0)
    rows = [targets[kinds == kind] for kind in range(21)]
    table = np.array([some.mean(axis=0) if len(some) else overall for some in rows])
    return lambda protein: decide(task, table[letters(protein)])


def by_composition(task: Task, train: DataSet) -> Predictor:
    """Predict a protein by its composition and length: softmax regression, or least squares for values."""
    x, y = composition(train.proteins), np.array([protein.target for protein in train.proteins])
    if task.kind == "sequence_class":
        fitted = fit(x, y)
        return lambda protein: np.array(
            [(rotate(composition([protein]), fitted.mean, fitted.rotation) @ fitted.weights).argmax()]
        )
    columns = np.hstack((x.astype(np.float64), np.ones((len(x), 1))))
    weights = np.linalg.lstsq(columns, y.astype(np.float64), rcond=None)[0]
    return lambda protein: np.append(composition([protein])[0].astype(np.float64), 1)[None] @ weights


def by_majority(task: Task, train: DataSet) -> Predictor:
    """Predict the most frequent class of all."""
    most = int(train.class_counts().argmax())
    return lambda protein: np.full(len(protein.record.sequence) if task.kind == "residue_classes" else 1, most)


def decide(task: Task, shares: Array) -> Array:
    """Turn shares of classes into the likeliest, and of flags into yes or no."""
    if task.kind == "residue_classes":
        return shares.argmax(axis=1)
    return shares > 0.5 if task.kind == "residue_flags" else shares


def training_set(task: Task, config: TaskConfig, folder: Path) -> DataSet:
    """Read the proteins that a head and its baselines are trained on."""
    parts = [task.read(folder, split=name, unnamed=name == "train") for name in config.data.train]
    return DataSet(proteins=[p for data in parts for p in data.proteins], labels=parts[0].labels, left_out={})


def baselines(task: Task, train: DataSet) -> Iterator[tuple[str, Predictor]]:
    """Yield the baselines of a task by name."""
    if task.kind in ("residue_classes", "sequence_class"):
        yield "majority class", by_majority(task, train)
    if task.kind.startswith("residue"):
        yield "amino acid alone", by_amino_acid(task, train)
    else:
        yield "composition", by_composition(task, train)


def score(task: Task, proteins: Sequence[Labelled], predictor: Predictor) -> tuple[int, list[Score]]:
    """Return how many rows count, and the metrics of a baseline with their intervals."""
    targets = [np.atleast_1d(protein.target[protein.counts]) for protein in proteins]
    predicted = np.concatenate([np.asarray(predictor(p))[np.atleast_1d(p.counts)] for p in proteins])
    target, same = np.concatenate(targets), same_proteins([protein.record.sequence for protein in proteins])
    owners = np.repeat(same, [len(rows) for rows in targets])
    scores = []
    for name, metric in task.metrics.items():
        low, high = bootstrap_interval(
            lambda rows, metric=metric: metric(target[rows], predicted[rows]),  # type: ignore[misc]
            owners,
            draws=DRAWS,
        )
        scores.append(Score(name=name, value=metric(target, predicted), low=low, high=high))
    return len(target), scores


def nearest_in_chain(proteins: Sequence[Labelled]) -> tuple[int, list[Score]]:
    """Return how many pairs count, and what taking those that are nearest in the chain is worth."""
    figures = ContactFigures()
    for protein in proteins:
        place = np.arange(len(protein.record.sequence))
        figures.add(-np.abs(place[:, None] - place).astype(np.float32), protein)
    return figures.pairs, figures.scores(draws=DRAWS, seed=0)


def head_lines(
    task: str, split: str, way: str, folder: Path, head: Path, options: ModelOptions, *, trained: frozenset[str]
) -> Line:
    """Measure a head on the proteins of a split that are not in the training data."""
    evaluation = Evaluation(
        open_backend(options),
        EvaluateOptions(task=task, data=folder, head=str(head), split=split, draws=DRAWS, trained=trained),
    )
    for _ in evaluation.run():
        pass
    report = evaluation.report()
    return Line(task=task, split=split, way=way, proteins=report.proteins, counted=report.counted, scores=report.scores)


def measure(task: Task, folder: Path, heads: Sequence[tuple[str, Path, ModelOptions]]) -> Iterator[Line]:
    """Measure baselines and heads on all test splits of a task."""
    config = load_task_config(CONFIGS / f"{task.name}.toml")
    train = training_set(task, config, folder)
    trained = frozenset(protein.record.sequence for protein in train.proteins)
    simple = [] if task.kind == "contacts" else list(baselines(task, train))
    for split in config.data.test:
        proteins = unseen(task.read(folder, split=split, labels=train.labels).proteins, train.proteins)
        plain = [(way, score(task, proteins, predictor)) for way, predictor in simple]
        if task.kind == "contacts":
            plain = [("nearest in the chain", nearest_in_chain(proteins))]
        for way, (counted, scores) in plain:
            yield Line(task=task.name, split=split, way=way, proteins=len(proteins), counted=counted, scores=scores)
        for way, path, options in heads:
            yield head_lines(task.name, split, way, folder, path, options, trained=trained)


def find_heads(
    task: str, options: ModelOptions, heads: Path, twins: Path | None
) -> Iterator[tuple[str, Path, ModelOptions]]:
    """Yield what there is for a task: the twin, the head, and that of an encoder of its own."""
    encoder = find_model(options.model)
    own = encoder.with_name(f"{encoder.stem}-{task}.safetensors")
    places = [
        (TWIN, (twins or heads / "twins") / f"{encoder.stem}-{task}.safetensors", encoder),
        (encoder.stem, heads / f"{encoder.stem}-{task}.safetensors", encoder),
        (own.stem, heads / f"{own.stem}-{task}.safetensors", own),
    ]
    for way, path, model in places:
        if path.is_file():
            yield way, path, replace(options, model=str(model))


def found(line: Line, name: str) -> Score:
    """Return one metric of a line."""
    return next(score for score in line.scores if score.name == name)


def shown(score: Score) -> str:
    """Write a figure with its interval."""
    if np.isnan(score.value):
        return "-"
    return f"{score.value:.3f}" + ("" if np.isnan(score.low) else f" ({score.low:.3f} to {score.high:.3f})")


def verdict(head: Score, twin: Score) -> str:
    """Say whether a head is better than its twin by more than chance: their intervals are apart."""
    if head.low > twin.high:
        return "yes"
    return "no, worse" if head.high < twin.low else "not by more than chance"


def summary(lines: Sequence[Line], model: str) -> str:
    """Return a table: a row for each test set, the first metric of the head beside the twin's and the baselines'."""
    rows = [f"| task | test set | metric | {model} | its one-hot twin | baselines | better than its twin |"]
    rows.append("|---|---|---|---:|---:|---|---|")
    for place in dict.fromkeys((line.task, line.split) for line in lines):
        name = METRICS[place[0]][0]
        ways = {line.way: found(line, name) for line in lines if (line.task, line.split) == place}
        head, twin = ways.pop(model, None), ways.pop(TWIN, None)
        others = ", ".join(f"{way} {score.value:.3f}" for way, score in ways.items() if not np.isnan(score.value))
        better = verdict(head, twin) if head and twin else "-"
        cells = (*place, name, *(shown(score) if score else "-" for score in (head, twin)), others or "-", better)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def markdown(lines: Sequence[Line]) -> str:
    """Return a table: a row for each way to predict a split."""
    rows = ["| task | test set | proteins | from | metric | value (95 %) |", "|---|---|---:|---|---|---:|"]
    for line in lines:
        for name in METRICS[line.task]:
            value = shown(found(line, name))
            rows.append(f"| {line.task} | {line.split} | {line.proteins:,} | {line.way} | {name} | {value} |")
    return "\n".join(rows)


def content(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return everything, ready for JSON; what is not a number is null."""
    rows = [asdict(line) for line in lines]
    for line in rows:
        line["scores"] = [
            {key: None if value != value else value for key, value in item.items()} for item in line["scores"]
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=ModelOptions().model)
    parser.add_argument("--heads", type=Path, default=heads_folder())
    parser.add_argument("--twins", type=Path, default=None, help="default: the folder twins in that of the heads")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS), metavar="TASK")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="bfloat16 is four times as fast where the CPU has it")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    model, console, lines = ModelOptions(model=options.model, device=options.device, dtype=options.dtype), Console(), []
    for name in options.tasks:
        heads = list(find_heads(name, model, options.heads, options.twins))
        folder = options.data / Path(load_task_config(CONFIGS / f"{name}.toml").data.path).name
        for line in measure(TASKS[name], folder, heads):
            lines.append(line)
            first = line.scores[0]
            console.say(f"{name}, {line.split}, {line.way}: {first.name} {first.value:.4f}")
            if options.json:
                options.json.write_text(json.dumps(content(lines), indent=1))
    print(f"{summary(lines, find_model(options.model).stem)}\n\n{markdown(lines)}")


if __name__ == "__main__":
    main()
