"""Use the live figures as a reader does: in a running JupyterLab, in a headless Chromium.

For each notebook with a live figure (`live.Live`, ersm_lab/views/live.py), the cells up to it are run at
smoke scale. Then the controls must be there, and the still form must not. Each control is moved: a
slider by a key, a choice by its menu, a file by the browser's chooser (an image drawn here); a button is
pressed. Each time the figure must change, and no error may stand above it.

    python -m pip install -e '.[live]'     # JupyterLab
    python tools/try_live.py [NOTEBOOK ...]

The exit status is 77 if there is no Chromium or no JupyterLab.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import numpy as np
from execute_notebooks import book_notebooks
from headless import NoBrowser, chromium
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "_build" / "live"
SKIPPED = 77
PATIENCE = 300_000  # ms for all cells of a notebook at smoke scale
TO_DRAW = 60_000  # ms for a figure to follow its control
MARK = "live.Live("


def prepared(source: Path, target: Path) -> int:
    """Write a notebook without outputs whose last cell is the last one with a live figure.

    Returns:
        How many live figures it has.
    """
    notebook = nbformat.read(source, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = [number for number, cell in enumerate(code) if MARK in cell.source]
    if not found:
        return 0
    notebook.cells = code[: found[-1] + 1]
    for cell in notebook.cells:
        cell.outputs, cell.execution_count = [], None
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    return len(found)


@contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """A running JupyterLab on a folder; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += [f"--ServerApp.root_dir={folder}", "--IdentityProvider.token=", "--ip=127.0.0.1"]
    command += ["--expose-app-in-browser"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    # All cells stay in the page, also those that are out of sight.
    place = folder / ".jupyter/lab/user-settings/@jupyterlab/notebook-extension"
    place.mkdir(parents=True)
    (place / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    settings = {"ERSM_SCALE": "smoke", "JUPYTER_PREFER_ENV_PATH": "1", "HOME": str(folder)}
    environment = os.environ | settings
    with (folder / "jupyterlab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{address}/api", timeout=5)
                    break
                except OSError:
                    if server.poll() is not None:
                        sys.exit((folder / "jupyterlab.log").read_text())
                    time.sleep(0.25)
            yield address
        finally:
            server.terminate()
            server.wait(30)


IDLE = """() => window.jupyterapp.shell.currentWidget.content.widgets.every(
  cell => cell.model.type !== "code" || cell.model.executionCount)"""
RUN = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"
READY = """() => {
  const panel = window.jupyterapp?.shell.currentWidget;
  return panel?.sessionContext?.session?.kernel?.status === "idle";
}"""


SHOWN = """figure => {
  const picture = figure.querySelector("img");
  return picture.complete && picture.naturalWidth > 0 && !figure.innerText.includes("computing");
}"""


def source(figure: Locator) -> str:
    return figure.locator("img").first.get_attribute("src") or ""


def wait_for_another(page: Page, figure: Locator, before: str, what: str) -> list[str]:
    """Problems with a figure that should become another than `before`."""
    end = time.monotonic() + TO_DRAW / 1000
    while time.monotonic() < end:
        notice = figure.locator("[role=alert]")
        if notice.count():
            return [f"{what}: {notice.first.inner_text()}"]
        if source(figure) != before and figure.evaluate(SHOWN):
            return []
        page.wait_for_timeout(200)
    return [f"{what}: the figure stays as it was"]


def own_image(folder: Path) -> Path:
    """A picture of our own: a disc on a gradient."""
    y, x = np.mgrid[:90, :120]
    pixels = np.stack([2 * y, x, 255 - x], -1).astype(np.uint8)
    pixels[(y - 45) ** 2 + (x - 60) ** 2 < 900] = (250, 220, 40)
    path = folder / "own.png"
    Image.fromarray(pixels).save(path)
    return path


def choose(page: Page, upload: Locator) -> None:
    """Choose an image of our own in the browser's chooser."""
    with page.expect_file_chooser() as chooser:
        upload.click()
    chooser.value.set_files(own_image(PLACE))


def use(page: Page, figure: Locator) -> list[str]:
    """Problems with the controls of one live figure: each is moved once."""
    found = []
    button = figure.locator("button.jupyter-button:not(.widget-upload)")

    def after(move, what):
        before = source(figure)
        move()
        if button.count():
            button.first.click()
        found.extend(wait_for_another(page, figure, before, what))

    for number in range(figure.locator(".noUi-handle").count()):
        handle = figure.locator(".noUi-handle").nth(number)
        after(lambda h=handle: (h.focus(), [h.press("ArrowRight") for _ in range(3)]), "a slider")
    for number in range(figure.locator("select").count()):
        menu = figure.locator("select").nth(number)
        after(lambda m=menu: m.select_option(index=1), "a menu")
    uploads = figure.locator("button.widget-upload")
    for number in range(uploads.count()):
        after(partial(choose, page, uploads.nth(number)), "an own image")
    if not found and not figure.locator(".noUi-handle, select, button").count():
        found.append("a live figure has no control")
    return found


def try_notebook(page: Page, address: str, name: str, count: int) -> list[str]:
    """Problems of one notebook in JupyterLab."""
    page.goto(f"{address}/lab/tree/notebooks/{name}?reset")
    page.wait_for_function(READY, timeout=PATIENCE)
    page.evaluate(RUN)
    page.wait_for_function(IDLE, timeout=PATIENCE)
    page.wait_for_function(READY, timeout=PATIENCE)
    outputs = page.locator(".jp-OutputArea-output:has(.jupyter-widgets img)")
    try:
        outputs.first.wait_for(timeout=TO_DRAW)
    except Exception as error:
        return [f"no controls appear: {str(error).splitlines()[0]}"]
    page.wait_for_timeout(1000)
    found = []
    if outputs.count() != count:
        found.append(f"{outputs.count()} live figures are shown, {count} were expected")
    for number in range(outputs.count()):
        area = outputs.nth(number).locator("xpath=ancestor::*[contains(@class,'jp-OutputArea')][1]")
        if area.locator(".jp-RenderedImage, .jp-RenderedHTMLCommon script").count():
            found.append("the still form is shown beside the controls")
        found += use(page, outputs.nth(number))
        outputs.nth(number).screenshot(path=PLACE / f"{Path(name).stem}-{number}.png")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of the book")
    args = parser.parse_args()
    if importlib.util.find_spec("jupyterlab") is None:
        print("No JupyterLab: python -m pip install -e '.[live]'", file=sys.stderr)
        return SKIPPED
    shutil.rmtree(PLACE, ignore_errors=True)
    counts = {
        path.name: prepared(path, PLACE / "notebooks" / path.name)
        for path in args.notebooks or book_notebooks(ROOT)
    }
    counts = {name: count for name, count in counts.items() if count}
    if not counts:
        print("no notebook has a live figure", file=sys.stderr)
        return 1
    failed = False
    try:
        with chromium() as browser, jupyterlab(PLACE) as address:
            for name, count in counts.items():
                page = browser.new_page(viewport={"width": 1280, "height": 1600})
                begin = time.monotonic()
                found = try_notebook(page, address, name, count)
                page.close()
                print(f"{name}: {count} live, {time.monotonic() - begin:.0f} s", flush=True)
                for line in found:
                    print(f"    {line}", flush=True)
                failed |= bool(found)
    except NoBrowser as error:
        print(error, file=sys.stderr)
        return SKIPPED
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
