"""References as people write them on a command line or in a config file: `alpine`, `ghcr.io/a/b:tag`."""

from __future__ import annotations

from collections.abc import Set

from proxy.oci.digest import Digest
from proxy.oci.errors import NameUnknown
from proxy.oci.names import DOCKER_HUB, Reference, Repository, Tag, find_upstream, repository_under

DEFAULT_TAG = Tag("latest")


def parse_full(text: str, upstreams: Set[str], default: str) -> tuple[Repository, Reference]:
    """Return the repository and reference that `text` means.

    The first component selects the upstream of that name, otherwise `default` is meant. Without tag and
    digest the tag is `latest`; of `name:tag@digest` the digest counts, and the tag must still be valid.

    Raises:
        NameInvalid, TagInvalid, DigestInvalid: outside the grammar of P8.
        NameUnknown: it begins with a registry that is not among `upstreams`.
    """
    rest, at, digest_text = text.partition("@")
    digest = Digest.parse(digest_text) if at else None
    path, tag = _split_tag(rest)
    first, slash, _ = path.partition("/")
    if slash and find_upstream(first, upstreams) is None and _is_host(first, default):
        raise NameUnknown(
            f"registry {first[:160]!r} of {text[:160]!r} is not configured: add it with --upstream NAME=URL "
            "or as an [[upstream]]"
        )
    return repository_under(path, upstreams, default), digest or tag or DEFAULT_TAG


def format_full(repository: Repository, reference: Reference) -> str:
    """Return the full reference, which `parse_full` reads back: `docker.io/library/alpine:3`."""
    return f"{repository}{'@' if isinstance(reference, Digest) else ':'}{reference}"


def _split_tag(text: str) -> tuple[str, Tag | None]:
    colon = text.rfind(":")
    if colon <= text.rfind("/"):
        return text, None
    return text[:colon], Tag.parse(text[colon + 1 :])


def _is_host(component: str, default: str) -> bool:
    """Tell whether a first component can only be a registry: no repository has a colon, no name on Docker Hub a dot."""
    return ":" in component or (default == DOCKER_HUB and "." in component)
