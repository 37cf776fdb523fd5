"""The two settings: a mask inside a network, and the published protocol on frozen features."""

import dataclasses

import pytest
import torch
import torchvision

from ersm_core import EnergyMask, energy_states
from ersm_lab.evaluation import inference
from ersm_lab.images import data
from ersm_lab.networks import backbones
from ersm_lab.training import protocols
from ersm_lab.training.loop import train


@pytest.fixture(scope="module")
def images():
    return data.load("shapes", "train", limit=300)


@pytest.fixture(scope="module")
def backbone(images):
    torch.manual_seed(0)
    net = backbones.CifarNet(backbones.SMOKE)
    net.whiten(images.normalise(images.images))
    return net.eval()


def test_in_network_attaches_the_stable_preset():
    net = protocols.in_network(backbones.CifarNet(backbones.SMOKE), "group2", lambda_pair=0.5)
    mask = inference.only_mask(net)
    assert mask.hard and mask.detach_pairwise and mask.lambda_pair == 0.5
    net(torch.randn(2, 3, 32, 32))
    assert energy_states(net)["group2"].mask.shape == (2, 1, 8, 8)


def test_published_trains_mask_and_head_only(backbone, images):
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    model = protocols.published(backbone, "group3", classes=10, seed=1)
    mask = inference.only_mask(model)
    assert mask.bias.item() == 6.0  # starts closed
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    head = {"reader.head.weight", "reader.head.bias"}
    assert trained == head | {"reader.mask.weight", "reader.mask.bias"}
    settings = dataclasses.replace(protocols.PUBLISHED_TRAINING, epochs=2, batch_size=50)
    features = protocols.cache_features(model, images)
    weight = mask.weight.detach().clone()
    curve = train(model.reader, features, settings, seed=0, progress=False)
    assert curve[1]["loss"] < curve[0]["loss"]
    assert not torch.equal(mask.weight, weight)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_cached_features_give_the_whole_model_s_answer(backbone, images):
    model = protocols.published(backbone, "group3", classes=10)
    features = protocols.cache_features(model, images)
    assert features.maps.shape == (300, 32, 4, 4)
    whole, cached = (
        inference.predict(m, d) for m, d in ((model, images), (model.reader, features))
    )
    assert torch.allclose(whole, cached, atol=2e-3)  # maps are kept in half precision
    assert whole.std() > 0.01


def test_frozen_statistics_stay_frozen_in_training_mode(backbone, images):
    model = protocols.published(backbone, "group3", classes=10).train()
    before = {n: v.clone() for n, v in model.features.state_dict().items()}
    model(images.normalise(images.images[:50]))
    assert all(torch.equal(v, before[n]) for n, v in model.features.state_dict().items())


def test_as_written_every_position_has_a_bias_that_trains(backbone):
    model = protocols.published(
        backbone, "group2", classes=10, learned_positions=True, patch_size=2
    )
    mask = inference.only_mask(model)
    assert mask.bias.shape == (4, 4) and mask.bias.requires_grad


def test_as_released_the_bias_is_fixed(backbone):
    mask = inference.only_mask(protocols.published(backbone, "group3", classes=10, fixed_bias=True))
    assert "bias" in dict(mask.named_buffers()) and mask.bias.item() == 6.0


def test_baseline_has_no_mask(backbone):
    model = protocols.published(backbone, "group3", classes=10, masked=False)
    assert not any(isinstance(m, EnergyMask) for m in model.modules())
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_torchvision_backbone_serves_as_well():
    resnet = torchvision.models.resnet18(weights=None).eval()
    model = protocols.published(resnet, "layer4", classes=37, image_size=64)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 37)
    assert inference.only_mask(model).channels == 512


def test_errors_say_what_to_do(backbone):
    with pytest.raises(ValueError, match=r"its stages: .*group3"):
        protocols.published(backbone, "group9", classes=10)
    with pytest.raises(ValueError, match="not a feature map"):
        protocols.published(backbone, "head", classes=10)


def test_feature_batches_visit_every_image_once_and_share(backbone, images):
    features = protocols.cache_features(protocols.published(backbone, "group3", classes=10), images)
    features = dataclasses.replace(features, labels=torch.arange(300))
    settings = {"batch_size": 100, "augment": data.Augment(), "seed": 3}
    whole = [labels for _, labels in features.batches(**settings).epoch(0)]
    assert torch.equal(torch.cat(whole).sort().values, torch.arange(300))
    shares = [features.batches(**settings, rank=r, world_size=2).epoch(0) for r in (0, 1)]
    for batch, (_, first), (_, second) in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([first, second]), batch)


def test_unpooled_gives_a_map_of_twice_the_side_and_the_same_convolutions(backbone, images):
    finer = protocols.unpooled(backbone)
    assert protocols.published(finer, "group3", classes=10).maps(
        torch.randn(2, 3, 32, 32)
    ).shape == (
        2,
        32,
        8,
        8,
    )
    x = backbone.group2(backbone.group1(backbone.stem(images.normalise(images.images[:4]))))
    conv, _, norm, _ = backbone.group3
    torch.testing.assert_close(finer.group3(x), norm(conv(x)).relu())
    assert finer.state_dict().keys() == backbone.state_dict().keys()
    assert isinstance(backbone.group3[1], torch.nn.MaxPool2d)  # the original is as it was
    with pytest.raises(ValueError, match="no max-pooling"):
        protocols.unpooled(backbone, "group1")


def test_a_part_of_a_feature_set(backbone, images):
    features = protocols.cache_features(protocols.published(backbone, "group3", classes=10), images)
    part = features[10:15]
    assert len(part) == 5 and torch.equal(part.maps, features.maps[10:15])
    assert torch.equal(part.labels, images.labels[10:15])
    assert features.maps.is_contiguous(memory_format=torch.channels_last)
