"""A hundred clients over one fill: one download, every byte, bounded memory, and nobody waits for a download anew."""

from __future__ import annotations

import asyncio
import json
import sys
import zlib
from pathlib import Path

from tests.scenarios.running import running
from tests.support.contents import blob
from tests.support.fake_upstream import FakeUpstream
from tests.support.herd import Download, download
from tests.support.mirror import Mirror

MIB = 1 << 20
SIZE = 32 * MIB
RATE = 4 * MIB
CLIENTS = 100


def peak_memory(pid: int) -> int:
    """Return the most resident memory that a process has had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


async def herd(url: str, count: int, stagger: float) -> list[Download]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.herd", url, str(count), str(stagger)),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    out, _ = await asyncio.wait_for(process.communicate(), 90)
    return list(json.loads(out))


async def test_a_hundred_staggered_clients_cost_one_download_and_little_memory(tmp_path: Path) -> None:
    data = blob(SIZE)
    async with FakeUpstream() as upstream:
        digest = upstream.add_blob("library/big", data)
        upstream.add_blob("library/beside", data)
        warm = upstream.add_blob("library/big", blob(1000))
        upstream.rate = RATE
        async with running(Mirror(tmp_path, {"docker.io": upstream.url})) as mirror:
            await asyncio.to_thread(download, f"{mirror.url}/v2/library/big/blobs/{warm}")
            idle = peak_memory(mirror.program.pid)
            # Beside the herd one client goes straight to the upstream: both feel the same machine.
            one_alone = asyncio.create_task(
                asyncio.to_thread(download, f"{upstream.url}/v2/library/beside/blobs/{digest}")
            )
            got = await herd(f"{mirror.url}/v2/library/big/blobs/{digest}", CLIENTS, SIZE / RATE * 1.2)
            alone = await one_alone
            direct = alone["ended"] - alone["began"]
            grown = peak_memory(mirror.program.pid) - idle
        assert upstream.count(method="GET", contains=f"big/blobs/{digest}") == 1
        assert len(got) == CLIENTS
        assert {(one["status"], one["length"], one["crc"]) for one in got} == {(200, SIZE, zlib.crc32(data))}
        assert grown < SIZE / 2  # far from one blob, and further from a hundred
        # A download of its own would take a late client as long as the one beside took; joined, it takes what is left.
        half = min(one["began"] for one in got) + direct / 2
        for one in got:
            assert one["ended"] < max(one["began"], half) + 0.9 * direct, one
