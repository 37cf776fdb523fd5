"""What chapter 9 shows: codes of a layer, the way back from features to pixels, atoms, and lambda.

A code in a `CifarNet` is of the features of its whitening stem, not of pixels. `PullBack` takes such
features back to an image, as far as this can be done: the stem's filters come in pairs w and -w, and
with ReLU after them f_+ - f_- = w * image (but for the biases). So features go back by ridge regression,

    image(f) = argmin_p |W p - (f_+ - f_-)|^2 + ridge |p|^2

which is linear in f: the picture of A c is the sum of its atoms' pictures. What f_+ + f_- holds, how
strong a structure is whatever its sign, no image shows; `PullBack.shown` says how much is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ersm_lab.evaluation.inference import evaluating
from ersm_lab.evaluation.sparse_lambda import sparse_layers
from ersm_lab.images.data import ImageSet
from ersm_lab.networks.fista import sparse_code, synthesise
from ersm_lab.networks.sparse_coding import SparseCoding2d
from ersm_lab.views.frames import frame_slider
from ersm_lab.views.widgets import Widget

# --- codes of one layer ----------------------------------------------------------------------------


def inputs_of(model: nn.Module, layer: str, data: ImageSet) -> Tensor:
    """What reaches a layer, (N, C, h, w), in evaluation mode."""
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    try:
        with evaluating(model):
            for x, _ in data.inputs():
                model(x)
    finally:
        hook.remove()
    return torch.cat(seen)


@torch.no_grad()
def unrolled(
    coder: SparseCoding2d,
    x: Tensor,
    *,
    steps: int | None = None,
    lambda_l1: float | None = None,
    accelerate: bool = True,
) -> Tensor:
    """The code of a layer with another number of steps, or another lambda; None is the layer's own.

    Args:
        coder: the layer.
        x: (B, C, H, W); in float64 the code is, too.

    Returns:
        (B, K, h, w).
    """
    s = coder.settings
    return sparse_code(
        x,
        coder.dictionary().to(x.dtype),
        step=coder.step_size(tuple(x.shape[2:])).to(x.dtype),
        lambda_l1=coder.lambda_l1 if lambda_l1 is None else lambda_l1,
        mu=s.mu,
        steps=steps or s.steps,
        nonnegative=s.nonnegative,
        accelerate=accelerate,
        stride=coder.stride,
        padding=coder.padding,
    )


@torch.no_grad()
def relative_error(coder: SparseCoding2d, x: Tensor, code: Tensor) -> float:
    """|x - A c|^2 / |x|^2 over all images; 1 for a code of zeros."""
    return (_rest(coder, x, code).square().sum() / x.square().sum()).item()


def _rest(coder: SparseCoding2d, x: Tensor, code: Tensor) -> Tensor:
    back = synthesise(
        code,
        coder.dictionary().to(x.dtype),
        size=(x.shape[2], x.shape[3]),
        stride=coder.stride,
        padding=coder.padding,
    )
    return x - back  # (B, C, H, W)


# --- pictures of features --------------------------------------------------------------------------


class PullBack:
    """From features of a whitening stem to images; see the top of this file.

    Args:
        stem: the convolution with filters w and -w, of square strides and paddings.
        size: (H, W) of the images.
        ridge: weight of |p|^2; large ones blur, small ones let the biases' error grow.

    Raises:
        ValueError: a stem whose filters are no such pairs, or with the padding of a stride of 1.
    """

    @torch.no_grad()
    def __init__(self, stem: nn.Conv2d, size: tuple[int, int], *, ridge: float = 3e-2) -> None:
        weight = stem.weight.detach().double()
        half = len(weight) // 2
        if len(weight) % 2 or not torch.allclose(weight[:half], -weight[half:]):
            raise ValueError("the stem's filters must come as w and then -w: whiten it first")
        if isinstance(stem.padding, str):
            raise ValueError(f"the stem must be padded by a number of pixels, not {stem.padding!r}")
        self.weight, self.size, self.half = weight[:half], tuple(size), half
        self.stride, self.padding = stem.stride, stem.padding
        pixels = weight.shape[1] * size[0] * size[1]
        basis = torch.eye(pixels, dtype=torch.float64).view(pixels, weight.shape[1], *size)
        gram = self._transposed(self.filters(basis)).flatten(1)  # (pixels, pixels)
        gram = gram + ridge * torch.eye(pixels, dtype=torch.float64)
        self.factor = torch.linalg.cholesky(gram)

    def filters(self, images: Tensor) -> Tensor:
        """W p: what the stem's first half says before bias and ReLU, (N, 3, H, W) -> (N, F, h, w)."""
        return F.conv2d(images.double(), self.weight, stride=self.stride, padding=self.padding)

    @torch.no_grad()
    def images(self, features: Tensor) -> Tensor:
        """The images of features (N, 2 F, h, w), (N, 3, H, W) float64 in normalised units."""
        features = features.double()
        signed = features[:, : self.half] - features[:, self.half :]  # (N, F, h, w)
        rhs = self._transposed(signed).flatten(1).T  # (pixels, N)
        found = torch.cholesky_solve(rhs, self.factor).T
        return found.reshape(len(features), -1, *self.size)

    @torch.no_grad()
    def shown(self, features: Tensor) -> Tensor:
        """Share of the squared length of features (N, 2 F, h, w) that their images show, (N,).

        An image's pattern is (v, -v) with v = W p / 2, the nearest of this form to f if p is its
        image. Biases and ReLU are left out.
        """
        features = features.double()
        v = self.filters(self.images(features)) / 2  # (N, F, h, w)
        rest = (features - torch.cat([v, -v], 1)).square().flatten(1).sum(1)
        return 1 - rest / features.square().flatten(1).sum(1)

    def _transposed(self, signed: Tensor) -> Tensor:
        back = F.conv_transpose2d(signed, self.weight, stride=self.stride, padding=self.padding)
        short = [full - got for full, got in zip(self.size, back.shape[2:], strict=True)]
        return F.pad(back, (0, short[1], 0, short[0]))


def quality(pull_back: PullBack, features: Tensor, data: ImageSet) -> float:
    """Peak signal-to-noise ratio, in dB, of images pulled back from their own stem features."""
    images = data.normalise(data.images)
    std = torch.tensor(data.std, dtype=torch.float64).view(1, 3, 1, 1)
    error = (pull_back.images(features) - images.double()) * std  # in units of 0 to 1
    return (-10 * error.square().mean().log10()).item()


@dataclass(frozen=True, kw_only=True)
class Atoms:
    """Pictures of a dictionary's atoms, most used first.

    Attributes:
        pictures: (K, 3, S, S), the atoms pulled back, in normalised units.
        patches: (K, 3, S, S), mean of the image patches where each code is largest, in units of 0 to 1.
        shown: (K,), share of each atom that its picture shows.
        use: (K,), share of places where its code is not zero.
    """

    pictures: Tensor
    patches: Tensor
    shown: Tensor
    use: Tensor


@torch.no_grad()
def atoms(
    coder: SparseCoding2d,
    pull_back: PullBack,
    data: ImageSet,
    features: Tensor,
    *,
    patches: int = 100,
) -> Atoms:
    """Pictures of the atoms of a code on a stem's features.

    Args:
        coder: with stride 1 and 3 x 3 atoms, padded by 1.
        pull_back: of the stem.
        data: images.
        features: (N, C, h, w), those of the images.
        patches: so many patches an atom are averaged.
    """
    codes = unrolled(coder, features)  # (N, K, h, w)
    use = (codes != 0).double().mean((0, 2, 3))  # (K,)
    order = use.argsort(descending=True)
    count, height, width = codes.shape[1:]
    middle = (height // 2, width // 2)
    single = torch.zeros(count, count, height, width, dtype=torch.float64)
    single[torch.arange(count), torch.arange(count), middle[0], middle[1]] = 1
    dictionary = coder.dictionary().double()
    placed = synthesise(  # (K, C, h, w), every atom alone on an empty map
        single,
        dictionary,
        size=(features.shape[2], features.shape[3]),
        stride=coder.stride,
        padding=coder.padding,
    )
    step, kernel = pull_back.stride[0], pull_back.weight.shape[2]
    side = step * (dictionary.shape[2] - 1) + kernel  # pixels that an atom sees

    def corner(place: int) -> int:  # first pixel that a code at this place sees
        return step * (place - coder.padding[0]) - pull_back.padding[0]

    top, left = (corner(place) for place in middle)
    pictures = pull_back.images(placed)[:, :, top : top + side, left : left + side]

    size = data.images.shape[1]
    inside = [p for p in range(height) if corner(p) >= 0 and corner(p) + side <= size]
    cut = codes[:, :, inside][:, :, :, inside]  # (N, K, i, i)
    flat = cut.transpose(0, 1).flatten(1)  # (K, N i i)
    best = flat.topk(min(patches, flat.shape[1]), dim=1).indices  # (K, patches)
    image, place = best // len(inside) ** 2, best % len(inside) ** 2
    rows, columns = (
        corner(inside[0]) + step * p for p in (place // len(inside), place % len(inside))
    )
    pixel = torch.arange(side)
    found = data.images[
        image[..., None, None],
        rows[..., None, None] + pixel[:, None],
        columns[..., None, None] + pixel,
    ]  # (K, patches, S, S, 3)
    means = found.double().mean(1).permute(0, 3, 1, 2) / 255  # (K, 3, S, S)
    return Atoms(
        pictures=pictures[order],
        patches=means[order],
        shown=pull_back.shown(placed)[order],
        use=use[order],
    )


def stretched(picture: Tensor) -> np.ndarray:
    """(3, S, S) -> (S, S, 3) between 0 and 1, its mean at mid-grey, its largest deviation at the end."""
    picture = picture.double() - picture.double().mean((1, 2), keepdim=True)
    picture = 0.5 + 0.5 * picture / picture.abs().max().clamp_min(1e-12)
    return picture.permute(1, 2, 0).numpy()


# --- lambda ----------------------------------------------------------------------------------------


def lambda_slider(
    model: nn.Module,
    layer: str,
    data: ImageSet,
    pull_back: PullBack,
    lambdas: Sequence[float],
    *,
    name: str,
    steps: int = 100,
) -> Widget:
    """Images and what their codes keep of them, to slide over lambda.

    Columns: the image; its stem features pulled back, which is all that the code sees; the code's
    reconstruction pulled back, with the layer's own steps and with many; how many atoms each place
    uses with its own steps (dark none, bright all).

    Args:
        model, layer, pull_back: as above.
        data: a few images on the CPU, one a row.
        lambdas: frames, in this order.
        name: id of the element.
        steps: that stand for many.
    """
    coder = sparse_layers(model)[layer]
    x = inputs_of(model, layer, data)
    own, frames, labels = coder.settings.steps, [], []
    std, mean = (
        torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (data.std, data.mean)
    )

    def pixels(features: Tensor) -> np.ndarray:  # (N, H, W, 3) uint8
        picture = (pull_back.images(features) * std + mean).clamp(0, 1)
        return (255 * picture).round().byte().permute(0, 2, 3, 1).numpy()

    start = [data.images.numpy(), pixels(x)]
    size = (x.shape[2], x.shape[3])
    shade = (255 * plt.get_cmap("viridis")(np.linspace(0, 1, 256))[:, :3]).astype(np.uint8)
    for value in lambdas:
        columns, words = list(start), []
        codes = {count: unrolled(coder, x, steps=count, lambda_l1=value) for count in (own, steps)}
        for count, code in codes.items():
            columns.append(pixels(coder.reconstruct(code, size).detach()))
            share, error = (code != 0).double().mean(), relative_error(coder, x, code)
            words.append(f"{count} steps: {100 * share:.0f} % non-zero, error {100 * error:.0f} %")
        used = (codes[own] != 0).double().mean(1)  # (N, h, w)
        places = shade[(255 * used).round().long().numpy()]  # (N, h, w, 3)
        zoom = data.images.shape[1] // places.shape[1]
        columns.append(np.repeat(np.repeat(places, zoom, 1), zoom, 2))
        frames.append(_tiled(columns))
        training = " (training)" if value == coder.lambda_l1 else ""
        labels.append(f"λ = {value:g}{training} · " + " · ".join(words))
    return frame_slider(
        frames,
        labels=labels,
        title="Lambda: what a code keeps of an image",
        alt=(
            "Rows of images: as they are, as the stem's features show them, as the code with two steps "
            "and with many steps rebuilds them, and a map of how many atoms each place uses."
        ),
        name=name,
        captions=(
            "image",
            "through the stem",
            f"code, {own} steps",
            f"code, {steps} steps",
            "in use",
        ),
        width=640,
        milliseconds=700,
    )


def _tiled(columns: Sequence[np.ndarray], *, gap: int = 2) -> np.ndarray:
    """Columns of N pictures (N, H, W, 3) side by side, one image a row, white between them."""
    rows = []
    for number in range(len(columns[0])):
        row = [
            np.pad(c[number], ((0, gap), (gap, gap), (0, 0)), constant_values=255) for c in columns
        ]
        rows.append(np.concatenate(row, 1))
    return np.concatenate(rows)
