"""The pictures in docs/ of the page at work: `python -m tests.support.screenshots [MINUTES]` takes them of a demo.

The demo runs so many minutes before, so that the charts have something to show.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Browser

from tests.support.browser import chromium, watched
from tests.support.processes import Program

DOCS = Path(__file__).parents[2] / "docs"
MINUTES = 8.0
_WIDTH, _HEIGHT = 1280, 1020
_PICTURES: tuple[tuple[Literal["light", "dark"], str], ...] = (
    ("light", "dashboard.png"),
    ("dark", "dashboard-dark.png"),
)


def main(minutes: float) -> None:
    """Run a demo and take the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "entrepot", "demo", "--port", "0", "--admin-port", "0"]
        with Program(argv, Path(folder) / "log") as demo:
            url = demo.wait_line("dashboard: ").split()[-1]
            demo.wait_line("Ctrl-C")
            time.sleep(minutes * 60)
            take(url)


def take(url: str) -> None:
    """Take the pictures of the page at a URL."""
    with chromium() as browser:
        for scheme, name in _PICTURES:
            _page(browser, url, scheme, DOCS / name)
        _waterfall(browser, url, DOCS / "waterfall.png")


def _page(browser: Browser, url: str, scheme: Literal["light", "dark"], path: Path) -> None:
    with watched(browser, width=_WIDTH, height=_HEIGHT, scheme=scheme) as seen:
        seen.page.goto(url)
        seen.page.locator('a[href^="#pull="]').first.wait_for()
        seen.page.get_by_text("15 min", exact=True).click()
        seen.page.locator(".uplot").first.wait_for()
        seen.page.wait_for_timeout(1500)  # what was drawn first has settled, and the next document has come
        seen.page.locator("#running-pulls li").first.wait_for()
        seen.page.screenshot(path=path)


def _waterfall(browser: Browser, url: str, path: Path) -> None:
    with urllib.request.urlopen(url.replace("dashboard/", "api/pulls"), timeout=30) as answer:
        pulls: list[dict[str, Any]] = json.load(answer)["slowest"]
    most = max((pull for pull in pulls if pull["outcome"] == "miss"), key=lambda pull: pull["layers"] - pull["had"])
    with watched(browser, width=_WIDTH, height=_HEIGHT) as seen:
        seen.page.goto(f"{url}#pull={most['id']}")
        dialog = seen.page.locator("dialog#pull")
        dialog.locator("#pull-bars li").first.wait_for()
        dialog.screenshot(path=path)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES)
