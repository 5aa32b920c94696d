"""A mirror that holds every kind of secret, under traffic that goes wrong in every way: it shows none of them.

Two workers, a Redis with a password, clients with logins, an upstream behind a proxy that want credentials, signed
redirects, a region's token; the log is at the debug level, since a hang-up. A client's address is there, and nowhere
else.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import bcrypt
import pytest
from click.testing import CliRunner

from entrepot.cli import main
from proxy.oci.digest import Digest
from tests.scenarios.running import running, until
from tests.scenarios.test_workers import workers_of
from tests.support.connect_proxy import ConnectProxy
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream, Recorded, Reply
from tests.support.marks import Marks
from tests.support.mirror import Mirror, upstream_table
from tests.support.redis import RedisServer

ROOT = Path(__file__).parents[2]
CLIENT = "127.0.0.9"
REPO = "library/private"
IMAGE = make_image([blob(70_000, seed=1), blob(5_000, seed=2)])
NAMES = "admin fleet redis client wrong query agent upstream bearer signature proxy grant stranger told"
SECRETS = {name: f"{name}X7q{number}Zk4Vw9Lm2Ht{number}" for number, name in enumerate(NAMES.split())}
HASH = bcrypt.hashpw(SECRETS["client"].encode(), bcrypt.gensalt(4)).decode()
TOKEN = "dckr_pat_Q3x7Zk4Vw9Lm2HtR8b"
"""What only its form tells: nothing but redaction keeps it from the log."""
MARKS = Marks(SECRETS | {"hash": HASH[29:], "token": TOKEN})
CONFIG = """
region = "here"
workers = 2
redis = "redis://:{redis}@{address}/0"
admin_token = "{admin}"
fleet_secret = "{fleet}"
[log]
format = "json"
level = "{level}"
[access]
mode = "htpasswd"
htpasswd = "htpasswd"
[[grant]]
name = "there"
token_file = "grant"
repositories = ["*"]
"""
COMMANDS = (("status",), ("doctor",), ("why", f"{REPO}:1"), ("why", f"{REPO}:dead"), ("config", "check"))


@dataclass
class Played:
    """What was shown, by where it was shown. `log` is what the mirror wrote, the only place for addresses."""

    log: bytes
    shown: dict[str, bytes] = field(default_factory=dict)

    def leaks(self) -> dict[str, list[str]]:
        """Return what can be read that is nobody's business, by where."""
        found = {where: MARKS.found(text) for where, text in {"log": self.log, **self.shown}.items()}
        for where, text in self.shown.items():
            if CLIENT.encode() in text:
                found[where].append("address of a client")
        return {where: names for where, names in found.items() if names}


def login(password: str) -> dict[str, str]:
    """Return what a client sends that has the secret of this name for its password."""
    return {"Authorization": f"Basic {base64.b64encode(f'me:{SECRETS[password]}'.encode()).decode()}"}


@dataclass
class Stage:
    """The mirror, what is around it, and what its clients were told."""

    mirror: Mirror
    upstream: FakeUpstream
    proxy: ConnectProxy
    redis: RedisServer
    http: aiohttp.ClientSession
    answers: dict[str, bytes] = field(default_factory=dict)

    async def get(self, path: str, password: str | None = "client", **headers: str) -> int:
        """Ask as a client, for the log from its own address; keep what an error says."""
        if password is not None:
            headers = login(password) | headers
        async with self.http.get(self.mirror.url + path, headers=headers) as answer:
            body = await answer.read()
            if answer.status != 200:
                head = "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
                self.answers[f"answer to {len(self.answers)} {path}"] = head.encode() + body
            return answer.status


def written(folder: Path, redis: RedisServer, upstream: FakeUpstream, proxy: ConnectProxy) -> str:
    """Write the files of the configuration, and return its text, but for the level of the log."""
    (folder / "htpasswd").write_text(f"me:{HASH}\n")
    for name in ("upstream", "proxy", "grant"):
        (folder / name).write_text(SECRETS[name] + "\n")
    table = upstream_table(
        "docker.io",
        upstream.url,
        username="user",
        password_file="upstream",
        proxy=f"http://127.0.0.1:{proxy.port}",
        proxy_username="corp",
        proxy_password_file="proxy",
    )
    secrets = {**SECRETS, "redis": quote(f"p@:{SECRETS['redis']}/", safe="")}
    return CONFIG.format(**secrets, address=redis.address, level="{level}") + table + 'redirect_hosts = ["127.0.0.1"]\n'


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        arguments = ("--requirepass", f"p@:{SECRETS['redis']}/")
        redis = stack.enter_context(RedisServer(folder / "redis", arguments=arguments))
        upstream = await stack.enter_async_context(FakeUpstream())
        elsewhere = await stack.enter_async_context(FakeUpstream())
        proxy = await stack.enter_async_context(ConnectProxy(login=f"corp:{SECRETS['proxy']}"))
        upstream.auth, upstream.password = "bearer", SECRETS["upstream"]
        upstream.private.add(REPO)
        upstream.serial = map(f"{SECRETS['bearer']}{SECRETS['signature']}-{{}}".format, count())  # type: ignore[assignment]
        upstream.redirect_to = elsewhere
        elsewhere.presigned = {str(Digest.of(data)): data for data in IMAGE.blobs}
        IMAGE.publish(upstream, REPO, "1")
        config = written(folder, redis, upstream, proxy)
        mirror = Mirror(folder, {}, config=config.format(level="info"))
        await stack.enter_async_context(running(mirror))
        before = await workers_of(mirror)
        (folder / "entrepot.toml").write_text(config.format(level="debug"))
        mirror.program.signal(signal.SIGHUP)
        await asyncio.to_thread(mirror.program.wait_line, "the level of the log changed")
        assert await workers_of(mirror) == before
        connector = aiohttp.TCPConnector(local_addr=(CLIENT, 0), force_close=True)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        yield Stage(mirror, upstream, proxy, redis, http)


def troubled(record: Recorded) -> Reply | None:
    """Answer for what is named after its trouble as upstreams do that say too much."""
    signed = f"?X-Amz-Signature={SECRETS['signature']}&q={SECRETS['query']}"
    message = f"Bearer {SECRETS['told']} is bad, see https://cdn.example/x{signed}"
    told = json.dumps({"errors": [{"code": "DENIED", "message": message}]}).encode()
    for name, status in (("refused", 401), ("forbidden", 403), ("broken", 500), ("limited", 429)):
        if record.path.endswith(name):
            return Reply(status, {"Retry-After": "0"}, told)
    for name, where in (("dead", "http://127.0.0.1:1/x"), ("inner", "http://10.0.0.1/x"), ("odd", "ftp://h/x")):
        if record.path.endswith(name):
            return Reply(307, {"Location": where + signed})
    return None


async def play(stage: Stage) -> None:
    """Pull as clients should, then let everything go wrong that can."""
    for thing in ("manifests/1", *(f"blobs/{Digest.of(data)}" for data in IMAGE.blobs)):
        assert await stage.get(f"/v2/{REPO}/{thing}") == 200
    manifest = f"/v2/{REPO}/manifests"
    statuses = [
        await stage.get(f"{manifest}/1", "wrong"),
        await stage.get(f"{manifest}/1", None, Authorization=f"Bearer {SECRETS['wrong']}"),
        await stage.get(f"{manifest}/none?access_token={SECRETS['query']}&x={SECRETS['query']}"),
        await stage.get(f"{manifest}/none", **{"User-Agent": f"Bearer {SECRETS['agent']}", "Cookie": SECRETS["query"]}),
    ]
    assert statuses == [401, 401, 404, 404]
    await mistaken(stage)
    for token in ("grant", "stranger"):
        await stage.get(f"/sync/v1/tag?q={SECRETS['query']}", None, Authorization=f"Bearer {SECRETS[token]}")
    await heard_of_both(stage)
    stage.upstream.status_for = troubled
    for trouble in ("refused", "forbidden", "broken", "limited", "dead", "inner", "odd"):
        assert await stage.get(f"{manifest}/{trouble}") >= 400, trouble
    stage.upstream.status_for = None
    stage.upstream.revoke_tokens()
    assert await stage.get(f"{manifest}/expired") == 404
    stage.proxy.refuse = 407
    assert await stage.get(f"{manifest}/unreached") >= 500
    stage.proxy.refuse, stage.upstream.password = None, "another"
    stage.upstream.revoke_tokens()
    assert await stage.get(f"{manifest}/denied") >= 400


async def mistaken(stage: Stage) -> None:
    """Ask as one does who takes a token for a tag and a version; whoever sent it may be told it again."""
    headers = login("client") | {"User-Agent": f"docker/27.0 x/{TOKEN}"}
    async with stage.http.get(f"{stage.mirror.url}/v2/{REPO}/manifests/{TOKEN}", headers=headers) as answer:
        assert answer.status == 404


async def heard_of_both(stage: Stage) -> None:
    """Ask for what nobody has until each worker has said at the debug level that it asked an upstream."""
    log = stage.mirror.folder / "mirror.log"
    for number in range(1000):
        assert await stage.get(f"/v2/{REPO}/manifests/none-{number}") == 404
        lines = [line for line in log.read_text().splitlines() if '"upstream request"' in line]
        if all(any(f'"worker":{worker}}}' in line for line in lines) for worker in (1, 2)):
            return
    raise AssertionError(stage.mirror.program.tail())


async def pulls_of(http: aiohttp.ClientSession) -> dict[str, Any]:
    """Wait until the workers have told of a pull that is known by now, and return them."""
    async with asyncio.timeout(30):
        while True:
            async with http.get("/api/pulls") as answer:
                pulls: dict[str, Any] = await answer.json()
            if pulls["running"] or pulls["recent"]:
                return pulls
            await asyncio.sleep(0.05)


async def shown_by(mirror: Mirror) -> dict[str, bytes]:
    """Return everything that the mirror shows to people and machines, by where."""
    files = [path for path in (ROOT / "entrepot/web").rglob("*") if path.suffix in (".html", ".js", ".css", ".svg")]
    paths = ["/metrics", "/readyz", "/api/status", "/api/history", "/dashboard/"]
    paths += [f"/dashboard/{path.relative_to(ROOT / 'entrepot/web')}" for path in files]
    found = {}
    async with aiohttp.ClientSession(mirror.admin) as http:
        for path in paths:
            async with http.get(path) as answer:
                assert answer.status == 200, path
                found[path] = await answer.read()
        pulls = await pulls_of(http)
        found["/api/pulls"] = json.dumps(pulls).encode()
        for pull in pulls["running"] + pulls["recent"]:
            async with http.get(f"/api/pulls/{pull['id']}") as answer:
                found[f"pull {pull['id']}"] = await answer.read()
        async with http.get("/api/live") as answer:
            found["/api/live"] = await answer.content.readline()
    return found


def commanded(mirror: Mirror, words: tuple[str, ...], style: str) -> bytes:
    file = str(mirror.folder / "entrepot.toml")
    place = () if words[0] == "config" else ("--data", str(mirror.data))
    listen = ("--listen", mirror.url.removeprefix("http://")) if words[0] == "doctor" else ()
    ran = CliRunner(env={"COLUMNS": "1000"}).invoke(
        main, [*words, "--config", file, *place, *listen, "--format", style]
    )
    assert isinstance(ran.exception, SystemExit | None), ran.exception
    assert ran.output
    return ran.output.encode()


async def played(folder: Path, commands: Mapping[tuple[str, ...], tuple[str, ...]]) -> Played:
    """Play it all, and return what was shown; `commands` with their formats."""
    async with staged(folder) as stage:
        await play(stage)
        shown = await shown_by(stage.mirror)
        for words, styles in commands.items():
            for style in styles:
                command = f"{' '.join(words)} in {style}"
                shown[command] = await asyncio.to_thread(commanded, stage.mirror, words, style)
        with stage.redis.client(f"p@:{SECRETS['redis']}/") as redis:
            redis.config_set("requirepass", SECRETS["stranger"])
            redis.client_kill_filter(_type="normal", skipme=True)
        log = folder / "mirror.log"
        await stage.get(f"/v2/{REPO}/manifests/late")
        await asyncio.to_thread(until, lambda: b"redis" in log.read_bytes().lower())
        shown |= stage.answers
    return Played(log.read_bytes(), shown)


@pytest.mark.needs("redis-server")
async def test_nothing_shows_a_secret_or_but_for_the_log_who_asked(tmp_path: Path) -> None:
    all_of_it = await played(tmp_path, {("status",): ("text",), ("config", "check"): ("text",)})
    assert all_of_it.leaks() == {}
    assert CLIENT in {json.loads(line).get("client") for line in all_of_it.log.splitlines()}
    assert len(all_of_it.shown) > 20


@pytest.mark.needs("redis-server")
@pytest.mark.slow
async def test_no_command_shows_a_secret_either(tmp_path: Path) -> None:
    assert (await played(tmp_path, dict.fromkeys(COMMANDS, ("text", "json")))).leaks() == {}


@pytest.mark.parametrize(
    "leak",
    [
        "Authorization: Basic {basic}",
        "redis://:p%40{secret}%2F@127.0.0.1:6379",
        "x{secret}x",
        "{hex}",
        "hash {hash}",
        "asked by 127.0.0.9",
    ],
)
def test_a_leak_that_is_planted_is_found(leak: str) -> None:
    secret = SECRETS["redis"]
    for before in ("", "a", "me:"):
        basic = base64.b64encode(f"{before}{secret}{before}".encode()).decode()
        text = leak.format(basic=basic, secret=secret, hex=secret.encode().hex(), hash=HASH)
        assert Played(b"", {"somewhere": b"before" + text.encode() + b"after"}).leaks()
    assert not Played(b"asked by 127.0.0.9", {"somewhere": os.urandom(4096)}).leaks()
