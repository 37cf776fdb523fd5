"""Image data: where it is looked for, how it is split, and what a training batch is made of."""

import hashlib
import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ersm_lab.images import data, download, shapes
from ersm_lab.images.data import Augment, Batches, ImageSet

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def content(file):
    return f"what {file} holds".encode()


def checksum(file):
    return hashlib.md5(content(file)).hexdigest()


class TinyCifar(data.CIFAR["cifar10"]):
    """The official files by name, with a few bytes in each."""

    train_list = tuple((f, checksum(f)) for f, _ in data.CIFAR["cifar10"].train_list)
    test_list = tuple((f, checksum(f)) for f, _ in data.CIFAR["cifar10"].test_list)
    meta = data.CIFAR["cifar10"].meta | {"md5": checksum("batches.meta")}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home, no ERSM_DATA_DIR, tiny files, and nothing remembered of earlier look-ups."""
    monkeypatch.setitem(data.CIFAR, "cifar10", TinyCifar)
    monkeypatch.setenv("ERSM_HOME", str(tmp_path))
    monkeypatch.delenv("ERSM_DATA_DIR", raising=False)
    monkeypatch.delenv("ERSM_DATASET", raising=False)
    data.default_dataset.cache_clear()
    yield tmp_path
    data.default_dataset.cache_clear()


def made_up_cifar(folder):
    """The files of `TinyCifar`."""
    for file in [f for f, _ in TinyCifar.train_list + TinyCifar.test_list] + ["batches.meta"]:
        path = folder / TinyCifar.base_folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(file))
    return folder


def damage(folder, file="data_batch_3"):
    """One byte of one file becomes another; returns the file."""
    path = folder / TinyCifar.base_folder / file
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    return path


OFFICIAL = data.locate("cifar10")  # before any test puts another in its place
needs_cifar10 = pytest.mark.skipif(
    OFFICIAL is None, reason="CIFAR-10 is not on this machine (see ERSM_DATA_DIR)"
)


def offline(*args, **kwargs):
    raise OSError("no route to host")


def noise(count=23, height=8, width=10):
    """Images of independent pixels, so that any two crops of them differ; labels tell them apart."""
    lots = torch.Generator().manual_seed(5)
    return ImageSet(
        name="noise",
        images=torch.randint(256, (count, height, width, 3), generator=lots, dtype=torch.uint8),
        labels=torch.arange(count),
        classes=tuple(str(i) for i in range(count)),
        mean=MEAN,
        std=STD,
    )


def by_hand(image, *, mirrored, top, left, pad):
    """One image, slowly: pad with reflected pixels, crop, mirror, normalise; (3, H, W) float64."""
    height, width, _ = image.shape
    padded = np.pad(image.numpy(), ((pad, pad), (pad, pad), (0, 0)), "reflect")
    crop = padded[top : top + height, left : left + width]
    crop = crop[:, ::-1] if mirrored else crop
    return torch.tensor(((crop / 255 - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1).copy())


def recognise(x, image, pad):
    """Every (mirrored, top, left) by which `image` becomes x where x is not cut out."""
    seen = (x != 0).all(0)  # no uint8 value lies on the mean
    shifts = range(2 * pad + 1)
    found = []
    for mirrored in (False, True):
        for top in shifts:
            for left in shifts:
                made = by_hand(image, mirrored=mirrored, top=top, left=left, pad=pad)
                if torch.allclose(x.double()[:, seen], made[:, seen], atol=1e-5):
                    found.append((mirrored, top, left))
    return found


def epoch(images, number=0, *, batch_size=5, seed=3, **augment):
    """x (M, 3, H, W) and labels (M,) of one epoch."""
    batches = Batches(images, batch_size=batch_size, augment=Augment(**augment), seed=seed)
    x, labels = zip(*batches.epoch(number), strict=True)
    return torch.cat(x), torch.cat(labels)


# --- batches ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    return noise()


@pytest.fixture(scope="module")
def lots(images):
    """{image: (mirrored, top, left)} of two epochs in a row, each recognised by hand."""
    drawn = []
    for number in (0, 1):
        chosen = {}
        for x, label in zip(*epoch(images, number, crop=2), strict=True):
            (chosen[label.item()],) = recognise(x, images.images[label], pad=2)
        drawn.append(chosen)
    return drawn


def test_every_image_of_a_batch_is_an_original_shifted_perhaps_mirrored_and_normalised(lots):
    shifts = {(top, left) for drawn in lots for _, top, left in drawn.values()}
    assert len(shifts) > 12  # of 25, in 40 draws
    assert {top for top, _ in shifts} == {left for _, left in shifts} == {0, 1, 2, 3, 4}


def test_an_epoch_shows_each_image_once_and_leaves_the_last_smaller_batch_out(images):
    _, labels = epoch(images)
    assert len(labels) == 20 and len(labels.unique()) == 20
    assert not torch.equal(labels, labels.sort().values)
    assert len(Batches(images, batch_size=5, augment=Augment(), seed=0)) == 4


def test_every_image_is_mirrored_in_every_second_epoch(lots):
    first, second = ({i: mirrored for i, (mirrored, *_) in drawn.items()} for drawn in lots)
    both = first.keys() & second.keys()
    assert len(both) > 10
    assert all(first[i] != second[i] for i in both)
    assert {first[i] for i in both} == {False, True}  # by lot, not all at once


def test_without_flip_and_crop_images_come_as_they_are(images):
    x, labels = epoch(images, flip=False, crop=0)
    torch.testing.assert_close(x, images.normalise(images.images[labels]))


def test_cutout_sets_one_square_to_the_mean_and_leaves_the_rest(images):
    whole, labels = epoch(images, crop=2)
    sizes = set()
    for number in range(3):
        whole, labels = epoch(images, number, crop=2)
        x, same = epoch(images, number, crop=2, cutout=4)
        assert torch.equal(labels, same)
        hole = (x == 0).all(1)  # (M, H, W)
        assert torch.equal(torch.where(hole[:, None], torch.zeros(()), whole), x)
        for h in hole:
            rows, columns = h.any(1).nonzero().flatten(), h.any(0).nonzero().flatten()
            assert h.sum() == len(rows) * len(columns) > 0  # a rectangle
            assert rows[-1] - rows[0] + 1 == len(rows) and columns[-1] - columns[0] + 1 == len(
                columns
            )
            for side, end in ((rows, 7), (columns, 9)):  # a whole side, unless the border cuts it
                assert len(side) == 4 or (len(side) < 4 and (side[0] == 0 or side[-1] == end))
            sizes.add((len(rows), len(columns)))
    assert (4, 4) in sizes and len(sizes) > 3


def test_the_same_seed_and_epoch_give_the_same_batches(images):
    x, labels = epoch(images, 4, cutout=3)
    again, same = epoch(images, 4, cutout=3)
    assert torch.equal(x, again) and torch.equal(labels, same)


@pytest.mark.parametrize("other", [{"number": 5}, {"seed": 4}])
def test_another_epoch_or_seed_gives_other_batches(images, other):
    x, labels = epoch(images, **({"number": 4} | other))
    first, order = epoch(images, 4)
    assert not torch.equal(labels, order)
    assert not torch.equal(x[labels.argsort()][:10], first[order.argsort()][:10])


def test_batches_leave_the_global_generator_alone(images):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    epoch(images)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_shares_of_all_processes_are_the_batch_of_one(images, world_size):
    settings = dict(batch_size=6, augment=Augment(cutout=3), seed=3)
    whole = list(images.batches(**settings).epoch(1))
    shares = [
        list(images.batches(**settings, rank=rank, world_size=world_size).epoch(1))
        for rank in range(world_size)
    ]
    assert len(whole) == 3
    for step, (x, labels) in enumerate(whole):
        parts = [share[step] for share in shares]
        assert {len(part) for _, part in parts} == {6 // world_size}
        assert torch.equal(torch.cat([part for part, _ in parts]), x)
        assert torch.equal(torch.cat([part for _, part in parts]), labels)


@pytest.mark.parametrize("cutout", [0, 3])
def test_batches_are_float32_channels_last_and_the_memory_stays_uint8(images, cutout):
    batches = images.batches(batch_size=5, augment=Augment(cutout=cutout), seed=0)
    x, labels = next(batches.epoch(0))
    assert x.dtype == torch.float32 and x.shape == (5, 3, 8, 10)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64 and labels.shape == (5,)
    assert images.images.dtype == batches.padded.dtype == torch.uint8
    assert not [v for v in vars(batches).values() if torch.is_tensor(v) and v.is_floating_point()]


def test_a_batch_larger_than_the_data_is_an_error(images):
    with pytest.raises(ValueError, match="23 images are fewer than one batch of 24"):
        images.batches(batch_size=24, augment=Augment(), seed=0)


def test_processes_that_do_not_divide_the_batch_are_an_error(images):
    with pytest.raises(ValueError, match="3 processes do not divide a batch of 10"):
        images.batches(batch_size=10, augment=Augment(), seed=0, world_size=3)


# --- image sets ------------------------------------------------------------------------------------


def test_inputs_are_all_images_in_order_zero_mean_and_unit_variance():
    images = noise(count=7)
    x, labels = zip(*images.inputs(size=3), strict=True)
    assert [len(part) for part in x] == [3, 3, 1]
    assert torch.equal(torch.cat(labels), images.labels)
    expected = [by_hand(image, mirrored=False, top=0, left=0, pad=0) for image in images.images]
    torch.testing.assert_close(torch.cat(x).double(), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_a_part_of_an_image_set_keeps_images_labels_and_masks_together():
    whole = data.load("shapes", "val", limit=40)
    index = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:9]
    part = whole[index]
    assert len(part) == 9
    for key in ("images", "labels", "masks"):
        assert torch.equal(getattr(part, key), getattr(whole, key)[index])
    assert len(whole[:5]) == 5 and len(whole[:5].masks) == 5
    assert noise()[:5].masks is None


# --- loading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split", "spurious"),
    [
        ("shapes", "train", None),
        ("shapes", "test", None),
        ("shapes-spurious", "train", 0.9),
        ("shapes-spurious", "val", 0.9),
        ("shapes-spurious", "test", 0.0),
    ],
)
def test_shapes_come_with_the_masks_of_their_own_objects(name, split, spurious):
    loaded = data.load(name, split, limit=30)
    drawn = shapes.textured_shapes(30, seed=data.SHAPES_SEED[split], spurious=spurious)
    assert torch.equal(loaded.images, drawn.images.permute(0, 2, 3, 1))
    assert torch.equal(loaded.masks, drawn.masks) and torch.equal(loaded.labels, drawn.labels)
    assert loaded.images.is_contiguous() and loaded.classes == shapes.CLASSES
    assert 0.05 < loaded.masks.float().mean() < 0.4


def test_the_splits_of_shapes_share_no_image():
    parts = [data.load("shapes", split, limit=100).images for split in ("train", "val", "test")]
    assert len(torch.cat(parts).flatten(1).unique(dim=0)) == 300


def test_a_limit_takes_the_first_images():
    more, fewer = (data.load("shapes", "test", limit=limit) for limit in (50, 20))
    assert len(fewer) == 20 and torch.equal(more.images[:20], fewer.images)


@pytest.mark.parametrize("limit", [0, -1, True, 2.5, 3.0, "4", np.bool_(True)])
@pytest.mark.parametrize("name", ["shapes", "cifar10"])
def test_a_limit_that_is_no_whole_number_of_at_least_1_is_an_error(name, limit):
    with pytest.raises(ValueError, match="limit must be a whole number of at least 1, or None"):
        data.load(name, "test", limit=limit)


def test_a_limit_may_be_of_numpy_and_beyond_what_there_is(monkeypatch):
    assert len(data.load("shapes", "test", limit=np.int64(3))) == 3
    monkeypatch.setitem(data.SHAPES_SIZE, "test", 5)
    assert len(data.load("shapes", "test", limit=9)) == len(data.load("shapes", "test")) == 5


def test_many_shapes_are_drawn_once_and_then_taken_from_the_cache(home, monkeypatch):
    calls = []

    def draw(count, **settings):
        calls.append((count, settings["seed"]))
        return shapes.TexturedShapes(*torch.randint(9, (4, count, 1), dtype=torch.uint8).unbind())

    monkeypatch.setattr(data.shapes, "textured_shapes", draw)
    settings = dict(seed=1, spurious=None)
    first = data._textured_shapes("shapes", 5_001, **settings)
    again = data._textured_shapes("shapes", 5_001, **settings)
    assert calls == [(5_001, 1)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    data._textured_shapes("shapes", 5_001, seed=2, spurious=None)
    data._textured_shapes("shapes", 5_002, seed=2, spurious=None)
    assert calls[1:] == [(5_001, 2), (5_002, 2)]


@pytest.mark.parametrize("place", ["data", "data/cache"])
def test_shapes_are_drawn_where_nothing_can_be_kept(home, monkeypatch, place):
    (home / place).parent.mkdir(exist_ok=True)
    (home / place).touch()  # a file where a folder should be: not even root can write there
    drawn = shapes.textured_shapes(1, seed=1)
    monkeypatch.setattr(data.shapes, "textured_shapes", lambda *_, **__: drawn)
    with pytest.warns(match="cannot be kept.*Set ERSM_HOME to a folder that can be written"):
        made = data._textured_shapes("shapes", 5_001, seed=1, spurious=None)
    assert torch.equal(made.images, drawn.images)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\0" * 4_000])
def test_a_broken_file_of_the_cache_is_drawn_again(home, monkeypatch, content):
    drawn = shapes.textured_shapes(1, seed=1)
    monkeypatch.setattr(data.shapes, "textured_shapes", lambda *_, **__: drawn)
    ask = lambda: data._textured_shapes("shapes", 5_001, seed=1, spurious=None)  # noqa: E731
    ask()
    (kept,) = (home / "data" / "cache").iterdir()
    kept.write_bytes(content)
    with pytest.warns(match="cannot be read, and is made again"):
        assert torch.equal(ask().images, drawn.images)
    assert torch.equal(ask().images, drawn.images) and kept.stat().st_size > 1_000


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [("cifar11", "train", "cifar10, cifar100, shapes"), ("shapes", "dev", '"val" or "test"')],
)
def test_an_unknown_data_set_or_split_is_an_error_that_names_the_known_ones(name, split, message):
    with pytest.raises(ValueError, match=message):
        data.load(name, split)


def test_the_split_is_the_first_45000_and_the_last_5000_training_images(monkeypatch, tmp_path):
    def official(root, train, download):
        assert not download
        index = np.arange(50_000 if train else 10_000)
        values = np.stack([index % 256, index // 256, np.full_like(index, train)], -1)
        return SimpleNamespace(
            data=values.astype(np.uint8)[:, None, None], targets=index.tolist(), classes=["a", "b"]
        )

    monkeypatch.setitem(data.CIFAR, "cifar10", official)
    monkeypatch.setattr(data, "obtain", lambda name: tmp_path)
    train, val, test = (data.load("cifar10", split) for split in ("train", "val", "test"))
    assert torch.equal(train.labels, torch.arange(45_000))
    assert torch.equal(val.labels, torch.arange(45_000, 50_000))
    assert torch.equal(test.labels, torch.arange(10_000))
    for part, official_train in ((train, 1), (val, 1), (test, 0)):
        low, high, kind = part.images[:, 0, 0].long().unbind(1)
        assert torch.equal(low + 256 * high, part.labels) and (kind == official_train).all()


@needs_cifar10
def test_cifar10_is_split_into_45000_5000_and_10000_images():
    train, val, test = (data.load("cifar10", split) for split in ("train", "val", "test"))
    assert [len(part) for part in (train, val, test)] == [45_000, 5_000, 10_000]
    official = data.CIFAR["cifar10"](str(data.locate("cifar10")), train=True)
    assert torch.equal(torch.cat([train.images, val.images]), torch.from_numpy(official.data))
    assert torch.cat([train.labels, val.labels]).tolist() == official.targets
    assert test.labels.bincount().tolist() == [1_000] * 10
    assert test.classes[0] == "airplane" and test.masks is None
    x = torch.cat([x for x, _ in train[:5_000].inputs()])
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=0.05, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=0.05, rtol=0)


# --- finding ---------------------------------------------------------------------------------------


def test_the_named_folder_comes_first_then_downloads_then_data(home, monkeypatch):
    elsewhere = home / "elsewhere"
    assert data.locate("cifar10") is None
    made_up_cifar(home / "data")
    assert data.locate("cifar10") == home / "data"
    made_up_cifar(home / "data" / "downloads")
    assert data.locate("cifar10") == home / "data" / "downloads"
    monkeypatch.setenv("ERSM_DATA_DIR", str(elsewhere))
    assert data.locate("cifar10") == home / "data" / "downloads"  # nothing there
    made_up_cifar(elsewhere)
    assert data.locate("cifar10") == data.obtain("cifar10") == elsewhere


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_folder_with_a_file_missing_does_not_count(home, file):
    folder = made_up_cifar(home / "data") / TinyCifar.base_folder
    (folder / file).unlink()
    assert data.locate("cifar10") is None


def test_what_is_absent_is_downloaded_into_the_home(home, monkeypatch):
    fetched = []

    def fetch(archive, target, *, needed, progress):
        assert needed()
        fetched.append((archive.file, target))
        made_up_cifar(target)

    monkeypatch.setattr(download, "fetch_archive", fetch)
    assert data.obtain("cifar10") == home / "data" / "downloads"
    assert data.obtain("cifar10") == home / "data" / "downloads"
    assert fetched == [("cifar-10-python.tar.gz", home / "data" / "downloads")]


def test_offline_and_absent_the_error_names_three_ways_out(home, monkeypatch):
    monkeypatch.setattr(download, "fetch_archive", offline)
    with pytest.raises(data.DataNotFound) as caught:
        data.load("cifar10", "train")
    message = str(caught.value)
    for part in (
        "no route to host",
        "(1) set ERSM_DATA_DIR to a folder that holds cifar-10-batches-py/",
        "(2) put that folder, or the unpacked archive https://",
        f"under {home / 'data' / 'downloads'}",
        '(3) use the embedded data set: dataset="shapes"',
    ):
        assert part in message


def test_every_archive_has_two_sources_and_an_md5():
    for name in data.CIFAR:
        archive = download.ARCHIVES[name]
        assert len({url.split("/")[2] for url in archive.urls}) >= 2
        assert archive.md5 == data.CIFAR[name].tgz_md5


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("how", ["a byte", "cut", "empty"])
def test_a_damaged_copy_is_named_and_passed_over(home, monkeypatch, file, how):
    monkeypatch.setenv("ERSM_DATA_DIR", str(made_up_cifar(home / "mine")))
    made_up_cifar(home / "data")
    assert data.locate("cifar10") == home / "mine"  # nothing is remembered of a file that changes
    path = home / "mine" / TinyCifar.base_folder / file
    if how == "a byte":
        damage(home / "mine", file)
    else:
        os.truncate(path, {"cut": 5, "empty": 0}[how])
    with pytest.warns(match=f"damaged, and therefore passed over: {path}$"):
        assert data.obtain("cifar10") == home / "data"


def test_a_file_that_cannot_be_read_is_a_damaged_one(home, monkeypatch):
    made_up_cifar(home / "data")
    monkeypatch.setattr(data, "calculate_md5", offline)  # the disk says no
    with pytest.warns(match="data_batch_1"):
        assert data.locate("cifar10") is None


def test_each_file_is_read_once_a_process(home, monkeypatch):
    made_up_cifar(home / "data")
    read = []
    monkeypatch.setattr(
        data, "calculate_md5", lambda path: read.append(path) or checksum(path.name)
    )
    data._md5_of_state.cache_clear()
    for _ in range(3):
        assert data.locate("cifar10") == home / "data"
    assert len(read) == len(set(read)) == 7


def test_a_damaged_download_is_fetched_again(home, monkeypatch):
    downloads = home / "data" / "downloads"
    damage(made_up_cifar(downloads))
    monkeypatch.setattr(download, "fetch_archive", lambda _, target, **__: made_up_cifar(target))
    with pytest.warns(match="data_batch_3"):
        assert data.obtain("cifar10") == downloads
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.locate("cifar10") == downloads


def test_a_damaged_copy_of_the_user_is_never_overwritten(home, monkeypatch):
    downloads = home / "data" / "downloads"
    wrong = damage(made_up_cifar(downloads))
    monkeypatch.setenv("ERSM_DATA_DIR", str(downloads))
    monkeypatch.setattr(download, "fetch_archive", lambda _, target, **__: made_up_cifar(target))
    before = wrong.read_bytes()
    with (
        pytest.warns(match="data_batch_3"),
        pytest.raises(data.DataDamaged, match="the folder of ERSM_DATA_DIR is left as it is"),
    ):
        data.obtain("cifar10")
    assert wrong.read_bytes() == before


@pytest.mark.filterwarnings("ignore:damaged")
def test_damaged_and_offline_no_shapes_stand_in_and_the_error_says_what_to_do(home, monkeypatch):
    wrong = damage(made_up_cifar(home / "data"))
    monkeypatch.setattr(download, "fetch_archive", offline)
    for ask in (data.default_dataset, lambda: data.load("cifar10", "test")):
        with pytest.raises(data.DataDamaged) as caught:
            ask()
        for part in (str(wrong), "no route to host", f"Delete {wrong.parent}", "ERSM_DATA_DIR"):
            assert part in str(caught.value)


@needs_cifar10
def test_one_changed_byte_in_the_official_files_is_found(home, monkeypatch):
    folder = home / "mine" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for file in (OFFICIAL / "cifar-10-batches-py").iterdir():
        (folder / file.name).symlink_to(file)
    monkeypatch.setitem(data.CIFAR, "cifar10", TinyCifar.__base__)
    monkeypatch.setenv("ERSM_DATA_DIR", str(home / "mine"))
    assert data.locate("cifar10") == home / "mine"
    changed = bytearray((folder / "test_batch").read_bytes())
    changed[12_345_678] ^= 1
    (folder / "test_batch").unlink()
    (folder / "test_batch").write_bytes(changed)
    monkeypatch.setattr(download, "fetch_archive", offline)
    with (
        pytest.warns(match="test_batch"),
        pytest.raises(
            data.DataDamaged, match=f"{folder / 'test_batch'}\\) and cannot be downloaded"
        ),
    ):
        data.load("cifar10", "train")


def test_shapes_stand_in_where_cifar10_cannot_be_had(home, monkeypatch):
    monkeypatch.setattr(download, "fetch_archive", offline)
    assert data.default_dataset() == "shapes"


def test_cifar10_is_the_default_where_it_can_be_had(home, monkeypatch):
    monkeypatch.setattr(download, "fetch_archive", offline)
    made_up_cifar(home / "data")
    assert data.default_dataset() == "cifar10"


def test_the_default_data_set_can_be_named(home, monkeypatch):
    monkeypatch.setattr(download, "fetch_archive", offline)
    monkeypatch.setenv("ERSM_DATASET", "shapes-spurious")
    assert data.default_dataset() == "shapes-spurious"
