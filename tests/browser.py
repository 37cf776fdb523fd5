"""Fixtures for tests in a real browser: a headless Chromium, and folders served on localhost.

A test file names this plugin and uses its fixtures; where there is no Chromium its tests are
skipped, and the reason says what to install:

    pytest_plugins = ["browser"]

    def test_the_title(browser, serve):
        page = browser.new_page()
        page.goto(serve(folder) + "/index.html")
        assert page.title() == "..."
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from headless import NoBrowser, chromium, serving


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Playwright's Browser, one for all tests of a file."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(chromium())
        except NoBrowser as reason:
            pytest.skip(str(reason))
        yield running


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """A function that serves a folder until the test ends, and returns its address."""
    with ExitStack() as stack:
        yield lambda folder: stack.enter_context(serving(folder))
