"""A real Prometheus that scrapes what a test runs: Debian's `prometheus`, on loopback, its data in a test's folder."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.support.processes import Program, free_port

_LOOK = 0.05


class BadQuery(AssertionError):
    """Prometheus does not take an expression; the message has both."""


class Prometheus:
    """Scrapes `targets`, instance → HOST:PORT, every `interval`, with the files of `rules` loaded."""

    def __init__(
        self, folder: Path, targets: Mapping[str, str], *, interval: str = "500ms", rules: Sequence[Path] = ()
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._targets = dict(targets)
        self._config = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [
                {
                    "job_name": "entrepot",
                    "static_configs": [
                        {"targets": [target], "labels": {"instance": instance}}
                        for instance, target in self._targets.items()
                    ],
                }
            ],
        }
        self.url = f"http://127.0.0.1:{free_port()}"
        self._program: Program | None = None

    def __enter__(self) -> Self:
        file = self._folder / "prometheus.yml"
        file.write_text(json.dumps(self._config))  # JSON is YAML too
        self._program = Program(
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
                "--log.level=warn",
            ],
            self._folder / "prometheus.log",
            {"GOMAXPROCS": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.program.stop()

    @property
    def program(self) -> Program:
        assert self._program is not None
        return self._program

    def ready(self, timeout: float = 60) -> None:
        """Wait until every target has been scraped. Raises ProgramFailed after `timeout` seconds."""
        self._scraped(dict.fromkeys(self._targets, 1.0), timeout)

    def scrape(self, timeout: float = 60) -> None:
        """Wait until every target has been scraped twice more. Raises ProgramFailed after `timeout` seconds."""
        self._scraped({instance: seen + 2 for instance, seen in self._scrapes().items()}, timeout)

    def _scraped(self, wanted: Mapping[str, float], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self.program.running and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                seen = self._scrapes()
                if all(seen.get(instance, 0) >= number for instance, number in wanted.items()):
                    return
            time.sleep(_LOOK)
        raise self.program.failed(f"{', '.join(wanted)} were not scraped within {timeout} s")

    def _scrapes(self) -> dict[str, float]:
        found = self.query("sum_over_time(up[1h])")
        return {series["metric"]["instance"]: float(series["value"][1]) for series in found}

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return what an expression gives now. Raises BadQuery."""
        return self._result("query", expression, {})

    def query_range(self, expression: str, seconds: float, step: float) -> list[dict[str, Any]]:
        """Return what an expression gave in the last `seconds`, every `step`. Raises BadQuery."""
        now = time.time()
        return self._result("query_range", expression, {"start": now - seconds, "end": now, "step": step})

    def rules(self) -> list[dict[str, Any]]:
        """Return the loaded rules, with what became of their last evaluation."""
        with urllib.request.urlopen(f"{self.url}/api/v1/rules", timeout=10) as answer:
            return [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]

    def _result(self, what: str, expression: str, times: Mapping[str, float]) -> list[dict[str, Any]]:
        body = urllib.parse.urlencode({"query": expression, **times}).encode()
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{what}", body, timeout=10) as answer:
                data = json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 503:  # it is not ready yet
                    raise
                raise BadQuery(f"{expression}\n{error.read().decode(errors='replace')}") from error
        return [{"metric": {}, "value": data["result"]}] if data["resultType"] == "scalar" else list(data["result"])
