"""Generated bad calls to what trains (`refusals`)."""

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from refusals import (
    ASKED,
    CLASSES,
    LAYER,
    MOST,
    NET,
    NETWORK,
    PIXELS,
    TRAIN,
    Case,
    asked,
    both_tests,
    dense,
    not_a,
    not_flag,
    not_number,
    not_seed,
    not_share,
    not_tensor,
    not_whole,
    not_word,
)
from torch import nn

from ersm_lab.images.data import Augment
from ersm_lab.networks import backbones, filled_mask, norms, pruning
from ersm_lab.training import loop, protocols
from ersm_lab.training.config import Config, MaskPlace

LAW = dict(sparsity=0.5, start=0.6, ramp=0.1)  # of pruning
RUN_CONFIG = {
    "backbone": not_a(),
    "train": not_a(),
    "train_images": not_whole(optional=True),
    "test_images": not_whole(optional=True),
}


def place(**settings) -> Callable[[], dict]:
    return lambda: {"backbone": NET, "train": TRAIN, **settings}


def features() -> protocols.FeatureSet:
    maps, labels = torch.rand(3, 4, 2, 2).half(), torch.tensor([0, 1, 2])
    return protocols.FeatureSet(maps=maps, labels=labels, classes=tuple("abc"))


CASES = {
    "sparsity_at": Case(
        pruning.sparsity_at, lambda: {"progress": 0.7, **LAW}, {"progress": not_number(0)}
    ),
    "prunable": Case(pruning.prunable, lambda: {"model": dense()}, {"model": NETWORK}),
    "prune_to": Case(
        pruning.prune_to,
        lambda: {"model": pruning.attach(backbones.CifarNet(NET)), "sparsity": 0.5},
        {"model": NETWORK | st.just(dense()), "sparsity": not_share()},
    ),
    "pruning.attach": Case(
        pruning.attach, lambda: {"model": backbones.CifarNet(NET)}, {"model": NETWORK}
    ),
    "plain_state": Case(
        pruning.plain_state,
        lambda: {"state": dense().state_dict()},
        {"state": not_a().filter(lambda value: not isinstance(value, dict))},
    ),
    "FilledMask": Case(
        filled_mask.FilledMask,
        lambda: {"channels": 4, "dropped": "mean"},
        {"dropped": not_word(*filled_mask.KINDS)},
    ),
    "fill": Case(
        filled_mask.fill,
        lambda: {
            "masked": PIXELS,
            "kept": PIXELS[:, :1],
            "kind": "token",
            "token": torch.zeros(3),
        },
        {
            "masked": not_tensor(PIXELS, nan=False),
            "kept": not_tensor(PIXELS[:, :1], nan=False) | st.just(PIXELS),
            "kind": not_word(*filled_mask.KINDS),
            "token": not_tensor(torch.zeros(3), nan=False) | st.just(torch.zeros(4)),
        },
    ),
    "replace_norms": Case(
        norms.replace_norms,
        lambda: {"model": backbones.CifarNet(NET), "kind": "image", "after": "group1"},
        {"model": NETWORK, "kind": not_word(*norms.KINDS), "after": LAYER},
    ),
    "ChannelBias": Case(
        norms.ChannelBias, lambda: {"channels": 3}, {"channels": not_whole(1, MOST)}
    ),
    "Config": Case(
        Config,
        place(),
        RUN_CONFIG
        | {
            "mask": not_a(optional=True),
            "smoothing": not_a(optional=True),
            "coding": not_a(optional=True),
        },
    ),
    "Config, dropped": Case(
        Config,
        place(mask=MaskPlace(layer="group1"), dropped="mean"),
        {"mask": not_a(), "dropped": not_word(*filled_mask.KINDS, optional=True)},
    ),
    "Config, norm": Case(
        Config,
        place(norm="image", after="group1"),
        {"backbone": not_a(), "norm": not_word(*norms.KINDS), "after": LAYER},
    ),
    "Config, pruning": Case(
        Config,
        place(**LAW),
        {
            "backbone": not_a(),
            "sparsity": not_number(0, 1, high_is_bad=True),
            "start": not_number(0, 1),
            "ramp": not_number(0, 1),
        },
    ),
    "in_network": Case(
        protocols.in_network,
        lambda: {"model": backbones.CifarNet(NET), "layer": "group1"},
        {"model": NETWORK, "layer": LAYER},
    ),
    "PublishedProtocol": Case(
        protocols.PublishedProtocol,
        lambda: {"features": dense(), "mask": nn.Identity(), "channels": 4, "classes": 4},
        {"features": NETWORK, "mask": NETWORK, "channels": not_whole(), "classes": CLASSES},
    ),
    "published": Case(
        protocols.published,
        lambda: {"backbone": dense(), "layer": "group1", "classes": 4},
        {
            "backbone": NETWORK,
            "layer": not_word("stem", "group1", "group2"),
            "classes": CLASSES,
            "image_size": not_whole(1, 2_048),
            "masked": not_flag(),
            "learned_positions": not_flag(),
            "seed": not_seed(),
        },
    ),
    "unpooled": Case(
        protocols.unpooled,
        lambda: {"backbone": dense(), "layer": "group2"},
        {"backbone": NETWORK, "layer": not_word("group2")},
    ),
    "FeatureSet": Case(
        protocols.FeatureSet,
        lambda: dict(vars(features())),
        {
            "maps": not_tensor(features().maps, nan=False) | st.just(PIXELS),
            "labels": not_a(torch.tensor(0), torch.zeros(2).long()),
            "classes": st.sampled_from([None, 3, "ab", []]),
        },
    ),
    "FeatureSet.batches": Case(
        protocols.FeatureBatches,
        lambda: {"data": features(), "batch_size": 2, "augment": Augment(), "seed": 0},
        {
            "data": not_a(),
            "batch_size": not_whole(1, 3),
            "seed": not_seed(),
            "rank": not_whole(0, 0),
            "world_size": not_whole(),
        },
    ),
    "cache_features": Case(
        protocols.cache_features,
        asked(model=protocols.published(dense(), "group2", classes=4)),
        ASKED,
    ),
    "to_cache": Case(
        protocols.to_cache, lambda: {"maps": PIXELS}, {"maps": not_tensor(PIXELS, nan=False)}
    ),
    "TrainSettings": Case(
        loop.TrainSettings,
        lambda: {"epochs": 1},
        {
            "epochs": not_whole(1, MOST),
            "batch_size": not_whole(),
            "optimiser": not_word("sgd", "adamw"),
            "learning_rate": not_number(0),
            "momentum": not_number(0, 1, high_is_bad=True),
            "weight_decay": not_number(0),
            "schedule": not_word("one-cycle", "cosine"),
            "norm_lr_factor": not_number(0, low_is_bad=True),
            "start": not_number(0),
            "warm_up": not_number(0, 1, high_is_bad=True),
            "end": not_number(0),
            "label_smoothing": not_number(0, 1, high_is_bad=True),
            "mask_lr_factor": not_number(0),
            "mask_weight_decay": not_number(0),
            "mask_start": not_share(),
            "mask_ramp": not_share(),
            "mask_noise_stop": not_share(),
            "ema_decay": not_number(0, 1, high_is_bad=True),
            "augment": not_a(),
            "precision": not_word("auto", *loop.PRECISIONS),
        },
    ),
}
test_what_works, test_what_does_not = both_tests(CASES)
