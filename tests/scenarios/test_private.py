"""A private image, two callers, one of them entitled, and two workers: neither gives it to the other caller (P43)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from proxy.oci.digest import Digest
from tests.access.test_private_images import ANN, DIGEST, EVE, FORMS, IMAGE, LAYER, OTHERS, THINGS, prepare
from tests.scenarios.running import running
from tests.support.fake_upstream import FakeUpstream
from tests.support.mirror import Mirror

CONFIG = """
[access]
mode = "upstream"
"""
HEADERS: list[dict[str, str]] = [{}, {"Range": "bytes=0-9,100-109"}, {"Range": "bytes=5-9"}, {"If-None-Match": "*"}]
OWN = [form.replace("team/secret", "team/own") for form in FORMS[:2]]
PRIVATE = [f"blobs/{DIGEST}", f"manifests/{IMAGE.digest}"]


async def assert_closed_at_both(mirror: Mirror) -> None:
    """Ask as everybody but the entitled, each time on a new connection, so that both workers are asked."""
    asked = [(form.format(thing), caller) for form in FORMS[:3] for thing in THINGS for caller in OTHERS.values()]
    asked += [(form.format(thing), EVE) for form in OWN for thing in PRIVATE]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
        for path, caller in asked:
            for conditions in HEADERS if "blobs" in path else HEADERS[:1]:
                async with http.get(mirror.url + path, headers=caller | conditions) as answer:
                    # 429: the many wrong logins of one address
                    assert answer.status in (401, 403, 404, 429), (path, caller, conditions)
                    body = await answer.read()
                assert IMAGE.body not in body
                assert LAYER[:1000] not in body


@pytest.mark.slow
async def test_neither_worker_gives_it_to_the_other_caller_cold_in_mid_fill_or_warm(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        prepare(upstream)
        folder = Mirror(tmp_path, {"docker.io": upstream.url}, config=CONFIG, flags=("--workers", "2"))
        async with running(folder) as mirror, aiohttp.ClientSession() as http:
            await assert_closed_at_both(mirror)
            where = mirror.url + FORMS[0]
            async with http.get(where.format("manifests/1"), headers=ANN) as answer:
                assert (answer.status, await answer.read()) == (200, IMAGE.body)
            upstream.stall_at = 2 << 20

            async def pull() -> bytes:
                async with http.get(where.format(f"blobs/{DIGEST}"), headers=ANN) as answer:
                    assert answer.status == 200
                    return await answer.read()

            pulls = [asyncio.create_task(pull()) for _ in range(12)]
            await asyncio.wait_for(upstream.stalled.wait(), 30)
            await assert_closed_at_both(mirror)
            upstream.go_on()
            assert {Digest.of(body) for body in await asyncio.gather(*pulls)} == {DIGEST}
            await assert_closed_at_both(mirror)
        assert upstream.count(method="GET", contains=f"secret/blobs/{DIGEST}") == 1
