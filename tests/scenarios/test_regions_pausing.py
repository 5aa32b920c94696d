"""A pause while a blob comes over a slow link: it stops at once, outlives a restart, and costs no byte twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.scenarios.fleets import pull
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream
from tests.support.regions import regions, shows, until

MIB = 1 << 20
CHUNK = MIB


@pytest.mark.slow
async def test_a_pause_in_mid_blob_outlives_a_restart_and_costs_no_byte_twice(tmp_path: Path) -> None:
    image = make_image([blob(10 * MIB, seed=5)])
    async with (
        FakeUpstream() as upstream,
        regions(tmp_path, {"a": upstream.url, "b": None}, {"b": ["a"]}) as world,
    ):
        image.publish(upstream, "library/paused", "1")
        b, link = world["b"], world.link("b", "a")
        link.rate = 2 * MIB
        assert set(await pull(world["a"], "library/paused", "1")) == {200}
        began = link.down.bytes
        await link.wait_down(began + 3 * MIB)
        status = (await asyncio.to_thread(b.sync_status))["a"]
        assert 0 < status["bytes_behind"] <= 8 * MIB
        assert status["rate"] > 0
        await asyncio.to_thread(b.entrepot, "sync", "pause", "a")
        await until("nothing more is under way", lambda: link.live, lambda live: live <= 1)
        paused = link.down.bytes
        assert paused < began + 10 * MIB
        await asyncio.to_thread(b.kill)
        await asyncio.to_thread(b.start)
        records = link.down.bytes
        assert "paused" in (await asyncio.to_thread(b.sync_status))["a"]["held"]
        # What an interrupted download would bring is seen after so many answers to the question for records.
        other = make_image([blob(CHUNK, seed=6)])
        other.publish(upstream, "library/heard", "1")
        assert set(await pull(world["a"], "library/heard", "1")) == {200}
        await until("b hears of another", lambda: b.read("SELECT count(*) FROM pending"), lambda rows: rows[0][0] > 2)
        assert link.down.bytes - records < CHUNK
        assert await asyncio.to_thread(b.tags) == {}
        await asyncio.to_thread(b.entrepot, "sync", "resume", "a")
        await shows(b, "library/paused:1", image.digest)
        await shows(b, "library/heard:1", other.digest)
        assert link.down.bytes - began < 11 * MIB + 2 * CHUNK
