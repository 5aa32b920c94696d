"""How commands ask about the catalog: the running mirror at its control socket, or the store itself where none runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

import msgspec

from entrepot.cli.exits import FAILED, USAGE, CommandFailed
from entrepot.cli.running import RunningMirror, find
from entrepot.config import Config

if TYPE_CHECKING:
    from entrepot.asking import Line, Question

T = TypeVar("T")


def ask(config: Config, question: Question, outcome: type[T], follow: Callable[[Line], None] | None = None) -> T:
    """Return the last line of the answer, an `outcome`, having given the lines before it to `follow`.

    Raises CommandFailed when the question cannot be answered, or there is no store.
    """
    running = find(config.data)
    if running is None and not (config.data / "blobs").is_dir():
        raise CommandFailed(f"there is no store in {config.data}; name the mirror's folder with --data")
    last: list[Line] = []

    def take(line: Line) -> None:
        if follow is not None and not isinstance(line, outcome):
            follow(line)
        last[:] = [line]

    if running is not None:
        _of_mirror(running, question, outcome, take)
    else:
        asyncio.run(_of_store(config, question, take))
    if not last or not isinstance(last[0], outcome):
        raise CommandFailed("the running mirror ended before it had answered; see its log, then ask again")
    return last[0]


def _of_mirror(mirror: RunningMirror, question: Question, outcome: type[T], take: Callable[[Line], None]) -> None:
    from entrepot.asking import Copied, Failed
    from entrepot.images import ImageLine

    decode = msgspec.json.Decoder(outcome | ImageLine | Copied | Failed).decode
    for line in mirror.lines("/api/catalog", msgspec.to_builtins(question)):
        take(_checked(decode(line)))


async def _of_store(config: Config, question: Question, take: Callable[[Line], None]) -> None:
    from entrepot.asking import Surroundings, answers
    from proxy.store.store import Store

    store = await Store.open(config.data, region=config.region)
    try:
        async with aclosing(answers(question, Surroundings(store, config))) as pages:
            async for page in pages:
                for line in page:
                    take(_checked(line))
    finally:
        await store.close()


def _checked(line: Line) -> Line:
    from entrepot.asking import Failed

    if isinstance(line, Failed):
        raise CommandFailed(line.message, USAGE if line.usage else FAILED)
    return line
