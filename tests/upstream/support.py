"""Sources over fake upstreams, with limits that make faults quick."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from yarl import URL

from metrics.events import Event
from proxy.oci.names import Repository
from proxy.source import BlobStream
from proxy.upstream.registry import RegistrySource
from proxy.upstream.settings import Limits, UpstreamSettings

REPO = "library/alpine"
REPOSITORY = Repository("docker.io", REPO)
QUICK = Limits(connect=5, first_byte=8, stall=8, answer=8, quiet=0.2, retries=3, backoff_first=0.01, backoff_most=0.02)


class Listener(list[Event]):
    """An Emit that keeps what it is told."""

    def __call__(self, event: Event) -> None:
        self.append(event)


@asynccontextmanager
async def source_of(
    url: str,
    *,
    emit: Listener | None = None,
    limits: Limits = QUICK,
    resolver: Any = None,
    clock: Any = None,
    **settings: Any,
) -> AsyncIterator[RegistrySource]:
    """Give a source of the registry at `url`, and close it after. Nothing may take longer than 10 s."""
    made = UpstreamSettings("docker.io", URL(url), limits=limits, **settings)
    source = RegistrySource(made, made.url, emit if emit is not None else Listener(), resolver=resolver, clock=clock)
    async with asyncio.timeout(30):
        try:
            yield source
        finally:
            await source.aclose()


def quick(**changes: Any) -> Limits:
    """Return QUICK with changes."""
    return replace(QUICK, **changes)


async def read(stream: BlobStream) -> bytes:
    """Read a stream to its end and close it."""
    try:
        return b"".join([chunk async for chunk in stream])
    finally:
        await stream.aclose()
