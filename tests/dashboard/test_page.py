"""The page in Chromium: a real pull through a real mirror, hostile names on a phone, the token form."""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from proxy.oci.digest import Digest
from tests.dashboard import canned
from tests.dashboard.stage import staged
from tests.support.browser import watched
from tests.support.contents import Image, blob, make_image
from tests.support.fake_upstream import FakeUpstream
from tests.support.hosting import Hosting
from tests.support.mirror import Mirror

pytestmark = pytest.mark.needs("chromium")

SOON = 6000
"""Milliseconds: three times the 2 s in which a pull is to be seen, for machines that are three times slower."""


@contextlib.contextmanager
def mirror_of(hosting: Hosting, image: Image, folder: Path) -> Iterator[Mirror]:
    """Run a mirror, a process of its own, over a registry that has `image` as library/app:1."""
    upstream = FakeUpstream()
    hosting.call(upstream.__aenter__())
    try:
        image.publish(upstream, "library/app", "1")
        with Mirror(folder, {"docker.io": upstream.url}) as mirror:
            yield mirror
    finally:
        hosting.call(upstream.__aexit__(None, None, None))


def pull(mirror: Mirror, image: Image) -> None:
    """Pull library/app:1 as docker does: the manifest by its tag, then the blobs."""
    for path in ("manifests/1", *(f"blobs/{descriptor}" for descriptor in digests(image))):
        headers = {"User-Agent": "docker/27.3.1 go/go1.22", "Accept": image.media_type}
        request = urllib.request.Request(f"{mirror.url}/v2/library/app/{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()


def digests(image: Image) -> list[str]:
    """Return the digests of config and layers."""
    return [str(Digest.of(data)) for data in image.blobs]


def tab_to(page: Page, selector: str) -> None:
    """Go on by the Tab key until what `selector` names has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"no way to {selector} by the keyboard")


def test_a_pull_is_shown_as_it_ends_and_its_waterfall_opens_by_keyboard_alone(
    hosting: Hosting, browser: Browser, tmp_path: Path
) -> None:
    image = make_image([blob(40_000, 1), blob(60_000, 2)])
    with mirror_of(hosting, image, tmp_path) as mirror, watched(browser) as seen:
        page = seen.page
        page.goto(f"{mirror.admin}/dashboard")
        expect(page.locator("#welcome-pull")).to_have_text(f"docker pull {urlsplit(mirror.url).netloc}/library/alpine")
        expect(page.locator("#state-word")).to_have_text("Ready")

        pull(mirror, image)
        row = page.locator("#recent tbody tr")
        expect(row).to_have_count(1, timeout=SOON)
        expect(row).to_contain_text("docker.io/library/app:1")
        expect(row).to_contain_text("miss")
        expect(row).to_contain_text("docker")
        expect(page.locator("#welcome")).to_be_hidden()
        expect(page.locator("#pulls")).to_have_text("1")

        tab_to(page, "#recent a")
        page.keyboard.press("Enter")
        dialog, bars = page.locator("dialog#pull"), page.locator("#pull-bars button")
        expect(dialog).to_be_visible()
        expect(bars).to_have_count(4)
        assert [text.split()[0] for text in bars.all_inner_texts()] == ["manifest", "config", "layer", "layer"]
        assert "#pull=" in page.url
        tab_to(page, "#pull-bars button")
        page.keyboard.press("ArrowDown")
        expect(bars.nth(1)).to_be_focused()
        expect(page.locator("#pull-detail")).to_contain_text(digests(image)[0])
        assert "upstream" in (bars.nth(1).get_attribute("aria-label") or "")
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        expect(page.locator("#recent a")).to_be_focused()
        assert "#" not in page.url

        assert seen.complaints == []
        assert seen.hosts == {urlsplit(mirror.admin).netloc}


def test_names_that_clients_made_up_stay_text_and_fit_a_phone(hosting: Hosting, browser: Browser) -> None:
    with staged(hosting, canned.hostile()) as stage, watched(browser, width=360, height=740) as seen:
        page = seen.page
        page.goto(stage.url)
        expect(page.locator("#recent tbody tr")).to_have_count(len(canned.HOSTILE))
        assert page.locator("main script, main img").count() == 0
        assert "taken" not in page.title()
        shown = page.locator("#recent tbody").inner_text()
        assert "<img src=x onerror=alert(1)>" in shown
        assert "\\u202egnp.exe\\u202c" in shown
        assert "\u202e" not in page.locator("body").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert seen.complaints == []
        assert seen.hosts == {stage.netloc}


READ = """async () => {
  const as = await import('./format.js');
  const { binned } = await import('./bins.js');
  const point = (time, more) => ({ time, requests: 0, errors: 0, sent: 0, received: 0, hit_ratio: null,
    byte_hit_ratio: null, pulls: 0, pull_p50: null, pull_p90: null, pull_p99: null, ...more });
  const spaced = (text) => text.replace('\\u00a0', ' ');  // no line ends between a number and its unit
  const midnight = new Date(2026, 10, 21).getTime() / 1000;
  const hour = Array.from({ length: 720 }, (_, index) => point(5 * (index + 1), { requests: index % 2 ? 3 : 1 }));
  const bytes = [point(5, { sent: 100, received: 10, byte_hit_ratio: 0.9 }), point(10, {}), point(60, { sent: 1 })];
  return {
    durations: [null, 0, 0.0004, 0.0124, 0.9999, 3.42, 59.6, 125, 7300, 260000].map(as.duration).map(spaced),
    sizes: [null, 0, 999, 1023, 1048576, 1288490189, 6e15].map(as.bytes).map(spaced),
    shares: [null, 0, 0.0002, 0.412, 0.9719, 0.99999, 1].map(as.percent).map(spaced),
    decimals: [null, 0, 0.0001, 0.004, 0.15, 0.25, 0.75, 2.5, 3.456, 12.6, 4000].map(as.decimal),
    times: [5, 3600].map((ago) => as.when(midnight + 30 - ago, midnight + 60)),
    joined: [binned(hour, 5, 3600, 3600).times.length, [...new Set(binned(hour, 5, 3600, 3600).requests)]],
    alone: binned(bytes, 5, 900, 60),
  };
}"""


def test_numbers_carry_their_units_and_points_are_joined_to_what_a_chart_can_show(
    hosting: Hosting, browser: Browser
) -> None:
    with staged(hosting, canned.fresh()) as stage, watched(browser) as seen:
        seen.page.goto(f"{stage.url}favicon.svg")  # a document that imports them, and asks for nothing else
        read = seen.page.evaluate(READ)
        assert read["durations"] == ["–", "0 ms", "< 1 ms", "12 ms", "1 s", "3.4 s", "60 s", "2 min", "2 h", "3 days"]
        assert read["sizes"] == ["–", "0 bytes", "999 bytes", "1 KiB", "1 MiB", "1.2 GiB", "5.33 PiB"]
        assert read["shares"] == ["–", "0 %", "< 0.1 %", "41 %", "97.2 %", "> 99.9 %", "100 %"]
        assert read["decimals"] == [
            *("–", "0", "< 0.001", "0.004", "0.15", "0.25", "0.75", "2.5", "3.46", "13", "4,000")
        ]
        assert read["times"] == ["00:00:25", "11-20 23:00"]
        assert read["joined"] == [180, [2]]
        alone = read["alone"]
        assert alone["times"] == [5, 10, 15, 60]  # nobody counted from 15 on: the lines end there
        assert alone["sent"] == [100, 0, None, 1]
        assert alone["byte_hit_ratio"][0] == 0.9


@pytest.mark.slow
def test_who_is_elsewhere_is_asked_for_the_token_which_only_the_tab_keeps(hosting: Hosting, browser: Browser) -> None:
    with staged(hosting, canned.busy()) as stage, watched(browser) as seen:
        stage.token = "correct hörse"
        page = seen.page
        page.goto(stage.url)
        field = page.get_by_label("Admin token")
        expect(field).to_be_focused()
        expect(page.locator("#numbers")).to_be_hidden()
        field.fill("wrong")
        field.press("Enter")
        expect(page.locator("#token-why")).to_contain_text("does not open")
        field.fill("correct hörse")
        field.press("Enter")
        expect(page.locator("#pulls")).to_have_text("1,284")
        expect(field).to_be_hidden()
        page.reload()
        expect(page.locator("#pulls")).to_have_text("1,284")
        assert page.evaluate("[document.cookie, localStorage.length]") == ["", 0]
        assert "correct" not in page.url
        assert all("401" in complaint for complaint in seen.complaints)
