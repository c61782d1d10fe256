"""Contacts between residues."""

from protembed.tasks.labels.encoding import Coding
from protembed.tasks.labels.rows import Files
from protembed.tasks.task import Task

TASK = Task(
    name="contact",
    summary="residues whose CB are closer than 8 Angstrom, |i - j| >= 6",
    coding=Coding(kind="contacts"),
    metrics={},
    files=Files(lmdb="proteinnet", lmdb_field="tertiary"),
)
