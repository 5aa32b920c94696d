"""One fleet for the scenarios that want no other."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.scenarios.fleets import Stage, stage as staged


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def shared_stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Three nodes, their Redis and their upstream."""
    async with staged(tmp_path_factory.mktemp("fleet")) as stage:
        yield stage


@pytest_asyncio.fixture(loop_scope="package")
async def stage(shared_stage: Stage) -> AsyncIterator[Stage]:
    """The shared stage, mended afterwards."""
    yield shared_stage
    await shared_stage.mend()
