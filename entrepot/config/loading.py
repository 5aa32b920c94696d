"""From layers to one Config: flags beat the environment beats the file beats the defaults. All problems at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from entrepot.config.keys import (
    ACCESS,
    GRANT,
    PEER,
    SECTIONS,
    TLS,
    TOP,
    TRUSTED_KEY,
    UPSTREAM,
    WARM,
    Section,
    Setting,
    read_section,
    unknown,
)
from entrepot.config.layers import ItemLayer, Layer, capitals, read_environment, read_file, read_flags
from entrepot.config.model import (
    ADMIN,
    BUILT_IN_UPSTREAMS,
    LISTEN,
    AccessConfig,
    BundlesConfig,
    Config,
    LogConfig,
    TlsConfig,
    TrustedKeyConfig,
    UpstreamConfig,
    WarmConfig,
)
from entrepot.config.problems import ConfigError, Problem
from entrepot.config.regions import check_tokens, read_grants, read_peers
from entrepot.config.serving_from import check_from, check_there

_EVERYWHERE = ("0.0.0.0", "::")


def load(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, object]) -> Config:
    """Return the configuration that `file`, `environment` and `flags` give together.

    `flags` maps keys of the file's top level to what the command line gave (None: not given), and `upstream` to
    the `NAME=URL` words. Files that hold secrets or certificates are not opened here, see `check_files`.

    Raises:
        ConfigError: with everything that is wrong, not only the first.
    """
    problems: list[Problem] = []
    here = Path.cwd()
    in_file = read_file(file, problems) if file is not None else Layer()
    in_environment = read_environment(environment, here, problems)
    on_command_line = read_flags(flags, here, problems)

    top_settings = {**in_file.top, **in_environment.top, **on_command_line.top}
    top: dict[str, Any] = read_section(top_settings, TOP, "", problems)
    sections: dict[str, dict[str, Any]] = {}
    for name, keys in SECTIONS.items():
        settings = {**in_file.sections.get(name, {}), **in_environment.sections.get(name, {})}
        sections[name] = read_section(settings, keys, f"{name}.", problems)
        if name == "tls":
            _check_tls(settings, problems)
        if name == "access":
            _check_access(sections[name], settings, problems)
    trusted_keys = _read_trusted_keys(in_file.lists.get("trusted_key", []), problems)
    warm = _read_warm(in_file.lists.get("warm", []), problems)
    peers = read_peers(in_file.lists.get("peer", []), top_settings, problems)
    grants = read_grants(in_file.lists.get("grant", []), top_settings, "client_ca" in sections["tls"], problems)
    listed = _upstreams(in_file, in_environment, on_command_line, problems)
    upstreams = _read_upstreams(listed, problems)
    _check_addresses(top, top_settings, problems)
    if "admin_token" in top and "admin_token_file" in top:
        where = top_settings["admin_token_file"].where
        problems.append(Problem(where, "admin_token_file", "admin_token is given too", "one of them"))
    _check_fleet(top, top_settings, problems)
    access = {**in_file.sections.get("access", {}), **in_environment.sections.get("access", {})}
    check_from(top, top_settings, in_file.lists, sections["access"], access, problems)
    if problems:
        raise ConfigError(problems)
    top.setdefault("data", default_data(environment))
    return Config(
        upstreams=upstreams,
        log=LogConfig(**sections["log"]),
        tls=TlsConfig(**sections["tls"]) if sections["tls"] else None,
        access=AccessConfig(**sections["access"]),
        warm=warm,
        peers=peers,
        grants=grants,
        bundles=BundlesConfig(**sections["bundles"]),
        trusted_keys=trusted_keys,
        serve_from=top.pop("from", None),
        **top,
    )


def default_data(environment: Mapping[str, str]) -> Path:
    """Return /var/lib/entrepot for root, else the XDG data folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/entrepot")
    return Path(environment.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "entrepot"


def check_files(config: Config) -> list[Problem]:
    """Return a problem for every file the configuration names that cannot be opened now. Shows no content."""
    named: list[tuple[str, Path | None, str]] = [
        ("admin_token_file", config.admin_token_file, TOP["admin_token_file"].accepted),
        ("fleet_secret_file", config.fleet_secret_file, TOP["fleet_secret_file"].accepted),
        ("access.htpasswd", config.access.htpasswd, ACCESS["htpasswd"].accepted),
        ("access.token_file", config.access.token_file, ACCESS["token_file"].accepted),
    ]
    if config.tls is not None:
        named += [(f"tls.{key}", getattr(config.tls, key), TLS[key].accepted) for key in TLS]
    for upstream in config.upstreams:
        for key in ("password_file", "docker_config", "ca_file", "proxy_password_file"):
            named.append((f"upstream {upstream.name}.{key}", getattr(upstream, key), UPSTREAM[key].accepted))
    for peer in config.peers:
        for key in ("token_file", "ca_file", "cert", "key"):
            named.append((f"peer {peer.name}.{key}", getattr(peer, key), PEER[key].accepted))
    for key_config in config.trusted_keys:
        named.append((f"trusted_key {key_config.name}.file", key_config.file, TRUSTED_KEY["file"].accepted))
    for grant in config.grants:
        named.append((f"grant {grant.name}.token_file", grant.token_file, GRANT["token_file"].accepted))
    problems = []
    for key, path, accepted in named:
        if path is None:
            continue
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            problems.append(Problem(str(path), key, f"cannot be opened: {error.strerror}", accepted))
    return problems + _check_keys(config) + check_tokens(config.grants) + check_there(config.serve_from)


def _check_keys(config: Config) -> list[Problem]:
    """Return a problem for each file of a [[trusted_key]] that can be opened and holds no public key."""
    if not config.trusted_keys:
        return []
    from sync.bundle.errors import BundleError
    from sync.bundle.keys import PublicKey

    problems = []
    for key in config.trusted_keys:
        try:
            with suppress(OSError), key.file.open("rb"):
                PublicKey.load(key.file)
        except BundleError as error:
            accepted = TRUSTED_KEY["file"].accepted
            problems.append(Problem(str(key.file), f"trusted_key {key.name}.file", str(error), accepted))
    return problems


def _upstreams(file: Layer, environment: Layer, flags: Layer, problems: list[Problem]) -> list[ItemLayer]:
    """Return the list that counts, each with what the file says of the same name and the environment adds."""
    chosen = flags.upstreams if flags.upstreams is not None else environment.upstreams
    if chosen is not None:
        of_file = {_name(upstream): upstream.settings for upstream in file.upstreams or []}
        listed = [ItemLayer({**of_file.get(_name(item), {}), **item.settings}, item.where) for item in chosen]
    elif file.upstreams is not None:
        listed = file.upstreams
    else:
        listed = [_built_in(name) for name in BUILT_IN_UPSTREAMS]

    by_capitals = {capitals(str(_name(item))): item for item in listed}
    for spelled, settings in environment.additions.items():
        if spelled in by_capitals:
            by_capitals[spelled].settings.update(settings)
        else:
            where = next(iter(settings.values())).where
            problems.append(unknown(where, "upstream.", spelled, by_capitals))
    return listed


def _built_in(name: str) -> ItemLayer:
    return ItemLayer({"name": Setting(name, "built in", Path("/"))}, "built in")


def _name(upstream: ItemLayer) -> object:
    setting = upstream.settings.get("name")
    return None if setting is None else setting.value


def _read_upstreams(listed: list[ItemLayer], problems: list[Problem]) -> tuple[UpstreamConfig, ...]:
    upstreams: list[UpstreamConfig] = []
    seen: dict[object, str] = {}
    for item in listed:
        before = len(problems)
        name = _name(item)
        prefix = f"upstream {name}." if isinstance(name, str) else "upstream."
        parsed: dict[str, Any] = read_section(item.settings, UPSTREAM, prefix, problems)
        if name is None:
            problems.append(Problem(item.where, "upstream.name", "it is missing", UPSTREAM["name"].accepted))
        elif name in seen:
            problems.append(Problem(item.where, prefix + "name", f"also in {seen[name]}", "a name of its own for each"))
        elif isinstance(name, str) and "url" not in item.settings:
            if name in BUILT_IN_UPSTREAMS:
                parsed["url"] = BUILT_IN_UPSTREAMS[name]
            else:
                problems.append(Problem(item.where, prefix + "url", "it is missing", UPSTREAM["url"].accepted))
        seen.setdefault(name, item.where)
        problems.extend(_credentials(item, prefix))
        if len(problems) == before:
            upstreams.append(UpstreamConfig(**parsed))
    return tuple(upstreams)


def _read_warm(listed: list[ItemLayer], problems: list[Problem]) -> tuple[WarmConfig, ...]:
    warm: list[WarmConfig] = []
    for item in listed:
        before = len(problems)
        parsed: dict[str, Any] = read_section(item.settings, WARM, "warm.", problems)
        if not parsed.get("references") and len(problems) == before:
            problems.append(Problem(item.where, "warm.references", "it is missing", WARM["references"].accepted))
        if parsed.get("every", 60.0) < 60.0:
            where = item.settings["every"].where
            problems.append(Problem(where, "warm.every", "it is shorter than a minute", '"1m" or longer'))
        if len(problems) == before:
            warm.append(WarmConfig(**parsed))
    return tuple(warm)


def _read_trusted_keys(listed: list[ItemLayer], problems: list[Problem]) -> tuple[TrustedKeyConfig, ...]:
    keys: list[TrustedKeyConfig] = []
    for item in listed:
        before = len(problems)
        parsed: dict[str, Any] = read_section(item.settings, TRUSTED_KEY, "trusted_key.", problems)
        for key in ("name", "file"):
            if key not in item.settings:
                accepted = TRUSTED_KEY[key].accepted
                problems.append(Problem(item.where, f"trusted_key.{key}", "it is missing", accepted))
        if any(key.name == parsed.get("name") for key in keys):
            problems.append(
                Problem(item.where, "trusted_key.name", "another key is called so", "a name of its own for each")
            )
        if len(problems) == before:
            keys.append(TrustedKeyConfig(**parsed))
    return tuple(keys)


def _check_tls(settings: Section, problems: list[Problem]) -> None:
    for key in ("cert", "key"):
        if settings and key not in settings:
            where = next(iter(settings.values())).where
            problems.append(Problem(where, f"tls.{key}", "it is missing", TLS[key].accepted))


def _check_access(parsed: Mapping[str, Any], settings: Section, problems: list[Problem]) -> None:
    mode = parsed.get("mode", "open")
    for key, of in (("htpasswd", "htpasswd"), ("token_file", "token")):
        if mode == of and key not in settings:
            problems.append(Problem(settings["mode"].where, f"access.{key}", "it is missing", ACCESS[key].accepted))
        if mode != of and key in settings:
            message = f"the mode is {mode!r}, nobody would be asked for it"
            problems.append(Problem(settings[key].where, f"access.{key}", message, f'mode = "{of}"'))


def _check_fleet(top: Mapping[str, Any], settings: Section, problems: list[Problem]) -> None:
    if "fleet_secret" in top and "fleet_secret_file" in top:
        where = settings["fleet_secret_file"].where
        problems.append(Problem(where, "fleet_secret_file", "fleet_secret is given too", "one of them"))
    if "redis" not in top:
        return
    where = settings["redis"].where
    if "fleet_secret" not in settings and "fleet_secret_file" not in settings:
        accepted = "ENTREPOT_FLEET_SECRET or fleet_secret_file, the same on every node"
        problems.append(Problem(where, "fleet_secret", "nodes that share a Redis sign what they ask", accepted))
    listen = top.get("listen", LISTEN)
    if "advertise" not in settings and (listen.host in _EVERYWHERE or listen.port == 0):
        accepted = TOP["advertise"].accepted
        message = f"listening on {listen}, a node must be told how its neighbours reach it"
        problems.append(Problem(where, "advertise", message, accepted))


def _credentials(item: ItemLayer, prefix: str) -> list[Problem]:
    accepted = "username with password_file, or docker_config, or none of them"
    settings = item.settings
    if "docker_config" in settings and ("username" in settings or "password_file" in settings):
        where = settings["docker_config"].where
        return [Problem(where, prefix + "docker_config", "a username or password_file is given too", accepted)]
    if "username" in settings and "password_file" not in settings:
        return [Problem(settings["username"].where, prefix + "username", "it has no password_file", accepted)]
    if "password_file" in settings and "username" not in settings:
        where = settings["password_file"].where
        return [Problem(where, prefix + "password_file", "it has no username", accepted)]
    for key, other in (("proxy_username", "proxy_password_file"), ("proxy_password_file", "proxy_username")):
        if key in settings and (other not in settings or "proxy" not in settings):
            accepted = "proxy, proxy_username and proxy_password_file together"
            return [Problem(settings[key].where, prefix + key, "the others of its kind are missing", accepted)]
    return []


def _check_addresses(top: Mapping[str, Any], settings: Section, problems: list[Problem]) -> None:
    listen = top.get("listen", LISTEN)
    admin = top.get("admin", ADMIN)
    if listen == admin and listen.port != 0:
        key = "admin" if "admin" in settings else "listen"
        accepted = "two addresses that differ"
        problems.append(Problem(settings[key].where, key, f"listen and admin are both {listen}", accepted))
