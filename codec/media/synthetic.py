"""Pictures that are no photographs, made from a seed: text, screens, charts, patterns, test charts, noise.

What a codec of photographs breaks on is what nobody photographs: hatching two pixels wide, pure green beside magenta,
text of one colour on another. These pictures hold such content of every kind, for training (``train/photo.py``) and for
benchmarks (``codec bench image --set synthetic``). They lie here, in the part of the package that makes and reads
pictures, because both use them and neither imports the other.

Picture ``index`` of seed ``seed`` is of kind ``index % len(KINDS)`` and depends on these two numbers and the fonts
alone. Without ``fonts`` text is set in the font that comes with Pillow, so that a benchmark draws the same everywhere,
as far as versions of Pillow and FreeType do; training adds those of Matplotlib (``train/data/fonts.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .synthetic_brush import PURE, Brush, Colour, Pixels, Size

SIZES: tuple[Size, ...] = ((384, 512), (512, 384), (384, 384), (320, 480))
BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) / 16 + 1 / 32


# ---------------------------------------------------------------- kinds


def text(brush: Brush) -> Pixels:
    """A page of small text, perhaps in columns, perhaps with lines of other colours."""
    back, front = brush.pair()
    image, draw = brush.canvas(back)
    columns, margin = brush.number(1, 2), brush.number(4, 24)
    width = (brush.width - margin) // columns
    for column in range(columns):
        y = margin
        while y < brush.height - 20:
            points, end = brush.number(8, 22), min(brush.height, y + brush.number(40, 220))
            colour = front if brush.chance(0.8) else brush.pair()[1]
            left = margin + column * width
            brush.paragraph(draw, (left, y, left + width - margin, end), points, colour)
            y = end + 4
    image.paste(back, (brush.width - margin, 0, brush.width, brush.height))
    return brush.finished(image)


def poster(brush: Brush) -> Pixels:
    """A few words, large, coloured, some of them turned."""
    image, _ = brush.canvas(brush.colour())
    for _ in range(brush.number(3, 9)):
        points = brush.number(18, 120)
        layer = Image.new("L", (points * 8, round(points * 1.5)))
        ImageDraw.Draw(layer).text((4, 0), brush.words(brush.number(1, 2)), fill=255, font=brush.font(points))
        if brush.chance(0.4):
            layer = layer.rotate(brush.number(-90, 90), expand=True, resample=Image.Resampling.BICUBIC)
        at = (brush.number(-points, brush.width - points), brush.number(-points, brush.height - points))
        image.paste(Image.new("RGB", layer.size, brush.colour()), at, layer)
    return brush.finished(image)


def screenshot(brush: Brush) -> Pixels:
    """Windows with bars, menus, buttons, fields and lines of code."""
    dark = brush.chance(0.5)
    image, draw = brush.canvas(brush.colour() if brush.chance(0.3) else ((30, 32, 38) if dark else (236, 238, 242)))
    for _ in range(brush.number(1, 4)):
        w, h = brush.number(140, brush.width), brush.number(100, brush.height)
        x, y = brush.number(0, brush.width - w), brush.number(0, brush.height - h)
        shade = brush.number(20, 48) if dark else brush.number(240, 255)
        body = (shade, shade, min(255, shade + brush.number(0, 10)))
        front = (220, 220, 220) if dark else (20, 20, 20)
        draw.rectangle((x, y, x + w - 1, y + h - 1), fill=body, outline=(128, 128, 128))
        bar = brush.number(18, 30)
        accent = brush.colour()
        draw.rectangle((x, y, x + w - 1, y + bar), fill=accent if brush.chance(0.4) else body)
        draw.text((x + 8, y + 3), brush.words(3), fill=front, font=brush.font(12))
        for k in range(3):
            draw.ellipse((x + w - 16 * (k + 1), y + 6, x + w - 16 * (k + 1) + 10, y + 16), fill=brush.colour())
        line = brush.number(14, 20)
        indent = 0
        for top in range(y + bar + 6, y + h - line, line):
            kind = brush.rng.random()
            if kind < 0.08:
                draw.rounded_rectangle((x + 12, top, x + 90, top + line - 3), 4, fill=accent, outline=front)
                draw.text((x + 20, top), brush.word(), fill=body, font=brush.font(11))
            elif kind < 0.14:
                draw.rectangle((x + 12, top, x + w - 14, top + line - 3), outline=(140, 140, 140))
            elif kind < 0.2:
                draw.line((x, top + 4, x + w - 1, top + 4), fill=(150, 150, 150))
            else:
                indent = max(0, indent + brush.number(-1, 1)) % 5
                left = x + 10 + 16 * indent
                for _ in range(brush.number(1, 4)):  # words of their own colours, as code has
                    word = brush.word() + " "
                    colour = front if brush.chance(0.5) else brush.colour()
                    font = brush.font(12)
                    if left + font.getlength(word) > x + w - 6:
                        break
                    draw.text((left, top), word, fill=colour, font=font)
                    left += round(font.getlength(word))
    return brush.finished(image)


def bars(brush: Brush) -> Pixels:
    """A bar chart with axes and labels."""
    back, front = brush.pair()
    image, draw = brush.canvas(back)
    n, left, bottom = brush.number(3, 24), brush.number(30, 60), brush.height - brush.number(24, 50)
    step = (brush.width - left - 10) / n
    colours = [brush.colour() for _ in range(brush.number(1, 4))]
    for y in range(20, bottom, brush.number(20, 60)):
        draw.line((left, y, brush.width - 8, y), fill=(190, 190, 190))
        draw.text((4, y - 6), str(brush.number(0, 999)), fill=front, font=brush.font(10))
    for k in range(n):
        top = brush.number(20, bottom - 4)
        x = left + step * k
        edge = front if brush.chance(0.3) else None
        draw.rectangle((x + 2, top, x + step * 0.8, bottom), fill=colours[k % len(colours)], outline=edge)
        draw.text((x + 2, bottom + 3), brush.word()[:5], fill=front, font=brush.font(9))
    draw.line((left, 10, left, bottom, brush.width - 8, bottom), fill=front, width=brush.number(1, 3))
    draw.text((left, 2), brush.words(4), fill=front, font=brush.font(14))
    return brush.finished(image)


def lines(brush: Brush) -> Pixels:
    """A line chart: curves over a grid, thin or thick, hard or soft edges."""
    factor = brush.number(1, 3)
    back, front = brush.pair()
    image, draw = brush.canvas(back, factor)
    width, height = image.size
    pitch = brush.number(16, 60) * factor
    for place in range(pitch, max(width, height), pitch):
        draw.line((place, 0, place, height), fill=(200, 200, 200))
        draw.line((0, place, width, place), fill=(200, 200, 200))
    for _ in range(brush.number(1, 7)):
        n = brush.number(4, 120)
        y = np.cumsum(brush.rng.normal(size=n))
        y = (y - y.min()) / max(float(np.ptp(y)), 1e-6) * brush.rng.uniform(0.3, 0.9) + brush.rng.uniform(0, 0.1)
        points = list(zip(np.linspace(0, width, n).tolist(), ((1 - y) * height).tolist(), strict=True))
        colour = brush.colour()
        draw.line(points, fill=colour, width=brush.number(1, 4) * factor, joint="curve")
        for px, py in points if brush.chance(0.3) else []:
            draw.ellipse((px - 3 * factor, py - 3 * factor, px + 3 * factor, py + 3 * factor), fill=colour)
    draw.text((10 * factor, 4 * factor), brush.words(5), fill=front, font=brush.font(14 * factor))
    return brush.finished(image)


def pie(brush: Brush) -> Pixels:
    """A pie chart with a legend."""
    factor = brush.number(1, 3)
    back, front = brush.pair()
    image, draw = brush.canvas(back, factor)
    radius = min(image.size) * brush.rng.uniform(0.2, 0.42)
    x, y = image.size[0] * brush.rng.uniform(0.4, 0.6), image.size[1] * brush.rng.uniform(0.45, 0.55)
    share = brush.rng.dirichlet(np.full(brush.number(2, 12), 2.0))
    angle = 360 * np.concatenate([[0], np.cumsum(share)]) + brush.number(0, 360)
    edge = front if brush.chance(0.4) else None
    for k in range(len(share)):
        colour = brush.colour()
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.pieslice(box, float(angle[k]), float(angle[k + 1]), fill=colour, outline=edge)
        top = (8 + 18 * k) * factor
        draw.rectangle((6 * factor, top, 18 * factor, top + 12 * factor), fill=colour, outline=edge)
        draw.text((22 * factor, top), brush.word(), fill=front, font=brush.font(11 * factor))
    if brush.chance(0.3):
        radius /= 2
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=back)
    return brush.finished(image)


def line_art(brush: Brush) -> Pixels:
    """Curves, polygons and arcs, outlined, some of them filled."""
    factor = brush.number(1, 3)
    back, front = brush.pair()
    image, draw = brush.canvas(back, factor)
    width, height = image.size
    several = brush.chance(0.4)
    for _ in range(brush.number(8, 60)):
        colour = brush.colour() if several else front
        stroke = brush.number(1, 5) if factor > 1 else brush.number(1, 3)
        a = [brush.number(-20, width + 20), brush.number(-20, height + 20)]
        b = [a[0] + brush.number(5, width // 2), a[1] + brush.number(5, height // 2)]
        kind = brush.number(0, 4)
        if kind == 0:
            draw.line((*a, brush.number(0, width), brush.number(0, height)), fill=colour, width=stroke)
        elif kind == 1:
            draw.ellipse((*a, *b), outline=colour, width=stroke, fill=brush.colour() if brush.chance(0.15) else None)
        elif kind == 2:
            draw.arc((*a, *b), brush.number(0, 360), brush.number(0, 360), fill=colour, width=stroke)
        elif kind == 3:
            t = np.linspace(0, 1, 40)[:, None]
            p = brush.rng.uniform(0, 1, (4, 2)) * (width, height)
            curve = (1 - t) ** 3 * p[0] + 3 * t * (1 - t) ** 2 * p[1] + 3 * t**2 * (1 - t) * p[2] + t**3 * p[3]
            draw.line(curve.reshape(-1).tolist(), fill=colour, width=stroke, joint="curve")
        else:
            p = np.array(a) + brush.rng.normal(size=(brush.number(3, 7), 2)) * min(width, height) / 8
            draw.polygon(p.reshape(-1).tolist(), outline=colour, fill=brush.colour() if brush.chance(0.2) else None)
    return brush.finished(image)


def _grid(brush: Brush) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    y, x = np.mgrid[: brush.height, : brush.width]
    return y, x


def _painted(mask: npt.NDArray[np.bool_], colours: tuple[Colour, Colour]) -> Pixels:
    return np.where(mask[:, :, None], np.array(colours[1], np.uint8), np.array(colours[0], np.uint8))


def _patches(brush: Brush, draw: Callable[[], Pixels]) -> Pixels:
    """The whole canvas, or patches of it beside each other, each drawn anew."""
    out = draw()
    for _ in range(0 if brush.chance(0.3) else brush.number(1, 8)):
        top, left = brush.number(0, brush.height - 32), brush.number(0, brush.width - 32)
        bottom, right = top + brush.number(32, brush.height), left + brush.number(32, brush.width)
        out[top:bottom, left:right] = draw()[top:bottom, left:right]
    return out


def hatching(brush: Brush) -> Pixels:
    """Stripes of 1 to 4 pixels along rows, columns or diagonals."""

    def draw() -> Pixels:
        y, x = _grid(brush)
        along = (y, x, y + x, y - x, y + 2 * x, 2 * y - x)[brush.number(0, 5)]
        on, off = brush.number(1, 4), brush.number(1, 4)
        return _painted(along % (on + off) < on, brush.pair())

    return _patches(brush, draw)


def checkerboard(brush: Brush) -> Pixels:
    """Squares of 1 to 32 pixels."""

    def draw() -> Pixels:
        y, x = _grid(brush)
        edge = (1, 2, 3, 4, 5, 8, 16, 32)[brush.number(0, 7)]
        return _painted((y // edge + x // edge) % 2 == 0, brush.pair())

    return _patches(brush, draw)


def barcode(brush: Brush) -> Pixels:
    """Bars of codes for products, and square codes of modules, in quiet zones."""
    back, front = brush.pair()
    out = _painted(np.zeros(brush.size, bool), (back, front))
    for _ in range(brush.number(1, 5)):
        module = brush.number(1, 6)
        if brush.chance(0.5):
            n = min(brush.number(60, 120), (brush.width - 20) // module)
            code = np.repeat(brush.rng.integers(0, 2, n) > 0, module)[None].repeat(brush.number(30, 160), 0)
        else:
            n = min(brush.number(21, 57), (min(brush.size) - 20) // module)
            code = np.kron(brush.rng.integers(0, 2, (n, n)), np.ones((module, module), int)) > 0
            finder = np.ones((7, 7), bool)
            finder[1:6, 1:6], finder[2:5, 2:5] = False, True
            finder = np.kron(finder, np.ones((module, module), bool))
            edge = len(finder)
            if edge < len(code) // 2:
                code[:edge, :edge] = code[:edge, -edge:] = code[-edge:, :edge] = finder
        code = code[: brush.height, : brush.width]
        h, w = code.shape
        top, left = brush.number(0, brush.height - h), brush.number(0, brush.width - w)
        colours = (back, front) if brush.chance(0.7) else brush.pair()
        out[top : top + h, left : left + w] = _painted(code, colours)
    return out


def _ramp(brush: Brush) -> npt.NDArray[np.float64]:
    """A smooth surface in 0..1: a direction, a ring or a few slow waves, ``[H, W]``."""
    y, x = (axis / max(brush.size) for axis in _grid(brush))
    kind = brush.number(0, 2)
    if kind == 0:
        angle = brush.rng.uniform(0, 2 * math.pi)
        surface = math.cos(angle) * x + math.sin(angle) * y
    elif kind == 1:
        surface = np.hypot(x - brush.rng.uniform(0, 1), y - brush.rng.uniform(0, 1))
    else:
        waves = brush.rng.uniform(-6, 6, (4, 3))
        surface = sum(np.sin(a * x * 2 + b * y * 2 + c) for a, b, c in waves)
    surface = surface - surface.min()
    return np.asarray(surface / max(float(surface.max()), 1e-6))


def dithering(brush: Brush) -> Pixels:
    """Gradients in few levels: an ordered pattern, or noise as threshold, or spread errors along a row."""
    levels = brush.number(1, 3)
    kind = brush.number(0, 2)
    planes = 3 if brush.chance(0.4) else 1
    out = np.zeros((*brush.size, planes))
    for k in range(planes):
        value = _ramp(brush) * levels
        if kind == 0:
            threshold = np.tile(BAYER, (-(-brush.height // 4), -(-brush.width // 4)))[: brush.height, : brush.width]
        elif kind == 1:
            threshold = brush.rng.random(brush.size)
        else:  # the sum of a row, rounded, steps where its error has grown to one
            total = np.cumsum(value, 1) + brush.rng.random((brush.height, 1))
            out[:, :, k] = np.diff(np.floor(total), axis=1, prepend=0).clip(0, levels)
            continue
        out[:, :, k] = np.floor(value + threshold).clip(0, levels)
    out = out / levels
    if planes == 1:
        back, front = (np.array(c, float) for c in brush.pair())
        out = back + (front - back) * out
    else:
        out = out * 255
    return np.round(out).astype(np.uint8)


def pixel_art(brush: Brush) -> Pixels:
    """Sprites of few colours, mirrored, every pixel a square."""
    scale = brush.number(2, 12)
    palette = np.array([brush.colour() for _ in range(brush.number(3, 12))], np.uint8)
    h, w = -(-brush.height // scale), -(-brush.width // scale)
    canvas = np.zeros((h, w), int)
    for _ in range(brush.number(4, 40)):
        edge = brush.number(5, 16)
        sprite = np.where(brush.rng.random((edge, edge)) < 0.45, 0, brush.rng.integers(1, len(palette), (edge, edge)))
        sprite = np.concatenate([sprite, sprite[:, ::-1]], 1)[:h, :w]
        top, left = brush.number(0, h - len(sprite)), brush.number(0, w - sprite.shape[1])
        part = canvas[top : top + len(sprite), left : left + sprite.shape[1]]
        part[:] = np.where(sprite, sprite, part)
    if brush.chance(0.4):  # tiles of a floor
        tile = brush.rng.integers(0, len(palette), (8, 8))
        floor = np.tile(tile, (h // 8 + 1, w // 8 + 1))[:h, :w]
        canvas[h // 2 :] = np.where(canvas[h // 2 :], canvas[h // 2 :], floor[h // 2 :])
    return np.kron(palette[canvas], np.ones((scale, scale, 1), np.uint8))[: brush.height, : brush.width]


def test_chart(brush: Brush) -> Pixels:
    """Colour bars, steps of grey, ramps, resolution wedges and a counter, as broadcasters' charts have."""
    out = np.zeros((*brush.size, 3), np.uint8)
    high = (180, 191, 255)[brush.number(0, 2)]
    order = [(1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 1, 0), (1, 0, 1), (1, 0, 0), (0, 0, 1), (0, 0, 0)]
    row = np.array(order, np.uint8)[np.arange(brush.width) * len(order) // brush.width] * np.uint8(high)
    split = [0, *sorted(brush.rng.integers(24, brush.height - 8, 4).tolist()), brush.height]
    ramp = np.linspace(0, 255, brush.width)
    steps = np.floor(np.linspace(0, 11 - 1e-6, brush.width)) * 25
    kinds = brush.rng.permutation(6).tolist()
    for kind, top, bottom in zip(kinds, split, split[1:], strict=False):
        band = out[top:bottom]
        if kind == 0:
            band[:] = row
        elif kind == 1:
            band[:] = row[::-1]
        elif kind == 2:
            band[:] = np.round(ramp)[None, :, None]
        elif kind == 3:
            band[:] = steps[None, :, None]
        elif kind == 4:
            period = 2 + np.arange(brush.width) * 8 // brush.width  # wedges of lines
            band[:] = ((np.arange(brush.width) % period) * 2 < period)[None, :, None] * 255
        else:
            hue = np.linspace(0, 6, brush.width)
            wheel = np.abs((hue[:, None] + np.array([3.0, 1.0, 5.0])) % 6 - 3) - 1
            band[:] = np.round(wheel.clip(0, 1) * 255)[None]
    image = Image.fromarray(out)
    draw = ImageDraw.Draw(image)
    if brush.chance(0.6):
        points = brush.number(30, 90)
        at = (brush.number(0, brush.width - points), brush.number(0, brush.height - points))
        draw.rectangle((*at, at[0] + points, at[1] + round(1.2 * points)), fill=brush.colour())
        draw.text((at[0] + points // 4, at[1]), str(brush.number(0, 9)), fill=brush.colour(), font=brush.font(points))
    if brush.chance(0.5):
        x, y, r = brush.width // 2, brush.height // 2, min(brush.size) // 2 - 4
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(255, 255, 255), width=brush.number(1, 3))
    return brush.finished(image)


def zone_plate(brush: Brush) -> Pixels:
    """Rings whose frequency grows with the radius, grey or with colours of their own phases."""
    y, x = _grid(brush)
    squared = (y - brush.rng.uniform(0, brush.height)) ** 2 + (x - brush.rng.uniform(0, brush.width)) ** 2
    rate = math.pi / max(brush.size) * brush.rng.uniform(0.2, 1.0)
    phases = brush.rng.uniform(0, 2 * math.pi, 3) if brush.chance(0.4) else np.zeros(3)
    wave = np.cos(squared[:, :, None] * rate + phases)
    wave = np.sign(wave) if brush.chance(0.25) else wave
    return np.round(127.5 + 127.5 * brush.rng.uniform(0.3, 1) * wave).astype(np.uint8)


def saturated(brush: Brush) -> Pixels:
    """Areas of pure colours side by side: stripes, squares, cells of the nearest point."""
    colours = np.array([PURE[k] for k in brush.rng.permutation(8)] if brush.chance(0.6) else
                       [brush.colour() for _ in range(8)], np.uint8)  # fmt: skip
    y, x = _grid(brush)
    kind, edge = brush.number(0, 2), brush.number(4, 120)
    if kind == 0:
        which = (x if brush.chance(0.5) else y) // edge
    elif kind == 1:
        which = y // edge * 3 + x // edge
    else:
        points = brush.rng.uniform(0, 1, (brush.number(3, 30), 2)) * brush.size
        distance = (y[:, :, None] - points[:, 0]) ** 2 + (x[:, :, None] - points[:, 1]) ** 2
        which = distance.argmin(2)
    n = brush.number(2, 8)
    return colours[which % n]


def gradient(brush: Brush) -> Pixels:
    """Smooth changes from one colour to another, sometimes with a ribbon across."""
    first, second, third = (np.array(brush.colour(), float) for _ in range(3))
    t = _ramp(brush)[:, :, None]
    out = first + (second - first) * t
    if brush.chance(0.4):
        out = out + (third - out) * (_ramp(brush)[:, :, None] ** 2)
    if brush.chance(0.3):
        out[_ramp(brush) > 0.8] = third
    return np.round(out.clip(0, 255)).astype(np.uint8)


def _cloud(brush: Brush, power: float) -> npt.NDArray[np.float64]:
    """Noise whose amplitude falls with the frequency to a power, mean 0, deviation 1, ``[H, W]``."""
    spectrum = np.fft.rfft2(brush.rng.normal(size=brush.size))
    fy, fx = np.fft.fftfreq(brush.height)[:, None], np.fft.rfftfreq(brush.width)[None]
    radius = np.hypot(fy, fx)
    radius[0, 0] = 1
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum / radius**power, brush.size)
    return np.asarray(field / max(float(field.std()), 1e-9))


def dark(brush: Brush) -> Pixels:
    """A dark scene: faint shapes, noise of a sensor, a few lights."""
    out = np.abs(_cloud(brush, 1.6))[:, :, None] * brush.rng.uniform(1, 14, 3)
    y, x = _grid(brush)
    for _ in range(brush.number(0, 8)):
        squared = (y - brush.number(0, brush.height)) ** 2 + (x - brush.number(0, brush.width)) ** 2
        light = np.exp(-squared / (2 * brush.rng.uniform(2, 25) ** 2))
        out = out + light[:, :, None] * np.array(brush.colour(), float)
    out = out + brush.rng.normal(size=out.shape) * brush.rng.uniform(0, 6)
    return np.round(out.clip(0, 255)).astype(np.uint8)


def noise(brush: Brush) -> Pixels:
    """Noise of any spectrum and strength, grey or coloured, between white and clouds."""
    power, same = brush.rng.uniform(0, 2), brush.chance(0.4)
    planes = [_cloud(brush, power) for _ in range(1 if same else 3)]
    out = np.array(brush.colour(), float) * 0.5 + 64 + np.stack(planes, 2) * brush.rng.uniform(4, 60)
    return np.round(out.clip(0, 255)).astype(np.uint8)


KINDS: dict[str, Callable[[Brush], Pixels]] = {
    kind.__name__: kind
    for kind in (
        text, hatching, screenshot, saturated, bars, checkerboard, poster, test_chart, lines, barcode, pie, dithering,
        line_art, zone_plate, pixel_art, gradient, dark, noise,
    )
}  # fmt: skip


def synthetic_picture(index: int, seed: int, fonts: Sequence[str] = (), size: Size | None = None) -> Pixels:
    """One picture ``[H, W, 3]`` uint8; see the module's text.

    Args:   fonts: files of fonts for text, beside Pillow's own.
            size: height and width; one of ``SIZES`` if None.
    Raises: ValueError for a negative index or seed, or a size under 192 pixels.
    """
    if index < 0 or seed < 0:
        raise ValueError("index and seed of a synthetic picture are not negative")
    if size is not None and min(size) < 192:
        raise ValueError(f"a synthetic picture has at least 192 pixels a side, got {size}")
    rng = np.random.default_rng([seed, index])
    chosen = SIZES[int(rng.integers(len(SIZES)))]
    kind = list(KINDS.values())[index % len(KINDS)]
    return kind(Brush(rng, chosen if size is None else size, fonts))


def synthetic_name(index: int) -> str:
    """What picture ``index`` shows, and its number, as in "hatching-1"."""
    return f"{list(KINDS)[index % len(KINDS)]}-{index // len(KINDS)}"


def synthetic_pictures(n: int, seed: int, fonts: Sequence[str] = ()) -> list[tuple[str, Pixels]]:
    """The first ``n`` pictures of a seed, with their names."""
    return [(synthetic_name(index), synthetic_picture(index, seed, fonts)) for index in range(n)]
