"""Names of requests, by which a line of the log is found again."""

from __future__ import annotations

import secrets
from itertools import count


class RequestIds:
    """Gives ids of 16 hexadecimal digits, each once: a number after what this process has drawn for itself.

    They name requests and prove nothing; drawing all of each would cost a system call for every answer.
    """

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(4)
        self._numbers = count(1)

    def next(self) -> str:
        """Return one that was not given before."""
        return f"{self._prefix}{next(self._numbers) & 0xFFFFFFFF:08x}"
