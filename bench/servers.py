"""The servers that are compared, and how each is configured. One serving process each.

Each starts empty, its data under a folder of the run. How processes are watched is in `processes`.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from bench.content import Blob, Image
from bench.processes import Watched, free_port, started

ENTREPOT = "entrepot"
REGISTRY = "docker-registry"
NGINX_STATIC = "nginx sendfile"
NGINX_CACHE = "nginx proxy_cache"
DIRECT = "direct"

NAME = "library/bench"


def blob_path(digest: str) -> str:
    return f"/v2/{NAME}/blobs/{digest}"


def manifest_path(reference: str) -> str:
    return f"/v2/{NAME}/manifests/{reference}"


@dataclass(frozen=True)
class Server:
    """A server that answers on `port`; of a fleet that is the first node's, and `others` are the others'."""

    name: str
    port: int
    running: Watched
    folder: Path
    others: tuple[int, ...] = ()

    def place(self, path: str, content: Blob | bytes) -> None:
        """Put what nginx serves from its files where a request for `path` finds it."""
        file = self.folder / "html" / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as output:
            output.writelines([content] if isinstance(content, bytes) else content.chunks())


class Bed:
    """One run's folder and upstream, from which servers are started."""

    def __init__(self, folder: Path, upstream: Server) -> None:
        self._folder = folder
        self.upstream = upstream
        self._seeds = count(1)

    @contextmanager
    def server(self, kind: str) -> Iterator[Server]:
        """Start an empty server; end it and remove its data on leaving. Raises DidNotStart."""
        if kind == DIRECT:
            yield self.upstream
            return
        port = free_port()
        with (
            self.room(kind) as folder,
            started(kind, _command(kind, folder, port, self.upstream.port), folder) as running,
        ):
            running.wait_for_port(port)
            yield Server(kind, port, running, folder)

    @contextmanager
    def room(self, kind: str) -> Iterator[Path]:
        """Give a folder, and remove it on leaving."""
        folder = Path(tempfile.mkdtemp(prefix=kind.replace(" ", "-") + ".", dir=self._folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    def fresh(self, size: int, rate: int = 0) -> tuple[Blob, str]:
        """Put a new blob on offer upstream, at `rate` bytes per second for each download (0: no pace)."""
        blob = Blob(next(self._seeds), size)
        query = urllib.parse.urlencode({"seed": blob.seed, "size": size, "rate": rate})
        return blob, self._ask("POST", query)["digest"]

    def counters(self, digest: str) -> dict[str, int]:
        """Return how often a blob was asked for upstream (`gets`, `heads`), and the bytes `sent`."""
        counters: dict[str, int] = self._ask("GET", urllib.parse.urlencode({"digest": digest}))
        return counters

    def _ask(self, method: str, query: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream.port, timeout=30)
        try:
            connection.request(method, f"/_bench/blob?{query}")
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


@contextmanager
def bed() -> Iterator[Bed]:
    """Make a run's folder and start its upstream."""
    with tempfile.TemporaryDirectory(prefix="entrepot-bench.") as name:
        folder = Path(name)
        port = free_port()
        with started(DIRECT, [sys.executable, "-m", "bench.upstream", str(port)], folder) as running:
            running.wait_for_port(port)
            yield Bed(folder, Server(DIRECT, port, running, folder))


def fill_static(server: Server, image: Image, blobs: list[Blob]) -> None:
    """Give nginx the files that others pull through."""
    server.place(manifest_path("latest"), image.manifest)
    server.place(manifest_path(image.digest), image.manifest)
    for blob in blobs:
        server.place(blob_path(blob.digest), blob)


def entrepot(folder: Path, port: int, upstream: int) -> list[str]:
    """Return the command of a mirror that listens on `port`, its data in `folder`/data."""
    serve = ["serve", "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{free_port()}"]
    place = ["--data", str(folder / "data"), "--upstream", f"docker.io=http://127.0.0.1:{upstream}"]
    return [sys.executable, "-m", "entrepot", *serve, *place]


def _command(kind: str, folder: Path, port: int, upstream: int) -> list[str]:
    if kind == ENTREPOT:
        return entrepot(folder, port, upstream)
    if kind == REGISTRY:
        file = folder / "config.yml"
        file.write_text(_REGISTRY.format(folder=folder, port=port, upstream=upstream))
        return ["docker-registry", "serve", str(file)]
    file = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    shared = location = ""
    if kind == NGINX_CACHE:
        shared = f"proxy_cache_path {folder}/cache levels=1:2 keys_zone=bench:10m max_size=20g use_temp_path=off;"
        location = _PROXY.format(upstream=upstream)
    file.write_text(_NGINX.format(user=user, folder=folder, port=port, shared=shared, location=location))
    return ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(file), "-g", "daemon off;"]


_REGISTRY = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}, cache: {{blobdescriptor: inmemory}}}}
http: {{addr: "127.0.0.1:{port}"}}
proxy: {{remoteurl: "http://127.0.0.1:{upstream}"}}
"""

_NGINX = """\
{user}
worker_processes 1;
pid {folder}/pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000000;
    default_type application/octet-stream;
    client_body_temp_path {folder}/client;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {shared}
    server {{
        listen 127.0.0.1:{port};
        root {folder}/html;
        location / {{ {location} }}
    }}
}}
"""

# By default the lock gives up after 5 s, and everyone who waited then asks the upstream.
_PROXY = """
            proxy_pass http://127.0.0.1:{upstream};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_cache bench;
            proxy_cache_valid 200 1h;
            proxy_cache_lock on;
            proxy_cache_lock_age 300s;
            proxy_cache_lock_timeout 300s;
        """
