"""The commands as processes on one data folder, with and without a mirror that serves it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from proxy.oci.digest import Digest
from tests.support.contents import blob, make_image, make_index
from tests.support.fake_upstream import FakeUpstream

AMD = make_image([blob(3000), blob(70, seed=1)])
ARM = make_image([blob(5000, seed=2)], platform="linux/arm64")
INDEX = make_index({"linux/amd64": AMD, "linux/arm64": ARM})


async def start(*arguments: str) -> asyncio.subprocess.Process:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ENTREPOT_")}
    command = [sys.executable, "-m", "entrepot", *arguments]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=environment)


async def entrepot(*arguments: str) -> tuple[int, str, str]:
    process = await start(*arguments)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_pull_and_verify_work_without_a_mirror(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    async with FakeUpstream() as upstream:
        INDEX.publish(upstream, "library/alpine", "3")
        origin = ("--upstream", f"docker.io={upstream.url}")
        code, out, err = await entrepot("pull", "alpine:3", "--platform", "linux/arm64", *data, *origin)
        assert (code, INDEX.digest in out) == (0, True), err
        code, out, err = await entrepot("pull", "alpine:4", *data, *origin)
        assert code == 1
        assert "alpine" in err
    code, out, _ = await entrepot("verify", *data, "--format", "json")
    assert code == 0
    assert json.loads(out)["checked"] == 4
    layer = Digest.of(ARM.blobs[1])
    (file,) = (tmp_path / "data/blobs").rglob(layer.hex)
    file.chmod(0o600)
    file.write_bytes(blob(5000, seed=3))
    code, out, _ = await entrepot("verify", *data)
    assert code == 3
    assert f"corrupt, set aside: {layer}" in out


async def test_pull_status_and_verify_go_to_the_mirror_that_runs(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    async with FakeUpstream() as upstream:
        INDEX.publish(upstream, "library/alpine", "3")
        ports = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
        mirror = await start("serve", *data, *ports, "--upstream", f"docker.io={upstream.url}")
        try:
            assert mirror.stderr is not None
            async with asyncio.timeout(60):
                assert b"serving" in await mirror.stderr.readline()
            code, out, err = await entrepot("pull", "alpine:3", "--platform", "all", *data)
            assert (code, "3 manifests" in out) == (0, True), err
            code, out, _ = await entrepot("status", *data, "--format", "json")
            assert code == 0
            assert json.loads(out)["pid"] == mirror.pid
            assert json.loads(out)["store"]["manifests"] == 3
            code, out, _ = await entrepot("status", *data)
            assert f"pid {mirror.pid}" in out
            code, out, _ = await entrepot("verify", *data)
            assert (code, out.startswith("8 blobs checked")) == (0, True), out
        finally:
            mirror.terminate()
            async with asyncio.timeout(60):
                assert await mirror.wait() == 0
