"""`entrepot pull`: ask the running mirror to pull, or pull into the store ourselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import click
import msgspec

from entrepot.cli.exits import DONE, FAILED, IN_PART, USAGE, CommandFailed
from entrepot.cli.options import command
from entrepot.cli.output import Output, format_size
from entrepot.cli.progress import Meter, meter
from entrepot.cli.running import RunningMirror, find
from entrepot.config import Config
from entrepot.pulling import (
    ALL_PLATFORMS,
    BlobProgress,
    Failure,
    PullError,
    PullEvent,
    PullLine,
    PullResult,
    Resolved,
)
from proxy.oci.errors import BadRequest, NotFound, RegistryError
from proxy.oci.names import Reference, Repository
from proxy.oci.platforms import Platform
from proxy.oci.references import parse_full

Outcome = PullResult | PullError


@click.command(short_help="Pull an image into the mirror.")
@click.argument("reference")
@click.option(
    "--platform",
    "platforms",
    metavar="OS/ARCH",
    multiple=True,
    help="A platform to pull, such as linux/arm64, or all; repeatable.  [default: this machine's]",
)
@command("data", "upstream", "region", "redis", "advertise", "store")
def pull(config: Config, output: Output, reference: str, platforms: tuple[str, ...]) -> int:
    """Pull REFERENCE, such as alpine:3 or ghcr.io/owner/image@sha256:…, into the mirror.

    Exit code 3 when some of it could not be had.
    """
    wanted = list(platforms) or None
    repository, name = _checked(config, reference, platforms)
    running = find(config.data)
    with meter(output, reference) as shown:
        follow = _Follower(shown)
        if running is not None:
            outcome = _by_mirror(running, reference, wanted, follow)
        else:
            outcome = asyncio.run(_in_process(config, repository, name, wanted, follow))
    return _tell(output, reference, outcome)


def _checked(config: Config, reference: str, platforms: tuple[str, ...]) -> tuple[Repository, Reference]:
    try:
        for platform in platforms:
            if platform != ALL_PLATFORMS:
                Platform.parse(platform)
        names = frozenset(upstream.name for upstream in config.upstreams)
        return parse_full(reference, names, config.default_upstream)
    except (BadRequest, NotFound) as error:
        raise CommandFailed(error.message, USAGE) from None


class _Follower:
    """Adds up the events of one pull for a meter."""

    def __init__(self, shown: Meter) -> None:
        self._shown = shown
        self._done: dict[str, BlobProgress] = {}

    def __call__(self, event: PullEvent) -> None:
        match event:
            case BlobProgress():
                self._done[event.digest] = event
                blobs = self._done.values()
                stored = sum(blob.done == blob.size for blob in blobs)
                done, total = sum(blob.done for blob in blobs), sum(blob.size for blob in blobs)
                words = f"{stored} of {len(blobs)} blobs, {format_size(done)} of {format_size(total)}"
                self._shown.at(done, total, words)
            case Failure():
                self._shown.say(f"failed: {event.what}: {event.error}")
            case Resolved():
                self._shown.say(f"{event.repository} is {event.digest}")


def _by_mirror(
    mirror: RunningMirror, reference: str, platforms: list[str] | None, follow: Callable[[PullEvent], None]
) -> Outcome:
    decoder: msgspec.json.Decoder[PullLine] = msgspec.json.Decoder(PullLine)
    for line in mirror.lines("/api/pull", {"reference": reference, "platforms": platforms}):
        event = decoder.decode(line)
        if isinstance(event, PullResult | PullError):
            return event
        follow(event)
    raise CommandFailed("the running mirror ended the pull before it was done; see its log, then pull again")


async def _in_process(
    config: Config,
    repository: Repository,
    reference: Reference,
    platforms: list[str] | None,
    follow: Callable[[PullEvent], None],
) -> Outcome:
    from entrepot.mirror import mirror
    from entrepot.pulling import pull as pull_into
    from proxy.upstream.credentials import CredentialError

    try:
        async with mirror(config, role="command") as made:
            return await pull_into(made.cache, repository, reference, platforms, follow)
    except RegistryError as error:
        return PullError(error.code, error.message)
    except CredentialError as error:
        raise CommandFailed(str(error)) from None


def _tell(output: Output, reference: str, outcome: Outcome) -> int:
    if isinstance(outcome, PullError):
        output.failed(outcome.message)
        return FAILED
    counts = f"{_count(outcome.manifests, 'manifest')}, {_count(outcome.blobs, 'blob')}, {format_size(outcome.bytes)}"
    text = f"{reference} {outcome.digest}: {counts}"
    if outcome.failures:
        text += f"; {len(outcome.failures)} failed, pull again to go on:"
        text += "".join(f"\n  {failure.what}: {failure.error}" for failure in outcome.failures)
    output.result(outcome, text)
    return IN_PART if outcome.failures else DONE


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
