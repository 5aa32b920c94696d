"""What a scrape of eight workers takes of the supervisor's loop, and that it shows what all of them have counted."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from pathlib import Path

import pytest

from entrepot.admin import administering
from entrepot.answering import bound
from entrepot.config import Address, Config, UpstreamConfig
from entrepot.mirror import rebuildable
from entrepot.workers import crew
from tests.support.deaf import Deaf

WORKERS = 8
REQUESTS = 400
SCRAPES = 10
LIMIT = 0.05


def ask(url: str) -> None:
    for number in range(REQUESTS):
        urllib.request.urlopen(f"{url}/v2/?n={number}", timeout=30).close()


def scrape(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


@pytest.mark.slow
async def test_a_scrape_of_eight_workers_takes_little_of_the_supervisors_loop(tmp_path: Path) -> None:
    nowhere = Address("127.0.0.1", 0)
    upstreams = (UpstreamConfig(name="docker.io", url="http://127.0.0.1:1"),)
    config = Config(data=tmp_path, upstreams=upstreams, workers=WORKERS, admin=nowhere)
    async with rebuildable(config) as rebuilding:
        mirror = rebuilding.mirror
        with bound(nowhere) as sockets:
            async with (
                crew.working(config, sockets, mirror.metrics, Deaf(), bool) as mirror.crew,
                administering(mirror) as admin,
            ):
                url, shown = (f"http://127.0.0.1:{one.getsockname()[1]}" for one in (sockets[0], admin[0]))
                await asyncio.to_thread(ask, url)
                taken = []
                for _ in range(SCRAPES):
                    began = time.thread_time()
                    text = await asyncio.to_thread(scrape, shown)
                    taken.append(time.thread_time() - began)
                assert max(taken) < LIMIT, taken
    (asked,) = re.findall(r'^entrepot_requests_total{kind="ping",method="GET",status="200"} (.*)$', text, re.M)
    assert float(asked) == REQUESTS
    assert len(re.findall(r"^entrepot_worker_up{.*} 1.0$", text, re.M)) == WORKERS
