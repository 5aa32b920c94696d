"""`entrepot version`."""

from __future__ import annotations

import platform

import click

from entrepot import __version__
from entrepot.cli.options import bare_command, unread_config_option
from entrepot.cli.output import Output


@click.command()
@unread_config_option
@bare_command
def version(output: Output) -> int:
    """Show the version of entrepot and of Python."""
    document = {"entrepot": __version__, "python": platform.python_version()}
    output.result(document, f"entrepot {__version__} (Python {platform.python_version()})")
    return 0
