"""`entrepot bundle list|verify|diff|release`: bundles as they lie on a medium, and the bases that are kept of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from entrepot.cli.exits import DONE, IN_PART, USAGE, CommandFailed
from entrepot.cli.lazy import LazyGroup
from entrepot.cli.options import bare_command, command, unread_config_option
from entrepot.cli.output import Output, counted, format_size
from entrepot.cli.progress import meter
from entrepot.config import Config

bundle = LazyGroup(
    "bundle",
    {name: f"entrepot.cli.bundle:{name}_" for name in ("list", "verify", "diff", "release")},
    help="Look at bundles, and at what is kept of them.",
)

T = TypeVar("T")
_PATHS = click.argument(
    "paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path, readable=False)
)


@click.command("list", short_help="Show what bundles are and bring.")
@_PATHS
@command("data")
def list_(config: Config, output: Output, paths: tuple[Path, ...]) -> int:
    """Show the bundles whose volumes, or folders of volumes, are given: what they bring, and what they stand on.

    Whether a signature is trusted is told by the keys of this site's configuration. Nothing is hashed: see
    entrepot bundle verify.
    """
    from entrepot.bundles import list_bundles
    from entrepot.cli.bundlelines import of_list
    from entrepot.trusting import trust_of

    found = _attempt(lambda: list_bundles(paths, trust_of(config)))
    output.result({"bundles": found}, "\n".join(line for one in found for line in of_list(one)))
    return DONE


@click.command("verify", short_help="Hash everything in bundles and tell all that is wrong.")
@_PATHS
@click.option(
    "--verify-key",
    "keys",
    metavar="PUB",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False, readable=False),
    help="A public key that is trusted, beside those of the configuration; repeatable.",
)
@click.option("--require-signature", is_flag=True, help="Count it as wrong when no trusted key has signed.")
@command("data")
def verify_(
    config: Config, output: Output, paths: tuple[Path, ...], keys: tuple[Path, ...], require_signature: bool
) -> int:
    """Compare every byte of the volumes with what the plan says, and the files with the .sha256 beside them.

    All that is wrong is told, by volume and blob. Exit code 3 when something is, or when volumes are missing.
    """
    from entrepot.cli.bundlelines import of_check
    from entrepot.descriptors import raise_limit
    from entrepot.trusting import trust_of
    from sync.bundle.checking import check

    raise_limit()
    with meter(output, "verifying") as shown:

        def report(done: int, total: int) -> None:
            shown.at(done, total, f"verifying, {format_size(done)} of {format_size(total)}")

        found = _attempt(lambda: check(paths, trust_of(config, keys, require=require_signature), report))
    output.result(found, "\n".join(of_check(found)))
    return DONE if found.good else IN_PART


@click.command("diff", short_help="Compare two bundles, inventories or receipts.")
@click.argument("a", metavar="A", type=click.Path(path_type=Path, readable=False))
@click.argument("b", metavar="B", type=click.Path(path_type=Path, readable=False))
@unread_config_option
@bare_command
def diff_(output: Output, a: Path, b: Path) -> int:
    """Tell what is in B and not in A and the other way round, and which tags moved.

    A and B are bundles (a volume, or the folder of one), inventories or receipts. To a bundle belongs what it stands
    on: what counts is what a site has that took it over.
    """
    from entrepot.bundles import diff
    from entrepot.cli.bundlelines import of_difference

    found = _attempt(lambda: diff(a, b))
    output.result(found, "\n".join(of_difference(found)))
    return DONE


@click.command("release", short_help="Show the bases that are kept, or let go of one.")
@click.argument("series", required=False)
@click.option("--unfinished", is_flag=True, help="Give up the imports of SERIES that have not come to their end.")
@command("data", "region")
def release_(config: Config, output: Output, series: str | None, unfinished: bool) -> int:
    """Show what is kept from eviction as the base of bundles to come; with SERIES let eviction have that one.

    A thin bundle of the series that still stands on it can then no longer be taken over, once it was evicted. What an
    import that waits for volumes has brought so far is kept, too, until it is given up or nobody went on with it for
    30 days.
    """
    from entrepot.cli.bundlelines import of_waiting
    from entrepot.holdings import give_up, list_bases, list_unfinished, release_base

    if unfinished and series is None:
        raise CommandFailed("--unfinished gives up the imports of a series: name it", USAGE)

    if not (config.data / "blobs").is_dir():
        raise CommandFailed(f"there is no store in {config.data}; name the mirror's folder with --data")
    if series is None:
        bases = asyncio.run(list_bases(config))
        lines = [
            f"{one.series}: {counted(one.images, 'image')}, {counted(one.digests, 'blob')}, {format_size(one.bytes)}"
            for one in bases
        ]
        imports = asyncio.run(list_unfinished(config))
        lines = [*(lines or ["no base of bundles is kept here"]), *map(of_waiting, imports)]
        output.result({"bases": bases, "imports": imports}, "\n".join(lines))
        return DONE
    if unfinished:
        ended = _attempt(lambda: asyncio.run(give_up(config, series)))
        blobs = counted(ended.digests, "blob")
        output.result(ended, f"the import of {series} is given up; {blobs} are no longer kept for it")
        return DONE
    released = _attempt(lambda: asyncio.run(release_base(config, series)))
    blobs = counted(released.digests, "blob")
    output.result(released, f"{blobs} are no longer kept as the base of {series}: they go when room is needed")
    return DONE


def _attempt(work: Callable[[], T]) -> T:
    from sync.bundle.errors import BundleError

    try:
        return work()
    except BundleError as error:
        raise CommandFailed(str(error)) from None
