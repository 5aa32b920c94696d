"""Long work of a command that SIGINT and SIGTERM end in order, so that the next run goes on."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from entrepot.cli.exits import CommandFailed

T = TypeVar("T")


async def until_stopped(work: Coroutine[Any, Any, T], told: str) -> T:
    """Return what `work` gives. Raises CommandFailed, which says `told`, once the command is to end and `work` has."""
    working = asyncio.create_task(work, name="work of the command")
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, working.cancel)
    try:
        return await working
    except asyncio.CancelledError:
        raise CommandFailed(told) from None
