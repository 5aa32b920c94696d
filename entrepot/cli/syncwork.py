"""How `entrepot sync` gets its answers: from the running mirror, or by doing the work where none runs."""

from __future__ import annotations

import asyncio
import logging
import signal

import msgspec

from entrepot.cli.exits import DONE, FAILED, USAGE, CommandFailed
from entrepot.cli.output import Output, format_size
from entrepot.cli.progress import Meter, meter
from entrepot.cli.running import RunningMirror, find
from entrepot.config import Config
from entrepot.config.values import format_duration
from entrepot.syncasking import Answer, Line, Outcome, Progressed, Question, SyncFailed, outcome, refused
from proxy.oci.errors import RegistryError
from proxy.upstream.credentials import CredentialError
from sync.reports import Progress

_decode = msgspec.json.Decoder(Line).decode


def ask(config: Config, output: Output, question: Question) -> Answer:
    """Return the answer, having shown how far the work is. Raises CommandFailed."""
    running = find(config.data)
    with meter(output, "sync") as shown:
        if running is not None:
            answer = _of_mirror(running, question, shown)
        else:
            answer = refused(config, question.peers) or asyncio.run(_alone(config, question, shown))
    if isinstance(answer, SyncFailed):
        newer = running is not None and answer.usage and refused(config, question.peers) is None
        message = f"the mirror that runs has not read this configuration: restart it ({answer.message})"
        raise CommandFailed(message if newer else answer.message, USAGE if answer.usage else FAILED)
    return answer


def run_alone(config: Config, output: Output) -> int:
    """Sync until SIGTERM or SIGINT, with a log as a mirror has it. Raises CommandFailed."""
    from metrics.logs import Logs

    failed = refused(config, ())
    if failed is not None:
        raise CommandFailed(failed.message, USAGE)
    output.note(f"syncing with {', '.join(peer.name for peer in config.peers)} until this is stopped")
    try:
        with Logs(level=config.log.level, style=config.log.format):
            asyncio.run(_run(config))
    except CredentialError as error:
        raise CommandFailed(str(error)) from None
    return DONE


def words_of_progress(progress: Progress) -> str:
    """Return how far a pass is: images and tags, bytes, rate, time left."""
    words = [
        f"{progress.images} of {progress.total_images} images and tags",
        f"{format_size(progress.bytes)} of {format_size(progress.total_bytes)}",
        f"{format_size(round(progress.rate))}/s",
    ]
    if progress.seconds_left is not None:
        words.append(f"{format_duration(round(progress.seconds_left))} left")
    return ", ".join(words)


def _show(shown: Meter, progress: Progress) -> None:
    if progress.total_images:
        shown.at(progress.bytes, progress.total_bytes, words_of_progress(progress))


def _of_mirror(mirror: RunningMirror, question: Question, shown: Meter) -> Outcome:
    for line in mirror.lines("/api/sync", msgspec.to_builtins(question)):
        event: Line = _decode(line)
        if not isinstance(event, Progressed):
            return event
        _show(shown, event.progress)
    raise CommandFailed("the running mirror ended before it had answered; see its log, then ask again")


async def _alone(config: Config, question: Question, shown: Meter) -> Outcome:
    from entrepot.syncing import syncing_alone

    # What a mirror's log would say besides, the answer says here.
    for name in ("proxy", "sync"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    try:
        async with syncing_alone(config) as syncing:
            return await outcome(question, syncing, lambda progressed: _show(shown, progressed.progress))
    except RegistryError as error:
        return SyncFailed(error.message)
    except CredentialError as error:
        return SyncFailed(str(error))


async def _run(config: Config) -> None:
    from entrepot.syncing import syncing_alone

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with syncing_alone(config) as syncing:
        running = asyncio.create_task(syncing.run(), name="sync")
        stopping = asyncio.create_task(stop.wait(), name="wait for a signal")
        try:
            await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
        finally:
            running.cancel()
            stopping.cancel()
            await asyncio.wait([running, stopping])
