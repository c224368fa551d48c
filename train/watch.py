"""Where a run can be watched: ``OUT/curves.csv``, ``OUT/progress.html``, TensorBoard if it is installed, and alarms.

The page is one file without scripts or network, written anew at every evaluation: a chart for each number, and held-out
media before and after. TensorBoard reads ``OUT/tensorboard``.
"""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..codec.metrics.spectrogram import QUIET, levels, spectrogram
from ..tokenizers.folders import CURVES_FILE as CURVES
from .state import Attributes

PAGE, BOARD = "progress.html", "tensorboard"
COLUMNS = ("step", "seconds", "share", "stage", "name", "of", "value")
SECONDS = 10.0  # from one row of losses to the next
POINTS = 400  # of a line on the page, at most
WIDTH, HEIGHT = 420, 200  # of a chart in pixels
EDGE = 512  # of a sample in pixels, at most
WON = 0.95  # share of real and decoded media that a discriminator tells apart once it has won
WAITED = 0.1  # of the time
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a")  # Okabe and Ito
STYLE = (
    "body{font:14px sans-serif;margin:2em;max-width:1400px}svg{background:#fafafa}.alarm{color:#b00}"
    "figure{display:inline-block;margin:8px}img{max-height:256px;margin:2px}"
)
SAMPLES = 3  # held-out media that are shown

Point = tuple[Any, ...]  # as COLUMNS say; seconds are those of the stage
Sample = tuple[str, np.ndarray, np.ndarray]  # name, and pictures of the original and of what came back, uint8 [H, W, 3]


def pixels(x: Tensor) -> np.ndarray:
    """A picture ``[..., 3, H, W]`` in [0, 1] as uint8 ``[H, W, 3]``."""
    return (255 * x.detach().float().view(3, *x.shape[-2:]).clamp(0, 1)).round().byte().permute(1, 2, 0).cpu().numpy()


def pictures(*media: Tensor) -> Iterator[np.ndarray]:
    """Pictures ``[1, 3, H, W]`` in [0, 1], uint8 ``[H, W, 3]`` each."""
    return map(pixels, media)


def last_frames(*clips: Tensor) -> Iterator[np.ndarray]:
    """The last frames of clips ``[1, 3, T, H, W]`` in [0, 1]."""
    return pictures(*(clip[:, :, -1] for clip in clips))


def spectrograms(*sounds: Tensor) -> Iterator[np.ndarray]:
    """Spectrograms of sounds ``[1, 1, n]`` in [-1, 1], on the scale of the first one."""
    waves = [sound[0, 0].detach().float().cpu().numpy() for sound in sounds]
    loudest = max(float(levels(waves[0]).max()), QUIET)
    return (np.asarray(spectrogram(wave, loudest).convert("RGB")) for wave in waves)


# How media are shown, by their number of dimensions.
SHOWN: dict[int, Callable[..., Iterator[np.ndarray]]] = {3: spectrograms, 4: pictures, 5: last_frames}


def shown(name: str, original: Tensor, decoded: Tensor) -> Sample:
    """A medium as a tokenizer takes it, and what came back, as pictures."""
    first, second = SHOWN[original.ndim](original, decoded)
    return name, first, second


def alarms_of(entry: dict[str, Any], waited: float = 0.0) -> dict[str, str]:
    """What is wrong at an evaluation, by kind. waited: share of the time that training waited for media."""
    losses, found = entry["losses"], {}
    if not all(map(math.isfinite, losses.values())):
        found["not finite"] = "a loss is not finite; steps without finite gradients are left out. Lower optim.lr"
    if entry.get("collapse"):
        found["collapse"] = "a codebook uses few of its codewords (see usage): it may be collapsing"
    if losses.get("right", 0.0) > WON:
        found["discriminator"] = "the discriminator has won (see right): it teaches little now. Lower its learning rate"
    if waited > WAITED:
        found["waits"] = f"training waits for media, {100 * waited:.0f} % of its time: give a higher --reuse"
    return found


class Watch:
    """What of a run can be watched while it goes on; only the first process has one that writes.

    Args: out: folder of the run.  title: of the page.  log: writes a line.  pair: what the pictures of a sample are.
    """

    def __init__(
        self, out: Path, title: str, log: Callable[[str], None], pair: str = "original, decoded"
    ) -> None:  # fmt: skip
        self.out, self.title, self.log, self.pair = out, title, log, pair
        self.samples: list[Sample] = []
        self.points: list[Point] = []
        self.alarms: dict[str, str] = {}
        self.followed = 0.0  # seconds at which losses were written last
        self.board: Any = None

    def state_dict(self) -> dict[str, Any]:
        return Attributes(self, "points", "alarms", "followed").state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        Attributes(self, "points", "alarms", "followed").load_state_dict(state)

    def begin(self) -> None:
        """Begin the files, or go on with them where the state was written: what came later is made again."""
        with (self.out / CURVES).open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *self.points])
        if self.board is not None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        last = self.points[-1][0] + 1 if self.points else 0
        self.board = SummaryWriter(str(self.out / BOARD), purge_step=last)

    def _add(self, points: Sequence[Point]) -> None:
        points = [(step, round(seconds, 2), round(share, 5), *rest) for step, seconds, share, *rest in points]
        self.points += points
        with (self.out / CURVES).open("a", newline="") as file:
            csv.writer(file).writerows(points)
        if self.board is not None:
            for step, _, _, stage, name, of, value in points:
                self.board.add_scalar("/".join(filter(None, (stage, name, of))), value, step)
            self.board.flush()

    def follow(self, about: tuple[int, float, float, str], losses: dict[str, Any], often: float = SECONDS) -> None:
        """Note the losses of a step, if some seconds have passed. about: step, seconds, share and stage."""
        if about[1] - self.followed >= often or about[1] < self.followed:
            self.followed = about[1]
            self._add([(*about, name, "training", float(value)) for name, value in losses.items()])

    def checked(
        self, about: tuple[int, float, float, str], entry: dict[str, Any], samples: Iterable[Sample], waited: float
    ) -> None:
        """Note an evaluation, say alarms that are new, and write the page; without samples it keeps those before."""
        self.follow(about, entry["losses"], 0.0)
        points = [(*about, name, of, value) for name, of, value in numbers_of(entry)]
        self._add(points)
        before, self.alarms = self.alarms, alarms_of(entry, waited)
        for kind, text in self.alarms.items():
            if kind not in before:
                self.log(f"warning: {text}")
        new = list(samples)
        self.samples = new or self.samples
        if self.board is not None:
            for name, original, decoded in new:
                pair = np.concatenate([original, decoded], 1)
                self.board.add_image(f"held-out/{name}", pair, about[0], dataformats="HWC")
        beside = self.out / f".{PAGE}.tmp"
        named = [(f"{name}: {self.pair}", *pair) for name, *pair in self.samples]
        beside.write_text(page(self.title, self.points, self.alarms.values(), named), encoding="utf-8")
        beside.replace(self.out / PAGE)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def numbers_of(entry: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Name, what it is of, and value of all numbers of held-out media."""
    for row in entry["rows"]:
        about = " ".join(f"{v} {k}" if isinstance(v, int) else str(v) for k, v in row.items() if type(v) is not float)
        yield from ((name, about, value) for name, value in row.items() if isinstance(value, float))
    for name, value in entry.items():
        if isinstance(value, list) and name != "rows":
            yield from ((name, f"codebook {k + 1}", own) for k, own in enumerate(value))
        elif isinstance(value, float) and name not in ("share", "seconds"):
            yield name, "", value


def page(title: str, points: Sequence[Point], alarms: Iterable[str], samples: Iterable[tuple[Any, ...]]) -> str:
    """The page as HTML."""
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for _, seconds, _, stage, name, of, value in points:
        charts.setdefault(f"{stage} {name}".strip(), {}).setdefault(of, []).append((seconds / 60, value))
    parts = [f"<!doctype html><meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style>"]
    parts.append(f"<h1>{escape(title)}</h1><p>Over minutes of training. The numbers are in {CURVES}.</p>")
    parts += [f"<p class='alarm'>{escape(text)}</p>" for text in alarms]
    parts += [chart(name, lines) for name, lines in charts.items()]
    for name, *pictures in samples:
        images = "".join(f"<img src='data:image/webp;base64,{webp(picture)}'>" for picture in pictures)
        parts.append(f"<figure><figcaption>{escape(name)}</figcaption>{images}</figure>")
    return "\n".join(parts) + "\n"


def chart(name: str, lines: dict[str, list[tuple[float, float]]]) -> str:
    """Lines as SVG, each with what it is of; values that are not finite are left out."""
    finite = {of: [p for p in line if math.isfinite(p[1])] for of, line in lines.items()}
    xs = [x for line in finite.values() for x, _ in line] or [0.0]
    ys = [y for line in finite.values() for _, y in line] or [0.0]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)

    def at(x: float, y: float) -> str:
        u = (x - left) / (right - left or 1) * (WIDTH - 20) + 10
        v = (high - y) / (high - low or 1) * (HEIGHT - 20) + 10
        return f"{u:.1f},{v:.1f}"

    drawn, legend = [], []
    for i, (of, line) in enumerate(finite.items()):
        some = line[:-1:max(1, len(line) // POINTS)] + line[-1:]
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(at(x, y) for x, y in some)
        drawn.append(f"<polyline fill='none' stroke='{colour}' stroke-width='1.5' points='{path}'/>")
        last = f" {line[-1][1]:.4g}" if line else ""
        legend.append(f"<span style='color:{colour}'>{escape(of or name)}{last}</span>")
    caption = f"<b>{escape(name)}</b>, {low:.4g} to {high:.4g}, {left:.1f} to {right:.1f} min"
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f"<svg width='{WIDTH}' height='{HEIGHT}'>{''.join(drawn)}</svg><br>{', '.join(legend)}</figure>"
    )


def webp(picture: np.ndarray) -> str:
    """A picture, reduced if it is large, as the text of a WebP file."""
    image = Image.fromarray(picture)
    image.thumbnail((EDGE, EDGE))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=90)
    return base64.b64encode(file.getvalue()).decode()
