"""A Unix socket under a folder, however long its path: sockets' addresses end at 108 bytes, paths do not."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Self


class Listening:
    """A bound socket of mode 0600 and its name in a folder. Blocking: use it from a thread."""

    def __init__(self, folder: int, name: str, bound: socket.socket) -> None:
        self._folder = folder
        self._name = name
        self._inode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino
        self.socket = bound

    @classmethod
    def bind(cls, folder: Path, name: str) -> Self:
        """Bind `folder/name`, in place of a socket that an earlier process left there.

        The folder is made, for its owner alone, where it is missing. The name appears only once its mode is
        right. Raises OSError, FileExistsError when the name is taken by something that is no socket.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bound.setblocking(False)
            _refuse_other_files(descriptor, folder, name)
            early = f"{name}.{os.getpid()}"
            with suppress(FileNotFoundError):
                os.unlink(early, dir_fd=descriptor)
            bound.bind(f"/proc/self/fd/{descriptor}/{early}")
            os.chmod(early, 0o600, dir_fd=descriptor)
            os.rename(early, name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
            return cls(descriptor, name, bound)
        except BaseException:
            bound.close()
            os.close(descriptor)
            raise

    def close(self) -> None:
        """Close the socket and remove its name, unless another process has taken the name since."""
        self.socket.close()
        with suppress(FileNotFoundError):
            if os.stat(self._name, dir_fd=self._folder, follow_symlinks=False).st_ino == self._inode:
                os.unlink(self._name, dir_fd=self._folder)
        os.close(self._folder)


async def connect_async(folder: Path, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to `folder/name`. Raises OSError, FileNotFoundError where there is none."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return await asyncio.open_unix_connection(f"/proc/self/fd/{descriptor}/{name}")
    finally:
        os.close(descriptor)


def _refuse_other_files(descriptor: int, folder: Path, name: str) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
            message = "the control socket's place is taken by a file that is no socket; move it away"
            raise FileExistsError(errno.EEXIST, message, str(folder / name))
