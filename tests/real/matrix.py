"""Which client pulls which image: one list, so that no combination is left out by accident."""

from __future__ import annotations

import pytest

PROGRAMS = {
    "skopeo": ("docker-registry", "skopeo"),
    "podman": ("docker-registry", "podman", "root"),
    "docker": ("docker-registry", "dockerd", "docker", "root"),
    "containerd": ("docker-registry", "containerd", "ctr", "root"),
}
"""What each client's fixture needs."""

KINDS = {
    "skopeo": ("schema2", "oci", "zstd", "multi", "list", "many"),
    "podman": ("schema2", "oci", "zstd", "multi", "list", "many"),
    # Engine 20.10 has no zstd, and its overlay2 ends at some 125 layers.
    "docker": ("schema2", "oci", "multi", "list"),
    "containerd": ("schema2", "oci", "zstd", "multi", "list", "many"),
}
"""The kinds of image (images.KINDS) that each client can take."""

READABLE_MANY = {"containerd"}
"""The clients that can mount 200 layers, not only store them."""

CLIENTS = [pytest.param(name, id=name, marks=pytest.mark.needs(*needs)) for name, needs in PROGRAMS.items()]
CLIENTS_AND_KINDS = [
    pytest.param(name, kind, id=f"{name}-{kind}", marks=pytest.mark.needs(*needs))
    for name, needs in PROGRAMS.items()
    for kind in KINDS[name]
]
