"""The page in Chromium, in every state and width that it is made for: what it says, and that nothing hangs over."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import msgspec
import pytest
from playwright.sync_api import Browser, Page, expect

from entrepot.live import Live
from tests.dashboard import canned
from tests.dashboard.stage import staged
from tests.support.browser import watched
from tests.support.hosting import Hosting

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.slow]

STATES: dict[str, Callable[[], Live]] = {
    "fresh": canned.fresh,
    "busy": canned.busy,
    "troubled": canned.troubled,
    "hostile": canned.hostile,
}


def fits(page: Page) -> bool:
    """Tell whether nothing is wider than the page."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


def hide(page: Page, hidden: str) -> None:
    """Let the page believe that its tab is hidden, or shown again."""
    page.evaluate(
        f"Object.defineProperty(document, 'hidden', {{value: {hidden}, configurable: true}});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )


@pytest.mark.parametrize("width", [360, 820, 1280, 1920])
@pytest.mark.parametrize("state", STATES)
def test_every_state_fits_every_width_without_a_complaint(
    hosting: Hosting, browser: Browser, state: str, width: int
) -> None:
    with staged(hosting, STATES[state]()) as stage, watched(browser, width=width) as seen:
        seen.page.goto(stage.url)
        expect(seen.page.locator("#numbers")).to_be_visible()
        expect(seen.page.locator("#upstreams li").first).to_be_visible()
        assert fits(seen.page)
        assert seen.complaints == []
        assert seen.hosts == {stage.netloc}


@pytest.mark.parametrize("width", [360, 1280])
def test_a_waterfall_fits_and_is_linked_by_its_address(hosting: Hosting, browser: Browser, width: int) -> None:
    with staged(hosting, canned.busy()) as stage, watched(browser, width=width) as seen:
        page = seen.page
        page.goto(f"{stage.url}#pull=p103")
        expect(page.locator("#pull-title")).to_contain_text("grafana:12.1.0")
        expect(page.locator("#pull-bars button")).to_have_count(11)
        assert page.evaluate("(d => d.scrollWidth <= d.clientWidth)(document.getElementById('pull'))")
        page.evaluate("location.hash = '#pull=unknown'")
        expect(page.locator("#pull-note")).to_contain_text("not known any more")
        expect(page.locator("#pull-bars button")).to_have_count(0)
        page.get_by_role("button", name="Close").click()
        expect(page.locator("#pull")).to_be_hidden()
        assert all("404" in complaint for complaint in seen.complaints)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_systems_until_another_is_chosen_and_kept(
    hosting: Hosting, browser: Browser, scheme: Literal["light", "dark"]
) -> None:
    def ground(page: Page) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    grounds = {"light": "rgb(243, 245, 245)", "dark": "rgb(14, 20, 19)"}
    other = "dark" if scheme == "light" else "light"
    with staged(hosting, canned.busy()) as stage, watched(browser, scheme=scheme) as seen:
        page = seen.page
        page.goto(stage.url)
        assert ground(page) == grounds[scheme]
        page.get_by_role("button", name="Dark theme").click()
        assert ground(page) == grounds[other]
        page.reload()
        assert ground(page) == grounds[other]
        expect(page.get_by_role("button", name="Dark theme", pressed=other == "dark")).to_be_visible()
        assert seen.complaints == []


def test_a_degraded_mirror_says_why_in_words(hosting: Hosting, browser: Browser) -> None:
    with staged(hosting, canned.troubled()) as stage, watched(browser) as seen:
        page = seen.page
        page.goto(stage.url)
        expect(page.get_by_role("status")).to_contain_text("Degraded: it serves what it can")
        expect(page.locator("#reasons li")).to_have_count(4)
        expect(page.locator("#quota")).to_have_text("3 of 100 left")
        expect(page.locator("#quota-more")).to_have_text("docker.io · 1 of 3 upstreams fails")
        expect(page.locator("#fills li")).to_have_count(8)
        page.get_by_role("button", name="Show 32 more").click()
        expect(page.locator("#fills li")).to_have_count(40)
        expect(page.locator("#regions")).to_contain_text("312 images and tags to come, 48 GiB, at 11.5 MiB/s")
        expect(page.locator("#workers")).to_contain_text("does not answer")
        expect(page.locator("#fleet-problem")).to_contain_text("works alone, without Redis")
        expect(page.locator("#bucket")).to_contain_text("41 uploads to come")


def test_a_lost_connection_is_said_with_its_time_and_found_again(hosting: Hosting, browser: Browser) -> None:
    with staged(hosting, canned.busy()) as stage, watched(browser) as seen:
        page = seen.page
        page.goto(stage.url)
        expect(page.locator("#state-word")).to_have_text("Ready")
        stage.stop(hosting)
        expect(page.get_by_role("status")).to_contain_text("Connection lost: since ")
        expect(page.locator("#pulls")).to_have_text("1,284")
        stage.live = canned.troubled()
        stage.start(hosting)
        expect(page.locator("#state-word")).to_have_text("Degraded:", timeout=20_000)


def test_a_hidden_tab_asks_for_nothing(hosting: Hosting, browser: Browser) -> None:
    with staged(hosting, canned.busy()) as stage, watched(browser) as seen:
        page = seen.page
        page.goto(stage.url)
        expect(page.locator("#state-word")).to_have_text("Ready")
        hide(page, "true")
        stage.live = msgspec.structs.replace(stage.live, state="draining")
        page.wait_for_timeout(600)
        assert stage.streams == 0
        expect(page.locator("#state-word")).to_have_text("Ready")
        hide(page, "false")
        expect(page.locator("#state-word")).to_have_text("Draining:")
        assert stage.begun == 2


def test_charts_go_as_far_back_as_asked_and_tell_their_values_by_arrow_keys(hosting: Hosting, browser: Browser) -> None:
    with staged(hosting, canned.busy()) as stage, watched(browser) as seen:
        page = seen.page
        page.goto(stage.url)
        chart = page.get_by_role("img", name="Pull time, newest")
        expect(chart).to_be_visible()
        for words, window in (("6 h", "6h"), ("24 h", "24h"), ("15 min", "1h")):
            with page.expect_request(f"**/api/history?window={window}"):
                page.get_by_text(words, exact=True).click()
        chart.focus()
        page.keyboard.press("ArrowLeft")
        expect(page.get_by_role("img", name="Pull time, at ")).to_be_visible()
        expect(page.locator(".chart .at").first).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))
        assert seen.complaints == []


def test_a_focused_row_keeps_its_focus_while_new_pulls_come(hosting: Hosting, browser: Browser) -> None:
    with staged(hosting, canned.busy()) as stage, watched(browser) as seen:
        page = seen.page
        page.goto(stage.url)
        page.locator("#recent a").nth(2).focus()
        newest = msgspec.structs.replace(canned.summary(999, "docker.io/library/newest:1", 0.4), started_at=canned.NOW)
        pulls = stage.live.pulls
        stage.live = msgspec.structs.replace(
            stage.live, pulls=msgspec.structs.replace(pulls, recent=(newest, *pulls.recent))
        )
        expect(page.locator("#recent tbody tr").first).to_contain_text("newest:1")
        expect(page.locator("#recent a").nth(3)).to_be_focused()


def test_a_row_that_is_moved_or_follows_one_that_goes_keeps_its_focus(hosting: Hosting, browser: Browser) -> None:
    with staged(hosting, canned.busy()) as stage, watched(browser) as seen:
        page, pulls = seen.page, stage.live.pulls
        page.goto(stage.url)
        image = page.locator("#running-pulls a").nth(1)
        image.focus()
        name = image.get_attribute("aria-label")
        for running in (pulls.running[::-1], pulls.running[1:]):
            stage.live = msgspec.structs.replace(stage.live, pulls=msgspec.structs.replace(pulls, running=running))
            expect(page.locator("#running-pulls a").first).to_have_attribute("aria-label", name or "")
            expect(page.locator("#running-pulls a").first).to_be_focused()


def test_what_is_told_twice_adds_nothing_to_the_page(hosting: Hosting, browser: Browser) -> None:
    live = canned.busy()
    twice = msgspec.structs.replace(live, fills=live.fills[:1] * 2)
    with staged(hosting, twice) as stage, watched(browser) as seen:
        seen.page.goto(stage.url)
        expect(seen.page.locator("#fills li")).to_have_count(2)
        for sent in ("9 MiB", "10 MiB", "11 MiB"):
            fills = tuple(
                msgspec.structs.replace(one, received=int(sent.split()[0]) * canned.MIB) for one in twice.fills
            )
            stage.live = msgspec.structs.replace(twice, fills=fills)
            expect(seen.page.locator("#fills li").last).to_contain_text(sent)
            expect(seen.page.locator("#fills li")).to_have_count(2)


def test_a_pull_that_asks_for_nothing_more_is_not_listed_as_running(hosting: Hosting, browser: Browser) -> None:
    live = canned.busy()
    first, second = live.pulls.running
    quiet = msgspec.structs.replace(second, started_at=second.started_at - 3)
    asking = msgspec.structs.replace(first, id="p300", layers=0, had=0, sent=2000)
    pulls = msgspec.structs.replace(live.pulls, running=(first, quiet, asking), more_running=7)
    with staged(hosting, msgspec.structs.replace(live, pulls=pulls)) as stage, watched(browser) as seen:
        seen.page.goto(stage.url)
        expect(seen.page.locator("#running-pulls li")).to_have_count(1)
        expect(seen.page.locator("#running-pulls-count")).to_have_text("1")
        expect(seen.page.locator("#running-asking")).to_have_text(
            "1 client asked for a manifest just now, and for no layer yet. "
            "1 pull pauses: done if nothing more is asked for. 7 pulls that began before are not told of."
        )
        expect(seen.page.locator("#pulls-more")).to_have_text(
            "1+ running · 9,400 ever · 583 unchanged · 17 broken · clients had 41 % of layers"
        )


def test_recent_pulls_are_in_the_order_of_the_times_that_are_shown(hosting: Hosting, browser: Browser) -> None:
    with staged(hosting, canned.busy()) as stage, watched(browser) as seen:
        seen.page.goto(stage.url)
        expect(seen.page.locator("#recent time").first).to_be_visible()
        times = seen.page.locator("#recent time").evaluate_all("all => all.map((one) => one.dateTime)")
        assert times == sorted(times, reverse=True)
        assert len(set(times)) > 2


def test_a_mirror_without_a_token_asks_for_none_and_is_found_when_it_opens(hosting: Hosting, browser: Browser) -> None:
    with staged(hosting, canned.busy()) as stage, watched(browser) as seen:
        stage.refuse = 403
        page = seen.page
        page.goto(stage.url)
        expect(page.locator("#token-why")).to_contain_text("only on the mirror's own machine")
        expect(page.locator("#token-form")).to_be_hidden()
        stage.refuse = 0
        expect(page.locator("#pulls")).to_have_text("1,284")
        expect(page.locator("#token")).to_be_hidden()


def test_who_finds_no_place_is_told_why_and_asks_again(hosting: Hosting, browser: Browser) -> None:
    with staged(hosting, canned.busy()) as stage, watched(browser) as seen:
        stage.refuse = 429
        seen.page.goto(stage.url)
        expect(seen.page.get_by_role("status")).to_contain_text("No numbers yet: /api answers")
        stage.refuse = 0
        expect(seen.page.locator("#state-word")).to_have_text("Ready")


def test_points_that_did_not_come_are_asked_for_again(hosting: Hosting, browser: Browser) -> None:
    with staged(hosting, canned.busy()) as stage, watched(browser) as seen:
        page = seen.page
        page.clock.install()
        page.goto(stage.url)
        expect(page.locator("#state-word")).to_have_text("Ready")
        page.route("**/api/history?window=24h", lambda route: route.abort())
        with page.expect_event("requestfailed"):
            page.get_by_text("24 h", exact=True).click()
        page.unroute("**/api/history?window=24h")
        with page.expect_response("**/api/history?window=24h"):
            page.clock.fast_forward(6000)


def test_an_upgraded_mirror_brings_its_own_page(hosting: Hosting, browser: Browser) -> None:
    with staged(hosting, canned.busy()) as stage, watched(browser) as seen:
        page = seen.page
        page.goto(stage.url)
        expect(page.locator("#state-word")).to_have_text("Ready")
        with page.expect_navigation():
            stage.live = msgspec.structs.replace(stage.live, version="9.9.9")
        expect(page.locator("#about")).to_contain_text("9.9.9")


def test_an_open_waterfall_goes_on_with_its_pull_until_that_ends(hosting: Hosting, browser: Browser) -> None:
    with staged(hosting, canned.busy()) as stage, watched(browser) as seen:
        page, facts = seen.page, seen.page.locator("#pull-facts")
        page.goto(f"{stage.url}#pull=p200")
        expect(facts).to_contain_text("2.7 s so far")
        pulls = stage.live.pulls
        ended = msgspec.structs.replace(pulls.running[0], state="done", seconds=4.5)
        stage.live = msgspec.structs.replace(
            stage.live,
            pulls=msgspec.structs.replace(pulls, running=pulls.running[1:], recent=(ended, *pulls.recent)),
        )
        expect(facts).to_contain_text("4.5 s")
        expect(facts).not_to_contain_text("so far")
        page.locator("#pull-bars button").nth(4).hover()
        expect(page.locator("#pull-detail")).to_contain_text(canned.digest(1))
