"""The demo page in a real browser: it starts, answers as Python does, and says what is wrong."""

import io
import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from headless import Handler, serving
from PIL import Image

from ersm_lab import demo_export

pytest_plugins = ["browser"]

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "book" / "_static"
AXE = ROOT / "tools" / "vendor" / "axe.min.js"
PREFIX = "some/prefix"  # the book may lie below any
BARE = '<!doctype html><html lang="en"><title>demo</title><body><main>{}</main></body></html>'


def lay_out(folder):
    """The part of the page that is HTML, and what it loads, as in the built book."""
    text = (ROOT / "book" / "demo.md").read_text(encoding="utf-8")
    (html,) = re.findall(r"```\{raw\} html\n(.*?)```", text, re.DOTALL)
    (folder / PREFIX / "book").mkdir(parents=True)
    page = folder / PREFIX / "book" / "demo.html"
    page.write_text(BARE.format(html), encoding="utf-8")
    shutil.copytree(STATIC / "demo", folder / PREFIX / "_static" / "demo")
    script = folder / PREFIX / "_static" / "demo" / "demo.js"
    text, found = re.subn("const QUIET = 500;", "const QUIET = 50;", script.read_text("utf-8"))
    assert found == 1
    script.write_text(text, encoding="utf-8")  # tests need not wait until a reader is at rest
    (folder / PREFIX / "_static" / "vendor").symlink_to(STATIC / "vendor")
    return page


@contextmanager
def opened(browser, folder, *, script=None):
    """The page before it is started, and all that it asked for and complained of."""
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    seen = {"asked": [], "complaints": []}
    page.on("request", lambda request: seen["asked"].append(request.url))
    page.on("pageerror", lambda error: seen["complaints"].append(str(error)))
    page.on("console", lambda line: line.type == "error" and seen["complaints"].append(line.text))
    page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
    if script:
        page.add_init_script(script)
    with serving(folder) as address:
        page.goto(f"{address}/{PREFIX}/book/demo.html")
        seen["address"] = address
        try:
            yield page, seen
        finally:
            page.close()


def settled(page):
    """Wait until the last change is answered and said."""
    page.wait_for_selector("#ersm-demo[data-state=settled]")


def pixels(page, name):
    return page.locator(f"[data-part={name}]").evaluate("canvas => canvas.toDataURL()")


def bars(page, name):
    rows = page.locator(f"[data-part={name}] li").all_inner_texts()
    return [tuple(row.replace(" ✓", "").split("\n")) for row in rows]


def said(name, picture, **threshold):
    """What a committed graph says to uint8 (H, W, 3): [(class, percent), ...], the likeliest first."""
    graph = (STATIC / "demo" / f"{name}.onnx").read_bytes()
    found = demo_export.run_graph(graph, torch.from_numpy(picture)[None], **threshold)
    shares = torch.from_numpy(found["logits"][0]).softmax(0)
    top = shares.topk(3)
    return [
        (demo_export.CLASSES[c], f"{100 * s:.0f} %")
        for c, s in zip(top.indices, top.values.tolist(), strict=True)
    ], int(found["mask"].sum()) if "mask" in found else None


def choose(page, name, value):
    page.locator(f"#demo-{name}").fill(str(value))


@pytest.fixture(scope="module")
def started(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    lay_out(folder)
    with opened(browser, folder) as (page, seen):
        page.wait_for_selector("[data-part=start]")
        seen["before"] = list(seen["asked"])
        page.click("[data-part=start]")
        settled(page)
        yield page, seen


@pytest.fixture
def demo(started):
    page, seen = started
    page.click("[data-part=reset]")
    settled(page)
    yield page
    assert seen["complaints"] == []


def test_nothing_large_is_loaded_before_the_start_and_nothing_from_outside(started):
    _, seen = started
    base = f"{seen['address']}/{PREFIX}/"
    before = {url.removeprefix(base) for url in seen["before"]}
    demo = "_static/demo/"
    small = {f"{demo}demo.css", f"{demo}demo.js", f"{demo}manifest.json"}
    assert before - {f"{seen['address']}/favicon.ico"} == {"book/demo.html"} | small
    outside = [
        url for url in seen["asked"] if not url.startswith((seen["address"], "data:", "blob:"))
    ]
    assert outside == []
    assert any(url.endswith(".wasm") for url in seen["asked"])


def test_the_start_says_what_it_downloads(started):
    page, _ = started
    manifest = json.loads((STATIC / "demo" / "manifest.json").read_text())
    text = page.locator("[data-part=cost]").text_content()
    size = sum(file["bytes"] for file in manifest["engine"]["files"])
    accuracy = manifest["networks"]["dense"]["test_accuracy"]
    assert f"{size / 1e6:.1f} MB" in text and f"{100 * accuracy:.2f} %" in text


def test_it_answers_as_python_does(demo):
    choose(demo, "size", 12)
    choose(demo, "across", 9)
    choose(demo, "down", 4)
    settled(demo)
    picture = demo_export.samples()[0][0].numpy().copy()  # (H, W, 3)
    picture[4:16, 9:21] = 0
    dense, _ = said("dense", picture)
    ersm, kept = said("ersm", picture, threshold=0.0)
    assert bars(demo, "dense") == dense and bars(demo, "ersm") == ersm
    assert demo.inner_text("[data-part=share]").startswith(f"{kept} of 256 ")
    words = demo.inner_text("[data-part=words]")
    assert f"Dense: {dense[0][0]} {dense[0][1]}" in words and "(meant: ship)" in words
    assert re.fullmatch(r"\d+\.\d ms a pass", demo.inner_text("[data-part=dense-time]"))


def test_arrow_keys_and_the_mouse_move_the_occluder(demo):
    image = demo.locator("[data-part=image]")
    before = {name: pixels(demo, name) for name in ("image", "map")}
    image.press("ArrowRight")
    image.press("ArrowDown")
    image.press("Shift+ArrowDown")
    settled(demo)
    assert demo.locator("#demo-across").input_value() == "2"
    assert demo.locator("#demo-down").input_value() == "6"
    for name, earlier in before.items():
        assert pixels(demo, name) != earlier
    box = image.bounding_box()
    demo.mouse.move(box["x"] + 5, box["y"] + 5)
    demo.mouse.down()
    demo.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] + 50, steps=3)
    demo.mouse.up()
    settled(demo)
    size = int(demo.locator("#demo-size").input_value())
    assert demo.locator("#demo-across").input_value() == str(16 - size // 2)
    assert demo.locator("#demo-down").input_value() == str(32 - size)  # stays inside


def test_the_threshold_moves_the_mask_and_not_the_dense_network(demo):
    dense, trained = bars(demo, "dense"), demo.inner_text("[data-part=share]")
    shares = {}
    for name in ("none", "all", "trained"):
        demo.click(f"[data-threshold={name}]")
        settled(demo)
        shares[name] = demo.inner_text("[data-part=share]")
        assert bars(demo, "dense") == dense
        assert demo.get_attribute(f"[data-threshold={name}]", "aria-pressed") == "true"
    assert shares == {"none": "0 of 256 (0 %)", "all": "256 of 256 (100 %)", "trained": trained}
    counts = []
    for bound in (-0.1, -0.02, 0.01, 0.03):
        choose(demo, "threshold", bound)
        settled(demo)
        counts.append(int(demo.inner_text("[data-part=share]").split()[0]))
    assert counts == sorted(set(counts))
    kept = pixels(demo, "kept")
    demo.click("[data-threshold=none]")
    settled(demo)
    assert pixels(demo, "kept") != kept


def test_noise_is_the_same_for_the_same_seed(demo):
    clean = pixels(demo, "image")
    drawn = []
    for seed in (3, 4, 3):
        choose(demo, "noise", 40)
        choose(demo, "seed", seed)
        settled(demo)
        drawn.append((pixels(demo, "image"), bars(demo, "ersm")))
    assert drawn[0] == drawn[2] and drawn[0][0] != drawn[1][0] != clean
    choose(demo, "noise", 0)
    settled(demo)
    assert pixels(demo, "image") == clean and demo.locator("#demo-seed").is_disabled()


def test_the_map_shows_energy_or_logit(demo):
    energy, low = pixels(demo, "map"), demo.inner_text("[data-part=low]")
    demo.get_by_label("logit z").check()
    assert pixels(demo, "map") != energy and demo.inner_text("[data-part=low]") != low
    assert "logit z" in demo.get_attribute("[data-part=map]", "aria-label")


def picture_file(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return {"name": "own.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


def test_an_own_picture_is_cropped_and_shrunk(demo):
    sample = demo_export.samples()[0][4].numpy()  # (32, 32, 3)
    large = np.kron(sample, np.ones((4, 4, 1), np.uint8))  # (128, 128, 3)
    wide = np.pad(large, ((0, 0), (30, 30), (0, 0)), constant_values=255)
    choose(demo, "size", 0)
    demo.set_input_files("#demo-file", picture_file(wide))
    demo.wait_for_selector(".demo-mine[aria-pressed=true]")
    settled(demo)
    assert bars(demo, "dense") == said("dense", sample)[0]
    assert bars(demo, "ersm") == said("ersm", sample, threshold=0.0)[0]
    assert "your own picture" in demo.inner_text("[data-part=words]")


def test_what_is_no_picture_is_named(demo):
    wrong = {"name": "song.txt", "mimeType": "text/plain", "buffer": b"la la"}
    demo.set_input_files("#demo-file", wrong)
    demo.wait_for_selector("[data-part=problem]:visible")
    assert "song.txt is no picture" in demo.inner_text("[data-part=problem]")
    demo.click("[data-part=reset]")
    assert demo.locator("[data-part=problem]").is_hidden()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everyone_can_use_it(demo, theme):
    demo.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    ground = {"light": "#fff", "dark": "#121212"}[theme]  # of the book's theme
    text = {"light": "#222832", "dark": "#ced6dd"}[theme]
    muted = {"light": "#48566b", "dark": "#9ca4af"}[theme]
    surface = {"light": "#f3f4f5", "dark": "#29313d"}[theme]
    demo.evaluate(
        f"document.body.style = 'background: {ground}; color: {text}; "
        f"--pst-color-text-muted: {muted}; --pst-color-surface: {surface}'"
    )
    demo.add_script_tag(path=str(AXE))
    found = demo.evaluate("axe.run('#ersm-demo').then(found => found.violations)")
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found] == []


# ------------------------------------------------------------------------------ where it cannot run


def test_a_missing_network_is_named(browser, tmp_path):
    lay_out(tmp_path)
    (tmp_path / PREFIX / "_static" / "demo" / "ersm.onnx").unlink()
    with opened(browser, tmp_path) as (page, _):
        page.click("[data-part=start]")
        page.wait_for_selector("[data-part=problem]:visible")
        text = page.inner_text("[data-part=problem]")
        assert "ersm.onnx could not be loaded: the server answered 404" in text
        assert page.locator("[data-part=start]").is_enabled()  # to try again
        assert page.locator("[data-part=body]").count() == 0


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream"])
def test_a_server_without_types_for_modules_and_wasm_will_do(browser, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(
        Handler, "extensions_map", Handler.extensions_map | {".mjs": kind, ".wasm": kind}
    )
    lay_out(tmp_path)
    with opened(browser, tmp_path) as (page, seen):
        page.click("[data-part=start]")
        settled(page)
        assert seen["complaints"] == [] and page.locator("[data-part=body]").is_visible()


def test_an_engine_that_does_not_run_is_not_called_a_missing_connection(browser, tmp_path):
    lay_out(tmp_path)
    engine = tmp_path / PREFIX / "_static" / "vendor"
    engine.unlink()
    shutil.copytree(STATIC / "vendor" / "onnxruntime-web", engine / "onnxruntime-web")
    (engine / "onnxruntime-web" / demo_export.ENGINE[0]).write_text("this is no script")
    with opened(browser, tmp_path) as (page, _):
        page.click("[data-part=start]")
        page.wait_for_selector("[data-part=problem]:visible")
        text = page.inner_text("[data-part=problem]")
        assert f"{demo_export.ENGINE[0]} is loaded, but this browser cannot run it" in text
        assert "online" not in text


def test_missing_webassembly_is_named(browser, tmp_path):
    lay_out(tmp_path)
    with opened(browser, tmp_path, script="delete globalThis.WebAssembly") as (page, _):
        page.wait_for_selector("[data-part=problem]:visible")
        assert "no WebAssembly" in page.inner_text("[data-part=problem]")
        assert page.locator("[data-part=start]").is_hidden()


def test_a_page_opened_as_a_file_says_what_to_do(browser, tmp_path):
    path = lay_out(tmp_path)
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector(".demo-wait:visible")
    assert "make serve" in page.inner_text(".demo-wait")
    assert page.locator("[data-part=start]").is_hidden()
    page.close()
