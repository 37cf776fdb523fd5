"""The made-up scene: what is smooth costs, what is textured does not."""

import torch

from ersm_lab.chapters import toy_scene
from ersm_lab.chapters.toy_scene import SIZE
from ersm_lab.views import energy_theory


def test_regions_cover_the_scene_once():
    scene = toy_scene.toy_scene()
    assert (sum(region.int() for region in scene.regions.values()) == 1).all()
    on_object = scene.regions["object's rim"] | scene.regions["object's inside"]
    assert torch.equal(scene.usefulness > 0, on_object)
    assert torch.allclose(scene.tokens.norm(dim=1), torch.ones(1, SIZE, SIZE, dtype=torch.float64))


def test_smooth_tokens_agree_with_their_neighbours():
    scene = toy_scene.toy_scene()
    cost = energy_theory.pair_cost(scene.tokens, lambda_pair=1.0)[0, 0]  # (H, W)
    means = {name: cost[region].mean().item() for name, region in scene.regions.items()}
    smooth = min(means["ground"], means["object's inside"])
    assert smooth > 3 * max(means["object's rim"], means["clutter"])


def test_the_same_seed_gives_the_same_scene():
    first, again, other = (toy_scene.toy_scene(seed=s).tokens for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_dropped_tokens_are_faded_beside_the_scene():
    scene = toy_scene.toy_scene()
    picture = toy_scene.beside(scene, [torch.ones(SIZE, SIZE), torch.zeros(SIZE, SIZE)], gap=8)
    side = 8 * SIZE
    assert picture.shape == (side, 3 * side + 16, 3) and picture.dtype.name == "uint8"
    plain, kept, dropped = (picture[:, k * (side + 8) :][:, :side] for k in range(3))
    assert (plain == kept).all() and (plain != dropped).any(2).mean() > 0.9
    assert (picture[:, side : side + 8] == 255).all()
