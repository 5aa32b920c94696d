"""What a worker does: attach to the store, answer clients, report, drain when told or when the supervisor is gone."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

from entrepot import __version__
from entrepot.answering import answering
from entrepot.config import Config
from entrepot.loops import keep_start, loop_factory, share_interpreter, told_to_end
from entrepot.mirror import Mirror, mirror
from entrepot.status import fill_views, host_views
from entrepot.workers.wire import Ask, Channel, Ready, Report, SetLevel, Steps, decode_to_worker, receive_start
from metrics.declarations import LOG_LINES_DROPPED
from metrics.emit import emitting
from metrics.logs import Logs
from metrics.looplag import watch_lag
from metrics.prometheus import Metrics
from metrics.pulls.gathering import Gathering
from proxy.cache.once import Background
from proxy.store.errors import StoreError
from proxy.upstream.credentials import CredentialError

REPORT_SECONDS = 2.0
STEPS_SECONDS = 0.5
ORPHAN_SECONDS = 2.0
log = logging.getLogger(__name__)


def run(channel: socket.socket, listening: Sequence[socket.socket]) -> int:
    """Work until told to drain; return the exit code."""
    share_interpreter()
    # A terminal sends them to the whole group: they are the supervisor's to understand.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        start = receive_start(channel)
    except EOFError:
        return 1
    with Logs(level=start.config.log.level, style=start.config.log.format, worker=start.number) as logs:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(_work(start.config, logs, channel, listening))
        except (StoreError, CredentialError, OSError) as error:
            print(f"entrepot: worker {start.number}: {error}", file=sys.stderr)
            return 1
        except Exception:
            log.exception("the worker ends of what nobody foresaw")
            return 1
    return 0


async def _work(config: Config, logs: Logs, end: socket.socket, listening: Sequence[socket.socket]) -> None:
    metrics = Metrics(version=__version__)
    metrics.read_from(LOG_LINES_DROPPED, lambda: logs.dropped)
    gathering = Gathering()
    emit = emitting(metrics, logs, gathering)
    with told_to_end(signal.SIGTERM) as stop:
        channel = await Channel.open(end)
        try:
            async with AsyncExitStack() as stack:
                running = await stack.enter_async_context(mirror(config, metrics=metrics, emit=emit, role="worker"))
                background = await stack.enter_async_context(Background())
                background.create_task(_report(channel, running), name="reports")
                background.create_task(_tell_steps(channel, gathering), name="steps of pulls")
                background.create_task(_obey(channel, running, logs, stop), name="orders")
                await stack.enter_async_context(watch_lag(metrics.observe_lag))
                await stack.enter_async_context(answering(running, listening, emit))
                keep_start()
                running.state = "ready"
                channel.send(Ready())
                await stop.wait()
                running.state = "draining"
                running.part.drain()
                log.info("draining", extra={"seconds": config.drain_timeout})
            channel.send(Steps(tuple(gathering.take())))
            channel.send(_told(running))
        finally:
            await channel.aclose()


async def _report(channel: Channel, running: Mirror) -> None:
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        if not channel.backlog:
            channel.send(_told(running))


async def _tell_steps(channel: Channel, gathering: Gathering) -> None:
    """Tell what was gathered, now and then, while there is something and the supervisor takes it."""
    woken = asyncio.Event()
    gathering.wake = woken.set
    woken.set()  # for what was gathered before
    while True:
        await woken.wait()
        if not channel.backlog:
            woken.clear()
            channel.send(Steps(tuple(gathering.take())))
        await asyncio.sleep(STEPS_SECONDS)


async def _obey(channel: Channel, running: Mirror, logs: Logs, stop: asyncio.Event) -> None:
    while (message := await channel.receive()) is not None:
        order = decode_to_worker(message)
        if isinstance(order, Ask):
            channel.send(_told(running))
        elif isinstance(order, SetLevel):
            logs.set_level(order.level)
        else:
            stop.set()
    # The data folder and the sockets are for the next supervisor to have soon: what is on disk survives any end.
    log.warning("the supervisor is gone: this worker ends", extra={"seconds": ORPHAN_SECONDS})
    asyncio.get_running_loop().call_later(ORPHAN_SECONDS, os._exit, 1)
    stop.set()


def _told(running: Mirror) -> Report:
    return Report(
        running.metrics.snapshot(),
        fill_views(running.cache.running()),
        host_views(running.upstream_status()),
        _resident(),
        time.process_time(),
    )


def _resident() -> int:
    """Return the bytes of memory that are resident; the kernel tells at once (proc_pid_statm(5))."""
    with open("/proc/self/statm") as told:
        return int(told.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
