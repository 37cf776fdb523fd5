"""Generated bad calls to what makes and changes images (`refusals`)."""

import torch
from hypothesis import strategies as st
from refusals import (
    MOST,
    NETWORK,
    PIXELS,
    SHARES,
    Case,
    both_tests,
    dense,
    image_set,
    not_a,
    not_flag,
    not_images,
    not_number,
    not_pair,
    not_seed,
    not_share,
    not_tensor,
    not_whole,
    not_word,
    or_not_there,
)

from ersm_lab import image_folders
from ersm_lab.images import (
    corruptions,
    flat_regions,
    frequency,
    inverse_scale,
    occlusion,
    path_steps,
    resolution,
    shapes,
    smoothed,
)
from ersm_lab.training import protocols

CASES = {
    "PathSettings": Case(
        path_steps.PathSettings,
        dict,
        {
            "nu": not_number(0, 1e6, low_is_bad=True),
            "kappa": not_number(0, 1e6, low_is_bad=True),
            "alpha": not_number(optional=True),
            "max_steps": not_whole(1, MOST),
            "channels": not_word("shared", "own"),
        },
    ),
    "stability_bound": Case(
        inverse_scale.stability_bound,
        lambda: {"height": 4, "width": 4, "nu": 0.3, "kappa": 3.0},
        {
            "height": not_whole(1, 100_000),
            "width": not_whole(1, 100_000),
            "nu": not_number(0, 1e6, low_is_bad=True),
            "kappa": not_number(0, 1e6, low_is_bad=True),
        },
    ),
    "inverse_scale_path": Case(
        inverse_scale.inverse_scale_path,
        lambda: {"x": PIXELS, "levels": [0.9], "backend": "torch"},
        {
            "x": not_tensor(PIXELS).filter(lambda x: x is not None),
            "levels": SHARES,
            "settings": not_a(optional=True),
            "backend": not_word("auto", "numba", "torch"),
        },
    ),
    "sparsify": Case(
        inverse_scale.sparsify, lambda: {"x": PIXELS, "level": 0.9}, {"level": not_share()}
    ),
    "project": Case(
        flat_regions.project,
        lambda: {
            "u": PIXELS,
            "right": PIXELS[:, :1, :, 1:] > 0.5,
            "down": PIXELS[:, :1, 1:] > 0.5,
        },
        {
            "u": not_tensor(PIXELS),
            "right": not_tensor(PIXELS[:, :1, :, 1:] > 0.5).map(lambda t: t),
            "down": not_tensor(PIXELS[:, :1, 1:] > 0.5),
        },
    ),
    "sparsify_dataset": Case(
        smoothed.sparsify_dataset,
        lambda: {"images": image_set().images[:1, :4, :4], "level": 0.9, "progress": False},
        {
            "images": not_tensor(image_set().images),
            "level": not_share(),
            "cache": not_a().filter(lambda value: not isinstance(value, str)),
            "settings": not_a(optional=True),
            "chunk": not_whole(optional=True),
            "progress": not_flag(),
        },
        folder="cache",
    ),
    "retained_energy": Case(
        frequency.retained_energy,
        lambda: {"x": PIXELS, "y": PIXELS},
        {n: not_tensor(PIXELS, nan=False, kinds=False) | st.just(PIXELS[:1]) for n in "xy"},
    ),
    "low_pass": Case(
        frequency.low_pass,
        lambda: {"x": PIXELS, "energy": 0.5},
        {
            "x": not_tensor(PIXELS),
            "energy": not_share().filter(lambda value: not isinstance(value, torch.Tensor))
            | st.sampled_from([torch.rand(3), torch.tensor([0.5, 2.0]), torch.rand(2, 1)]),
        },
    ),
    "blur": Case(
        frequency.blur,
        lambda: {"x": PIXELS, "sigma": 1.0},
        {
            "x": not_tensor(PIXELS),
            "sigma": not_number(0).filter(lambda value: not isinstance(value, torch.Tensor))
            | st.sampled_from([torch.ones(3), -torch.ones(2), torch.ones(2) * torch.nan]),
        },
    ),
    "blur_of_equal_error": Case(
        frequency.blur_of_equal_error,
        lambda: {"x": PIXELS, "y": PIXELS},
        {n: not_tensor(PIXELS) | st.just(PIXELS[:1]) for n in "xy"},
    ),
    "occlude": Case(
        occlusion.occlude,
        lambda: {"images": image_set().images, "size": 4},
        {
            "images": not_images(),
            "size": not_whole(1, 32),
            "position": not_word(*occlusion.POSITIONS)
            | not_pair(not_whole(0, 28), 0).filter(lambda p: not isinstance(p, (str, bytes))),
            "fill": not_word(*occlusion.FILLS)
            | not_number(0, 255).map(lambda value: (0, 0, value))
            | st.sampled_from([(0, 0), ()]),
            "seed": not_seed(),
            "first": not_whole(0, 2**40),
        },
    ),
    "sliding_places": Case(
        occlusion.sliding_places,
        lambda: {"height": 8, "width": 8, "size": 4},
        {
            "height": not_whole(1, 1_000),
            "width": not_whole(1, 1_000),
            "size": not_whole(1, 8),
        },
    ),
    "low_resolution": Case(
        resolution.low_resolution,
        lambda: {"images": image_set().images, "size": 4},
        {"images": not_images(), "size": not_whole(1, 32)},
    ),
    "corrupt": Case(
        corruptions.corrupt,
        lambda: {"images": image_set().images, "kind": "contrast", "severity": 1, "seed": 0},
        {
            "images": not_images() | st.just(image_set().images[:, :16]),
            "kind": not_word(*corruptions.KINDS),
            "severity": not_whole(1, 5),
            "seed": not_seed(),
            "first": not_whole(0, 2**40),
        },
    ),
    "published_corruptions": Case(
        or_not_there(corruptions.published_corruptions),
        lambda: {"folder": "nowhere", "kind": "frost", "severity": 1},
        {
            "folder": st.sampled_from([None, 3, object()]),
            "kind": not_word(*corruptions.PUBLISHED),
            "severity": not_whole(1, 5),
        },
    ),
    "textured_shapes": Case(
        shapes.textured_shapes,
        lambda: {"count": 1, "seed": 0, "size": 16},
        {
            "count": not_whole(1, MOST),
            "seed": not_seed(),
            "spurious": not_share(optional=True),
            "size": not_whole(16, 512),
            "progress": not_flag(),
        },
    ),
    "open_images": Case(
        or_not_there(image_folders.open_images),
        lambda: {"setting": "cub", "root": "nowhere"},
        {
            "setting": not_word("pets", "cub"),
            "root": st.sampled_from([None, 3, object()]),
            "image_size": not_whole(1, 2_048),
            "download": not_flag(),
        },
    ),
    "preprocessing": Case(
        image_folders.preprocessing,
        lambda: {"image_size": 32},
        {"image_size": not_whole(1, 2_048)},
    ),
    "extract": Case(
        image_folders.extract,
        lambda: {
            "model": protocols.published(dense(), "group2", classes=4),
            "images": [(torch.rand(3, 32, 32), 0)],
            "classes": ("a",),
            "workers": 0,
            "progress": False,
        },
        {
            "model": NETWORK,
            "images": st.sampled_from([None, 3, object(), []]),
            "classes": st.sampled_from([None, 3, "ab", []]),
            "batch_size": not_whole(),
            "workers": not_whole(0, 1_000),
            "progress": not_flag(),
        },
    ),
}
test_what_works, test_what_does_not = both_tests(CASES)
