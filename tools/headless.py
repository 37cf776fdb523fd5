"""A headless Chromium and a folder served on localhost, to see what a reader's browser shows.

Chromium is the system's (Debian: `apt install chromium`); Playwright drives it and downloads nothing.
The browser reaches no host but 127.0.0.1.

    with serving(folder) as address, chromium() as browser:
        page = browser.new_page()
        page.goto(f"{address}/index.html")
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT = 60_000  # ms: what one step may take on a busy machine with two cores
FLAGS = (
    "--no-sandbox",  # it would not start as root
    "--disable-dev-shm-usage",  # which is small in containers
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class NoBrowser(Exception):
    """There is no Chromium, or no Playwright to drive it: the message says what to do."""


def find_chromium(path: str | Path | None = None) -> str:
    """The Chromium to use: the one given, that of ERSM_CHROMIUM, or the first one on PATH.

    Raises:
        NoBrowser: there is none.
    """
    given = path or os.environ.get("ERSM_CHROMIUM")
    found = [shutil.which(name) for name in ([given] if given else NAMES)]
    program = next(filter(None, found), None)
    if program is None:
        reason = f"{given} is no program" if given else f"none of {', '.join(NAMES)} is on PATH"
        raise NoBrowser(
            f"No Chromium: {reason}. On Debian: apt install chromium; elsewhere install Chromium "
            "or Chrome, and name it in the environment variable ERSM_CHROMIUM."
        )
    return program


@contextmanager
def chromium(path: str | Path | None = None) -> Iterator[Browser]:
    """A running headless Chromium, which is closed at the end.

    Args:
        path: the program; if None, what find_chromium finds.

    Raises:
        NoBrowser: there is no Chromium, or Playwright is not installed.
    """
    program = find_chromium(path)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise NoBrowser("No Playwright: python -m pip install playwright") from error
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=list(FLAGS), timeout=TIMEOUT
        )
        try:
            yield browser
        finally:
            browser.close()


class Handler(SimpleHTTPRequestHandler):
    """Serves files with the types that browsers insist on, and says nothing."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".woff": "font/woff",
        ".woff2": "font/woff2",
    }

    def __init__(self, *args: object, under: str = "", **settings: object) -> None:
        self.under = under  # the base class answers the request while it is made
        super().__init__(*args, **settings)

    def translate_path(self, path: str) -> str:
        if not path.startswith(f"{self.under}/"):
            return str(Path(self.directory) / "not-served")
        return super().translate_path(path.removeprefix(self.under))

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path, *, under: str = "") -> Iterator[str]:
    """Serve a folder on a free port of localhost.

    Args:
        folder: what is served.
        under: the path it is found under, such as "/ersm-book": pages of a project lie so.

    Yields:
        The address without a slash at its end, such as http://127.0.0.1:40321/ersm-book.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there: build it before it can be served")
    handler = partial(Handler, directory=str(folder), under=under)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}{under}"
        finally:
            server.shutdown()
            thread.join()
