"""The mirror under test as its users run it: `entrepot serve`, a process of its own."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.support.processes import Program, free_port, no_environment

_ROOT = Path(__file__).parents[2]


class Mirror:
    """`entrepot serve` with its data under `folder`, on ports that it keeps when it is started again.

    `upstreams` become `--upstream NAME=URL`, the first is the default; `config` is the text of a
    configuration file; `flags` are added as they are, `env` to its environment. Used as a context
    manager it is started at entry and ended at exit.
    """

    def __init__(
        self,
        folder: Path,
        upstreams: Mapping[str, str],
        *,
        config: str = "",
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.data = folder / "data"
        self.upstreams = dict(upstreams)
        self.config = config
        self.flags = tuple(flags)
        self.env = {
            "PYTHONPATH": str(_ROOT),
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder / "xdg"),
            **(env or {}),
        }
        self.url = f"http://127.0.0.1:{free_port()}"
        self.admin = f"http://127.0.0.1:{free_port()}"
        self._program: Program | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._program is not None and self._program.running:
            self.stop()

    @property
    def program(self) -> Program:
        """The running process."""
        assert self._program is not None, "the mirror was never started"
        return self._program

    def start(self, timeout: float = 60) -> None:
        """Start it and wait until /readyz says so. Raises ProgramFailed when it ends or `timeout` seconds have gone."""
        argv = [
            *(sys.executable, "-m", "entrepot", "serve", "--data", str(self.data)),
            *("--listen", self.url.removeprefix("http://"), "--admin", self.admin.removeprefix("http://")),
        ]
        for name, url in self.upstreams.items():
            argv += ["--upstream", f"{name}={url}"]
        if self.config:
            file = self.folder / "entrepot.toml"
            file.write_text(self.config)
            argv += ["--config", str(file)]
        with no_environment("ENTREPOT_"):
            self._program = Program([*argv, *self.flags], self.folder / "mirror.log", self.env)
        deadline = time.monotonic() + timeout
        while self.program.running and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.admin}/readyz", timeout=2).close()
                return
            time.sleep(0.02)
        error = self.program.failed(f"/readyz is not 200 within {timeout} s")
        self.program.stop()
        raise error

    def stop(self) -> None:
        """End it by SIGTERM. Raises ProgramFailed unless it ends in order, with 0."""
        code = self.program.stop(timeout=30)
        if code != 0:
            raise self.program.failed(f"SIGTERM ended it with {code}")

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.program.kill()

    def status(self) -> dict[str, Any]:
        """Return what /api/status says."""
        with urllib.request.urlopen(f"{self.admin}/api/status", timeout=10) as answer:
            return dict(json.load(answer))

    def request(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """Send one request to the mirror and return status and body, errors too."""
        request = urllib.request.Request(self.url + path, method=method, headers=dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


def upstream_table(name: str, url: str, **settings: str) -> str:
    """Return the TOML of one `[[upstream]]`."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"name": name, "url": url, **settings}.items()]
    return "\n".join(["[[upstream]]", *lines, ""])
