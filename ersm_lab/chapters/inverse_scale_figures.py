"""The pictures and tables of the inverse scale chapter: the path to slide along, edges beside rival
smoothings, what a step too large does, and what networks trained along the path gain and lose."""

from __future__ import annotations

import math
import statistics as plain_statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.sparse import csr_array
from scipy.sparse.linalg import lsqr
from torch import Tensor, nn

from ersm_lab import ledger
from ersm_lab.evaluation import inference, rankings, smoothing_suite
from ersm_lab.evaluation.smoothing_suite import SmoothingSuite
from ersm_lab.images import inverse_scale
from ersm_lab.images.data import ImageSet
from ersm_lab.images.inverse_scale import PathSettings
from ersm_lab.results.statistics import Difference, marks, of
from ersm_lab.views import figures
from ersm_lab.views.figures import MARKERS
from ersm_lab.views.frames import frame_slider
from ersm_lab.views.tables import Table
from ersm_lab.views.widgets import Widget

LEVELS = (1.0, 0.99, 0.97, 0.95, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4, 0.2, 0.0)
STRONG, WEAK = 0.05, 0.5  # shares of an image's edges: the strongest, and the weakest
WORDS = {
    "sparsified": "sparsified",
    "blur": "Gaussian blur,\nequal squared error",
    "low-pass": "DCT low-pass,\nequal energy",
}
NOT_RUN = "not yet run: `make reproduce`"
GAP = 6  # pixels between the pictures of a frame


# --- when an edge opens ----------------------------------------------------------------------------


def opening_times(
    widths: Sequence[int], *, nu: float, contrast: float = 1.0, kappa: float = 30.0
) -> tuple[np.ndarray, np.ndarray]:
    """When the edge between two plateaus in one row of pixels opens, on the path and by theory.

    The theory is that of kappa -> infinity: u = (I + D^T D / nu)^-1 x until an edge opens, and so the
    edge with the largest difference opens first, at nu / |D u|.

    Args:
        widths: pixels of each plateau.
        nu: of the path.
        contrast: between the plateaus.
        kappa: of the path that is run.

    Returns:
        Path and theory, each (len(widths),): times k alpha, in steps times step size.
    """
    settings, found, theory = PathSettings(nu=nu, kappa=kappa), [], []
    for width in widths:
        x = torch.zeros(1, 1, 1, 2 * width)
        x[..., width:] = contrast
        bound = inverse_scale.stability_bound(1, 2 * width, nu=nu, kappa=kappa)
        alpha = inverse_scale.SHARE_OF_BOUND * bound
        first = 1 - 0.5 / (2 * width - 1)  # sparsity, reached by a single open edge
        path = inverse_scale.inverse_scale_path(x, levels=[first], settings=settings)
        found.append(path.steps.item() * alpha)
        theory.append(_first_opening(x.double().flatten().numpy(), nu))
    return np.array(found), np.array(theory)


def _first_opening(x: np.ndarray, nu: float) -> float:
    difference = np.eye(len(x))[1:] - np.eye(len(x))[:-1]  # (edges, pixels)
    u = np.linalg.solve(np.eye(len(x)) + difference.T @ difference / nu, x)
    return nu / np.abs(difference @ u).max()


def draw_opening_times(widths: Sequence[int], *, nus: Sequence[float]) -> Figure:
    """Time of opening against the width of the plateaus, marks from the path and lines by theory.

    Args:
        widths: pixels of each plateau.
        nus: one line each.
    """
    figure, axis = plt.subplots(figsize=(7.2, 3.8))
    for nu, marker in zip(nus, MARKERS, strict=False):
        found, theory = opening_times(widths, nu=nu)
        (line,) = axis.plot(widths, theory)
        axis.plot(widths, found, marker, color=line.get_color(), label=f"ν = {nu:g}")
    limit = [2 / width for width in widths]
    axis.plot(widths, limit, color="0.35", linestyle=":", label="ν → 0: 2 / (n d)")
    axis.set(
        title="Two plateaus in a row of pixels: marks from the path, lines by theory",
        xlabel="width n of each plateau [pixels]",
        ylabel="time of opening × contrast d",
        xscale="log",
        yscale="log",
    )
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.minorticks_off()
    axis.legend()
    return figure


# --- a step that is too large ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One path, step by step.

    Attributes:
        loss: l(u, gamma) after each step, in squared grey levels of 0 to 1.
        opened: share of open edges after each step, 0 to 1.
        image: (C, H, W), the sparsified image at the end.
    """

    loss: Sequence[float]
    opened: Sequence[float]
    image: Tensor


def draw_walks(walks: Mapping[str, Walk], image: Tensor) -> Figure:
    """Loss over steps of several paths of one image, and where each of them has got to.

    Args:
        walks: {label: path}.
        image: (C, H, W), what they are paths of.
    """
    figure, axes = plt.subplot_mosaic(
        [["loss", *range(len(walks) + 1)]],
        figsize=(9.4, 3.2),
        width_ratios=[2.2, *[1] * (len(walks) + 1)],
    )
    loss = axes["loss"]
    pictures = {"image": image}
    for (label, walk), marker in zip(walks.items(), MARKERS, strict=False):
        every = max(1, len(walk.loss) // 8)
        loss.plot(
            range(1, len(walk.loss) + 1), walk.loss, marker=marker, markevery=every, label=label
        )
        pictures[f"{label}\n{100 * walk.opened[-1]:.0f} % open"] = walk.image
    loss.set(title="l(u, γ) along the path", xlabel="step", ylabel="l(u, γ)", yscale="log")
    loss.legend(fontsize=8)
    for number, (title, picture) in enumerate(pictures.items()):
        axes[number].imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy())
        axes[number].set_title(title, fontsize=9)
        figures.bare(axes[number])
    return figure


# --- the path --------------------------------------------------------------------------------------


def path_slider(
    test: ImageSet,
    *,
    levels: Sequence[float] = LEVELS,
    settings: PathSettings | None = None,
    name: str = "inverse-scale-path",
    zoom: int = 4,
) -> Widget:
    """Sparsified images above their contours, one frame a level, from flat to complete.

    A contour lies where two neighbouring pixels of the sparsified image differ.

    Args:
        test: a few images.
        levels: of sparsity, one frame each.
        settings: of the path.
        name: id of the element.
        zoom: pixels a pixel of the image takes.
    """
    x = test.images.permute(0, 3, 1, 2).float() / 255  # (N, 3, H, W)
    path = inverse_scale.inverse_scale_path(x, levels=levels, settings=settings)
    frames, labels = [], []
    for level, y in zip(levels, path.images, strict=True):  # y (N, 3, H, W)
        energy = inverse_scale.retained_energy(x, y).mean().item()
        labels.append(f"sparsity {level:.2f}, {100 * energy:.0f} % of the energy")
        pictures = (y.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        top = figures.beside([_enlarge(picture, zoom) for picture in pictures], axis=1, gap=GAP)
        bottom = figures.beside([contours(picture, zoom) for picture in y], axis=1, gap=GAP)
        frames.append(figures.beside([top, bottom], axis=0, gap=GAP))
    return frame_slider(
        frames,
        labels=labels,
        title="The inverse scale path: from flat to complete",
        alt="Images at one sparsity level, and below each the contours of its flat pieces.",
        captions=[test.classes[label] for label in test.labels.tolist()],
        name=name,
        width=(test.images.shape[2] * zoom + GAP) * len(test) - GAP,
    )


def contours(image: Tensor, zoom: int = 4) -> np.ndarray:
    """Dark lines where neighbouring pixels of an image differ, on white.

    Args:
        image: (C, H, W).
        zoom: pixels a pixel of the image takes, at least 2.

    Returns:
        uint8 (H zoom, W zoom, 3).
    """
    right, down = ((edge != 0).any(0).numpy() for edge in inverse_scale._differences(image))
    height, width = image.shape[-2:]
    picture = np.full((height * zoom, width * zoom), 255, np.uint8)
    rows, columns = np.nonzero(right)  # (edges,)
    for shift in range(zoom):
        picture[rows * zoom + shift, (columns + 1) * zoom - 1] = 25
    rows, columns = np.nonzero(down)
    for shift in range(zoom):
        picture[(rows + 1) * zoom - 1, columns * zoom + shift] = 25
    return picture[..., None].repeat(3, 2)


def _enlarge(image: np.ndarray, zoom: int) -> np.ndarray:
    return np.kron(image, np.ones((zoom, zoom, 1), np.uint8))


# --- edges, beside the rivals ----------------------------------------------------------------------


def gradient(image: Tensor) -> Tensor:
    """Length of the differences to the right and down, over all channels, (..., C, H, W) -> (..., H, W).

    At the last row and column the missing difference is 0.
    """
    right, down = inverse_scale._differences(image)
    squared = F.pad(right, (0, 1)).square() + F.pad(down, (0, 0, 0, 1)).square()
    return squared.sum(-3).sqrt()


def draw_rivals(images: Tensor, level: float) -> Figure:
    """A level of the path beside the blur of equal error and the low-pass of equal energy.

    Two rows an image: the picture, and the length of its gradient (dark: large).

    Args:
        images: uint8 (N, H, W, 3), a few.
        level: of sparsity.
    """
    columns = {"image": images} | smoothing_suite.smoothed(images, level)
    count = len(images)
    figure, axes = plt.subplots(2 * count, len(columns), figsize=(7.4, 3.7 * count), squeeze=False)
    for row in range(count):
        whole = gradient(_floats(images[row : row + 1])).quantile(0.995).item()
        for column, (name, pictures) in enumerate(columns.items()):
            top, bottom = axes[2 * row, column], axes[2 * row + 1, column]
            top.imshow(pictures[row].numpy())
            slope = gradient(_floats(pictures[row : row + 1]))[0]  # (H, W)
            shown = bottom.imshow(slope.numpy(), cmap="Greys", vmin=0, vmax=max(whole, 1e-9))
            if row == 0:
                top.set_title(WORDS.get(name, name), fontsize=9)
        figure.colorbar(
            shown, ax=axes[2 * row + 1, :], label="gradient [1/pixel]", shrink=0.9, extend="max"
        )
    for axis in axes.flat:
        figures.bare(axis)
    figure.suptitle(f"Sparsity {level:g} and its rivals", fontsize=11)
    return figure


def edge_shares(images: Tensor, smooth: Tensor) -> tuple[float, float]:
    """How much contrast is left across the strongest and the weakest edges of the images.

    Strong are the `STRONG` (5 %) largest differences of each image, weak the `WEAK` (50 %) smallest.

    Args:
        images, smooth: uint8 (N, H, W, 3).

    Returns:
        Sum of |D smooth| over sum of |D image| across strong and across weak edges, all images
        together; |D| is the length over channels. 1 where there is no contrast to lose.
    """
    before, after = (
        torch.cat([e.square().sum(1).sqrt().flatten(1) for e in inverse_scale._differences(t)], 1)
        for t in (_floats(images), _floats(smooth))
    )  # (N, edges)
    order = before.argsort(1)
    count = before.shape[1]
    parts = order[:, count - round(STRONG * count) :], order[:, : round(WEAK * count)]
    left = [(after.gather(1, part).sum(), before.gather(1, part).sum()) for part in parts]
    strong, weak = ((a / b).item() if b > 0 else 1.0 for a, b in left)
    return strong, weak


def edge_table(images: Tensor, levels: Sequence[float]) -> Table:
    """Contrast left at strong and weak edges, error and energy, of the path and its rivals.

    Args:
        images: uint8 (N, H, W, 3).
        levels: of sparsity.
    """
    rows, x = [], _floats(images)
    for level in levels:
        for name, pictures in smoothing_suite.smoothed(images, level).items():
            y = _floats(pictures)
            strong, weak = edge_shares(images, pictures)
            energy = inverse_scale.retained_energy(x, y).mean().item()
            words = WORDS[name].replace("\n", " ")
            shares = [f"{100 * value:.0f} %" for value in (strong, weak, energy)]
            rows.append([f"{level:g}", words, *shares, f"{_error(x, y):.1f}"])
    header = ["level", "smoothing", "strong edges", "weak edges", "energy", "error [grey levels]"]
    caption = (
        f"Contrast left across the {100 * STRONG:.0f} % strongest and the {100 * WEAK:.0f} % weakest "
        f"edges of each image; {len(images)} images. Error: root of the mean square, of 255"
    )
    return Table(header=header, rows=rows, caption=caption)


def _floats(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float() / 255  # (N, 3, H, W)


# --- one graph, or one for each channel ------------------------------------------------------------

GRAPHS = {"shared": "one graph", "own": "own graphs"}


def draw_graphs(images: Tensor, level: float) -> Figure:
    """One graph for all channels beside one for each, each with this share of its edges closed.

    Args:
        images: uint8 (N, H, W, 3), a few.
        level: of sparsity.
    """
    x, count = _floats(images), len(images)
    figure, axes = plt.subplots(count, 3, figsize=(5.2, 1.75 * count + 0.5), squeeze=False)
    columns = {"image": x}
    for channels, words in GRAPHS.items():
        columns[words] = inverse_scale.sparsify(x, level, settings=PathSettings(channels=channels))
    for column, (title, drawn) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=9)
        for row in range(count):
            picture = drawn[row].clamp(0, 1).permute(1, 2, 0)
            axes[row, column].imshow(picture.numpy())
    for axis in axes.flat:
        figures.bare(axis)
    figure.suptitle(f"Sparsity {level:g}", fontsize=11)
    return figure


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Where paths are when they first reach a level.

    Attributes:
        u: (B, C, H, W), before the projection.
        image: (B, C, H, W), after it.
        zeros: share of zero entries of gamma, over all channels, 0 to 1.
        values: numbers that the images are made of: flat pieces times channels, a mean over images.
        within: share of the open edges whose two pixels are in one flat piece all the same.
        steps: median over graphs.
    """

    u: Tensor
    image: Tensor
    zeros: float
    values: float
    within: float
    steps: float


def stop_at(x: Tensor, level: float, *, settings: PathSettings | None = None) -> Stop:
    """Follow the paths of images to a level and look at what lies under the sparsified image.

    Args:
        x: (B, C, H, W), float32, 0 to 1.
        level: of sparsity.
        settings: of the path.
    """
    settings = settings or PathSettings()
    b, c, h, w = x.shape
    planes = x if settings.channels == "shared" else x.reshape(b * c, 1, h, w)
    edges = h * (w - 1) + (h - 1) * w
    state = inverse_scale._begin(planes)
    wanted = torch.full((len(planes),), math.ceil((1 - level) * edges - 1e-9 * edges))
    advance = inverse_scale._choose("auto", planes)
    advance(state, wanted, settings, inverse_scale._step_size(settings, h, w))
    right, down = inverse_scale._open(state)  # (N, 1, H, W - 1), (N, 1, H - 1, W)
    flat = inverse_scale.project(state.u, right, down)
    label, pieces = inverse_scale._components(~right[:, 0], ~down[:, 0])
    joined = [edge == 0 for edge in inverse_scale._differences(label.view(-1, 1, h, w))]
    opened = right.sum() + down.sum()
    within = sum((edge & same).sum() for edge, same in zip((right, down), joined, strict=True))
    entries = sum((z.abs() > 1).sum() for z in (state.right, state.down))
    return Stop(
        u=(state.u + state.mean).reshape(x.shape),
        image=(flat + state.mean).reshape(x.shape),
        zeros=1 - entries.item() / (b * c * edges),
        values=pieces * planes.shape[1] / b,
        within=(within / opened.clamp(min=1)).item(),
        steps=state.step.double().median().item(),
    )


def graph_table(images: Tensor, levels: Sequence[float]) -> Table:
    """One graph for all channels beside one for each, counted in three ways.

    Args:
        images: uint8 (N, H, W, 3).
        levels: of sparsity, the share of closed edges of each graph.
    """
    rows, x = [], _floats(images)
    for level in levels:
        for channels, words in GRAPHS.items():
            stop = stop_at(x, level, settings=PathSettings(channels=channels))
            counts = [f"{stop.zeros:.2f}", f"{stop.values:.0f}", f"{_error(x, stop.image):.1f}"]
            rows.append([words, f"{level:g}", *counts, f"{stop.steps:.0f}"])
    header = ["channels", "closed edges", "zeros of γ", "values", "error [grey levels]", "steps"]
    caption = (
        f"{len(images)} images. Values: flat pieces times channels, of {x[0].numel():,}; "
        "steps: median over graphs"
    )
    return Table(header=header, rows=rows, caption=caption)


def leak_table(images: Tensor, levels: Sequence[float]) -> Table:
    """How many open edges lie within a flat piece, and what the projection costs.

    Args:
        images: uint8 (N, H, W, 3).
        levels: of sparsity.
    """
    rows, x = [], _floats(images)
    for level in levels:
        stop = stop_at(x, level)
        errors = [f"{_error(x, y):.1f}" for y in (stop.u, stop.image)]
        rows.append([f"{level:g}", f"{100 * stop.within:.0f} %", *errors])
    header = [
        "level",
        "open edges within a piece",
        "error of u [grey levels]",
        "after the projection",
    ]
    return Table(header=header, rows=rows, caption=f"{len(images)} images")


def _error(x: Tensor, y: Tensor) -> float:
    """Root of the mean square, in grey levels of 0 to 255."""
    return 255 * (x - y).square().mean().sqrt().item()


# --- the projection's time -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ProjectionTimes:
    """Seconds of the projection on this machine's processor, whatever else wants it.

    Attributes:
        sides: of the square images, in pixels.
        components: by connected components, the best of a few runs, at every side.
        least_squares: by a sparse solver, once, at the first so many sides.
        gap: the largest difference of the two images.
    """

    sides: tuple[int, ...]
    components: tuple[float, ...]
    least_squares: tuple[float, ...]
    gap: float


def projection_times(sides: Sequence[int], *, solved: int, repeats: int = 3) -> ProjectionTimes:
    """Time the projection of one scene drawn in more and more pixels.

    Args:
        sides: in pixels.
        solved: so many of the first sides are also solved as least squares (lsqr to 1e-6).
        repeats: of each; the best counts.
    """
    components, least_squares, gaps = [], [], []
    for number, side in enumerate(sides):
        u, right, down = _scene(side)
        seconds, flat = _best(lambda e=(u, right, down): inverse_scale.project(*e), repeats)
        components.append(seconds)
        if number < solved:
            matrix, b = _closed_differences(right, down), u.numpy().ravel()
            seconds, found = _best(
                lambda m=matrix, b=b: lsqr(m.T, b, atol=1e-6, btol=1e-6, iter_lim=20_000)[0], 1
            )
            least_squares.append(seconds)
            gaps.append(np.abs(b - matrix.T @ found - flat.numpy().ravel()).max())
    return ProjectionTimes(
        sides=tuple(sides),
        components=tuple(components),
        least_squares=tuple(least_squares),
        gap=float(max(gaps, default=0.0)),
    )


def draw_projection_times(times: ProjectionTimes) -> Figure:
    """Seconds against pixels, both logarithmic, beside a line of slope 1."""
    pixels = np.array(times.sides) ** 2
    figure, axis = plt.subplots(figsize=(7.2, 3.6))
    axis.plot(pixels, times.components, marker="o", label="connected components")
    solved = len(times.least_squares)
    axis.plot(pixels[:solved], times.least_squares, marker="s", label="sparse least squares (lsqr)")
    line = pixels * np.exp(np.log(times.components / pixels).mean())
    axis.plot(pixels, line, color="0.35", linestyle=":", label="proportional to pixels")
    axis.set(
        title="The projection, timed on this machine",
        xlabel="pixels",
        ylabel="processor time [s]",
        xscale="log",
        yscale="log",
    )
    axis.set_xticks(pixels, [f"{side}²" for side in times.sides])
    axis.minorticks_off()
    axis.legend()
    return figure


def _best(run: Callable[[], object], repeats: int) -> tuple[float, object]:
    seconds = []
    for _ in range(repeats):
        begun = time.process_time()
        found = run()
        seconds.append(time.process_time() - begun)
    return min(seconds), found


def _scene(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """A picture of regions with noise, (1, 1, H, W), and its edges; open ones lie between regions."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 1, 12, 12, generator=generator, dtype=torch.float64)
    region = (2 * F.interpolate(coarse, size=(side, side), mode="bicubic")).floor()
    noise = torch.randn(region.shape, generator=generator, dtype=torch.float64)
    right, down = (edge != 0 for edge in inverse_scale._differences(region))
    return region + 0.1 * noise, right, down


def _closed_differences(right: Tensor, down: Tensor) -> csr_array:
    """The rows of D that belong to closed edges, (edges, pixels)."""
    height, width = right.shape[2], down.shape[3]
    pixel = np.arange(height * width).reshape(height, width)
    shut = ~right[0, 0].numpy(), ~down[0, 0].numpy()
    first = np.concatenate([pixel[:, :-1][shut[0]], pixel[:-1][shut[1]]])
    second = np.concatenate([pixel[:, 1:][shut[0]], pixel[1:][shut[1]]])
    values, edge = np.repeat([-1.0, 1.0], len(first)), np.arange(len(first))
    places = np.tile(edge, 2), np.concatenate([first, second])
    return csr_array((values, places), (len(first), height * width))


# --- trained networks ------------------------------------------------------------------------------


def schedules(configs: Mapping[str, object]) -> Table:
    """What each row is trained on, epoch by epoch.

    Args:
        configs: {method: its `RunConfig` or `BaselineConfig`}.
    """
    rows, epochs = [], 0
    for method, config in configs.items():
        epochs, smoothing = config.train.epochs, getattr(config, "smoothing", None)
        if smoothing is None:
            rows.append([method, f"1 to {epochs}", "the images"])
            continue
        levels = [smoothing.level(epoch / epochs) for epoch in range(epochs)]
        for level in dict.fromkeys(levels):
            span = [epoch for epoch, of_epoch in enumerate(levels, start=1) if of_epoch == level]
            words = f"sparsity {level:g}" if level else "the images"
            if level and smoothing.low_pass:
                words = f"low-pass with the energy of sparsity {level:g}"
            rows.append([method, f"{span[0]} to {span[-1]}", words])
    return Table(
        header=["row", "epochs", "trained on"], rows=rows, caption="Training images by epoch"
    )


def draw_conditions(
    models: Mapping[str, nn.Module], image: ImageSet, names: Sequence[str]
) -> Figure:
    """One image under some conditions of the suite, and what networks make of it.

    Args:
        models: {name: network}.
        image: a single test image.
        names: of conditions; see `smoothing_suite.conditions`.
    """
    found = dict(smoothing_suite.conditions(image.images, settings=SmoothingSuite(images=1)))
    across = -(-len(names) // 2)
    size = (1.72 * across, 5.9)
    figure, axes = plt.subplots(2, across, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08)
    for axis, name in zip(axes.flat, names, strict=False):
        shown = replace(image, images=found[name])
        axis.imshow(shown.images[0].numpy())
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("\n".join(_says(word, m, shown) for word, m in models.items()), fontsize=8)
    for axis in axes.flat:
        figures.bare(axis)
    truth = image.classes[image.labels[0].item()]
    figure.suptitle(f"{truth}: what the networks say (✓ right, ✗ wrong)", fontsize=11)
    return figure


def _says(word: str, model: nn.Module, image: ImageSet) -> str:
    chance = inference.predict(model, image).softmax(1)[0]  # (classes,)
    answer = chance.argmax().item()
    sign = "✓" if answer == image.labels[0].item() else "✗"
    return f"{word}:\n{image.classes[answer]} {100 * chance[answer]:.0f} % {sign}"


# --- Grad-CAM --------------------------------------------------------------------------------------


def smooth_versions(test: ImageSet, levels: Sequence[float]) -> dict[str, ImageSet]:
    """The images, sparsified to each level, and smoothed by frequency to the energy of the last."""
    versions = {"image": test}
    for level in levels:
        smooth = smoothing_suite.smoothed(test.images, level)
        versions[f"sparsified {level:g}"] = replace(test, images=smooth["sparsified"])
    return versions | {f"low-pass {levels[-1]:g}": replace(test, images=smooth["low-pass"])}


def draw_grad_cams(
    models: Mapping[str, nn.Module],
    image: ImageSet,
    *,
    levels: Sequence[float] = (0.6, 0.8),
    layer: str = "group3",
) -> Figure:
    """Grad-CAM of the true class on one image and its smoothed versions, a row for each network.

    The positive part is drawn, light for large; each row has one scale, so that columns compare.

    Args:
        models: {name: network}.
        image: a single test image.
        levels: of sparsity.
        layer: of the networks.
    """
    versions = smooth_versions(image, levels)
    figure, axes = plt.subplots(
        1 + len(models), len(versions), figsize=(7.6, 2.1 * (1 + len(models))), squeeze=False
    )
    for axis, (name, version) in zip(axes[0], versions.items(), strict=True):
        axis.imshow(version.images[0].numpy())
        axis.set_title(name, fontsize=9)
    for row, (word, model) in enumerate(models.items(), start=1):
        maps = [rankings.grad_cam(model, v, layer, target="label")[0] for v in versions.values()]
        top = max(m.max().item() for m in maps)
        for axis, cam, version in zip(axes[row], maps, versions.values(), strict=True):
            shown = axis.imshow(
                cam.clamp(min=0).numpy(), cmap="cividis", vmin=0, vmax=max(top, 1e-9)
            )
            axis.set_xlabel(_says(word, model, version), fontsize=8)
        figure.colorbar(shown, ax=axes[row, :], label=f"Grad-CAM, {word}\n(logit)", shrink=0.85)
    for axis in axes.flat:
        figures.bare(axis)
    truth = image.classes[image.labels[0].item()]
    figure.suptitle(f"Grad-CAM of “{truth}” at {layer}", fontsize=11)
    return figure


def grad_cam_agreement(
    models: Mapping[str, nn.Module],
    test: ImageSet,
    *,
    levels: Sequence[float] = (0.6, 0.8),
    layer: str = "group3",
) -> Table:
    """How alike the Grad-CAM maps of an image and of its smoothed versions are.

    Args:
        models: {name: network}.
        test: images.
        levels: of sparsity.
        layer: of the networks.
    """
    versions, rows = smooth_versions(test, levels), []
    for word, model in models.items():
        maps = {
            name: rankings.grad_cam(model, version, layer, target="label").flatten(1)
            for name, version in versions.items()
        }  # (N, h w)
        plain = maps.pop("image")
        alike = [rank_correlation(plain, smooth) for smooth in maps.values()]  # (N,)
        rows.append([word, *[f"{a.mean():.2f} ± {a.std():.2f}" for a in alike]])
    caption = (
        f"Rank correlation of Grad-CAM ({layer}, true class) on an image and on its smoothed version: "
        f"mean ± standard deviation over {len(test)} images, one network each"
    )
    return Table(header=["network", *list(versions)[1:]], rows=rows, caption=caption)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation of each row, (N, L), (N, L) -> (N,); ties in reading order."""
    first, second = (t.argsort(1).argsort(1).double() for t in (a, b))
    first, second = (t - t.mean(1, keepdim=True) for t in (first, second))
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))


# --- gains and losses, from the suite's records ----------------------------------------------------


def suite_records(method: str, *, dataset: str = "cifar10", scale: str = "laptop") -> list[dict]:
    """The suite's records of a method's seeds; none is an empty list."""
    return of(f"{method}.smoothing", dataset=dataset, scale=scale)


def condition_groups(record: Mapping) -> dict[str, list[str]]:
    """Rows of the tables: each smoothing and resolution, each corruption over its severities, all
    corruptions together, and those that are smoothed first beside the same as they are."""
    plain, corrupted, first = {}, {}, {}
    for name in record["metrics"]["accuracy"]:
        base, _, smoothing = name.partition("+")
        kind = base.rpartition("-")[0]
        if smoothing:
            first.setdefault("some, as they are", []).append(base)
            first.setdefault(f"some, {smoothing} first", []).append(name)
        elif kind in ("", "resolution") or name.startswith(smoothing_suite.SMOOTHINGS):
            plain[name] = [name]
        else:
            corrupted.setdefault(kind, []).append(name)
    everything = [name for names in corrupted.values() for name in names]
    first = {row: list(dict.fromkeys(names)) for row, names in first.items()}
    return plain | corrupted | ({"all corruptions": everything} if corrupted else {}) | first


def suite_table(
    methods: Sequence[str], *, dataset: str = "cifar10", scale: str = "laptop"
) -> Table:
    """Accuracy under each condition, mean ± sd over seeds in percent, one column a method."""
    groups = {m: suite_records(m, dataset=dataset, scale=scale) for m in methods}
    seen = [records for records in groups.values() if records]
    caption = f"Suite of smoothings, {dataset}, {scale} scale, accuracy in percent"
    if not seen:
        return Table(header=["condition", *methods], rows=[], caption=f"{caption}: {NOT_RUN}")
    images = seen[0][0]["metrics"]["images"]
    rows = [["seeds", *[str(len(records)) for records in groups.values()]]]
    for row, names in condition_groups(seen[0][0]).items():
        rows.append([row, *[_mean_sd(records, names) for records in groups.values()]])
    return Table(
        header=["condition", *methods],
        rows=rows,
        caption=f"{caption}: mean ± sd over seeds, {images:,} test images",
    )


def _mean_sd(group: Sequence[Mapping], names: Sequence[str]) -> str:
    if not group:
        return "not yet run"
    each = [
        100 * plain_statistics.fmean(r["metrics"]["accuracy"][name] for name in names)
        for r in group
    ]
    spread = f" ± {plain_statistics.stdev(each):.1f}" if len(each) > 1 else ""
    return f"{plain_statistics.fmean(each):.1f}{spread}"


def suite_differences(
    methods: Sequence[str], *, base: str, dataset: str = "cifar10", scale: str = "laptop"
) -> Table:
    """Accuracy minus the base's under each condition, with 95 % intervals, marked by `marks`."""
    rivals = suite_records(base, dataset=dataset, scale=scale)
    groups = {m: suite_records(m, dataset=dataset, scale=scale) for m in methods}
    caption = f"Accuracy minus that of {base}, {dataset}, {scale} scale, percentage points"
    if not rivals or not any(groups.values()):
        return Table(header=["condition", *methods], rows=[], caption=f"{caption}: {NOT_RUN}")
    conditions = condition_groups(rivals[0])
    found = [
        smoothing_suite.difference(records, rivals, names)
        if {r["seed"] for r in records} & {r["seed"] for r in rivals}
        else None
        for names in conditions.values()
        for records in groups.values()
    ]
    cells = iter(zip(found, marks(found), strict=True))
    rows = [[row, *(_marked(*next(cells)) for _ in groups)] for row in conditions]
    caption += (
        ", with 95 % intervals over seeds and images; ▲ above zero, ▼ below, "
        f"by Holm for the {sum(f is not None for f in found)} differences of the table"
    )
    return Table(header=["condition", *methods], rows=rows, caption=caption)


def _marked(found: Difference | None, mark: str) -> str:
    if found is None:
        return "not yet run"
    return f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f}) {mark}".rstrip()


def rival_verdicts(
    rivals: Sequence[tuple[tuple[str, str], tuple[str, str]]],
    *,
    dataset: str = "cifar10",
    scale: str = "laptop",
) -> Table:
    """Is the first of each pair better than the second? By the ledger's criterion, on the suite.

    Args:
        rivals: pairs of (method, row of `condition_groups`).
        dataset, scale: which records.
    """
    methods = dict.fromkeys(method for sides in rivals for method, _ in sides)
    groups = {m: suite_records(m, dataset=dataset, scale=scale) for m in methods}
    shown = []
    for sides in rivals:
        ours, theirs = (groups[method] for method, _ in sides)
        outcome, figure = NOT_RUN, "–"
        if {r["seed"] for r in ours} & {r["seed"] for r in theirs}:
            names = [condition_groups(ours[0])[row] for _, row in sides]
            found = smoothing_suite.difference(ours, theirs, names[0], base_names=names[1])
            outcome, figure = ledger.better(found)
        words = [f"{method}: {row}" for method, row in sides]
        shown.append([*words, outcome, figure])
    header = ["is this", "better than this", "outcome", "difference"]
    return Table(header=header, rows=shown, caption=f"On the suite, {dataset}, {scale} scale")
