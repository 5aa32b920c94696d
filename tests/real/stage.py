"""What the tests with real programs pull and from where: images on a shelf, a mirror with its upstream."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support import images
from tests.support.images import Image
from tests.support.mirror import Mirror, upstream_table
from tests.support.registry import Registry


@dataclass(frozen=True, slots=True)
class Placed:
    """An image and where it was pushed to; `name` is what a docker.io user types."""

    repository: str
    tag: str
    image: Image

    @property
    def name(self) -> str:
        return f"{self.repository}:{self.tag}"


class Shelf:
    """Images in the upstreams' shared storage, each built and pushed when it is first asked for."""

    def __init__(self, push_to: str) -> None:
        self._push_to = push_to
        self._placed: dict[str, Placed] = {}

    def image(self, kind: str, use: str, namespace: str = "library") -> Placed:
        """Return the image of `kind` (a key of images.KINDS) for `use`; another use shares no blob with it."""
        repository = f"{namespace}/entrepot-{kind}-{use}"
        if repository not in self._placed:
            self.place(repository, "1.0", images.KINDS[kind](repository))
        return self._placed[repository]

    def place(self, repository: str, tag: str, image: Image) -> Placed:
        """Push `image`; a tag that is there moves."""
        images.push(self._push_to, repository, tag, image)
        self._placed[repository] = Placed(repository, tag, image)
        return self._placed[repository]


@dataclass(frozen=True, slots=True)
class Site:
    """A mirror and the upstream behind it."""

    mirror: Mirror
    upstream: Registry


def with_password(registry: Registry, folder: Path, **settings: str) -> str:
    """Return the configuration of docker.io at `registry` with its user name and password file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "password"
    file.write_text(f"{registry.password}\n")
    file.chmod(0o600)
    return upstream_table(
        "docker.io", registry.gate.url, username=registry.username, password_file=str(file), **settings
    )
