"""What comparing two regions costs does not grow with what they have: at 20,000 roots every day, at a million too."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.regions.scope import Scope
from proxy.store import ranges, readers, remote, schema, shadow
from proxy.store.catalog import Catalog
from proxy.store.disk import Disk
from proxy.store.schema import connect
from tests.support.many_roots import build, move_tags, twin
from tests.sync.regional import ALL, Link, Region, fingerprint

REPOSITORIES = {200: 200, 20_000: 200, 1_000_000: 10_000}
MIB = 1 << 20
TEAM = Scope.of(["docker.io/team/app00001*"])
ONE = Scope.of(["docker.io/team/app000007"])


@dataclass(frozen=True)
class Two:
    """A catalog with many roots, and that of a region that has read it all."""

    folder: Path
    roots: int

    @asynccontextmanager
    async def regions(self, place: Path, moved: int = 0, *, read: bool = True) -> AsyncIterator[tuple[Region, Region]]:
        """Open copies; so many tags of the first were moved since, and it does not say which.

        read: the second has read the first.
        """
        for name in ("a", "b") if read else ("a",):
            shutil.copyfile(self.folder / f"{name}.sqlite", place / f"{name}.sqlite")
        if moved:
            move_tags(place / "a.sqlite", moved)
        first = await Catalog.open(place / "a.sqlite", Disk(), region="a")
        try:
            second = await Catalog.open(place / "b.sqlite", Disk(), region="b")
            try:
                yield Region(first), Region(second)
            finally:
                await second.aclose()
        finally:
            await first.aclose()


def made(folder: Path, roots: int) -> Two:
    build(folder / "a.sqlite", roots, REPOSITORIES[roots])
    twin(folder / "a.sqlite", folder / "b.sqlite", "a")
    return Two(folder, roots)


@pytest.fixture(scope="module", params=[20_000, pytest.param(1_000_000, marks=pytest.mark.slow)], ids="{} roots".format)
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("roots")
    yield made(folder, request.param)
    shutil.rmtree(folder)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("moved", "most_bytes", "most_trips"), [(10, 24 * 1024, 6), (1000, 1_200_000, 12)])
async def test_what_differs_is_found_by_kilobytes(
    two: Two, tmp_path: Path, moved: int, most_bytes: int, most_trips: int
) -> None:
    async with two.regions(tmp_path, moved) as (a, b):
        link = Link(b, a)
        await link.follower.once()
        assert len(await link.waiting()) == moved
        assert await link.shadow() == await fingerprint(a)
        asked = a.asked[:-1]  # the last answer says that all is alike
        print(asked)
        print(asked, sum(x + y for _, x, y in asked))
        assert len(asked) <= most_trips
        assert sum(question + answer for _, question, answer in asked) <= most_bytes


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scope", [ALL, TEAM, ONE], ids=["everything", "a glob", "one repository"])
async def test_a_poll_without_news_costs_the_same_for_any_number_of_roots(
    two: Two, tmp_path: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "large").mkdir()
    small, answered = await costs_of_a_poll(made(tmp_path / "small", 200), tmp_path, scope, monkeypatch)
    large, _ = await costs_of_a_poll(two, tmp_path / "large", scope, monkeypatch)
    assert answered <= 300
    assert large == small < 1000


async def costs_of_a_poll(two: Two, place: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Return how many steps SQLite takes for readers on both sides in a poll, and the bytes of its answer."""
    steps = 0
    opened: list[sqlite3.Connection] = []

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    def kept(path: Path) -> sqlite3.Connection:
        opened.append(schema.connect_reader(path))
        return opened[-1]

    monkeypatch.setattr(readers, "connect_reader", kept)
    monkeypatch.setattr(readers, "THREADS", 1)
    async with two.regions(place, read=scope is ALL) as (a, b):
        link = Link(b, a, scope)
        await link.follower.once()
        await link.follower.once()
        a.asked.clear()
        for connection in opened:
            connection.set_progress_handler(step, 1)
        await link.follower.once()
        ((_, _, answered),) = a.asked
        return steps, answered


@pytest.mark.timeout(600)
async def test_steady_news_never_come_to_a_comparison(two: Two, tmp_path: Path) -> None:
    async with two.regions(tmp_path) as (a, b):
        link = Link(b, a)
        for number in range(20):
            await a.saw(f"t{number}", f"image {number}")
            await link.once()
        assert a.rounds() == 0
        assert await link.shadow() == await fingerprint(a)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_first_sync_of_a_million_roots_takes_little_memory_on_both_sides(tmp_path: Path) -> None:
    build(tmp_path / "a.sqlite", 1_000_000, 10_000)

    def begin(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.sync.large", *words]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with begin("serve", str(tmp_path / "a.sqlite")) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        with begin("follow", str(tmp_path / "b.sqlite"), f"http://127.0.0.1:{port}") as follower:
            followed = json.loads(follower.communicate()[0])
        served = json.loads(server.communicate()[0])
    assert followed["records"] == 1_000_000
    assert followed["grown"] < 200 * MIB
    assert served["grown"] < 200 * MIB


@pytest.mark.parametrize("statement", [*ranges.STATEMENTS, *shadow.STATEMENTS, *remote.STATEMENTS])
def test_no_statement_about_regions_reads_a_whole_table(tmp_path: Path, statement: str) -> None:
    connection = connect(tmp_path / "catalog.sqlite")
    names = ("peer", "place", "record", "due", "limit", "now", "error", "next_at", "upstream", "path", "kind", "since")
    values: object = dict.fromkeys(names, 1) if ":peer" in statement else [1] * statement.count("?")
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]  # type: ignore[arg-type]
    connection.close()
    assert [step for step in plan if step.startswith("SCAN") or "TEMP B-TREE FOR ORDER BY" in step] == []
