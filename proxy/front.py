"""Clients to the face, nodes of the fleet and other regions to their endpoints: told apart by path and headers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import web

from proxy.fleet.protocol import REQUEST_HEADER
from proxy.regions.protocol import SYNC, regions_of

_OF_NODES = "/fleet/"
Answerer = Callable[[web.BaseRequest], Coroutine[Any, Any, web.StreamResponse]]


class Front:
    """Answers every request of a listener. What nodes and regions ask meets neither clients' access rules nor limits.

    Nodes ask below /fleet/, and for records with a signature; regions for records without one, and for content in the
    name of a region (`Via`). Where there are no `nodes` or `regions`, such requests are any client's.
    """

    def __init__(self, face: Answerer, nodes: Answerer | None = None, regions: Answerer | None = None) -> None:
        self._face = face
        self._nodes = nodes
        self._regions = regions

    def __call__(self, request: web.BaseRequest) -> Coroutine[Any, Any, web.StreamResponse]:
        path, headers = request.raw_path, request.headers
        if self._nodes is not None and (
            path.startswith(_OF_NODES) or (path.startswith(SYNC) and REQUEST_HEADER in headers)
        ):
            return self._nodes(request)
        if self._regions is not None and (
            path.startswith(SYNC) or ("Via" in headers and regions_of(headers.getall("Via")))
        ):
            return self._regions(request)
        return self._face(request)
