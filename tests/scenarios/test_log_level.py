"""The level of the log changed while the mirror works: by a hang-up, in every process, and nothing else is touched."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from entrepot.config import Config, LogConfig
from entrepot.reload import changes_level_alone
from tests.scenarios.running import running
from tests.support.fake_upstream import FakeUpstream
from tests.support.mirror import Mirror, upstream_table

REPO = "library/level"


def logged(mirror: Mirror) -> list[dict[str, Any]]:
    lines = (mirror.folder / "mirror.log").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def workers_that_say(mirror: Mirror, event: str) -> set[int | None]:
    return {line.get("worker") for line in logged(mirror) if line["event"] == event}


def ask_until(mirror: Mirror, numbers: Callable[[], int], said: Callable[[], bool]) -> None:
    """Ask for tags that nobody has, each on a new connection, so that all workers have upstreams to ask."""
    for _ in range(1000):
        mirror.request(f"/v2/{REPO}/manifests/none-{numbers()}")
        if said():
            return
    raise AssertionError(mirror.program.tail())


@pytest.mark.slow
async def test_a_hang_up_changes_the_level_of_every_worker_and_replaces_none(tmp_path: Path) -> None:
    numbers = count().__next__
    async with FakeUpstream() as upstream:
        table = upstream_table("docker.io", upstream.url)
        text = 'workers = 2\n[log]\nformat = "json"\nlevel = "{}"\n' + table
        mirror = Mirror(tmp_path, {}, config=text.format("info"))
        async with running(mirror):
            before = (await asyncio.to_thread(mirror.status))["workers"]

            def both_say(event: str) -> Callable[[], bool]:
                return lambda: workers_that_say(mirror, event) >= {1, 2}

            await asyncio.to_thread(ask_until, mirror, numbers, both_say("request"))
            assert not any(line["level"] == "debug" for line in logged(mirror))
            (tmp_path / "entrepot.toml").write_text(text.format("debug"))
            mirror.program.signal(signal.SIGHUP)
            await asyncio.to_thread(mirror.program.wait_line, "the level of the log changed")
            await asyncio.to_thread(ask_until, mirror, numbers, both_say("upstream request"))
            assert [worker["pid"] for worker in (await asyncio.to_thread(mirror.status))["workers"]] == [
                worker["pid"] for worker in before
            ]
            mirror.program.signal(signal.SIGHUP)  # nothing changed in the file: what it names is read anew
            await asyncio.to_thread(mirror.program.wait_line, "the configuration was read again")


def test_only_a_level_that_changes_alone_is_taken_up_without_the_rest() -> None:
    old = Config(upstreams=(), data=Path("/d"), log=LogConfig(level="info"))
    assert changes_level_alone(old, replace(old, log=LogConfig(level="debug")))
    assert not changes_level_alone(old, replace(old))
    assert not changes_level_alone(old, replace(old, log=LogConfig(level="debug"), quota=1))
