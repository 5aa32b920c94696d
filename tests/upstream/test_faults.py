"""An upstream that fails: what is asked again, what is given up, how soon, and what is remembered."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from metrics.events import Event, UpstreamHealth, UpstreamRequest, UpstreamRetry
from proxy.oci.digest import Digest
from proxy.oci.errors import BlobUnknown, TooManyRequests, Unavailable
from proxy.oci.names import Tag
from proxy.oci.ranges import ByteRange
from proxy.source import BlobStream
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream, Reply
from tests.upstream.support import REPO, REPOSITORY, Listener, quick, read, source_of

LATEST = Tag("latest")
IMAGE = make_image([blob(100)])
DATA = blob(1 << 20)


async def read_into(got: bytearray, stream: BlobStream) -> None:
    async for chunk in stream:
        got += chunk


async def test_body_that_breaks_off_is_unavailable_and_goes_on_from_there_at_once() -> None:  # P28
    async with FakeUpstream() as up, source_of(up.url) as source:
        digest = up.add_blob(REPO, DATA)
        up.die_at = 300_001
        got = bytearray()
        stream = await source.open_blob(REPOSITORY, digest)
        with pytest.raises(Unavailable, match="breaks off"):
            await read_into(got, stream)
        assert got == DATA[: len(got)]
        assert not source.is_down
        rest = await source.open_blob(REPOSITORY, digest, ByteRange(len(got), None))
        assert bytes(got) + await read(rest) == DATA


async def test_body_that_stalls_is_unavailable() -> None:  # P45
    async with FakeUpstream() as up, source_of(up.url, limits=quick(stall=0.5)) as source:
        digest = up.add_blob(REPO, DATA)
        up.stall_at = 500_000
        with pytest.raises(Unavailable, match="stalls at byte 500000"):
            await read(await source.open_blob(REPOSITORY, digest))


async def test_slow_reader_is_not_a_stalled_upstream() -> None:
    data = blob(8 << 20)
    async with FakeUpstream() as up, source_of(up.url, limits=quick(stall=1)) as source:
        stream = await source.open_blob(REPOSITORY, up.add_blob(REPO, data))
        first = await anext(aiter(stream))
        await asyncio.sleep(1.3)  # longer than the stall, while the socket is full
        assert first + await read(stream) == data


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_that_is_cut_never_ends_as_if_complete(chunked: bool) -> None:  # P28
    async with FakeUpstream() as up, source_of(up.url) as source:
        digest = up.add_blob(REPO, DATA)
        up.chunked, up.die_at = chunked, 700_000
        with pytest.raises(Unavailable):
            await read(await source.open_blob(REPOSITORY, digest))


async def test_closing_a_stream_early_closes_its_connection_and_ends_its_reading() -> None:
    async with FakeUpstream() as up, source_of(up.url) as source:
        digest = up.add_blob(REPO, DATA)
        up.stall_at = 400_000
        stream = await source.open_blob(REPOSITORY, digest)
        await anext(aiter(stream))
        await stream.aclose()
        await stream.aclose()
        with pytest.raises(Unavailable, match="closed"):
            await anext(aiter(stream))
        up.go_on()
        assert await read(await source.open_blob(REPOSITORY, digest)) == DATA


@pytest.mark.parametrize("status", [500, 502, 503, 408])
async def test_passing_status_is_asked_again(status: int) -> None:
    told = Listener()
    async with FakeUpstream() as up, source_of(up.url, emit=told) as source:
        IMAGE.publish(up, REPO, "latest")
        up.status_for = lambda _: status if len(up.requests) <= 2 else None
        assert (await source.manifest(REPOSITORY, LATEST)).body == IMAGE.body
        retries = [event for event in told if isinstance(event, UpstreamRetry)]
        assert retries == [UpstreamRetry(source.name, str(status))] * 2


async def test_status_that_stays_is_unavailable_after_the_retries_and_the_host_is_not_down() -> None:
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.status_for = lambda _: 500
        with pytest.raises(Unavailable, match="500"):
            await source.resolve(REPOSITORY, LATEST)
        assert len(up.requests) == 4
        assert not source.is_down


@pytest.mark.parametrize("status", [404, 400, 418])
async def test_other_statuses_are_not_asked_again(status: int) -> None:
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.status_for = lambda _: status
        with pytest.raises((BlobUnknown, Unavailable)):
            await source.open_blob(REPOSITORY, Digest.of(b"x"))
        assert len(up.requests) == 1


async def test_long_retry_after_is_passed_on_and_not_waited_for() -> None:  # P26
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.status_for = lambda _: Reply(503, {"Retry-After": "30"})
        with pytest.raises(Unavailable) as caught:
            await source.resolve(REPOSITORY, LATEST)
        assert caught.value.retry_after == 30
        assert len(up.requests) == 1


class Awaited(Listener):
    """A Listener that tells when the first retry was decided."""

    def __init__(self) -> None:
        super().__init__()
        self.retried = asyncio.Event()

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, UpstreamRetry):
            self.retried.set()


async def test_host_that_comes_back_within_the_retries_is_not_noticed() -> None:
    async with FakeUpstream() as up:
        IMAGE.publish(up, REPO, "latest")
        await up.stop_listening()
        told = Awaited()
        async with source_of(up.url, emit=told, limits=quick(backoff_first=0.5, backoff_most=0.5)) as source:
            task = asyncio.create_task(source.manifest(REPOSITORY, LATEST))
            await told.retried.wait()
            await up.listen_again()
            assert (await task).body == IMAGE.body
            assert not source.is_down
        assert UpstreamRetry(source.name, "network") in told


async def test_host_that_cannot_be_reached_fails_at_once_until_a_moment_has_passed() -> None:  # P30
    told = Listener()
    async with FakeUpstream() as up, source_of(up.url, emit=told, limits=quick(quiet=1.5)) as source:
        IMAGE.publish(up, REPO, "latest")
        await up.stop_listening()
        with pytest.raises(Unavailable, match="reached"):
            await source.resolve(REPOSITORY, LATEST)
        assert source.is_down
        assert source.last_error is not None
        asked = len(told)
        await up.listen_again()
        with pytest.raises(Unavailable, match="a moment ago"):
            await source.resolve(REPOSITORY, LATEST)
        assert len(told) == asked  # nothing was sent
        await asyncio.sleep(1.5)
        assert (await source.resolve(REPOSITORY, LATEST)).digest == IMAGE.digest
        assert (source.health.is_down, source.health.last_error) == (False, None)


async def test_doubtful_host_is_tried_once_without_retries() -> None:  # P30
    told = Listener()
    async with FakeUpstream() as up, source_of(up.url, emit=told, limits=quick(quiet=0)) as source:
        up.down = True
        for retries in (3, 3):  # the first question has all retries, the second none
            with pytest.raises(Unavailable):
                await source.resolve(REPOSITORY, LATEST)
            assert sum(isinstance(event, UpstreamRetry) for event in told) == retries


async def test_ping_reaches_a_host_that_counts_as_down_and_clears_it() -> None:
    async with FakeUpstream() as up, source_of(up.url, limits=quick(quiet=60)) as source:
        await up.stop_listening()
        with pytest.raises(Unavailable):
            await source.resolve(REPOSITORY, LATEST)
        await up.listen_again()
        assert source.is_down
        await source.ping()
        assert not source.is_down


async def test_headers_that_do_not_come_are_a_timeout_within_the_time_for_an_answer() -> None:  # P26
    told = Listener()
    loop = asyncio.get_running_loop()
    async with FakeUpstream() as up, source_of(up.url, emit=told, limits=quick(first_byte=0.3, answer=0.7)) as source:
        up.delay_headers = 30
        began = loop.time()
        with pytest.raises(Unavailable, match=r"(does|did) not answer"):
            await source.open_blob(REPOSITORY, Digest.of(b"x"))
        assert 0.29 < loop.time() - began < 10
        assert len(up.requests) <= 3  # the time was over before the last retry
        assert source.is_down
        assert next(e.status for e in told if isinstance(e, UpstreamRequest)) == "timeout"


class SilentResolver(AbstractResolver):
    """Resolves nothing, and says so never."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        await asyncio.Event().wait()
        return []

    async def close(self) -> None:
        pass


async def test_connection_that_does_not_come_about_is_a_timeout_of_its_own() -> None:
    limits = quick(connect=0.1, first_byte=5, retries=0)
    async with source_of("http://silent.test", limits=limits, resolver=SilentResolver()) as source:
        with pytest.raises(Unavailable, match=r"accepts no connection within 0\.1 s"):
            await source.resolve(REPOSITORY, LATEST)


async def test_name_that_does_not_resolve_is_unavailable() -> None:
    async with source_of("http://nowhere.invalid", limits=quick(retries=0)) as source:
        with pytest.raises(Unavailable, match=r"nowhere\.invalid cannot be reached"):
            await source.resolve(REPOSITORY, LATEST)


async def test_manifest_that_breaks_off_is_asked_again() -> None:
    answers = iter([10, len(IMAGE.body)])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {IMAGE.media_type}\r\nContent-Length: {len(IMAGE.body)}\r\n\r\n"
        writer.write(head.encode() + IMAGE.body[: next(answers)])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with source_of(f"http://127.0.0.1:{port}") as source:
        assert (await source.manifest(REPOSITORY, LATEST)).body == IMAGE.body
    server.close()


async def test_question_that_is_given_up_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    async with FakeUpstream() as up:
        async with source_of(up.url) as source:
            up.auth, up.delay_headers = "bearer", 5
            task = asyncio.create_task(source.resolve(REPOSITORY, LATEST))
            await up.wait_for(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not source.is_down
        up.cut_connections()
    await asyncio.sleep(0)
    assert {task for task in asyncio.all_tasks() - before if "token" in task.get_name()} == set()


async def test_host_that_is_back_is_probed_by_one_question_while_the_others_wait_for_it() -> None:  # P30
    now = 100.0
    async with FakeUpstream() as up, source_of(up.url, limits=quick(retries=0), clock=lambda: now) as source:
        IMAGE.publish(up, REPO, "latest")
        up.down = True
        with pytest.raises(Unavailable):
            await source.resolve(REPOSITORY, LATEST)
        now += 1
        up.down, up.delay_headers = False, 0.05
        up.requests.clear()
        asking = [asyncio.create_task(source.resolve(REPOSITORY, LATEST)) for _ in range(5)]
        await up.wait_for(1)
        assert len(up.requests) == 1
        assert {(await task).digest for task in asking} == {IMAGE.digest}
        assert len(up.requests) == 5


async def test_probe_that_fails_sends_everybody_away_with_one_request() -> None:  # P30
    now = 100.0
    told = Listener()
    limits = quick(retries=0)
    async with FakeUpstream() as up, source_of(up.url, limits=limits, clock=lambda: now, emit=told) as source:
        up.down = True
        with pytest.raises(Unavailable):
            await source.resolve(REPOSITORY, LATEST)
        now += 1
        told.clear()
        asking = [source.resolve(REPOSITORY, LATEST) for _ in range(5)]
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(answer, Unavailable) for answer in answers)
        assert sum(isinstance(event, UpstreamRequest) for event in told) == 1


async def test_caller_that_leaves_the_probe_lets_the_next_one_probe() -> None:
    now = 100.0
    async with FakeUpstream() as up, source_of(up.url, limits=quick(retries=0), clock=lambda: now) as source:
        IMAGE.publish(up, REPO, "latest")
        up.down = True
        with pytest.raises(Unavailable):
            await source.resolve(REPOSITORY, LATEST)
        now += 1
        up.down, up.delay_headers = False, 5
        probe = asyncio.create_task(source.resolve(REPOSITORY, LATEST))
        await up.wait_for(2)
        other = asyncio.create_task(source.resolve(REPOSITORY, LATEST))
        await asyncio.sleep(0)
        up.delay_headers = 0
        probe.cancel()
        assert (await other).digest == IMAGE.digest


async def test_download_that_broke_off_does_not_wait_for_the_end_of_a_long_quiet_time() -> None:  # P28
    now = 100.0
    limits = quick(retries=0, quiet=60)
    async with FakeUpstream() as up, source_of(up.url, limits=limits, clock=lambda: now) as source:
        digest = up.add_blob(REPO, DATA)
        up.down = True
        with pytest.raises(Unavailable):
            await source.open_blob(REPOSITORY, digest)
        up.down = False
        now += 1.9
        with pytest.raises(Unavailable, match="a moment ago"):
            await source.open_blob(REPOSITORY, digest, ByteRange(1000, None))
        now += 0.1
        with pytest.raises(Unavailable, match="a moment ago"):
            await source.open_blob(REPOSITORY, digest)
        assert await read(await source.open_blob(REPOSITORY, digest, ByteRange(1000, None))) == DATA[1000:]
        assert not source.is_down


@pytest.mark.parametrize(("status", "kind"), [(429, TooManyRequests), (503, Unavailable)])
async def test_host_that_says_when_to_come_back_is_left_alone_until_then_and_still_gives_blobs(
    status: int, kind: type[Exception]
) -> None:  # P16, P35
    now = 100.0
    async with FakeUpstream() as up, source_of(up.url, clock=lambda: now) as source:
        IMAGE.publish(up, REPO, "latest")
        digest = up.add_blob(REPO, DATA)
        up.status_for = lambda asked: Reply(status, {"Retry-After": "30"}) if "/manifests/" in asked.path else None
        with pytest.raises(kind):
            await source.resolve(REPOSITORY, LATEST)
        now += 10
        up.status_for = None
        for _ in range(3):
            with pytest.raises(kind) as caught:
                await source.manifest(REPOSITORY, LATEST)
            assert getattr(caught.value, "retry_after", None) == 20
        assert up.count(contains="/manifests/") == 1
        assert await read(await source.open_blob(REPOSITORY, digest)) == DATA
        now += 20
        assert (await source.manifest(REPOSITORY, LATEST)).body == IMAGE.body


async def test_host_that_fails_and_comes_back_is_told_as_events() -> None:
    told = Listener()
    async with FakeUpstream() as up, source_of(up.url, emit=told, limits=quick(retries=0)) as source:
        IMAGE.publish(up, REPO, "latest")
        up.down = True
        with pytest.raises(Unavailable):
            await source.resolve(REPOSITORY, LATEST)
        up.down = False
        await source.ping()
        await source.resolve(REPOSITORY, LATEST)
        health = [event for event in told if isinstance(event, UpstreamHealth)]
        assert health == [UpstreamHealth(source.name, True, False), UpstreamHealth(source.name, False, False)]


async def test_host_that_nobody_asks_any_more_is_found_to_be_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstream.recovery.IDLE_SECONDS", 0.05)
    told = Listener()
    async with FakeUpstream() as up, source_of(up.url, emit=told, limits=quick(quiet=0.02, retries=0)) as source:
        up.auth = "bearer"
        await up.stop_listening()
        with pytest.raises(Unavailable):
            await source.resolve(REPOSITORY, LATEST)
        await asyncio.sleep(0.2)  # it is asked, and still away
        assert source.health.failing
        await up.listen_again()
        await up.wait_for(1)
        await asyncio.sleep(0.3)
        assert [request.path for request in up.requests] == ["/v2/"]  # once it has answered it is left alone
        health = [event for event in told if isinstance(event, UpstreamHealth)]
        assert health == [UpstreamHealth(source.name, True, False), UpstreamHealth(source.name, False, False)]
