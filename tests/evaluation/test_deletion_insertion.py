"""Deletion and insertion curves against slow loops, closed forms and what each convention states."""

import itertools
from dataclasses import FrozenInstanceError, asdict, replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from ersm_attach import attach_energy_mask
from ersm_lab.evaluation import deletion, inference, rankings
from ersm_lab.evaluation import deletion_insertion as di
from ersm_lab.images import data
from ersm_lab.networks import backbones

GAMES_OF = [(c, g) for c in di.CONVENTIONS for g in di.GAMES if (c, g) != (di.QUANTUS, "insertion")]


class Linear(nn.Module):
    """Two classes, scored by a weighted sum over the image and by its negative."""

    def __init__(self, weight):
        super().__init__()
        self.stage = nn.Identity()
        self.weight = nn.Parameter(weight)  # (3, H, W)

    def forward(self, x):
        score = (self.stage(x) * self.weight).sum((1, 2, 3))
        return torch.stack([score, -score], 1)


class Sees(nn.Module):
    """Class 1 as long as the pixel that is brighter than the rest is seen, else class 0."""

    def __init__(self):
        super().__init__()
        self.stage = nn.Identity()

    def forward(self, x):
        seen = self.stage(x).amax((1, 2, 3)) > 1
        return torch.stack([~seen, seen], 1).float()


def image_set(images, labels=None):
    labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
    return data.ImageSet(
        name="noise",
        images=images,
        labels=labels,
        classes=("a", "b"),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


def noise(count, height, width, seed=0):
    lots = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, height, width, 3), generator=lots, dtype=torch.uint8)
    labels = torch.randint(2, (count,), generator=lots)
    weight = 0.2 * torch.randn(3, height, width, generator=lots)
    importance = torch.randint(4, (count, height, width), generator=lots).float()  # with ties
    return image_set(images, labels), Linear(weight), importance


def with_needed_pixel(place, side=4):
    """One image of label 1 with one bright pixel, and a ranking in which so many pixels precede it."""
    images = torch.full((1, side, side, 3), 100, dtype=torch.uint8)
    images[0, 1, 2] = 250
    order = torch.arange(side * side, 0, -1.0)  # reading order
    here, there = side + 2, place
    order[[here, there]] = order[[there, here]]
    return image_set(images, torch.ones(1, dtype=torch.long)), order.view(1, side, side)


# --- against slow loops ----------------------------------------------------------------------------


def slow_curve(net, images, importance, convention, game):
    """One image, one point, one pixel at a time, in float64; scores (N, points) and areas (N,)."""
    x = images.normalise(images.images).double()
    height, width = x.shape[2:]
    count, (kind, size) = height * width, convention.step
    step = {"units": size, "rows": size * width, "parts": int(np.ceil(count / size))}[kind]
    net = net.double()
    scores, areas = [], []
    for n in range(len(x)):
        whole = x[n]
        fill = convention.deletion_fill if game == "deletion" else convention.insertion_fill
        empty = {
            "zero": torch.zeros_like(whole),
            "minimum": torch.full_like(whole, whole.min().item()),
            "blur": slow_blur(whole),
        }[fill]
        places = [(-importance[n, i, j].item(), i, j) for i in range(height) for j in range(width)]
        places = [(i, j) for _, i, j in sorted(places)]
        image, other = (whole, empty) if game == "deletion" else (empty, whole)
        image, target = image.clone(), images.labels[n].item()
        with torch.no_grad():
            if convention.target == "predicted":
                target = net(whole[None]).argmax().item()
            curve, fractions, done = [], [], 0
            while True:
                if done or convention.includes_start:
                    logits = net(image[None])[0]
                    right = float(logits.argmax().item() == target)
                    probability = (logits[target].exp() / logits.exp().sum()).item()
                    curve.append(right if convention.score == "accuracy" else probability)
                    fractions.append(done / count)
                if done == count:
                    break
                for i, j in places[done : done + step]:
                    image[:, i, j] = other[:, i, j]
                done = min(done + step, count)
        heights = [(a + b) / 2 for a, b in itertools.pairwise(curve)]
        widths = [b - a for a, b in itertools.pairwise(fractions)]
        areas.append(
            {
                "mean of steps": sum(heights) / len(heights),
                "over fraction": sum(h * w for h, w in zip(heights, widths, strict=True)),
                "sum of steps": sum(heights),
            }[convention.area]
        )
        scores.append(curve)
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(areas, dtype=torch.float64)


def slow_blur(image):
    """RISE's kernel as its code makes it, laid over every pixel of (C, H, W) with zeros around."""
    point = np.zeros((11, 11))
    point[5, 5] = 1
    kernel = ndimage.gaussian_filter(point, 5)
    found = [ndimage.correlate(channel, kernel, mode="constant") for channel in image.numpy()]
    return torch.from_numpy(np.stack(found))


@pytest.mark.parametrize("score", ["probability", "accuracy"])
@pytest.mark.parametrize(("convention", "game"), GAMES_OF, ids=lambda v: getattr(v, "name", v))
def test_curves_against_a_slow_reference(convention, game, score):
    images, net, importance = noise(5, 5, 6)  # 30 pixels: short last steps
    convention = replace(convention, score=score)
    found = di.perturbation_curve(net, images, importance, game=game, convention=convention)
    scores, areas = slow_curve(net, images, importance, convention, game)
    assert found.scores.shape == scores.shape
    torch.testing.assert_close(found.scores, scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.auc_by_image, areas, rtol=1e-4, atol=1e-5)
    assert found.auc == pytest.approx(areas.mean().item(), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64, 1_000])
def test_the_batch_size_changes_nothing(batch_size):
    images, net, importance = noise(7, 4, 4)
    settings = dict(game="insertion", convention=di.RISE)
    whole = di.perturbation_curve(net, images, importance, **settings, batch_size=35)
    parts = di.perturbation_curve(net, images, importance, **settings, batch_size=batch_size)
    torch.testing.assert_close(parts.scores, whole.scores)


def test_most_important_first_is_the_negative_of_deletions_order():
    lots = torch.Generator().manual_seed(2)
    importance = torch.randint(5, (3, 4, 5), generator=lots).float()  # with ties
    ranks = di._ranks(importance)
    for count in range(21):
        assert torch.equal(ranks >= count, deletion.keep_masks(-importance, count / 20))


# --- closed forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 5, 9, 15])
def test_area_of_a_step(place):
    """Accuracy is 1 until the needed pixel goes, or from when it comes, and 0 otherwise."""
    images, importance = with_needed_pixel(place)
    net = Sees()

    def area(convention, game):
        convention = replace(convention, score="accuracy", target="label")
        return di.perturbation_curve(net, images, importance, game=game, convention=convention).auc

    rows = place // 4  # whole rows deleted before the pixel
    assert area(di.RISE, "deletion") == pytest.approx((rows + 0.5) / 4)
    assert area(di.TORCHCAM, "deletion") == pytest.approx((place + 0.5) / 16)
    assert area(di.TORCHCAM, "insertion") == pytest.approx((16 - place - 0.5) / 16)
    assert area(di.QUANTUS, "deletion") == pytest.approx(max(0, place - 0.5))
    zero_fill = replace(di.RISE, insertion_fill="zero")
    assert area(zero_fill, "insertion") == pytest.approx((4 - rows - 0.5) / 4)


@pytest.mark.parametrize(("convention", "game"), GAMES_OF, ids=lambda v: getattr(v, "name", v))
def test_no_ranking_of_a_linear_network_beats_the_shares_of_its_logit(convention, game):
    """All 720 rankings of one image of 2 x 3 pixels: the share in the predicted logit is the best."""
    one, net, _ = noise(1, 2, 3, seed=5)
    x = one.normalise(one.images)  # (1, 3, 2, 3)
    convention = replace(convention, target="predicted")
    fill = convention.deletion_fill if game == "deletion" else convention.insertion_fill
    empty = {"zero": torch.zeros_like(x), "minimum": x.amin().expand_as(x), "blur": di.blurred(x)}[
        fill
    ]
    share = (net.weight.detach() * (x - empty)).sum(1)  # (1, 2, 3)
    share = share * (1 if net(x).argmax() == 0 else -1)
    orders = torch.tensor(list(itertools.permutations(range(6)))).float().view(720, 2, 3)
    many = image_set(one.images.expand(720, 2, 3, 3).contiguous())
    settings = dict(game=game, convention=convention)
    every = di.perturbation_curve(net, many, orders, **settings).auc_by_image
    best = di.perturbation_curve(net, one, share, **settings).auc
    worst = di.perturbation_curve(net, one, -share, **settings).auc
    assert every.min() < every.mean() < every.max()
    low, high = (best, worst) if game == "deletion" else (worst, best)
    assert low == pytest.approx(every.min().item(), abs=1e-6)
    assert high == pytest.approx(every.max().item(), abs=1e-6)


def test_a_random_ranking_lies_between_the_best_and_its_reverse():
    images, net, _ = noise(40, 6, 6, seed=1)
    best = rankings.integrated_gradients(net, images, (6, 6))
    chance = deletion.random_ranking((40, 6, 6), seed=0)
    for game, sign in (("deletion", -1), ("insertion", 1)):
        settings = dict(game=game, convention=di.TORCHCAM)
        good, middle, bad = (
            sign * di.perturbation_curve(net, images, ranking, **settings).auc_by_image
            for ranking in (best, chance, -best)
        )
        assert (good >= middle - 1e-6).all() and (middle >= bad - 1e-6).all()
        assert good.mean() > middle.mean() + 0.05 and middle.mean() > bad.mean() + 0.05


def test_insertion_is_deletion_in_reverse_where_both_fill_alike():
    images, net, importance = noise(6, 4, 4)
    importance += deletion.random_ranking((6, 4, 4), seed=1) / 2  # no ties
    deleted, inserted = (
        di.perturbation_curve(net, images, ranking, game=game, convention=di.TORCHCAM)
        for ranking, game in ((importance, "deletion"), (-importance, "insertion"))
    )
    torch.testing.assert_close(deleted.scores, inserted.scores.flip(1))
    assert deleted.auc == pytest.approx(inserted.auc)


# --- conventions -----------------------------------------------------------------------------------


def test_conventions_are_data_and_state_what_they_do():
    stated = {c.name: asdict(c) for c in di.CONVENTIONS}
    for field in ("includes_start", "deletion_fill", "insertion_fill", "step", "target", "area"):
        assert len({str(row[field]) for row in stated.values()}) > 1, field
    assert {row["unit"] for row in stated.values()} == {"pixel"}
    assert {row["score"] for row in stated.values()} == {"probability"}
    assert di.on_tokens(di.RISE).unit == "token"
    with pytest.raises(FrozenInstanceError):
        di.RISE.score = "accuracy"


@pytest.mark.parametrize(
    ("convention", "first", "second", "points"),
    [(di.RISE, 0, 32, 33), (di.TORCHCAM, 0, 52, 21), (di.QUANTUS, 1, 2, 1_024)],
    ids=lambda v: getattr(v, "name", v),
)
def test_where_curves_start_and_how_far_they_step(convention, first, second, points):
    changed = convention.points(32, 32)
    assert changed[:2] == (first, second)
    assert changed[-1] == 1_024
    assert len(changed) == points
    assert list(changed) == sorted(set(changed))


def test_steps_of_other_kinds():
    def points(*step, start=True):
        return replace(di.TORCHCAM, step=step, includes_start=start).points(2, 5)

    assert points("units", 4) == (0, 4, 8, 10)
    assert points("units", 4, start=False) == (4, 8, 10)
    assert points("rows", 1) == (0, 5, 10)
    assert points("parts", 3) == (0, 4, 8, 10)
    assert points("parts", 20) == tuple(range(11))
    assert points("units", 99) == (0, 10)
    assert points("units", 99, start=False) == (10,)


def test_ends_of_the_curves_are_the_image_and_the_fill():
    images, net, importance = noise(5, 4, 4)
    x = images.normalise(images.images)

    def probability(x, target):
        with torch.no_grad():
            return net(x).softmax(1).gather(1, target[:, None])[:, 0].double()

    def ends(convention, game):
        curve = di.perturbation_curve(net, images, importance, game=game, convention=convention)
        return curve.scores[:, 0], curve.scores[:, -1]

    predicted = net(x).argmax(1)
    assert not torch.equal(predicted, images.labels)
    whole, nothing = probability(x, predicted), torch.full((5,), 0.5, dtype=torch.float64)
    for convention in (di.RISE, di.TORCHCAM):
        first, last = ends(convention, "deletion")
        torch.testing.assert_close(first, whole)
        torch.testing.assert_close(last, nothing)  # zeros give logits of 0
    first, last = ends(di.TORCHCAM, "insertion")
    torch.testing.assert_close(first, nothing)
    torch.testing.assert_close(last, whole)
    first, last = ends(di.RISE, "insertion")
    torch.testing.assert_close(first, probability(di.blurred(x), predicted))
    torch.testing.assert_close(last, whole)
    first, last = ends(di.QUANTUS, "deletion")
    darkest = x.amin((1, 2, 3), keepdim=True).expand_as(x)
    torch.testing.assert_close(last, probability(darkest, images.labels))
    assert (first - probability(x, images.labels)).abs().max() > 1e-3  # one pixel is gone


def test_a_blurred_image_is_flat_inside_and_dark_at_its_border():
    flat = di.blurred(torch.ones(1, 2, 21, 21))
    torch.testing.assert_close(flat[:, :, 5:-5, 5:-5], torch.ones(1, 2, 11, 11))
    assert (flat[:, :, 0] < 0.7).all()
    x = torch.randn(1, 3, 9, 12, dtype=torch.float64)
    torch.testing.assert_close(di.blurred(x)[0], slow_blur(x[0]))


# --- tokens ----------------------------------------------------------------------------------------


def masked_network(layer="group2", **settings):
    torch.manual_seed(0)
    net = backbones.CifarNet(backbones.SMOKE)
    attach_energy_mask(net, layer, **settings)
    inference.only_mask(net).weight.data.mul_(5)
    return net


@pytest.fixture(scope="module")
def shapes():
    return data.load("shapes", "test", limit=12)


@pytest.mark.parametrize("game", di.GAMES)
@pytest.mark.parametrize("size", [1, 2])
def test_tokens_are_those_that_the_layer_passes_on(shapes, size, game):
    net = masked_network(patch_size=size, bias_init=0.2).eval()
    importance = rankings.energies(net, shapes, "group2")["energy"]
    convention = di.on_tokens(di.RISE)
    found = di.perturbation_curve(
        net, shapes, importance, game=game, convention=convention, layer="group2"
    )
    x = shapes.normalise(shapes.images)
    with torch.no_grad():
        tokens = net.group2(net.group1(net.stem(x)))  # (N, D, 8, 8), after the mask
        blurred = net.group2(net.group1(net.stem(di.blurred(x))))
        best = net(x).argmax(1)[:, None]
        side = 8 // size
        assert found.grid == (side, side)
        assert found.changed == tuple(range(0, side * side + 1, side))
        for point, count in enumerate(found.changed):
            left = deletion.keep_masks(-importance, count / side**2)  # (N, h, w)
            left = left.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, None]
            mixed = tokens * left if game == "deletion" else torch.where(left, blurred, tokens)
            by_hand = net.classify(net.group3(mixed)).softmax(1).gather(1, best)[:, 0]
            torch.testing.assert_close(found.scores[:, point].float(), by_hand)


def test_accuracy_from_an_open_mask_is_that_of_the_deletion_module(shapes):
    net = masked_network(bias_init=-torch.inf)  # every token kept, wholly
    importance = deletion.random_ranking((12, 8, 8), seed=0)
    convention = replace(di.on_tokens(di.TORCHCAM), score="accuracy", target="label")
    found = di.perturbation_curve(
        net, shapes, importance, game="deletion", convention=convention, layer="group2"
    )
    predict = deletion.network_predictor(net, shapes)
    other = deletion.deletion_curve(predict, -importance, shapes.labels, fractions=found.fractions)
    assert found.mean.tolist() == pytest.approx(other.accuracy)


def test_deleting_what_a_hard_mask_has_dropped_changes_nothing(shapes):
    net = masked_network(preset="stable", bias_init=0.2)
    dropped = inference.collect_masks(net, shapes)[:, 0] == 0  # (N, 8, 8)
    found = di.perturbation_curve(
        net,
        shapes,
        dropped.float(),
        game="deletion",
        convention=replace(di.on_tokens(di.QUANTUS), deletion_fill="zero", includes_start=True),
        layer="group2",
    )
    for scores, count in zip(found.scores, dropped.sum((1, 2)).tolist(), strict=True):
        torch.testing.assert_close(scores[: count + 1], scores[:1].expand(count + 1))
    some_kept = ~dropped.all(2).all(1)
    assert some_kept.any() and (found.scores[some_kept].std(1) > 0).all()


def test_a_dense_network_and_one_map_for_all_images(shapes):
    torch.manual_seed(0)
    net = backbones.CifarNet(backbones.SMOKE)
    settings = dict(game="deletion", convention=di.on_tokens(di.TORCHCAM), layer="group1")
    one = di.perturbation_curve(net, shapes, deletion.centre_prior(16, 16), **settings)
    every = deletion.centre_prior(16, 16).expand(12, 16, 16)
    assert torch.equal(di.perturbation_curve(net, shapes, every, **settings).scores, one.scores)
    assert one.scores.shape == (12, len(one.changed)) and one.changed[:2] == (0, 13)


def test_the_network_is_left_as_it_was(shapes):
    net = masked_network(preset="stable").train()
    hooks = [len(module._forward_hooks) for module in net.modules()]
    values = {name: value.clone() for name, value in net.state_dict().items()}
    importance = torch.rand(12, 8, 8)
    di.perturbation_curve(
        net,
        shapes,
        importance,
        game="insertion",
        convention=di.on_tokens(di.RISE),
        layer="group2",
    )
    assert all(module.training for module in net.modules())
    assert [len(module._forward_hooks) for module in net.modules()] == hooks
    assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())


# --- results, errors --------------------------------------------------------------------


def test_blank_maps_are_counted():
    images, net, importance = noise(5, 4, 4)
    importance[1:3] = 0.5
    curve = di.perturbation_curve(net, images, importance, game="deletion", convention=di.RISE)
    assert curve.blank == 2
    assert curve.fractions == (0, 0.25, 0.5, 0.75, 1)


def test_maps_are_stretched_to_pixels():
    maps = torch.tensor([[[0.0, 4.0], [8.0, 12.0]]])
    found = di.resize(maps, (4, 4))
    rows = torch.tensor([0.0, 1, 3, 4]) + 2 * torch.tensor([0.0, 1, 3, 4])[:, None]
    torch.testing.assert_close(found[0], rows)


def test_bad_input_is_refused(shapes):
    images, net, importance = noise(5, 4, 4)

    def curve(importance=importance, *, game="deletion", convention=di.RISE, layer=None):
        return di.perturbation_curve(
            net, images, importance, game=game, convention=convention, layer=layer
        )

    with pytest.raises(ValueError, match="game must be one of"):
        curve(game="delete")
    with pytest.raises(ValueError, match="Quantus has no insertion: choose another"):
        curve(game="insertion", convention=di.QUANTUS)
    with pytest.raises(ValueError, match=r"give on_tokens\(convention\) and a layer"):
        curve(layer="stage")
    with pytest.raises(ValueError, match=r"give on_tokens\(convention\) and a layer"):
        curve(convention=di.on_tokens(di.RISE))
    with pytest.raises(ValueError, match=r"importance must be \(h, w\) or \(5, h, w\)"):
        curve(importance[:3])
    with pytest.raises(ValueError, match=r"give resize\(importance, \(4, 4\)\)"):
        curve(torch.rand(5, 2, 2))
    with pytest.raises(ValueError, match="holds NaN"):
        curve(torch.full((5, 4, 4), torch.nan))
    with pytest.raises(ValueError, match="which are not the tokens of 'stage'"):
        curve(torch.rand(5, 3, 4), convention=di.on_tokens(di.RISE), layer="stage")
    with pytest.raises(ValueError, match="which are not the tokens of 'group2'"):
        di.perturbation_curve(
            masked_network(),
            shapes,
            torch.rand(12, 4, 4),
            game="deletion",
            convention=di.on_tokens(di.RISE),
            layer="group2",
        )
    with pytest.raises(ValueError, match="deletion_fill must be one of"):
        replace(di.RISE, deletion_fill="grey")
    with pytest.raises(ValueError, match="step must be"):
        replace(di.RISE, step=("parts", 0))
