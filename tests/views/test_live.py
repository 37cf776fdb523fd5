"""Figures with controls: what a page shows, what a kernel draws, what a reader's own image becomes."""

import io

import ipywidgets
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from execute_notebooks import clean
from PIL import Image

from ersm_lab.views import live
from ersm_lab.views.widgets import Widget


def line(height):
    if height > 2:
        raise ValueError("height <3> is too much")
    figure, axis = plt.subplots(figsize=(2, 1))
    axis.plot([0, height])
    axis.set_ylim(0, 2)
    return figure


def slider():
    return ipywidgets.FloatSlider(value=1.0, min=0, max=5, description="height")


def chosen(content, name="own.png"):
    return ({"name": name, "type": "image/png", "size": len(content), "content": content},)


def as_png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_move_draws_again_and_an_error_is_shown_and_passes():
    control = slider()
    shown = live.Live(line, {"height": control})
    first = shown.image.value
    control.value = 2.0
    second = shown.image.value
    assert first != second and Image.open(io.BytesIO(second)).size[0] > 100
    control.value = 3.0
    assert "height &lt;3&gt; is too much" in shown.notice.value and shown.image.value == second
    control.value = 1.0
    assert shown.notice.value == "" and shown.image.value == first
    assert not plt.get_fignums()


def test_a_button_waits_until_it_is_clicked():
    control = slider()
    shown = live.Live(line, {"height": control}, button="Draw")
    first = shown.image.value
    control.value = 2.0
    assert shown.image.value == first
    shown.button.click()
    assert shown.image.value != first and not shown.button.disabled


@pytest.mark.parametrize("still", [None, Widget(html="<p>still</p>")])
def test_only_the_still_form_is_stored(still):
    bundle = live.Live(line, {"height": slider()}, still=still)._repr_mimebundle_()
    assert live.VIEW in bundle
    output = nbformat.v4.new_output("display_data", {k: str(v) for k, v in bundle.items()})
    cell = nbformat.v4.new_code_cell("shown", outputs=[output])
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
    clean(notebook)
    (kept,) = notebook.cells[0].outputs
    assert set(kept.data) == {"text/plain", "text/html" if still else "image/png"}
    assert "widgets" not in notebook.metadata


def test_an_own_image_is_cut_to_its_middle():
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = (10, 200, 30)
    got = live.uploaded(chosen(as_png(pixels)), size=8)
    assert got.shape == (8, 8, 3) and got.dtype == torch.uint8
    assert (got[:, 3:5] == torch.tensor([10, 200, 30])).all()  # away from the filter at the cuts
    assert live.uploaded((), size=8) is None


@pytest.mark.parametrize("content", [b"", b"no image", as_png(np.zeros((9, 9, 3), np.uint8))[:40]])
def test_a_file_that_is_no_image_is_named(content):
    with pytest.raises(ValueError, match=r"own\.png cannot be read as an image"):
        live.uploaded(chosen(content), size=8)
