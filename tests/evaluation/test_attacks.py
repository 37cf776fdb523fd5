"""Attacks against closed forms of linear networks, and against gates that hide their gradient."""

import json
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pyautoattack import AutoAttack
from torch import nn

from ersm_attach import attach_energy_mask
from ersm_core import EnergyMask
from ersm_lab.evaluation import attacks, gradients, inference, under_attack
from ersm_lab.images import data
from ersm_lab.images.data import ImageSet
from ersm_lab.networks import backbones

EPSILONS = (2 / 255, 4 / 255, 8 / 255)
FEW = replace(attacks.SMOKE, apgd_steps=20, targets=9, square_queries=100, batch_size=5)


def image_set(images, labels, classes):
    """images uint8 (N, H, W, 3), labels (N,)."""
    mean, std = (0.5, 0.45, 0.4), (0.25, 0.2, 0.3)
    names = tuple(map(str, range(classes)))
    return ImageSet(name="made", images=images, labels=labels, classes=names, mean=mean, std=std)


def noise(count, *, classes, low=0, high=256, side=4):
    lots = torch.Generator().manual_seed(3)
    images = torch.randint(low, high, (count, side, side, 3), generator=lots, dtype=torch.uint8)
    return image_set(images, torch.arange(count) % classes, classes)


def linear(classes, *, side=4):
    torch.manual_seed(4)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * side**2, classes))


def with_own_answers(model, images):
    """The same images, labelled as the network labels them."""
    return replace(images, labels=inference.predict(model, images).argmax(1))


def linear_survivors(model, images, epsilon):
    """A linear network keeps its answer if every margin exceeds what the ball can take from it:
    epsilon times the L1 distance of the two rows of weights, in pixels. Slow, in float64."""
    weight = model[1].weight.detach().double().view(-1, 3, 4, 4)
    weight = weight / torch.tensor(images.std).double()[:, None, None]  # (classes, 3, 4, 4)
    logits = model.double()(images.normalise(images.images).double()).detach()
    model.float()
    survives = []
    for row, label in zip(logits, images.labels.tolist(), strict=True):
        slack = [
            row[label] - row[other] - epsilon * (weight[label] - weight[other]).abs().sum()
            for other in range(len(row))
            if other != label
        ]
        assert min(abs(s) for s in slack) > 1e-4  # no image on the edge
        survives.append(bool(min(slack) > 0))
    return torch.tensor(survives)


class Quadrants(nn.Module):
    """Scores the four quadrants of what a stage lets by, channel 2 not counting."""

    def __init__(self, stage=None):
        super().__init__()
        self.stage = stage or nn.Identity()

    def forward(self, x):
        score = F.adaptive_avg_pool2d(self.stage(x)[:, :2], 2)  # (B, 2, 2, 2)
        return 10 * score.sum(1).flatten(1)  # (B, 4)


def quadrants(bright, dim, *, count=12):
    """4 x 4 images with one bright quadrant, which is the label; channel 2 is grey."""
    lots = torch.Generator().manual_seed(5)
    labels = torch.arange(count) % 4
    images = torch.full((count, 4, 4, 3), dim, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = 2 * (label // 2), 2 * (label % 2)
        image[top : top + 2, left : left + 2] = bright
    images += torch.randint(3, images.shape, generator=lots, dtype=torch.uint8)
    images[..., 2] = 128
    made = image_set(images, labels, 4)
    return replace(made, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class NoGradientGate(EnergyMask):
    """A 0/1 gate as it comes: its derivative is zero wherever it has one."""

    def _mask(self, z):
        return (z < 0).to(z.dtype)


class RoundingGate(EnergyMask):
    """Keeps everything, rounded to sixteenths: no gradient at all."""

    def forward(self, x):
        return (16 * super().forward(x)).round() / 16


def hiding():
    """A pixel of channel 2 can close the gate; the gradient of the features does not know."""
    gate = NoGradientGate(3, bias_init=-3.0)
    gate.weight.data.copy_(torch.tensor([0.0, 0.0, 100.0]))
    return Quadrants(gate).eval()


def rounding():
    gate = RoundingGate(3, bias_init=-50.0)
    gate.weight.data.zero_()
    return Quadrants(gate).eval()


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Reversed(nn.Module):
    def forward(self, x):
        return _Reversed.apply(x)


@pytest.fixture(scope="module")
def shapes():
    return data.load("shapes", "test", limit=24)


@pytest.fixture(scope="module")
def trained(shapes):
    """A tiny network with a hard gate, fitted to the images it is attacked on."""
    torch.manual_seed(0)
    network = backbones.CifarNet(backbones.SMOKE)
    x, y = shapes.normalise(shapes.images), shapes.labels
    network.whiten(x)
    attach_energy_mask(network, "group2", preset="stable")
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 3e-3)
    for _ in range(25):
        optimiser.zero_grad()
        F.cross_entropy(9 * network(x), y).backward()
        optimiser.step()
    network.zero_grad()
    return network.eval()


# --- networks that take pixels ---------------------------------------------------------------------


def test_pixels_are_normalised_as_the_data_set_does(shapes):
    for images in (shapes, noise(10, classes=2)):
        seen = attacks.PixelNetwork(nn.Identity(), images)(attacks.pixels_of(images))
        assert torch.equal(seen, images.normalise(images.images))


def test_a_network_sees_the_same_through_pixels(trained, shapes):
    with torch.no_grad():
        logits = attacks.PixelNetwork(trained, shapes)(attacks.pixels_of(shapes))
    torch.testing.assert_close(logits, inference.predict(trained, shapes))


# --- closed forms ----------------------------------------------------------------------------------


def test_fgsm_of_a_linear_network():
    images, model, epsilon = noise(12, classes=5), linear(5), 8 / 255
    x = attacks.pixels_of(images)
    attacked = attacks.fgsm(attacks.PixelNetwork(model, images), x, images.labels, epsilon=epsilon)
    p = inference.predict(model, images).double().softmax(1)
    weight = model[1].weight.detach().double()
    for image, before, share, label in zip(attacked, x, p, images.labels.tolist(), strict=True):
        share[label] -= 1
        slope = (share @ weight).view(3, 4, 4) / torch.tensor(images.std).double()[:, None, None]
        by_hand = (before.double() + epsilon * slope.sign()).clamp(0, 1)
        torch.testing.assert_close(image.double(), by_hand, atol=1e-6, rtol=0)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_accuracy_of_a_linear_network_of_two_classes(attack):
    model = linear(2)
    images = with_own_answers(model, noise(40, classes=2, low=60, high=190))
    settings = replace(FEW, images=40, attacks=(attack,), epsilons=EPSILONS, pgd_steps=20)
    report = under_attack.evaluate_attacks(model, images, settings)
    for epsilon in EPSILONS:
        expected = linear_survivors(model, images, epsilon)
        assert torch.equal(report.outcome(attack, epsilon).survives, expected)
    assert 0 < expected.sum() < 40


def test_autoattack_of_a_linear_network_of_five_classes():
    model = linear(5)
    images = with_own_answers(model, noise(15, classes=5, low=60, high=190))
    settings = replace(FEW, apgd_steps=10, square_queries=20, batch_size=15)
    settings = replace(settings, attacks=("autoattack",), epsilons=(2 / 255, 4 / 255))
    report = under_attack.evaluate_attacks(model, images, settings)
    for epsilon in settings.epsilons:
        expected = linear_survivors(model, images, epsilon)
        found = report.outcome("autoattack", epsilon)
        assert torch.equal(found.survives, expected)
        assert found.left_after["square"] == expected.sum()
    assert 0 < expected.sum() < 15


# --- AutoAttack is AutoAttack ----------------------------------------------------------------------


def test_the_defaults_are_the_standard_version():
    network = attacks.PixelNetwork(linear(10), noise(1, classes=10))
    standard = AutoAttack(network, norm="Linf", eps=8 / 255, seed=0, version="standard")
    members = attacks.autoattack_members(network, epsilon=8 / 255, classes=10)
    assert list(members) == standard.attacks_to_run
    theirs = (standard.apgd, standard.apgd_targeted, standard.fab, standard.square)
    for perturb, their in zip(members.values(), theirs, strict=True):
        apart = {"device", "logger", "targeted"}  # their fab becomes targeted when it is run
        ours, expected = (
            {k: v for k, v in vars(o).items() if k not in apart} for o in (perturb.__self__, their)
        )
        assert ours == expected
    assert members["fab-t"].__self__.targeted


def test_each_attack_goes_on_with_what_is_left_as_in_the_library(trained, shapes):
    epsilon, settings = 4 / 255, replace(FEW, images=10, apgd_steps=3, targets=2, square_queries=5)
    settings = replace(settings, attacks=("autoattack",), epsilons=(epsilon,), surrogates=())
    report = under_attack.evaluate_attacks(trained, shapes, settings)
    network = attacks.PixelNetwork(trained, shapes)
    members = attacks.autoattack_members(network, epsilon=epsilon, classes=10, settings=settings)
    library = AutoAttack(network, attacks=list(members), eps=epsilon, seed=0, version="custom")
    library.apgd, library.apgd_targeted, library.fab, library.square = (
        perturb.__self__ for perturb in members.values()
    )
    x, y = attacks.pixels_of(shapes)[:10], shapes.labels[:10]
    tracing = sys.gettrace()  # the library's check for changing networks switches tracing off
    attacked, _ = library.run_standard_evaluation(x, y, batch_size=5)
    sys.settrace(tracing)
    found = report.outcome("autoattack", epsilon)
    assert torch.equal(found.survives, network(attacked).argmax(1) == y)
    assert 0 < found.survives.sum() < report.clean.sum()


# --- what must hold of every attack ----------------------------------------------------------------


@pytest.mark.parametrize("kind", [None, *attacks.SURROGATES])
def test_attacked_images_stay_in_the_ball_and_in_range(trained, shapes, kind):
    images = replace(shapes[:6], images=shapes.images[:6].clone())
    images.images[:, :8], images.images[:, 8:16] = 0, 255
    network, epsilon = attacks.PixelNetwork(trained, images), 8 / 255
    x, y = attacks.pixels_of(images), images.labels
    settings = replace(FEW, apgd_steps=3, targets=1, square_queries=3)
    members = attacks.autoattack_members(network, epsilon=epsilon, classes=10, settings=settings)
    if kind:
        with gradients.surrogate(trained, kind):
            moved = [f(network, x, y, epsilon=epsilon) for f in (attacks.fgsm, attacks.pgd)]
    else:
        moved = [f(network, x, y, epsilon=epsilon) for f in (attacks.fgsm, attacks.pgd)]
        y = network(x).argmax(1)  # what is wrong from the start is not attacked
        moved += [perturb(x, y) for perturb in members.values()]
    for attacked in moved:
        assert attacked.min() >= 0 and attacked.max() <= 1
        assert (attacked - x).abs().max() <= epsilon + 1e-6
    assert all((attacked != x).any() for attacked in moved[:2])


def test_pgd_is_never_above_clean_and_falls_with_epsilon(trained, shapes):
    """Each outcome by itself, without the smaller epsilons that `worst` takes in. No attack has to:
    a longer step may overshoot. Of 20 steps the best is kept, and on this network it does."""
    settings = attacks.AttackSettings(attacks=("pgd",), images=16)
    report = under_attack.evaluate_attacks(trained, shapes, settings)
    for route in ("direct", *attacks.SURROGATES):
        left = [report.outcome("pgd", e, route).survives.sum() for e in EPSILONS]
        assert report.clean.sum() >= left[0] >= left[1] >= left[2]
    assert report.clean.sum() > report.worst(EPSILONS[2]).sum()
    assert torch.equal(report.clean, inference.answers(trained, shapes[:16]))


def test_an_attack_that_makes_an_answer_right_has_not_made_it_survive():
    model = nn.Sequential(Reversed(), *linear(2))
    images = with_own_answers(model, noise(40, classes=2))
    images = replace(images, labels=(images.labels + torch.arange(40) % 2) % 2)  # half are wrong
    x, y = attacks.pixels_of(images), images.labels
    network = attacks.PixelNetwork(model, images)
    attacked = attacks.fgsm(network, x, y, epsilon=8 / 255)
    assert (network(attacked).argmax(1) == y).sum() > 20  # it follows a gradient that lies
    report = under_attack.evaluate_attacks(
        model, images, replace(FEW, images=40, attacks=("fgsm",))
    )
    assert report.outcome("fgsm", 8 / 255).survives.sum() == report.clean.sum() == 20


def test_of_the_steps_the_one_of_the_highest_loss_is_kept():
    """Where every step lowers the loss, the random start."""
    model = nn.Sequential(Reversed(), *linear(2))
    images = with_own_answers(model, noise(10, classes=2, low=60, high=190))
    network, x = attacks.PixelNetwork(model, images), attacks.pixels_of(images)
    lots = torch.Generator().manual_seed(0)
    kept = attacks.pgd(network, x, images.labels, epsilon=0.1, steps=3, generator=lots)
    start = x + 0.1 * (2 * torch.rand(x.shape, generator=lots.manual_seed(0)) - 1)
    torch.testing.assert_close(kept, start)


def test_of_the_steps_one_that_fools_comes_before_one_of_higher_loss():
    class Trade(nn.Module):
        """The loss grows with the brightness; dark images are wrong by a hair, bright ones right."""

        def forward(self, x):
            share = torch.sigmoid(20 * (x.mean((1, 2, 3)) - 0.5))[:, None]  # (B, 1)
            dark, bright = torch.tensor([[0, 0.1, -1.5, -1.5], [1, 0.9, 0.9, 0.9]])
            return share * bright + (1 - share) * dark  # (B, 4)

    x, y = torch.full((40, 3, 1, 1), 0.5), torch.zeros(40, dtype=torch.long)
    lots = torch.Generator().manual_seed(0)
    kept = attacks.pgd(Trade(), x, y, epsilon=0.2, steps=10, generator=lots)
    dark = torch.rand(x.shape, generator=lots.manual_seed(0)).mean((1, 2, 3)) < 0.5  # at the start
    assert torch.equal(Trade()(kept).argmax(1) != y, dark) and 0 < dark.sum() < 40


def test_the_same_seed_gives_the_same_and_nothing_is_left_changed(trained, shapes):
    trained.train()
    trained.head.weight.grad = torch.ones_like(trained.head.weight)
    before = torch.random.get_rng_state()
    modes = [m.training for m in trained.modules()]
    asking = [p.requires_grad for p in trained.parameters()]
    hooks = [len(m._forward_hooks) for m in trained.modules()]
    settings = replace(attacks.SMOKE, images=6, batch_size=4, epsilons=(8 / 255,), apgd_steps=2)
    first, again = (under_attack.evaluate_attacks(trained, shapes, settings) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert modes == [m.training for m in trained.modules()]
    assert asking == [p.requires_grad for p in trained.parameters()]
    assert hooks == [len(m._forward_hooks) for m in trained.modules()]
    assert (trained.head.weight.grad == 1).all()
    assert not inference.only_mask(trained).detach_tokens
    trained.zero_grad()
    trained.eval()
    assert first.summary() == again.summary()
    for one, other in zip(first.outcomes, again.outcomes, strict=True):
        assert torch.equal(one.survives, other.survives)


def test_random_starts_differ_between_seeds():
    images = noise(3, classes=2)
    network, x = attacks.PixelNetwork(linear(2), images), attacks.pixels_of(images)
    runs = []
    for seed in (1, 1, 2):
        lots = torch.Generator().manual_seed(seed)
        kept = attacks.pgd(
            network, x, images.labels, epsilon=0.1, steps=1, step=0.1, generator=lots
        )
        runs.append(kept)
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


# --- gates that hide their gradient ----------------------------------------------------------------


def test_a_soft_surrogate_breaks_a_gate_without_gradient():
    model, images = hiding(), quadrants(191, 153)
    settings = replace(attacks.STANDARD, attacks=("fgsm", "pgd"), epsilons=(8 / 255,))
    report = under_attack.evaluate_attacks(model, images, settings)
    assert report.clean.all()
    assert report.outcome("fgsm", 8 / 255).survives.all()  # it looks robust
    assert report.outcome("pgd", 8 / 255).survives.sum() > 6
    assert not report.outcome("pgd", 8 / 255, "soft").survives.any()  # and is not
    assert not report.worst(8 / 255).any()
    check = report.gradients
    assert not check.zero.any() and (check.through_mask == 0).all()
    summary = report.summary()
    assert summary["gradients"]["none_through_mask_share"] == 1
    assert summary["attacks"][0]["only_by_surrogate"] > 0


def test_a_gradient_past_the_gate_breaks_one_that_has_none():
    model, images = rounding(), quadrants(140, 128)
    settings = replace(attacks.STANDARD, attacks=("fgsm", "pgd"), epsilons=(8 / 255,))
    report = under_attack.evaluate_attacks(model, images, settings)
    assert report.clean.all() and report.gradients.zero.all()
    assert report.outcome("fgsm", 8 / 255).survives.all()
    for attack in settings.attacks:
        direct, bpda = (
            report.outcome(attack, 8 / 255, r).survives.sum() for r in ("direct", "bpda")
        )
        assert bpda < direct
    assert not report.outcome("fgsm", 8 / 255, "bpda").survives.any()
    found = report.summary()["gradients"]
    assert found["zero_share"] == 1
    assert found["agreement"][0]["median"] is None
    assert found["agreement"][0]["share_within_10_percent"] == 0


def test_square_alone_breaks_what_has_no_gradient():
    settings = replace(FEW, attacks=("autoattack",), epsilons=(8 / 255,), surrogates=())
    settings = replace(settings, apgd_steps=3, targets=1, square_queries=200)
    report = under_attack.evaluate_attacks(rounding(), quadrants(140, 128), settings)
    left = report.outcome("autoattack", 8 / 255).left_after
    assert list(left) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert left["square"] < left["fab-t"]


def test_bpda_answers_as_the_network_does_and_passes_every_gradient(trained, shapes):
    x = shapes.normalise(shapes.images[:4])
    mask, seen = inference.only_mask(trained), []
    expected = trained(x).detach()
    with gradients.surrogate(trained, "bpda"):
        handle = mask.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
        logits = trained(x)
        handle.remove()
    assert torch.equal(logits, expected)
    before, after = seen[0]  # (4, C, 8, 8) each
    weights = torch.randn_like(after)
    (gradient,) = torch.autograd.grad((weights * after).sum(), before)
    assert torch.equal(gradient, weights) and (after == 0).any()


@pytest.mark.parametrize("patch_size", [1, 2])
def test_the_soft_surrogate_by_hand(patch_size):
    torch.manual_seed(1)
    mask = EnergyMask(3, patch_size=patch_size, hard=True, noise=0.0, detach_tokens=True).eval()
    model, x = nn.Sequential(mask), torch.randn(2, 3, 4, 4, requires_grad=True)
    tokens = F.pixel_unshuffle(x, patch_size)  # (2, 3 s s, 4 / s, 4 / s)
    z = torch.einsum("bdhw,d->bhw", F.normalize(tokens, dim=1), mask.weight) + mask.bias
    soft = torch.sigmoid(-z / 0.3)[:, None].repeat_interleave(patch_size, 2)
    by_hand = x * soft.repeat_interleave(patch_size, 3)
    with gradients.surrogate(model, "soft", temperature=0.3):
        found = model(x)
    torch.testing.assert_close(found, by_hand)
    slopes = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, by_hand)]
    torch.testing.assert_close(*slopes)
    assert mask.detach_tokens and set(model(x).div(x).unique().tolist()) <= {0.0, 1.0}


def test_a_soft_energy_gate_is_its_own_surrogate():
    mask = EnergyMask(3, gate="energy", lambda_unary=0.5).eval()
    x = torch.randn(2, 3, 4, 4)
    with gradients.surrogate(mask, "soft", temperature=0.3):
        found = mask(x)
    assert torch.equal(found, mask(x))


def test_every_mask_becomes_soft_and_one_that_is_off_stays_so():
    masks = [EnergyMask(3, hard=True).eval() for _ in range(3)]
    masks[2].enabled = False
    model, x = nn.Sequential(*masks), torch.randn(2, 3, 4, 4)
    with gradients.surrogate(model, "soft"):
        found = model(x)
    soft = x
    for mask in masks[:2]:
        soft = soft * torch.sigmoid(-mask.compute(soft).logit)
    torch.testing.assert_close(found, soft)


# --- the gradient check ----------------------------------------------------------------------------


def test_an_honest_gradient_agrees_with_finite_differences(shapes):
    torch.manual_seed(0)
    dense = backbones.CifarNet(backbones.SMOKE)
    check = gradients.gradient_check(dense, shapes[:8], batch_size=3)
    torch.testing.assert_close(check.agreement[1e-5], torch.ones(8).double(), atol=1e-2, rtol=0)
    assert not check.zero.any() and not check.non_finite.any()
    assert check.through_mask is None and "through_mask_median" not in check.summary()


def test_finite_differences_of_a_known_loss():
    """Of one image and two classes the loss is log(1 + exp(-margin)), the margin linear."""
    model, step = linear(2), 0.05
    images = with_own_answers(model, noise(1, classes=2))
    check = gradients.gradient_check(model, images, steps=(step,))
    weight = model[1].weight.detach().double()
    slope = ((weight[0] - weight[1]).view(3, 4, 4) / torch.tensor(images.std)[:, None, None]).abs()
    logits = inference.predict(model, images)[0].double()
    margin = (logits.max() - logits.min()).item()
    change = (slope.square().sum() / slope.max() * step).item()  # of the margin
    share = torch.sigmoid(torch.tensor(-margin)).item()
    loss = [torch.tensor(-margin + s * change).double().exp().log1p().item() for s in (1, -1)]
    expected = (loss[0] - loss[1]) / (2 * share * change)
    assert check.agreement[step].item() == pytest.approx(expected, rel=1e-5)


def test_a_gradient_that_lies_is_found_out():
    model = nn.Sequential(Reversed(), *linear(2))
    check = gradients.gradient_check(model, noise(5, classes=2))
    torch.testing.assert_close(check.agreement[1e-5], -torch.ones(5).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", [{"detach_tokens": True}, {"hard": True}, {}])
def test_what_passes_the_mask(settings, shapes):
    torch.manual_seed(0)
    network = backbones.CifarNet(backbones.SMOKE)
    attach_energy_mask(network, "group2", temperature=0.2, **settings)
    mask = inference.only_mask(network)
    mask.weight.data.mul_(5)
    check = gradients.gradient_check(network, shapes[:6])
    blind = bool(settings.get("detach_tokens"))
    assert torch.equal(check.through_mask < 1e-6, torch.full((6,), blind))
    honest = (check.agreement[1e-5] - 1).abs() < 0.01
    assert honest.all() == (not settings)  # a straight-through gradient is no derivative
    assert check.summary()["none_through_mask_share"] == blind


def test_gradients_that_are_not_finite_are_counted_and_not_followed():
    class Root(nn.Module):
        def forward(self, x):
            height = x.flatten(1).sum(1)  # (B,)
            return torch.stack([height, (0 * height).sqrt()], 1)

    images = noise(4, classes=2)
    check = gradients.gradient_check(Root(), images)
    assert check.non_finite.all() and check.summary()["non_finite_share"] == 1
    x = attacks.pixels_of(images)
    network = attacks.PixelNetwork(Root(), images)
    assert torch.equal(attacks.fgsm(network, x, images.labels, epsilon=0.1), x)


def test_a_network_that_does_not_look_survives_everything():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.eye(4)[0].repeat(len(x), 1)  # (B, 4)

    images = replace(noise(3, classes=4), labels=torch.zeros(3, dtype=torch.long))
    report = under_attack.evaluate_attacks(Constant(), images, attacks.SMOKE)
    assert report.worst(8 / 255).all() and report.gradients.zero.all()


# --- the report ------------------------------------------------------------------------------------


def made_report():
    """Four images, two epsilons; the second image falls at the smaller one only."""
    settings = attacks.AttackSettings(attacks=("fgsm", "pgd"), epsilons=(0.1, 0.2))
    rows = {
        ("fgsm", 0.1, "direct"): [1, 0, 1, 0],
        ("fgsm", 0.2, "direct"): [1, 1, 1, 0],
        ("fgsm", 0.1, "soft"): [1, 1, 1, 0],
        ("fgsm", 0.2, "soft"): [1, 1, 0, 0],
        ("pgd", 0.1, "direct"): [1, 1, 1, 0],
        ("pgd", 0.2, "direct"): [0, 1, 1, 0],
    }
    outcomes = tuple(
        under_attack.Outcome(attack=a, epsilon=e, route=r, survives=torch.tensor(s).bool())
        for (a, e, r), s in rows.items()
    )
    checked = gradients.GradientCheck(
        zero=torch.zeros(4).bool(), non_finite=torch.zeros(4).bool(), agreement={0.1: torch.ones(4)}
    )
    clean = torch.tensor([1, 1, 1, 0]).bool()
    return under_attack.AttackReport(
        settings=settings, clean=clean, outcomes=outcomes, gradients=checked
    )


def test_the_worst_case_is_over_routes_attacks_and_smaller_epsilons():
    report = made_report()
    assert report.worst(0.1, "fgsm").tolist() == [True, False, True, False]
    assert report.worst(0.2, "fgsm").tolist() == [True, False, False, False]
    assert report.worst(0.2).tolist() == [False] * 4
    assert report.worst(0.1, "pgd").tolist() == [True, True, True, False]


def test_the_summary_goes_into_a_record():
    found = json.loads(json.dumps(made_report().summary()))
    assert found["images"] == 4 and found["settings"]["seed"] == 0
    assert found["clean"]["accuracy"] == 0.75
    assert found["worst_case"][1]["accuracy"] == 0
    second = found["attacks"][1]
    assert (second["attack"], second["epsilon"]) == ("fgsm", 0.2)
    assert second["by_route"] == {"direct": 0.75, "soft": 0.5}
    assert second["worst_case"]["accuracy"] == 0.25 and second["only_by_surrogate"] == 1


def test_intervals_are_wilsons():
    report, z = made_report(), 1.959963984540054
    for right in (0, 3, 10):
        p = right / 10
        middle = (p + z**2 / 20) / (1 + z**2 / 10)
        half = z / (1 + z**2 / 10) * (p * (1 - p) / 10 + z**2 / 400) ** 0.5
        found = report.interval(torch.arange(10) < right)
        assert found == pytest.approx((middle - half, middle + half), abs=1e-9)


# --- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attacks": ("cw",)}, "choose from fgsm, pgd, autoattack"),
        ({"attacks": ()}, "no attack to run"),
        ({"surrogates": ("ones",)}, "choose from soft, bpda"),
        ({"surrogates": ("soft", "soft")}, "each surrogate once"),
        ({"epsilons": (8 / 255, 2 / 255)}, "the smallest first"),
        ({"epsilons": ()}, "the smallest first"),
        ({"epsilons": (8,)}, "8 / 255"),
        ({"images": 0}, "images must be a whole number of at least 1"),
        ({"pgd_step": 0.0}, "pgd_step must be a finite number above 0"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"confidence": 95}, "above 0 and below 1, got 95"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        attacks.AttackSettings(**settings)


def test_bad_input_is_refused():
    images, model = noise(3, classes=3), linear(3)
    network = attacks.PixelNetwork(model, images)
    with pytest.raises(ValueError, match='leave "autoattack" out'):
        under_attack.evaluate_attacks(model, images, replace(FEW, attacks=("autoattack",)))
    with pytest.raises(ValueError, match="no images"):
        gradients.gradient_check(model, images[:0])
    with pytest.raises(ValueError, match="above 0"):
        gradients.gradient_check(model, images, steps=(0.0,))
    for attack in (attacks.fgsm, attacks.pgd):
        with pytest.raises(ValueError, match="not normalised input"):
            attack(network, images.normalise(images.images), images.labels, epsilon=0.1)
        with pytest.raises(ValueError, match="labels"):
            attack(network, attacks.pixels_of(images), images.labels[:2], epsilon=0.1)
        with pytest.raises(ValueError, match="units of 0 to 1"):
            attack(network, attacks.pixels_of(images), images.labels, epsilon=-0.1)
    for kind, message in {"hard": "one of soft, bpda", "soft": "attack it directly"}.items():
        with pytest.raises(ValueError, match=message), gradients.surrogate(model, kind):
            pass
    with pytest.raises(ValueError, match="above 0"):
        with gradients.surrogate(EnergyMask(3), "soft", temperature=0):
            pass
    report = made_report()
    for ask in (lambda: report.worst(0.3), lambda: report.outcome("pgd", 0.1, "bpda")):
        with pytest.raises(ValueError, match="was not run"):
            ask()


def test_an_attack_that_leaves_the_ball_is_an_error(monkeypatch):
    far = lambda network, x, y, *, epsilon: (x + 2 * epsilon).clamp(0, 1)  # noqa: E731
    monkeypatch.setattr(under_attack, "fgsm", far)
    with pytest.raises(RuntimeError, match="changed by"):
        under_attack.evaluate_attacks(
            linear(2), noise(2, classes=2), replace(FEW, attacks=("fgsm",))
        )
