"""The pictures of the training chapter: they draw what is recorded and name what is not."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from ersm_lab.chapters import collapse, mask_film, training_figures
from ersm_lab.results import records


def record(method, seed, kept=0.5):
    curve = [
        {"epoch": e, "loss": 2.0 - e / 10, "kept": 1.0, "val_accuracy": 0.5} for e in range(1, 5)
    ]
    for row in curve[2:]:
        row |= {"kept": kept, "val_kept_fraction": kept, "val_within_image_sd": 0.4}
    return {
        "name": f"laptop/cifar10/{method}/seed{seed}",
        "method": method,
        "seed": seed,
        "curve": curve,
        "metrics": {
            "test_accuracy": 0.8,
            "mask": {
                "kept_fraction": kept,
                "between_images_sd": 0.1,
                "within_image_sd": 0.4,
                "position_sd": 0.1,
                "kept_by_class": [kept, 0.3 + seed / 10],
            },
            "accuracy_with_mask_replaced": {
                "other_image": 0.7,
                "position_mean": 0.75,
                "uniform": 0.1,
                "ones": 0.79,
            },
        },
    }


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    made = {"cured": [record("cured", 0), record("cured", 1)], "failed": [record("failed", 0, 1.0)]}
    monkeypatch.setattr(records, "read_all", lambda *, method, **_: made.get(method, []))
    yield made
    plt.close("all")


def test_curves_leave_out_epochs_without_a_mask_and_name_absent_rows():
    figure = training_figures.curves(
        ["cured", "failed", "absent"], ["loss", "val_kept_fraction"], title="Some", log=["loss"]
    )
    loss, kept = figure.axes
    assert len(loss.lines) == len(kept.lines) == 2
    assert loss.lines[0].get_xdata().tolist() == [1, 2, 3, 4]
    assert kept.lines[0].get_xdata().tolist() == [3, 4]
    assert loss.get_yscale() == "log" and kept.get_yscale() == "linear"
    assert loss.lines[0].get_marker() != loss.lines[1].get_marker()
    assert "not recorded yet: absent" in figure.get_suptitle() and "Some" in figure.get_suptitle()
    assert loss.get_legend_handles_labels()[1] == ["cured (2 seeds)", "failed (1 seed)"]


def test_accuracies_below_the_floor_are_drawn_at_the_edge():
    figure = training_figures.accuracy_by_mask(["cured", "absent"], floor=0.4)
    (axis,) = figure.axes
    drawn = [line.get_xdata() for line in axis.lines if len(line.get_xdata()) == 1]
    assert sorted(x[0] for x in drawn) == pytest.approx([40, 70, 75, 79, 80])
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["cured (2)", "absent (not recorded yet)"]
    assert set(axis.get_legend_handles_labels()[1]) == {
        w for w, _ in training_figures.REPLACED.values()
    }


def test_masks_keep_one_scale_unless_stretched():
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    flat = torch.full((2, 1, 4, 4), 0.5) + torch.arange(16).view(4, 4) / 1000
    figure = training_figures.masks(images, {"as it is": flat, "up": flat}, stretched=["up"])
    plain, up = figure.axes[2].images[0], figure.axes[4].images[0]
    assert plain.get_clim() == (0, 1)
    assert up.get_clim() == pytest.approx((0.5, 0.515))


def test_classes_are_sorted_and_every_seed_is_there(recorded):
    figure = training_figures.spread_by_class(recorded["cured"], ("cat", "dog"))
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["dog", "cat"]
    assert axis.get_legend_handles_labels()[1] == ["seed 0", "seed 1"]


# ------------------------------------------------------------------------------------------ film


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory):
    """Films are kept in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERSM_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def film(home):
    return mask_film.shoot("ablation-ersm", images=2, train_images=128, epochs=5)


def test_a_film_has_a_mask_an_epoch_and_ones_before_the_mask_is_on(film):
    assert film.masks.shape == (5, 2, 1, 16, 16) and len(film.curve) == 5
    assert (film.masks[:3] == 1).all()
    assert "val_kept_fraction" not in film.curve[2] and "val_kept_fraction" in film.curve[3]
    assert film.metrics["mask"]["kept_fraction"] <= 1


def test_a_film_is_shot_once(film, monkeypatch):
    monkeypatch.setattr(mask_film, "train", None)  # would fail
    again = mask_film.shoot("ablation-ersm", images=2, train_images=128, epochs=5)
    assert torch.equal(again.masks, film.masks) and again.metrics == film.metrics
    with pytest.raises(TypeError):
        mask_film.shoot("ablation-ersm", images=2, train_images=128, epochs=5, seed=1)


def test_a_film_can_change_the_network_and_wants_a_mask():
    seen = []
    mask_film.shoot("literal", images=2, train_images=64, epochs=1, change=seen.append)
    mask_film.shoot("literal", images=2, train_images=64, epochs=1, change=seen.append)
    assert len(seen) == 2  # not kept: what a stranger's change does is not known
    with pytest.raises(ValueError, match="with a mask"):
        mask_film.shoot("ablation-dense")


def test_a_frame_shows_images_beside_unstretched_masks(film):
    frame = mask_film.beside([film, film], 4, zoom=2)
    assert frame.dtype == np.uint8 and frame.shape == (2 * 32 + 6, 3 * 32 + 2 * 6, 3)
    shown = frame[:32:2, 38:70:2, 0]
    assert np.array_equal(shown, 255 * film.masks[4, 0, 0].byte().numpy())
    assert np.array_equal(frame[:32, :32], film.images[0].numpy())


def test_a_mask_held_at_the_centre_is_a_fixed_pattern():
    film = mask_film.shoot(
        "ablation-ersm", images=2, train_images=64, epochs=1, change=mask_film.hold_centre
    )
    assert film.metrics["mask"]["kept_fraction"] == pytest.approx(0.25)
    assert film.metrics["shares"] == pytest.approx({"position": 1, "image": 0, "both": 0}, abs=1e-6)
    verdict = collapse.verdict({"name": "film", "metrics": film.metrics})
    assert verdict.kind == "fixed pattern"
