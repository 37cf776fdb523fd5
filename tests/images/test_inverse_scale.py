"""Inverse scale sparsification against a slow reference with dense matrices, and its limits."""

import dataclasses
import importlib.util
import itertools
import warnings

import numpy as np
import pytest
import torch

from ersm_lab.images import flat_regions, inverse_scale, path_steps, smoothed
from ersm_lab.images.flat_regions import project
from ersm_lab.images.inverse_scale import inverse_scale_path, sparsify
from ersm_lab.images.path_steps import PathSettings

needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="the fused loop needs numba"
)


def edges_of(height, width):
    """The two pixels of every edge, to the right first, then down, in reading order."""
    pixel = np.arange(height * width).reshape(height, width)
    right = zip(pixel[:, :-1].ravel(), pixel[:, 1:].ravel(), strict=True)
    down = zip(pixel[:-1].ravel(), pixel[1:].ravel(), strict=True)
    return [*right, *down]


def difference_matrix(height, width):
    edges = edges_of(height, width)
    d = np.zeros((len(edges), height * width))
    for e, (i, j) in enumerate(edges):
        d[e, i], d[e, j] = -1, 1
    return d


def dense_projection(u, d, closed):
    """v - A^+ A v with A the closed rows of D; u is (pixels,)."""
    a = d[closed]
    return u - np.linalg.pinv(a, rcond=1e-10) @ (a @ u) if closed.any() else u


def slow_path(x, levels, nu, kappa, alpha):
    """One graph, x (C, H, W): (image, steps, sparsity) at each level, levels falling."""
    c, h, w = x.shape
    d = difference_matrix(h, w)
    x = x.numpy().astype(np.float64).reshape(c, -1)
    u = np.repeat(x.mean(1, keepdims=True), h * w, 1)
    z = np.zeros((c, len(d)))
    found, step = [], 0
    for level in levels:
        while True:
            closed = (np.abs(z) <= 1).all(0)
            if closed.mean() <= level:
                break
            gamma = kappa * np.sign(z) * np.maximum(np.abs(z) - 1, 0)
            gap = (u @ d.T - gamma) / nu
            u = u - kappa * alpha * (u - x + gap @ d)
            z = z + alpha * gap
            step += 1
        image = np.stack([dense_projection(v, d, closed) for v in u])
        found.append((image.reshape(c, h, w), step, closed.mean()))
    return found


def pictures(*shape, seed=0):
    """A bright square on a slope with a little noise, in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.1 * torch.rand(*shape, generator=generator, dtype=torch.float64)
    x += torch.linspace(0, 0.3, shape[-1], dtype=torch.float64)
    x[..., 1:4, 1:4] += torch.rand(*shape[:2], 1, 1, generator=generator, dtype=torch.float64)
    return x


def jumble(*shape):
    """The pixels of each channel are 0 to 1 in equal steps, in any order: no two are nearly equal."""
    generator = torch.Generator().manual_seed(5)
    order = torch.rand(*shape, generator=generator).flatten(2).argsort(2)
    return (order.double() / (order.shape[2] - 1)).view(shape)


def random_edges(b, g, h, w, share, seed=0):
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(b, g, h, w - 1, generator=generator) < share
    return right, torch.rand(b, g, h - 1, w, generator=generator) < share


# --- the projection --------------------------------------------------------------------------------


@pytest.mark.parametrize("graphs", [1, 3])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(5, 7), (1, 6), (4, 1), (1, 1)])
def test_projection_is_that_of_the_pseudo_inverse(shape, share, graphs):
    u = torch.rand(2, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    right, down = random_edges(2, graphs, *shape, share)
    image = project(u, right, down)
    d = difference_matrix(*shape)
    for b in range(2):
        for c in range(3):
            g = c if graphs == 3 else 0
            closed = ~torch.cat([right[b, g].flatten(), down[b, g].flatten()]).numpy()
            expected = dense_projection(u[b, c].numpy().ravel(), d, closed)
            assert np.abs(image[b, c].numpy().ravel() - expected).max() < 1e-10


def test_projection_takes_channels_last_and_keeps_the_type():
    u = torch.rand(2, 3, 4, 5)
    edges = random_edges(2, 1, 4, 5, 0.5)
    image = project(u.to(memory_format=torch.channels_last), *edges)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, project(u, *edges))


def components_by_flooding(joined, pixels):
    neighbours = {p: set() for p in range(pixels)}
    for i, j in joined:
        neighbours[i].add(j)
        neighbours[j].add(i)
    left, found = set(range(pixels)), set()
    while left:
        todo, reached = [left.pop()], set()
        while todo:
            p = todo.pop()
            reached.add(p)
            todo += neighbours[p] - reached
        left -= reached
        found.add(frozenset(reached))
    return found


def joined_pairs(kind):
    """Pairs of joined pixels of a 9 x 9 image, and their number."""
    if kind == "snake":  # one component, a path through all rows
        rows = [list(range(9 * i, 9 * i + 9))[:: (-1) ** i] for i in range(9)]
        return list(itertools.pairwise(itertools.chain(*rows))), 81
    edges = edges_of(9, 9)
    keep = np.random.default_rng(0).random(len(edges)) < {"none": 0, "some": 0.45, "all": 1}[kind]
    return [edge for edge, k in zip(edges, keep, strict=True) if k], 81


@pytest.mark.parametrize("label", [flat_regions._labels_scipy, flat_regions._labels_torch])
@pytest.mark.parametrize("kind", ["none", "some", "all", "snake"])
def test_both_labellings_find_the_components(label, kind):
    joined, pixels = joined_pairs(kind)
    first, second = torch.tensor(joined, dtype=torch.long).reshape(-1, 2).T
    labels, count = label(first, second, pixels)
    groups = {frozenset(torch.nonzero(labels == n).flatten().tolist()) for n in range(count)}
    assert groups == components_by_flooding(joined, pixels)


def test_both_labellings_give_the_same_projection(monkeypatch):
    u = torch.rand(3, 2, 8, 9, dtype=torch.float64)
    edges = random_edges(3, 2, 8, 9, 0.5)
    by_scipy = project(u, *edges)
    monkeypatch.setattr(flat_regions, "_labels_scipy", flat_regions._labels_torch)
    torch.testing.assert_close(project(u, *edges), by_scipy, rtol=0, atol=1e-14)


def test_the_mean_of_each_component_is_kept():
    u = torch.rand(1, 2, 6, 7, dtype=torch.float64)
    right, down = random_edges(1, 1, 6, 7, 0.5)
    image = project(u, right, down)
    closed = ~torch.cat([right.flatten(), down.flatten()])
    joined = [e for e, c in zip(edges_of(6, 7), closed, strict=True) if c]
    components = components_by_flooding(joined, 42)
    assert 1 < len(components) < 42
    for component in components:
        part = list(component)
        before, after = u.flatten(2)[0, :, part], image.flatten(2)[0, :, part]  # (2, pixels)
        torch.testing.assert_close(after, before.mean(1, keepdim=True).expand_as(after))


# --- the path --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", ["shared", "own"])
@pytest.mark.parametrize("nu", [0.3, 2.0])
def test_path_against_a_slow_reference(channels, nu):
    x = pictures(2, 3, 6, 5)
    settings = PathSettings(nu=nu, kappa=2.0, channels=channels)
    levels = (0.8, 0.6, 0.3)
    path = inverse_scale_path(x, levels=levels, settings=settings)
    alpha = 0.95 * inverse_scale.stability_bound(6, 5, nu=nu, kappa=2.0)
    for b in range(2):
        parts = (
            [(0, slice(0, 3))] if channels == "shared" else [(c, slice(c, c + 1)) for c in range(3)]
        )
        for g, part in parts:
            expected = slow_path(x[b, part], levels, nu, 2.0, alpha)
            for n, (image, step, sparsity) in enumerate(expected):
                assert path.steps[n, b, g] == step > 0
                assert path.sparsity[n, b, g].item() == pytest.approx(sparsity)
                np.testing.assert_allclose(path.images[n, b, part], image, rtol=0, atol=1e-10)


def test_path_starts_flat():
    x = pictures(2, 3, 6, 5)
    path = inverse_scale_path(x, levels=[1.0])
    assert path.steps.tolist() == [[[0], [0]]]
    flat = x.mean((2, 3), keepdim=True).expand_as(x)
    torch.testing.assert_close(path.images[0], flat, rtol=0, atol=1e-15)


def test_path_ends_at_the_image():
    x = jumble(2, 2, 6, 5)
    settings = PathSettings(kappa=1.0, max_steps=4_000)
    state = path_steps.begin(x)
    never = torch.full((2,), 1_000)  # more edges than there are
    path_steps.advance_torch(state, never, settings, inverse_scale.step_size(settings, 6, 5))
    assert state.opened.tolist() == [49, 49]
    image = project(state.u, *path_steps.opened_edges(state)) + state.mean
    torch.testing.assert_close(image, x, rtol=0, atol=1e-8)


def test_images_come_nearer_along_the_path_and_keep_their_mean():
    x = pictures(3, 3, 8, 8)
    path = inverse_scale_path(x, levels=[0.95, 0.8, 0.6, 0.4, 0.2, 0.0])
    error = (path.images - x).square().sum((2, 3, 4))  # (L, B)
    assert (error.diff(dim=0) < 0).all()
    assert (error[-1] == 0).all()
    mean = x.mean((2, 3)).expand(6, 3, 3)
    torch.testing.assert_close(path.images.mean((3, 4)), mean, rtol=0, atol=1e-12)


def test_levels_share_one_path_in_any_order():
    x = pictures(2, 3, 6, 5)
    path = inverse_scale_path(x, levels=[0.5, 0.9, 0.7])
    assert path.levels == (0.5, 0.9, 0.7)
    for level, image in zip(path.levels, path.images, strict=True):
        assert torch.equal(image, sparsify(x, level))


def test_each_image_stops_by_itself():
    x = torch.cat([pictures(3, 2, 6, 5, seed=s) * c for s, c in ((1, 1.0), (2, 0.3), (3, 3.0))])
    path = inverse_scale_path(x, levels=[0.7])
    alone = [inverse_scale_path(image[None], levels=[0.7]) for image in x]
    assert path.steps[0].flatten().tolist() == [a.steps.item() for a in alone]
    assert len(set(path.steps.flatten().tolist())) > 3
    torch.testing.assert_close(path.images[0], torch.cat([a.images[0] for a in alone]))
    assert (path.sparsity <= 0.7).all()


def test_sparsified_images_are_as_sparse_as_asked():
    x = pictures(4, 1, 9, 9)
    for level in (0.9, 0.6):
        right, down = path_steps.differences(sparsify(x, level))
        closed = (right.abs() < 1e-12).sum((1, 2, 3)) + (down.abs() < 1e-12).sum((1, 2, 3))
        assert (closed >= level * 2 * 8 * 9).all()


# --- one graph or several --------------------------------------------------------------------------


def test_a_shared_graph_breaks_all_channels_at_the_same_edges():
    x = torch.zeros(1, 2, 6, 6, dtype=torch.float64)
    x[0, 0, :, 3:] = 1  # one channel has an upright edge,
    x[0, 1, 3:] = 0.9  # the other a level one
    shared, own = (
        inverse_scale_path(x, levels=[0.8], settings=PathSettings(channels=c))
        for c in ("shared", "own")
    )
    assert shared.steps.shape == (1, 1, 1) and own.steps.shape == (1, 1, 2)
    assert torch.equal(shared.images[0], x)  # 12 of 60 edges differ in either channel
    assert own.sparsity.flatten().tolist() == [0.9, 0.9]
    near = inverse_scale_path(x, levels=[0.9]).images[0]
    right, down = path_steps.differences(near)
    assert (right[0, 0].abs() > 1e-6).any() and not (right[0, 1].abs() > 1e-6).any()
    assert not (down[0, 0].abs() > 1e-6).any()


def test_grey_images_do_not_care_whether_channels_share_a_graph():
    x = pictures(2, 1, 7, 6).expand(-1, 3, -1, -1)
    one, two = (
        inverse_scale_path(x, levels=[0.8, 0.5], settings=PathSettings(channels=c))
        for c in ("shared", "own")
    )
    assert torch.equal(one.steps.expand_as(two.steps), two.steps)
    torch.testing.assert_close(one.images, two.images, rtol=0, atol=1e-12)


# --- the step size ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("nu", "kappa"), [(0.3, 3.0), (1.0, 1.0), (10.0, 5.0)])
def test_largest_step_is_that_of_the_hessian(nu, kappa):
    d = difference_matrix(6, 5)
    pixels, edges = d.shape[1], d.shape[0]
    hessian = np.block([[np.eye(pixels) + d.T @ d / nu, -d.T / nu], [-d / nu, np.eye(edges) / nu]])
    sharp = 2 / (kappa * np.linalg.eigvalsh(hessian)[-1])
    bound = inverse_scale.stability_bound(6, 5, nu=nu, kappa=kappa)
    assert 0.9 * sharp < bound <= sharp
    closed = 2 / (kappa * (1 + np.linalg.eigvalsh(d.T @ d)[-1] / nu))
    assert bound < closed


def test_steps_outside_the_bound_are_refused_and_would_diverge():
    x, nu, kappa = jumble(1, 1, 6, 5), 0.3, 1.0
    bound = inverse_scale.stability_bound(6, 5, nu=nu, kappa=kappa)
    d = difference_matrix(6, 5)
    closed = 2 / (kappa * (1 + np.linalg.eigvalsh(d.T @ d)[-1] / nu))  # of u alone

    def far(alpha):
        """How far u is from x after many steps, without any check."""
        settings = PathSettings(nu=nu, kappa=kappa, max_steps=2_000)
        state = path_steps.begin(x)
        path_steps.advance_torch(state, torch.tensor([1_000]), settings, alpha)
        return (state.u - state.x).abs().max().item()

    assert far(0.99 * bound) < 1e-6
    assert not far(0.99 * closed) < 1e3
    for alpha in (1.01 * bound, 0.99 * closed, 0.0, -1.0):
        settings = PathSettings(nu=nu, kappa=kappa, alpha=alpha)
        with pytest.raises(ValueError, match=f"stability bound.*alpha < {bound:.6g}"):
            inverse_scale_path(x, levels=[0.5], settings=settings)
    settings = PathSettings(nu=nu, kappa=kappa, alpha=0.99 * bound)
    assert inverse_scale_path(x, levels=[0.5], settings=settings).steps.min() > 0


# --- images without a path -------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", pytest.param("numba", marks=needs_numba)])
@pytest.mark.parametrize("level", [0.0, 0.6, 1.0])
def test_constant_and_single_pixel_images_are_their_own_result(backend, level):
    for x in (torch.full((2, 3, 5, 4), 0.3), torch.rand(2, 3, 1, 1)):
        for channels in ("shared", "own"):
            settings = PathSettings(channels=channels)
            path = inverse_scale_path(x, levels=[level], settings=settings, backend=backend)
            assert torch.equal(path.images[0], x)
            assert (path.steps == inverse_scale.ITSELF).all()
            assert (path.sparsity == 1).all()


def test_an_image_as_sparse_as_the_level_is_its_own_result():
    x = torch.zeros(1, 1, 4, 4)
    x[..., 2:] = 1  # 4 of 24 edges differ
    path = inverse_scale_path(x, levels=[20 / 24, 0.9])
    assert torch.equal(path.images[0], x)
    assert (
        path.steps.flatten().tolist()[0] == inverse_scale.ITSELF < path.steps.flatten().tolist()[1]
    )
    assert path.sparsity[0].item() == pytest.approx(20 / 24)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_is_refused_and_located(value):
    x = torch.rand(4, 3, 5, 5)
    x[2, 1, 0, 0] = x[3, 0, 1, 1] = value
    with pytest.raises(
        ValueError, match="2 of 4 images hold NaN or infinity, the first at index 2"
    ):
        sparsify(x, 0.6)


def test_a_level_that_is_not_reached_is_said():
    x = pictures(2, 1, 6, 5)
    x[1] *= 1e-3
    with pytest.warns(RuntimeWarning, match=r"1 of 2 .* did not reach sparsity 0\.7 in 500 steps"):
        path = inverse_scale_path(x, levels=[0.7], settings=PathSettings(max_steps=500))
    assert path.steps[0, 0] < path.steps[0, 1] == 500
    assert path.sparsity[0, 0] <= 0.7 < path.sparsity[0, 1]


@pytest.mark.parametrize(
    ("x", "levels", "message"),
    [
        (torch.rand(3, 5, 5), [0.5], r"batch of images \(B, C, H, W\)"),
        (torch.zeros(1, 3, 5, 5, dtype=torch.uint8), [0.5], "divide by 255"),
        (torch.rand(1, 3, 5, 5), [0.5, 1.2], "each 0 to 1"),
        (torch.rand(1, 3, 5, 5), [], "each 0 to 1"),
    ],
)
def test_bad_input_is_refused(x, levels, message):
    with pytest.raises(ValueError, match=message):
        inverse_scale_path(x, levels=levels)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="must be positive, got 0"):
        PathSettings(nu=0)
    with pytest.raises(ValueError, match='"shared" or "own"'):
        PathSettings(channels="each")
    with pytest.raises(ValueError, match=r"edges of \(1, 2, 4, 4\)"):
        project(torch.rand(1, 2, 4, 4), torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 4))
    with pytest.raises(ValueError, match="number of channels, 3; got 2"):
        project(torch.rand(1, 3, 4, 4), torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 3, 4))


# --- the two ways to run it ------------------------------------------------------------------------


@needs_numba
@pytest.mark.parametrize("channels", ["shared", "own"])
@pytest.mark.parametrize("shape", [(7, 3, 8, 9), (2, 1, 1, 12), (2, 3, 12, 1), (2, 2, 16, 16)])
def test_fused_and_plain_agree(shape, channels):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    settings = PathSettings(channels=channels)
    fused, plain = (
        inverse_scale_path(x, levels=[0.8, 0.4], settings=settings, backend=b)
        for b in ("numba", "torch")
    )
    # Rounding may open an edge a step earlier or later; then a few pixels of the image differ.
    assert (fused.steps - plain.steps).abs().max() <= 1
    assert (fused.images - plain.images).abs().median() < 1e-4
    assert plain.steps.min() > 0


@needs_numba
def test_fused_and_plain_agree_after_the_same_steps():
    x = torch.rand(4, 3, 8, 9, generator=torch.Generator().manual_seed(4))
    settings = PathSettings(max_steps=400)
    states = []
    for advance in (path_steps.advance_numba, path_steps.advance_torch):
        state = path_steps.begin(x)
        alpha = inverse_scale.step_size(settings, 8, 9)
        advance(state, torch.full((4,), 1_000), settings, alpha)
        states.append(state)
    fused, plain = states
    assert fused.opened.min() > 20
    for name in ("u", "right", "down"):
        torch.testing.assert_close(getattr(fused, name), getattr(plain, name), rtol=0, atol=1e-3)


def test_without_numba_the_plain_loop_is_used(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    x = torch.rand(1, 1, 4, 4)
    assert inverse_scale.advance_by("auto", x) is path_steps.advance_torch
    with pytest.raises(ValueError, match="numba is not installed"):
        sparsify(x, 0.5, backend="numba")


@needs_numba
def test_the_backend_that_fits_is_chosen():
    x = torch.rand(1, 1, 4, 4)
    assert inverse_scale.advance_by("auto", x) is path_steps.advance_numba
    assert inverse_scale.advance_by("torch", x) is path_steps.advance_torch
    assert inverse_scale.advance_by("auto", x.double()) is path_steps.advance_torch
    with pytest.raises(ValueError, match=r"in float32, x is torch\.float64"):
        sparsify(x.double(), 0.5, backend="numba")
    with pytest.raises(ValueError, match='"auto", "numba" or "torch"'):
        sparsify(x, 0.5, backend="jax")


def test_types_are_kept_and_no_gradient_flows():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = torch.rand(1, 3, 5, 5).to(dtype).requires_grad_()
        y = sparsify(x, 0.6)
        assert y.dtype == dtype and not y.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees_with_the_cpu():
    x = pictures(5, 3, 12, 12)
    here, there = (inverse_scale_path(t, levels=[0.8, 0.5]) for t in (x, x.cuda()))
    assert torch.equal(here.steps, there.steps.cpu())
    torch.testing.assert_close(here.images, there.images.cpu(), rtol=0, atol=1e-10)


# --- a whole data set ------------------------------------------------------------------------------


def photographs(n=7):
    x = pictures(n, 3, 8, 8).clamp(0, 1)
    return (x * 255).byte().permute(0, 2, 3, 1).contiguous()  # (n, 8, 8, 3)


def refuse(*args, **settings):
    raise AssertionError("computed again")


def test_data_set_is_computed_once(tmp_path, monkeypatch, capsys):
    images = photographs()
    found = smoothed.sparsify_dataset(images, 0.6, cache=tmp_path / "new", chunk=3)
    x = images.permute(0, 3, 1, 2).float() / 255
    y = sparsify(x, 0.6).permute(0, 2, 3, 1)
    assert found.dtype == torch.uint8 and found.shape == images.shape
    assert (found.float() - 255 * y.clamp(0, 1)).abs().max() <= 0.51
    assert len(list((tmp_path / "new").iterdir())) == 3
    assert "sparsity 0.6" in capsys.readouterr().err
    monkeypatch.setattr(smoothed, "sparsify", refuse)
    again = smoothed.sparsify_dataset(images, 0.6, cache=tmp_path / "new", chunk=3, progress=False)
    assert torch.equal(again, found)
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path):
    images = photographs(3)
    (tmp_path / "file").touch()  # not even root can make a folder in it
    cache = tmp_path / "file" / "cache"
    found = smoothed.sparsify_dataset(images, 0.6, cache=cache, progress=False)
    kept = smoothed.sparsify_dataset(images, 0.6, cache=tmp_path / "new", progress=False)
    assert torch.equal(found, kept)


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    images, calls = photographs(), []

    def interrupted(x, level, **settings):
        calls.append(len(x))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sparsify(x, level, **settings)

    monkeypatch.setattr(smoothed, "sparsify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        smoothed.sparsify_dataset(images, 0.7, cache=tmp_path, chunk=3, progress=False)
    found = smoothed.sparsify_dataset(images, 0.7, cache=tmp_path, chunk=3, progress=False)
    assert calls == [3, 3, 1, 1]
    whole = smoothed.sparsify_dataset(images, 0.7, cache=tmp_path / "b", progress=False)
    assert torch.equal(found, whole)


@pytest.mark.parametrize("damage", ["a byte", "the end", "all"])
def test_a_damaged_file_is_computed_again(tmp_path, damage):
    images = photographs(3)
    found = smoothed.sparsify_dataset(images, 0.6, cache=tmp_path, progress=False)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    place = whole.index(found.numpy().tobytes()[:64])
    broken = {
        "a byte": whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
        "the end": whole[: len(whole) // 2],
        "all": b"nothing",
    }[damage]
    path.write_bytes(broken)
    with pytest.warns(UserWarning, match="computed again"):
        again = smoothed.sparsify_dataset(images, 0.6, cache=tmp_path, progress=False)
    assert torch.equal(again, found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        smoothed.sparsify_dataset(images, 0.6, cache=tmp_path, progress=False)


def test_files_are_told_apart(tmp_path):
    images = photographs(3)
    runs = [
        (images, 0.6, PathSettings()),
        (images, 0.8, PathSettings()),
        (images, 0.6, PathSettings(channels="own")),
        (images.flip(0), 0.6, PathSettings()),
    ]
    for x, level, settings in runs:
        smoothed.sparsify_dataset(x, level, cache=tmp_path, settings=settings, progress=False)
    assert len(list(tmp_path.iterdir())) == len(runs)
    fields = {f.name for f in dataclasses.fields(PathSettings)}
    assert fields == {"nu", "kappa", "alpha", "max_steps", "channels"}  # all in the file's name


def test_images_that_are_not_bytes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be uint8 \(N, H, W, C\)"):
        smoothed.sparsify_dataset(torch.rand(2, 8, 8, 3), 0.6, cache=tmp_path)
