"""`entrepot serve`."""

from __future__ import annotations

import signal
from collections.abc import Callable

import click

from entrepot.cli.options import reading_command
from entrepot.cli.output import Output
from entrepot.config import Config


@click.command(short_help="Run the mirror.")
@reading_command(
    *(
        "listen",
        "admin",
        "data",
        "upstream",
        "region",
        "quota",
        "workers",
        "redis",
        "advertise",
        "store",
        "offline",
        "from",
    )
)
def serve(read: Callable[[], Config], output: Output) -> int:
    """Run the mirror until SIGTERM or SIGINT; SIGHUP reads the configuration again.

    With --from it gives the images of bundles from where they lie, and keeps nothing itself.
    """
    # What asks for another configuration during the start is heard as soon as there is somebody to hear it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    from entrepot.serve import run

    return run(read(), read)
