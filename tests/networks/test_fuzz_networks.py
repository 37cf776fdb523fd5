"""Generated bad calls to networks and their layers (`refusals`)."""

import torch
from hypothesis import strategies as st
from refusals import (
    ASKED,
    CLASSES,
    LAYER,
    LOTS,
    MOST,
    NET,
    NETWORK,
    PIXELS,
    Case,
    asked,
    both_tests,
    coded,
    not_a,
    not_flag,
    not_number,
    not_pair,
    not_seed,
    not_several,
    not_tensor,
    not_whole,
    not_word,
    opened,
)

from ersm_lab.evaluation import sparse_lambda
from ersm_lab.networks import backbones, controls, fista, sdnet, sparse_coding

CODES = torch.randn(4, 3, 3, 3, generator=LOTS)  # a dictionary
KERNEL = {
    "stride": not_pair(not_whole(1, 20), 1),
    "padding": not_pair(not_whole(0, 3), 0),
}

CASES = {
    "CifarNetSettings": Case(
        backbones.CifarNetSettings,
        dict,
        {
            "widths": not_several(not_whole(1, 8_192)) | st.just((4,) * 11),
            "depth": not_whole(1, 100),
            "stem_kernel": not_whole(1, 32),
            "stem_stride": not_whole(1, 4),
            "stem_channels": not_whole(2, 8_192),
            "head": not_word("max", "mean"),
            "logit_scale": not_number(),
        },
    ),
    "CifarNet": Case(
        backbones.CifarNet, lambda: {"settings": NET}, {"settings": not_a(), "classes": CLASSES}
    ),
    "CifarNet.whiten": Case(
        backbones.CifarNet(NET).whiten,
        lambda: {"images": PIXELS},
        {"images": not_tensor(PIXELS, kinds=False) | st.just(PIXELS[:, :2])},
    ),
    "resnet18": Case(backbones.resnet18, dict, {"classes": CLASSES}),
    "RandomMask": Case(
        controls.RandomMask,
        lambda: {"channels": 4, "keep": 0.5},
        {
            "channels": not_whole(1, MOST),
            "keep": not_number(0, 1, low_is_bad=True, high_is_bad=True),
        },
    ),
    "controls.attach": Case(
        controls.attach,
        lambda: {
            "model": backbones.CifarNet(NET),
            "layer": "group1",
            "kind": "random",
            "keep": 0.5,
        },
        {
            "model": NETWORK,
            "layer": LAYER,
            "kind": not_word("random"),
            "keep": not_number(0, 1, low_is_bad=True, high_is_bad=True),
        },
    ),
    "CSCSettings": Case(
        fista.CSCSettings,
        dict,
        {
            "lambda_l1": not_number(0),
            "mu": not_number(0),
            "steps": not_whole(1, MOST),
            "nonnegative": not_flag(),
            "accelerate": not_flag(),
            "step_factor": not_number(0, 1, low_is_bad=True),
            "tolerance": not_number(0, 1, low_is_bad=True, high_is_bad=True),
            "max_iterations": not_whole(1, MOST),
        },
    ),
    "analyse": Case(
        fista.analyse,
        lambda: {"x": PIXELS, "dictionary": CODES},
        KERNEL
        | {
            "x": not_tensor(PIXELS, nan=False) | st.just(PIXELS[:, :2]),
            "dictionary": not_tensor(CODES, nan=False) | st.just(CODES[:, :2]),
        },
    ),
    "synthesise": Case(
        fista.synthesise,
        lambda: {"code": torch.rand(2, 4, 6, 6), "dictionary": CODES, "size": (8, 8)},
        KERNEL
        | {
            "code": not_tensor(torch.rand(2, 4, 6, 6), nan=False) | st.just(PIXELS),
            "dictionary": not_tensor(CODES, nan=False) | st.just(CODES[:2]),
            "size": not_pair(not_whole(1, 4_096), 8) | st.just((7, 8)),
        },
    ),
    "sparse_code": Case(
        fista.sparse_code,
        lambda: {"x": PIXELS, "dictionary": CODES, "step": 0.01, "lambda_l1": 0.1},
        KERNEL
        | {
            "x": not_tensor(PIXELS) | st.just(PIXELS[:, :2]),
            "dictionary": not_tensor(CODES) | st.just(CODES[:, :2]),
            "step": not_number(0).filter(lambda value: not isinstance(value, torch.Tensor))
            | st.just(1e30),
            "lambda_l1": not_number(0).filter(lambda value: not isinstance(value, torch.Tensor))
            | st.sampled_from([torch.ones(3), -torch.ones(2), torch.ones(2) * torch.nan]),
            "mu": not_number(0),
            "steps": not_whole(1, MOST),
            "nonnegative": not_flag(),
            "accelerate": not_flag(),
        },
    ),
    "largest_eigenvalue": Case(
        fista.largest_eigenvalue,
        lambda: {"dictionary": CODES, "size": (8, 8)},
        KERNEL
        | {
            "dictionary": not_tensor(CODES),
            "size": not_pair(not_whole(1, 4_096), 8),
            "tolerance": not_number(0, 1, low_is_bad=True, high_is_bad=True),
            "max_iterations": not_whole(1, MOST),
            "start": not_tensor(PIXELS[:1]).filter(lambda t: t is not None) | st.just(PIXELS),
        },
    ),
    "SparseCoding2d": Case(
        sparse_coding.SparseCoding2d,
        lambda: {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "stride": 1, "padding": 1},
        {
            "in_channels": not_whole(1, 4_096),
            "out_channels": not_whole(1, 4_096),
            "kernel_size": not_whole(1, 256).filter(lambda value: value != [1]),
            "stride": not_whole(1, 256).filter(lambda value: value != [1]),
            "padding": not_whole(0, 256).filter(lambda value: value != [1]),
            "settings": not_a(),
        },
    ),
    "unit_atoms": Case(
        sparse_coding.unit_atoms,
        lambda: {"weight": CODES},
        {"weight": not_tensor(CODES, nan=False)},
    ),
    "sdnet18": Case(sdnet.sdnet18, dict, {"classes": CLASSES, "settings": not_a()}),
    "attach_sparse_coding": Case(
        sdnet.attach_sparse_coding,
        lambda: {"model": backbones.CifarNet(NET), "layer": "group1.0"},
        {
            "model": NETWORK,
            "layer": not_word("group1.0", "group2.0"),
            "settings": not_a(),
            "keep_relu": not_flag(),
        },
    ),
    "SparseCoding2d.forward": Case(
        sparse_coding.SparseCoding2d(3, 4, 3).forward,
        lambda: {"x": PIXELS},
        {"x": not_a(PIXELS[0], PIXELS[:, :2], PIXELS[..., :2])},
    ),
    "using_lambda": Case(
        opened(sparse_lambda.using_lambda),
        lambda: {"model": coded(), "value": 0.1},
        {
            "model": NETWORK,
            "value": not_number(0).filter(lambda value: not isinstance(value, torch.Tensor)),
            "layer": not_word("group1.0", optional=True),
        },
    ),
    "set_lambda": Case(
        sparse_lambda.set_lambda,
        lambda: {"model": coded(), "value": 0.1},
        {
            "model": NETWORK,
            "value": not_number(0).filter(lambda value: not isinstance(value, torch.Tensor))
            | st.sampled_from([-torch.ones(2), torch.ones(2, 2), torch.tensor([torch.nan])]),
            "layer": not_word("group1.0", optional=True),
        },
    ),
    "LabelFreeLambda.fit": Case(
        sparse_lambda.LabelFreeLambda.fit,
        lambda: {"model": coded(), "images": torch.rand(4, 3, 32, 32), "bins": 2, "noise": (0.1,)},
        {
            "model": NETWORK,
            "images": not_tensor(torch.rand(4, 3, 32, 32)),
            "layer": not_word("group1.0", optional=True),
            "noise": not_several(not_number(0)),
            "grid": not_several(not_number(0), optional=True),
            "bins": not_whole() | st.just(9),
            "seed": not_seed(),
            "batch_size": not_whole(),
        },
    ),
    "oracle_lambda": Case(
        sparse_lambda.oracle_lambda,
        asked(model=coded(), grid=(0.1, 0.2)),
        ASKED | {"grid": not_several(not_number(0)), "layer": not_word("group1.0", optional=True)},
    ),
}
test_what_works, test_what_does_not = both_tests(CASES)
