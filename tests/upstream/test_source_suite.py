"""The upstream client passes the Source suite: over the fake in its many habits, and over the real docker-registry."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from metrics.events import UpstreamRequest
from proxy.oci.digest import Digest
from proxy.source import Source
from proxy.upstream.credentials import Credential
from tests.source_suite import Contents, SourceSuite, make_contents
from tests.support.fake_upstream import FakeUpstream
from tests.upstream.support import Listener, source_of


class TestPlainFake(SourceSuite):
    @pytest.fixture
    async def upstream(self, contents: Contents) -> AsyncIterator[FakeUpstream]:
        async with FakeUpstream() as up:
            contents.publish(up)
            yield up

    @pytest.fixture
    def opened(self, upstream: FakeUpstream) -> Callable[[], int]:
        return lambda: sum(r.sent > 0 for r in upstream.select(method="GET", contains="/blobs/"))

    @pytest.fixture
    async def source(self, upstream: FakeUpstream) -> AsyncIterator[Source]:
        credential = Credential(upstream.username, upstream.password)
        async with source_of(upstream.url, credential=credential) as source:
            yield source


class TestFakeThatIgnoresRangeAndTellsNoDigests(TestPlainFake):  # P37
    @pytest.fixture
    async def upstream(self, contents: Contents) -> AsyncIterator[FakeUpstream]:
        async with FakeUpstream() as up:
            up.ignore_range = up.no_digest_headers = True
            contents.publish(up)
            yield up


class TestFakeWithBasic(TestPlainFake):
    @pytest.fixture
    async def upstream(self, contents: Contents) -> AsyncIterator[FakeUpstream]:
        async with FakeUpstream() as up:
            up.auth = "basic"
            contents.publish(up)
            yield up


class TestFakeWithTokensAndBlobsOnAnotherHost(TestPlainFake):  # P33, P36
    @pytest.fixture
    async def storage(self) -> AsyncIterator[FakeUpstream]:
        async with FakeUpstream() as cdn:
            yield cdn

    @pytest.fixture
    async def upstream(self, contents: Contents, storage: FakeUpstream) -> AsyncIterator[FakeUpstream]:
        async with FakeUpstream() as up:
            up.auth, up.redirect_to = "bearer", storage
            contents.publish(up)
            yield up

    @pytest.fixture
    def opened(self, storage: FakeUpstream) -> Callable[[], int]:
        """The blobs read whole: where a HEAD would need a signature of its own, one byte tells the size."""
        return lambda: sum(r.range is None for r in storage.requests)


@dataclass(frozen=True)
class Uploads:
    """What is to be pushed to a real registry, in order."""

    blobs: list[tuple[str, bytes]]
    manifests: list[tuple[str, str, str, bytes]]

    def add_blob(self, repo: str, data: bytes) -> Digest:
        self.blobs.append((repo, data))
        return Digest.of(data)

    def add_manifest(self, repo: str, body: bytes, media_type: str, tag: str | None = None) -> Digest:
        self.manifests.append((repo, tag or Digest.of(body), media_type, body))
        return Digest.of(body)


async def push(port: int, uploads: Uploads, headers: dict[str, str]) -> None:
    """Wait for the registry, and push blobs and manifests by the monolithic upload of distribution-spec."""
    await answers(port)
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession(headers=headers) as http:
        for repo, data in uploads.blobs:
            async with http.post(f"{url}/v2/{repo}/blobs/uploads/") as answer:
                assert answer.status == 202
                where = answer.headers["Location"]
            async with http.put(f"{where}&digest={Digest.of(data)}", data=data) as answer:
                assert answer.status == 201
        for repo, ref, media_type, body in uploads.manifests:
            kind = {"Content-Type": media_type}
            async with http.put(f"{url}/v2/{repo}/manifests/{ref}", data=body, headers=kind) as answer:
                assert answer.status == 201, await answer.text()


async def answers(port: int) -> None:
    """Wait until something listens there."""
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Registry:
    """A docker-registry on its own port and folder, filled with the suite's contents, for as long as the block runs."""

    def __init__(self, folder: Path, extra: Mapping[str, object], credential: Credential | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.credential = credential
        self._config = folder / "registry.yml"
        config = {
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
            "http": {"addr": f"127.0.0.1:{self.port}"},
            **extra,
        }
        self._config.write_text(json.dumps(config))

    def __enter__(self) -> Registry:
        command = ["docker-registry", "serve", str(self._config)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        uploads = Uploads([], [])
        make_contents("docker.io").publish(uploads)
        headers = {"Authorization": self.credential.basic} if self.credential else {}
        asyncio.run(push(self.port, uploads, headers))
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def open_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("open"), {}) as registry:
        yield registry


@pytest.fixture(scope="module")
def basic_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("basic")
    credential = Credential("robot", "s3cret: word")
    command = ["htpasswd", "-nbB", "-C", "4", credential.username, credential.password]
    (folder / "htpasswd").write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    auth = {"auth": {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}}
    with Registry(folder, auth, credential) as registry:
        yield registry


@pytest.mark.real
@pytest.mark.needs("docker-registry")
class TestDockerRegistry(SourceSuite):
    @pytest.fixture
    def registry(self, open_registry: Registry) -> Registry:
        return open_registry

    @pytest.fixture
    def told(self) -> Listener:
        return Listener()

    @pytest.fixture
    async def source(self, registry: Registry, told: Listener) -> AsyncIterator[Source]:
        async with source_of(registry.url, emit=told, credential=registry.credential) as source:
            yield source

    @pytest.fixture
    def opened(self, told: Listener) -> Callable[[], int]:
        return lambda: sum(isinstance(e, UpstreamRequest) and (e.kind, e.method) == ("blob", "GET") for e in told)


@pytest.mark.needs("htpasswd")
class TestDockerRegistryWithBasic(TestDockerRegistry):
    @pytest.fixture
    def registry(self, basic_registry: Registry) -> Registry:
        return basic_registry

    @pytest.fixture
    def opened(self, told: Listener) -> Callable[[], int]:
        kinds = ("blob", "GET", "200")
        return lambda: sum(isinstance(e, UpstreamRequest) and (e.kind, e.method, e.status) == kinds for e in told)
