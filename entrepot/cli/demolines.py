"""What `entrepot demo` says: where to look, what happens while it runs, and what happened."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

from entrepot.cli.output import Output, counted, format_size
from entrepot.cli.progress import LINE_SECONDS
from entrepot.demo.images import IMAGES
from entrepot.demo.link import DELAY, RATE
from entrepot.demo.rollouts import MACHINES
from entrepot.demo.running import QUOTA, Demo, Summary

if TYPE_CHECKING:
    from rich.console import RenderableType

_SCREEN_SECONDS = 0.5


def opening_lines(demo: Demo) -> Iterator[str]:
    """Yield what there is, and how to take part."""
    away = f"{DELAY * 1000:.0f} ms and {RATE / 1e6:.0f} MB/s away"
    yield f"{len(MACHINES)} machines pull {len(IMAGES)} images from a mirror that may store {QUOTA} of them"
    yield f"(what was used least makes room) and asks a registry {away}."
    yield "Pull too:"
    host = demo.mirror.partition("://")[2]
    yield f"    docker pull {host}/{IMAGES[2]}"
    yield f"    podman pull --tls-verify=false {host}/{IMAGES[2]}"
    yield "Ctrl-C ends all of it."


def traffic_line(summary: Summary) -> str:
    """Return what has happened so far, on one line."""
    words = [counted(summary.pulls, "pull")]
    words += [f"{count} {ending}" for ending, count in summary.endings.items() if ending != "done" and count]
    share = f" ({summary.received / summary.sent:.0%})" if summary.sent else ""
    return (
        f"{summary.seconds:.0f} s: {', '.join(words)}; clients got {format_size(summary.sent)}, "
        f"the registry gave {format_size(summary.received)}{share}"
    )


def closing_lines(summary: Summary) -> Iterator[str]:
    """Yield what happened in all."""
    yield traffic_line(summary)
    again = "none of them again"
    if summary.again:
        again = f"and {counted(summary.again, 'time')} one of them again: it had made room, or was left halfway"
    yield f"{counted(summary.fetched, 'object')} came from the registry, {again}"
    yield from (f"failed: {problem}" for problem in summary.problems)
    if summary.folder is not None:
        yield f"kept: {summary.folder}"


async def watch(demo: Demo, output: Output) -> None:
    """Show what happens until cancelled: a table on a terminal, plain lines elsewhere, nothing for machines."""
    for line in opening_lines(demo):
        output.note(line)
    if output.shows_progress():
        await _on_screen(demo)
    while True:
        await asyncio.sleep(LINE_SECONDS)
        output.note(traffic_line(demo.summary()))


async def _on_screen(demo: Demo) -> None:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        while True:
            live.update(_table(demo), refresh=True)
            await asyncio.sleep(_SCREEN_SECONDS)


def _table(demo: Demo) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("image")
    for name in ("pulls", "the first took", "the latest took"):
        table.add_column(name, justify="right")
    for name, image in sorted(demo.tally.images.items()):
        table.add_row(name, str(image.pulls), f"{image.first:.2f} s", f"{image.latest:.2f} s")
    return Group(Text(traffic_line(demo.summary())), Text(), table)
