"""What the doctor sees: of folders, of upstreams that fail in each way, of a running mirror, of clients' files."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import ssl
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner
from yarl import URL

from entrepot.cli import main
from entrepot.clients.texts import MAKERS
from entrepot.clients.writing import write
from entrepot.config import Config, UpstreamConfig
from entrepot.control import open_control
from entrepot.doctor import upstream as looking
from entrepot.doctor.consumers import look_at_clients
from entrepot.doctor.examination import examine
from entrepot.doctor.findings import Finding, look
from entrepot.doctor.folder import look_at_folder, open_files_limit
from entrepot.doctor.running import look_at_mirror
from entrepot.doctor.upstream import HostSeen, look_at_host
from entrepot.mirror import mirror
from proxy.upstream.credentials import Credential
from proxy.upstream.settings import UpstreamSettings
from tests.support.fake_upstream import FakeUpstream
from tests.support.processes import free_port

MIRROR = "http://127.0.0.1:5000"


@pytest.fixture
async def up() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as made:
        yield made


async def seen_of(
    up: FakeUpstream, credential: Credential | None = None, tls: ssl.SSLContext | None = None
) -> HostSeen:
    url = URL(up.url)
    return await look_at_host(UpstreamSettings(name="docker.io", url=url, credential=credential, tls=tls), url)


# Upstreams


async def test_an_open_registry_answers_and_tells_the_time(up: FakeUpstream) -> None:
    seen = await seen_of(up)
    assert (seen.failed, seen.status, seen.login) == ("", 200, "open")
    assert seen.skew is not None
    assert abs(seen.skew) < 5


async def test_the_clock_of_an_upstream_is_read(up: FakeUpstream) -> None:
    up.extra_headers = {"Date": "Mon, 01 Jan 2001 00:00:00 GMT"}
    seen = await seen_of(up)
    assert seen.skew == pytest.approx(978307200 - time.time(), abs=60)


@pytest.mark.parametrize("auth", ["basic", "bearer"])
async def test_a_credential_is_tried(up: FakeUpstream, auth: str) -> None:
    up.auth, up.anonymous_allowed = auth, False
    assert (await seen_of(up)).login == "wanted"
    right = await seen_of(up, Credential(up.username, up.password))
    assert (right.login, right.user) == ("accepted", up.username)
    assert (await seen_of(up, Credential(up.username, "wrong"))).login == "refused"


async def test_a_refresh_token_is_tried(up: FakeUpstream) -> None:  # P33
    up.auth, up.refresh_token = "bearer", "good"
    assert (await seen_of(up, Credential(identity_token="good"))).login == "accepted"
    assert (await seen_of(up, Credential(identity_token="bad"))).login == "refused"


async def test_anonymous_tokens_are_enough(up: FakeUpstream) -> None:
    up.auth = "bearer"
    assert (await seen_of(up)).login == "anonymous"


async def test_a_token_server_out_of_reach_is_told_and_one_in_a_wrong_place_is_not_asked(up: FakeUpstream) -> None:
    up.auth, up.realm = "bearer", f"http://127.0.0.1:{free_port()}/token"
    assert (await seen_of(up)).login == "unclear"
    up.realm = "http://169.254.169.254/token"  # P39
    seen = await seen_of(up, Credential("u", "p"))
    assert seen.login == "unclear"
    assert "169.254.169.254" in seen.login_failure


async def test_a_rate_limit_is_seen(up: FakeUpstream) -> None:
    up.status_for = lambda request: 429
    assert (await seen_of(up)).status == 429


async def test_a_quota_is_read_where_the_host_tells_one(up: FakeUpstream) -> None:  # P35
    up.extra_headers = {"RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": "7;w=21600"}
    seen = await seen_of(up)
    assert (seen.remaining, seen.limit) == (7, 100)


async def test_nobody_listening_and_nobody_known_are_told_apart(up: FakeUpstream) -> None:
    await up.stop_listening()
    assert (await seen_of(up)).failed == "connection"
    url = URL("http://nowhere.invalid")
    assert (await look_at_host(UpstreamSettings(name="x", url=url), url)).failed == "name"


async def test_a_host_that_hangs_is_left_in_time(up: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "STEP_SECONDS", 0.2)
    up.delay_headers = 30
    began = time.monotonic()
    seen = await seen_of(up)
    assert (seen.failed, seen.failure) == ("ping", "no answer within 0.2 s")
    assert time.monotonic() - began < 10


async def test_a_private_authority_is_told_from_a_certificate_for_another_name() -> None:
    authority = trustme.CA()
    served, trusting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(served)
    authority.configure_trust(trusting)
    async with FakeUpstream(tls=served) as up:
        untrusted, trusted = await seen_of(up), await seen_of(up, tls=trusting)
    assert (untrusted.failed, untrusted.tls) == ("tls", "authority")
    assert (trusted.failed, trusted.login) == ("", "open")
    assert trusted.days_left is not None
    other = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("other.example").configure_cert(other)
    async with FakeUpstream(tls=other) as up:
        assert (await seen_of(up, tls=trusting)).tls == "name"


async def test_a_proxy_is_what_has_to_be_reached(up: FakeUpstream) -> None:
    settings = UpstreamSettings(
        name="x", url=URL("http://nowhere.invalid"), proxy=URL(f"http://127.0.0.1:{free_port()}")
    )
    seen = await look_at_host(settings, settings.url)
    assert (seen.failed, seen.proxy) == ("connection", "127.0.0.1")


async def test_a_proxy_that_wants_a_login_is_told_from_one_that_refuses_the_host() -> None:
    status = 407

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as proxy:
        url = URL("https://registry.example")
        port = proxy.sockets[0].getsockname()[1]
        settings = UpstreamSettings(name="x", url=url, proxy=URL(f"http://127.0.0.1:{port}"))
        wanting = await look_at_host(settings, url)
        status = 403
        refusing = await look_at_host(settings, url)
    assert (wanting.failed, wanting.status) == ("", 407)
    assert (refusing.failed, refusing.failure) == ("ping", "the proxy answers 403")


# The machine


def test_a_folder_is_looked_at_and_left_as_it_was(tmp_path: Path) -> None:
    seen = look_at_folder(tmp_path)
    assert (seen.exists, seen.refused, seen.owner) == (True, None, os.geteuid())
    assert seen.sync_seconds is not None
    assert seen.total > seen.free > 0
    assert list(tmp_path.iterdir()) == []
    below = look_at_folder(tmp_path / "a/b")
    assert (below.exists, below.base, below.sync_seconds) == (False, tmp_path, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/sys/kernel").is_dir(), reason="no /proc")
def test_a_folder_that_cannot_be_written_says_why() -> None:
    assert look_at_folder(Path("/proc/sys/kernel")).refused


def test_a_part_on_another_volume_is_found(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        if os.stat(other).st_dev == tmp_path.stat().st_dev:
            pytest.skip("/dev/shm is on the volume of the tests")
        (tmp_path / "ingest").symlink_to(other)
        assert look_at_folder(tmp_path).apart == (str(tmp_path / "ingest"),)


def test_who_holds_a_folder_is_found_without_taking_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run/owner.lock"
    assert look_at_folder(tmp_path).holder is None
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert look_at_folder(tmp_path).holder == os.getpid()
    assert look_at_folder(tmp_path).holder is None


def test_the_limit_of_open_files_is_read_of_any_process() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert open_files_limit(os.getpid()) == soft
    assert open_files_limit(None) == hard
    assert open_files_limit(2**30) is None


async def test_a_look_that_hangs_is_left() -> None:
    hang = threading.Event()
    try:
        with pytest.raises(TimeoutError):
            await look(lambda: hang.wait(60), 0.05)
    finally:
        hang.set()


def test_clients_are_seen_where_their_files_send_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: f"/usr/bin/{name}")
    assert [(client.name, client.mirrors) for client in look_at_clients(tmp_path)] == [
        ("docker", ()),
        ("containerd", ()),
        ("podman", ()),
    ]
    hub = UpstreamConfig(name="docker.io", url="https://registry-1.docker.io")
    for name in ("docker", "containerd", "podman"):
        write(MAKERS[name](MIRROR, [hub]), tmp_path)
    config = tmp_path / "etc/containerd/config.toml"
    config.write_text("version = 2\n")
    seen = {client.name: client for client in look_at_clients(tmp_path)}
    assert {client.mirrors for client in seen.values()} == {("127.0.0.1:5000",)}
    assert seen["containerd"].unread
    (tmp_path / "etc/docker/daemon.json").write_text("{")
    assert "daemon.json" in look_at_clients(tmp_path)[0].broken


# The whole


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


async def test_a_running_mirror_is_asked_and_a_dead_upstream_found(up: FakeUpstream, tmp_path: Path) -> None:
    hub = UpstreamConfig(name="docker.io", url=up.url)
    config = Config(data=tmp_path / "data", upstreams=(hub,))
    async with mirror(config) as made, open_control(made):
        made.state, made.listen_addresses = "ready", (up.url,)
        good = by_check(await examine(config, tmp_path))
        assert {finding.level for finding in good.values()} <= {"ok", "warning"}
        assert f"process {os.getpid()} is ready at {up.url}" in good["mirror"].seen
        assert (await look_at_mirror(config)).stored == 0
        await up.stop_listening()
        bad = by_check(await examine(config, tmp_path))
    assert bad["upstream docker.io"].level == "problem"
    assert bad["mirror"].level == "problem"
    assert "does not answer as a registry" in bad["mirror"].seen


async def test_without_a_mirror_the_rest_is_looked_at(up: FakeUpstream, tmp_path: Path) -> None:
    missing = UpstreamConfig(name="a.example", url=up.url, ca_file=tmp_path / "nowhere.pem")
    config = Config(data=tmp_path / "data", upstreams=(UpstreamConfig(name="docker.io", url=up.url), missing))
    found = by_check(await examine(config, tmp_path))
    assert found["mirror"].level == "ok"
    assert "none is running" in found["mirror"].seen
    assert found["upstream docker.io"].level == "ok"
    assert found["upstream a.example"].level == "problem"
    assert found["configuration"].level == "problem"


async def test_a_file_in_the_folder_s_place_is_a_problem(up: FakeUpstream, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    config = Config(data=tmp_path / "data", upstreams=(UpstreamConfig(name="docker.io", url=up.url),))
    found = by_check(await examine(config, tmp_path))
    assert (found["data folder"].level, "Not a directory" in found["data folder"].seen) == ("problem", True)


async def test_offline_asks_no_upstream(up: FakeUpstream, tmp_path: Path) -> None:
    config = Config(data=tmp_path, upstreams=(UpstreamConfig(name="docker.io", url=up.url),), offline=True)
    assert "upstream docker.io" not in by_check(await examine(config, tmp_path))
    assert up.requests == []


async def test_the_command_shows_a_table_or_a_document_and_ends_with_3_for_a_problem(
    up: FakeUpstream, tmp_path: Path
) -> None:
    words = ["doctor", "--data", str(tmp_path), "--upstream", f"docker.io={up.url}"]
    good = await asyncio.to_thread(CliRunner().invoke, main, [*words, "--format", "json"])
    assert good.exit_code == 0
    document = json.loads(good.stdout)
    assert {"configuration", "data folder", "disk space", "clock", "upstream docker.io"} <= {
        finding["check"] for finding in document["findings"]
    }
    await up.stop_listening()
    bad = await asyncio.to_thread(CliRunner().invoke, main, words)
    assert bad.exit_code == 3
    assert "PROBLEM" in bad.stdout
    assert "→ see the firewall" in bad.stdout
