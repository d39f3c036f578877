"""Scenes: a generated data set of small illustrations, made for the reasons MSRN exists.

Six families of things (sea, farm, city, table, mountain, space) are painted over backgrounds that they share:

- **Several scales.** A ship fills half of the picture, a fish a quarter of its side, a buoy seven pixels.
- **Labels relate.** Members of a family come together, some belong to two families, the sun never shines at night, and
  lamps are lit then more often than by day.
- **Pixels are not enough.** A sun, a ball and an orange are one orange disc, drawn by one function; only what else is
  in the picture tells them apart. So it is with sail and tent, lamp and star, buoy and cherry.
- **The whole picture counts.** Night and fog are properties of the scene, whatever is in it.

Clutter that bears no label, body colours drawn at random, occlusion, tilt and weak contrast keep it from being easy.
Every image has a random generator of its own, made from (seed, split, index), so the set does not depend on the order
in which images are drawn, nor on how many workers draw them.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int8
from PIL import Image, ImageDraw

from msrn.data.source import SPLITS
from msrn.errors import DataError

GENERATOR_VERSION = 1

Colour = tuple[int, int, int]
Point = tuple[float, float]

# --- The pen: glyphs are drawn in their own coordinates, x to the right and y down, both from -1 to 1. ---

INK: Colour = (58, 48, 62)
WHITE: Colour = (246, 243, 234)
CREAM: Colour = (238, 222, 184)
GREY: Colour = (150, 150, 158)
GLASS: Colour = (168, 214, 232)
GOLD: Colour = (248, 208, 84)
ORANGE: Colour = (242, 140, 38)
RED: Colour = (206, 46, 52)
GREEN: Colour = (62, 122, 78)
BROWN: Colour = (124, 84, 58)

# A body takes its colour from here whatever it is, so colour does not tell a ship from a barn.
BODY_COLOURS: tuple[Colour, ...] = (
    (196, 66, 60), (222, 128, 70), (228, 190, 92), (112, 158, 92), (70, 146, 140),
    (78, 124, 184), (120, 96, 168), (196, 110, 152), (146, 104, 78), (208, 200, 188),
)  # fmt: skip
MUTED_COLOURS: tuple[Colour, ...] = (
    (104, 138, 88), (140, 154, 108), (72, 112, 118), (98, 124, 170), (132, 112, 158),
    (188, 128, 160), (128, 108, 92), (168, 150, 128), (112, 116, 124), (84, 92, 84),
)  # fmt: skip
# The hues of the glyphs that have one colour: clutter of another outline takes them too, so colour is not enough.
VIVID_COLOURS: tuple[Colour, ...] = (ORANGE, RED, GOLD, GREEN)
# Backgrounds are the same for all families.
BACKGROUND_COLOURS: tuple[Colour, ...] = (
    (150, 196, 222), (196, 222, 228), (240, 214, 178), (232, 186, 168), (186, 178, 210), (150, 184, 150),
    (206, 206, 148), (176, 148, 120), (120, 142, 164), (92, 110, 118), (214, 200, 190), (110, 128, 96),
)  # fmt: skip

_CIRCLE = tuple((float(np.cos(angle)), float(np.sin(angle))) for angle in np.linspace(0, 2 * np.pi, 32, endpoint=False))


@dataclass
class Pen:
    """Draws one glyph on a canvas: scaled, tilted, mirrored and with its colours shifted.

    Attributes:
        canvas: The drawing that the glyph goes to.
        centre: Middle of the glyph in canvas pixels.
        radius: Canvas pixels that one unit of the glyph's coordinates takes.
        tilt: Clockwise angle in radians.
        mirror: -1 to mirror left and right, else 1.
        gain: Factor of each colour channel.
        haze: How far its colours fade into `air`, from 0 to 1.
        air: The colour that they fade into.
        body: Colour of those parts that may have any colour.
    """

    canvas: ImageDraw.ImageDraw
    centre: Point
    radius: float
    tilt: float = 0.0
    mirror: int = 1
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    haze: float = 0.0
    air: Colour = GREY
    body: Colour = BODY_COLOURS[0]

    def shape(self, points: Sequence[Point], colour: Colour, *, outline: float = 0.05) -> None:
        """Fill a polygon and draw its outline, `outline` units wide, in a darker shade."""
        place = self._place(points)
        self.canvas.polygon(place, fill=self._tone(colour))
        if outline > 0:
            edge = self._tone(_shade(colour, 0.55))
            self.canvas.line([*place, place[0], place[1]], fill=edge, width=self._width(outline), joint="curve")

    def box(
        self, left: float, top: float, right: float, bottom: float, colour: Colour, *, outline: float = 0.05
    ) -> None:
        """Fill an upright rectangle."""
        self.shape([(left, top), (right, top), (right, bottom), (left, bottom)], colour, outline=outline)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour, *, outline: float = 0.05) -> None:
        """Fill an ellipse around (x, y)."""
        self.shape([(x + rx * cos, y + ry * sin) for cos, sin in _CIRCLE], colour, outline=outline)

    def stroke(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        """Draw an open line, `width` units wide."""
        self.canvas.line(self._place(points), fill=self._tone(colour), width=self._width(width), joint="curve")

    def _place(self, points: Sequence[Point]) -> list[Point]:
        cos, sin = self.radius * np.cos(self.tilt), self.radius * np.sin(self.tilt)
        x0, y0 = self.centre
        return [
            (float(x0 + self.mirror * x * cos - y * sin), float(y0 + self.mirror * x * sin + y * cos))
            for x, y in points
        ]

    def _width(self, width: float) -> int:
        return max(1, round(width * self.radius))

    def _tone(self, colour: Colour) -> Colour:
        red, green, blue = (
            min(255, round(c * gain + self.haze * (a - c * gain)))
            for c, gain, a in zip(colour, self.gain, self.air, strict=True)
        )
        return red, green, blue


def _shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (factor below 1) or lighter."""
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


# --- Large glyphs ---


def _ship(pen: Pen) -> None:
    pen.box(-0.05, -0.85, 0.2, -0.35, pen.body)
    pen.box(-0.05, -0.85, 0.2, -0.7, INK, outline=0)
    pen.box(-0.5, -0.4, 0.5, 0.0, WHITE)
    pen.box(-0.35, -0.62, 0.35, -0.4, CREAM)
    pen.shape([(-1, -0.05), (1, -0.05), (0.72, 0.6), (-0.75, 0.6)], pen.body)
    pen.shape([(-0.87, 0.33), (0.84, 0.33), (0.72, 0.6), (-0.75, 0.6)], _shade(pen.body, 0.7), outline=0)
    for x in (-0.55, -0.18, 0.19, 0.56):
        pen.oval(x, 0.13, 0.09, 0.09, GLASS, outline=0.03)
    for x in (-0.33, 0.0, 0.33):
        pen.box(x - 0.08, -0.28, x + 0.08, -0.13, GLASS, outline=0.02)


def _barn(pen: Pen) -> None:
    pen.shape([(-0.8, -0.15), (-0.55, -0.6), (0, -0.9), (0.55, -0.6), (0.8, -0.15), (0.8, 0.8), (-0.8, 0.8)], pen.body)
    pen.stroke([(-0.92, -0.1), (-0.6, -0.65), (0, -0.96), (0.6, -0.65), (0.92, -0.1)], _shade(pen.body, 0.5), 0.14)
    pen.box(-0.2, -0.5, 0.2, -0.15, INK, outline=0)
    pen.box(-0.16, -0.46, 0.16, -0.19, GOLD, outline=0)
    pen.box(-0.42, 0.1, 0.42, 0.8, CREAM)
    pen.stroke([(-0.42, 0.1), (0.42, 0.8)], _shade(pen.body, 0.8), 0.09)
    pen.stroke([(0.42, 0.1), (-0.42, 0.8)], _shade(pen.body, 0.8), 0.09)


def _tower(pen: Pen) -> None:
    pen.stroke([(0, -1), (0, -0.7)], INK, 0.06)
    pen.box(-0.3, -0.78, 0.3, -0.6, _shade(pen.body, 0.7))
    pen.box(-0.48, -0.62, 0.48, 1, pen.body)
    pen.box(0.3, -0.6, 0.48, 1, _shade(pen.body, 0.78), outline=0)
    for row, y in enumerate((-0.45, -0.18, 0.09, 0.36)):
        for column, x in enumerate((-0.35, -0.1, 0.15)):
            pen.box(x, y, x + 0.14, y + 0.16, GLASS if (row + 2 * column) % 3 else INK, outline=0)
    pen.box(-0.14, 0.66, 0.14, 1, INK, outline=0)


def _teapot(pen: Pen) -> None:
    pen.stroke([(-0.45, -0.25), (-0.9, -0.3), (-0.95, 0.1), (-0.55, 0.4)], _shade(pen.body, 0.75), 0.13)
    pen.shape([(0.4, 0.35), (0.75, -0.1), (0.8, -0.4), (1, -0.42), (0.95, 0.05), (0.5, 0.6)], pen.body)
    pen.oval(0, 0.15, 0.65, 0.58, pen.body)
    pen.oval(0, -0.38, 0.36, 0.12, _shade(pen.body, 0.8))
    pen.oval(0, -0.56, 0.11, 0.11, CREAM)
    pen.stroke([(-0.5, 0.15), (-0.2, 0.28), (0.2, 0.28), (0.5, 0.15)], CREAM, 0.09)
    pen.box(-0.32, 0.68, 0.32, 0.8, _shade(pen.body, 0.7))


def _pine(pen: Pen) -> None:
    pen.box(-0.12, 0.6, 0.12, 1, BROWN)
    for top, bottom, width in ((-0.1, 0.72, 0.8), (-0.5, 0.3, 0.62), (-0.98, -0.15, 0.44)):
        pen.shape([(0, top), (width, bottom), (0, bottom + 0.06), (-width, bottom)], GREEN)
        cap = top + 0.34 * (bottom - top)
        pen.shape([(0, top), (0.34 * width, cap), (0.08, cap - 0.05), (-0.34 * width, cap)], WHITE, outline=0)


def _rocket(pen: Pen) -> None:
    pen.shape([(-0.2, 0.6), (0, 1), (0.2, 0.6)], GOLD)
    for side in (-1, 1):
        pen.shape([(side * 0.3, 0.1), (side * 0.65, 0.55), (side * 0.6, 0.75), (side * 0.25, 0.6)], pen.body)
    pen.shape([(0, -1), (0.24, -0.65), (0.36, -0.2), (0.3, 0.65), (-0.3, 0.65), (-0.36, -0.2), (-0.24, -0.65)], WHITE)
    pen.shape([(0, -1), (0.24, -0.65), (0.27, -0.55), (-0.27, -0.55), (-0.24, -0.65)], pen.body)
    pen.oval(0, -0.22, 0.2, 0.2, GLASS, outline=0.08)
    pen.box(-0.3, 0.42, 0.3, 0.56, pen.body, outline=0)


# --- Medium glyphs ---


def _fish(pen: Pen) -> None:
    pen.shape([(-0.4, 0), (-1, -0.5), (-0.85, 0), (-1, 0.5)], _shade(pen.body, 0.8), outline=0.08)
    pen.shape([(-0.2, -0.35), (0.15, -0.75), (0.35, -0.35)], _shade(pen.body, 0.8), outline=0.08)
    pen.oval(0.2, 0, 0.75, 0.45, pen.body, outline=0.08)
    pen.oval(0.6, -0.1, 0.13, 0.13, WHITE, outline=0)
    pen.oval(0.63, -0.1, 0.07, 0.07, INK, outline=0)


def _cow(pen: Pen) -> None:
    for x in (-0.55, -0.3, 0.2, 0.45):
        pen.box(x - 0.08, 0.3, x + 0.08, 0.85, WHITE, outline=0.06)
    pen.oval(-0.05, 0.1, 0.72, 0.42, WHITE, outline=0.08)
    pen.oval(-0.3, 0.0, 0.24, 0.22, INK, outline=0)
    pen.oval(0.2, 0.22, 0.2, 0.17, INK, outline=0)
    pen.stroke([(-0.75, 0), (-0.95, 0.35)], INK, 0.1)
    pen.oval(0.7, -0.3, 0.27, 0.33, WHITE, outline=0.08)
    pen.oval(0.8, -0.12, 0.18, 0.13, (232, 170, 168), outline=0)
    pen.oval(0.47, -0.55, 0.12, 0.1, INK, outline=0)


def _car(pen: Pen) -> None:
    pen.shape([(-0.6, -0.05), (-0.35, -0.5), (0.35, -0.5), (0.62, -0.05)], _shade(pen.body, 0.8), outline=0.07)
    pen.shape([(-0.42, -0.08), (-0.25, -0.38), (0.0, -0.38), (0.0, -0.08)], GLASS, outline=0)
    pen.shape([(0.1, -0.08), (0.1, -0.38), (0.28, -0.38), (0.45, -0.08)], GLASS, outline=0)
    pen.shape([(-1, -0.05), (0.85, -0.05), (1, 0.15), (1, 0.42), (-1, 0.42)], pen.body, outline=0.07)
    for x in (-0.52, 0.52):
        pen.oval(x, 0.42, 0.25, 0.25, INK, outline=0)
        pen.oval(x, 0.42, 0.1, 0.1, GREY, outline=0)


def _cup(pen: Pen) -> None:
    pen.stroke([(0.45, -0.1), (0.9, -0.1), (0.9, 0.35), (0.4, 0.45)], _shade(pen.body, 0.75), 0.15)
    pen.shape([(-0.6, -0.3), (0.6, -0.3), (0.42, 0.75), (-0.42, 0.75)], pen.body, outline=0.07)
    pen.oval(0, -0.3, 0.6, 0.15, BROWN, outline=0.07)
    pen.stroke([(-0.2, -0.5), (-0.08, -0.7), (-0.25, -0.95)], WHITE, 0.1)
    pen.stroke([(0.2, -0.5), (0.32, -0.7), (0.15, -0.95)], WHITE, 0.1)


def _snowman(pen: Pen) -> None:
    pen.stroke([(-0.35, 0.1), (-0.8, -0.2)], BROWN, 0.08)
    pen.stroke([(0.35, 0.1), (0.8, -0.2)], BROWN, 0.08)
    pen.oval(0, 0.45, 0.55, 0.52, WHITE, outline=0.07)
    pen.oval(0, -0.25, 0.37, 0.37, WHITE, outline=0.07)
    pen.box(-0.25, -0.98, 0.25, -0.55, INK, outline=0)
    pen.box(-0.42, -0.62, 0.42, -0.5, INK, outline=0)
    pen.oval(-0.14, -0.3, 0.06, 0.06, INK, outline=0)
    pen.oval(0.14, -0.3, 0.06, 0.06, INK, outline=0)
    pen.shape([(0, -0.2), (0.4, -0.1), (0, -0.08)], ORANGE, outline=0)


def _planet(pen: Pen) -> None:
    pen.oval(0, 0, 0.62, 0.62, pen.body, outline=0.07)
    pen.stroke([(-0.5, -0.25), (0.5, -0.28)], _shade(pen.body, 1.25), 0.12)
    pen.stroke([(-0.54, 0.25), (0.52, 0.22)], _shade(pen.body, 0.8), 0.14)
    pen.stroke([(-0.62, -0.02), (-0.98, 0.14), (-0.6, 0.22), (0.2, 0.12), (0.95, -0.16), (0.62, -0.18)], CREAM, 0.12)


# --- Glyphs with several meanings, medium and tiny: what they are depends on what they are with. ---


def _disc(pen: Pen) -> None:
    """Sun, ball or orange."""
    pen.oval(0, 0, 0.95, 0.95, ORANGE, outline=0.09)
    pen.oval(-0.3, -0.32, 0.25, 0.22, (250, 190, 104), outline=0)


def _triangle(pen: Pen) -> None:
    """Sail or tent."""
    pen.shape([(0, -0.95), (0.9, 0.8), (-0.9, 0.8)], WHITE, outline=0.08)
    pen.shape([(0, -0.85), (0.82, 0.75), (0.15, 0.75)], (206, 204, 206), outline=0)


def _spark(pen: Pen) -> None:
    """Lamp or star."""
    rays = [(cos * r, sin * r) for (cos, sin), r in zip(_CIRCLE[::4], (1.1, 0.5) * 4, strict=True)]
    pen.shape(rays, (255, 236, 140), outline=0.12)


def _berry(pen: Pen) -> None:
    """Buoy or cherry."""
    pen.stroke([(0.1, -0.3), (0.5, -1)], INK, 0.22)
    pen.oval(0, 0.2, 0.8, 0.8, RED, outline=0.12)
    pen.oval(-0.25, -0.05, 0.25, 0.22, (250, 190, 180), outline=0)


# --- Tiny glyphs of one meaning ---


def _bird(pen: Pen) -> None:
    pen.stroke([(-1, -0.35), (-0.5, -0.6), (0, 0.2), (0.5, -0.6), (1, -0.35)], INK, 0.34)


def _bee(pen: Pen) -> None:
    pen.oval(-0.2, -0.5, 0.35, 0.5, WHITE, outline=0)
    pen.oval(0.3, -0.5, 0.35, 0.5, WHITE, outline=0)
    pen.oval(0, 0.2, 0.95, 0.6, GOLD, outline=0)
    for x in (-0.45, 0.0, 0.45):
        pen.stroke([(x, -0.35), (x, 0.75)], INK, 0.24)


# --- Clutter: it bears no label, and shares outlines with what does. ---


def _pebble(pen: Pen) -> None:
    pen.shape([(-0.9, 0.2), (-0.4, -0.6), (0.4, -0.7), (0.95, 0.1), (0.4, 0.65), (-0.5, 0.6)], pen.body)


def _leaf(pen: Pen) -> None:
    pen.shape([(-1, 0), (-0.4, -0.42), (0.4, -0.38), (1, 0), (0.4, 0.38), (-0.4, 0.42)], pen.body)
    pen.stroke([(-0.9, 0), (0.9, 0)], _shade(pen.body, 0.6), 0.08)


def _round(pen: Pen) -> None:
    pen.oval(0, 0, 0.95, 0.95, pen.body, outline=0.09)
    pen.oval(-0.3, -0.32, 0.25, 0.22, _shade(pen.body, 1.3), outline=0)


def _wedge(pen: Pen) -> None:
    pen.shape([(0, -0.95), (0.9, 0.8), (-0.9, 0.8)], pen.body, outline=0.08)
    pen.shape([(0, -0.85), (0.82, 0.75), (0.15, 0.75)], _shade(pen.body, 0.8), outline=0)


def _crate(pen: Pen) -> None:
    pen.box(-0.8, -0.7, 0.8, 0.7, pen.body)
    pen.stroke([(-0.8, 0), (0.8, 0)], _shade(pen.body, 0.6), 0.07)
    pen.stroke([(0, -0.7), (0, 0.7)], _shade(pen.body, 0.6), 0.07)


def _bush(pen: Pen) -> None:
    for x, y, r in ((-0.55, 0.2, 0.45), (0.55, 0.2, 0.45), (0, -0.2, 0.6)):
        pen.oval(x, y, r, r, pen.body)
    pen.oval(0, 0.25, 0.7, 0.4, pen.body, outline=0)


def _ring(pen: Pen) -> None:
    pen.stroke([*((0.8 * x, 0.8 * y) for x, y in _CIRCLE), (0.8, 0.0)], pen.body, 0.3)


def _tuft(pen: Pen) -> None:
    for x, y in ((-0.95, -0.2), (-0.5, -0.7), (0, -0.95), (0.5, -0.7), (0.95, -0.2)):
        pen.stroke([(0.2 * x, 0.9), (0.6 * x, 0.1), (x, y)], pen.body, 0.15)


@dataclass(frozen=True)
class Clutter:
    """A glyph without a label: its colours, and the size classes it comes in."""

    draw: Callable[[Pen], None]
    colours: tuple[Colour, ...]
    size_classes: tuple[str, ...] = ("large", "medium", "tiny")


# Round things are never orange or red, and wedges never white: those would be glyphs.
CLUTTER: tuple[Clutter, ...] = (
    Clutter(_pebble, MUTED_COLOURS),
    Clutter(_bush, MUTED_COLOURS),
    Clutter(_round, MUTED_COLOURS),
    Clutter(_wedge, MUTED_COLOURS + VIVID_COLOURS),
    Clutter(_crate, MUTED_COLOURS + VIVID_COLOURS + (WHITE,)),
    Clutter(_leaf, MUTED_COLOURS + VIVID_COLOURS + (WHITE,)),
    Clutter(_ring, MUTED_COLOURS + VIVID_COLOURS + (WHITE,), ("medium", "tiny")),
    Clutter(_tuft, MUTED_COLOURS + VIVID_COLOURS + (WHITE,), ("medium", "tiny")),
)

# --- The labels ---


@dataclass(frozen=True)
class SceneLabel:
    """One label of the data set.

    Attributes:
        name: As it stands in `labels.csv`.
        families: Families it belongs to; none for a property of the whole scene.
        size_class: "large", "medium" or "tiny"; "scene" for a property of the whole scene.
        probability: How often it is drawn where one of its families is present and nothing forbids it.
        draw: Its glyph. Labels with the same glyph cannot be told apart by their pixels.
    """

    name: str
    families: tuple[str, ...]
    size_class: str
    probability: float
    draw: Callable[[Pen], None] | None = None


LABELS: tuple[SceneLabel, ...] = (
    SceneLabel("ship", ("sea",), "large", 0.46, _ship),
    SceneLabel("fish", ("sea",), "medium", 0.5, _fish),
    SceneLabel("sail", ("sea",), "medium", 0.4, _triangle),
    SceneLabel("sun", ("sea",), "medium", 0.45, _disc),
    SceneLabel("buoy", ("sea",), "tiny", 0.35, _berry),
    SceneLabel("bird", ("sea", "farm", "mountain"), "tiny", 0.35, _bird),
    SceneLabel("barn", ("farm",), "large", 0.48, _barn),
    SceneLabel("cow", ("farm",), "medium", 0.6, _cow),
    SceneLabel("bee", ("farm", "table"), "tiny", 0.35, _bee),
    SceneLabel("tower", ("city",), "large", 0.48, _tower),
    SceneLabel("car", ("city",), "medium", 0.6, _car),
    SceneLabel("ball", ("city",), "medium", 0.35, _disc),
    SceneLabel("lamp", ("city",), "tiny", 0.4, _spark),
    SceneLabel("teapot", ("table",), "large", 0.44, _teapot),
    SceneLabel("cup", ("table",), "medium", 0.6, _cup),
    SceneLabel("orange", ("table",), "medium", 0.45, _disc),
    SceneLabel("cherry", ("table",), "tiny", 0.45, _berry),
    SceneLabel("pine", ("mountain",), "large", 0.5, _pine),
    SceneLabel("snowman", ("mountain",), "medium", 0.45, _snowman),
    SceneLabel("tent", ("mountain",), "medium", 0.45, _triangle),
    SceneLabel("rocket", ("space",), "large", 0.52, _rocket),
    SceneLabel("planet", ("space",), "medium", 0.55, _planet),
    SceneLabel("star", ("space",), "tiny", 0.55, _spark),
    SceneLabel("night", (), "scene", 0.22),
    SceneLabel("fog", (), "scene", 0.15),
)
LABEL_NAMES: tuple[str, ...] = tuple(label.name for label in LABELS)

# How often a family is chosen: a long tail from the sea to space.
_FAMILY_WEIGHTS = {"sea": 0.24, "city": 0.2, "table": 0.18, "farm": 0.15, "mountain": 0.13, "space": 0.1}
FAMILIES: dict[str, tuple[str, ...]] = {
    family: tuple(label.name for label in LABELS if family in label.families) for family in _FAMILY_WEIGHTS
}

# Side of a glyph in pixels of an image of 96 pixels, and its greatest tilt in degrees.
SIZES_PX = {"large": (45, 78), "medium": (18, 30), "tiny": (6, 9)}
_TILTS_DEG = {"large": 18, "medium": 28, "tiny": 40}

_PROBABILITY_OF_SECOND_FAMILY = 0.32
_PROBABILITY_OF_LAMP_AT_NIGHT = 0.75
_MOST_HAZE = 0.25
_SUPERSAMPLING = 3

# --- Which labels a scene has ---


def _glyph_owners(draw: Callable[[Pen], None] | None) -> list[SceneLabel]:
    return [label for label in LABELS if label.draw is draw]


def _is_ambiguous(label: SceneLabel) -> bool:
    return len(_glyph_owners(label.draw)) > 1


def _is_anchor(label: SceneLabel) -> bool:
    """Whether the label, seen alone, gives its family away."""
    return label.size_class in ("large", "medium") and len(label.families) == 1 and not _is_ambiguous(label)


def _choose_labels(rng: np.random.Generator) -> list[SceneLabel]:
    """Draw a scene's labels: whole-scene properties, one or two families, and their members.

    An ambiguous glyph is drawn only where exactly one present family has a meaning for it, and every family present
    shows at least one anchor: so the picture as a whole decides every label.
    """
    scene = [label for label in LABELS if not label.families and rng.random() < label.probability]
    is_night = any(label.name == "night" for label in scene)
    num_families = 1 + int(rng.random() < _PROBABILITY_OF_SECOND_FAMILY)
    families = rng.choice(list(_FAMILY_WEIGHTS), size=num_families, replace=False, p=list(_FAMILY_WEIGHTS.values()))

    members = [label for label in LABELS if set(label.families) & set(families)]
    chosen = []
    for label in members:
        probability = label.probability
        if label.name == "lamp" and is_night:
            probability = _PROBABILITY_OF_LAMP_AT_NIGHT
        if label.name == "sun" and is_night:
            probability = 0.0
        if any(other.draw is label.draw and other is not label for other in members):
            probability = 0.0
        if rng.random() < probability:
            chosen.append(label)

    for family in families:
        anchors = [label for label in members if _is_anchor(label) and family in label.families]
        if not set(anchors) & set(chosen):
            chosen.append(anchors[int(rng.integers(len(anchors)))])
    return chosen + scene


# --- Painting ---


@dataclass
class _Composition:
    """The canvas and the circles already taken on it, all in canvas pixels."""

    image: Image.Image
    rng: np.random.Generator
    unit: float  # canvas pixels for a pixel of an image of 96 pixels
    air: Colour = GREY  # what hazy things fade into
    taken: list[tuple[float, float, float]] = field(default_factory=list)

    def put(
        self, draw: Callable[[Pen], None], size_class: str, colours: Sequence[Colour], *, takes: bool = True
    ) -> None:
        """Draw a glyph where it covers little of what is there."""
        rng = self.rng
        radius = self.unit * rng.uniform(*SIZES_PX[size_class]) / 2
        centre = self._find_place(radius)
        if takes:
            self.taken.append((*centre, radius))
        gain = rng.uniform(0.82, 1.14) * rng.uniform(0.92, 1.08, size=3)
        pen = Pen(
            ImageDraw.Draw(self.image),
            centre,
            radius,
            tilt=float(np.deg2rad(rng.uniform(-1, 1) * _TILTS_DEG[size_class])),
            mirror=1 if rng.random() < 0.5 else -1,
            gain=(float(gain[0]), float(gain[1]), float(gain[2])),
            haze=float(rng.uniform(0, _MOST_HAZE)),
            air=self.air,
            body=colours[int(rng.integers(len(colours)))],
        )
        draw(pen)

    def put_clutter(self, size_class: str, *, takes: bool = True) -> None:
        """Draw something that bears no label."""
        choices = [clutter for clutter in CLUTTER if size_class in clutter.size_classes]
        clutter = choices[int(self.rng.integers(len(choices)))]
        self.put(clutter.draw, size_class, clutter.colours, takes=takes)

    def _find_place(self, radius: float) -> Point:
        """The best of ten random places; up to a quarter of the radius may stick out."""
        side = self.image.width
        margin = min(0.75 * radius, 0.5 * side)
        places = self.rng.uniform(margin, side - margin, size=(10, 2))
        overlaps = np.zeros(len(places))
        for x, y, other in self.taken:
            gaps = np.hypot(places[:, 0] - x, places[:, 1] - y)
            # Counted in radii of the smaller of the two, which is the one that could vanish.
            overlaps += np.maximum(0, radius + other - gaps) / min(radius, other)
        x, y = places[int(overlaps.argmin())]
        return float(x), float(y)


def _paint_background(rng: np.random.Generator, side: int) -> Image.Image:
    """A blotchy gradient between two colours, and up to three hills; the same for all families."""
    top, bottom = (
        np.array(BACKGROUND_COLOURS[i], dtype=np.float64) for i in rng.integers(len(BACKGROUND_COLOURS), size=2)
    )
    height = np.linspace(0, 1, 6)[:, None, None] + rng.uniform(-0.4, 0.4) * np.linspace(-1, 1, 6)[None, :, None]
    grid = top + np.clip(height, 0, 1) * (bottom - top) + rng.normal(0, 9, size=(6, 6, 3))  # (6, 6, 3)
    grid *= rng.uniform(0.75, 1.08)
    image = Image.fromarray(grid.clip(0, 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)

    canvas = ImageDraw.Draw(image)
    x = np.linspace(0, side, 25)
    for level in np.sort(rng.uniform(0.35, 0.95, size=int(rng.integers(4)))):
        phase, waves, rise = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.6), rng.uniform(0.02, 0.1)
        y = side * (level + rise * np.sin(phase + 2 * np.pi * waves * x / side))
        colour = BACKGROUND_COLOURS[int(rng.integers(len(BACKGROUND_COLOURS)))]
        fill = _shade(colour, float(rng.uniform(0.7, 1.05)))
        canvas.polygon([(0, side), *zip(x.tolist(), y.tolist(), strict=True), (side, side)], fill=fill)
    return image


def _paint_weather(image: Image.Image, rng: np.random.Generator, *, is_night: bool, is_foggy: bool) -> Image.Image:
    """Fog, then night, then the contrast, brightness and grain of the picture itself."""
    pixels = np.asarray(image, dtype=np.float64)  # (H, W, 3)
    side = image.width
    if is_foggy:
        thickness = rng.uniform(0.3, 0.6) + rng.uniform(-0.25, 0.25) * np.linspace(-1, 1, side)[:, None, None]
        pixels += np.clip(thickness, 0.15, 0.75) * (rng.uniform(195, 225) * np.array([0.98, 1.0, 1.02]) - pixels)
    if is_night:
        pixels *= rng.uniform(0.6, 0.95) * np.array([0.55, 0.66, 0.92])
    mean = pixels.mean()
    pixels = mean + rng.uniform(0.7, 1.15) * (pixels - mean)
    pixels *= rng.uniform(0.85, 1.1)
    pixels += rng.uniform(1, 6) * rng.standard_normal(size=(side, side, 1))
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def draw_scene(seed: int, split: str, index: int, *, size: int = 96) -> tuple[Image.Image, Int8[np.ndarray, " L"]]:
    """Draw one image of the data set.

    The labels depend on the seed, the split and the index alone; the size only scales the picture.

    Args:
        seed: Seed of the data set, 0 or more.
        split: "train", "val" or "test".
        index: Position in the split.
        size: Height and width in pixels.

    Returns:
        The picture, and its target: 1 for the labels that are present, 0 for all others.

    Raises:
        DataError: There is no such split.

    Example:
        >>> image, target = draw_scene(0, "train", 0)
        >>> image.size, target.shape
        ((96, 96), (25,))
        >>> [LABEL_NAMES[i] for i in target.nonzero()[0]]
        ['fish', 'pine']
    """
    if split not in SPLITS:
        raise DataError(f"scenes have the splits {', '.join(SPLITS)}, not '{split}'. Choose one of these.")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    labels = _choose_labels(rng)
    present = {label.name for label in labels}

    side = size * _SUPERSAMPLING
    background = _paint_background(rng, side)
    red, green, blue = np.asarray(background.resize((1, 1), Image.Resampling.BOX))[0, 0].tolist()
    scene = _Composition(background, rng, unit=side / 96, air=(red, green, blue))
    for size_class, most in (("large", 1), ("medium", 2), ("tiny", 4)):
        for _ in range(int(rng.integers(most + 1))):
            scene.put_clutter(size_class, takes=False)
        for label in labels:
            if label.size_class == size_class and label.draw is not None:
                for _ in range(int(rng.integers(1, 4)) if size_class == "tiny" else 1):
                    scene.put(label.draw, size_class, BODY_COLOURS)
    # A little of what lies in front: it covers parts of the large things.
    for _ in range(int(rng.integers(3))):
        scene.put_clutter("medium")

    picture = _paint_weather(
        scene.image.reduce(_SUPERSAMPLING), rng, is_night="night" in present, is_foggy="fog" in present
    )
    target = np.array([name in present for name in LABEL_NAMES], dtype=np.int8)  # (L,)
    return picture, target


# --- Writing ---


def write_scenes(
    out_dir: str | Path,
    *,
    seed: int = 0,
    num_train: int = 2000,
    num_val: int = 500,
    num_test: int = 500,
    size: int = 96,
    num_workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write the data set as a folder of JPEG images and a table of their labels.

    The folder holds `images/<split>/00000.jpg` and so on, `labels.csv` with the columns path, labels (separated by
    `|`) and split, and `scenes.json` with what it was made from. It appears only when it is complete. A folder that
    already holds the same scenes is left as it is.

    Args:
        out_dir: Where to write; new or empty, or complete scenes with the same parameters.
        seed: Seed of the data set, 0 or more; "the data set" is seed 0 with the default counts and size.
        num_train: Images of the train split.
        num_val: Images of the val split.
        num_test: Images of the test split.
        size: Height and width of the images in pixels.
        num_workers: Threads that draw; by default one per processor, at most four. They do not change the result.
        progress: Called after every image with the number of images written so far.

    Returns:
        The folder.

    Raises:
        DataError: A parameter is out of range, or `out_dir` holds something else, or scenes that are damaged.

    Example:
        >>> folder = write_scenes(getfixture("tmp_path") / "scenes", num_train=3, num_val=1, num_test=1)
        >>> print((folder / "labels.csv").read_text().splitlines()[0])
        path,labels,split
    """
    counts = {"train": num_train, "val": num_val, "test": num_test}
    num_threads = min(4, os.cpu_count() or 1) if num_workers is None else num_workers
    if seed < 0 or min(counts.values()) < 0 or size < 16 or num_threads < 1:
        raise DataError(
            "scenes need a seed and counts of 0 or more, a size of at least 16 pixels and at least 1 worker; got "
            f"seed {seed}, counts {num_train}, {num_val}, {num_test}, size {size} and {num_threads} workers. "
            "Change the parameter that is too small."
        )
    folder = Path(out_dir).resolve()
    parameters = {"generator_version": GENERATOR_VERSION, "seed": seed, "size": size, "counts": counts}
    if _is_taken(folder):
        _check_written(folder, parameters)
        return Path(out_dir)

    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir(parents=True)
    try:
        rows = _write_images(partial, seed, size, counts, num_threads, progress)
        table = "".join(["path,labels,split\n", *rows]).encode()
        (partial / "labels.csv").write_bytes(table)
        record = {**parameters, "labels_sha256": hashlib.sha256(table).hexdigest()}
        (partial / "scenes.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if _is_taken(folder):  # Another run was faster.
            _check_written(folder, parameters)
        else:
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Path(out_dir)


def _write_images(
    folder: Path,
    seed: int,
    size: int,
    counts: dict[str, int],
    num_threads: int,
    progress: Callable[[int], None] | None,
) -> list[str]:
    """Draw and save all images; the rows of their table, in order."""
    for split in SPLITS:
        (folder / "images" / split).mkdir(parents=True)

    def write_one(split: str, index: int) -> str:
        image, target = draw_scene(seed, split, index, size=size)
        path = f"images/{split}/{index:05d}.jpg"
        # Full colour resolution: a tiny glyph is mostly its colour.
        image.save(folder / path, quality=90, subsampling=0)
        return f"{path},{'|'.join(LABEL_NAMES[i] for i in target.nonzero()[0])},{split}\n"

    rows: list[str] = []
    pool = ThreadPoolExecutor(num_threads)
    try:
        for job in [pool.submit(write_one, split, index) for split in SPLITS for index in range(counts[split])]:
            rows.append(job.result())
            if progress is not None:
                progress(len(rows))
    finally:
        pool.shutdown(cancel_futures=True)
    return rows


def _is_taken(folder: Path) -> bool:
    """Whether there is anything at the path but an empty folder."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _check_written(folder: Path, parameters: dict[str, object]) -> None:
    """Raise unless the folder holds complete scenes made from these parameters."""
    remedy = "Choose another folder, or delete this one."
    try:
        record = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
        found = {key: record[key] for key in parameters}
        labels_sha256 = record["labels_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"expected a new folder or written scenes, but {folder} holds something else. {remedy}"
        ) from None
    if found != parameters:
        raise DataError(f"expected scenes with {parameters}, but {folder} holds scenes with {found}. {remedy}")

    try:
        table = (folder / "labels.csv").read_bytes()
    except OSError:
        table = b""
    paths = [line.split(",")[0] for line in table.decode(errors="replace").splitlines()[1:]]
    missing = [path for path in paths if not (folder / path).is_file()]
    if hashlib.sha256(table).hexdigest() != labels_sha256 or missing:
        damage = f"images are missing ({len(missing)})" if missing else "labels.csv was changed"
        raise DataError(f"expected complete scenes, but in {folder} {damage}. {remedy}")
