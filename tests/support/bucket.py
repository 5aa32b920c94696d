"""A real S3 server for tests: SeaweedFS, all of it in one process, which is ended by its id.

It is ready after some 3 s, most of them its own leader election: share one, and give each test a prefix of its own.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Self

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from tests.support.processes import Program, free_port

BUCKET = "entrepot-test"
KEY_ID = "testing"
SECRET = "testing-secret"
PARTS = ("s3", "s3.port.grpc", "master", "master.port.grpc", "volume", "volume.port.grpc", "filer", "filer.port.grpc")


class BucketServer:
    """`weed server -s3` in `folder`; it has the bucket BUCKET. What it stores outlives `stop`, for a later `start`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = {part: free_port() for part in PARTS}
        self._program: Program | None = None
        identity = {
            "name": "test",
            "credentials": [{"accessKey": KEY_ID, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to use the bucket."""
        return {
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }

    def url(self, prefix: str) -> str:
        """Return the URL of a part of the bucket."""
        return f"s3://{BUCKET}/{prefix}"

    def start(self) -> None:
        """Start it where it was before, and wait until it stores."""
        data = self._folder / "data"
        data.mkdir(exist_ok=True)
        ports = [f"-{part if '.' in part else f'{part}.port'}={port}" for part, port in self._ports.items()]
        weed = Path(sys.executable).with_name("weed")
        argv = [str(weed), f"-logdir={self._folder}", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={data}"]
        argv += [
            "-s3",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={self._folder / 's3.json'}",
            "-master.telemetry=false",
            *ports,
        ]
        argv += ["-master.volumeSizeLimitMB=64", "-volume.max=0", "-master.electionTimeout=100ms"]
        self._program = Program(argv, self._folder / "weed.log")
        self._await_bucket(self._program)

    def stop(self) -> None:
        """End it as a crash would: an orderly end takes it 10 s."""
        if self._program is not None:
            self._program.kill()
            self._program = None

    def pause(self) -> None:
        """Let it stand still: it takes connections and never answers."""
        assert self._program is not None
        self._program.signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self._program.pid}/task")
        while any((one / "stat").read_text().rpartition(")")[2].split()[0] != "T" for one in threads.iterdir()):
            time.sleep(0.001)

    def resume(self) -> None:
        """Let a paused one go on."""
        assert self._program is not None
        self._program.signal(signal.SIGCONT)

    def _await_bucket(self, program: Program, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        said = "nothing"
        while program.running and time.monotonic() < deadline:
            said = self._make_bucket()
            if said == "ready":
                return
            time.sleep(0.05)
        raise program.failed(f"no bucket within {timeout} s: {said}")

    def _make_bucket(self) -> str:
        store = S3Store(
            BUCKET,
            endpoint=self.endpoint,
            access_key_id=KEY_ID,
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True, "timeout": "5s"},
            retry_config={"max_retries": 0},
        )
        try:
            obstore.put(store, "ready", b"ready")
        except BaseError as error:
            return str(error)
        return "ready"
