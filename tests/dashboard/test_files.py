"""What the page's files show without a browser: nothing inline, nothing from elsewhere, colours that can be read."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

WEB = files("entrepot") / "web"
OURS = sorted(one.name for one in WEB.iterdir() if one.is_file())
SCRIPTS = [name for name in OURS if name.endswith(".js")]


class _Elements(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def _elements() -> list[tuple[str, dict[str, str | None]]]:
    parser = _Elements()
    parser.feed((WEB / "index.html").read_text())
    return parser.found


def test_nothing_in_the_page_is_inline_or_from_elsewhere() -> None:
    for tag, attributes in _elements():
        assert "style" not in attributes
        assert tag != "style"
        assert tag != "script" or attributes.get("src")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert "//" not in (attributes.get(name) or "")


def test_every_id_is_there_once_and_what_scripts_ask_for_is_there() -> None:
    ids = [attributes["id"] for _, attributes in _elements() if "id" in attributes]
    assert len(ids) == len(set(ids))
    asked = {name for script in SCRIPTS for name in re.findall(r'byId\("([^"]+)"\)', (WEB / script).read_text())}
    assert asked <= set(ids)
    assert len(asked) > 30


@pytest.mark.parametrize("name", SCRIPTS)
def test_data_never_becomes_markup_or_code(name: str) -> None:
    text = (WEB / name).read_text()
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser", text
    )
    assert len(text.splitlines()) < 300
    for imported in re.findall(r'from "\./([^"]+)"', text):
        assert imported in OURS


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _themes() -> list[dict[str, str]]:
    css = (WEB / "dashboard.css").read_text()
    blocks = re.findall(r":root[^{]*\{\s*color-scheme:[^}]*\}", css)
    return [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block)) for block in blocks]


def test_both_ways_to_dark_are_the_same() -> None:
    light, preferred, chosen = _themes()
    assert preferred == chosen
    assert light.keys() == chosen.keys()


@pytest.mark.parametrize("theme", [0, 2], ids=["light", "dark"])
def test_text_has_the_contrast_that_wcag_aa_asks_for(theme: int) -> None:
    colours = _themes()[theme]
    for ink in ("text", "quiet", "accent", "good", "warn", "bad"):
        for ground in ("page", "panel"):
            assert _contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for ink, ground in (("on-accent", "accent"), ("text", "sunk"), ("quiet", "sunk"), ("text", "warn-wash")):
        assert _contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for graphic in ("accent", "second", "faint", "outside", "wait", "bad"):  # 1.4.11: what is drawn, 3 to 1
        assert _contrast(colours[graphic], colours["panel"]) >= 3, graphic
