"""Masks on whole networks: attach, detach, copy, save, and the way back to the dense network."""

import copy
import io

import pytest
import torch
import torchvision
from torch import nn

from ersm_attach import attach_energy_mask, detach_energy_mask
from ersm_core import EnergyMask, energy_loss, energy_states


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Residual(nn.Module):
    """A block with an in-place activation that runs twice, as torchvision's have."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(x + self.second(self.relu(self.norm(self.first(x)))))


def sequential():
    """A CNN that is a bare `nn.Sequential`, with a `nn.Sequential` inside."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return nn.Sequential(stem, nn.Sequential(Residual(), Residual()), head)


class Wrapped(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.split = nn.Conv2d(3, 4, 3)
        self.pair = nn.Identity()

    def forward(self, x):
        first, second = self.pair((self.split(x), x))
        return first.mean() + second.mean()


models = torchvision.models
NETWORKS = [  # builder, layer, side of the images
    (models.resnet18, "layer3", 32),
    (models.resnet18, "layer3.0.conv2", 32),
    (models.resnet18, "relu", 32),
    (models.resnet18, "layer4.1.bn2", 64),
    (models.densenet121, "features.denseblock1", 64),  # a ModuleDict with a forward of its own
    (models.densenet121, "features.norm5", 64),
    (models.mobilenet_v3_small, "features.3", 64),
    (models.mobilenet_v3_small, "features.0", 64),  # a subclass of Sequential
    (models.mobilenet_v3_small, "features", 64),
    (models.shufflenet_v2_x0_5, "stage2", 64),
    (models.vgg11, "features.4", 32),
    (sequential, "0", 8),
    (sequential, "0.2", 8),
    (sequential, "1", 8),
    (sequential, "1.0", 8),
    (sequential, "1.0.second", 8),
]


def build(builder):
    """A network without the slow initialisation of large classifiers."""
    if builder is models.vgg11:
        network = builder(init_weights=False)
        network.classifier = nn.Linear(512 * 49, 10)
        return network
    return builder()


def output_of(network, layer, x):
    """(what the layer hands on, what the network returns)"""
    seen = []
    handle = network.get_submodule(layer).register_forward_hook(
        lambda *call: seen.append(call[2].clone())
    )
    result = network(x)
    handle.remove()
    return seen[0], result


def hooks(network):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called")
    return [
        hook for module in network.modules() for kind in kinds for hook in getattr(module, kind)
    ]


# --- attach and detach -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("builder", "layer", "side"), NETWORKS, ids=[f"{n[0].__name__}-{n[1]}" for n in NETWORKS]
)
def test_attach_masks_the_layer_and_detach_restores_the_network(builder, layer, side):
    network = build(builder).eval()
    saved = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.randn(2, 3, side, side)
    parameters = set(network.parameters())
    with torch.no_grad():
        dense_map, dense = output_of(network, layer, x)

        assert attach_energy_mask(network, layer) is network
        masked_map, masked = output_of(network, layer, x)
        states = energy_states(network)
        assert list(states) == [layer]
        assert states[layer].mask.shape == (2, 1, *dense_map.shape[2:])
        assert torch.equal(masked_map, dense_map * states[layer].mask)
        assert not torch.equal(masked, dense)
        assert len(set(network.parameters()) - parameters) == 2  # weight and bias
        missing, unexpected = network.load_state_dict(saved, strict=False)
        assert len(missing) == 2 and all("energy_mask" in name for name in missing)
        assert unexpected == []

        assert detach_energy_mask(network) is network
        assert network.state_dict().keys() == saved.keys()
        assert set(network.parameters()) == parameters and hooks(network) == []
        assert torch.equal(network(x), dense)


@pytest.mark.parametrize("preset", [None, "published", "stable"])
@pytest.mark.parametrize(
    ("builder", "layer"),
    [(models.resnet18, "layer3"), (models.densenet121, "features.denseblock2"), (sequential, "1")],
)
def test_a_masked_network_trains(builder, layer, preset):
    network = attach_energy_mask(build(builder), layer, preset=preset)
    loss = network(torch.randn(2, 3, 32, 32)).square().mean() + energy_loss(network)
    loss.backward()
    (mask,) = (module for module in network.modules() if isinstance(module, EnergyMask))
    for parameter in mask.parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0


def test_presets_and_settings_reach_the_mask():
    network = attach_energy_mask(sequential(), "0", preset="published", fixed_bias=True, dim=4)
    mask = network[0].energy_mask
    assert mask.bias == 6 and not mask.bias.requires_grad and mask.project.out_channels == 4
    assert attach_energy_mask(sequential(), "0", preset="stable")[0].energy_mask.hard
    assert attach_energy_mask(sequential(), "0", lambda_pair=0.5)[0].energy_mask.lambda_pair == 0.5


def test_attaching_leaves_statistics_modes_and_random_numbers_alone():
    network = sequential()
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    attach_energy_mask(network, "0", channels=8)  # no pass needed
    attach_energy_mask(network, "1")
    for name, value in before.items():
        assert torch.equal(network.state_dict()[name], value)
    assert network.training and network[0].energy_mask.training
    assert not network[1].training and not network[1].energy_mask.training


def test_a_mask_takes_its_layers_dtype():
    network = attach_energy_mask(sequential().double(), "1.0.norm")
    assert network[1][0].norm.energy_mask.weight.dtype == torch.float64
    network(torch.randn(1, 3, 8, 8).double())
    assert energy_states(network)["1.0.norm"].energy.dtype == torch.float64


def test_two_masks_add_their_losses():
    network = attach_energy_mask(attach_energy_mask(sequential(), "0"), "1.0", lambda_pair=0.1)
    network(torch.randn(2, 3, 8, 8))
    states = energy_states(network)
    assert list(states) == ["0", "1.0"]
    first, second = ((s.mask * s.energy).mean() for s in states.values())
    torch.testing.assert_close(energy_loss(network), first + second)
    detach_energy_mask(network)
    assert network.state_dict().keys() == sequential().state_dict().keys()


def test_a_mask_written_into_a_network_counts_and_stays():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), EnergyMask(4), nn.ReLU())
    network(torch.randn(1, 3, 6, 6))
    assert list(energy_states(network)) == ["1"]
    assert energy_loss(network) == network[1].loss()
    attach_energy_mask(network, "2")
    detach_energy_mask(network)
    assert isinstance(network[1], EnergyMask)


def test_two_networks_in_one_keep_both_states():
    one = attach_energy_mask(sequential(), "0")
    both = nn.ModuleDict({"a": one, "b": copy.deepcopy(one)})
    for network in both.values():
        network(torch.randn(1, 3, 8, 8))
    assert list(energy_states(both)) == ["0", "b.0.energy_mask"]


# --- off ------------------------------------------------------------------------------------------


def test_disabled_masks_leave_the_network_dense_and_out_of_the_loss():
    network = sequential().eval()
    x = torch.randn(2, 3, 8, 8)
    dense = network(x)
    attach_energy_mask(attach_energy_mask(network, "0"), "1", lambda_unary=0.3)
    network(x)
    network[0].energy_mask.enabled = False
    network(x)
    assert list(energy_states(network)) == ["1"]
    assert energy_loss(network) == network[1].energy_mask.loss()
    network[1].energy_mask.enabled = False
    assert torch.equal(network(x), dense)
    assert energy_states(network) == {}
    with pytest.raises(ValueError, match="no enabled energy mask"):
        energy_loss(network)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(("builder", "layer"), [(models.resnet18, "layer3"), (sequential, "1.0")])
def test_no_energy_and_the_lowest_logit_recover_the_dense_network_bit_for_bit(
    builder, layer, hard, training
):
    dense = build(builder).train(training)
    masked = attach_energy_mask(
        copy.deepcopy(dense), layer, lambda_unary=0, lambda_pair=0, bias_init=-1e4, hard=hard
    )
    x, labels = torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
    outputs = dense(x), masked(x)
    assert torch.equal(*outputs)
    assert energy_loss(masked) == 0
    nn.functional.cross_entropy(outputs[0], labels).backward()
    (nn.functional.cross_entropy(outputs[1], labels) + energy_loss(masked)).backward()
    for name, parameter in dense.named_parameters():
        assert torch.equal(masked.get_parameter(name).grad, parameter.grad), name
    for name, buffer in dense.named_buffers():  # statistics of the batch normalisation
        assert torch.equal(masked.get_buffer(name), buffer), name


# --- copies and files ------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["0", "1.0", "1.0.norm"])
def test_a_copy_runs_its_own_mask(layer):
    network, x = attach_energy_mask(sequential().eval(), layer), torch.randn(2, 3, 8, 8)
    before = network(x)  # leaves a state with a graph behind
    twin = copy.deepcopy(network)
    assert energy_states(twin) == {}
    assert torch.equal(twin(x), before)
    twin.get_submodule(layer).energy_mask.bias.data.fill_(1e4)  # closes every token of the twin
    assert (twin(x), energy_states(twin)[layer].mask)[1].sum() == 0
    assert torch.equal(network(x), before) and energy_states(network)[layer].mask.min() > 0
    detach_energy_mask(twin)
    assert torch.equal(network(x), before)


@pytest.mark.parametrize("builder", [sequential, models.densenet121])
def test_a_saved_network_loads_with_its_mask(builder):
    layer = "1.0" if builder is sequential else "features.denseblock1"
    network, x = attach_energy_mask(builder().eval(), layer), torch.randn(1, 3, 32, 32)
    before = network(x)
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(x), before)
    assert torch.equal(energy_loss(loaded), energy_loss(network))
    detach_energy_mask(loaded)
    assert torch.equal(network(x), before)


@pytest.mark.parametrize("settings", [{}, {"grid": (8, 8), "train_bias": False}, {"dim": 4}])
def test_a_state_dict_goes_round(settings):
    network = attach_energy_mask(sequential(), "1", **settings).eval()
    file, x = io.BytesIO(), torch.randn(2, 3, 8, 8)
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = attach_energy_mask(sequential(), "1", **settings).eval()
    assert not torch.equal(other(x), network(x))
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(other(x), network(x))


# --- errors ----------------------------------------------------------------------------------------


def test_an_unknown_layer_is_answered_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"no layer 5 in ResNet; nearest names: conv1"):
        attach_energy_mask(models.resnet18(), 5)
    with pytest.raises(ValueError, match=r"no layer 'layr3' in ResNet; nearest names: .*layer3"):
        attach_energy_mask(models.resnet18(), "layr3")
    with pytest.raises(ValueError, match="no layer '' in Sequential; nearest names: 0"):
        attach_energy_mask(sequential(), "")


@pytest.mark.parametrize("layer", ["0", "1.0", "features.denseblock1"])
def test_a_layer_carries_one_mask(layer):
    network = models.densenet121() if "dense" in layer else sequential()
    attach_energy_mask(network, layer)
    for holder, name in ((network, layer), (Wrapped(network), "network." + layer)):
        with pytest.raises(ValueError, match=r"has an energy mask: call detach_energy_mask"):
            attach_energy_mask(holder, name)
    attach_energy_mask(detach_energy_mask(network), layer)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match='preset must be None, "published" or "stable", got 1'):
        attach_energy_mask(sequential(), "0", preset=1)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Linear(4, 4)),  # no convolution that would tell the image's channels
        nn.Sequential(nn.Conv2d(5, 4, 7), nn.Conv2d(3, 4, 3)),  # a network that cannot run
    ],
    ids=["no convolution", "cannot run"],
)
def test_channels_that_cannot_be_found_are_asked_for(network):
    layer = str(len(network) - 1)
    before = list(network.state_dict())
    with pytest.raises(ValueError, match=rf"channels of layer '{layer}'.*give channels="):
        attach_energy_mask(network, layer)
    assert list(network.state_dict()) == before and hooks(network) == []
    attach_energy_mask(network, layer, channels=4)


@pytest.mark.parametrize("channels", [None, 10])
@pytest.mark.parametrize(
    ("network", "layer", "message"),
    [
        (
            sequential(),
            "2",
            r"'2' returns \(1, 10\) and \(1, 10\), .* no feature map .* such as 2.0",
        ),
        (TwoOutputs(), "pair", r"'pair' returns \(\) and \(\), .* no feature map .* such as split"),
    ],
    ids=["logits", "tuple"],
)
def test_a_layer_without_a_feature_map_is_refused_with_one_that_has(
    network, layer, message, channels
):
    with pytest.raises(ValueError, match=message):
        attach_energy_mask(network, layer, channels=channels)
    assert hooks(network) == []


class Twice(nn.Module):
    """Runs `layer` on maps of different widths, or of one; takes 48 x 48 images only."""

    def __init__(self, wide):
        super().__init__()
        self.wide, self.layer = wide, nn.ReLU()
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(4, 8 if wide else 4, 1)

    def forward(self, x):
        assert x.shape[2:] == (48, 48)
        return self.layer(self.second(self.layer(self.first(x)))).mean((2, 3))


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


class Fixed(nn.Module):
    """A network of one size, between whose layers an image gets no further than its first."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.stem = layer, nn.Conv2d(3, 4, 1)
        self.position = nn.Parameter(torch.zeros(48, 48))

    def forward(self, x):
        return self.layer(self.stem(x + self.position)).mean((2, 3))


@pytest.mark.parametrize("network", [Twice(False), Twice(True), Fixed(Loop())], ids=str)
def test_where_no_blank_image_gets_the_first_pass_finds_a_mask_that_runs_twice(network):
    with pytest.raises(ValueError, match="cannot tell the channels of layer 'layer'"):
        attach_energy_mask(network, "layer")
    attach_energy_mask(network, "layer", channels=4)
    x = torch.randn(2, 3, 48, 48)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"'layer' runs its mask more than once in a pass"):
            network(x)
    detach_energy_mask(network)(x)
    attach_energy_mask(network, "layer.two" if hasattr(network, "stem") else "first", channels=4)
    for _ in range(2):  # every pass counts anew
        network(x)
        energy_loss(network).backward()


def test_a_network_of_one_size_is_attached_to_with_its_channels():
    network = attach_energy_mask(Fixed(nn.Conv2d(4, 6, 1)), "layer", channels=6)
    x = torch.randn(2, 3, 48, 48)
    network(x)
    assert energy_loss(network).requires_grad
    wrong = attach_energy_mask(Fixed(nn.Conv2d(4, 6, 1)), "layer", channels=5)
    with pytest.raises(ValueError, match=r"made for 5 .* map of 6: attach to a layer whose every"):
        wrong(x)
    with pytest.raises(ValueError, match="'0' returns 8 channels, not channels=0: "):
        attach_energy_mask(sequential(), "0", channels=0)


def test_masks_called_outside_a_pass_of_the_model_keep_their_last_call():
    network = attach_energy_mask(sequential(), "1.0")
    for _ in range(2):
        network[1](network[0](torch.randn(2, 3, 8, 8)))
        energy_loss(network).backward()
    with pytest.raises(RuntimeError):
        network(torch.randn(2, 5, 8, 8))  # a pass that fails on the way is over too
    for _ in range(2):
        network[1](network[0](torch.randn(2, 3, 8, 8)))


class Choosy(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.branch = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), True

    def forward(self, x):
        return self.norm(self.stem(x)) if self.branch else self.stem(x)


def test_a_pass_that_skips_the_layer_leaves_no_state_of_an_older_one():
    network = attach_energy_mask(Choosy(), "norm")
    network(torch.randn(2, 3, 8, 8))
    network.branch = False
    network(torch.randn(2, 3, 8, 8))
    assert energy_states(network) == {}
    with pytest.raises(RuntimeError, match="a pass that skips the layer of a mask leaves none"):
        energy_loss(network)


@pytest.mark.parametrize("layer", ["bn1", "layer2.0.bn2"])
def test_a_mask_whose_layer_was_replaced_no_longer_runs_and_says_so(layer):
    network, x = attach_energy_mask(models.resnet18(), layer).eval(), torch.randn(2, 3, 32, 32)
    network(x)
    nn.SyncBatchNorm.convert_sync_batchnorm(network)
    with pytest.raises(RuntimeError, match=f"mask of layer '{layer}' no longer runs"):
        network(x)
    with pytest.raises(RuntimeError, match="run a forward pass"):
        energy_loss(network)
    detach_energy_mask(network)
    assert not any("energy_mask" in name for name in network.state_dict())
    attach_energy_mask(network, layer)(x)
    assert list(energy_states(network)) == [layer]


def test_another_mask_may_take_the_place_of_an_attached_one():
    for layer in ("0", "1.0"):
        network = attach_energy_mask(sequential(), layer)
        other = EnergyMask(8, lambda_pair=0.7)
        other.attached_to = layer
        network.get_submodule(layer).energy_mask = other
        network(torch.randn(2, 3, 8, 8))
        assert energy_states(network) == {layer: other.state}
        network(torch.randn(2, 3, 8, 8))
        detach_energy_mask(network)
        assert hooks(network) == []


def test_an_alias_of_a_layer_is_a_name():
    network = models.resnet18()
    network.last = network.layer4
    attach_energy_mask(network, "last")
    network(torch.randn(2, 3, 32, 32))
    assert list(energy_states(network)) == ["last"]
    with pytest.raises(ValueError, match="'layer4' has an energy mask"):
        attach_energy_mask(network, "layer4")


def test_a_masked_network_may_be_a_layer_of_another():
    inner = attach_energy_mask(models.resnet18(), "layer1")
    inner.avgpool, inner.fc, inner.flatten = nn.Identity(), nn.Identity(), None
    outer = Wrapped(inner)
    with pytest.raises(ValueError, match=r"layer 'network' returns \(1, 512\)"):
        attach_energy_mask(outer, "network")
    with pytest.raises(ValueError, match="has an energy mask"):
        attach_energy_mask(outer, "network.layer1.energy_mask")
    body = attach_energy_mask(Choosy(), "stem")
    outer = attach_energy_mask(Wrapped(body), "network")
    outer(torch.randn(2, 3, 8, 8))
    assert list(energy_states(outer)) == ["stem", "network"]


class Counting(nn.Module):
    """Counts its passes in a buffer and in an attribute, in any mode."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 4, 3), 0
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.count += 1
        self.calls += 1
        return self.conv(x) + torch.rand(())


def test_the_blank_images_change_nothing():
    network = nn.Sequential(Counting(), nn.utils.weight_norm(nn.Conv2d(4, 4, 1)), nn.ReLU())
    random = torch.get_rng_state()
    attach_energy_mask(network, "2", bias_init=-1.0)
    assert network[0].count == 0 and network[0].calls == 0 and network.training
    torch.set_rng_state(random)
    torch.testing.assert_close(network[2].energy_mask.weight, torch.empty(4).uniform_(-0.5, 0.5))


@pytest.mark.parametrize(("norm", "channels"), [(nn.Identity, None), (nn.LazyBatchNorm2d, 8)])
def test_lazy_layers_stay_lazy(norm, channels):
    head = (nn.Flatten(), nn.LazyLinear(10))
    network = nn.Sequential(nn.LazyConv2d(8, 3), norm(), nn.ReLU(), *head)
    attach_energy_mask(network, "0", channels=channels)
    assert network[0].has_uninitialized_params() and network[-1].has_uninitialized_params()
    assert network(torch.randn(2, 5, 12, 12)).shape == (2, 10)  # five channels are none of 3
    assert energy_loss(network).requires_grad


def test_a_stem_behind_a_space_to_depth_step_needs_no_channels():
    network = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 8, 3), nn.ReLU())
    assert attach_energy_mask(network, "1")[1].energy_mask.channels == 8


def test_a_container_that_runs_its_children_needs_a_layer_inside():
    network = nn.Sequential(models.densenet121().features)
    with pytest.raises(ValueError, match=r"cannot attach to _DenseBlock .*name a layer inside it"):
        attach_energy_mask(network, "0.denseblock1", channels=256)


def test_bad_settings_leave_the_network_alone():
    network = sequential()
    with pytest.raises(ValueError, match="lambda_pair"):
        attach_energy_mask(network, "0", lambda_pair=-1)
    assert network.state_dict().keys() == sequential().state_dict().keys()


def test_a_network_without_a_mask_says_so():
    network = sequential()
    with pytest.raises(ValueError, match="no attached energy mask"):
        detach_energy_mask(network)
    with pytest.raises(ValueError, match="no enabled energy mask: attach_energy_mask first"):
        energy_loss(network)
    assert energy_states(network) == {}
    with pytest.raises(RuntimeError, match="run a forward pass"):
        energy_loss(attach_energy_mask(network, "0", channels=8))


def test_attaching_a_second_mask_leaves_the_state_of_the_first():
    network = attach_energy_mask(sequential(), "0")
    network(torch.randn(2, 3, 8, 8))
    (before,) = energy_states(network).values()
    attach_energy_mask(network, "1")
    assert energy_states(network) == {"0": before}
