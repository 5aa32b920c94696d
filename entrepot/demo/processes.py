"""The demo's processes: started, waited for, ended. What they print goes into a log file, and its end into errors."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Never

import msgspec

_READY_SECONDS = 60.0
_END_SECONDS = 8.0
_PIECE = 64 << 10
_SHOWN_LINES = 12
_SHOWN = 4000


class ChildDied(Exception):
    """A process of the demo ended by itself; says which, how, and what it said last."""


class _Line(msgspec.Struct):
    """A line of a log, as far as it tells that a mirror serves, and where."""

    event: str = ""
    listen: list[str] = []


class Child:
    """A process that runs. State: the end of what it printed, and where it serves once it has told that."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self._name = name
        self._process = process
        self._log = log
        self._tail = b""
        self._serves: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(), name=f"log of {name}")

    @property
    def pid(self) -> int:
        return self._process.pid

    async def serving(self) -> str:
        """Return the URL at which it serves, as soon as it does. Raises ChildDied."""
        waits: list[asyncio.Future[Any]] = [self._serves, self._reading]
        await asyncio.wait(waits, timeout=_READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not self._serves.done():
            if self._reading.done():
                await self.died()
            raise ChildDied(f"{self._name} does not serve after {_READY_SECONDS:.0f} s{self._last_words()}")
        return self._serves.result()

    async def died(self) -> Never:
        """Wait until it has ended by itself. Raises ChildDied then."""
        await asyncio.wait([self._reading])
        code = await self._process.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
        raise ChildDied(f"{self._name} {how}{self._last_words()}")

    async def end(self) -> None:
        """End it, by force where it takes long."""
        if self._process.returncode is None:
            self._process.terminate()
        await asyncio.wait([self._reading], timeout=_END_SECONDS)
        if self._process.returncode is None:
            try:
                async with asyncio.timeout(_END_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
        await self._process.wait()
        await asyncio.wait([self._reading])

    async def _read(self) -> None:
        printed = self._process.stderr
        assert printed is not None
        with self._log.open("ab") as log:
            while piece := await printed.read(_PIECE):
                log.write(piece)
                log.flush()
                self._tail = (self._tail + piece)[-_PIECE:]
                if not self._serves.done():
                    self._look()

    def _look(self) -> None:
        for text in self._tail.splitlines():
            try:
                line = msgspec.json.decode(text, type=_Line)
            except msgspec.MsgspecError:
                continue
            if line.event == "serving" and line.listen:
                self._serves.set_result(line.listen[0])
                return

    def _last_words(self) -> str:
        text = self._tail[-_SHOWN:].decode(errors="replace")
        lines = text.splitlines()[-_SHOWN_LINES:]
        return "; the last it said:\n" + "\n".join(lines) if lines else " and said nothing"


@asynccontextmanager
async def child(
    name: str, words: Sequence[str | Path], log: Path, *, heir_of: Path | None = None
) -> AsyncIterator[Child]:
    """Run an `entrepot` command under a name for people; it sees no ENTREPOT_ variables, and is ended on leaving.

    heir_of: a folder that it removes when this process is killed.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ENTREPOT_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "entrepot.demo.child",
        str(os.getpid()),
        str(heir_of or ""),
        *map(str, words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C on the terminal is for the demo, which ends them in order
    )
    running = Child(name, process, log)
    try:
        yield running
    finally:
        await running.end()
