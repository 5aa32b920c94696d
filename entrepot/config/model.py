"""The configuration as the rest of the program sees it: frozen, complete, in seconds and absolute paths.

How it comes about (files, environment, flags, what is accepted) is in the other modules of this package.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["console", "json"]
AccessMode = Literal["open", "htpasswd", "token", "upstream"]


class Address(NamedTuple):
    """Where to listen. Port 0 lets the system choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Secret:
    """A secret that was written into the configuration: only `reveal` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "(secret)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


class SecretUrl(Secret):
    """A URL that may hold a password; it shows itself without it."""

    __slots__ = ()

    def __repr__(self) -> str:
        scheme, _, rest = self._value.partition("://")
        login, at, place = rest.rpartition("@")
        return f"{scheme}://{'***@' if at and login else ''}{place.partition('?')[0]}"


LISTEN = Address("127.0.0.1", 5000)
ADMIN = Address("127.0.0.1", 5001)


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is logged and how: `console` for people, `json` one object a line."""

    level: LogLevel = "info"
    format: LogFormat = "console"


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """PEM files of the public listener. With `client_ca`, clients must show a certificate that it signed."""

    cert: Path
    key: Path
    client_ca: Path | None = None


class AccessConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Who may pull. `htpasswd` and `token_file` belong to the modes of their names."""

    mode: AccessMode = "open"
    htpasswd: Path | None = None
    token_file: Path | None = None


class WarmConfig(msgspec.Struct, frozen=True, kw_only=True):
    """References (with globs in their tags) that are pulled ahead, `every` so many seconds.

    `platforms` empty: the platform of this machine.
    """

    references: tuple[str, ...]
    platforms: tuple[str, ...] = ()
    every: float = 6 * 3600.0


class UpstreamConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One registry that the mirror answers for.

    `alternates` are asked in order after `url`. `tag_ttl`, `stale_while_revalidate`, `stale_if_error`, `negative_ttl`
    and `cooldown` are in seconds; `stale_if_error` None means for ever. `allow` and `deny` are globs of repositories.
    `concurrency` and `requests_per_second` hold for each host, 0 is no limit. Secrets stay in the files named here
    until they are needed.
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
    negative_ttl: float = 30.0
    cooldown: float = 0.0
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    concurrency: int = 64
    requests_per_second: float = 0.0
    proxy: str | None = None
    proxy_username: str | None = None
    proxy_password_file: Path | None = None
    ca_file: Path | None = None
    redirect_hosts: tuple[str, ...] = ()


class Window(NamedTuple):
    """A time of day, in minutes since midnight: from `begin` to `end`, over midnight where that is not later.

    zone: an IANA name; empty: the local time of this machine.
    """

    begin: int
    end: int
    zone: str = ""

    def __str__(self) -> str:
        begin, end = (f"{minute // 60:02}:{minute % 60:02}" for minute in (self.begin, self.end))
        return f"{begin}-{end} {self.zone}".rstrip()


class PeerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Another region whose images are kept here too.

    `token_file`, or `cert` with `key` (PEM), prove who asks; `ca_file` (PEM) vouches for the peer's certificate.
    `repositories` are globs, `tags` globs and ranges of versions, `newest` how many of the matching tags (None: all);
    no `platforms`: all of them. `bandwidth` is in bytes a second, None: no limit; no `window`: at any time. What was
    removed there is removed here `removal_grace` seconds later, unless that is more than `removal_share` of all that
    comes from there.
    """

    name: str
    url: str
    token_file: Path | None = None
    ca_file: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    repositories: tuple[str, ...] = ("*",)
    tags: tuple[str, ...] = ()
    newest: int | None = None
    platforms: tuple[str, ...] = ()
    referrers: bool = True
    bandwidth: int | None = None
    window: tuple[Window, ...] = ()
    removal_grace: float = 600.0
    removal_share: float = 0.25


class GrantConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A region that may read `repositories` (globs) from this one.

    It shows one of the tokens of `token_file` (one a line, two while they are rotated), or a certificate signed by
    `tls.client_ca` whose subject or alternative name is `certificate`.
    """

    name: str
    repositories: tuple[str, ...]
    token_file: Path | None = None
    certificate: str | None = None


class BundlesConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of bundles. require_signature None: of a key that is trusted, as soon as there is one."""

    require_signature: bool | None = None


class TrustedKeyConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A public key (`file`, PEM) whose bundles may bring `repositories` (globs)."""

    name: str
    file: Path
    repositories: tuple[str, ...] = ("*",)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a mirror is told. The first of `upstreams` is the default one; names are unique.

    `drain_timeout` is in seconds, `quota` in bytes, None for four fifths of the volume. `offline`: no upstream is ever
    asked. `client_concurrency`: requests of one client address in progress at once. `catalog`: `_catalog` is answered.

    With `redis` the mirror is a node of a fleet: `advertise` is how its neighbours reach it, `neighbours` are where it
    may reach them (see `fleet_address`). `store` is the bucket that a fleet shares; clients are sent there themselves
    with `store_redirect`; what nobody wants is kept for `store_grace` seconds more. `serve_from` (the key `from`): a
    bundle, or a folder of bundles, that is served in place of a store.
    """

    data: Path
    upstreams: tuple[UpstreamConfig, ...]
    listen: Address = LISTEN
    admin: Address = ADMIN
    region: str = "local"
    drain_timeout: float = 30.0
    offline: bool = False
    quota: int | None = None
    workers: int = 1
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    client_concurrency: int = 256
    catalog: bool = False
    admin_token: Secret | None = None
    admin_token_file: Path | None = None
    redis: SecretUrl | None = None
    advertise: str | None = None
    neighbours: tuple[str, ...] = ()
    fleet_secret: Secret | None = None
    fleet_secret_file: Path | None = None
    store: str | None = None
    store_redirect: bool = False
    store_grace: float = 24 * 3600.0
    log: LogConfig = LogConfig()
    tls: TlsConfig | None = None
    access: AccessConfig = AccessConfig()
    warm: tuple[WarmConfig, ...] = ()
    peers: tuple[PeerConfig, ...] = ()
    grants: tuple[GrantConfig, ...] = ()
    bundles: BundlesConfig = BundlesConfig()
    trusted_keys: tuple[TrustedKeyConfig, ...] = ()
    serve_from: Path | None = None

    @property
    def default_upstream(self) -> str:
        """The name of the upstream that is meant where a reference names none."""
        return self.upstreams[0].name

    @property
    def fleet_address(self) -> str:
        """How neighbours reach this node: what is advertised, else the address that it listens on."""
        return self.advertise or f"{'https' if self.tls else 'http'}://{self.listen}"

    @property
    def hosts(self) -> dict[str, str]:
        """The upstreams under an alias, by the host (and port) of their URL: images are named by it."""
        hosts = {urlsplit(upstream.url).netloc: upstream.name for upstream in reversed(self.upstreams)}
        return {host: name for host, name in hosts.items() if host != name}


BUILT_IN_UPSTREAMS = {
    "docker.io": "https://registry-1.docker.io",
    "ghcr.io": "https://ghcr.io",
    "quay.io": "https://quay.io",
    "gcr.io": "https://gcr.io",
    "registry.k8s.io": "https://registry.k8s.io",
    "mcr.microsoft.com": "https://mcr.microsoft.com",
    "public.ecr.aws": "https://public.ecr.aws",
}
