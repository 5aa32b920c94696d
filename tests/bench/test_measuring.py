"""The paced upstream keeps its pace, the client counts every byte, and real peers pull through."""

from __future__ import annotations

import hashlib
import http.client
import socket
import threading
from collections.abc import Iterator

import pytest

from bench.clients import ClientFailed, drain
from bench.content import MIB, Blob, digest_of, image
from bench.drain import Plan, drain as drain_here
from bench.fleet import Pack
from bench.processes import DidNotStart, started
from bench.servers import NGINX_CACHE, NGINX_STATIC, REGISTRY, Bed, bed, blob_path, fill_static, manifest_path
from tests.scenarios.running import until


@pytest.fixture(scope="module")
def place() -> Iterator[Bed]:
    with bed() as made:
        yield made


def get(port: int, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body


def test_blob_slices_add_up_to_its_digest() -> None:
    blob = Blob(seed=7, size=2 * MIB + 12345)
    data = b"".join(blob.chunks())
    assert len(data) == blob.size
    assert digest_of(data) == blob.digest
    assert bytes(blob.slice(MIB - 10, 100)) == data[MIB - 10 : MIB]


def test_upstream_serves_what_it_announces_whole_and_in_part(place: Bed) -> None:
    blob, digest = place.fresh(3 * MIB + 1)
    status, body = get(place.upstream.port, blob_path(digest))
    assert (status, digest_of(body)) == (200, digest)
    assert get(place.upstream.port, blob_path(digest), Range=f"bytes={blob.size - 5}-") == (206, body[-5:])
    assert place.counters(digest) == {"gets": 2, "heads": 0, "sent": blob.size + 5}


def test_upstream_serves_the_image_by_tag_and_digest(place: Bed) -> None:
    picture = image()
    for reference in ("latest", picture.digest):
        assert get(place.upstream.port, manifest_path(reference)) == (200, picture.manifest)
    assert get(place.upstream.port, manifest_path("other"))[0] == 404


def test_upstream_keeps_the_pace_of_each_download_by_itself(place: Bed) -> None:
    _, digest = place.fresh(6 * MIB, rate=2 * MIB)
    report, _ = drain(place.upstream, Plan(place.upstream.port, blob_path(digest), connections=3))
    assert report.received == 18 * MIB
    assert 2.7 <= report.elapsed < 8  # nine seconds, if they shared it


def test_clients_start_one_after_another(place: Bed) -> None:
    _, digest = place.fresh(MIB)
    report, _ = drain(place.upstream, Plan(place.upstream.port, blob_path(digest), connections=4, stagger=0.05))
    starts = sorted(transfer.start for transfer in report.transfers)
    assert all(start >= number * 0.05 for number, start in enumerate(starts))
    assert [transfer.received for transfer in report.transfers] == [MIB] * 4
    assert all(transfer.start < transfer.first_byte <= transfer.end for transfer in report.transfers)


def test_body_cut_short_is_an_error_and_not_a_fast_download() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(300))

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(RuntimeError, match="closed with 700 bytes missing"):
            drain_here(Plan(server.getsockname()[1], "/v2/a/blobs/b"))
        thread.join(5)


def test_answer_other_than_200_is_an_error(place: Bed) -> None:
    with pytest.raises(ClientFailed, match="404 Not Found"):
        drain(place.upstream, Plan(place.upstream.port, blob_path("sha256:" + hashlib.sha256(b"none").hexdigest())))


def test_program_that_ends_at_once_says_why(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("program")
    command = ["sh", "-c", "echo no such luck; exit 3"]
    with started("sh", command, folder) as running, pytest.raises(DidNotStart, match="ended with code 3: no such luck"):
        running.wait_for_port(1)


def test_program_that_is_missing_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(DidNotStart, match="is not installed"), started("x", ["/nowhere"], tmp_path_factory.mktemp("x")):
        pass


def test_cost_counts_the_processor_time_of_a_whole_tree(tmp_path_factory: pytest.TempPathFactory) -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); time.sleep(60)"
    command = ["sh", "-c", f'python3 -c "{spin}" & wait']
    folder = tmp_path_factory.mktemp("tree")
    with started("spinner", ["python3", "-c", f"import subprocess; subprocess.run({command!r})"], folder) as running:
        for _ in range(2000):
            if (folder / "log").read_text():
                break
            threading.Event().wait(0.01)
        assert running.cpu_seconds() > 0.25  # the kernel counts in hundredths
        assert running.resident() > 5 * MIB


@pytest.mark.real
@pytest.mark.needs("nginx", "docker-registry")
@pytest.mark.parametrize("kind", [NGINX_CACHE, REGISTRY])
def test_peers_cache_what_they_pull_through(place: Bed, kind: str) -> None:
    blob, digest = place.fresh(MIB)
    with place.server(kind) as server:
        asked = -1
        for _ in range(50):  # docker-registry stores beside serving, and asks again until it has
            before, asked = asked, place.counters(digest)["gets"]
            if before == asked > 0:
                break
            assert digest_of(get(server.port, blob_path(digest))[1]) == blob.digest
        else:
            pytest.fail(f"{kind} asked its upstream {asked} times")
    assert not server.folder.exists()


@pytest.mark.real
@pytest.mark.needs("nginx")
def test_nginx_serves_blobs_and_manifests_from_files(place: Bed) -> None:
    blob = Blob(seed=9, size=MIB)
    with place.server(NGINX_STATIC) as server:
        fill_static(server, image(), [blob])
        assert digest_of(get(server.port, blob_path(blob.digest))[1]) == blob.digest
        assert get(server.port, manifest_path("latest")) == (200, image().manifest)


def test_clients_of_a_fleet_take_turns_between_its_nodes(place: Bed) -> None:
    digest = image().layers[0].digest
    with bed() as other:
        drain(place.upstream, Plan(place.upstream.port, blob_path(digest), 5, others=(other.upstream.port,)))
        assert (place.counters(digest)["gets"], other.counters(digest)["gets"]) == (3, 2)


def test_a_pack_costs_what_its_programs_cost(tmp_path_factory: pytest.TempPathFactory) -> None:
    folders = [tmp_path_factory.mktemp("pack") for _ in range(2)]
    with started("one", ["sleep", "9"], folders[0]) as one, started("other", ["sleep", "9"], folders[1]) as other:
        pack = Pack([one, other])
        # They are looked at one after another, while they still load.
        until(lambda: pack.resident() == one.resident() + other.resident() > max(one.resident(), other.resident()))
