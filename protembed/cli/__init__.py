"""The command line: each command reads its options, calls the library, and says what was done."""

from protembed.cli import check_merge as outputs
from protembed.cli import embed, export, models, predict, prepare, train
from protembed.cli import pretrain as training
from protembed.cli.app import app, main

__all__ = ["app", "embed", "export", "main", "models", "outputs", "predict", "prepare", "train", "training"]
