"""What the mirror tells of pulls, against what podman and dockerd took and did."""

from __future__ import annotations

import json
import random
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from tests.real.matrix import PROGRAMS
from tests.real.stage import Shelf, Site
from tests.support import images
from tests.support.clients import Client

MIB = 1 << 20
RATE = 1 * MIB
SIZES = {"podman": MIB // 2, "docker": 2 * MIB}

Document = dict[str, Any]
TIMED = [
    pytest.param("podman", marks=pytest.mark.needs(*PROGRAMS["podman"])),
    pytest.param("docker", marks=[pytest.mark.slow, pytest.mark.needs(*PROGRAMS["docker"])]),
]


def layer(name: str, size: int) -> images.Blob:
    return images.layer({f"data/{name}": random.Random(name).randbytes(size)}, images.DOCKER_LAYER)


def wait_for(site: Site, image: str, ready: Callable[[Document], bool]) -> Document:
    """Return the newest pull of `image` that is `ready`, running or not."""
    deadline = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(f"{site.mirror.admin}/api/pulls", timeout=10) as answer:
            shown = json.load(answer)
        for pull in (*shown["running"], *shown["recent"]):
            if pull["image"] == image and ready(pull):
                return dict(pull)
        assert time.monotonic() < deadline, shown
        time.sleep(0.1)


def timed(client: Client, site: Site, name: str) -> float:
    began = time.monotonic()
    client.pull(site.mirror.url, name)
    return time.monotonic() - began


@pytest.mark.parametrize("client", TIMED, indirect=True)
def test_a_pull_takes_the_mirror_as_long_as_the_client_says(
    client: Client, open_site: Site, shelf: Shelf, request: pytest.FixtureRequest
) -> None:
    program = request.node.callspec.params["client"]
    repository = f"library/timed-{program}"
    base, top = layer(f"{program} base", SIZES[program]), layer(f"{program} top", MIB // 16)
    shelf.place(repository, "1", images.manifest((base,), images.DOCKER_MANIFEST))
    shelf.place(repository, "2", images.manifest((base, top), images.DOCKER_MANIFEST))
    one, two = f"{repository}:1", f"{repository}:2"

    open_site.upstream.gate.rate = RATE
    try:
        cold = timed(client, open_site, one)
    finally:
        open_site.upstream.gate.rate = 0
    missed = wait_for(open_site, f"docker.io/{one}", lambda pull: pull["state"] == "done")
    assert (missed["agent"], missed["outcome"], missed["layers"], missed["had"]) == (program, "miss", 1, 0)
    assert missed["sent"] >= base.size

    client.remove(one)
    warm = timed(client, open_site, one)
    hit = wait_for(open_site, f"docker.io/{one}", lambda pull: pull["outcome"] == "hit" and pull["state"] == "done")
    assert hit["seconds"] < warm
    # What the client does besides, starting and unpacking, it does both times.
    assert 0.8 * base.size / RATE <= missed["seconds"] <= cold
    beside = warm - hit["seconds"]
    assert cold - missed["seconds"] <= beside + max(0.5, 0.2 * cold)

    client.pull(open_site.mirror.url, one)
    had = wait_for(open_site, f"docker.io/{one}", lambda pull: pull["had"] == 1)
    assert had["sent"] < base.size / 2

    client.pull(open_site.mirror.url, two)
    more = wait_for(open_site, f"docker.io/{two}", lambda pull: pull["sent"] > top.size)
    assert (more["layers"], more["had"], more["had_bytes"]) == (2, 1, base.size)


@pytest.mark.slow
@pytest.mark.parametrize("client", TIMED, indirect=True)
def test_a_pull_of_an_image_that_the_client_has_is_unchanged(
    client: Client, open_site: Site, shelf: Shelf, request: pytest.FixtureRequest
) -> None:
    placed = shelf.image("list", f"unchanged-{request.node.callspec.params['client']}")
    client.pull(open_site.mirror.url, placed.name)
    wait_for(open_site, f"docker.io/{placed.name}", lambda pull: pull["state"] == "done")
    client.pull(open_site.mirror.url, placed.name)
    pull = wait_for(open_site, f"docker.io/{placed.name}", lambda pull: pull["state"] == "unchanged")
    assert pull["layers"] == pull["had"]
