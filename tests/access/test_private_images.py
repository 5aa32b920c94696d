"""The mode `upstream`: a private image, two callers, one of them entitled (DESIGN, access proof; P32, P34, P43)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from entrepot.config import AccessConfig
from metrics.events import FillJoined, UpstreamQuota
from proxy.cache.tags import TagPolicy
from proxy.oci.digest import Digest
from proxy.rules import Rule, Rules
from proxy.upstream.credentials import Credential
from tests.access.support import admission, login
from tests.cache.lab import HUB, Lab, laboratory
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream, Reply

SECRET = "team/secret"
PUBLIC = "library/alpine"
OWN = "team/own"
LAYER = blob(3 << 20)
IMAGE = make_image([LAYER])
DIGEST = Digest.of(LAYER)
ANN = login("ann", "ann's password")
AMY = login("amy", "amy's password")
EVE = login("eve", "eve's password")
FORMS = [
    "/v2/team/secret/{}",
    "/v2/docker.io/team/secret/{}",
    "/docker.io/v2/team/secret/{}",
    "/v2/team/secret/{}?ns=docker.io",
    "/v2/docker.io/team/secret/{}?ns=docker.io",
    "/v2/index.docker.io/team/secret/{}",
]
THINGS = [
    f"manifests/{IMAGE.digest}",
    "manifests/1",
    f"blobs/{DIGEST}",
    "tags/list",
    f"referrers/{IMAGE.digest}",
]
OTHERS = {
    "nobody": {},
    "nobody with an empty login": login("", ""),
    "a caller without the right": EVE,
    "a wrong password": login("ann", "wrong"),
    "a token of another's": {"Authorization": "Bearer token-of-eve"},
    "a token that no header may hold": {"Authorization": "Bearer tokén"},
    "something malformed": {"Authorization": "Basic ???"},
}


def prepare(upstream: FakeUpstream) -> None:
    upstream.auth = "bearer"
    upstream.private = {SECRET}
    upstream.logins = {
        "ann": ("ann's password", True),
        "amy": ("amy's password", True),
        "eve": ("eve's password", False),
    }
    IMAGE.publish(upstream, SECRET, "1")
    make_image([blob(10)]).publish(upstream, PUBLIC, "1")
    make_image([blob(20)]).publish(upstream, OWN, "1")


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as server:
        prepare(server)
        yield server


@pytest.fixture
async def lab(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Lab]:
    opened = admission(AccessConfig(mode="upstream"), tmp_path)
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, admission=opened) as running:
        yield running


def url(lab: Lab, thing: str, form: str = FORMS[0]) -> str:
    return lab.url + form.format(thing)


async def get(lab: Lab, thing: str, headers: dict[str, str], form: str = FORMS[0]) -> tuple[int, bytes]:
    status, _, body = await lab.get(url(lab, thing, form), headers)
    return status, body


async def assert_closed_to_others(lab: Lab) -> None:
    """Every other caller, through every path form and method, gets nothing of it."""
    for who, headers in OTHERS.items():
        for form in FORMS:
            for thing in THINGS:
                for method in ("GET", "HEAD"):
                    status, answered, body = await lab.get(url(lab, thing, form), headers, method)
                    assert status in (401, 403, 404), (who, form, thing, method)
                    assert IMAGE.body not in body
                    assert LAYER[:4096] not in body
                    assert "fake" not in answered.get("WWW-Authenticate", "")  # P32


async def test_cold_only_the_entitled_caller_gets_it(lab: Lab) -> None:
    await assert_closed_to_others(lab)
    assert await get(lab, "manifests/1", ANN) == (200, IMAGE.body)
    assert await get(lab, f"blobs/{DIGEST}", ANN) == (200, LAYER)


async def test_warm_only_the_entitled_caller_gets_it(lab: Lab) -> None:
    for form in FORMS:
        assert await get(lab, "manifests/1", ANN, form) == (200, IMAGE.body)
        assert await get(lab, f"blobs/{DIGEST}", ANN, form) == (200, LAYER)
    await lab.committed(1)
    await assert_closed_to_others(lab)
    assert await get(lab, f"blobs/{DIGEST}", AMY) == (200, LAYER)


async def test_in_mid_fill_only_entitled_callers_join(lab: Lab, upstream: FakeUpstream) -> None:
    upstream.stall_at = 2 << 20
    thing = f"blobs/{DIGEST}"
    reading = asyncio.create_task(get(lab, thing, ANN))
    await asyncio.wait_for(upstream.stalled.wait(), 30)
    await assert_closed_to_others(lab)
    joining = asyncio.create_task(get(lab, thing, AMY))
    await lab.until(lambda: bool(lab.of(FillJoined)))
    upstream.go_on()
    assert await reading == await joining == (200, LAYER)
    assert upstream.count(method="GET", contains=f"{SECRET}/blobs/") == 1


async def test_in_mid_fill_other_repositories_tell_nothing_of_it(lab: Lab, upstream: FakeUpstream) -> None:  # P43
    upstream.stall_at = 2 << 20
    thing = f"blobs/{DIGEST}"
    reading = asyncio.create_task(get(lab, thing, ANN))
    await asyncio.wait_for(upstream.stalled.wait(), 30)
    assert (await get(lab, "manifests/1", EVE, "/v2/library/alpine/{}"))[0] == 200  # that is proven for a minute
    for own in ("/v2/team/own/{}", "/v2/library/alpine/{}"):
        for method in ("HEAD", "GET"):
            for conditions in ({}, {"If-None-Match": "*"}, {"Range": "bytes=0-9,20-29"}, {"Range": "bytes=0-9"}):
                assert (await lab.get(url(lab, thing, own), EVE | conditions, method))[0] == 404
    upstream.go_on()
    assert await reading == (200, LAYER)


async def test_a_private_digest_is_not_had_through_a_repository_of_ones_own(lab: Lab) -> None:  # P43
    assert (await get(lab, f"blobs/{DIGEST}", ANN))[0] == 200
    for thing in (f"blobs/{DIGEST}", f"manifests/{IMAGE.digest}"):
        for form in ("/v2/team/own/{}", "/v2/library/alpine/{}"):
            assert (await get(lab, thing, EVE, form))[0] == 404


async def test_nothing_refers_to_an_unknown_digest_for_who_may_pull(lab: Lab) -> None:  # P12
    unknown = f"referrers/{Digest.of(b'unknown')}"
    status, body = await get(lab, unknown, ANN)
    assert (status, json.loads(body)["manifests"]) == (200, [])
    assert (await get(lab, unknown, {}, "/v2/library/alpine/{}"))[0] == 200
    assert (await get(lab, unknown, EVE))[0] == 403
    assert (await get(lab, unknown, {}))[0] == 401


async def test_one_callers_pull_quota_is_not_anothers(tmp_path: Path) -> None:  # P35
    async with FakeUpstream() as upstream:
        prepare(upstream)
        upstream.auth = "basic"
        upstream.logins["eve"] = ("eve's password", True)
        used_up = Reply(429, {"Retry-After": "3000", "RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": "0"})
        hers = EVE["Authorization"]
        upstream.status_for = lambda asked: used_up if asked.headers.get("Authorization") == hers else None
        opened = admission(AccessConfig(mode="upstream"), tmp_path)
        async with laboratory(tmp_path / "data", {HUB: [upstream]}, admission=opened) as lab:
            for _ in range(2):
                status, headers, _ = await lab.get(url(lab, "manifests/1"), EVE)
                assert (status, headers["Retry-After"]) == (429, "3000")
            assert sum(request.headers.get("Authorization") == hers for request in upstream.requests) == 1
            assert await get(lab, "manifests/1", ANN) == (200, IMAGE.body)
            assert not lab.of(UpstreamQuota)


async def test_challenges_are_the_mirrors_own_and_refusals_say_what_to_do(lab: Lab) -> None:
    status, headers, body = await lab.get(url(lab, "manifests/1"))
    assert (status, headers["WWW-Authenticate"]) == (401, 'Basic realm="entrepot"')  # P32
    assert b"log in to this mirror with your login for docker.io" in body
    assert (await get(lab, "manifests/1", EVE))[0] == 403
    assert (await lab.get(lab.url + "/v2/"))[0] == 401  # P1
    assert (await lab.get(lab.url + "/v2/", ANN))[0] == 200
    assert (await lab.get(lab.url + "/v2/_catalog", ANN))[0] == 404  # it would tell names


async def test_the_catalog_stays_closed_where_upstreams_decide(tmp_path: Path, upstream: FakeUpstream) -> None:  # P15
    opened = admission(AccessConfig(mode="upstream"), tmp_path)
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, admission=opened, catalog=True) as lab:
        assert (await get(lab, "manifests/1", ANN))[0] == 200
        for caller in ({}, ANN, EVE):
            assert (await lab.get(lab.url + "/v2/_catalog", caller))[0] == 404


async def test_public_images_need_no_login_and_no_password_travels_for_them(lab: Lab, upstream: FakeUpstream) -> None:
    form = "/v2/library/alpine/{}"
    for headers in ({}, login("", ""), ANN, login("ann", "wrong")):
        assert (await get(lab, "manifests/1", headers, form))[0] == 200
    assert not any("Basic" in request.headers.get("Authorization", "") for request in upstream.requests)


async def test_each_question_travels_with_its_own_callers_credential(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        prepare(upstream)
        upstream.auth = "basic"
        opened = admission(AccessConfig(mode="upstream"), tmp_path)
        policy = TagPolicy(ttl=0)
        async with laboratory(tmp_path / "data", {HUB: [upstream]}, admission=opened, policy=policy) as lab:
            for caller in (ANN, AMY):
                seen = len(upstream.requests)
                assert (await get(lab, "manifests/1", caller))[0] == 200
                sent = {request.headers.get("Authorization") for request in upstream.requests[seen:]}
                assert sent == {None, caller["Authorization"]}


async def test_the_mirrors_own_credential_opens_nothing_to_callers(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        prepare(upstream)
        opened = admission(AccessConfig(mode="upstream"), tmp_path)
        own = Credential(upstream.username, upstream.password)
        async with laboratory(tmp_path / "data", {HUB: [upstream]}, admission=opened, credential=own) as lab:
            assert (await get(lab, "manifests/1", ANN))[0] == 200
            await assert_closed_to_others(lab)


async def test_proof_and_answer_together_take_no_longer_than_headers_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # P26
    monkeypatch.setattr("proxy.app.HEADERS_SECONDS", 0.5)
    async with FakeUpstream() as upstream:
        prepare(upstream)
        upstream.auth = "basic"
        opened = admission(AccessConfig(mode="upstream"), tmp_path)
        async with laboratory(tmp_path / "data", {HUB: [upstream]}, admission=opened) as lab:
            upstream.delay_headers = 0.15  # asked four times for the proof, then for the answer
            began = time.monotonic()
            status, _, body = await lab.get(url(lab, "manifests/1"), ANN)
            assert (status, b"UNAVAILABLE" in body) == (503, True)
            assert time.monotonic() - began < 5
            monkeypatch.setattr("proxy.app.HEADERS_SECONDS", 2.0)
            upstream.delay_headers = 0.0
            assert await get(lab, "manifests/1", ANN) == (200, IMAGE.body)
            upstream.stall_at = 2 << 20
            parts = {"Range": "bytes=0-9,2500000-2500009"}
            reading = [asyncio.create_task(get(lab, f"blobs/{DIGEST}", ANN | ranges)) for ranges in ({}, parts)]
            await asyncio.wait_for(upstream.stalled.wait(), 30)
            await asyncio.sleep(2.2)  # a body may take its time
            upstream.go_on()
            assert [(await one)[0] for one in reading] == [200, 206]


async def test_alternates_never_see_a_callers_credential(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream, FakeUpstream() as alternate:
        prepare(upstream)
        alternate.auth = "basic"
        IMAGE.publish(alternate, SECRET, "1")
        opened = admission(AccessConfig(mode="upstream"), tmp_path)
        async with laboratory(tmp_path / "data", {HUB: [upstream, alternate]}, admission=opened) as lab:
            assert (await get(lab, "manifests/1", ANN))[0] == 200
            del upstream.blobs[SECRET]
            assert (await get(lab, f"blobs/{DIGEST}", ANN))[0] == 404
        assert alternate.requests
        assert not any(request.authorized for request in alternate.requests)


async def test_a_refusal_of_one_caller_is_not_told_another_who_asked_at_once(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        prepare(upstream)
        upstream.auth = "basic"
        opened = admission(AccessConfig(mode="upstream"), tmp_path)
        async with laboratory(tmp_path / "data", {HUB: [upstream]}, admission=opened, policy=TagPolicy(ttl=0)) as lab:
            for caller in (ANN, AMY):
                assert (await get(lab, "manifests/1", caller))[0] == 200
            upstream.logins["ann"] = ("ann's password", False)  # taken from her within the minute of her proof
            upstream.delay_headers = 0.2
            before = upstream.count(contains=SECRET)
            hers = asyncio.create_task(get(lab, "manifests/1", ANN))
            await upstream.wait_for(before + 1, contains=SECRET)
            other = asyncio.create_task(get(lab, "manifests/1", AMY))
            assert (await hers)[0] == 403
            assert await other == (200, IMAGE.body)


async def test_a_token_that_the_caller_got_elsewhere_is_taken(lab: Lab, upstream: FakeUpstream) -> None:
    async with aiohttp.ClientSession() as http:
        where = f"{upstream.url}/token?service=fake&scope=repository:{SECRET}:pull"
        async with http.get(where, headers=ANN) as answer:
            token = (await answer.json())["token"]
    bearer = {"Authorization": f"Bearer {token}"}
    assert await get(lab, "manifests/1", bearer) == (200, IMAGE.body)
    assert await get(lab, f"blobs/{DIGEST}", bearer) == (200, LAYER)
    membership = await lab.store.catalog.blob(DIGEST)
    assert membership is None or not membership.public


async def test_many_wrong_logins_from_one_address_end_in_429_with_retry_after(lab: Lab, upstream: FakeUpstream) -> None:
    statuses = [(await get(lab, "manifests/1", login("ann", f"guess {n}")))[0] for n in range(12)]
    assert statuses == [403] * 10 + [429] * 2
    status, headers, _ = await lab.get(url(lab, "manifests/1"), login("ann", "guess"))
    assert status == 429
    assert 1 <= int(headers["Retry-After"]) <= 60  # P16
    assert (await get(lab, "manifests/1", {}, "/v2/library/alpine/{}"))[0] == 200


async def test_no_password_is_told_in_errors_events_or_logs(
    lab: Lab, upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    told = b""
    for caller in (ANN, EVE, login("ann", "wrong password"), {"Authorization": "Bearer bearer-secret"}):
        for thing in THINGS:
            _, headers, body = await lab.get(url(lab, thing), caller)
            told += body if body not in (IMAGE.body, LAYER) else b""
            told += repr(dict(headers)).encode()
    await upstream.stop_listening()
    told += (await get(lab, "manifests/2", ANN))[1]
    text = told.decode() + repr(lab.events) + caplog.text + repr(lab.cache.running())
    for caller in (ANN, EVE):
        assert caller["Authorization"].partition(" ")[2] not in text
    for secret in ("ann's password", "eve's password", "wrong password", "bearer-secret"):
        assert secret not in text


async def test_a_login_is_shown_to_no_upstream_for_what_a_rule_closes(tmp_path: Path, upstream: FakeUpstream) -> None:
    rules = Rules({HUB: Rule.parse((), ("team/*",))})
    opened = admission(AccessConfig(mode="upstream"), tmp_path)
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, admission=opened, rules=rules) as lab:
        status, _, body = await lab.get(f"{lab.url}/v2/{SECRET}/manifests/1", ANN)
        assert status == 404
        assert b"NAME_UNKNOWN" in body
        assert not upstream.requests
