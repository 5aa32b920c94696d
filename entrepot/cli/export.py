"""`entrepot export`: write images to a disk, as a bundle that another site imports or serves."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from entrepot.cli.exits import DONE, IN_PART, USAGE, CommandFailed
from entrepot.cli.lazy import importing
from entrepot.cli.options import command
from entrepot.cli.output import Output, counted, format_size
from entrepot.cli.progress import Meter, meter
from entrepot.cli.stopping import until_stopped
from entrepot.config import Config

if TYPE_CHECKING:
    from entrepot.exportasking import ExportEvent, ExportReport

STOPPED = "stopped: the same command goes on where this one ended"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def _size(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    from entrepot.config.values import size

    if text is None:
        return None
    try:
        return size(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(short_help="Write images to a disk, for a site without a network.")
@click.argument("references", metavar="[REF]...", nargs=-1)
@click.option(
    "-o",
    "--output",
    "output_path",
    metavar="PATH",
    type=click.Path(path_type=Path, readable=False),
    required=True,
    help="Where to: FILE.tar, or with --split-size FILE.001.tar, FILE.002.tar and so on.",
)
@click.option(
    "-f",
    "--file",
    "list_file",
    metavar="FILE",
    type=click.Path(path_type=Path, readable=False),
    help="A list of references, one a line; # begins a comment.",
)
@click.option(
    "--repository",
    "repositories",
    metavar="GLOB",
    multiple=True,
    help="All images that are known here of the repositories that it means; repeatable.",
)
@click.option(
    "--platform", "platforms", metavar="OS/ARCH", multiple=True, help="Only this platform; repeatable.  [default: all]"
)
@click.option("--referrers/--no-referrers", default=True, help="Signatures, SBOMs and the like too.  [default: yes]")
@click.option(
    "--base",
    "bases",
    metavar="BUNDLE|INVENTORY|RECEIPT",
    multiple=True,
    help="Leave out what this has; a receipt may be its twelve digits. Repeatable.",
)
@click.option("--series", metavar="NAME", help="Bundles of one series follow each other.  [default: the region]")
@click.option("--split-size", "split", metavar="SIZE", callback=_size, help="Volumes smaller than this, such as 4GiB.")
@click.option(
    "--recut", metavar="N", type=int, multiple=True, help="Only write this volume again, as it was; repeatable."
)
@click.option(
    "--sign",
    "key",
    metavar="KEYFILE",
    type=click.Path(path_type=Path, readable=False),
    help="A key of entrepot key new.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written; write and pull nothing.")
@command("data", "upstream", "region", "redis", "advertise", "store", "offline")
def export(
    config: Config,
    output: Output,
    references: tuple[str, ...],
    output_path: Path,
    list_file: Path | None,
    repositories: tuple[str, ...],
    platforms: tuple[str, ...],
    referrers: bool,
    bases: tuple[str, ...],
    series: str | None,
    split: int | None,
    recut: tuple[int, ...],
    key: Path | None,
    dry_run: bool,
) -> int:
    """Write images, and all that they are made of, to PATH: REFs, those of a list, or those known here by a glob.

    What is missing is pulled first. An export that was interrupted goes on when the same command is given again. Exit
    code 3 when some of what was asked for could not be had, and the rest was written.
    """
    with importing():
        from entrepot.exportasking import ExportRequest, WrongRequest, epoch_of
        from entrepot.exporting import export as carry_out
        from entrepot.lean import share_one_heap
        from entrepot.wording import words_of
        from proxy.upstream.credentials import CredentialError
        from sync.bundle.errors import BundleError

    share_one_heap()
    try:
        request = ExportRequest(
            output=output_path,
            references=references,
            file=list_file,
            repositories=repositories,
            platforms=platforms,
            referrers=referrers,
            bases=bases,
            series=series,
            split=split,
            recut=recut,
            key=key,
            dry_run=dry_run,
            epoch=epoch_of(os.environ),
        )
        with meter(output, f"exporting to {output_path}") as shown:
            report = asyncio.run(until_stopped(carry_out(config, request, _Follower(shown)), STOPPED))
    except WrongRequest as error:
        raise CommandFailed(str(error), USAGE) from None
    except (BundleError, CredentialError) as error:
        raise CommandFailed(str(error)) from None
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise CommandFailed(
            f"{words_of(error)}: make room there; the same command goes on where this one ended"
        ) from None
    output.result(report, _words(report))
    return IN_PART if report.lacking else DONE


class _Follower:
    """Shows what an export tells, with the rate of what is counted in bytes."""

    def __init__(self, shown: Meter) -> None:
        self._shown = shown
        self._since: tuple[tuple[str, int], float] = (("", 0), 0.0)

    def __call__(self, event: ExportEvent) -> None:
        from entrepot.exportasking import Note

        if isinstance(event, Note):
            self._shown.say(event.text)
            return
        done, total = min(event.done, event.total), event.total
        if event.what not in ("slices", "volume"):
            self._shown.at(done, total, f"{done} of {total} {event.what}")
            return
        loop = asyncio.get_running_loop()
        work = (event.what, event.volume)
        if self._since[0] != work:
            self._since = work, loop.time()
        seconds = loop.time() - self._since[1]
        rate = f", {format_size(int(done / seconds))}/s" if seconds > 0.1 else ""
        what = f"volume {event.volume}" if event.volume else "hashing what is cut"
        self._shown.at(done, total, f"{what}: {format_size(done)} of {format_size(total)}{rate}")


def _words(report: ExportReport) -> str:
    images = counted(report.images, "image")
    what = f"{images}, {counted(report.blobs, 'blob')}, {format_size(report.bytes)}"
    if report.requires:
        what += f"; {counted(report.requires, 'blob')} must be there already"
    if report.dry_run:
        lines = [f"would write {what} in {counted(report.number_of_volumes, 'volume')}"]
        if report.missing:
            lines.append(f"would pull {counted(report.missing, 'blob')}, {format_size(report.missing_bytes)}")
    else:
        signed = f", signed by key {report.signed_by}" if report.signed_by else ""
        lines = [f"{report.series}: {what}{signed}"]
        lines += [f"{one.file}: {format_size(one.size)}, sha256 {one.sha256}" for one in report.volumes]
        lines.append(f"its receipt will be {report.spoken}")
    if report.lacking:
        lines.append("could not be had, and is not in it:" if not report.dry_run else "cannot be had:")
        lines += [f"  {one.what}: {one.error}" for one in report.lacking]
    return "\n".join(lines)
