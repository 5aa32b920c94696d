"""`entrepot config check`."""

from __future__ import annotations

import os
from pathlib import Path

import click
import msgspec

from entrepot.cli.exits import DONE, IN_PART
from entrepot.cli.lazy import LazyGroup
from entrepot.cli.options import bare_command, config_option
from entrepot.cli.output import Output
from entrepot.config import Address, Config, ConfigError, Problem, check_files, load
from entrepot.config.model import Window
from entrepot.config.values import format_duration, format_exact_size

_SECTION_NAMES = {"upstreams": "upstream", "peers": "peer", "grants": "grant"}
_DURATIONS = frozenset(
    {
        "drain_timeout",
        "tag_ttl",
        "stale_while_revalidate",
        "stale_if_error",
        "negative_ttl",
        "cooldown",
        "every",
        "store_grace",
        "removal_grace",
    }
)

config = LazyGroup("config", {"check": "entrepot.cli.config:check"}, help="Look at the configuration.")


@click.command(short_help="Tell every fault of a configuration, or what holds.")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@config_option
@bare_command
def check(output: Output, file: Path | None, config_file: Path | None) -> int:
    """Check the configuration that FILE (or --config) and the environment give; show what holds."""
    try:
        loaded = load(file or config_file, os.environ, {})
    except ConfigError as error:
        return _found(output, list(error.problems))
    from entrepot.secrets import check_docker_configs

    if problems := check_files(loaded) or check_docker_configs(loaded):
        return _found(output, problems)
    document = describe(loaded)
    output.result({"ok": True, "config": document}, "\n".join(_lines(loaded)))
    return DONE


def _found(output: Output, problems: list[Problem]) -> int:
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    text = "\n".join(f"{problem}" for problem in problems)
    output.result({"ok": False, "problems": problems}, f"{text}\n{count} found")
    return IN_PART


def describe(config: Config) -> dict[str, object]:
    """Return what holds, in the spelling of the file. Secrets are in files of their own and never shown."""
    return {_SECTION_NAMES.get(key, key): _spelled(key, getattr(config, key)) for key in config.__struct_fields__}


def _spelled(key: str, value: object) -> object:
    if value is None:
        return "forever" if key == "stale_if_error" else None
    if isinstance(value, msgspec.Struct):
        return {field: _spelled(field, getattr(value, field)) for field in value.__struct_fields__}
    if isinstance(value, tuple) and not isinstance(value, Address | Window):
        return [_spelled(key, item) for item in value]
    if key in _DURATIONS and isinstance(value, float):
        return format_duration(value)
    if key == "quota" and isinstance(value, int):
        return format_exact_size(value)
    return value if isinstance(value, bool | int | float) else str(value)


def _lines(config: Config) -> list[str]:
    lines = ["the configuration is good", f"  listen    {config.listen}", f"  admin     {config.admin}"]
    lines += [f"  data      {config.data}", f"  region    {config.region}"]
    quota = "80 % of the volume" if config.quota is None else format_exact_size(config.quota)
    lines += [f"  quota     {quota}", f"  workers   {config.workers}", f"  access    {config.access.mode}"]
    if config.redis is not None:
        lines += [f"  redis     {config.redis}", f"  advertise {config.fleet_address}"]
    if config.store is not None:
        lines.append(f"  store     {config.store}")
    if config.tls is not None:
        lines.append(f"  tls       {config.tls.cert}")
    if config.serve_from is not None:
        lines.append(f"  from      {config.serve_from}, read-only")
    if config.offline:
        lines.append("  offline   no upstream is asked")
    for index, upstream in enumerate(config.upstreams):
        default = "  (default)" if index == 0 else ""
        login = f"  as {upstream.username}" if upstream.username else ""
        lines.append(f"  upstream  {upstream.name} = {upstream.url}{login}{default}")
    for section in config.warm:
        lines.append(f"  warm      {', '.join(section.references)} every {format_duration(section.every)}")
    for peer in config.peers:
        lines.append(f"  peer      {peer.name} = {peer.url}, of which {', '.join(peer.repositories)} is kept here")
    for grant in config.grants:
        lines.append(f"  grant     {grant.name} may read {', '.join(grant.repositories)}")
    for key in config.trusted_keys:
        lines.append(f"  trusts    {key.name} to bring {', '.join(key.repositories)}")
    return lines
