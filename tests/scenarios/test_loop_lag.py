"""No callback keeps the event loop for more than 5 ms of CPU, whatever mix of requests it serves.

On a machine so slow that parsing the largest manifest takes more than twice that, half of what it takes there.

CPU time of the loop's own thread is measured, so that a busy machine fails no test: of every callback on asyncio's
loop, and, where no callback can be wrapped, of every step of every task and every read on the loop that `serve` uses.
Upstream and clients live in a thread of their own. What is left out, and why: full collections of garbage. Each takes
6 to 10 ms while manifests of 20,000 children come and go, and may fall on any callback; what start-up made is frozen
(`entrepot.loops`), so that nothing else makes them long.
"""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import Any

import aiofastnet
import aiohttp
import pytest
import uvloop

from metrics.events import FillFinished, RequestFinished
from metrics.looplag import watch_lag
from proxy.cache.tags import TagPolicy
from proxy.oci.digest import Digest
from proxy.server import Protocol
from tests.cache.lab import HUB, Lab, laboratory
from tests.support.contents import OCI_MANIFEST, blob, make_image
from tests.support.fake_upstream import FakeUpstream
from tests.support.hosting import Hosting

LIMIT = 0.005
REPO = "library/alpine"
MIB = 1 << 20
ROUNDS = 6


class Probe:
    """Callbacks of this thread that took more than `limit` of its CPU, in seconds, with their names."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.slow: list[tuple[float, str]] = []
        self.count = 0
        self._thread = threading.get_ident()
        self._collecting = 0.0

    def collection(self, phase: str, info: dict[str, int]) -> None:
        if info["generation"] == 2 and threading.get_ident() == self._thread:
            self._collecting += time.thread_time() if phase == "stop" else -time.thread_time()

    def timed(self, name: Callable[[], str], act: Callable[[], Any]) -> Any:
        if threading.get_ident() != self._thread:
            return act()
        began = time.thread_time() - self._collecting
        try:
            return act()
        finally:
            spent = time.thread_time() - self._collecting - began
            self.count += 1
            if spent > self.limit:
                self.slow.append((spent, name()))


class Steps(Coroutine[Any, Any, Any]):
    """A coroutine of which every step is measured."""

    def __init__(self, inner: Coroutine[Any, Any, Any], probe: Probe) -> None:
        self._inner = inner
        self._probe = probe

    def _name(self) -> str:
        return repr(self._inner)

    def send(self, value: Any) -> Any:
        return self._probe.timed(self._name, lambda: self._inner.send(value))

    def throw(self, *error: Any) -> Any:
        return self._probe.timed(self._name, lambda: self._inner.throw(*error))

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self._inner.__await__())


@pytest.fixture
def outside() -> Iterator[Hosting]:
    with Hosting() as hosting:
        yield hosting


@pytest.fixture
def quiet_garbage() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def watch_handles(monkeypatch: pytest.MonkeyPatch, limit: float) -> Probe:
    probe, run = Probe(limit), asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        probe.timed(lambda: repr(handle), lambda: run(handle))

    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    return probe


def watch_steps(monkeypatch: pytest.MonkeyPatch, limit: float) -> Probe:
    probe, receive = Probe(limit), Protocol.data_received

    def received(protocol: Protocol, data: bytes) -> None:
        probe.timed(lambda: "data_received", lambda: receive(protocol, data))

    monkeypatch.setattr(Protocol, "data_received", received)

    def make(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(Steps(work, probe), loop=loop, **options)

    asyncio.get_running_loop().set_task_factory(make)
    return probe


def fill_shelves(upstream: FakeUpstream) -> dict[str, list[Digest]]:
    """Publish what the load asks for; the manifests are an ordinary one and one of almost 4 MiB."""
    image = make_image([blob(1000)])
    image.publish(upstream, REPO, "small")
    layers = [
        {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": f"sha256:{n:064x}", "size": n}
        for n in range(20_000)
    ]
    large = json.dumps(json.loads(image.body) | {"layers": layers}).encode()
    assert 2 * MIB < len(large) < 4 * MIB
    upstream.add_manifest(REPO, large, OCI_MANIFEST, "large")
    return {
        "stored": [upstream.add_blob(REPO, blob(8 * MIB))],
        "fills": [upstream.add_blob(REPO, blob(3 * MIB + n)) for n in range(2 * ROUNDS)],
    }


def parsing(body: bytes) -> float:
    """Return the CPU seconds that it takes to parse `body`, at best."""
    took = []
    for _ in range(5):
        began = time.thread_time()
        json.loads(body)
        took.append(time.thread_time() - began)
    return min(took)


async def load(url: str, shelves: dict[str, list[Digest]]) -> None:
    """Ask for hits, fills, ranges and tags at once, round after round."""
    base = f"{url}/v2/{REPO}"

    async def get(path: str, header: str = "") -> None:
        async with session.get(f"{base}/{path}", headers={"Range": header} if header else {}) as answer:
            assert answer.status in (200, 206), (path, answer.status)
            await answer.read()

    stored = f"blobs/{shelves['stored'][0]}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await get(stored)
        fills = iter(shelves["fills"])
        for _ in range(ROUNDS):
            work: list[Awaitable[None]] = [get("manifests/small") for _ in range(20)]
            for digest in (next(fills), next(fills)):
                work += [get(f"blobs/{digest}"), get(f"blobs/{digest}"), get(f"blobs/{digest}", "bytes=9-,5-6,7-8")]
            work += [get(stored), get(stored, "bytes=100-"), get(stored, "bytes=1-2,5000000-6000000,-9")]
            work += [get("manifests/large")]
            await asyncio.gather(*work)


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
@pytest.mark.usefixtures("quiet_garbage")
def test_no_callback_takes_long_under_mixed_load(
    tmp_path: Path, outside: Hosting, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    upstream = FakeUpstream()
    outside.call(upstream.__aenter__())
    shelves = fill_shelves(upstream)
    limit = max(LIMIT, parsing(upstream.manifests[REPO]["large"][1]) / 2)
    lags: list[float] = []

    async def test() -> tuple[Probe, Lab]:
        probe = watch_handles(monkeypatch, limit) if kind == "asyncio" else watch_steps(monkeypatch, limit)
        policy = TagPolicy(ttl=0.05, stale_while_revalidate=60)
        async with laboratory(tmp_path / "d", {HUB: [upstream]}, policy=policy) as lab, watch_lag(lags.append):
            gc.callbacks.append(probe.collection)
            try:
                await asyncio.to_thread(outside.call, load(lab.url, shelves), 60)
            finally:
                gc.callbacks.remove(probe.collection)
        return probe, lab

    factory = aiofastnet.loop_factory(uvloop.new_event_loop) if kind == "uvloop" else None
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            probe, lab = runner.run(test())
    finally:
        outside.call(upstream.__aexit__())
    assert probe.slow == []
    assert probe.count > 500
    assert lags
    assert {event.status for event in lab.of(RequestFinished)} == {200, 206}
    assert len(lab.of(FillFinished)) >= 2 * ROUNDS
