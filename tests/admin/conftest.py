"""A real mirror over a fake upstream, without listeners: the tests give it the one they are about."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from entrepot.config import Config, UpstreamConfig
from entrepot.mirror import Mirror, mirror
from metrics.prometheus import Metrics
from tests.support.fake_upstream import FakeUpstream


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as up:
        yield up


def config_for(upstream: FakeUpstream, data: Path) -> Config:
    return Config(data=data, region="eu-west", upstreams=(UpstreamConfig(name="docker.io", url=upstream.url),))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
async def running(upstream: FakeUpstream, data: Path) -> AsyncIterator[Mirror]:
    metrics = Metrics(version="1.2.3")
    async with mirror(config_for(upstream, data), metrics=metrics, emit=metrics.observe) as made:
        made.state, made.listen_addresses = "ready", ("http://127.0.0.1:5000",)
        yield made
