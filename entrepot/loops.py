"""The event loop that a mirror runs on, how its threads share the interpreter with it, and its last signals."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable

import aiofastnet
import uvloop

SWITCH_SECONDS = 0.0005


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the loop: uvloop's, with a sendfile that is one."""
    factory: Callable[[], asyncio.AbstractEventLoop] = aiofastnet.loop_factory(uvloop.new_event_loop)
    return factory


def share_interpreter() -> None:
    """Let threads that hash, write and log keep the loop waiting for half a millisecond, not for the usual 5."""
    sys.setswitchinterval(SWITCH_SECONDS)


def keep_start() -> None:
    """Let no later collection of garbage look at what start-up made: a full one held the loop for 30 ms."""
    gc.collect()
    gc.freeze()


def ignore_from_now(*signals: signal.Signals) -> None:
    """Take no notice of `signals` any more: the process ends as it was told to, and must not fail of being told again.

    The loop's own handlers go when it is closed, some time before the process ends.
    """
    for number in signals:
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
