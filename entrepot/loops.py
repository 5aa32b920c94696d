"""The event loop that a mirror runs on, how its threads share the interpreter with it, and its last signals."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def told_to_end(*signals: signal.Signals) -> Iterator[asyncio.Event]:
    """Give an event that any of `signals` sets; after that none does anything: whoever ends must not fail of it.

    The loop's own handlers would restore the default when they go, and another signal in that moment would kill.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in signals:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
        signal.siginterrupt(number, False)
    try:
        yield stop
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
