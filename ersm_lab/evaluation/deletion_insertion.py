"""Deletion and insertion: how a network's score changes as the most important places go or come.

A ranking is judged by taking away what it calls most important (deletion, a lower area is better) or
by giving it back to an empty start (insertion, a higher area is better). Libraries differ in where
their curves start, what they fill in, how far they step and how they take the area, so that scores of
different conventions cannot be compared. Each convention is therefore a `Convention`, that is data:

              curve starts        deletion fills   insertion fills  step            area
    RISE      at 0 changed        0                blurred image    one row         mean of the steps
    TORCHCAM  at 0 changed        0                0                1/20 of all     over the fraction
    QUANTUS   after one step      image's minimum  has none         one unit        sum of the steps

All rank the most important first, ties in reading order, and score a class's softmax probability: of
the class predicted for the whole image (RISE, TORCHCAM) or of the label (QUANTUS). Fills are in the
normalised space that the network sees, where 0 is the training images' mean colour.

The unit is a pixel, or after `on_tokens` a token of a layer. Tokens are what the layer passes on,
after its mask if it has one, so that the curve starts from the network as it is; `deletion` instead
starts from a mask of ones, deletes the least important first and scores accuracy. A blurred fill of a
token is the token of the blurred image at its place.

Sources: Petsiuk, Das & Saenko (2018), arXiv:1806.07421, section 4.1, and its released code; torch-cam
0.5, `DeletionInsertionMetric`; Quantus (Hedström et al., 2023, JMLR 24), `PixelFlipping`, after Bach
et al. (2015).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from ersm_core import EnergyMask
from ersm_lab.common import checks
from ersm_lab.evaluation.deletion import MOST_SIDE
from ersm_lab.evaluation.inference import evaluating
from ersm_lab.evaluation.rankings import layer_tokens, rest_of_network, token_stage
from ersm_lab.images.data import ImageSet

GAMES = ("deletion", "insertion")
BLUR_SIDE, BLUR_SD = 11, 5.0  # pixels, of RISE's blurred image

_CHOICES = {
    "unit": ("pixel", "token"),
    "deletion_fill": ("zero", "blur", "minimum"),
    "insertion_fill": ("zero", "blur", "minimum", None),
    "score": ("probability", "accuracy"),
    "target": ("predicted", "label"),
    "area": ("mean of steps", "over fraction", "sum of steps"),
}


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How a deletion or insertion curve is made; the score of a ranking means nothing without it.

    Attributes:
        name: as in tables.
        source: paper or library.
        unit: what is ranked, "pixel" or "token", all of its channels at once.
        includes_start: whether the first point has nothing changed; otherwise one step is done.
        deletion_fill: what a deleted unit becomes: "zero"; "blur", its value in the blurred image;
            or "minimum", the least value of its image (of its feature map on tokens).
        insertion_fill: what a unit is before it is inserted; None if there is no insertion.
        step: units changed from point to point: ("units", k); ("rows", k), k times the map's width;
            or ("parts", k), the k-th part of all units, rounded up. The last step may be shorter.
        score: "probability", softmax probability of the target; or "accuracy", 1 where the target
            is the likeliest class and 0 elsewhere.
        target: the class "predicted" with nothing changed, or the "label".
        area: under the curve by trapezoids: "mean of steps", all steps alike, divided by their
            number, 0 to 1; "over fraction" of the units changed, 0 to 1; or "sum of steps", not
            divided, 0 to the number of steps.

    Raises:
        ValueError: a value that is none of these.
    """

    name: str
    source: str
    unit: str = "pixel"
    includes_start: bool
    deletion_fill: str
    insertion_fill: str | None
    step: tuple[str, int]
    score: str = "probability"
    target: str
    area: str

    def __post_init__(self) -> None:
        for field in ("name", "source"):
            checks.text(field, getattr(self, field))
        checks.flag("includes_start", self.includes_start)
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} must be one of {choices}, got {getattr(self, field)!r}")
        checks.several("step", self.step, least=2, most=2)
        kind, size = self.step
        if (
            kind not in ("units", "rows", "parts")
            or type(size) is not int
            or not 0 < size <= checks.HUGE
        ):
            raise ValueError(
                'step must be ("units", k), ("rows", k) or ("parts", k) with a whole k >= 1, '
                f"got {self.step!r}"
            )

    def points(self, height: int, width: int) -> tuple[int, ...]:
        """How many of the units of a map are changed at each point of the curve, rising to all."""
        checks.whole("height", height, most=MOST_SIDE)
        checks.whole("width", width, most=MOST_SIDE)
        count = height * width
        kind, size = self.step
        step = {"units": size, "rows": size * width, "parts": -(-count // size)}[kind]
        return (*range(0 if self.includes_start else min(step, count), count, step), count)


RISE = Convention(
    name="RISE",
    source="arXiv:1806.07421; its released code, 224 pixels a step on images of 224 x 224",
    includes_start=True,
    deletion_fill="zero",
    insertion_fill="blur",
    step=("rows", 1),
    target="predicted",
    area="mean of steps",
)
TORCHCAM = Convention(
    name="torch-cam",
    source="torch-cam 0.5, DeletionInsertionMetric, with softmax",
    includes_start=True,
    deletion_fill="zero",
    insertion_fill="zero",
    step=("parts", 20),
    target="predicted",
    area="over fraction",
)
QUANTUS = Convention(
    name="Quantus",
    source="Quantus, PixelFlipping with its defaults; since 0.6 it ranks every channel by itself",
    includes_start=False,
    deletion_fill="minimum",
    insertion_fill=None,
    step=("units", 1),
    target="label",
    area="sum of steps",
)
CONVENTIONS = (RISE, TORCHCAM, QUANTUS)


def on_tokens(convention: Convention) -> Convention:
    """The same convention with a layer's tokens in the place of pixels, which is ours."""
    checks.a("convention", convention, Convention)
    return replace(convention, unit="token")


@dataclass(frozen=True, kw_only=True)
class PerturbationCurve:
    """A score for every image at every point of a deletion or insertion curve.

    Attributes:
        convention: how it was made.
        game: "deletion", where a lower area is better, or "insertion", where a higher one is.
        grid: (h, w) of the ranked units.
        changed: units deleted or inserted at each point.
        scores: (N, points) float64, 0 to 1.
        blank: images whose importance is the same everywhere; they are changed in reading order.
    """

    convention: Convention
    game: str
    grid: tuple[int, int]
    changed: tuple[int, ...]
    scores: Tensor
    blank: int

    @property
    def fractions(self) -> tuple[float, ...]:
        """Share of the units that is changed at each point, 0 to 1."""
        return tuple(count / (self.grid[0] * self.grid[1]) for count in self.changed)

    @property
    def mean(self) -> Tensor:
        """The curve averaged over images, (points,)."""
        return self.scores.mean(0)

    @property
    def auc_by_image(self) -> Tensor:
        """Area under the curve of every image, (N,), in the unit of the convention's `area`."""
        if self.convention.area == "over fraction":
            return torch.trapezoid(self.scores, self.scores.new_tensor(self.fractions), dim=1)
        total = torch.trapezoid(self.scores, dim=1)  # (N,)
        if self.convention.area == "sum of steps":
            return total
        return total / (len(self.changed) - 1)

    @property
    def auc(self) -> float:
        """Mean over images of the area under the curve."""
        return self.auc_by_image.mean().item()


def perturbation_curve(
    model: nn.Module,
    data: ImageSet,
    importance: Tensor,
    *,
    game: str,
    convention: Convention,
    layer: str | None = None,
    batch_size: int = 1_000,
) -> PerturbationCurve:
    """Delete, or insert, the most important units of every image step by step and score each point.

    Images and points are put through the network together, `batch_size` inputs a pass. On tokens
    only the layers after `layer` run on all of them.

    Args:
        model: a network.
        data: images.
        importance: (N, h, w), or (h, w) for all images; larger is more important. On pixels h x w
            is the image (see `resize`), on tokens the token map.
        game: one of `GAMES`.
        convention: one of `CONVENTIONS`, one of them `on_tokens`, or your own.
        layer: whose tokens are ranked; None for pixels.
        batch_size: perturbed inputs a pass.

    Raises:
        ValueError: an unknown game, one that the convention does not have, a layer without a
            convention of tokens or the reverse, NaN or a wrong shape of the importance.
    """
    checks.network("model", model)
    checks.labelled("data", data)
    checks.a("convention", convention, Convention)
    checks.whole("batch_size", batch_size)
    fill = _fill_of(convention, game)
    if (layer is None) != (convention.unit == "pixel"):
        raise ValueError(
            f"{convention.name} ranks a {convention.unit} here and layer is {layer!r}: on tokens "
            "give on_tokens(convention) and a layer, on pixels neither"
        )
    checks.a("importance", importance, Tensor)
    if (
        importance.is_complex()
        or importance.dim() not in (2, 3)
        or (importance.dim() == 3 and len(importance) != len(data))
    ):
        raise ValueError(
            f"importance must be (h, w) or ({len(data)}, h, w) for these images, "
            f"got {tuple(importance.shape)}"
        )
    if torch.isnan(importance).any():
        raise ValueError("importance holds NaN: there is no order to delete in")
    grid = (importance.shape[-2], importance.shape[-1])  # (h, w)
    importance = importance.expand(len(data), *grid)  # (N, h, w)
    changed = convention.points(*grid)
    scores, start = [], 0
    with evaluating(model):
        for x, labels in data.inputs(batch_size):
            rank = _ranks(importance[start : start + len(x)].to(x.device))  # (B, h, w)
            start += len(x)
            whole = x if layer is None else layer_tokens(model, layer, x)  # (B, C, H, W)
            side = _unit_side(model, layer, whole, grid)
            empty = _filled(model, layer, x, whole, fill)  # (B, C, H, W)
            with nullcontext(model) if layer is None else rest_of_network(model, layer, x) as rest:
                target = labels if convention.target == "label" else rest(whole).argmax(1)  # (B,)
                points = []
                for some in torch.tensor(changed, device=x.device).split(batch_size // len(x)):
                    shown = (rank[:, None] < some[:, None, None]) == (game == "insertion")
                    shown = shown.repeat_interleave(side, 2).repeat_interleave(side, 3)
                    mixed = torch.where(  # (B, P, C, H, W)
                        shown[:, :, None], whole[:, None], empty[:, None]
                    )
                    logits = checks.answers(rest(mixed.flatten(0, 1)))  # (B P, classes)
                    logits = logits.unflatten(0, (len(x), -1))
                    points.append(_score(logits, target, convention.score))  # (B, P)
            scores.append(torch.cat(points, 1).double().cpu())  # (B, points)
    flat = importance.flatten(1)  # (N, h w)
    return PerturbationCurve(
        convention=convention,
        game=game,
        grid=grid,
        changed=changed,
        scores=torch.cat(scores),
        blank=int((flat == flat[:, :1]).all(1).sum()),
    )


def resize(importance: Tensor, size: tuple[int, int]) -> Tensor:
    """Stretch maps of tokens to the pixels of an image, bilinearly, (N, h, w) -> (N, H, W).

    RISE and torch-cam do so with their maps. It ranks pixels by a smooth surface through the tokens;
    to delete whole tokens of a layer, rank tokens.

    Raises:
        ValueError: other maps, or a size that none has.
    """
    checks.tensor("importance", importance, "(N, h, w)", "floats", finite=False)
    checks.several("size", size, least=2, most=2)
    for side in size:
        checks.whole("size", side, most=MOST_SIDE)
    stretched = F.interpolate(
        importance[:, None], size=tuple(size), mode="bilinear", align_corners=False
    )  # (N, 1, H, W)
    return stretched[:, 0]


def blurred(x: Tensor) -> Tensor:
    """RISE's start of an insertion: images without their detail, (B, C, H, W) -> (B, C, H, W).

    As in its released code, a Gaussian of sd 5 on 11 x 11 pixels whose tails are folded back into the
    window, so that it is flatter than a cut-off one; zeros around the image.
    """
    checks.tensor("x", x, "(B, C, H, W)", "floats", finite=False)
    point = np.zeros(BLUR_SIDE)
    point[BLUR_SIDE // 2] = 1
    line = torch.from_numpy(ndimage.gaussian_filter1d(point, BLUR_SD, mode="reflect")).to(
        x
    )  # (11,)
    kernel = torch.outer(line, line).expand(x.shape[1], 1, -1, -1)  # (C, 1, 11, 11)
    return F.conv2d(x, kernel, padding=BLUR_SIDE // 2, groups=x.shape[1])


# --- parts of a curve ------------------------------------------------------------------------------


def _ranks(importance: Tensor) -> Tensor:
    """The place of every unit in its image's order, 0 for the most important, (B, h, w) -> same."""
    flat = importance.flatten(1)  # (B, h w)
    order = flat.argsort(dim=1, descending=True, stable=True)  # (B, h w)
    return order.argsort(dim=1).view_as(importance)


def _fill_of(convention: Convention, game: str) -> str:
    if game not in GAMES:
        raise ValueError(f"game must be one of {GAMES}, got {game!r}")
    fill = convention.deletion_fill if game == "deletion" else convention.insertion_fill
    if fill is None:
        raise ValueError(
            f"{convention.name} has no insertion: choose another convention, or make your own with "
            "dataclasses.replace(..., insertion_fill=...)"
        )
    return fill


def _filled(model: nn.Module, layer: str | None, x: Tensor, whole: Tensor, fill: str) -> Tensor:
    """What is seen where a unit is missing, of the shape of `whole`."""
    if fill == "minimum":
        return whole.amin((1, 2, 3), keepdim=True).expand_as(whole)
    if fill == "zero":
        return torch.zeros_like(whole)
    return blurred(x) if layer is None else layer_tokens(model, layer, blurred(x))


def _unit_side(model: nn.Module, layer: str | None, whole: Tensor, grid: tuple[int, int]) -> int:
    """Positions of the map along one side of a unit: 1 but for tokens that are patches."""
    size = tuple(whole.shape[2:])
    if layer is None:
        if grid != size:
            raise ValueError(
                f"importance is {grid[0]} x {grid[1]} but the images are {size[0]} x {size[1]}: "
                f"give resize(importance, {size})"
            )
        return 1
    stage = token_stage(model, layer)
    side = stage.patch_size if isinstance(stage, EnergyMask) else max(1, size[0] // grid[0])
    if (grid[0] * side, grid[1] * side) != size:
        raise ValueError(
            f"importance is {grid[0]} x {grid[1]}, which are not the tokens of {layer!r}: its map is "
            f"{size[0]} x {size[1]} and a token {side} x {side} of it"
        )
    return side


def _score(logits: Tensor, target: Tensor, score: str) -> Tensor:
    """(B, P, classes) and (B,) -> (B, P)."""
    target = target[:, None].expand(logits.shape[:2])  # (B, P)
    if score == "accuracy":
        return (logits.argmax(2) == target).float()
    return logits.float().softmax(2).gather(2, target[:, :, None])[:, :, 0]
