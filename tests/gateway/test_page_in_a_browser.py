"""The reference page as a reader has it: on a desk and on a phone, in light and dark, by keyboard."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chromium import PROGRAM, Browser, browsing
from gateway_app import answering, serving_scripted

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no chromium; .ci/run installs it")

SIZES = [(1280, 900), (768, 1024), (390, 844), (320, 568)]
TOO_SMALL = """
[...document.querySelectorAll('main p, main td')].filter(e => parseFloat(getComputedStyle(e).fontSize) < 13).length
"""
CONTRAST = """
(() => {
  const channel = value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = text => {
    const [r, g, b] = text.match(/\\d+/g).map(Number).map(channel);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = ink => (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  const texts = document.querySelectorAll('p, td, th, a, h1, h2, h3, span, code');
  const inks = [...texts].map(e => getComputedStyle(e).color);
  return Math.min(...[...new Set(inks)].map(light).map(ratio));
})()
"""


async def seen(home: Path, look: Callable[[Browser, str], Any]) -> Any:
    """What `look` gives, of a browser and the address of a service."""
    async with serving_scripted(home, answering("Hi")) as gateway:

        def looking() -> Any:
            with browsing() as browser:
                return look(browser, gateway.url)

        return await asyncio.to_thread(looking)


async def test_it_fits_every_width_in_either_scheme_and_asks_for_nothing_else(tmp_path: Path) -> None:
    def look(browser: Browser, url: str) -> None:
        papers = set()
        for scheme in ("light", "dark"):
            browser.scheme(scheme)
            for width, height in SIZES:
                browser.size(width, height)
                browser.open(f"{url}/docs")
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                assert browser.evaluate(TOO_SMALL) == 0
                assert browser.evaluate(CONTRAST) >= 4.5  # WCAG 2.2, AA
            papers.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(papers) == 2
        assert set(browser.requested) == {f"{url}/docs"}
        assert browser.complaints == []

    await seen(tmp_path, look)


async def test_it_is_read_by_keyboard(tmp_path: Path) -> None:
    def look(browser: Browser, url: str) -> None:
        browser.size(1280, 900)
        browser.open(f"{url}/docs")
        browser.press("Tab")
        assert browser.evaluate("document.activeElement.textContent") == "Skip to the routes"
        assert browser.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
        for _ in range(6):
            browser.press("Tab")
            assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        hidden = "[...document.querySelectorAll('pre, .scroll')].filter(e => e.tabIndex !== 0).length"
        assert browser.evaluate(hidden) == 0

    await seen(tmp_path, look)


async def test_a_link_to_a_shape_goes_to_it(tmp_path: Path) -> None:
    def look(browser: Browser, url: str) -> None:
        browser.size(390, 844)
        browser.open(f"{url}/docs")
        browser.evaluate("document.querySelector('a[href=\"#shape-chat.Tool\"]').click()")
        assert browser.evaluate("document.querySelector(':target h3').textContent") == "chat.Tool"

    await seen(tmp_path, look)
