"""What is said of a trained network: accuracy, what its masks do, and the controls of both."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ersm_attach import attach_energy_mask
from ersm_core import EnergyMask
from ersm_lab.evaluation import inference
from ersm_lab.images.data import ImageSet

COUNT, SIDE = 30, 4


class Reader(nn.Module):
    """A stage for the mask, and a linear score of the left and the right half of what it lets by."""

    def __init__(self):
        super().__init__()
        self.stage = nn.Identity()
        self.head = nn.Linear(6, 3, bias=False)
        self.noise = nn.Dropout(0.5)

    def forward(self, x):
        x = self.stage(x)  # (B, 3, H, W)
        return self.head(self.noise(nn.functional.adaptive_avg_pool2d(x, (1, 2)).flatten(1)))


@pytest.fixture
def images():
    lots = torch.Generator().manual_seed(1)
    return ImageSet(
        name="noise",
        images=torch.randint(256, (COUNT, SIDE, SIDE, 3), generator=lots, dtype=torch.uint8),
        labels=torch.arange(COUNT) % 3,
        classes=("a", "b", "c"),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


def reader(*, masked=True, **settings):
    torch.manual_seed(2)
    model = Reader()
    if masked:
        attach_energy_mask(model, "stage", channels=3, **settings)
        mask = inference.only_mask(model)
        mask.weight.data.mul_(6)  # masks that differ between images and between positions
    return model.train()


def hooks(model):
    return [len(m._forward_hooks) for m in model.modules()]


def modes(model):
    return [m.training for m in model.modules()]


def logits_by_hand(model, images, m):
    """Logits (N, 3) if the stage let x * m by; m broadcasts to (N, 1, H, W)."""
    x = images.normalise(images.images) * m  # (N, 3, H, W)
    return model.head(nn.functional.adaptive_avg_pool2d(x, (1, 2)).flatten(1)).detach()


# --- accuracy --------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_network_in_evaluation_mode(images):
    model = reader(masked=False)
    x = images.normalise(images.images)
    expected = model.eval()(x).detach()
    logits = inference.predict(model.train(), images)
    assert torch.equal(logits, expected) and not logits.requires_grad
    assert logits.shape == (COUNT, 3) and logits.dtype == torch.float32


def test_images_are_taken_in_order_over_several_batches(images, monkeypatch):
    model = reader(masked=False)
    whole = inference.predict(model, images)
    monkeypatch.setattr(ImageSet.inputs, "__defaults__", (4,))
    torch.testing.assert_close(inference.predict(model, images), whole)


def test_with_flip_the_mirror_image_counts_as_much(images):
    model = reader()
    mirrored = replace(images, images=images.images.flip(2))
    plain, other = (inference.predict(model, part) for part in (images, mirrored))
    assert not torch.allclose(plain, other)
    both = inference.predict(model, images, flip=True)
    torch.testing.assert_close(both, (plain + other) / 2)
    torch.testing.assert_close(inference.predict(model, mirrored, flip=True), both)


def test_accuracy_is_the_share_of_right_answers(images):
    class Says(nn.Module):
        def forward(self, x):
            return torch.eye(3)[torch.tensor([0, 1, 2, 0, 1, 0, 0, 0, 0])]  # 6 of 9 are right

    assert inference.accuracy(Says(), images[:9]) == pytest.approx(6 / 9)


def test_modes_come_back_as_they_were_one_by_one(images):
    model = reader()
    model.head.eval()
    before = modes(model)
    inference.evaluate(model, images)
    assert modes(model) == before and len(set(before)) == 2


def test_modes_come_back_after_an_exception():
    model = reader()
    model.head.eval()
    before = modes(model)
    with pytest.raises(KeyError), inference.evaluating(model):
        assert modes(model) == [False] * len(before) and not torch.is_grad_enabled()
        raise KeyError
    assert modes(model) == before and torch.is_grad_enabled()


# --- masks -----------------------------------------------------------------------------------------


def test_masks_are_collected_of_every_image_in_order(images, monkeypatch):
    model = reader()
    with inference.evaluating(model):
        model(images.normalise(images.images))
    expected = inference.only_mask(model).state.mask
    monkeypatch.setattr(ImageSet.inputs, "__defaults__", (4,))
    masks = inference.collect_masks(model, images)
    assert masks.shape == (COUNT, 1, SIDE, SIDE) and not masks.requires_grad
    torch.testing.assert_close(masks, expected)


def test_hard_masks_are_free_of_noise_when_evaluated(images):
    model = reader(hard=True)
    first, again = (inference.collect_masks(model, images) for _ in range(2))
    assert torch.equal(first, again) and set(first.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("count", [0, 2])
def test_only_mask_wants_exactly_one(count):
    model = nn.Sequential(*(EnergyMask(3) for _ in range(count)))
    with pytest.raises(ValueError, match=f"one energy mask, this one has {count}"):
        inference.only_mask(model)


def test_statistics_of_masks_made_by_hand():
    masks = torch.tensor(
        [
            [[1.0, 1.0], [1.0, 1.0]],  # all kept
            [[1.0, 0.0], [1.0, 0.0]],  # half kept
            [[1.0, 0.0], [0.0, 0.0]],
        ]
    )[:, None]
    found = inference.mask_statistics(masks, torch.tensor([2, 0, 2]), classes=3)
    assert found["kept_fraction"] == pytest.approx(7 / 12)
    between = (((1 - 7 / 12) ** 2 + (1 / 2 - 7 / 12) ** 2 + (1 / 4 - 7 / 12) ** 2) / 3) ** 0.5
    assert found["between_images_sd"] == pytest.approx(between)
    assert found["within_image_sd"] == pytest.approx((0 + 0.5 + 0.1875**0.5) / 3)
    at_position = torch.tensor([1, 1 / 3, 2 / 3, 1 / 3])
    assert found["position_sd"] == pytest.approx(at_position.std(correction=0).item())
    assert found["kept_by_class"] == pytest.approx([0.5, None, 0.625])


def test_a_fixed_pattern_differs_between_positions_only():
    pattern = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).expand(5, 1, 2, 2)
    found = inference.mask_statistics(pattern, torch.zeros(5, dtype=torch.long), classes=1)
    assert found["between_images_sd"] == 0
    assert [found["position_sd"], found["within_image_sd"]] == pytest.approx([0.1875**0.5] * 2)


# --- controls --------------------------------------------------------------------------------------


def test_each_control_is_the_accuracy_with_that_mask_instead(images, monkeypatch):
    model = reader()
    masks = inference.collect_masks(model, images)
    by_hand = {"uniform": masks.mean(), "position_mean": masks.mean(0), "ones": torch.ones(())}
    by_hand["other_image"] = torch.cat([masks[-1:], masks[:-1]])  # each has that of the one before
    scores = inference.mask_controls(model, images, masks)
    monkeypatch.setattr(inference, "accuracy", inference.predict)  # logits tell more
    found = inference.mask_controls(model, images, masks)
    assert found.keys() == scores.keys() == by_hand.keys()
    for name, m in by_hand.items():
        logits = logits_by_hand(model, images, m)
        torch.testing.assert_close(found[name], logits, msg=name)
        right = logits.argmax(1) == images.labels
        assert scores[name] == right.double().mean().item()


def test_ones_are_the_network_without_its_mask(images):
    model = reader(hard=True)
    mask = inference.only_mask(model)
    with inference.replaced_mask(mask, torch.ones_like):
        opened = inference.predict(model, images)
    masked = inference.predict(model, images)
    mask.enabled = False
    assert torch.equal(opened, inference.predict(model, images))
    assert not torch.equal(opened, masked)


def test_a_replaced_mask_multiplies_x_at_every_position_of_its_patches():
    mask = EnergyMask(3, patch_size=2).eval()
    x = torch.randn(2, 3, 4, 6)
    instead = torch.rand(2, 1, 2, 3)
    with inference.replaced_mask(mask, lambda m: instead):
        y = mask(x)
    spread = instead.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(y, x * spread)
    assert not torch.equal(mask(x), y)


def test_hooks_and_modes_are_put_back_after_an_exception(images):
    model = reader()
    mask = inference.only_mask(model)
    state = hooks(model), modes(model)
    with pytest.raises(KeyError), inference.replaced_mask(mask, torch.ones_like):
        raise KeyError
    assert (hooks(model), modes(model)) == state
    with pytest.raises(RuntimeError):  # masks of another size
        inference.mask_controls(model, images, torch.rand(COUNT, 1, SIDE + 1, SIDE + 1))
    assert (hooks(model), modes(model)) == state


# --- invariants and metrics ------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [False, True])
def test_a_sound_network_meets_the_invariants_and_is_left_as_it_was(images, hard):
    model = reader(hard=hard)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = inference.check_invariants(model, images)
    assert 0 <= found["mask_min"] < found["mask_max"] <= 1 and found["energy_min"] >= 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert inference.only_mask(model).enabled


def test_a_mask_outside_0_to_1_breaks_an_invariant(images, monkeypatch):
    monkeypatch.setattr(EnergyMask, "_mask", lambda self, z: 1.5 * torch.sigmoid(-z))
    with pytest.raises(RuntimeError, match="a mask outside 0 to 1"):
        inference.check_invariants(reader(), images)


def test_a_mask_that_cannot_open_breaks_an_invariant(images, monkeypatch):
    monkeypatch.setattr(EnergyMask, "_mask", lambda self, z: 0.99 * torch.sigmoid(-z))
    with pytest.raises(RuntimeError, match="wide open"):
        inference.check_invariants(reader(), images)


def test_a_network_with_noise_breaks_an_invariant(images, monkeypatch):
    monkeypatch.setattr(EnergyMask, "_mask", lambda self, z: torch.sigmoid(torch.randn_like(z) - z))
    with pytest.raises(RuntimeError, match="same answer twice"):
        inference.check_invariants(reader(), images)


def test_the_metrics_of_a_dense_network(images):
    found = inference.evaluate(reader(masked=False), images)
    assert set(found) == {"test_accuracy", "test_accuracy_flip", "parameters"}
    assert found["parameters"] == 6 * 3


def test_the_metrics_of_a_masked_network_hold_together(images):
    model = reader()
    found = inference.evaluate(model, images)
    masks = inference.collect_masks(model, images)
    assert found["test_accuracy"] == inference.accuracy(model, images)
    assert found["test_accuracy_flip"] == inference.accuracy(model, images, flip=True)
    assert found["mask"] == inference.mask_statistics(masks, images.labels, 3)
    controls = found["accuracy_with_mask_replaced"]
    assert controls == inference.mask_controls(model, images, masks)
    assert found["invariants"]["mask_min"] == masks.min().item()
    assert found["invariants"]["mask_max"] == masks.max().item()


class TwoStages(Reader):
    """As `Reader`, with a second stage on a map of half the side."""

    def __init__(self):
        super().__init__()
        self.second = nn.Identity()

    def forward(self, x):
        x = self.second(nn.functional.avg_pool2d(self.stage(x), 2))  # (B, 3, H / 2, W / 2)
        return self.head(nn.functional.adaptive_avg_pool2d(x, (1, 2)).flatten(1))


def test_two_masks_have_statistics_each_and_are_replaced_together(images):
    torch.manual_seed(2)
    model = TwoStages()
    for layer in ("stage", "second"):
        attach_energy_mask(model, layer, channels=3, hard=True)
    for mask in inference.energy_masks(model).values():
        mask.weight.data.mul_(6)
    found = inference.evaluate(model, images)
    _, masks = inference.look(model, images)
    assert {layer: m.shape[-1] for layer, m in masks.items()} == {
        "stage": SIDE,
        "second": SIDE // 2,
    }
    assert set(found["masks"]) == {"stage", "second"}
    assert found["mask"] == found["masks"]["stage"]
    for layer, own in masks.items():
        assert found["masks"][layer]["kept_fraction"] == own.mean().item()
    for mask in inference.energy_masks(model).values():
        mask.enabled = False  # all ones
    bare = inference.accuracy(model, images)
    assert found["accuracy_with_mask_replaced"]["ones"] == bare
    with pytest.raises(ValueError, match="has 2"):
        inference.mask_controls(model, images, masks["stage"])


def test_a_mask_that_is_off_is_said_to_have_no_state(images):
    model = reader()
    inference.only_mask(model).enabled = False
    with pytest.raises(RuntimeError, match="with the mask enabled"):
        inference.look(model, images)
