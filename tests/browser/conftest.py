"""A real browser for the pages that the project writes; without one these tests are skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Tab:
    """One page, opened from a file; the errors on its console are kept."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.page = browser.new_page(viewport={"width": 1500, "height": 900}, **options)
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _note(self, message: Any) -> None:
        if message.type == "error":
            self.messages.append(message.text)

    def open(self, path: Path, shown: str = "true") -> None:
        """Open a file and wait until this expression holds."""
        self.page.goto(path.as_uri())
        self.page.wait_for_function(shown, timeout=30_000)

    def __call__(self, expression: str) -> Any:
        """What an expression of JavaScript gives in the page."""
        return self.page.evaluate(expression)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")
    found = os.environ.get("TERSOR_BROWSER") or next(filter(None, map(shutil.which, PROGRAMS)), None)
    if not found:
        pytest.skip(f"no browser: none of {', '.join(PROGRAMS)} is on the path (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Tab]:
    opened = Tab(browser)
    yield opened
    opened.page.close()
    assert opened.messages == [], "the page complains"
    assert all(url.startswith("file:") for url in opened.requests), "the page wants something from elsewhere"
