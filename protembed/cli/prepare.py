"""protembed prepare."""

from pathlib import Path
from typing import Annotated

import typer

from protembed.cli.app import app
from protembed.cli.console import Console, print_table
from protembed.cli.options import Overwrite, Quiet

_HOMOLOGS = (
    "Homologs of the proteins, to train on profiles: hits of MMseqs2 (columns query, target, fident, qstart, qend, "
    "tstart, tend, evalue, cigar), or a3m, a file or a folder of them; may be repeated."
)
Homologs = Annotated[list[str] | None, typer.Option(help=_HOMOLOGS)]


@app.command()
def prepare(
    sources: Annotated[
        list[str], typer.Argument(metavar="INPUT", help="FASTA (plain, gzip, xz, bzip2), *.lmdb, *.parquet.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    valid: Annotated[list[str] | None, typer.Option(help="A file of validation proteins; may be repeated.")] = None,
    valid_share: Annotated[
        float | None, typer.Option(help="Share of clusters held out for validation; default 0.005 without --valid.")
    ] = None,
    min_residues: Annotated[int, typer.Option(help="Drop shorter proteins.", min=1)] = 1,
    workers: Annotated[int, typer.Option(help="Files read at once.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of the choice of validation clusters.", min=0)] = 0,
    homologs: Homologs = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Turn files of proteins into a corpus for pretraining; a second start goes on where the first one stopped."""
    from protembed.sequences.alphabet import PROTEMBED
    from protembed.training.corpus.corpus import CorpusJob, open_corpus

    job = CorpusJob(
        sources=tuple(sources),
        folder=out,
        alphabet=PROTEMBED,
        valid=tuple(valid or ()),
        valid_share=valid_share if valid_share is not None else 0.0 if valid else 0.005,
        min_residues=min_residues,
        workers=workers,
        seed=seed,
        overwrite=overwrite,
        homologs=tuple(homologs or ()),
    )
    with Console(quiet=quiet).meter(job.size, "bytes") as meter:
        for progress in job.run():
            done = f"{progress.homologs:,} homologs" if progress.homologs else f"{progress.residues:,} residues"
            meter.update(progress.size, done)
    print_table(str(out), *open_corpus(out, PROTEMBED).statistics.table())
