"""What training on smoothed images gains and loses: one network, asked under many smoothings.

The test images as they are, sparsified along the inverse scale path, smoothed by frequency to the same
energy and blurred to the same squared error, shrunk and enlarged again, and under a handful of
corruptions. The paper (Zhou et al., arXiv:2409.18419) claims a gain under corruptions and at low
resolution, over frequency smoothing, too. Its tables are not public; the conditions are our choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.fft
import torch
from torch import Tensor, nn

from ersm_lab.common import checks
from ersm_lab.evaluation import inference
from ersm_lab.images import inverse_scale, perturbations
from ersm_lab.images.data import ImageSet
from ersm_lab.images.inverse_scale import PathSettings
from ersm_lab.images.smoothed import at_level
from ersm_lab.results import answer_bits, statistics
from ersm_lab.results.statistics import Difference

SMOOTHINGS = ("sparsified", "low-pass", "blur")


@dataclass(frozen=True, kw_only=True)
class SmoothingSuite:
    """What is asked.

    Attributes:
        images: the first so many of the test images.
        levels: of sparsity; low-pass and blur are matched to the sparsified images.
        path: settings of the inverse scale path; None is `PathSettings()`.
        sides: of the low resolutions, in pixels.
        corruptions: of `perturbations.KINDS`.
        severities: of each corruption, 1 to 5.
        first: a level and severities. Corrupted images of these severities are also sparsified to the
            level, or smoothed by frequency to the same energy, before the network sees them: it is
            the level at test time, which the paper does not give. None leaves this out.
        seed: of what corruptions draw by lot.
    """

    images: int = 2_000
    levels: tuple[float, ...] = (0.6, 0.8)
    path: PathSettings | None = None
    sides: tuple[int, ...] = (16, 8)
    corruptions: tuple[str, ...] = (
        "gaussian_noise",
        "shot_noise",
        "defocus_blur",
        "contrast",
        "jpeg_compression",
        "pixelate",
    )
    severities: tuple[int, ...] = (1, 3, 5)
    first: tuple[float, tuple[int, ...]] | None = (0.6, (3,))
    seed: int = 0

    def __post_init__(self) -> None:
        checks.whole("images", self.images)
        checks.several("levels", self.levels, least=0)
        for level in self.levels:
            checks.number("levels", level)
        if self.path is not None:
            checks.a("path", self.path, PathSettings)
        checks.several("sides", self.sides, least=0)
        for side in self.sides:
            checks.whole("sides", side, most=perturbations.MOST_SIDE)
        checks.several("corruptions", self.corruptions, least=0)
        for kind in self.corruptions:
            checks.choice("corruptions", kind, perturbations.KINDS)
        _check_severities("severities", self.severities)
        if self.first is not None:
            checks.several("first", self.first, least=2, most=2)
            checks.number("first", self.first[0], above=0, below=1)
            _check_severities("first", self.first[1])
        checks.seed("seed", self.seed)
        named = [round(100 * level) for level in self.levels]
        if len(set(named)) < len(named) or not all(0 < level < 1 for level in self.levels):
            raise ValueError(
                "levels lie between 0 and 1 and differ by one per cent or more, got "
                f"{self.levels}: conditions are named by per cents"
            )
        if self.first and not set(self.first[1]) <= set(self.severities):
            raise ValueError(
                f"severities that are smoothed first, {self.first[1]}, must be among {self.severities}"
            )


def _check_severities(name: str, severities: Sequence[int]) -> None:
    checks.several(name, severities, least=0)
    for severity in severities:
        checks.whole(name, severity, most=perturbations.SEVERITIES[-1])


SUITES = {
    "smoke": SmoothingSuite(images=64),
    "laptop": SmoothingSuite(),
    "full": SmoothingSuite(images=10_000),
}


def measure(
    model: nn.Module, test: ImageSet, *, settings: SmoothingSuite
) -> tuple[dict, dict[str, Tensor]]:
    """Accuracy under every condition, and which images are classified rightly.

    Args:
        model: a classifier of normalised images.
        test: test images on the model's device; uint8 images of 32 x 32 pixels.
        settings: what is asked.

    Returns:
        Metrics: `images`, their number; `accuracy` by condition, 0 to 1; of the smoothed conditions
        also `energy`, the mean share of each image's energy that is retained, and `error`, the root
        of the mean squared error against the plain images, in grey levels of 0 to 255.
        Answers: bools (N,) by condition, in the same order.
    """
    checks.network("model", model)
    checks.labelled("test", test)
    checks.a("settings", settings, SmoothingSuite)
    test = test[: settings.images]
    metrics: dict = {"images": len(test), "accuracy": {}, "energy": {}, "error": {}}
    answers = {}
    for name, images in conditions(test.images, settings=settings):
        right = inference.answers(model, replace(test, images=images)).cpu()  # (N,)
        answers[name] = right
        metrics["accuracy"][name] = right.double().mean().item()
        if name.startswith(SMOOTHINGS):
            x, y = _floats(test.images), _floats(images)
            metrics["energy"][name] = inverse_scale.retained_energy(x, y).mean().item()
            metrics["error"][name] = 255 * (x - y).double().square().mean().sqrt().item()
    return metrics, answers


def conditions(images: Tensor, *, settings: SmoothingSuite) -> Iterator[tuple[str, Tensor]]:
    """Every condition's name and images, one after the other.

    Args:
        images: uint8 (N, 32, 32, 3).
        settings: what is asked.

    Yields:
        Names are "plain"; "sparsified-60", "low-pass-60" and "blur-60" for a level of 0.6;
        "resolution-16"; "gaussian_noise-3" for a severity of 3, and "gaussian_noise-3+sparsified" and
        "gaussian_noise-3+low-pass" for the same images smoothed first. Images are uint8 (N, 32, 32, 3).
    """
    checks.a("settings", settings, SmoothingSuite)
    checks.images("images", images)
    yield "plain", images
    for level in settings.levels:
        for kind, smooth in smoothed(images, level, path=settings.path).items():
            yield f"{kind}-{round(100 * level)}", smooth
    for side in settings.sides:
        yield f"resolution-{side}", perturbations.low_resolution(images, side)
    for kind in settings.corruptions:
        for severity in settings.severities:
            corrupted = perturbations.corrupt(images, kind, severity, seed=settings.seed)
            yield f"{kind}-{severity}", corrupted
            if settings.first and severity in settings.first[1]:
                for words, low_pass in (("sparsified", False), ("low-pass", True)):
                    smooth = at_level(
                        corrupted,
                        settings.first[0],
                        path=settings.path,
                        low_pass=low_pass,
                        progress=False,
                    )
                    yield f"{kind}-{severity}+{words}", smooth


def smoothed(
    images: Tensor, level: float, *, path: PathSettings | None = None
) -> dict[str, Tensor]:
    """One level of the path and its two rivals, image by image: `SMOOTHINGS`.

    "low-pass" retains the energy of the sparsified image; "blur" is the Gaussian blur with its squared
    error.

    Args:
        images: uint8 (N, H, W, 3).
        level: of sparsity, 0 to 1.
        path: settings of the path.

    Returns:
        uint8 (N, H, W, 3) each.

    Raises:
        ValueError: other images, or a level outside of 0 to 1.
    """
    checks.images("images", images)
    checks.number("level", level, least=0, most=1)
    if path is not None:
        checks.a("path", path, PathSettings)
    flat = at_level(images, level, path=path, progress=False)
    low = at_level(images, level, path=path, low_pass=True, progress=False)
    blurred = blur_of_equal_error(_floats(images), _floats(flat))  # (N, 3, H, W)
    blurred = (blurred.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous()
    return {"sparsified": flat, "low-pass": low, "blur": blurred}


def _floats(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float() / 255  # (N, 3, H, W)


# --- blur ------------------------------------------------------------------------------------------


def blur(x: Tensor, sigma: float | Tensor) -> Tensor:
    """Gaussian blur by heat flow for a time of sigma^2 / 2; nothing flows over the border.

    Each frequency w of the DCT-II, in radians a pixel, is multiplied by exp(-sigma^2 |w|^2 / 2).

    Args:
        x: (B, C, H, W).
        sigma: standard deviation in pixels; one number, or (B,).

    Returns:
        (B, C, H, W), in x's type; computed in float64.

    Raises:
        ValueError: NaN, or a sigma that is negative or of other images.
    """
    checks.tensor("x", x, "(B, C, H, W)", "floats")
    if isinstance(sigma, Tensor):
        shape = f"({len(x)},)" if sigma.dim() else "()"
        checks.tensor("sigma", sigma, shape, "numbers")
        if sigma.min() < 0:
            raise ValueError(f"sigma must be at least 0, got {sigma.min().item():g}")
    else:
        checks.number("sigma", sigma, least=0, most=1e6)
    return _blur(x, sigma)


def _blur(x: Tensor, sigma: float | Tensor) -> Tensor:
    each = torch.as_tensor(sigma, dtype=torch.float64).cpu().expand(len(x)).numpy()
    gain = _gain(each, *x.shape[-2:])[:, None]  # (B, 1, H, W)
    kept = scipy.fft.idctn(gain * _spectrum(x), axes=(2, 3), norm="ortho")
    return torch.from_numpy(kept).to(x)


def blur_of_equal_error(x: Tensor, y: Tensor) -> Tensor:
    """Each image blurred so far that its squared error is that of y.

    An error beyond that of the flat image gives the flat image.

    Args:
        x, y: (B, C, H, W).

    Returns:
        (B, C, H, W), in x's type.

    Raises:
        ValueError: NaN, or shapes that differ.
    """
    checks.tensor("x", x, "(B, C, H, W)", "floats")
    checks.tensor("y", y, "(B, C, H, W)", "floats")
    checks.kin("x and y", x.shape, y.shape)
    wanted = (x.double() - y.double()).square().sum((1, 2, 3)).cpu().numpy()  # (B,)
    power = np.square(_spectrum(x)).sum(1)  # (B, H, W)
    low: np.ndarray = np.full(len(x), -4.0)  # log10 of sigma
    high: np.ndarray = np.full(len(x), 4.0)
    for _ in range(50):
        middle = (low + high) / 2
        lost = (power * np.square(1 - _gain(10**middle, *x.shape[-2:]))).sum((1, 2))  # (B,)
        low, high = np.where(lost < wanted, middle, low), np.where(lost < wanted, high, middle)
    sigma = np.where(wanted > 0, 10 ** ((low + high) / 2), 0)
    return _blur(x, torch.from_numpy(sigma))


def _spectrum(x: Tensor) -> np.ndarray:
    return scipy.fft.dctn(x.double().cpu().numpy(), axes=(2, 3), norm="ortho")  # (B, C, H, W)


def _gain(sigma: np.ndarray, height: int, width: int) -> np.ndarray:
    """exp(-sigma^2 |w|^2 / 2), (B, H, W)."""
    rows, columns = (
        np.exp(-((sigma[:, None] * np.pi * np.arange(n) / n) ** 2) / 2) for n in (height, width)
    )
    return rows[:, :, None] * columns[:, None, :]


# --- answers in a record ---------------------------------------------------------------------------


def pack(answers: Mapping[str, Tensor]) -> str:
    """The answers of `measure` as the text of a record's `answers`: one condition after the other."""
    checks.a("answers", answers, Mapping)
    for right in answers.values():
        checks.tensor("answers", right, "(N,)", "bools")
    return answer_bits.pack(torch.cat(list(answers.values())))


def unpack(record: Mapping) -> dict[str, Tensor]:
    """Bools (N,) by condition, from a record whose metrics and answers `measure` and `pack` made.

    Raises:
        ValueError: it holds no answers.
    """
    checks.a("record", record, Mapping)
    if record["answers"] is None:
        raise ValueError(f"{record['name']} holds no answers: run it again")
    names: Sequence[str] = list(record["metrics"]["accuracy"])
    bits = answer_bits.unpack(record["answers"], len(names) * record["metrics"]["images"])
    return dict(zip(names, bits.chunk(len(names)), strict=True))


# --- differences -----------------------------------------------------------------------------------


def difference(
    method: Sequence[Mapping],
    base: Sequence[Mapping],
    names: Sequence[str],
    *,
    base_names: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> Difference:
    """Paired difference of accuracy, averaged over conditions, as `statistics.difference` does it.

    An image counts with the mean over all conditions.

    Args:
        method, base: records of the seeds of two methods, as `unpack` takes them.
        names: conditions, each of the same weight.
        base_names: those of the base, where they are others.
        confidence: of the interval, 0 to 1.

    Raises:
        ValueError: no seed in common, no or other conditions, or records without answers.
    """
    checks.several("names", names)
    if base_names is not None:
        checks.several("base_names", base_names)
    for name, group in {"method": method, "base": base}.items():
        checks.several(name, group)
    right = {
        "method": {record["seed"]: _mean_answers(record, names) for record in method},
        "base": {record["seed"]: _mean_answers(record, base_names or names) for record in base},
    }
    return statistics.paired(
        right["method"],
        right["base"],
        confidence=confidence,
    )


def _mean_answers(record: Mapping, names: Sequence[str]) -> np.ndarray:
    answers = unpack(record)
    missing = [name for name in names if name not in answers]
    if missing or not names:
        raise ValueError(f"{record['name']} holds no {missing or 'names'}: choose of {[*answers]}")
    return torch.stack([answers[name] for name in names]).double().mean(0).numpy()  # (N,)
