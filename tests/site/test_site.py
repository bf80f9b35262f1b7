"""The built site as a browser shows it. `make site` builds it, and `make proof` runs this where there is a Chromium."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build" / "site"
PAGES = sorted(path.relative_to(BUILT).as_posix() for path in BUILT.rglob("*.html") if "_static" not in path.parts)
RULES = ["color-contrast", "image-alt", "heading-order", "label", "link-name", "button-name", "html-has-lang"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PAGES, reason="there is no site: run make site"),
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing per request."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=BUILT)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def visit(browser, url: str, width: int = 1280, scheme: str = "light"):
    """Open a page; return it with what went wrong: console errors, and requests that failed or left the machine."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("response", lambda answer: wrong.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    page.on(
        "request",
        lambda request: None if request.url.startswith((url[:17], "data:", "blob:")) else wrong.append(request.url),
    )
    page.goto(url, wait_until="load")
    return page, wrong


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_whole_and_fits_a_phone(browser, address, path):
    page, wrong = visit(browser, f"{address}/{path}", width=390)
    broken = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
    bare = page.evaluate("[...document.images].filter(i => !i.hasAttribute('alt')).map(i => i.src)")
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    page.close()
    assert (wrong, broken, bare, wide) == ([], [], [], 0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["index.html", "chapters/01_concept.html", "docs/grading.html"])
def test_a_page_can_be_read_by_everyone(browser, address, path, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page, _ = visit(browser, f"{address}/{path}", scheme=scheme)
    found = axe.Axe().run(page, context=".bd-article", options={"runOnly": RULES}).response["violations"]
    page.close()
    assert [(one["id"], [node["target"] for node in one["nodes"]][:5]) for one in found] == []


def test_the_search_finds_a_word_of_a_chapter(browser, address):
    page, _ = visit(browser, f"{address}/search.html?q=perplexity")
    page.wait_for_selector("#search-results li", timeout=20_000)
    assert page.locator("#search-results li a").count() >= 5
    page.close()
