"""Memory stays flat over a million requests, whatever could make a table grow: names, references, clients, headers.

Flat is 8 bytes for a request: the smallest object kept for each takes 50. Tables of a known size, as that of the 10,000
last refusals, are still filling: 3 to 5 bytes were seen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.clients import read_wrk
from bench.content import MANIFEST_TYPE, image
from bench.servers import bed
from tests.support.mirror import Mirror

REQUESTS = 1_000_000
SLICE_SECONDS = 4
MOST_BYTES = 8.0
SCRIPT = """
local count, repo, tagged, layer = 0, "/v2/library/bench", "latest", "{layer}"
local targets = {{
    function() return "/v2/library/new" .. count .. "-{slice}/manifests/v1" end,
    function() return repo .. "/manifests/unknown" .. count .. "-{slice}" end,
    function() return repo .. "/blobs/sha256:" .. string.format("%064x", count * 1000 + {slice}) end,
    function() return repo .. "/tags/list?n=" .. count end,
    function() return repo .. "/referrers/{manifest}?artifactType=a" .. count end,
    function() return "/v2/nothing/here/" .. count end,
    function() return repo .. "/manifests/{manifest}?ns=host" .. count .. "-{slice}.test" end,
    function() return repo .. "/blobs/" .. layer end,
    function() return "/v2/" end,
}}
request = function()
    count = count + 1
    local path = repo .. "/manifests/" .. (count % 2 == 0 and tagged or "{manifest}")
    if count % 100 == 0 then
        path = targets[(count / 100) % #targets + 1]()
    end
    local who = count .. "-{slice}"
    local accept = "{accept}, application/x-" .. who
    return wrk.format("GET", path, {{["User-Agent"] = "client/" .. who, ["Accept"] = accept}})
end
"""


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slope(points: list[tuple[int, int]]) -> float:
    """Return how many bytes come with each request, by least squares."""
    requests = sum(x for x, _ in points) / len(points)
    memory = sum(y for _, y in points) / len(points)
    return sum((x - requests) * (y - memory) for x, y in points) / sum((x - requests) ** 2 for x, _ in points)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.needs("wrk")
def test_memory_is_flat_over_a_million_requests(tmp_path: Path) -> None:
    picture, script = image(), tmp_path / "mix.lua"
    wrk = shutil.which("wrk")
    assert wrk is not None
    with bed() as place:
        upstream = f"http://127.0.0.1:{place.upstream.port}"
        config = '[log]\nlevel = "warning"\n'
        with Mirror(tmp_path / "mirror", {"docker.io": upstream}, config=config) as mirror:
            points: list[tuple[int, int]] = []
            done = 0
            while done < REQUESTS:
                assert len(points) < 200, f"{done} requests in {len(points)} slices of {SLICE_SECONDS} s"
                layer = picture.layers[0].digest
                script.write_text(
                    SCRIPT.format(layer=layer, manifest=picture.digest, slice=len(points), accept=MANIFEST_TYPE)
                )
                command = [wrk, "-t1", "-c16", f"-d{SLICE_SECONDS}s", "--latency", "-s", str(script), mirror.url]
                told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
                done += read_wrk(told.stdout).requests
                points.append((done, resident(mirror.program.pid)))
            second_half = [point for point in points if point[0] >= REQUESTS / 2]
            assert len(second_half) > 3
            assert slope(second_half) <= MOST_BYTES, points
