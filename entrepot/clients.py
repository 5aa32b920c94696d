"""What Docker, containerd and podman have to be told to pull through a mirror: pure text, for `entrepot client`.

Each function returns the files to write, by path, and what to know besides. Nothing is written here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from entrepot.config import UpstreamConfig

DOCKER_IO = "docker.io"


@dataclass(frozen=True, slots=True)
class ClientFiles:
    """Files as (path, content), and notes for whoever writes them."""

    files: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def docker(mirror: str, upstreams: Sequence[UpstreamConfig]) -> ClientFiles:
    """Return dockerd's daemon.json; its `registry-mirrors` serve names of docker.io only."""
    daemon: dict[str, list[str]] = {"registry-mirrors": [mirror]}
    plain = mirror.startswith("http://")
    if plain and not _is_loopback(mirror):
        daemon["insecure-registries"] = [_authority(mirror)]
    notes = [
        "merge this into the keys that the file already has, then restart dockerd",
        "Docker asks a mirror for docker.io alone; write other images as "
        f"{_authority(mirror)}/NAME/repository:tag, such as {_authority(mirror)}/ghcr.io/owner/image:1",
    ]
    if upstreams[0].name != DOCKER_IO:
        notes.append(
            f"this mirror's default upstream is {upstreams[0].name}: Docker's requests for docker.io would go there; "
            f"put docker.io first in the mirror's configuration"
        )
    if not plain:
        notes.append(f"for a certificate of your own: its CA goes to /etc/docker/certs.d/{_authority(mirror)}/ca.crt")
    return ClientFiles((("/etc/docker/daemon.json", json.dumps(daemon, indent=2) + "\n"),), tuple(notes))


def containerd(mirror: str, upstreams: Sequence[UpstreamConfig]) -> ClientFiles:
    """Return one hosts.toml for each upstream; the real registry stays as the last host.

    containerd names the registry of an image in `?ns=`, which an upstream under an alias does not answer to (P39).
    """
    files = []
    aliases = []
    for upstream in upstreams:
        if _image_host(upstream) != upstream.name:
            aliases.append(upstream.name)
            continue
        lines = [f'server = "{upstream.url}"', "", f'[host."{mirror}"]', '  capabilities = ["pull", "resolve"]', ""]
        files.append((f"/etc/containerd/certs.d/{upstream.name}/hosts.toml", "\n".join(lines)))
    notes = [
        "containerd reads these files when its own configuration has, for Kubernetes (containerd 1.x), "
        '[plugins."io.containerd.grpc.v1.cri".registry] config_path = "/etc/containerd/certs.d", '
        'in containerd 2.x under [plugins."io.containerd.cri.v1.images".registry]; '
        "ctr takes --hosts-dir /etc/containerd/certs.d, nerdctl finds them by itself; no restart is needed",
    ]
    notes += [
        f"{name} is an alias, under which containerd finds no image; write {_authority(mirror)}/{name}/repository:tag"
        for name in aliases
    ]
    if mirror.startswith("https://"):
        notes.append('for a certificate of your own: add  ca = "/path/ca.crt"  under [host."…"]')
    return ClientFiles(tuple(files), tuple(notes))


def podman(mirror: str, upstreams: Sequence[UpstreamConfig]) -> ClientFiles:
    """Return a registries.conf drop-in, which podman, buildah, skopeo and CRI-O read."""
    blocks = []
    for upstream in upstreams:
        lines = [
            "[[registry]]",
            f'location = "{_image_host(upstream)}"',
            "",
            "[[registry.mirror]]",
            f'location = "{_authority(mirror)}/{upstream.name}"',
        ]
        if mirror.startswith("http://"):
            lines.append("insecure = true")
        blocks.append("\n".join(lines) + "\n")
    notes = ["podman, buildah, skopeo and CRI-O read this at each start; nothing has to be restarted but CRI-O"]
    if mirror.startswith("https://"):
        notes.append(
            f"for a certificate of your own: its CA goes to /etc/containers/certs.d/{_authority(mirror)}/ca.crt"
        )
    return ClientFiles((("/etc/containers/registries.conf.d/50-entrepot.conf", "\n".join(blocks)),), tuple(notes))


def _image_host(upstream: UpstreamConfig) -> str:
    """Return the host that images of `upstream` are named by: an alias stands for the host of its URL."""
    if upstream.name == DOCKER_IO or "." in upstream.name:
        return upstream.name
    return _authority(upstream.url)


def _authority(url: str) -> str:
    return urlsplit(url).netloc


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
