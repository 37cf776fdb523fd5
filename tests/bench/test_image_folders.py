"""Photographs in folders: made-up images in the layouts of Oxford-IIIT Pets and CUB-200-2011."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from ersm_lab import image_folders
from ersm_lab.training import protocols
from ersm_lab.training.config import PublishedConfig

KINDS = ("Abyssinian", "beagle", "pug")  # each drawn in a colour of its own


def draw(path, kind, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(number).integers(0, 90, (70 + number, 96, 3), dtype=np.uint8)
    colours[..., kind] += 150
    Image.fromarray(colours).save(path)


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    root = tmp_path_factory.mktemp("pets")
    notes = root / "oxford-iiit-pet" / "annotations"
    notes.mkdir(parents=True)
    for split, numbers in {"trainval": range(10), "test": range(20, 24)}.items():
        lines = []
        for kind, name in enumerate(KINDS):
            for number in numbers:
                draw(root / "oxford-iiit-pet" / "images" / f"{name}_{number}.jpg", kind, number)
                lines.append(f"{name}_{number} {kind + 1} 1 1\n")
        (notes / f"{split}.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def cub(tmp_path_factory):
    root = tmp_path_factory.mktemp("cub")
    folder = root / "CUB_200_2011"
    images, split, count = [], [], 0
    for kind, name in enumerate(KINDS):
        for number in range(6):
            count += 1
            place = f"{kind + 1:03}.{name}/{name}_{number:04}.jpg"
            draw(folder / "images" / place, kind, number)
            images.append(f"{count} {place}\n")
            split.append(f"{count} {int(number < 4)}\n")
    (folder / "images.txt").write_text("".join(images))
    (folder / "train_test_split.txt").write_text("".join(split))
    return root


def test_preprocessing_is_that_of_imagenet_weights():
    image = Image.fromarray(np.full((80, 120, 3), 255, np.uint8))
    x = image_folders.preprocessing(64)(image)
    white = [(1 - m) / s for m, s in zip(image_folders.MEAN, image_folders.STD, strict=True)]
    assert x.shape == (3, 64, 64) and x.dtype == torch.float32
    torch.testing.assert_close(x.mean((1, 2)), torch.tensor(white))


def test_pets_are_split_as_their_lists_say(pets):
    splits = image_folders.open_images("pets", pets, image_size=64)
    assert (len(splits.training), len(splits.validation), len(splits.test)) == (27, 3, 12)
    assert [name.lower() for name in splits.classes] == [name.lower() for name in KINDS]
    assert [label for _, label in splits.test] == [0] * 4 + [1] * 4 + [2] * 4


def test_cub_is_split_as_its_list_says(cub):
    splits = image_folders.open_images("cub", cub, image_size=64)
    assert (len(splits.training), len(splits.validation), len(splits.test)) == (10, 2, 6)
    assert splits.classes == ("001.Abyssinian", "002.beagle", "003.pug")
    for x, label in splits.test:
        assert x.mean((1, 2)).argmax() == label  # the colour of its kind


def test_missing_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"oxford-iiit-pet: pass download=True"):
        image_folders.open_images("pets", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no CUB-200-2011 in .*caltech"):
        image_folders.open_images("cub", tmp_path)
    with pytest.raises(ValueError, match="got 'dogs'"):
        image_folders.open_images("dogs", tmp_path)


def test_extracted_maps_are_those_of_the_network_in_order(pets):
    torch.manual_seed(0)
    backbone = torchvision.models.resnet18(weights=None)
    model = protocols.published(backbone, "layer4", classes=3, image_size=64)
    images = image_folders.open_images("pets", pets, image_size=64).test
    quiet = {"workers": 0, "progress": False}
    features = image_folders.extract(model, images, KINDS, batch_size=5, **quiet)
    assert features.maps.shape == (12, 512, 2, 2) and features.classes == KINDS
    assert features.maps.is_contiguous(memory_format=torch.channels_last)
    expected = model.maps(torch.stack([images[7][0]]))
    torch.testing.assert_close(features.maps[7:8].float(), expected, atol=2e-3, rtol=2e-3)
    assert features.labels[7] == images[7][1]


@pytest.mark.parametrize("setting", ["pets", "cub"])
def test_readers_are_compared_on_one_backbone(setting, pets, cub, monkeypatch):
    from ersm_lab.training.loop import make_fabric

    monkeypatch.setattr(
        image_folders, "make_fabric", lambda **settings: make_fabric(device="cpu", **settings)
    )
    torch.manual_seed(0)
    train = replace(protocols.PUBLISHED_TRAINING, epochs=2, batch_size=5, learning_rate=1e-2)
    rows = {
        "none": PublishedConfig(mask=None, train=train),
        "masked": PublishedConfig(mask={"fixed_bias": True}, train=train),
        "positions": PublishedConfig(learned_positions=True, train=train),
    }
    results = image_folders.compare(
        setting,
        {"pets": pets, "cub": cub}[setting],
        rows=rows,
        seeds=(0, 1),
        backbone=torchvision.models.resnet18(weights=None),
        image_size=64,
        workers=0,
        progress=False,
    )
    assert [(r["method"], r["seed"]) for r in results] == [(m, s) for m in rows for s in (0, 1)]
    assert all(0 <= r["metrics"]["test_accuracy"] <= 1 for r in results)
    assert results[2]["curve"][0]["val_kept_fraction"] < 0.01  # starts closed
    columns = {"accuracy": "test_accuracy", "AUC: logit": "deletion.logit.auc"}
    table = image_folders.summary(results, columns)
    assert [row[:2] for row in table.rows] == [["none", "2"], ["masked", "2"], ["positions", "2"]]
    assert table.rows[0][3] == "–" and "±" in table.rows[1][3]
