"""The corruptions of CIFAR-10-C: their names and severities, made here or read from the published files.

Images are uint8 (N, H, W, 3), as an `ImageSet` holds them, before and after. What is drawn by lot
for image i depends on the seed, the kind and i alone (`lots`): not on the severity, so that the
severities of an image are alike, and not on the other images of the batch. A large set can be
handed over in parts, `first` being the number of a part's first image, and gives the same images.
Everything is computed on the CPU, the same for every device.

The corruptions are those of Hendrycks & Dietterich (2019, arXiv:1903.12261), made for 32 x 32 images,
with the parameters of the released CIFAR-10-C. They are made anew here, so that they exist for any
data set: not the published images, but the same distributions. Where this is not so:

    frost       left out: it needs the authors' photographs of frost
    zoom_blur   factors end where the table says; the released generator's rounding adds one more
                step at severities 1 and 2
    spatter     exact distances and our own Canny edges in place of OpenCV's

`published_corruptions` reads the published files, frost included, where a reader has them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ersm_lab.common import checks
from ersm_lab.images.corruption_kinds import MAKE, SIDE
from ersm_lab.images.data import DataNotFound
from ersm_lab.images.lots import lots_of

NOISE = ("gaussian_noise", "shot_noise", "impulse_noise")
BLUR = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur")
WEATHER = ("snow", "fog", "brightness")  # and frost, which is left out
DIGITAL = ("contrast", "elastic_transform", "pixelate", "jpeg_compression")
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
GROUPS = {"noise": NOISE, "blur": BLUR, "weather": WEATHER, "digital": DIGITAL, "extra": EXTRA}

LEFT_OUT = ("frost",)
CORRUPTIONS = (*NOISE, *BLUR, *WEATHER, *DIGITAL)  # 14 of the 15 whose mean is reported
KINDS = (*CORRUPTIONS, *EXTRA)  # all that `corrupt` makes
PUBLISHED = (*KINDS, *LEFT_OUT)  # the names of the published files
SEVERITIES = (1, 2, 3, 4, 5)

# What each severity means, 1 to 5. Lengths are in pixels, amplitudes in units of 0 to 1.
PARAMETERS = {
    "gaussian_noise": ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),  # sd
    "shot_noise": ((500,), (250,), (100,), (75,), (50,)),  # photons at full brightness
    "impulse_noise": ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),  # share of the values
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),  # radius, sd of rim
    # sd, largest shift, rounds
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),  # radius, sd
    "zoom_blur": ((1.05,), (1.10,), (1.15,), (1.20,), (1.25,)),  # largest factor; steps of 0.01
    # mean and sd of the flakes, their zoom, threshold, radius and sd of their motion, image's weight
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),  # amount, decay
    "brightness": ((0.05,), (0.10,), (0.15,), (0.20,), (0.30,)),  # added to the value of HSV
    "contrast": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),  # factor
    # of the bending: amplitude and sd of its smoothing; largest shift of the affine map's corners
    "elastic_transform": (
        (0, 0, 2.56),
        (1.6, 6.4, 2.24),
        (2.56, 1.92, 1.92),
        (3.2, 1.28, 1.6),
        (3.2, 0.96, 0.96),
    ),
    "pixelate": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),  # factor of the side
    "jpeg_compression": ((80,), (65,), (58,), (50,), (40,)),  # quality
    "speckle_noise": ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,)),  # sd at full brightness
    "gaussian_blur": ((0.4,), (0.6,), (0.7,), (0.8,), (1,)),  # sd
    # mean and sd of the liquid, sd of its smoothing, threshold, opacity of water or sd of mud, mud
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, False),
        (0.65, 0.1, 0.8, 0.7, 0.5, False),
        (0.65, 0.3, 1, 0.69, 0.5, False),
        (0.65, 0.1, 0.7, 0.69, 0.6, True),
        (0.65, 0.1, 0.5, 0.68, 0.6, True),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),  # factor of HSV's S, added
}

_CHUNK = 500  # images worked on at once; the result does not depend on it


def corrupt(images: Tensor, kind: str, severity: int, *, seed: int, first: int = 0) -> Tensor:
    """Corrupt every image as in CIFAR-10-C.

    Args:
        images: uint8 (N, 32, 32, 3).
        kind: one of `KINDS`.
        severity: 1 to 5, the place of its parameters in `PARAMETERS`. The mean error against the
            clean images grows with it, but by the published parameters it need not for

            motion_blur        3 and 4 differ in the far tail of the kernel only
            glass_blur         the blur smooths what was shuffled; more rounds (4 and 5) do count
            elastic_transform  the bending grows, the affine part shrinks, and that is the larger
            spatter            1 to 3 are water, 4 and 5 mud
            saturate           1 and 2 take colour away, 3 to 5 add it
        seed: of everything drawn by lot.
        first: number of the first image, where `images` is a part of a larger set.

    Returns:
        uint8 (N, 32, 32, 3) on the same device. As in the published files fractions of a level are
        cut off, not rounded; motion_blur, pixelate and jpeg_compression round, as their libraries do.

    Raises:
        ValueError: images of another type or shape or none, an unknown kind or severity.

    Source: Hendrycks & Dietterich (2019), arXiv:1903.12261, and their released CIFAR-10-C generator.
    """
    checks.images("images", images)
    checks.seed("seed", seed)
    checks.whole("first", first, least=0, most=checks.MOST_SEED)
    if images.shape[1:3] != (SIDE, SIDE):
        raise ValueError(
            f"the severities are made for {SIDE} x {SIDE} images, got {tuple(images.shape)}: "
            "resize them first"
        )
    checks.text("kind", kind)
    if kind in LEFT_OUT:
        raise ValueError(
            f"{kind} is left out: it needs the authors' photographs. `published_corruptions` reads it "
            "from the published CIFAR-10-C"
        )
    if kind not in KINDS:
        raise ValueError(f"kind: no corruption {kind!r}: choose one of {', '.join(KINDS)}")
    checks.whole("severity", severity, most=SEVERITIES[-1])
    parameters = PARAMETERS[kind][severity - 1]
    clean = images.cpu().numpy()
    corrupted = np.empty_like(clean)
    for start in range(0, len(clean), _CHUNK):
        chunk = clean[start : start + _CHUNK]  # (B, 32, 32, 3)
        lots = lots_of(seed, kind, range(first + start, first + start + len(chunk)))
        corrupted[start : start + len(chunk)] = MAKE[kind](chunk, lots, *parameters)
    return torch.from_numpy(corrupted).to(images.device)


def published_corruptions(folder: str | Path, kind: str, severity: int) -> tuple[Tensor, Tensor]:
    """The CIFAR-10 test images as the authors corrupted them.

    Each file holds 50,000 images: the 10,000 test images at severity 1, then at 2, and so on. It is
    memory-mapped; only the severity asked for is read.

    Args:
        folder: holds the unpacked files, such as gaussian_noise.npy, and labels.npy.
        kind: one of `PUBLISHED`; frost is there too.
        severity: 1 to 5.

    Returns:
        images, uint8 (10,000, 32, 32, 3), and labels, int64 (10,000,).

    Raises:
        DataNotFound: a file is not there.
        ValueError: an unknown kind or severity, or a file that is not laid out so.

    Source: https://zenodo.org/records/2535967 (CIFAR-10-C.tar).
    """
    checks.text("kind", kind)
    if not isinstance(folder, (str, Path)):
        raise TypeError(f"folder must be a path, got {folder!r}")
    if kind not in PUBLISHED:
        raise ValueError(f"kind: no corruption {kind!r}: choose one of {', '.join(PUBLISHED)}")
    checks.whole("severity", severity, most=SEVERITIES[-1])
    start = 10_000 * (severity - 1)
    read = []
    for name, shape in ((kind, (50_000, SIDE, SIDE, 3)), ("labels", (50_000,))):
        path = Path(folder).expanduser() / f"{name}.npy"
        if not path.is_file():
            raise DataNotFound(
                f"{path} is not there: fetch CIFAR-10-C.tar from https://zenodo.org/records/2535967, "
                "unpack it and give the folder that holds its .npy files, or use `corrupt`, which "
                f"makes all kinds but {', '.join(LEFT_OUT)} from the clean images"
            )
        array = np.load(path, mmap_mode="r")
        if array.shape != shape or array.dtype.kind not in "iu":
            raise ValueError(
                f"{path} holds {array.dtype} {array.shape}, not whole numbers {shape}: it is no file "
                "of the published CIFAR-10-C; unpack that archive again"
            )
        read.append(torch.from_numpy(np.array(array[start : start + 10_000])))
    images, labels = read
    return images, labels.long()
