"""`entrepot client docker|containerd|podman`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from entrepot import clients
from entrepot.cli.exits import USAGE, CommandFailed
from entrepot.cli.lazy import LazyGroup
from entrepot.cli.options import command
from entrepot.cli.output import Output
from entrepot.config import Config, UpstreamConfig
from entrepot.config.values import registry_url

client = LazyGroup(
    "client",
    {name: f"entrepot.cli.client:{name}" for name in ("docker", "containerd", "podman")},
    help="Print what a client has to be told to pull through a mirror.",
)

_MIRROR = click.option(
    "--mirror", metavar="URL", help="The mirror as the client reaches it.  [default: from the configuration's listen]"
)
Make = Callable[[str, Sequence[UpstreamConfig]], clients.ClientFiles]


@click.command()
@command("upstream")
@_MIRROR
def docker(config: Config, output: Output, mirror: str | None) -> int:
    """Print /etc/docker/daemon.json."""
    return _print(clients.docker, config, output, mirror)


@click.command()
@command("upstream")
@_MIRROR
def containerd(config: Config, output: Output, mirror: str | None) -> int:
    """Print /etc/containerd/certs.d/HOST/hosts.toml for every upstream."""
    return _print(clients.containerd, config, output, mirror)


@click.command()
@command("upstream")
@_MIRROR
def podman(config: Config, output: Output, mirror: str | None) -> int:
    """Print a registries.conf drop-in for podman, buildah, skopeo and CRI-O."""
    return _print(clients.podman, config, output, mirror)


def _print(make: Make, config: Config, output: Output, mirror: str | None) -> int:
    try:
        url = registry_url(mirror if mirror is not None else _own_url(config))
    except ValueError as error:
        message = f"--mirror: {error}; accepted: a URL such as http://mirror.example:5000"
        raise CommandFailed(message, USAGE) from None
    made = make(url, config.upstreams)
    for note in made.notes:
        output.note(f"# {note}")
    if len(made.files) == 1:
        (path, content) = made.files[0]
        output.note(f"# {path}")
        text = content
    else:
        text = "\n".join(f"# {path}\n{content}" for path, content in made.files)
    document = {"files": [{"path": path, "content": content} for path, content in made.files], "notes": made.notes}
    output.result(document, text.rstrip("\n"))
    return 0


def _own_url(config: Config) -> str:
    host = config.listen.host
    reachable = config.listen._replace(host="127.0.0.1") if host in ("0.0.0.0", "::") else config.listen
    return f"http://{reachable}"
