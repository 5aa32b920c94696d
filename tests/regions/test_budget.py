"""What a link may carry is not exceeded by however many streams, in however many processes."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from proxy.regions.budget import BURST_SECONDS, MOST_TAKEN, Budget


class FakeTime:
    """A clock that goes on when everybody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._numbers), future))
        await future

    async def run(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        while not all(task.done() for task in tasks):
            for _ in range(3):
                await asyncio.sleep(0)
            if self._sleepers:
                until, _, future = heapq.heappop(self._sleepers)
                if not future.done():
                    self.now = until
                    future.set_result(None)


async def carry(budget: Budget, chunks: Sequence[int], log: list[tuple[float, int]], clock: FakeTime) -> None:
    for chunk in chunks:
        await budget.take(chunk)
        log.append((clock.now, chunk))


@settings(max_examples=60)
@given(
    st.integers(20_000, 200_000_000),
    st.lists(st.lists(st.integers(1, 600_000), min_size=1, max_size=30), min_size=1, max_size=8),
)
def test_any_mix_of_streams_is_carried_at_the_rate(rate: int, streams: list[list[int]]) -> None:
    async def scenario() -> None:
        fake = FakeTime()
        budget = Budget(rate, clock=fake.clock, sleep=fake.sleep)
        log: list[tuple[float, int]] = []
        await fake.run([asyncio.create_task(carry(budget, chunks, log, fake)) for chunks in streams])
        total = sum(map(sum, streams))
        took = fake.now - 1000.0
        assert took == pytest.approx(max(0.0, total / rate - BURST_SECONDS), rel=1e-6, abs=1e-6)
        for began, _ in log:
            within = sum(size for at, size in log if began <= at <= began + 1.0)
            waiting = len(streams) * 600_000  # of each stream one chunk may have been under way before
            assert within <= rate * (1.0 + BURST_SECONDS) * 1.001 + waiting

    asyncio.run(scenario())


async def test_after_a_while_the_rate_is_met_within_a_tenth() -> None:
    fake, rate, log = FakeTime(), 1_000_000, list[tuple[float, int]]()
    budget = Budget(rate, clock=fake.clock, sleep=fake.sleep)
    streams = [[64_000] * 200, [256_000] * 60, [1_000] * 2000]
    await fake.run([asyncio.create_task(carry(budget, chunks, log, fake)) for chunks in streams])
    assert sum(map(sum, streams)) / (fake.now - 1000.0) == pytest.approx(rate, rel=0.1)


async def test_streams_share_evenly() -> None:
    fake = FakeTime()
    budget = Budget(1_000_000, clock=fake.clock, sleep=fake.sleep)
    logs: list[list[tuple[float, int]]] = [[], []]
    tasks = [asyncio.create_task(carry(budget, [50_000] * 100, log, fake)) for log in logs]
    await fake.run(tasks)
    half = (fake.now + 1000.0) / 2
    first, second = (sum(size for at, size in log if at <= half) for log in logs)
    assert first == pytest.approx(second, abs=1_000_000 * BURST_SECONDS + 50_000)  # the first had the burst


async def test_what_was_not_used_is_not_saved_up() -> None:
    fake = FakeTime()
    budget = Budget(1_000_000, clock=fake.clock, sleep=fake.sleep)
    await budget.take(1000)
    fake.now += 3600
    log: list[tuple[float, int]] = []
    await fake.run([asyncio.create_task(carry(budget, [100_000] * 20, log, fake))])
    assert fake.now - 4600 == pytest.approx(2.0 - BURST_SECONDS)


async def test_a_stream_that_is_cancelled_holds_nobody_up_for_longer_than_its_bytes() -> None:
    fake = FakeTime()
    budget = Budget(1_000_000, clock=fake.clock, sleep=fake.sleep)
    task = asyncio.create_task(budget.take(10 * MOST_TAKEN))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    log: list[tuple[float, int]] = []
    await fake.run([asyncio.create_task(carry(budget, [1000], log, fake))])
    assert fake.now - 1000 <= MOST_TAKEN / 1_000_000


async def test_two_processes_share_one_budget(tmp_path: Path) -> None:
    fake, log = FakeTime(), list[tuple[float, int]]()
    opened = [Budget.open(1_000_000, tmp_path / "budget") for _ in range(2)]
    try:
        shared = [Budget(1_000_000, one._file, fake.clock, fake.sleep) for one in opened]
        await fake.run([asyncio.create_task(carry(one, [100_000] * 20, log, fake)) for one in shared])
    finally:
        for one in opened:
            one.close()
    assert fake.now - 1000 == pytest.approx(4.0 - BURST_SECONDS)


async def test_a_file_of_before_a_restart_of_the_machine_holds_nobody_up(tmp_path: Path) -> None:
    fake = FakeTime()
    before = Budget.open(1000, tmp_path / "budget")
    with_fake = Budget(1000, before._file, fake.clock, fake.sleep)
    task = asyncio.create_task(with_fake.take(200_000))
    await asyncio.sleep(0)
    task.cancel()
    fake.now = 5.0  # the clock began anew
    log: list[tuple[float, int]] = []
    await fake.run([asyncio.create_task(carry(with_fake, [1000], log, fake))])
    assert fake.now - 5.0 <= 1.0
    before.close()


async def test_without_a_rate_nothing_is_waited_for_and_no_file_is_made(tmp_path: Path) -> None:
    budget = Budget.open(None, tmp_path / "budget")
    await budget.take(1 << 40)
    budget.close()
    assert not (tmp_path / "budget").exists()


@pytest.mark.slow
async def test_on_the_real_clock_the_rate_is_met_within_a_tenth(tmp_path: Path) -> None:
    budget = Budget.open(2_000_000, tmp_path / "budget")
    began = time.monotonic()

    async def stream() -> None:
        for _ in range(50):
            await budget.take(100_000)

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(stream())
    assert 15_000_000 / (time.monotonic() - began) == pytest.approx(2_000_000, rel=0.1)
    budget.close()
