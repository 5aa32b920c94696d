"""Where settings are written: a TOML file, the environment, flags. Each gives one `Layer`, unparsed.

`ENTREPOT_LISTEN`, `ENTREPOT_LOG__LEVEL`; `ENTREPOT_UPSTREAM="NAME=URL …"` replaces the list as the flags do, and
`ENTREPOT_UPSTREAM__DOCKER_IO__USERNAME` adds to the upstream whose name reads DOCKER_IO in capitals.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from entrepot.config.keys import LISTS, SECTIONS, TOP, Section, Setting, unknown
from entrepot.config.problems import ConfigError, Problem

PREFIX = "ENTREPOT_"
NAME_URL = "NAME=URL, such as docker.io=https://registry-1.docker.io"
_NAMES = (*TOP, *SECTIONS, "upstream", *LISTS)
_EXAMPLES = {
    "upstream": "[[upstream]] with name and url",
    "warm": "[[warm]] with references and every",
    "peer": "[[peer]] with name, url and token_file",
    "grant": "[[grant]] with name, token_file and repositories",
    "trusted_key": "[[trusted_key]] with name and file",
}
_LINE = re.compile(r"\s*(?:\[\[\s*(?P<array>[\w.-]+)\s*\]\]|\[\s*(?P<table>[\w.-]+)\s*\]|(?P<key>[\w.-]+)\s*=)")
# Kubernetes describes services to every container: a service named "entrepot" must not look like a misspelt key.
_NOT_OURS = re.compile(r"(\w+_)?(SERVICE_(HOST|PORT)\w*|PORT(_\d+_(TCP|UDP)\w*)?)|CONFIG|REQUIRE_TOOLS")


@dataclass(slots=True)
class ItemLayer:
    """One item of a list of sections as one layer describes it; `where` stands for the whole of it."""

    settings: Section
    where: str


@dataclass(slots=True)
class Layer:
    """What one place says. `upstreams` is None where it does not list any; `additions` are keyed by capitals."""

    top: Section = field(default_factory=dict)
    sections: dict[str, Section] = field(default_factory=dict)
    upstreams: list[ItemLayer] | None = None
    lists: dict[str, list[ItemLayer]] = field(default_factory=dict)
    additions: dict[str, Section] = field(default_factory=dict)


def read_file(path: Path, problems: list[Problem]) -> Layer:
    """Return what the TOML file at `path` says. Raises ConfigError when it cannot be read or is not TOML."""
    where = str(path)
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError([Problem(where, "--config", f"cannot be read: {reason}", "a readable TOML file")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([Problem(where, "TOML", str(error), "TOML 1.0, see docs/configuration.md")]) from None

    lines = line_numbers(text)
    base = path.absolute().parent

    def at(*place: str | int) -> str:
        line = lines.get(place)
        return where if line is None else f"{where}, line {line}"

    layer = Layer()
    for name, value in document.items():
        if name in SECTIONS and isinstance(value, dict):
            layer.sections[name] = {key: Setting(item, at(name, key), base) for key, item in value.items()}
        elif name in SECTIONS:
            accepted = f"[{name}] with {', '.join(SECTIONS[name])}"
            problems.append(Problem(at(name), name, "it is not a section", accepted))
        elif name in _EXAMPLES and value and isinstance(value, list) and all(isinstance(x, dict) for x in value):
            items = [
                ItemLayer(
                    {key: Setting(entry, at(name, index, key), base) for key, entry in item.items()}, at(name, index)
                )
                for index, item in enumerate(value)
            ]
            if name == "upstream":
                layer.upstreams = items
            else:
                layer.lists[name] = items
        elif name in _EXAMPLES:
            problems.append(Problem(at(name), name, "it is not a list of sections", _EXAMPLES[name]))
        elif name in TOP:
            layer.top[name] = Setting(value, at(name), base)
        else:
            problems.append(unknown(at(name), "", name, _NAMES))
    return layer


def line_numbers(text: str) -> dict[tuple[str | int, ...], int]:
    """Return the line, from 1, on which each key, section and array item of a TOML text begins."""
    found: dict[tuple[str | int, ...], int] = {}
    counts: dict[str, int] = {}
    section: tuple[str | int, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.match(line)
        if match is None:
            continue
        if array := match["array"]:
            section = (*array.split("."), counts.get(array, 0))
            counts[array] = counts.get(array, 0) + 1
            found.setdefault(section[:-1], number)
            found.setdefault(section, number)
        elif table := match["table"]:
            section = tuple(table.split("."))
            found.setdefault(section, number)
        else:
            parts = (*section, *match["key"].split("."))
            for length in range(len(section) + 1, len(parts) + 1):
                found.setdefault(parts[:length], number)
    return found


def read_environment(environment: Mapping[str, str], base: Path, problems: list[Problem]) -> Layer:
    """Return what the `ENTREPOT_…` variables say; relative paths start at `base`."""
    layer = Layer()
    for variable, value in sorted(environment.items()):
        if not variable.startswith(PREFIX) or _NOT_OURS.fullmatch(variable, len(PREFIX)):
            continue
        setting = Setting(value, f"environment variable {variable}", base)
        match variable[len(PREFIX) :].split("__"):
            case ["UPSTREAM"]:
                layer.upstreams = _named_urls(re.split(r"[,\s]+", value.strip()), setting.where, base, problems)
            case ["UPSTREAM", name, key]:
                layer.additions.setdefault(name, {})[key.lower()] = setting
            case [section] if section.lower() in SECTIONS:
                accepted = ", ".join(f"{variable}__{key.upper()}" for key in SECTIONS[section.lower()])
                problems.append(Problem(setting.where, section.lower(), "it is a section", accepted))
            case [section, key] if section.lower() in SECTIONS:
                layer.sections.setdefault(section.lower(), {})[key.lower()] = setting
            case [key] if key.lower() in TOP:
                layer.top[key.lower()] = setting
            case parts:
                problems.append(unknown(setting.where, "", ".".join(part.lower() for part in parts), _NAMES))
    return layer


def read_flags(flags: Mapping[str, object], base: Path, problems: list[Problem]) -> Layer:
    """Return what the command line says; flags that were not given are None or empty."""
    layer = Layer()
    for name, value in flags.items():
        if value is None or value == ():
            continue
        where = f"--{name.replace('_', '-')}"
        if name == "upstream" and isinstance(value, tuple | list):
            layer.upstreams = _named_urls([str(item) for item in value], where, base, problems)
        else:
            layer.top[name] = Setting(value, where, base)
    return layer


def _named_urls(written: list[str], where: str, base: Path, problems: list[Problem]) -> list[ItemLayer]:
    upstreams = []
    for item in written:
        name, equals, url = item.partition("=")
        if equals:
            settings = {"name": Setting(name, where, base), "url": Setting(url, where, base)}
            upstreams.append(ItemLayer(settings, where))
        else:
            problems.append(Problem(where, "upstream", f"{item!r} has no '='", NAME_URL))
    return upstreams


def capitals(name: str) -> str:
    """Return an upstream's name as the environment spells it: `docker.io` is DOCKER_IO."""
    return re.sub(r"[^A-Z0-9]", "_", name.upper())
