"""Small painted scenes, 32 x 32, that resemble classes of CIFAR-10: pictures anybody may pass on.

Photographs of CIFAR-10 may not be committed, and textured shapes are outside of what its networks
have learned. These scenes are drawn here, from polygons and ellipses on a soft ground, eight times as
large and then averaged, with the grain of a small camera.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 32  # pixels a side
_ZOOM = 8  # the brush is so many times as fine

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255
Point = tuple[float, float]  # x to the right, y down, in pixels


def painted_scene(name: str) -> np.ndarray:
    """One scene, uint8 (32, 32, 3), the same every time.

    Args:
        name: of `SCENES`.

    Raises:
        ValueError: no such scene.
    """
    if name not in SCENES:
        raise ValueError(f"no scene {name!r}: choose one of {', '.join(SCENES)}")
    brush = Brush()
    SCENES[name].paint(brush)
    return brush.photograph()


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A scene that can be painted.

    Attributes:
        meant: the class of CIFAR-10 it resembles.
        paint: draws it.
        shows: what is to be seen, for a text alternative.
    """

    meant: str
    paint: Callable[[Brush], None]
    shows: str


class Brush:
    """Draws on one picture, later things over earlier ones. Lengths are in pixels."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(SIZE)  # the same for every scene
        self.image = Image.new("RGB", (SIZE * _ZOOM, SIZE * _ZOOM))
        self.pen = ImageDraw.Draw(self.image)

    def ground(self, top: Colour, bottom: Colour, start: float = 0, stop: float = SIZE) -> None:
        """A gradient between two heights, with soft spots."""
        rows = slice(round(start * _ZOOM), round(stop * _ZOOM))
        pixels = np.asarray(self.image, dtype=float).copy()  # (8 S, 8 S, 3)
        share = np.linspace(0, 1, rows.stop - rows.start)[:, None, None]  # (h, 1, 1)
        spots = self.generator.normal(0, 7, (SIZE // 2, SIZE // 2)).astype(np.float32)
        spots = np.asarray(Image.fromarray(spots).resize(self.image.size, Image.Resampling.BICUBIC))
        colours = np.array(top) * (1 - share) + np.array(bottom) * share  # (h, 1, 3)
        pixels[rows] = colours + spots[rows, :, None]
        self.image.paste(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self.pen.polygon([(x * _ZOOM, y * _ZOOM) for x, y in points], fill=colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        box = [(x - rx) * _ZOOM, (y - ry) * _ZOOM, (x + rx) * _ZOOM, (y + ry) * _ZOOM]
        self.pen.ellipse(box, fill=colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        path = [(x * _ZOOM, y * _ZOOM) for x, y in points]
        self.pen.line(path, fill=colour, width=round(width * _ZOOM), joint="curve")

    def photograph(self) -> np.ndarray:
        """Averaged to the final size, with grain: uint8 (S, S, 3)."""
        fine = np.asarray(self.image, dtype=float).reshape(SIZE, _ZOOM, SIZE, _ZOOM, 3)
        grain = self.generator.normal(0, 3, (SIZE, SIZE, 1))
        return (fine.mean((1, 3)) + grain).round().clip(0, 255).astype(np.uint8)


def _ship(b: Brush) -> None:
    b.ground((150, 185, 220), (205, 220, 232), 0, 19)
    b.ground((60, 100, 135), (35, 70, 105), 18, 32)
    b.polygon([(3, 17), (29, 16.5), (26, 22), (6, 22)], (40, 45, 60))
    b.polygon([(5.4, 21), (26.6, 21), (26, 22.4), (6, 22.4)], (150, 45, 40))
    b.polygon([(8, 13), (22, 13), (22, 17), (8, 17.2)], (240, 240, 238))
    b.polygon([(10, 10), (18, 10), (18, 13), (10, 13)], (225, 226, 228))
    b.polygon([(19, 8), (22, 8), (22, 13), (19, 13)], (200, 70, 45))
    for x in (9.5, 12, 14.5, 17, 19.5):
        b.ellipse(x, 15, 0.6, 0.6, (60, 80, 110))
    b.line([(14, 4), (14, 10)], 0.5, (70, 70, 75))
    b.line([(4, 23), (28, 23)], 0.7, (175, 200, 215))
    b.line([(8, 26), (17, 26)], 0.5, (95, 135, 165))


def _aeroplane(b: Brush) -> None:
    b.ground((90, 145, 205), (185, 210, 235))
    b.polygon([(2, 17), (5, 14.6), (25, 12.5), (29.5, 14.2), (28, 16), (6, 18.6)], (238, 240, 243))
    b.polygon([(4, 15.5), (2, 9.5), (4.6, 9.5), (8, 15)], (190, 60, 55))
    b.polygon([(3, 17.2), (0.8, 19.4), (3, 19.5), (7, 17.4)], (205, 208, 214))
    b.polygon([(18, 15.2), (9, 24.5), (12, 24.5), (22.5, 15.5)], (200, 204, 211))
    b.polygon([(17, 13.4), (13, 8.4), (14.8, 8.4), (21, 13.2)], (212, 216, 222))
    b.ellipse(14.6, 20.4, 1.6, 0.8, (120, 125, 135))
    b.line([(9, 15.8), (25, 14.1)], 0.5, (90, 110, 140))
    b.polygon([(26.4, 13.2), (28, 13.8), (26.6, 14.2)], (50, 60, 80))


def _car(b: Brush) -> None:
    b.ground((180, 200, 215), (215, 220, 222), 0, 13)
    b.ground((95, 125, 80), (105, 130, 85), 12, 18)
    b.ground((125, 125, 128), (95, 95, 98), 17, 32)
    b.ellipse(16, 25.5, 13.5, 1.6, (60, 60, 62))
    b.polygon([(9, 16), (12, 11), (21, 11), (25, 16)], (165, 28, 28))
    b.polygon([(10.4, 15.8), (12.7, 12), (16, 12), (16, 15.8)], (60, 75, 90))
    b.polygon([(17, 15.8), (17, 12), (20.5, 12), (23.3, 15.8)], (60, 75, 90))
    b.polygon(
        [(2.5, 18.5), (5, 16), (25, 15.8), (29, 17.5), (30, 20), (29.4, 23.5), (2.6, 23.5)],
        (200, 35, 32),
    )
    b.line([(3, 20), (29.5, 20)], 0.4, (140, 20, 22))
    b.polygon([(28.2, 18), (29.6, 18.4), (29.6, 20), (28.2, 19.6)], (250, 240, 190))
    b.polygon([(2.6, 18.6), (3.6, 18), (3.6, 20), (2.6, 20)], (120, 10, 15))
    for x in (8.5, 23.5):
        b.ellipse(x, 23.5, 3.2, 3.2, (28, 28, 30))
        b.ellipse(x, 23.5, 1.5, 1.5, (175, 178, 182))


def _truck(b: Brush) -> None:
    b.ground((165, 190, 215), (210, 218, 222), 0, 16)
    b.ground((140, 135, 120), (110, 108, 104), 16, 32)
    b.ellipse(16, 27, 14, 1.5, (65, 63, 60))
    b.polygon([(1.5, 6), (20, 6), (20, 22.5), (1.5, 22.5)], (235, 235, 232))
    b.line([(1.5, 9), (20, 9)], 0.8, (50, 90, 165))
    b.polygon([(20.6, 11), (26.5, 11), (29.5, 16.5), (30, 23), (20.6, 23)], (45, 85, 165))
    b.polygon([(22, 12.4), (25.8, 12.4), (28, 16.6), (22, 16.6)], (55, 65, 80))
    b.polygon([(1.5, 22.5), (30, 22.5), (30, 24), (1.5, 24)], (45, 45, 48))
    b.polygon([(28.8, 19), (30, 19), (30, 20.6), (28.8, 20.6)], (250, 240, 180))
    for x in (5.5, 11, 25):
        b.ellipse(x, 24.6, 2.7, 2.7, (25, 25, 27))
        b.ellipse(x, 24.6, 1.1, 1.1, (160, 162, 166))


def _frog(b: Brush) -> None:
    b.ground((70, 62, 40), (95, 80, 50))
    b.polygon([(0, 24), (10, 17), (24, 16), (32, 21), (32, 32), (0, 32)], (110, 100, 55))
    b.ellipse(8.5, 22, 5.5, 4, (85, 125, 45))
    b.ellipse(24, 22, 5.5, 4, (85, 125, 45))
    b.ellipse(16, 18.5, 9, 7.5, (110, 155, 55))
    b.ellipse(16, 22, 6.5, 4.2, (190, 200, 130))
    b.ellipse(16, 13.5, 7.5, 5, (118, 165, 60))
    for x in (11, 21):
        b.ellipse(x, 9.5, 2.4, 2.4, (118, 165, 60))
        b.ellipse(x, 9.3, 1.6, 1.6, (215, 185, 60))
        b.ellipse(x, 9.3, 0.8, 1.1, (15, 15, 10))
    b.line([(10.5, 15.2), (16, 16.6), (21.5, 15.2)], 0.6, (55, 85, 30))
    b.line([(9, 22), (6, 27), (3, 27.5)], 1.5, (95, 140, 50))
    b.line([(23, 22), (26, 27), (29, 27.5)], 1.5, (95, 140, 50))
    for x, y in ((13, 18), (19, 17.6), (16, 12)):
        b.ellipse(x, y, 1, 0.8, (75, 110, 40))


def _bird(b: Brush) -> None:
    b.ground((150, 175, 150), (120, 145, 110))
    b.line([(0, 25.5), (32, 23)], 1.8, (90, 65, 45))
    b.polygon([(8, 18), (1, 24), (3, 25.5), (11, 21)], (85, 75, 65))
    b.ellipse(14.5, 16.5, 7, 5.2, (135, 110, 85))
    b.ellipse(15.5, 18.6, 5.4, 3.6, (220, 150, 95))
    b.ellipse(20.5, 10.8, 3.7, 3.5, (125, 100, 78))
    b.polygon([(23.7, 10), (27.4, 11.3), (23.7, 12.2)], (60, 50, 40))
    b.ellipse(21.6, 10, 0.7, 0.7, (10, 10, 10))
    b.polygon([(9, 14), (16, 13.5), (17, 18), (8, 19.5)], (95, 80, 65))
    b.line([(14, 21), (14, 24.5)], 0.6, (70, 50, 40))
    b.line([(17, 21), (17, 24.3)], 0.6, (70, 50, 40))


def _horse(b: Brush) -> None:
    b.ground((175, 200, 225), (215, 225, 225), 0, 12)
    b.ground((115, 140, 70), (95, 120, 55), 11, 32)
    brown, dark = (115, 70, 38), (55, 35, 22)
    b.ellipse(14, 15.5, 7.5, 4.2, brown)
    b.polygon([(18, 13), (23, 5.5), (26, 7.5), (21, 18)], brown)
    b.polygon([(23, 5), (29, 9.2), (28, 11.3), (23.2, 9.6)], brown)
    b.polygon([(23.4, 5.2), (24.2, 3.2), (25, 5.8)], brown)
    b.line([(22.6, 5.6), (18.4, 12.4)], 1.2, dark)
    for x in (8.5, 10.8, 18, 20):
        b.line([(x, 17.5), (x - 0.4, 23), (x, 28)], 1.5, brown)
        b.ellipse(x, 28, 0.9, 0.7, dark)
    b.line([(7, 13.5), (4.6, 17), (4.6, 22)], 1.4, dark)


def _deer(b: Brush) -> None:
    b.ground((70, 95, 55), (85, 105, 60), 0, 16)
    b.ground((120, 135, 70), (135, 140, 75), 15, 32)
    fur, pale = (150, 100, 60), (205, 175, 135)
    b.ellipse(14, 17, 7, 3.8, fur)
    b.polygon([(18, 15), (21, 8.5), (24, 9.5), (21, 19)], fur)
    b.ellipse(23.8, 8.8, 3, 1.9, fur)
    b.ellipse(26, 9.4, 1, 0.9, (50, 35, 28))
    b.polygon([(21, 7.5), (18.8, 5.8), (22, 6.6)], fur)
    b.line([(22.5, 7), (21, 2.5), (19, 1.5)], 0.5, pale)
    b.line([(23.2, 7), (24.8, 2.8), (27, 1.8)], 0.5, pale)
    b.ellipse(7.4, 16, 1.2, 1.4, pale)
    for x in (9, 11, 17.5, 19.5):
        b.line([(x, 19), (x, 28)], 1, fur)


def _cat(b: Brush) -> None:
    b.ground((150, 120, 95), (120, 95, 75))
    fur, dark = (175, 165, 155), (110, 100, 92)
    b.ellipse(16, 29, 10.5, 9, fur)
    b.polygon([(6.8, 13), (7.5, 3), (14, 8)], fur)
    b.polygon([(25.2, 13), (24.5, 3), (18, 8)], fur)
    b.polygon([(8.4, 10), (8.6, 5.4), (12, 8)], (200, 150, 140))
    b.polygon([(23.6, 10), (23.4, 5.4), (20, 8)], (200, 150, 140))
    b.ellipse(16, 14.5, 9.5, 8.2, fur)
    for x in (13.5, 16, 18.5):
        b.line([(x, 6.5), (x, 9.5)], 0.9, dark)
    for x in (12, 20):
        b.ellipse(x, 13.5, 1.9, 1.6, (165, 190, 80))
        b.ellipse(x, 13.5, 0.6, 1.4, (10, 10, 10))
    b.ellipse(16, 18.6, 3.6, 2.6, (225, 220, 212))
    b.polygon([(15, 16.7), (17, 16.7), (16, 17.9)], (200, 120, 115))
    for y in (17.6, 19):
        b.line([(6, y - 0.6), (13, y)], 0.25, (240, 240, 238))
        b.line([(26, y - 0.6), (19, y)], 0.25, (240, 240, 238))


SCENES = {
    "ship": Scene(meant="ship", paint=_ship, shows="a ship on the sea"),
    "aeroplane": Scene(meant="airplane", paint=_aeroplane, shows="an aeroplane in the sky"),
    "car": Scene(meant="automobile", paint=_car, shows="a red car on a road"),
    "truck": Scene(meant="truck", paint=_truck, shows="a truck with a white box"),
    "frog": Scene(meant="frog", paint=_frog, shows="a frog on the ground"),
    "horse": Scene(meant="horse", paint=_horse, shows="a horse in a meadow"),
    "deer": Scene(meant="deer", paint=_deer, shows="a deer at the edge of a wood"),
    "cat": Scene(meant="cat", paint=_cat, shows="a cat that looks at you"),
    "bird": Scene(meant="bird", paint=_bird, shows="a bird on a branch"),
}
