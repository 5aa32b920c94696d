"""A network namespace of its own, in which there is nothing but loopback: a site that no network reaches.

A thread lives in it. What is called there opens its sockets there, and so does every program that it starts, for as
long as the program lives; the namespace goes with the last of them, so that there is none to clean up.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, Self, TypeVar

from tests.support.processes import run

_CLONE_NEWNET = 0x40000000
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Apart:
    """Calls functions, one after the other, where only loopback is. Needs root, and `ip`."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="apart")

    def __enter__(self) -> Self:
        self.call(_part)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function there, and return what it does, or raise what it raises."""
        return self._thread.submit(function, *args, **kwargs).result()


def _part() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    run(["ip", "link", "set", "lo", "up"])
