"""The stock is one that a docker-registry serves, the relay counts what passes, and the scenario measures both."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from bench.content import MANIFEST_TYPE, digest_of
from bench.regions import SKOPEO, _registry, region_sync
from bench.relay import relay
from bench.servers import ENTREPOT, Bed, bed
from bench.stock import Stock, names
from bench.turns import QUICK

pytestmark = pytest.mark.needs("docker-registry")


@pytest.fixture
def place() -> Iterator[Bed]:
    with bed() as made:
        yield made


def get(connection: http.client.HTTPConnection, path: str) -> bytes:
    connection.request("GET", path, headers={"Accept": MANIFEST_TYPE})
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, body
    return body


def test_a_registry_serves_the_stock_and_each_generation_and_the_relay_counts_it(place: Bed) -> None:
    with place.room("stock") as storage, _registry(place, storage, "source") as port, relay(port) as (relayed, wire):
        stock, name = Stock(storage), names(30)[25]
        connection = http.client.HTTPConnection("127.0.0.1", relayed, timeout=10)
        received = 0
        for generation in (0, 1):
            digest = stock.put(name, generation)
            manifest = get(connection, f"/v2/{name.repository}/manifests/{name.tag}")
            assert digest_of(manifest) == digest
            document = json.loads(manifest)
            received += len(manifest)
            for part in (document["config"], *document["layers"]):
                body = get(connection, f"/v2/{name.repository}/blobs/{part['digest']}")
                assert (len(body), digest_of(body)) == (part["size"], part["digest"])
                received += len(body)
        connection.close()
    assert wire.requests == 8
    assert received < wire.down < received + 8 * 1024
    assert 0 < wire.up < 8 * 1024


@pytest.mark.slow
@pytest.mark.needs("skopeo")
def test_both_tools_pass_over_the_same_images(place: Bed) -> None:
    tables = region_sync(place, replace(QUICK, rounds=1, images=40), lambda text: None)
    for table in tables:
        assert not table.absent
        assert [len(table.samples[tool]) for tool in (ENTREPOT, SKOPEO)] == [1, 1]
    nothing, some = tables
    assert some.samples[ENTREPOT][0]["requests"] > nothing.samples[ENTREPOT][0]["requests"]
    assert some.samples[SKOPEO][0]["kib"] > nothing.samples[SKOPEO][0]["kib"]
