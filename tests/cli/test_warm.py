"""What is pulled ahead, and when."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, strategies as st

from entrepot.cli import main
from entrepot.config import Config, UpstreamConfig
from entrepot.config.model import WarmConfig
from entrepot.control import open_control
from entrepot.mirror import mirror
from entrepot.status import status
from entrepot.warm import RETRY_SECONDS, Run, identity, read_runs, slot, upcoming, views, warming, with_glob
from metrics.events import Event, WarmFinished
from metrics.prometheus import Metrics
from proxy.cache.readthrough import ReadThrough
from proxy.oci.digest import Digest
from proxy.oci.globs import Glob
from proxy.oci.names import Repository, Tag
from tests.cache.lab import ALPINE, HUB, LIMITS, Lab, laboratory
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream

UPSTREAMS = (UpstreamConfig(name=HUB, url="https://registry-1.docker.io"),)
HOUR = 3600.0


def config(data: Path, *references: str, every: float = HOUR, offline: bool = False) -> Config:
    return Config(
        data=data, upstreams=UPSTREAMS, offline=offline, warm=(WarmConfig(references=references, every=every),)
    )


def ran(at: float) -> Run:
    return Run(slot=at, ended=at + 5, outcome="done", images=1, failures=0)


# When


def test_a_section_that_never_ran_runs_at_once_and_one_that_did_when_its_time_has_come() -> None:
    assert slot(None, HOUR, 1000.0) == 1000.0
    assert slot(ran(1000.0), HOUR, 1200.0) == 1000.0 + HOUR


def test_missed_times_are_made_up_for_once_and_later_ones_stay_where_they_were() -> None:
    assert slot(ran(1000.0), HOUR, 1000.0 + 5.5 * HOUR) == 1000.0 + 5 * HOUR


def test_a_clock_that_went_back_does_not_stop_the_schedule() -> None:
    assert slot(ran(1e9), HOUR, 1000.0) == 1000.0


def test_a_run_that_brought_nothing_is_made_again_soon_and_later_ones_keep_their_times() -> None:
    failed = Run(slot=1000.0, ended=1020.0, outcome="failed", images=0, failures=2)
    assert upcoming(failed, HOUR, 1020.0) == (1020.0 + RETRY_SECONDS, 1000.0)
    assert upcoming(failed, HOUR, 2000.0) == (2000.0, 1000.0)  # after a restart
    assert upcoming(failed, HOUR, 1000.0 + HOUR) == (1000.0 + HOUR, 1000.0 + HOUR)
    assert upcoming(failed, 60.0, 1020.0) == (1060.0, 1060.0)
    done = Run(slot=1000.0, ended=1700.0, outcome="done", images=2, failures=0)
    assert upcoming(done, HOUR, 1700.0) == (1000.0 + HOUR, 1000.0 + HOUR)


@given(
    st.floats(min_value=1e8, max_value=2e9),
    st.floats(min_value=60, max_value=1e6),
    st.lists(st.floats(min_value=0, max_value=3e6), max_size=20),
)
def test_the_times_of_a_section_never_drift(first: float, every: float, delays: list[float]) -> None:
    due = first
    for delay in delays:
        now = max(due, due + delay)  # it began late, or the mirror was stopped meanwhile
        due = slot(ran(due), every, now)
        assert due > now - every - 1e-6  # as exact as a float of that size is
        assert (due - first) / every == pytest.approx(round((due - first) / every), abs=1e-3)


def test_a_section_is_known_by_what_it_pulls_and_not_by_its_place_or_period() -> None:
    one = WarmConfig(references=("alpine:3",), every=60.0)
    assert identity(one) == identity(WarmConfig(references=("alpine:3",), every=HOUR))
    assert identity(one) != identity(WarmConfig(references=("alpine:3",), platforms=("linux/arm64",)))


# What


def test_a_star_in_a_tag_is_a_glob_and_all_else_is_as_people_write_it() -> None:
    names = frozenset({HUB})
    repository, glob = with_glob("docker.io/library/alpine:3.*", names, HUB)
    assert repository == ALPINE
    assert isinstance(glob, Glob)
    assert [tag for tag in ("3.1", "3.20-x", "3", "13.1", "edge") if glob.matches(tag)] == ["3.1", "3.20-x"]
    assert with_glob("alpine", names, HUB) == (ALPINE, Tag("latest"))
    digest = Digest.of(b"")
    assert with_glob(f"alpine@{digest}", names, HUB) == (ALPINE, digest)
    assert with_glob("alpine:*", names, HUB)[0] == Repository(HUB, "library/alpine")


@dataclass
class Warmed:
    """A mirror as far as warming sees it, with the events of its runs."""

    config: Config
    cache: ReadThrough
    runs: asyncio.Queue[WarmFinished] = field(default_factory=asyncio.Queue)

    @property
    def metrics(self) -> Warmed:
        return self

    def observe(self, event: Event) -> None:
        assert isinstance(event, WarmFinished)
        self.runs.put_nowait(event)

    async def run(self, *, at: float) -> WarmFinished:
        """Warm with a clock that stands at `at` until one run has ended."""
        async with asyncio.timeout(30), warming(self, clock=lambda: at, jitter=lambda low, high: 0.0):
            return await self.runs.get()


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as up:
        yield up


@pytest.fixture
async def lab(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[Lab]:
    async with laboratory(tmp_path / "data", {HUB: [upstream]}) as made:
        yield made


def images(upstream: FakeUpstream, *tags: str) -> None:
    for number, tag in enumerate(tags):
        make_image([blob(100, seed=number)]).publish(upstream, ALPINE.path, tag)


async def test_every_tag_that_matches_is_there_before_anybody_asks(
    lab: Lab, upstream: FakeUpstream, tmp_path: Path
) -> None:
    images(upstream, "3.19", "3.20", "edge")
    warmed = Warmed(config(tmp_path / "data", "alpine:3.*"), lab.cache)
    assert await warmed.run(at=5000.0) == WarmFinished(1, "done", 5000.0)
    await upstream.stop_listening()
    for tag in ("3.19", "3.20"):
        manifest = await lab.cache.manifest(ALPINE, Tag(tag))
        assert manifest.outcome == "hit"
    assert upstream.count(contains="/manifests/edge") == 0


async def test_a_moved_tag_is_brought_in_at_the_next_run_although_it_is_fresh(
    lab: Lab, upstream: FakeUpstream, tmp_path: Path
) -> None:
    warmed = Warmed(config(tmp_path / "data", "alpine:3"), lab.cache)
    images(upstream, "3")
    await warmed.run(at=5000.0)
    moved = make_image([blob(300, seed=9)])
    moved.publish(upstream, ALPINE.path, "3")
    await warmed.run(at=5000.0 + HOUR)
    assert (await lab.cache.manifest(ALPINE, Tag("3"))).descriptor.digest == moved.digest


async def test_what_fails_is_told_and_the_rest_goes_on(
    lab: Lab, upstream: FakeUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images(upstream, "3")
    references = ("alpine:9.*", "alpine:nowhere", "No:Where", "alpine:3")
    warmed = Warmed(config(tmp_path / "data", *references), lab.cache)
    assert (await warmed.run(at=5000.0)).outcome == "partial"
    failed = {
        record.__dict__["image"]: record.__dict__["error"] for record in caplog.records if record.levelname == "WARNING"
    }
    assert set(failed) == {"alpine:9.*", "docker.io/library/alpine:nowhere", "No:Where"}
    assert failed["alpine:9.*"] == "none of the 1 tags of docker.io/library/alpine matches 9.*"
    (run,) = read_runs(tmp_path / "data").values()
    assert (run.images, run.failures) == (1, 3)


async def test_a_restart_within_the_period_runs_nothing(lab: Lab, upstream: FakeUpstream, tmp_path: Path) -> None:
    images(upstream, "3")
    warmed = Warmed(config(tmp_path / "data", "alpine:3"), lab.cache)
    await warmed.run(at=5000.0)
    asked = len(upstream.requests)
    planned = asyncio.Event()

    def jitter(low: float, high: float) -> float:
        planned.set()
        return 0.0

    async with asyncio.timeout(30), warming(warmed, clock=lambda: 5000.0 + HOUR / 2, jitter=jitter):
        await planned.wait()
        await asyncio.sleep(0.02)
    assert len(upstream.requests) == asked


async def test_a_section_that_met_a_dead_upstream_is_warmed_once_it_is_back(
    lab: Lab, upstream: FakeUpstream, tmp_path: Path
) -> None:
    images(upstream, "3")
    await upstream.stop_listening()
    warmed = Warmed(config(tmp_path / "data", "alpine:3"), lab.cache)
    assert (await warmed.run(at=5000.0)).outcome == "failed"
    await upstream.listen_again()
    await asyncio.sleep(LIMITS.quiet)
    assert (await warmed.run(at=5000.0 + RETRY_SECONDS)).outcome == "done"
    (run,) = read_runs(tmp_path / "data").values()
    assert run.slot == 5000.0


async def test_an_offline_mirror_warms_nothing(lab: Lab, upstream: FakeUpstream, tmp_path: Path) -> None:
    images(upstream, "3")
    warmed = Warmed(config(tmp_path / "data", "alpine:3", offline=True), lab.cache)
    async with warming(warmed, jitter=lambda low, high: 0.0):
        await asyncio.sleep(0.05)
    assert upstream.requests == []


def test_a_record_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/warm.json").write_text("{")
    assert read_runs(tmp_path) == {}


def test_a_section_shows_its_last_and_its_next_run(tmp_path: Path) -> None:
    configured = config(tmp_path, "alpine:3")
    (before,) = views(configured, {}, 0.0)
    assert (before.last, before.outcome, before.next) == (None, None, "1970-01-01T00:00:00+00:00")
    (after,) = views(configured, {identity(configured.warm[0]): ran(0.0)}, 10.0)
    assert (after.last, after.outcome, after.next) == ("1970-01-01T00:00:05+00:00", "done", "1970-01-01T01:00:00+00:00")


async def test_a_mirror_shows_its_sections_in_status_and_metrics(upstream: FakeUpstream, tmp_path: Path) -> None:
    images(upstream, "3")
    hub = UpstreamConfig(name=HUB, url=upstream.url)
    configured = Config(data=tmp_path, upstreams=(hub,), warm=(WarmConfig(references=("alpine:3",)),))
    ended = asyncio.Event()

    class Watched(Metrics):
        def observe(self, event: Event) -> None:
            super().observe(event)
            if isinstance(event, WarmFinished):
                ended.set()

    metrics = Watched(version="1")
    async with mirror(configured, metrics=metrics, emit=metrics.observe) as made, asyncio.timeout(30):
        async with warming(made, jitter=lambda low, high: 0.0):
            await ended.wait()
        (section,) = (await status(made)).warm
        async with open_control(made):
            shown = await asyncio.to_thread(CliRunner().invoke, main, ["status", "--data", str(tmp_path)])
        assert "warms alpine:3 every 6h, next at " in shown.stdout
        assert "done, 1 image\n" in shown.stdout
    assert (section.outcome, section.images) == ("done", 1)
    exposed = metrics.expose()[0].decode()
    assert 'entrepot_warm_runs_total{outcome="done",section="1"} 1.0' in exposed
    assert "entrepot_warm_last_success_timestamp_seconds" in exposed
    assert json.loads((tmp_path / "run/warm.json").read_text())
