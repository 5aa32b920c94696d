"""`entrepot why`: why something is, or is not, here and served."""

from __future__ import annotations

import click

from entrepot.cli.asking import ask
from entrepot.cli.exits import DONE
from entrepot.cli.options import command
from entrepot.cli.output import Output
from entrepot.config import Config


@click.command(short_help="Explain why an image is, or is not, here and served.")
@click.argument("reference")
@command("data", "upstream", "offline", "region", "redis", "advertise", "store")
def why(config: Config, output: Output, reference: str) -> int:
    """Explain why REFERENCE, or a digest alone, is or is not here and served.

    Which repository is proven to have it and how, who needs it, what keeps it, what is missing and where that would
    come from, and what went wrong with it last; of other regions, what comes from there, what waits and why.
    """
    from entrepot.asking import AskWhy
    from entrepot.reasons import Why

    found = ask(config, AskWhy(reference), Why)
    verdict, *rest = found.because
    output.result(found, "\n".join([verdict, *(f"  {line}" for line in rest)]))
    return DONE
