"""Debian's docker-registry as the upstream: open, with Basic, or with bearer tokens and blobs on a second host.

All of them may serve one storage directory, so that images are pushed once. Clients reach each one
through a Gate, which counts.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from tests.support.gate import Gate
from tests.support.hosting import Hosting
from tests.support.processes import Program, free_port, no_environment, run
from tests.support.tokenserver import ISSUER, SERVICE, TokenServer

USER = "puller"
PASSWORD = "correct horse: battery"


class BlobHost:
    """The second host that blobs are redirected to. It refuses a request with an Authorization header, as S3 does."""

    def __init__(self, hosting: Hosting, storage: Path) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._statuses: list[int] = []
        app = web.Application()
        app.router.add_get("/{path:.*}", self._give)
        self.url = f"http://127.0.0.1:{hosting.serve(app)}/"

    @property
    def statuses(self) -> list[int]:
        """The status of every answer so far."""
        with self._lock:
            return list(self._statuses)

    async def _give(self, request: web.Request) -> web.StreamResponse:
        path = (self._storage / request.match_info["path"]).resolve()
        answer: web.StreamResponse
        if "Authorization" in request.headers:
            answer = web.Response(status=400, text="InvalidArgument: only one auth mechanism allowed")
        elif path.is_relative_to(self._storage.resolve()) and path.is_file():
            answer = web.FileResponse(path)
        else:
            answer = web.Response(status=404)
        with self._lock:
            self._statuses.append(answer.status)
        return answer


@dataclass(frozen=True, slots=True)
class Registry:
    """A running docker-registry: `direct` is its own URL, `gate` what a mirror should be pointed at."""

    program: Program
    direct: str
    gate: Gate
    username: str = ""
    password: str = ""
    tokens: TokenServer | None = None
    blob_host: BlobHost | None = None

    def close(self) -> None:
        """Stop it, and its gate."""
        self.gate.close()
        self.program.stop()


def start_open(hosting: Hosting, folder: Path, storage: Path) -> Registry:
    """Start a registry that lets everybody push and pull."""
    return _start(hosting, folder, storage, "")


def start_basic(hosting: Hosting, folder: Path, storage: Path) -> Registry:
    """Start a registry that wants USER and PASSWORD by HTTP Basic (htpasswd, bcrypt)."""
    folder.mkdir(parents=True, exist_ok=True)
    passwords = folder / "htpasswd"
    passwords.write_text(run(["htpasswd", "-nbB", USER, PASSWORD]).stdout)
    extra = f"auth:\n  htpasswd:\n    realm: basic-test\n    path: {passwords}\n"
    return _start(hosting, folder, storage, extra, username=USER, password=PASSWORD)


def start_bearer(hosting: Hosting, folder: Path, storage: Path, private: tuple[str, ...] = ("private/",)) -> Registry:
    """Start a registry with bearer tokens that redirects blobs to a second host.

    Everybody may pull, but repositories that begin with a prefix in `private` only USER with PASSWORD.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokens = TokenServer({USER: PASSWORD}, private)
    blob_host = BlobHost(hosting, storage)
    extra = (
        "auth:\n  token:\n"
        f"    realm: http://127.0.0.1:{hosting.serve(tokens.app())}/token\n"
        f"    service: {SERVICE}\n    issuer: {ISSUER}\n"
        f"    rootcertbundle: {tokens.write_bundle(folder / 'token.pem')}\n"
        "middleware:\n  storage:\n    - name: redirect\n      options:\n"
        f"        baseurl: {blob_host.url}\n"
    )
    return _start(hosting, folder, storage, extra, username=USER, password=PASSWORD, tokens=tokens, blob_host=blob_host)


def _start(
    hosting: Hosting,
    folder: Path,
    storage: Path,
    extra: str,
    *,
    username: str = "",
    password: str = "",
    tokens: TokenServer | None = None,
    blob_host: BlobHost | None = None,
) -> Registry:
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = folder / "registry.yml"
    config.write_text(
        "version: 0.1\n"
        "log:\n  level: warn\n  accesslog:\n    disabled: true\n"
        f"storage:\n  filesystem:\n    rootdirectory: {storage}\n"
        "  maintenance:\n    uploadpurging:\n      enabled: false\n"
        f"http:\n  addr: 127.0.0.1:{port}\n  secret: tests\n" + extra
    )
    with no_environment("REGISTRY_"):
        program = Program(["docker-registry", "serve", config], folder / "registry.log")
    program.wait_port(port)
    direct = f"http://127.0.0.1:{port}"
    return Registry(program, direct, Gate(hosting, direct), username, password, tokens, blob_host)
