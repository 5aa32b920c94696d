"""`entrepot ls`: the images that are known."""

from __future__ import annotations

import time

import click
import msgspec

from entrepot.cli.asking import ask
from entrepot.cli.exits import DONE
from entrepot.cli.options import command
from entrepot.cli.output import Output, format_size
from entrepot.config import Config
from entrepot.config.values import format_duration


@click.command(short_help="List the images that are known.")
@click.argument("pattern", default="*")
@command("data", "upstream")
def ls(config: Config, output: Output, pattern: str) -> int:
    """List the images that are known, by tag, or by digest where no tag names them.

    PATTERN is a reference such as alpine or alpine:3, or a glob: '*' stands for one component, '**' for many, a lone
    '*' for all, as in 'ghcr.io/**' or 'library/*:3.*'. An image is complete (all of it is stored), servable (an index,
    of which at least one platform is), partial, or absent. Of a tag it is told which other region saw it as it is.
    """
    from entrepot.asking import Line, Ls
    from entrepot.images import ImageLine, ListEnd

    now = time.time()
    shown = _Shown(output)

    def follow(line: Line) -> None:
        if isinstance(line, ImageLine):
            shown.image(line, _text(line, now, config.region) if output.form == "text" else "")

    end = ask(config, Ls(pattern), ListEnd, follow)
    shown.end()
    if not end.images:
        output.note("no image that is known matches; entrepot pull brings one here")
    return DONE


class _Shown:
    """Prints images as they come: lines for people, one array for machines."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._count = 0

    def image(self, image: object, text: str) -> None:
        self._count += 1
        if self._output.form == "text":
            click.echo(text)
        else:
            click.echo(("[\n" if self._count == 1 else ",\n") + msgspec.json.encode(image).decode(), nl=False)

    def end(self) -> None:
        if self._output.form == "json":
            click.echo("\n]" if self._count else "[]")


def _text(image: object, now: float, region: str) -> str:
    from entrepot.images import ImageLine

    assert isinstance(image, ImageLine)
    size = format_size(image.size) if image.stored == image.size else _part(image.stored, image.size)
    if image.state == "absent" and not image.size:
        size = "not here yet"
    used = "never used" if image.last_use is None else f"used {_ago(now - image.last_use)} ago"
    name = image.reference if "@" in image.reference else f"{image.reference:<40}  {image.digest[:19]}"
    pinned = "  pinned" if image.pinned else ""
    origin = "" if image.origin in (None, region) else f"  seen by region {image.origin}"
    return f"{name}  {image.state:<8}  {size:>10}  {used}{pinned}{origin}"


def _part(stored: int, size: int) -> str:
    return f"{format_size(stored)} of {format_size(size)}"


def _ago(seconds: float) -> str:
    """Return a time span in its largest unit: what is shown here needs no more."""
    whole = max(0, int(seconds))
    for unit in (86400, 3600, 60):
        if whole >= unit:
            return format_duration(whole - whole % unit)
    return format_duration(whole)
