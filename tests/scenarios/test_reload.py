"""A configuration read anew while the mirror works, in one process: what is taken up, and what it may not disturb."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from msgspec.structs import replace

from entrepot import answering, mirror
from entrepot.answering import Answering, bound
from entrepot.config import AccessConfig, Address, Config, LogConfig, UpstreamConfig
from entrepot.mirror import Rebuilding, rebuildable
from entrepot.reload import kept
from entrepot.serve import _unless
from entrepot.workers.crew import Crew, Worker
from metrics.events import ignore
from metrics.prometheus import Metrics
from proxy.oci.digest import Digest
from tests.support.contents import blob, make_image
from tests.support.deaf import Deaf
from tests.support.fake_upstream import FakeUpstream
from tests.support.mirror import Mirror, upstream_table
from tests.support.processes import Program

REPO = "library/reload"
IMAGE = make_image([blob(1000)])


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as up:
        yield up


@dataclass
class Serving:
    """A mirror that serves, and what turns it to another configuration."""

    rebuilding: Rebuilding
    answers: Answering
    http: aiohttp.ClientSession
    url: str

    async def turn_to(self, config: Config) -> None:
        running = self.rebuilding.mirror
        await self.rebuilding.turn_to(config, lambda: self.answers.turn_to(running, ignore))

    @property
    def config(self) -> Config:
        return self.rebuilding.mirror.config

    async def get(self, path: str) -> tuple[int, bytes]:
        async with self.http.get(f"{self.url}/v2/{REPO}/{path}") as answer:
            return answer.status, await answer.read()


@asynccontextmanager
async def serving(data: Path, upstream: FakeUpstream) -> AsyncIterator[Serving]:
    config = Config(data=data, upstreams=(UpstreamConfig(name="docker.io", url=upstream.url),))
    with bound(Address("127.0.0.1", 0)) as sockets:
        async with (
            rebuildable(config) as rebuilding,
            answering.answering(rebuilding.mirror, sockets, ignore) as answers,
            aiohttp.ClientSession() as http,
        ):
            yield Serving(rebuilding, answers, http, f"http://127.0.0.1:{sockets[0].getsockname()[1]}")


@pytest.fixture
async def served(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Serving]:
    async with serving(tmp_path / "data", upstream) as made:
        yield made


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what only looking can tell."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


async def test_another_quota_holds_at_once(served: Serving) -> None:
    store = served.rebuilding.mirror.store
    await served.turn_to(replace(served.config, quota=1 << 20))
    await until(lambda: store.space.marks is not None and store.space.marks.high <= 1 << 20)


async def test_what_cannot_be_used_leaves_everything_as_it_was(
    served: Serving, upstream: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "ANSWER_SECONDS", 0)
    users = tmp_path / "users"
    users.write_text("neither a name nor a hash\n")
    before = served.config
    with pytest.raises(OSError, match="users"):
        await served.turn_to(replace(before, access=AccessConfig(mode="htpasswd", htpasswd=users)))
    assert served.config is before
    await asyncio.sleep(0.05)
    data = blob(100_000)
    digest: Digest = upstream.add_blob(REPO, data)
    assert await served.get(f"blobs/{digest}") == (200, data)


async def test_a_request_that_had_begun_is_answered_by_the_old_configuration(
    served: Serving, upstream: FakeUpstream
) -> None:
    IMAGE.publish(upstream, REPO, "1")
    upstream.delay_headers = 0.5
    asked = asyncio.create_task(served.get("manifests/1"))
    await upstream.wait_for(1, contains="manifests")
    await served.turn_to(replace(served.config, offline=True))
    assert (await served.get("manifests/2"))[0] == 503
    assert await asked == (200, IMAGE.body)


async def test_reloads_leave_no_descriptors_behind(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "ANSWER_SECONDS", 0)
    monkeypatch.setattr(answering, "ANSWER_SECONDS", 0)
    opened = []
    for _ in range(3):
        for _ in range(10):
            await served.turn_to(replace(served.config))
        await until(lambda: not served.rebuilding._ending._tasks and not served.answers._ending._tasks)
        opened.append(len(os.listdir("/proc/self/fd")))
    assert opened[1] == opened[2]


def test_what_changes_only_with_a_restart_stays() -> None:
    old = Config(upstreams=(), data=Path("/old"), drain_timeout=30, log=LogConfig(format="json"), quota=1)
    log = LogConfig(format="console", level="debug")
    new = Config(upstreams=(), data=Path("/new"), drain_timeout=1, log=log, quota=2)
    both = kept(old, new)
    assert (both.data, both.drain_timeout, both.log.format) == (old.data, old.drain_timeout, "json")
    assert (both.quota, both.log.level) == (2, "debug")


async def test_a_reload_that_hangs_does_not_keep_the_mirror_from_ending() -> None:
    stop, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    asyncio.get_running_loop().call_later(0.01, stop.set)
    async with asyncio.timeout(30):
        await _unless(stop, hang())
    assert ended.is_set()


class Stub(Worker):
    """A worker without a process."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.started = 0.0
        self.ending = False

    def drain(self) -> None:
        self.ending = True


class Staged(Crew):
    """A crew whose workers start when the test lets them."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, [], Metrics(version="0"), Deaf(), lambda: None)
        self.starting: list[asyncio.Future[Worker]] = []

    async def _start(self, number: int) -> Worker:
        future: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self.starting.append(future)
        return await future


@pytest.mark.parametrize("first", [0, 1])
async def test_a_reload_while_a_dead_worker_is_started_again_leaves_one_of_them(tmp_path: Path, first: int) -> None:
    config = Config(data=tmp_path, upstreams=())
    crew, dead = Staged(config), Stub(1)
    crew._current[1] = dead
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(crew._again(dead))
        group.create_task(crew.replace(replace(config, quota=1)))
        await until(lambda: len(crew.starting) == 2)
        started = [Stub(1), Stub(1)]
        for index in (first, 1 - first):
            crew.starting[index].set_result(started[index])
            await asyncio.sleep(0.01)
    restarted, configured = started[1], started[0]  # who starts a dead worker again waits a little first
    assert restarted.ending
    assert not configured.ending
    assert crew._current[1] is configured


def blocks_hang_ups(mirror: Mirror) -> bool:
    """Tell whether a mirror that starts keeps SIGHUP for later, as the kernel knows it."""
    program = mirror._program
    if program is None or not program.running:
        return False
    status = Path(f"/proc/{program.pid}/status").read_text()
    blocked = int(status.split("SigBlk:")[1].split()[0], 16)
    return bool(blocked >> (signal.SIGHUP - 1) & 1)


async def test_a_hang_up_during_the_start_ends_nothing_and_is_heard_later(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    starting = Mirror(tmp_path, {}, config=upstream_table("docker.io", upstream.url))
    started = asyncio.create_task(asyncio.to_thread(starting.start))
    try:
        await until(lambda: blocks_hang_ups(starting))
        starting.program.signal(signal.SIGHUP)
        await started
        log = tmp_path / "mirror.log"
        await until(lambda: "the configuration was read again" in log.read_text())
    finally:
        await asyncio.to_thread(starting.__exit__)


UNFORESEEN = """
import sys
from pathlib import Path
from entrepot.config import Address, Config, UpstreamConfig
from entrepot.serve import run

def load():
    raise RuntimeError("nobody foresaw it")

upstreams = (UpstreamConfig(name="docker.io", url="http://127.0.0.1:1"),)
anywhere = Address("127.0.0.1", 0)
sys.exit(run(Config(data=Path(sys.argv[1]), upstreams=upstreams, listen=anywhere, admin=anywhere), load))
"""


def test_a_reload_that_fails_in_a_way_nobody_foresaw_ends_nothing(tmp_path: Path) -> None:
    script = [sys.executable, "-c", UNFORESEEN, str(tmp_path / "data")]
    with Program(script, tmp_path / "log", {"PYTHONPATH": str(Path(__file__).parents[2])}) as program:
        program.wait_line("serving")
        program.signal(signal.SIGHUP)
        program.wait_line("nobody foresaw it")
        assert program.stop() == 0
