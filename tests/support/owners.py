"""Which process answers which connection, and which one fills, as the kernel knows it (/proc)."""

from __future__ import annotations

import os
import time
from pathlib import Path

from proxy.oci.digest import Digest

_ESTABLISHED = "01"


def answering(port: int, client_port: int, pids: list[int]) -> int:
    """Return which of `pids` holds the server's end of the connection from `client_port` on 127.0.0.1 to `port`."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(address.partition(":")[2], 16) for address in fields[1:3])
        if (local, remote, fields[3]) == (port, client_port, _ESTABLISHED):
            wanted = f"socket:[{fields[9]}]"
            for pid in pids:
                if wanted in _open_files(pid):
                    return pid
    raise AssertionError(f"none of {pids} answers the connection from port {client_port}")


def leading(data: Path, digest: Digest, pids: list[int]) -> int:
    """Return which of `pids` fills `digest`: it alone has the claim open to write. Waits for it."""
    name = str(data / "ingest" / f"{digest.algorithm}-{digest.hex}.lock")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for pid in pids:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    flags = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split("flags:")[1].split()[0]
                    if os.readlink(link) == name and int(flags, 8) & os.O_ACCMODE == os.O_RDWR:
                        return pid
                except (FileNotFoundError, IndexError):
                    continue
        time.sleep(0.02)
    raise AssertionError(f"none of {pids} fills {digest}")


def _open_files(pid: int) -> set[str]:
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(os.readlink(link))
        except FileNotFoundError:
            continue
    return found
