"""A data folder for a command that works in it for long: as its owner, or beside the mirror that runs there.

Beside a mirror a command is one more process of the node (see "Several processes" in docs/architecture.md). It must not
outlive the owner's use of the folder: it hears of the owner's end by a connection to the control socket that says
nothing and is closed by the end of the process, whichever way that comes.
"""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from entrepot.config import Config
from entrepot.unixsocket import connect_async
from proxy.cache.once import Background
from proxy.store.store import Store
from sync.bundle.errors import Interrupted

SOCKET = "control.sock"

T = TypeVar("T")


class WrongUser(OSError):
    """The folder belongs to another user, who could not write what we leave there."""


@asynccontextmanager
async def owner_watched(data: Path) -> AsyncIterator[asyncio.Event | None]:
    """Give what is set when the mirror that runs on `data` ends, None where none runs.

    Raises WrongUser for root in the folder of another user, PermissionError for others.
    """
    try:
        reader, writer = await connect_async(data / "run", SOCKET)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        require_owner(data)
        yield None
        return
    try:
        require_owner(data)
        ended = asyncio.Event()

        async def watch() -> None:
            try:
                await reader.read()
            except OSError:
                pass
            finally:
                ended.set()

        async with Background() as background:
            background.create_task(watch(), name="watch the mirror that owns the data folder")
            yield ended
    finally:
        writer.close()


@asynccontextmanager
async def opened_store(config: Config) -> AsyncIterator[tuple[Store, asyncio.Event | None]]:
    """Give the store of `config`, and what is set when the mirror that owns it ends (None: it is ours).

    Raises StoreBusy, WrongUser, PermissionError, CatalogError.
    """
    async with owner_watched(config.data) as ended:
        opening = Store.open if ended is None else Store.attach
        store = await opening(config.data, region=config.region)
        try:
            yield store, ended
        finally:
            await store.close()


async def until(ended: asyncio.Event | None, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` gives. Raises Interrupted where the mirror beside which it is done ends before.

    ended: set at that end (see `owner_watched`), None where no mirror runs.
    """
    if ended is None:
        return await work
    working = asyncio.create_task(work, name="work beside the mirror")
    watching = asyncio.create_task(ended.wait(), name="wait for the mirror's end")
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Interrupted(
                "the mirror that serves this data folder has ended: run the same command again, it goes on"
            )
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        # What fails because it was ended, or the mirror was, is nobody's to hear of any more.
        await asyncio.gather(working, watching, return_exceptions=True)


def require_owner(data: Path) -> None:
    """Raise WrongUser where root would leave files in a folder of a mirror that runs as another user."""
    try:
        owner = data.stat().st_uid
    except OSError:
        return
    if os.geteuid() == 0 and owner != 0:
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = str(owner)
        raise WrongUser(f"the data folder {data} belongs to {name}: run this as that user, with sudo -u {name}")
