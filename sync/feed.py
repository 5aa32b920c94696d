"""Answering who asks for the changes of this node's catalog. Who may ask is judged before, by whoever mounts this.

A question that finds nothing new waits for the next change (`proxy/store/published.py`).
"""

from __future__ import annotations

import asyncio
import sqlite3

from aiohttp import web

from proxy.store.catalog import Catalog
from proxy.store.copying import read_copy
from proxy.store.errors import StoreError
from proxy.store.exchanged import Page
from proxy.store.feed import read_page
from sync.records import JSON, MOST_COPIED, MOST_RECORDS, MSGPACK, Question, encode


class Patience:
    """Waiting for the next change of a catalog. State: the event that ends all waiting."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Let nobody wait any more."""
        self._ended.set()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    async def wait(self, number: int, seconds: float) -> None:
        """Return once the feed has grown since `number` was taken, after `seconds`, or when all waiting ends."""
        waits = {
            asyncio.ensure_future(self._catalog.published.wait(number, seconds)),
            asyncio.ensure_future(self._ended.wait()),
        }
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


class Changes:
    """A handler for aiohttp."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._patience = Patience(catalog)

    def end(self) -> None:
        """Let nobody wait any more, so that a server can drain: those who do are answered that nothing is new."""
        self._patience.end()

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        try:
            question = Question.parse(request.rel_url.raw_query_string)
        except ValueError as error:
            return web.Response(status=400, text=f"changes: {error}; ask ?since=<epoch>:<seq>&wait=<seconds>\n")
        accepted = JSON if request.headers.get("Accept", "").strip() == JSON else MSGPACK
        try:
            body = await self._answer(question, accepted)
        except StoreError as error:
            return web.Response(status=503, text=f"changes: {error}\n")
        return web.Response(body=body, content_type=accepted)

    async def _answer(self, question: Question, media_type: str) -> bytes:
        loop = asyncio.get_running_loop()
        until = loop.time() + question.wait
        while True:
            number = self._catalog.published.number
            is_news, body = await self._read(question, media_type)
            left = until - loop.time()
            if is_news or left <= 0 or self._patience.ended:
                return body
            await self._patience.wait(number, left)

    async def _read(self, question: Question, media_type: str) -> tuple[bool, bytes]:
        def read(page: Page) -> tuple[bool, bytes]:
            return bool(page.records or page.restart or page.cursors or page.copy is not None), encode(page, media_type)

        def page(connection: sqlite3.Connection) -> Page:
            if question.copy is not None:
                return read_copy(connection, question.epoch, question.seq, question.copy, MOST_COPIED)
            return read_page(connection, question.epoch, question.seq, MOST_RECORDS, cursors=question.cursors)

        return await self._catalog.read(lambda connection: read(page(connection)))
