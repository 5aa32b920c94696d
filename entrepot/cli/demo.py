"""`entrepot demo`: everything at once on this machine, to look at."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import click

from entrepot.cli.exits import DONE, IN_PART, CommandFailed
from entrepot.cli.options import bare_command, unread_config_option
from entrepot.cli.output import Output


@click.command(short_help="Show a mirror at work, with no network at all.")
@click.option("--seconds", type=click.FloatRange(min=0), help="End by itself after so many seconds of pulls.")
@click.option("--port", type=click.IntRange(0, 65535), default=5000, show_default=True, help="Where the mirror is.")
@click.option(
    "--admin-port", type=click.IntRange(0, 65535), default=5001, show_default=True, help="Where the dashboard is."
)
@click.option("--keep", is_flag=True, help="Keep the folder with the data, the configuration and the logs.")
@unread_config_option
@bare_command
def demo(output: Output, seconds: float | None, port: int, admin_port: int, keep: bool) -> int:
    """Run a registry with sample images, a mirror before it, and clients that pull, until Ctrl-C.

    All of it runs on this machine, needs no network, and is gone afterwards. Where a port is taken another one is used.
    """
    from entrepot.cli.demolines import closing_lines, watch
    from entrepot.demo.processes import ChildDied
    from entrepot.demo.running import Demo, Wish
    from entrepot.loops import loop_factory
    from sync.bundle.errors import BundleError

    running = Demo(Wish(port, admin_port, seconds, keep), output.note, lambda demo: watch(demo, output))
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(_until_ended(running.run()))
        except (ChildDied, BundleError) as error:
            raise CommandFailed(str(error)) from None
    summary = running.summary()
    output.result(summary, "\n".join(closing_lines(summary)))
    return IN_PART if summary.problems else DONE


async def _until_ended(work: Coroutine[Any, Any, None]) -> None:
    """Do the work until it ends, or a signal asks for its end; what comes during the end does not hurry it."""
    working = asyncio.create_task(work, name="demo")

    def end() -> None:
        if not working.cancelling():
            working.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, end)
    with suppress(asyncio.CancelledError):
        await working
