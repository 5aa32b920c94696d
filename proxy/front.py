"""Clients to the face, nodes of the fleet to the endpoint: told apart by how the path begins."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import web

_OF_NODES = ("/fleet/", "/sync/")
Answerer = Callable[[web.BaseRequest], Coroutine[Any, Any, web.StreamResponse]]


class Front:
    """Answers every request of a listener. What nodes ask meets neither the clients' access rules nor their limits."""

    def __init__(self, face: Answerer, endpoint: Answerer) -> None:
        self._face = face
        self._endpoint = endpoint

    def __call__(self, request: web.BaseRequest) -> Coroutine[Any, Any, web.StreamResponse]:
        if request.raw_path.startswith(_OF_NODES):
            return self._endpoint(request)
        return self._face(request)
