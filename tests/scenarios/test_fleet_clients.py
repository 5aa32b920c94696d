"""The clients that the fleet's scenarios count on: they tell a refusal from a cut, and miss no byte."""

from __future__ import annotations

import zlib
from pathlib import Path

from tests.scenarios.running import running
from tests.support.balanced import Plan, herding
from tests.support.contents import blob
from tests.support.fake_upstream import FakeUpstream
from tests.support.mirror import Mirror
from tests.support.processes import free_port

MIB = 1 << 20
REPO = "library/clients"


async def test_clients_of_a_balancer_go_past_who_refuses_and_count_who_cuts_them(tmp_path: Path) -> None:
    data = blob(4 * MIB)
    async with FakeUpstream() as upstream, running(Mirror(tmp_path, {"docker.io": upstream.url})) as mirror:
        digest = upstream.add_blob(REPO, data)
        path = f"/v2/{REPO}/blobs/{digest}"
        upstream.die_at = 3 * MIB
        async with herding(Plan((upstream.url, mirror.url), path, 1, resume=True)) as clients:
            (cut,) = await clients
        nobody = f"http://127.0.0.1:{free_port()}"
        async with herding(Plan((nobody, mirror.url), path, 2)) as clients:
            refused, straight = await clients
        assert {(one.status, one.length, one.crc) for one in (cut, refused, straight)} == {
            (200, len(data), zlib.crc32(data))
        }
        assert (cut.nodes, cut.cuts, cut.refused) == ([0, 1], [3 * MIB], 0)
        assert (refused.nodes, refused.cuts, refused.refused) == ([1], [], 1)
        assert (straight.nodes, straight.cuts, straight.refused) == ([1], [], 0)


async def test_clients_that_do_not_go_on_elsewhere_end_with_their_node(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        digest = upstream.add_blob(REPO, blob(2 * MIB))
        upstream.die_at = MIB
        async with herding(Plan((upstream.url,), f"/v2/{REPO}/blobs/{digest}", 1)) as clients:
            (one,) = await clients
        assert (one.nodes, one.cuts, one.length) == ([0], [MIB], MIB)
