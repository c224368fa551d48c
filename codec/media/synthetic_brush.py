"""What draws synthetic pictures: a random generator, colours, words and fonts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]
Size = tuple[int, int]  # height, width
Colour = tuple[int, int, int]
SYLLABLES = (
    *("the", "of", "and", "to", "in", "is", "it", "was", "for", "on", "are", "as", "with", "his", "they", "at", "be"),
    *("this", "from", "have", "one", "had", "not", "but", "what", "all", "were", "ar", "en", "er", "an", "re", "or"),
    *("ti", "es", "st", "te", "ed", "nt", "al", "ou", "ha", "ng", "co", "le", "ma", "ri", "se", "ve", "me", "de"),
    *("hi", "ro", "ic", "ne", "ea", "ra", "ce", "li", "ch", "ll", "si"),
)


PURE = [(r, g, b) for r in (0, 255) for g in (0, 255) for b in (0, 255)]


class Brush:
    """A canvas, random numbers and fonts: what every kind of picture is drawn with."""

    def __init__(self, rng: np.random.Generator, size: Size, fonts: Sequence[str]) -> None:
        self.rng, self.size, self.fonts = rng, size, fonts
        self.height, self.width = size

    def number(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def colour(self) -> Colour:
        """Any colour; a third of them are corners of the cube, a fifth grey."""
        kind = self.rng.random()
        if kind < 1 / 3:
            return PURE[self.number(0, 7)]
        if kind < 1 / 3 + 1 / 5:
            grey = self.number(0, 255)
            return grey, grey, grey
        r, g, b = self.rng.integers(0, 256, 3).tolist()
        return r, g, b

    def pair(self) -> tuple[Colour, Colour]:
        """Background and foreground that differ; black on white or the reverse in half of all cases."""
        if self.chance(0.5):
            return ((255, 255, 255), (0, 0, 0)) if self.chance(0.7) else ((0, 0, 0), (255, 255, 255))
        while True:
            first, second = self.colour(), self.colour()
            if sum(abs(a - b) for a, b in zip(first, second, strict=True)) > 150:
                return first, second

    def canvas(self, colour: Colour, factor: int = 1) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        image = Image.new("RGB", (self.width * factor, self.height * factor), colour)
        return image, ImageDraw.Draw(image)

    def finished(self, image: Image.Image) -> Pixels:
        """Pixels; what was drawn larger is reduced, so that its edges are soft."""
        if image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), Image.Resampling.BOX)
        return np.array(image)

    def font(self, points: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        if self.fonts and self.chance(0.85):
            return _font(self.fonts[self.number(0, len(self.fonts) - 1)], points)
        return ImageFont.load_default(points)

    def word(self) -> str:
        if self.chance(0.12):
            return str(self.number(0, 99999))
        word = "".join(SYLLABLES[self.number(0, len(SYLLABLES) - 1)] for _ in range(self.number(1, 3)))
        word = word.capitalize() if self.chance(0.15) else word.upper() if self.chance(0.05) else word
        return word + (",.;:!?)"[self.number(0, 6)] if self.chance(0.15) else "")

    def words(self, n: int) -> str:
        return " ".join(self.word() for _ in range(n))

    def paragraph(self, draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], points: int, colour: Colour) -> None:
        """Lines of text that fill a box (left, top, right, bottom)."""
        font, line = self.font(points), round(points * 1.3)
        n = max(1, round((box[2] - box[0]) / (2.6 * points)))
        for y in range(box[1], box[3] - line, line):
            if not self.chance(0.07):
                draw.text((box[0], y), self.words(n), fill=colour, font=font)


@lru_cache(maxsize=512)
def _font(path: str, points: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, points)
