"""`entrepot refresh`: have the running mirror ask the upstream now, or do it ourselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import click
import msgspec

from entrepot.cli.exits import DONE, FAILED, IN_PART, USAGE, CommandFailed
from entrepot.cli.options import command
from entrepot.cli.output import Output
from entrepot.cli.running import RunningMirror, find
from entrepot.config import Config
from entrepot.refreshing import Refreshed, RefreshError, RefreshLine, RefreshResult, check
from proxy.oci.errors import BadRequest, NotFound, RegistryError

Outcome = RefreshResult | RefreshError


@click.command(short_help="Ask the upstream now where a tag points.")
@click.argument("reference")
@command("data", "upstream", "region", "redis", "advertise", "store")
def refresh(config: Config, output: Output, reference: str) -> int:
    """Ask the upstream now where the tag REFERENCE points, whatever is remembered of it.

    REFERENCE may be a glob over the tags that the mirror knows, such as 'docker.io/library/*:3.*'. The new manifest is
    fetched, blobs are not. Exit code 3 when some of the tags are gone or could not be confirmed, 1 when all are.
    """
    names = frozenset(upstream.name for upstream in config.upstreams)
    try:
        check(reference, names, config.default_upstream)
    except (BadRequest, NotFound) as error:
        raise CommandFailed(error.message, USAGE) from None
    tags: list[Refreshed] = []

    def follow(refreshed: Refreshed) -> None:
        tags.append(refreshed)
        if output.form == "text":
            click.echo(_line(refreshed))

    running = find(config.data)
    if running is not None:
        outcome = _by_mirror(running, reference, follow)
    else:
        outcome = asyncio.run(_in_process(config, reference, follow))
    if isinstance(outcome, RefreshError):
        output.failed(outcome.message)
        return FAILED
    if output.form == "json":
        output.result({"tags": tags, "moved": outcome.moved, "failed": outcome.failed}, "")
    if outcome.failed:
        return FAILED if outcome.failed == outcome.tags else IN_PART
    return DONE


def _line(refreshed: Refreshed) -> str:
    match refreshed.outcome:
        case "gone":
            words = f"gone: {refreshed.error}"
        case "failed":
            words = f"not confirmed, {refreshed.old or 'nothing'} stays: {refreshed.error}"
        case "held":
            words = f"{refreshed.new} until {refreshed.pending} has passed its cooldown"
        case "moved":
            words = f"{refreshed.old} -> {refreshed.new}"
        case other:
            words = f"{refreshed.new} ({other})"
    return f"{refreshed.reference}: {words}"


def _by_mirror(mirror: RunningMirror, reference: str, follow: Callable[[Refreshed], None]) -> Outcome:
    decoder: msgspec.json.Decoder[RefreshLine] = msgspec.json.Decoder(RefreshLine)
    for line in mirror.lines("/api/refresh", {"reference": reference}):
        event = decoder.decode(line)
        if not isinstance(event, Refreshed):
            return event
        follow(event)
    raise CommandFailed("the running mirror ended the refresh before it was done; see its log, then refresh again")


async def _in_process(config: Config, reference: str, follow: Callable[[Refreshed], None]) -> Outcome:
    from entrepot.mirror import mirror
    from entrepot.refreshing import refresh as refresh_tags
    from proxy.upstream.credentials import CredentialError

    names = frozenset(upstream.name for upstream in config.upstreams)
    try:
        async with mirror(config, role="command") as made:
            return await refresh_tags(made.cache, made.store.catalog, reference, names, config.default_upstream, follow)
    except RegistryError as error:
        return RefreshError(error.code, error.message)
    except CredentialError as error:
        raise CommandFailed(str(error)) from None
