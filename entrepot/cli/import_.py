"""`entrepot import`: take over bundles from a disk."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from entrepot.cli.exits import DONE, IN_PART, CommandFailed
from entrepot.cli.lazy import importing
from entrepot.cli.options import command
from entrepot.cli.output import Output, counted, format_size
from entrepot.cli.progress import meter
from entrepot.cli.stopping import until_stopped
from entrepot.config import Config

if TYPE_CHECKING:
    from entrepot.importing import Imported, ImportEvent, ImportReport

STOPPED = "stopped: import the same again, it goes on where this one ended"
_SHOWN = 20


@click.command("import", short_help="Take over the images of bundles from a disk.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path, readable=False))
@click.option(
    "--verify-key",
    "verify_keys",
    multiple=True,
    metavar="PUB",
    type=click.Path(path_type=Path, readable=False),
    help="A public key that is trusted for all repositories, beside those of the configuration; repeatable.",
)
@click.option("--require-signature", is_flag=True, help="Take nothing that is not signed by a trusted key.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done, and what speaks against it.")
@click.option("--force", is_flag=True, help="Point tags where the bundle says, also where this site has newer ones.")
@click.option(
    "--receipt",
    metavar="FILE",
    type=click.Path(path_type=Path, readable=False),
    help="Where the receipt goes.  [default: beside the bundle]",
)
@command("data", "upstream", "region", "quota")
def import_(
    config: Config,
    output: Output,
    paths: tuple[Path, ...],
    verify_keys: tuple[Path, ...],
    require_signature: bool,
    dry_run: bool,
    force: bool,
    receipt: Path | None,
) -> int:
    """Take over the images of bundles: their volumes, or folders that hold some. Also beside a running mirror.

    Every byte is verified before the first image is shown. Volumes may come in any order, one at a time: what is still
    missing is named, and the next import goes on. Exit code 3 while volumes are missing, and where a tag was kept
    because this site has a newer one.
    """
    with importing():
        from entrepot.importing import ImportRequest, Note, import_bundles
        from entrepot.lean import share_one_heap
        from sync.bundle.errors import BundleError

    share_one_heap()
    request = ImportRequest(
        paths=paths,
        verify_keys=verify_keys,
        require_signature=require_signature,
        dry_run=dry_run,
        force=force,
        receipt=receipt,
    )
    with meter(output, "importing") as shown:

        def follow(event: ImportEvent) -> None:
            if isinstance(event, Note):
                shown.say(event.text)
            else:
                words = f"{event.series}: {format_size(event.done)} of {format_size(event.total)} read"
                shown.at(event.done, event.total, words)

        try:
            report = asyncio.run(until_stopped(import_bundles(config, request, follow), STOPPED))
        except BundleError as error:
            raise CommandFailed(str(error)) from None
    return _tell(output, report)


def _tell(output: Output, report: ImportReport) -> int:
    output.result(report, "\n".join(line for one in report.bundles for line in _lines(one, report.dry_run)))
    return IN_PART if report.in_part else DONE


def _lines(one: Imported, dry_run: bool) -> list[str]:
    images = counted(one.images, "image")
    signed = f"signed by {one.signature}" if one.signature else "not signed by a trusted key"
    head = f"{one.series} of {one.region} ({images}, {signed})"
    sizes = f"{format_size(one.taken)} taken in, {format_size(one.had)} were here"
    if dry_run:
        lines = [f"{head}: would be imported; {format_size(one.taken)} to take in, {format_size(one.had)} are here"]
    elif one.unchanged:
        lines = [f"{head}: was imported before, nothing has changed"]
    elif one.missing:
        numbers = ", ".join(map(str, one.missing))
        lines = [
            f"{head}: {counted(len(one.missing), 'volume')} of {one.volumes} still to come: {numbers}. Import "
            f"{'it' if len(one.missing) == 1 else 'them'} next; nothing is shown before"
        ]
    else:
        lines = [f"{head}: imported; {sizes}"]
    if not one.missing or dry_run:
        lines += _tags(one, dry_run)
    if one.spoken is not None:
        lines += [f"  receipt: {one.spoken}", *(f"  receipt: {path}" for path in one.receipts)]
    return lines


def _tags(one: Imported, dry_run: bool) -> list[str]:
    counts = {kind: sum(tag.change == kind for tag in one.tags) for kind in ("new", "moved", "same", "kept")}
    lines = ["  tags: " + ", ".join(f"{count} {kind}" for kind, count in counts.items())]
    told = [tag for tag in one.tags if tag.change == "kept"]
    for tag in told[:_SHOWN]:
        why = f"is {tag.here} here, which is newer" if tag.here else "was removed here since"
        lines.append(f"  kept: {tag.reference} {why}; --force points it to {tag.digest}")
    if len(told) > _SHOWN:
        lines.append(f"  kept: {len(told) - _SHOWN} more")
    return lines
