"""Long commands end in order when they are told to, and say how they go on."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from entrepot.cli.exits import CommandFailed
from entrepot.cli.stopping import until_stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_to_end_lets_its_work_end_and_says_how_to_go_on(number: signal.Signals) -> None:
    ended = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(CommandFailed, match="stopped: do it again"):
        asyncio.run(until_stopped(work(), "stopped: do it again"))
    assert ended


def test_work_that_ends_by_itself_gives_its_result() -> None:
    async def work() -> int:
        return 3

    assert asyncio.run(until_stopped(work(), "")) == 3
