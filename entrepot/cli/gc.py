"""`entrepot gc`: make room now, or see what would go."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING

import click

from entrepot.cli.exits import DONE, FAILED, CommandFailed
from entrepot.cli.options import command
from entrepot.cli.output import Output, format_size
from entrepot.cli.running import RunningMirror, find
from entrepot.config import Config

if TYPE_CHECKING:
    from entrepot.collecting import BucketCollected, Collected, CollectError, Deleted, Gone

    Line = Gone | Deleted
    End = Collected | BucketCollected | CollectError


@click.command(short_help="Evict images as if room were short, and remove leftovers.")
@click.option("--dry-run", is_flag=True, help="Only show what would go, in its order.")
@click.option("--bucket", "in_bucket", is_flag=True, help="Collect in the bucket that nodes share, not on the disk.")
@command("data", "region", "redis", "store")
def gc(config: Config, output: Output, dry_run: bool, in_bucket: bool) -> int:
    """Evict images, least recently used first, until nine tenths of the quota are used, and remove leftovers.

    The mirror does so by itself whenever room is needed. What is pinned stays. What went is pulled again when somebody
    asks for it.

    With --bucket, delete from the bucket of `store` what was removed by `entrepot rm`, in whichever node, longer than
    store_grace ago. The fleet does so by itself every hour. What no record speaks of is counted and stays.
    """
    running = find(config.data)
    if running is None and not (config.data / "blobs").is_dir():
        raise CommandFailed(f"there is no store in {config.data}; name the mirror's folder with --data")
    gone: list[Line] = []
    if running is not None:
        end = _by_mirror(running, {"dry_run": dry_run, "bucket": in_bucket}, gone)
    else:
        end = asyncio.run(_in_process(config, gone, dry_run=dry_run, in_bucket=in_bucket))
    return _tell(output, gone, end)


def _by_mirror(mirror: RunningMirror, wanted: dict[str, object], gone: list[Line]) -> End:
    import msgspec

    from entrepot.collecting import CollectLine, Deleted, Gone

    decoder: msgspec.json.Decoder[CollectLine] = msgspec.json.Decoder(CollectLine)
    for line in mirror.lines("/api/gc", wanted):
        event = decoder.decode(line)
        if not isinstance(event, Gone | Deleted):
            return event
        gone.append(event)
    raise CommandFailed("the running mirror ended before all was done; see its log, then run gc again")


async def _in_process(config: Config, gone: list[Line], *, dry_run: bool, in_bucket: bool) -> End:
    from entrepot.collecting import CollectFailed, collect, collect_bucket
    from metrics.events import ignore
    from proxy.oci.errors import RegistryError
    from proxy.store.store import Store

    store = await Store.open(config.data, region=config.region)
    try:
        if in_bucket:
            return await collect_bucket(config, store, ignore, None, gone.append, dry_run=dry_run)
        return await collect(store, config.quota, ignore, gone.append, dry_run=dry_run)
    except (CollectFailed, RegistryError) as error:
        raise CommandFailed(str(error)) from None
    finally:
        await store.close()


def _tell(output: Output, gone: list[Line], end: End) -> int:
    import msgspec

    from entrepot.collecting import BucketCollected, CollectError, Deleted

    if isinstance(end, CollectError):
        output.failed(end.message)
        return FAILED
    verb = "would go" if end.dry_run else ("deleted" if isinstance(end, BucketCollected) else "evicted")
    lines = [
        f"{verb}: {one.digest}, {format_size(one.bytes)}"
        if isinstance(one, Deleted)
        else f"{verb}: {_name(one)}, {format_size(one.bytes)}, last used {_when(one.last_use)}"
        for one in gone
    ]
    if isinstance(end, BucketCollected):
        lines.append(f"{end.deleted} of {end.objects} objects {verb}, {format_size(end.freed)}")
        if end.removed:
            lines.append(f"{end.removed} were removed, and go when their grace is over")
        if end.unknown:
            lines.append(f"{end.unknown} are in no record, and stay")
    else:
        used, high = format_size(end.used), format_size(end.high)
        lines.append(f"{end.closures} {verb}, {format_size(end.freed)}; now {used} of {high} used")
    key = "deleted_objects" if isinstance(end, BucketCollected) else "evicted"
    document = {**msgspec.to_builtins(end), key: [msgspec.to_builtins(one) for one in gone]}
    output.result(document, "\n".join(lines))
    return DONE


def _name(one: Gone) -> str:
    separator = "@" if one.reference == one.digest else ":"
    return f"{one.repository}{separator}{one.reference}" if one.repository else one.digest


def _when(moment: float) -> str:
    return datetime.fromtimestamp(moment).isoformat(" ", "seconds")
