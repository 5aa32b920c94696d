"""`entrepot version`."""

from __future__ import annotations

import platform

import click

from entrepot import __version__
from entrepot.cli.options import bare_command
from entrepot.cli.output import Output


@click.command()
@click.option("--config", metavar="FILE", expose_value=False, help="Accepted, as by every command; it is not read.")
@bare_command
def version(output: Output) -> int:
    """Show the version of entrepot and of Python."""
    document = {"entrepot": __version__, "python": platform.python_version()}
    output.result(document, f"entrepot {__version__} (Python {platform.python_version()})")
    return 0
