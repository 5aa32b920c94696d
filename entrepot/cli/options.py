"""What commands have in common: `--config`, `--format`, the flags that stand for keys, and how errors end them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from entrepot.cli.exits import FAILED, USAGE, CommandFailed
from entrepot.cli.output import Format, Output
from entrepot.config import Config, ConfigError, load
from entrepot.wording import words_of
from proxy.oci.errors import RegistryError

_FLAGS: dict[str, Callable[[Any], Any]] = {
    "listen": click.option("--listen", metavar="HOST:PORT", help="Where clients pull from.  [default: 127.0.0.1:5000]"),
    "admin": click.option(
        "--admin",
        metavar="HOST:PORT",
        help="Where /metrics, /healthz, /readyz and /api are.  [default: 127.0.0.1:5001]",
    ),
    "data": click.option(
        "--data",
        metavar="DIR",
        help="Where everything is kept.  [default: /var/lib/entrepot for root, else the XDG data folder]",
    ),
    "upstream": click.option(
        "--upstream",
        metavar="NAME=URL",
        multiple=True,
        help="A registry to mirror; repeatable, the first is the default. Replaces the built-in list.",
    ),
    "region": click.option("--region", metavar="NAME", help="The region this mirror is in.  [default: local]"),
    "quota": click.option(
        "--quota", metavar="SIZE", help="How much may be stored, such as 500GiB.  [default: 80 % of the volume]"
    ),
    "workers": click.option("--workers", metavar="N", help="How many processes answer clients.  [default: 1]"),
    "redis": click.option("--redis", metavar="URL", help="The Redis that the nodes of a fleet share."),
    "advertise": click.option(
        "--advertise", metavar="URL", help="How neighbours reach this node.  [default: the address of --listen]"
    ),
    "store": click.option(
        "--store", metavar="URL", help="The bucket that nodes share: s3://bucket/prefix, gs://, az://."
    ),
    "from": click.option(
        "--from", metavar="BUNDLE", help="Serve this bundle, or the folder of bundles, from where it lies, read-only."
    ),
    "offline": click.option(
        "--offline", is_flag=True, default=None, help="Never ask an upstream; serve what is stored."
    ),
}

config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    envvar="ENTREPOT_CONFIG",
    type=click.Path(path_type=Path),
    help="The configuration file (TOML).",
)
unread_config_option = click.option(
    "--config", metavar="FILE", expose_value=False, help="Accepted, as by every command; it is not read."
)
_FORMAT = click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", help="Output for people or machines."
)


def command(*keys: str) -> Callable[[Callable[..., int]], Callable[..., None]]:
    """Make a command's function of one that takes (config, output, **own parameters) and returns an exit code.

    `keys` are the configuration's keys that the command has flags for. Errors of the configuration end it with 2,
    CommandFailed with its own code, what a registry, the store or the disk refused with 1.
    """

    def decorate(function: Callable[..., int]) -> Callable[..., None]:
        @functools.wraps(function)
        def once(read: Callable[[], Config], output: Output, **given: Any) -> int:
            return function(read(), output, **given)

        return reading_command(*keys)(once)

    return decorate


def reading_command(*keys: str) -> Callable[[Callable[..., int]], Callable[..., None]]:
    """As `command`, of a function that takes what reads the configuration instead, as often as it is called."""

    def decorate(function: Callable[..., int]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(config_file: Path | None, form: Format, **given: Any) -> None:
            output = Output(form)
            flags = {key: given.pop(key) for key in keys}
            with ended_by_errors(output):
                read = functools.partial(load, config_file, dict(os.environ), flags)
                click.get_current_context().exit(function(read, output, **given))

        for option in (_FORMAT, config_option, *(_FLAGS[key] for key in reversed(keys))):
            run = option(run)
        return run

    return decorate


def bare_command(function: Callable[..., int]) -> Callable[..., None]:
    """Make a command's function of one that takes (output, **own parameters) and needs no configuration."""

    @functools.wraps(function)
    def run(form: Format, **given: Any) -> None:
        output = Output(form)
        with ended_by_errors(output):
            click.get_current_context().exit(function(output, **given))

    return _FORMAT(run)


class ended_by_errors:
    """A context in which foreseeable errors are printed and become exit codes."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        match error:
            case ConfigError():
                self._output.failed(f"the configuration cannot be used\n{error}", error)
                code = USAGE
            case CommandFailed():
                self._output.failed(str(error))
                code = error.exit_code
            case RegistryError() | OSError():
                self._output.failed(words_of(error))
                code = FAILED
            case _:
                return
        raise click.exceptions.Exit(code)
