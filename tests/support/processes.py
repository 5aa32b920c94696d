"""Programs under test: start, wait until ready, read the log, end. Nothing here knows what program it is.

Every program is ended by its own process id. What a program prints goes to a log file, and the tail
of it is part of every error.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

TAIL = 4000
"""How many characters of a log an error shows."""


class ProgramFailed(AssertionError):
    """A program ended, failed or did not become ready; the message holds its log's tail."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(
    argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, timeout: float = 60, ok: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `env` adds to the environment, `timeout` is in seconds.

    Raises:
        ProgramFailed: it took longer, or `ok` and it ended with another code than 0.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ProgramFailed(f"{' '.join(words)} did not end within {timeout} s: {error.stderr!r}") from error
    if ok and done.returncode != 0:
        raise ProgramFailed(
            f"{' '.join(words)} ended with {done.returncode}\n{done.stdout[-TAIL:]}{done.stderr[-TAIL:]}"
        )
    return done


class Program:
    """A running program, its process id and its log."""

    def __init__(self, argv: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.argv = [str(word) for word in argv]
        self.log = log
        self._seen: list[str] = []
        self._ended = False
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            self.argv,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"log of {self.argv[0]}", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self.log.open("ab") as log, self._process.stdout as output:
            for line in output:
                log.write(line)
                log.flush()
                with self._news:
                    self._seen.append(line.decode(errors="replace"))
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def tail(self) -> str:
        """Return the end of what it printed."""
        with self._news:
            return "".join(self._seen)[-TAIL:]

    def lines(self) -> int:
        """Return how many lines it has printed, for `wait_line(after=…)`."""
        with self._news:
            return len(self._seen)

    def failed(self, what: str) -> ProgramFailed:
        """Return the error that says `what` of this program, with its log."""
        state = "it still runs" if self.running else f"it ended with {self._process.returncode}"
        return ProgramFailed(f"{' '.join(self.argv)}: {what} ({state})\n{self.tail()}")

    def wait_line(self, pattern: str, timeout: float = 60, after: int = 0) -> str:
        """Wait until it prints a line that `pattern` is found in, from line `after` on, and return that line.

        Raises ProgramFailed when it ends first or `timeout` seconds have gone.
        """
        wanted = re.compile(pattern)
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                for line in self._seen[after:]:
                    if wanted.search(line):
                        return line
                after = max(after, len(self._seen))
                if self._ended or not self._news.wait(deadline - time.monotonic()):
                    break
        raise self.failed(f"no line like {pattern!r} within {timeout} s")

    def wait_port(self, port: int, timeout: float = 60) -> None:
        """Wait until 127.0.0.1:`port` accepts a connection. Raises ProgramFailed as `wait_line` does."""
        deadline = time.monotonic() + timeout
        while self.running and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.02)
        raise self.failed(f"port {port} does not accept within {timeout} s")

    def stop(self, timeout: float = 10) -> int:
        """End it by SIGTERM, after `timeout` seconds by SIGKILL, and return its exit code."""
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._reap()

    def ended(self, timeout: float = 30) -> int:
        """Wait for its end and return the exit code. Raises ProgramFailed where it goes on for `timeout` seconds."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self.failed(f"it has not ended after {timeout} s") from None
        return self._reap()

    def kill(self) -> None:
        """End it by SIGKILL, as a crash would."""
        self._process.kill()
        self._reap()

    def signal(self, number: int) -> None:
        """Send it the signal `number`."""
        self._process.send_signal(number)

    def _reap(self) -> int:
        code = self._process.wait()
        self._reader.join(5)
        return code


@contextlib.contextmanager
def no_environment(prefix: str) -> Iterator[None]:
    """Hide the variables that begin with `prefix` from programs started inside."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefix)}
    try:
        yield
    finally:
        os.environ.update(hidden)
