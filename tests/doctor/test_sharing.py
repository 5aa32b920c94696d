"""What the doctor sees and says of what nodes share: Redis, the other nodes, this one as they reach it, the bucket."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from msgspec import structs

from entrepot.config import Config, Secret, SecretUrl
from entrepot.doctor.bucket import BucketSeen, look_at_bucket
from entrepot.doctor.examination import examine
from entrepot.doctor.findings import Finding
from entrepot.doctor.fleet import FleetSeen, NodeSeen, RedisSeen, look_at_fleet
from entrepot.doctor.judging_shared import judge_bucket, judge_fleet, judge_node, judge_own, judge_redis
from metrics.events import ignore
from proxy.fleet.address import parse
from proxy.fleet.link import open_link, prefix_of
from proxy.fleet.nodes import NodeInfo, Nodes
from proxy.fleet.protocol import PROTOCOL
from tests.fleet.nodes import SECRET, a_node, serving
from tests.support.processes import free_port
from tests.support.redis import RedisServer

NEAR = "http://127.0.0.2:5000"
FAR = "http://10.0.0.5:5000"
REDIS = RedisSeen("redis.example:6379", version="7.2.4", seconds=0.0004)
NODE = NodeSeen(FAR, "1.0", skew=0.5)
BUCKET = BucketSeen("s3://bucket/prefix")


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.mark.parametrize(
    ("changed", "level", "words", "remedy"),
    [
        ({}, "ok", "version 7.2.4, answers in 0.4 ms", ""),
        ({"version": ""}, "ok", "redis.example:6379 answers", ""),
        ({"failure": "no connection to Redis at x: refused"}, "problem", "no connection to Redis", "works on alone"),
        ({"version": "6.0.16"}, "warning", "version 6.0.16", "Redis 7 or later"),
        ({"seconds": 0.034}, "warning", "takes 34 ms", "over 50 ms it is not used"),
        ({"skew": -90.0}, "warning", "differ by 90 s", "timedatectl"),
        ({"used": 95, "most": 100, "policy": "noeviction"}, "warning", "95 B of the 100 B", "volatile-lru"),
        ({"used": 95, "most": 100, "policy": "volatile-lru"}, "ok", "answers", ""),
        ({"used": 95, "most": 0, "policy": "noeviction"}, "ok", "answers", ""),
    ],
)
def test_redis_is_judged(changed: dict[str, Any], level: str, words: str, remedy: str) -> None:
    finding = only(judge_redis(replace(REDIS, **changed)))
    assert finding.level == level
    assert words in finding.seen
    assert remedy in (finding.advice or "")


@pytest.mark.parametrize(
    ("changed", "level", "words", "remedy"),
    [
        ({}, "ok", "version 1.0 answers", ""),
        ({"skew": 90.0}, "warning", "differ by 90 s", "set both"),
        ({"failed": "outside"}, "problem", "admits no node there", "add its network or name"),
        ({"failed": "protocol", "protocol": PROTOCOL + 1}, "warning", f"protocol {PROTOCOL + 1}", "upgrade this node"),
        ({"failed": "protocol", "protocol": PROTOCOL - 1}, "warning", f"this one {PROTOCOL}", "upgrade that node"),
        ({"failed": "refused", "failure": "403"}, "problem", "403", "ENTREPOT_FLEET_SECRET"),
        ({"failed": "stranger", "failure": "no node"}, "problem", "no node", "what that node advertises"),
        ({"failed": "silent", "failure": "gone"}, "problem", "gone", "whether it runs"),
    ],
)
def test_another_node_is_judged(changed: dict[str, Any], level: str, words: str, remedy: str) -> None:
    finding = judge_node(replace(NODE, **changed))
    assert (finding.check, finding.level) == ("node 10.0.0.5:5000", level)
    assert words in finding.seen
    assert remedy in (finding.advice or "")


def test_an_address_of_this_machine_alone_is_a_problem_where_other_machines_are_in_the_fleet() -> None:
    own = NodeSeen("http://127.0.0.1:5000")
    assert only(judge_own(own, [NODE], runs=True)).level == "problem"
    assert only(judge_own(own, [NodeSeen(NEAR)], runs=True)).level == "ok"
    assert only(judge_own(own, [], runs=True)).level == "ok"


def test_nobody_at_our_url_is_a_problem_only_while_a_mirror_runs() -> None:
    own = NodeSeen(FAR, failed="silent", failure="cannot be reached")
    assert only(judge_own(own, [], runs=False)).level == "ok"
    finding = only(judge_own(own, [], runs=True))
    assert (finding.level, "cannot be reached" in finding.seen) == ("problem", True)
    other = only(judge_own(replace(own, failed="refused"), [], runs=False))
    assert (other.level, "load balancer" in (other.advice or "")) == ("problem", True)


def test_an_unreadable_secret_is_told_once_for_all_nodes() -> None:
    findings = judge_fleet(FleetSeen(REDIS, NODE, failure="fleet_secret_file x cannot be read"), "eu", runs=True)
    assert [(finding.check, finding.level) for finding in findings] == [("redis", "ok"), ("fleet", "problem")]


@pytest.mark.parametrize(
    ("changed", "level", "words"),
    [
        ({}, "ok", "can be written, read, listed and deleted from"),
        ({"failed": "open", "failure": "it is no bucket"}, "problem", "it is no bucket"),
        ({"failed": "list", "failure": "refuses the credential"}, "problem", "an object cannot be listed: refuses"),
        ({"skew": 400.0}, "warning", "differ by 400 s"),
    ],
)
def test_the_bucket_is_judged(changed: dict[str, Any], level: str, words: str) -> None:
    finding = only(judge_bucket(replace(BUCKET, **changed), None))
    assert (finding.level, words in finding.seen) == (level, True)


def test_a_backlog_that_the_running_mirror_tells_of_is_a_warning() -> None:
    told = {"bucket": {"waiting": 3, "age": 3600.0}}
    finding = only(judge_bucket(BUCKET, told))
    assert (finding.level, finding.seen) == ("warning", "3 blobs to be uploaded, the oldest for 1h")
    assert only(judge_bucket(BUCKET, {"bucket": None})).level == "ok"


# Looking


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@contextlib.asynccontextmanager
async def known(server: RedisServer, *nodes: NodeInfo) -> AsyncIterator[None]:
    """Have Redis know of `nodes` alone."""
    with contextlib.closing(server.client()) as client:
        client.flushall()
    async with open_link(parse(server.url), ignore, prefix=prefix_of("eu")) as link:
        for node in nodes:
            assert await Nodes(link, node).beat()
        yield


def config_at(url: str, redis: str) -> Config:
    return Config(
        data=Path("/nowhere"),
        upstreams=(),
        region="eu",
        redis=SecretUrl(redis),
        advertise=url,
        fleet_secret=Secret(SECRET.decode()),
    )


def info(url: str, protocol: int = PROTOCOL) -> NodeInfo:
    return NodeInfo(url, protocol, "1.0")


@pytest.mark.needs("redis-server")
async def test_every_way_in_which_nodes_fail_each_other_is_told_apart(redis_server: RedisServer) -> None:
    async def stranger(request: web.BaseRequest) -> web.Response:
        return web.Response(text="hello", headers={"Date": "Mon, 01 Jan 2001 00:00:00 GMT"})

    silent = f"http://127.0.0.1:{free_port()}"
    async with contextlib.AsyncExitStack() as stack:
        own = await stack.enter_async_context(a_node())
        good = await stack.enter_async_context(a_node())
        other = await stack.enter_async_context(a_node(secret=b"a secret of some other fleet"))
        strange, _ = await stack.enter_async_context(serving(stranger))
        newer = info("http://127.0.0.9:5000", PROTOCOL + 1)
        nodes = [info(url) for url in (own.url, good.url, other.url, strange, silent, FAR)]
        await stack.enter_async_context(known(redis_server, *nodes, newer))
        seen = await look_at_fleet(config_at(own.url, redis_server.url), redis_server.url)
    assert (seen.redis.failure, seen.redis.version[0].isdecimal(), seen.redis.policy) == ("", True, "noeviction")
    assert 0 < seen.redis.seconds < 5
    assert abs(seen.redis.skew) < 5
    assert (seen.own.url, seen.own.failed) == (own.url, "")
    assert seen.own.skew is not None
    assert {node.url: node.failed for node in seen.others} == {
        good.url: "",
        other.url: "refused",
        strange: "stranger",
        silent: "silent",
        FAR: "outside",
        newer.url: "protocol",
    }


@pytest.mark.needs("redis-server")
async def test_an_url_that_leads_to_another_node_is_seen_to(redis_server: RedisServer) -> None:
    async with a_node(own_url="http://127.0.0.1:1") as other, known(redis_server):
        seen = await look_at_fleet(config_at(other.url, redis_server.url), redis_server.url)
    assert seen.own.failed == "refused"
    assert "what this one advertises" in seen.own.failure


async def test_a_redis_that_is_not_there_hides_nobody_s_password_and_holds_nothing_up(tmp_path: Path) -> None:
    url = f"redis://someone:hidden@127.0.0.1:{free_port()}/0"
    config = config_at(f"http://127.0.0.1:{free_port()}", url)
    began = time.monotonic()
    seen = await look_at_fleet(config, url)
    assert time.monotonic() - began < 5
    assert "no connection to Redis at 127.0.0.1" in seen.redis.failure
    assert "hidden" not in repr(seen)
    unreadable = structs.replace(config, fleet_secret=None, fleet_secret_file=tmp_path / "none")
    assert "cannot be read" in (await look_at_fleet(unreadable, url)).failure


async def test_a_bucket_is_tried_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[str, str]] = []
    objects: dict[str, bytes] = {}

    async def s3(request: web.BaseRequest) -> web.StreamResponse:
        """A bucket as far as one object needs it; who may not list is refused."""
        requests.append((request.method, request.path))
        if request.method == "PUT":
            objects[request.path] = await request.read()
            return web.Response(headers={"ETag": '"1"'})
        if request.method == "POST":
            (key,) = re.findall("<Key>(.*?)</Key>", await request.text())
            del objects[f"/bucket/{key}"]
            return web.Response(text=f"<DeleteResult><Deleted><Key>{key}</Key></Deleted></DeleteResult>")
        if "list-type" in request.query:
            return web.Response(status=403, text="<Error><Code>AccessDenied</Code></Error>")
        if request.path not in objects:
            return web.Response(status=404)
        headers = {"ETag": '"1"', "Last-Modified": "Mon, 01 Jan 2001 00:00:00 GMT"}
        return web.Response(body=objects[request.path], headers=headers)

    for name, value in (("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "key"), ("AWS_ALLOW_HTTP", "true")):
        monkeypatch.setenv(name, value)
    async with serving(s3) as (url, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        seen = await look_at_bucket("s3://bucket/prefix")
    assert (seen.failed, "refuses the credential" in seen.failure) == ("list", True)
    assert seen.skew < -600e6
    assert objects == {}
    assert seen.left is None
    assert ("POST", "/bucket") in requests


async def test_nobody_at_the_bucket_s_endpoint_is_a_problem_with_the_rest_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "key"), ("AWS_ALLOW_HTTP", "true")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    config = Config(data=tmp_path, upstreams=(), offline=True, store="s3://bucket")
    found = {finding.check: finding for finding in await examine(config, tmp_path)}
    assert found["bucket"].level == "problem"
    assert "cannot be written" in found["bucket"].seen
    assert "redis" not in found
