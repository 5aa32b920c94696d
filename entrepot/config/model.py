"""The configuration as the rest of the program sees it: frozen, complete, in seconds and absolute paths.

How it comes about (files, environment, flags, what is accepted) is in the other modules of this package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["console", "json"]


class Address(NamedTuple):
    """Where to listen. Port 0 lets the system choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


LISTEN = Address("127.0.0.1", 5000)
ADMIN = Address("127.0.0.1", 5001)


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is logged and how: `console` for people, `json` one object a line."""

    level: LogLevel = "info"
    format: LogFormat = "console"


class UpstreamConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One registry that the mirror answers for.

    `alternates` are asked in order after `url`. `tag_ttl`, `stale_while_revalidate` and `stale_if_error` are in
    seconds; `stale_if_error` None means for ever. Secrets stay in the files named here until they are needed.
    """

    name: str
    url: str
    alternates: tuple[str, ...] = ()
    username: str | None = None
    password_file: Path | None = None
    docker_config: Path | None = None
    tag_ttl: float = 15 * 60.0
    stale_while_revalidate: float = 24 * 3600.0
    stale_if_error: float | None = None
    proxy: str | None = None
    ca_file: Path | None = None
    redirect_hosts: tuple[str, ...] = ()


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a mirror is told. The first of `upstreams` is the default one; names are unique.

    `drain_timeout` is in seconds. `offline`: no upstream is ever asked.
    """

    data: Path
    upstreams: tuple[UpstreamConfig, ...]
    listen: Address = LISTEN
    admin: Address = ADMIN
    region: str = "local"
    drain_timeout: float = 30.0
    offline: bool = False
    log: LogConfig = LogConfig()

    @property
    def default_upstream(self) -> str:
        """The name of the upstream that is meant where a reference names none."""
        return self.upstreams[0].name


BUILT_IN_UPSTREAMS = {
    "docker.io": "https://registry-1.docker.io",
    "ghcr.io": "https://ghcr.io",
    "quay.io": "https://quay.io",
    "gcr.io": "https://gcr.io",
    "registry.k8s.io": "https://registry.k8s.io",
    "mcr.microsoft.com": "https://mcr.microsoft.com",
    "public.ecr.aws": "https://public.ecr.aws",
}
