"""The control socket, over a real Unix socket, asked by the commands' own client."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiofastnet
import msgspec
import pytest
import uvloop
from aiohttp import ClientSession, UnixConnector

from entrepot.cli.running import RunningMirror, find
from entrepot.control import SHUTDOWN_SECONDS, open_control
from entrepot.mirror import Mirror, mirror
from entrepot.pulling import BlobProgress, Failure, PullError, PullLine, PullResult
from entrepot.verifying import Verified, VerifyError, VerifyLine, VerifyResult
from proxy.oci.digest import Digest
from proxy.oci.names import Repository
from tests.admin.conftest import config_for
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream

ALPINE = Repository("docker.io", "library/alpine")


@pytest.fixture
async def control(running: Mirror, data: Path) -> AsyncIterator[RunningMirror]:
    async with open_control(running):
        found = await asyncio.to_thread(find, data)
        assert found is not None
        yield found


async def pull(control: RunningMirror, reference: str, platforms: list[str] | None = None) -> list[PullLine]:
    body = {"reference": reference, "platforms": platforms}
    lines = await asyncio.to_thread(lambda: list(control.lines("/api/pull", body)))
    return [msgspec.json.decode(line, type=PullLine) for line in lines]


async def verify(control: RunningMirror) -> list[VerifyLine]:
    lines = await asyncio.to_thread(lambda: list(control.lines("/api/verify", {})))
    return [msgspec.json.decode(line, type=VerifyLine) for line in lines]


def socket_of(data: Path) -> Path:
    return data / "run" / "control.sock"


def session_on(data: Path) -> ClientSession:
    return ClientSession("http://localhost", connector=UnixConnector(str(socket_of(data))))


async def test_status_is_the_same_document_as_on_the_admin_listener(control: RunningMirror) -> None:
    document = json.loads(await asyncio.to_thread(control.get, "/api/status"))
    assert (document["state"], document["region"]) == ("ready", "eu-west")


async def test_a_pull_tells_each_blob_and_ends_with_done(
    control: RunningMirror, running: Mirror, upstream: FakeUpstream
) -> None:
    layers = [blob(3000, seed=1), blob(5000, seed=2)]
    image = make_image(layers)
    image.publish(upstream, "library/alpine", "3")
    told = await pull(control, "alpine:3")
    done = told[-1]
    assert isinstance(done, PullResult)
    assert (done.repository, done.digest, done.failures) == ("docker.io/library/alpine", image.digest, ())
    assert done.blobs == len(image.blobs)
    stored = {event.digest for event in told if isinstance(event, BlobProgress) and event.done == event.size}
    assert stored == {Digest.of(data) for data in image.blobs}
    assert (await running.store.stats()).blobs == len(image.blobs) + 1


async def test_a_blob_that_fails_is_named_and_the_rest_is_pulled(
    control: RunningMirror, upstream: FakeUpstream
) -> None:
    lost = blob(5000, seed=2)
    make_image([blob(3000, seed=1), lost]).publish(upstream, "library/alpine", "3")
    del upstream.blobs["library/alpine"][Digest.of(lost)]
    told = await pull(control, "alpine:3")
    done = told[-1]
    assert isinstance(done, PullResult)
    assert [failure.what for failure in done.failures] == [Digest.of(lost)]
    assert [event.what for event in told if isinstance(event, Failure)] == [Digest.of(lost)]


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ("alpine:none", "MANIFEST_UNKNOWN"),
        ("alpine@sha256:0", "DIGEST_INVALID"),
        ("ALPINE", "NAME_INVALID"),
        ("unknown.example/a:1", "NAME_UNKNOWN"),
    ],
)
async def test_a_pull_that_cannot_begin_says_why(control: RunningMirror, reference: str, code: str) -> None:
    (line,) = await pull(control, reference)
    assert isinstance(line, PullError)
    assert line.code == code


async def test_progress_is_told_while_a_blob_arrives(
    control: RunningMirror, upstream: FakeUpstream, data: Path
) -> None:
    layer = blob(4 << 20)
    digest = Digest.of(layer)
    make_image([layer]).publish(upstream, "library/alpine", "3")
    upstream.stall_at = 2 << 20
    session = session_on(data)
    async with asyncio.timeout(30), session, session.post("/api/pull", json={"reference": "alpine:3"}) as response:
        seen: list[int] = []
        async for line in response.content:
            event = msgspec.json.decode(line, type=PullLine)
            if isinstance(event, BlobProgress) and event.digest == digest:
                seen.append(event.done)
                if 0 < event.done < event.size:
                    upstream.go_on()
    assert any(0 < done < len(layer) for done in seen)
    assert seen == sorted(seen)
    assert seen[-1] == len(layer)


async def test_an_asker_that_goes_away_ends_its_pull_but_not_the_download(
    control: RunningMirror, running: Mirror, upstream: FakeUpstream, data: Path
) -> None:  # P29
    layer = blob(2 << 20)
    make_image([layer]).publish(upstream, "library/alpine", "3")
    upstream.stall_at = 1 << 20
    async with asyncio.timeout(30):
        async with session_on(data) as session:
            response = await session.post("/api/pull", json={"reference": "alpine:3"})
            await upstream.stalled.wait()
            (work,) = [task for task in asyncio.all_tasks() if task.get_name() == "control /api/pull"]
            response.close()
        await asyncio.wait([work])
        assert work.cancelled()
        upstream.go_on()
        assert await running.cache.ensure_blob(ALPINE, Digest.of(layer)) == len(layer)
    assert upstream.count(method="GET", contains=Digest.of(layer)) == 1


async def test_a_mirror_that_stops_ends_the_pulls_of_its_askers_at_once(
    running: Mirror, upstream: FakeUpstream, data: Path
) -> None:
    make_image([blob(2 << 20)]).publish(upstream, "library/alpine", "3")
    upstream.stall_at = 1 << 20
    async with asyncio.timeout(30), session_on(data) as session:
        async with open_control(running):
            response = await session.post("/api/pull", json={"reference": "alpine:3"})
            await upstream.stalled.wait()
            stopping = time.monotonic()
        assert time.monotonic() - stopping < SHUTDOWN_SECONDS
        assert [task for task in asyncio.all_tasks() if task.get_name() == "control /api/pull"] == []
        told = [msgspec.json.decode(line, type=PullLine) for line in (await response.read()).splitlines() if line]
        assert not any(isinstance(event, PullResult | PullError) for event in told)


async def test_a_verification_tells_its_progress_and_what_it_found(
    control: RunningMirror, running: Mirror, upstream: FakeUpstream, data: Path
) -> None:
    whole, spoiled = (upstream.add_blob("library/alpine", blob(2000, seed=seed)) for seed in (1, 2))
    for digest in (whole, spoiled):
        await running.cache.ensure_blob(ALPINE, digest)
    (path,) = (data / "blobs").glob(f"**/{spoiled.hex}")
    path.chmod(0o600)
    path.write_bytes(bytes(2000))
    told = await verify(control)
    done = told[-1]
    assert isinstance(done, VerifyResult)
    assert (done.checked, done.corrupt, done.missing) == (2, (spoiled,), ())
    assert all(isinstance(event, Verified) for event in told[:-1])
    assert not path.exists()


async def test_a_verification_that_breaks_says_so(
    control: RunningMirror, running: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise OSError("hunter2")

    monkeypatch.setattr(running.store, "verify", fail)
    (line,) = await verify(control)
    assert isinstance(line, VerifyError)
    assert "hunter2" not in line.message


async def test_two_verifications_do_not_run_at_once(
    control: RunningMirror, running: Mirror, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def hang(*_: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(running.store, "verify", hang)
    async with asyncio.timeout(30), session_on(data) as session:
        first = await session.post("/api/verify")
        await begun.wait()
        async with session.post("/api/verify") as second:
            assert second.status == 409
        first.close()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"reference": 1}', b'{"reference": "a", "more": 1}', b'{"reference": "\xff"}']
)
async def test_a_body_that_is_no_pull_request_is_400(control: RunningMirror, data: Path, body: bytes) -> None:
    async with session_on(data) as session, session.post("/api/pull", data=body) as response:
        assert response.status == 400
        assert "errors" in await response.json()


async def test_a_body_without_end_is_refused(control: RunningMirror, data: Path) -> None:  # P45
    async with session_on(data) as session, session.post("/api/pull", data=b" " * (1 << 20)) as response:
        assert response.status == 413


async def test_other_paths_and_methods_are_json_errors(control: RunningMirror, data: Path) -> None:
    async with session_on(data) as session:
        async with session.get("/nothing") as response:
            assert response.status == 404
            assert "errors" in await response.json()
        async with session.get("/api/pull") as response:
            assert (response.status, response.headers["Allow"]) == (405, "POST")


async def test_only_the_owner_may_open_the_socket_and_it_goes_with_the_mirror(running: Mirror, data: Path) -> None:
    async with open_control(running):
        assert stat.S_IMODE(socket_of(data).stat().st_mode) == 0o600
        assert stat.S_IMODE(socket_of(data).parent.stat().st_mode) == 0o700
    assert not [name for name in os.listdir(data / "run") if "control" in name]


async def test_a_socket_left_by_a_crash_is_replaced(running: Mirror, data: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(socket_of(data)))
    left.close()
    assert find(data) is None
    async with open_control(running):
        assert await asyncio.to_thread(find, data) is not None


async def test_a_file_in_the_sockets_place_is_not_touched(running: Mirror, data: Path) -> None:
    socket_of(data).write_text("mine")
    with pytest.raises(FileExistsError, match=r"control\.sock"):
        async with open_control(running):
            pass
    assert socket_of(data).read_text() == "mine"


async def test_a_socket_that_another_process_has_put_there_since_stays(running: Mirror, data: Path) -> None:
    async with open_control(running):
        socket_of(data).unlink()
        other = socket.socket(socket.AF_UNIX)
        other.bind(str(socket_of(data)))
    other.close()
    assert socket_of(data).exists()


@pytest.mark.parametrize("fast", [False, True], ids=["asyncio", "uvloop"])
def test_the_socket_works_under_a_data_path_longer_than_any_address(tmp_path: Path, fast: bool) -> None:
    long = tmp_path / ("x" * 120) / ("y" * 120)

    async def scenario() -> Any:
        async with FakeUpstream() as upstream, mirror(config_for(upstream, long)) as running, open_control(running):
            make_image([blob(3000)]).publish(upstream, "library/alpine", "3")
            control = await asyncio.to_thread(find, long)
            assert control is not None
            return (await pull(control, "alpine:3"))[-1]

    factory = aiofastnet.loop_factory(uvloop.new_event_loop) if fast else None
    with asyncio.Runner(loop_factory=factory) as runner:
        assert isinstance(runner.run(asyncio.wait_for(scenario(), 30)), PullResult)
    assert not socket_of(long).exists()
