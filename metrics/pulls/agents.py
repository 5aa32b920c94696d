"""Which program a User-Agent names, out of a small fixed set."""

from __future__ import annotations

import re

OTHER = "other"
COPIERS = frozenset({"skopeo", "crane", "regclient", "oras", "entrepot"})
"""Those that may copy all platforms of an image, one after another."""

_MAX = 512
_PRODUCT = re.compile(r"[A-Za-z][A-Za-z0-9.+-]*")
_NAMES = {
    "docker": "docker",
    "docker-client": "docker",
    "containerd": "containerd",
    "nerdctl": "containerd",
    "containers": "podman",
    "podman": "podman",
    "libpod": "podman",
    "buildah": "podman",
    "skopeo": "skopeo",
    "buildkit": "buildkit",
    "cri-o": "cri-o",
    "crane": "crane",
    "kaniko": "kaniko",
    "go-containerregistry": "crane",
    "oras": "oras",
    "oras-go": "oras",
    "regclient": "regclient",
    "regctl": "regclient",
    "regsync": "regclient",
    "entrepot": "entrepot",
}


def agent_of(header: str) -> str:
    """Return the program that `header` names, "other" for those that nobody has heard of.

    The first product that is known counts: kaniko says go-containerregistry after its own name, dockerd wraps what
    asked it as `UpstreamClient(…)`.
    """
    for product in _PRODUCT.findall(header[:_MAX].lower()):
        if product in _NAMES:
            return _NAMES[product]
    return OTHER
