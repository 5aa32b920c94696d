"""Last uses and checks: written in batches, bounded, and never at a caller's cost."""

from __future__ import annotations

import asyncio

import pytest

from proxy.oci.digest import Digest
from proxy.oci.names import Tag
from proxy.store.errors import CatalogError
from proxy.store.touches import FLUSH_COUNT, MAX_PENDING, Checks, Touches, Uses
from tests.store.contents import ALPINE


class Sink:
    """A slow catalog: takes a batch, and holds it until `go`."""

    def __init__(self) -> None:
        self.batches: list[tuple[Uses, Checks]] = []
        self.taken = asyncio.Event()
        self.go = asyncio.Event()

    async def write(self, uses: Uses, checks: Checks) -> None:
        self.batches.append((uses, checks))
        self.taken.set()
        await self.go.wait()


def digests(count: int) -> list[Digest]:
    return [Digest(f"sha256:{number:064x}") for number in range(count)]


async def test_a_full_batch_goes_out_without_waiting_for_the_timer() -> None:
    sink = Sink()
    touches = Touches(sink.write)
    for digest in digests(FLUSH_COUNT):
        touches.used(digest, 1.0)
    async with asyncio.timeout(4.5):
        await sink.taken.wait()
    assert len(sink.batches[0][0]) == FLUSH_COUNT
    sink.go.set()
    await touches.aclose()
    assert len(sink.batches) == 1


async def test_while_the_disk_stands_still_no_more_than_the_bound_is_kept() -> None:
    sink = Sink()
    touches = Touches(sink.write)
    for digest in digests(FLUSH_COUNT):
        touches.used(digest, 1.0)
    await sink.taken.wait()
    for digest in digests(MAX_PENDING + 500):
        touches.used(digest, 2.0)
    sink.go.set()
    await touches.aclose()
    assert [len(uses) for uses, _ in sink.batches] == [FLUSH_COUNT, MAX_PENDING]


async def test_a_check_is_known_from_the_call_until_it_is_written() -> None:
    sink = Sink()
    touches = Touches(sink.write)
    tag = Tag("latest")
    touches.checked(ALPINE, tag, 5.0)
    assert touches.last_check(ALPINE, tag) == 5.0
    closing = asyncio.create_task(touches.aclose())
    await sink.taken.wait()
    assert touches.last_check(ALPINE, tag) == 5.0
    sink.go.set()
    await closing
    assert touches.last_check(ALPINE, tag) is None


async def test_a_catalog_that_refuses_costs_the_batch_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async def refuse(uses: Uses, checks: Checks) -> None:
        raise CatalogError("the disk is full")

    touches = Touches(refuse)
    touches.used(digests(1)[0], 1.0)
    await touches.aclose()
    assert "the disk is full" in caplog.text
