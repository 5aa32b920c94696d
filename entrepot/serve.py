"""`entrepot serve`: the mirror with its listeners, from the first bind to the last byte of the drain.

One process does all of it, unless `workers` asks for more: then this one is their supervisor (`entrepot.workers`).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from entrepot import __version__
from entrepot.admin import administering
from entrepot.answering import Answering, addresses_of, answering, bound
from entrepot.config import Config
from entrepot.control import open_control
from entrepot.loops import keep_start, loop_factory, share_interpreter, told_to_end
from entrepot.mirror import Mirror, rebuildable
from entrepot.pulls import telling_pulls
from entrepot.reload import Load, changes_level_alone, reloaded
from entrepot.warm import warming
from entrepot.watching import watching
from entrepot.wording import words_of
from entrepot.workers.crew import working
from metrics.declarations import LOG_LINES_DROPPED
from metrics.emit import emitting
from metrics.logs import Logs
from metrics.looplag import watch_lag
from metrics.prometheus import Metrics
from metrics.pulls.gathering import Gathering
from proxy.cache.once import Background
from proxy.store.errors import StoreError
from proxy.upstream.credentials import CredentialError
from sync.bundle.errors import BundleError

TAKE_UP_SECONDS = 1.0
log = logging.getLogger(__name__)


def run(config: Config, load: Load) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code. What keeps it from starting is said on standard error.

    `load` gives the configuration anew, when SIGHUP asks for it.
    """
    share_interpreter()
    with Logs(level=config.log.level, style=config.log.format) as logs:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(_serve(config, load, logs) if config.serve_from is None else _serve_from(config, logs))
        except (StoreError, CredentialError, BundleError, OSError) as error:
            print(f"entrepot: {words_of(error)}", file=sys.stderr)
            return 1
        except Exception:
            log.exception("the mirror ends of what nobody foresaw")
            return 1
    return 0


async def _serve(config: Config, load: Load, logs: Logs) -> None:
    metrics = Metrics(version=__version__)
    metrics.read_from(LOG_LINES_DROPPED, lambda: logs.dropped)
    gathering = Gathering()
    emit = emitting(metrics, logs, gathering)
    hang_up = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    async with AsyncExitStack() as stack:
        stop = stack.enter_context(told_to_end(signal.SIGTERM, signal.SIGINT))
        rebuilding = await stack.enter_async_context(rebuildable(config, metrics=metrics, emit=emit))
        running = rebuilding.mirror
        pulls = await stack.enter_async_context(
            telling_pulls(gathering, running.store.catalog.children, metrics, of_workers=config.workers > 1)
        )
        running.pulls = pulls
        await stack.enter_async_context(watch_lag(metrics.observe_lag))
        await stack.enter_async_context(open_control(running))
        running.history = watched = await stack.enter_async_context(watching(running))
        pulls.changed = watched.nudge
        shown_at = addresses_of(await stack.enter_async_context(administering(running)), tls=False)
        sockets = stack.enter_context(bound(config.listen))
        running.listen_addresses = addresses_of(sockets, tls=config.tls is not None)
        answers: Answering | None = None
        if config.workers == 1:
            answers = await stack.enter_async_context(answering(running, sockets, emit))
        else:
            crew = await stack.enter_async_context(
                working(config, sockets, metrics, pulls, partial(_worker_died, running))
            )
            running.crew = crew
            # While they drain, nobody accepts: who connects then must be refused, not kept waiting.
            for one in sockets:
                stack.callback(one.close)
        keep_start()
        running.state = "ready"
        stack.callback(_drains, running)
        background = await stack.enter_async_context(Background())
        background.create_task(_forget_peers(running), name="forget regions that are no peers any more")
        if config.peers:
            from entrepot.syncing import syncing

            await stack.enter_async_context(syncing(running, emit))
        warm = await stack.enter_async_context(AsyncExitStack())
        await warm.enter_async_context(warming(running))
        told = {"listen": running.listen_addresses, "dashboard": f"{shown_at[0]}/dashboard/", "data": str(config.data)}
        log.info("serving", extra=told)

        async def reload() -> None:
            new = await reloaded(running.config, load)
            if new is None:
                return
            if changes_level_alone(running.config, new):
                running.config = new
                logs.set_level(new.log.level)
                if answers is None:
                    crew.set_level(new)
                log.info("the level of the log changed, and nothing else", extra={"now": new.log.level})
                return
            try:
                await rebuilding.turn_to(
                    new, partial(crew.replace, new) if answers is None else partial(answers.turn_to, running, emit)
                )
            except (CredentialError, OSError) as error:
                log.error("the new configuration cannot be used, the old one stays", extra={"why": words_of(error)})
                return
            await warm.aclose()
            await warm.enter_async_context(warming(running))
            logs.set_level(new.log.level)
            log.info("the configuration was read again")

        while not await _hung_up(stop, hang_up):
            await _unless(stop, _survived(reload()))


async def _serve_from(config: Config, logs: Logs) -> None:
    from entrepot.serving_bundles import serve_bundles

    metrics = Metrics(version=__version__)
    metrics.read_from(LOG_LINES_DROPPED, lambda: logs.dropped)
    await serve_bundles(config, metrics, emitting(metrics, logs))


async def _forget_peers(running: Mirror) -> None:
    """Let the catalog not keep for ever what a region said that is no peer any more."""
    from sync.taking import forget_others

    await forget_others(running.store.catalog, {peer.name for peer in running.config.peers})


def _worker_died(running: Mirror) -> None:
    """Make good for what a dead worker could not: tell what it changed, go on with what it filled.

    Those who follow its fills go on with them at once; what nobody follows is for us.
    """
    running.store.distrust()
    asyncio.get_running_loop().call_later(TAKE_UP_SECONDS, lambda: running.cache.take_up_interrupted())


async def _survived(reload: Coroutine[Any, Any, None]) -> None:
    """Log what nobody foresaw of a reload: whatever it is, those who are being served are not to suffer."""
    try:
        await reload
    except Exception:
        log.exception("the configuration could not be read again; a restart takes it up")


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do `work` to its end, or until it is time to stop."""
    tasks = [asyncio.create_task(work), asyncio.create_task(stop.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _hung_up(stop: asyncio.Event, hang_up: asyncio.Event) -> bool:
    """Wait for either signal; True when it is time to stop."""
    waits = [asyncio.create_task(event.wait()) for event in (stop, hang_up)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    hang_up.clear()
    return stop.is_set()


def _drains(running: Mirror) -> None:
    running.state = "draining"
    running.part.drain()
    log.info("draining", extra={"seconds": running.config.drain_timeout})
