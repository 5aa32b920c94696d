"""From layers to one Config: flags beat the environment beats the file beats the defaults. All problems at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entrepot.config.keys import LOG, TOP, UPSTREAM, Section, Setting, read_section, unknown
from entrepot.config.layers import Layer, UpstreamLayer, capitals, read_environment, read_file, read_flags
from entrepot.config.model import ADMIN, BUILT_IN_UPSTREAMS, LISTEN, Config, LogConfig, UpstreamConfig
from entrepot.config.problems import ConfigError, Problem


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
    log: dict[str, Any] = read_section({**in_file.log, **in_environment.log}, LOG, "log.", problems)
    listed = _upstreams(in_file, in_environment, on_command_line, problems)
    upstreams = _read_upstreams(listed, problems)
    _check_addresses(top, top_settings, problems)
    if problems:
        raise ConfigError(problems)
    top.setdefault("data", default_data(environment))
    return Config(upstreams=upstreams, log=LogConfig(**log), **top)


def default_data(environment: Mapping[str, str]) -> Path:
    """Return /var/lib/entrepot for root, else the XDG data folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/entrepot")
    return Path(environment.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "entrepot"


def check_files(config: Config) -> list[Problem]:
    """Return a problem for every file the configuration names that cannot be opened now. Shows no content."""
    problems = []
    for upstream in config.upstreams:
        for key in ("password_file", "docker_config", "ca_file"):
            path: Path | None = getattr(upstream, key)
            if path is None:
                continue
            try:
                with path.open("rb"):
                    pass
            except OSError as error:
                message = f"cannot be opened: {error.strerror}"
                problems.append(Problem(str(path), f"upstream {upstream.name}.{key}", message, UPSTREAM[key].accepted))
    return problems


def _upstreams(file: Layer, environment: Layer, flags: Layer, problems: list[Problem]) -> list[UpstreamLayer]:
    """Return the list that counts, each with what the file says of the same name and the environment adds."""
    chosen = flags.upstreams if flags.upstreams is not None else environment.upstreams
    if chosen is not None:
        of_file = {_name(upstream): upstream.settings for upstream in file.upstreams or []}
        listed = [UpstreamLayer({**of_file.get(_name(item), {}), **item.settings}, item.where) for item in chosen]
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


def _built_in(name: str) -> UpstreamLayer:
    return UpstreamLayer({"name": Setting(name, "built in", Path("/"))}, "built in")


def _name(upstream: UpstreamLayer) -> object:
    setting = upstream.settings.get("name")
    return None if setting is None else setting.value


def _read_upstreams(listed: list[UpstreamLayer], problems: list[Problem]) -> tuple[UpstreamConfig, ...]:
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


def _credentials(item: UpstreamLayer, prefix: str) -> list[Problem]:
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
    return []


def _check_addresses(top: Mapping[str, Any], settings: Section, problems: list[Problem]) -> None:
    listen = top.get("listen", LISTEN)
    admin = top.get("admin", ADMIN)
    if listen == admin and listen.port != 0:
        key = "admin" if "admin" in settings else "listen"
        accepted = "two addresses that differ"
        problems.append(Problem(settings[key].where, key, f"listen and admin are both {listen}", accepted))
