"""The mirror that is running on a data folder, as commands reach it: HTTP over `DATA/run/control.sock`.

Blocking, from the standard library alone, so that commands start at once.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from entrepot.cli.exits import CommandFailed

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 300.0
_SOCKET = "control.sock"


class RunningMirror:
    """A mirror that answered at its control socket. Every call is a connection of its own."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def get(self, path: str) -> bytes:
        """Return the body of the answer to `GET path`. Raises CommandFailed."""
        with _Exchange(self._data, "GET", path, None) as answer:
            return answer.read()

    def lines(self, path: str, body: object) -> Iterator[bytes]:
        """Send `body` as JSON to `POST path`; return the lines of the answer as they come. Raises CommandFailed."""
        with _Exchange(self._data, "POST", path, json.dumps(body).encode()) as answer:
            while line := answer.readline():
                if line.strip():
                    yield line


def find(data: Path) -> RunningMirror | None:
    """Return the mirror that serves `data`, None where none does.

    Raises:
        CommandFailed: one is there but this user may not talk to it.
    """
    try:
        _connect(data).close()
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        return None
    except PermissionError:
        message = f"no permission for the mirror's control socket in {data / 'run'}; run this as the mirror's user"
        raise CommandFailed(message) from None
    except OSError as error:
        raise CommandFailed(f"the control socket in {data / 'run'} does not answer: {error}") from None
    return RunningMirror(data)


class _Exchange:
    """One request and its answer, closed on leaving; failures become CommandFailed."""

    def __init__(self, data: Path, method: str, path: str, body: bytes | None) -> None:
        self._data = data
        self._request = (method, path, body)
        self._connection = http.client.HTTPConnection("localhost", timeout=SILENCE_SECONDS)

    def __enter__(self) -> http.client.HTTPResponse:
        method, path, body = self._request
        try:
            self._connection.sock = _connect(self._data)
            self._connection.sock.settimeout(SILENCE_SECONDS)
            self._connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = self._connection.getresponse()
            if answer.status != 200:
                raise CommandFailed(f"the mirror answered {answer.status}: {_reason(answer.read())}")
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise _lost(error) from None
        except BaseException:
            self._connection.close()
            raise
        return answer

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._connection.close()
        if isinstance(error, OSError | http.client.HTTPException):
            raise _lost(error) from None


def _lost(error: BaseException) -> CommandFailed:
    return CommandFailed(f"the connection to the running mirror broke: {error or type(error).__name__}; see its log")


def _reason(body: bytes) -> str:
    """Return what an error body says, whichever of the JSON forms it has."""
    try:
        document = json.loads(body)
        error = document["errors"][0] if "errors" in document else document.get("error", document)
        return str(error["message"] if isinstance(error, dict) and "message" in error else error)
    except (ValueError, KeyError, IndexError, AttributeError, TypeError):
        return body[:200].decode(errors="replace")


def _connect(data: Path) -> socket.socket:
    """Connect by way of the folder's descriptor: a socket's address ends at 108 bytes, a path does not."""
    folder = os.open(data / "run", os.O_PATH | os.O_DIRECTORY)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.settimeout(CONNECT_SECONDS)
        client.connect(f"/proc/self/fd/{folder}/{_SOCKET}")
    except BaseException:
        client.close()
        raise
    finally:
        os.close(folder)
    return client
