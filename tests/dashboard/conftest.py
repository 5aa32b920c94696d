"""One Chromium and one thread of servers for all that look at the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import chromium
from tests.support.hosting import Hosting


@pytest.fixture(scope="module")
def hosting() -> Iterator[Hosting]:
    with Hosting() as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=20_000)  # for machines that have other things to do
    with chromium() as launched:
        yield launched
