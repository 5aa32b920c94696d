"""The real clients, each with a root of its own: skopeo, podman, containerd with ctr, dockerd with docker.

Each takes docker.io from a mirror on 127.0.0.1 in the way its users configure it, and may fall back to
the real docker.io, which has none of the names that the tests use, or, where a client can be told so, to the
registry that they are told of (FallsBack).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, Self, runtime_checkable
from urllib.parse import urlsplit

from tests.support.images import Image
from tests.support.processes import Program, ProgramFailed, run

PLATFORM = "linux/amd64"


class Client(Protocol):
    """What the tests ask of every client. References are docker.io's, without the host."""

    def pull(self, mirror: str, reference: str, timeout: float = 60) -> set[str]:
        """Pull from the mirror at the URL `mirror` and return the digests of what came, as the client tells them."""
        ...

    def keeps(self, image: Image) -> set[str]:
        """Return what `pull` must return for `image`."""
        ...

    def remove(self, reference: str) -> None:
        """Remove a pulled image with all that only it needs, so that the next pull is cold."""
        ...


@runtime_checkable
class RunsImages(Client, Protocol):
    """A client that unpacks what it pulls."""

    def read(self, reference: str, path: str) -> str:
        """Return the text of a file in the root file system of a pulled image."""
        ...


@runtime_checkable
class FallsBack(Client, Protocol):
    """A client that can be told where to go when the mirror fails it: the URL of a registry, "" for docker.io."""

    beyond: str


def overlay_works(folder: Path) -> bool:
    """Tell whether overlay can be mounted on the file system of `folder`."""
    parts = {name: folder / f"probe-{name}" for name in ("lower", "upper", "work", "merged")}
    for part in parts.values():
        part.mkdir()
    options = "lowerdir={lower},upperdir={upper},workdir={work}".format(**parts)
    mounted = run(["mount", "-t", "overlay", "overlay", "-o", options, parts["merged"]], ok=False).returncode == 0
    if mounted:
        run(["umount", parts["merged"]])
    for part in parts.values():
        shutil.rmtree(part)
    return mounted


def _write_registries_conf(path: Path, mirror: str, prefix: str, beyond: str) -> None:
    location = f"{urlsplit(mirror).netloc}/{prefix}".rstrip("/")
    origin = f'"{urlsplit(beyond).netloc}"\ninsecure = true' if beyond else '"docker.io"'
    path.write_text(
        'unqualified-search-registries = ["docker.io"]\n\n'
        '[[registry]]\nprefix = "docker.io"\nlocation = '
        f"{origin}\n\n"
        f'[[registry.mirror]]\nlocation = "{location}"\ninsecure = true\n'
    )


class Skopeo:
    """skopeo, with registries.conf: it takes docker.io from the path `prefix` of the mirror."""

    def __init__(self, folder: Path, prefix: str = "docker.io") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._prefix = prefix
        self.beyond = ""

    def pull(self, mirror: str, reference: str, timeout: float = 60) -> set[str]:
        """Copy an image with all its platforms and return the digests of its files, the top manifest's among them."""
        conf = self._folder / "registries.conf"
        _write_registries_conf(conf, mirror, self._prefix, self.beyond)
        target = self._target(reference)
        run(
            [
                *("skopeo", "--registries-conf", conf, "copy", "--quiet", "--all", "--preserve-digests"),
                *(f"docker://docker.io/{reference}", f"dir:{target}"),
            ],
            env={"HOME": str(self._folder), "TMPDIR": str(self._folder)},
            timeout=timeout,
        )
        return {_file_digest(path) for path in target.iterdir() if path.name != "version"}

    def keeps(self, image: Image) -> set[str]:
        return image.digests()

    def remove(self, reference: str) -> None:
        shutil.rmtree(self._target(reference))

    def _target(self, reference: str) -> Path:
        return self._folder / reference.replace("/", "-").replace(":", "-")


class Podman:
    """podman, with storage under `folder` and registries.conf as Skopeo."""

    def __init__(self, folder: Path, prefix: str = "docker.io") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._conf = folder / "registries.conf"
        self._prefix = prefix
        self.beyond = ""
        self._env = {"HOME": str(folder), "TMPDIR": str(folder), "CONTAINERS_REGISTRIES_CONF": str(self._conf)}
        self._argv = [
            *("podman", "--root", folder / "root", "--runroot", folder / "run", "--cgroup-manager", "cgroupfs"),
            *("--storage-driver", "overlay" if overlay_works(folder) else "vfs"),
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._run("image", "umount", "--all")

    def _run(self, *words: str, timeout: float = 60) -> str:
        return run([*self._argv, *words], env=self._env, timeout=timeout).stdout

    def pull(self, mirror: str, reference: str, timeout: float = 60) -> set[str]:
        """Pull and return the digests of the index if there is one, of the manifest and of the config."""
        _write_registries_conf(self._conf, mirror, self._prefix, self.beyond)
        name = f"docker.io/{reference}"
        config = self._run("pull", "--quiet", name, timeout=timeout).strip()
        entry = json.loads(self._run("image", "inspect", name))[0]
        return {f"sha256:{config}", entry["Digest"], *(one.partition("@")[2] for one in entry["RepoDigests"])}

    def load(self, archive: Path) -> None:
        """Take over the images of an archive."""
        self._run("load", "--quiet", "--input", str(archive))

    def keeps(self, image: Image) -> set[str]:
        chosen = image.of(PLATFORM)
        return {image.digest, chosen.digest, chosen.blobs[0].digest}

    def read(self, reference: str, path: str) -> str:
        name = f"docker.io/{reference}"
        try:
            return (Path(self._run("image", "mount", name).strip()) / path).read_text()
        finally:
            self._run("image", "umount", name)

    def remove(self, reference: str) -> None:
        self._run("image", "rm", "--force", f"docker.io/{reference}")


class Containerd:
    """A containerd of its own, and ctr, which is given a hosts.toml at each pull."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._socket = folder / "s"
        self._snapshotter = "overlayfs" if overlay_works(folder) else "native"
        self.beyond = ""
        config = folder / "config.toml"
        config.write_text(
            "version = 2\n"
            f'root = "{folder}/root"\nstate = "{folder}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{self._socket}"\n'
            f'[ttrpc]\naddress = "{self._socket}.ttrpc"\n'
        )
        self.program = Program(["containerd", "-c", config], folder / "containerd.log")
        self.program.wait_line("containerd successfully booted")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.program.stop()

    def _ctr(self, *words: str | Path, timeout: float = 60) -> str:
        return run(["ctr", "-a", self._socket, *words], timeout=timeout).stdout

    def _content(self) -> set[str]:
        return set(self._ctr("content", "ls", "-q").split())

    def pull(self, mirror: str, reference: str, timeout: float = 60) -> set[str]:
        """Pull and return the digests of the content that this added: all but other platforms."""
        before = self._content()
        hosts = self._folder / "certs.d"
        (hosts / "docker.io").mkdir(parents=True, exist_ok=True)
        (hosts / "docker.io" / "hosts.toml").write_text(
            f'server = "{self.beyond or mirror}"\n\n[host."{mirror}"]\n  capabilities = ["pull", "resolve"]\n'
        )
        self._ctr(
            *("images", "pull", "--platform", PLATFORM, "--snapshotter", self._snapshotter),
            *("--hosts-dir", hosts, f"docker.io/{reference}"),
            timeout=timeout,
        )
        return self._content() - before

    def load(self, archive: Path) -> None:
        """Take over all that an archive holds, images or not; `read` unpacks."""
        self._ctr("images", "import", "--all-platforms", "--no-unpack", archive)

    def keeps(self, image: Image) -> set[str]:
        return {image.digest, *image.of(PLATFORM).digests()}

    def read(self, reference: str, path: str) -> str:
        target = self._folder / "mounted"
        target.mkdir(exist_ok=True)
        self._ctr(
            *("images", "mount", "--platform", PLATFORM, "--snapshotter", self._snapshotter),
            *(f"docker.io/{reference}", target),
        )
        try:
            return (target / path).read_text()
        finally:
            self._ctr("images", "unmount", "--rm", "--snapshotter", self._snapshotter, target)

    def remove(self, reference: str) -> None:
        self._ctr("images", "rm", "--sync", f"docker.io/{reference}")


class Docker:
    """A dockerd of its own, and docker. It is pointed at a mirror by `registry-mirrors` and SIGHUP."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._mirror = ""
        self._config = folder / "daemon.json"
        self._config.write_text("{}")
        # Its sockets, and those of its containerd, have names of at most 107 characters: a test's folder has more.
        self._short = TemporaryDirectory(prefix="dk", ignore_cleanup_errors=True)
        short = Path(self._short.name)
        self._host = f"unix://{short}/s"
        self.program = Program(
            [
                *("dockerd", "--config-file", self._config, "--data-root", folder / "d", "--exec-root", short / "e"),
                *("--host", self._host, "--pidfile", folder / "pid"),
                *("--storage-driver", "overlay2" if overlay_works(folder) else "vfs"),
                *("--iptables=false", "--ip6tables=false", "--bridge=none"),
            ],
            folder / "dockerd.log",
        )
        self.program.wait_line("API listen on")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.program.stop()
        self._short.cleanup()

    def _run(self, *words: str | Path, timeout: float = 60) -> str:
        env = {"DOCKER_HOST": self._host, "DOCKER_CONFIG": str(self._folder)}
        try:
            return run(["docker", *words], env=env, timeout=timeout).stdout
        except ProgramFailed as error:
            raise self.program.failed(str(error)) from None

    def _use(self, mirror: str) -> None:
        if mirror == self._mirror:
            return
        before = self.program.lines()
        self._config.write_text(json.dumps({"registry-mirrors": [mirror]}))
        self.program.signal(signal.SIGHUP)
        self.program.wait_line("Reloaded configuration", after=before)
        self._mirror = mirror

    def pull(self, mirror: str, reference: str, timeout: float = 60) -> set[str]:
        """Pull and return the digest that the reference was resolved to, and the config's."""
        self._use(mirror)
        self._run("pull", "--quiet", reference, timeout=timeout)
        entry = json.loads(self._run("image", "inspect", reference))[0]
        return {entry["Id"], *(name.partition("@")[2] for name in entry["RepoDigests"])}

    def keeps(self, image: Image) -> set[str]:
        return {image.digest, image.of(PLATFORM).blobs[0].digest}

    def read(self, reference: str, path: str) -> str:
        container = self._run("create", reference).strip()
        try:
            target = self._folder / "copied"
            self._run("cp", f"{container}:/{path}", target)
            return target.read_text()
        finally:
            self._run("rm", container)

    def remove(self, reference: str) -> None:
        self._run("image", "rm", "--force", reference)

    def load(self, archive: Path) -> None:
        """Take over the images of an archive."""
        self._run("load", "--input", archive)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
