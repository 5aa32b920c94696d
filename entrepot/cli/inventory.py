"""`entrepot inventory`: what this site holds, for those who export to it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from entrepot.cli.exits import DONE, CommandFailed
from entrepot.cli.options import command
from entrepot.cli.output import Output, counted, format_size
from entrepot.config import Config


@click.command(short_help="Write down what this site holds, as a base for bundles.")
@click.option(
    "-o",
    "--output",
    "file",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to.",
)
@command("data", "region")
def inventory(config: Config, output: Output, file: Path) -> int:
    """Write down what this site holds: the digest of every blob that is stored, 32 bytes each.

    Carried to where bundles are made, it is given to entrepot export --base, which then leaves out what is here. The
    mirror may go on meanwhile.
    """
    from entrepot.holdings import write_inventory

    if not file.absolute().parent.is_dir():
        raise CommandFailed(f"there is no folder {file.absolute().parent}: make it, or mount the disk that it is on")
    if not (config.data / "blobs").is_dir():
        raise CommandFailed(f"there is no store in {config.data}; name the mirror's folder with --data")
    made = asyncio.run(write_inventory(config, file))
    text = (
        f"{made.file}: {counted(made.digests, 'blob')} of region {made.region}, {format_size(made.bytes)}, in "
        f"{format_size(made.size)}\nwhere bundles are made: entrepot export --base {file.name}"
    )
    output.result(made, text)
    return DONE
