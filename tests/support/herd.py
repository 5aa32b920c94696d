"""Many plain clients in one process: `python -m tests.support.herd URL COUNT STAGGER`.

Each is a thread with a socket; the clients start over STAGGER seconds. Prints one JSON list with, for each
client, when it began and ended (seconds, monotonic), the status, the length and the CRC-32 of the body.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
import zlib
from typing import TypedDict
from urllib.parse import urlsplit

CHUNK = 1 << 18


class Download(TypedDict):
    """What one client got."""

    began: float
    ended: float
    status: int
    length: int
    crc: int


def download(url: str) -> Download:
    """GET `url` and read to the end of the connection."""
    parts = urlsplit(url)
    began = time.monotonic()
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=60) as connection:
        request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        buffer = bytearray(CHUNK)
        head = b""
        while b"\r\n\r\n" not in head and (got := connection.recv(CHUNK)):
            head += got
        head, _, body = head.partition(b"\r\n\r\n")
        length, crc = len(body), zlib.crc32(body)
        while got_bytes := connection.recv_into(buffer):
            length += got_bytes
            crc = zlib.crc32(memoryview(buffer)[:got_bytes], crc)
    return {
        "began": began,
        "ended": time.monotonic(),
        "status": int(head.split(b" ", 2)[1]),
        "length": length,
        "crc": crc,
    }


def main(url: str, count: int, stagger: float) -> None:
    """Run the clients and print what they got."""
    results: list[Download] = []
    lock = threading.Lock()

    def client(number: int) -> None:
        time.sleep(stagger * number / count)
        result = download(url)
        with lock:
            results.append(result)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
