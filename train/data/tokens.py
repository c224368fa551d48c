"""Token grids of different sizes in one flat buffer, and the windows around random cells of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ...codec.corpus.token_files import TOKEN_SUFFIXES, load_tokens
from ...entropy.schedule import Schedule
from ...tokenizers.api import Tokenizer
from ...tokenizers.audio.grvq import AudioGRVQ
from ...tokenizers.tokens import TokenSpec
from .images import as_input

Codes = npt.NDArray[np.int64]


def read_token_files(folders: Sequence[str | Path]) -> tuple[list[tuple[str, Codes]], TokenSpec]:
    """All tokens below ``folders`` that `codec tokenize` wrote, by file name: ``[K, *grid]`` each, and their spec.

    Raises: FileNotFoundError if there are none, ValueError if they come from different models.
    """
    paths = sorted((p for f in folders for p in Path(f).rglob("*") if p.suffix.lower() in TOKEN_SUFFIXES), key=str)
    if not paths:
        raise FileNotFoundError(f"no tokens ({' or '.join(TOKEN_SUFFIXES)}) in {', '.join(map(str, folders))}")
    found, spec = [], None
    for path in paths:
        tokens = load_tokens(path)
        spec = spec or tokens.spec
        if (tokens.spec.model, tokens.spec.weights_hash) != (spec.model, spec.weights_hash):
            raise ValueError(f"{path} holds tokens of {tokens.spec.model}, the others those of {spec.model}")
        if tokens.n_levels != len(spec.codebook_sizes) or int(tokens.codes.min()) < 0:
            raise ValueError(f"{path} lacks codes: a prior learns from complete tokens")
        found += [(path.stem, codes) for codes in tokens.codes.numpy()]
    assert spec is not None
    return found, spec


VIEW = (320, 448)  # pixels of a view, or the other way round: few shapes, so that convolutions are planned once
VIEWS_A_ZOOM = 8
MAX_ZOOM = 1.3


@torch.no_grad()
def picture_views(tokenizer: Tokenizer, picture: Tensor, views: int, generator: torch.Generator) -> list[Codes]:
    """Codes ``[K, h, w]`` of a picture ``[H, W, 3]`` uint8 as it is, or of ``views > 0`` random crops of it.

    Crops are reduced or enlarged, mirrored, and at places that are not on the grid: a shift by less than a cell gives
    other codes of the same picture, and that is what a prior has most to learn from.
    """
    x = as_input(picture, tokenizer.device)
    if not views:
        return [tokenizer.encode(x).codes[0].cpu().numpy()]
    height, width = VIEW if x.shape[3] >= x.shape[2] else VIEW[::-1]
    least = max(height / x.shape[2], width / x.shape[3])
    found = []

    def number() -> float:
        return float(torch.rand((), generator=generator))

    for start in range(0, views, VIEWS_A_ZOOM):
        zoom = max(least, 1.0) if number() < 0.25 else least + max(0.0, MAX_ZOOM - least) * number()
        size = [max(n, round(m * zoom)) for n, m in zip((height, width), x.shape[2:], strict=True)]
        y = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
        parts = []
        for i in range(min(VIEWS_A_ZOOM, views - start)):
            top, left = (int(number() * (n - m + 1)) for n, m in zip(size, (height, width), strict=True))
            part = y[..., top : top + height, left : left + width]
            parts.append(part.flip(3) if i % 2 else part)
        found.append(tokenizer.encode(torch.cat(parts).clamp(0, 1)).codes)
    return list(torch.cat(found).cpu().numpy())


SIDE = 256  # pixels of the shorter side of a view of a clip, at most; crops of longer frames are this wide
FASTEST = 2  # frames of a clip between those of a view


@torch.no_grad()
def clip_views(tokenizer: Tokenizer, clip: Tensor, views: int, generator: torch.Generator, segment: int) -> list[Codes]:
    """Codes ``[K, t, h, w]`` of the groups of pictures of a clip, uint8 ``[T, H, W, 3]``, each of which begins anew.

    As it is, or ``views > 0`` times changed: a random part of space and time, on another grid, mirrored, reduced, made
    faster or played backwards. Args: segment: frames of a group of pictures.
    """

    def number() -> float:
        return float(torch.rand((), generator=generator))

    if not views:
        parts = clip.split(segment)
        return [tokenizer.encode(part.permute(3, 0, 1, 2)[None]).codes[0].cpu().numpy() for part in parts]
    found = []
    for i in range(views):
        speed = 1 if len(clip) < 2 * segment or number() < 0.7 else FASTEST
        first = int(number() * max(1, len(clip) - speed * (segment - 1)))
        x = clip[first::speed][:segment].to(tokenizer.device).permute(0, 3, 1, 2).float() / 255  # [t, 3, H, W]
        least = min(1.0, SIDE / min(x.shape[2:]))
        scale = least * (1 - 0.4 * max(0.0, number() - 0.4))
        size = [max(16, round(n * scale)) for n in x.shape[2:]]
        x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
        top, left = (int(16 * number()) for _ in range(2))
        x = x[:, :, top:, left:] if min(x.shape[2:]) > 32 else x
        x = x.flip(3) if i % 2 else x
        x = x.flip(0) if number() < 0.25 else x
        found.append(tokenizer.encode(x.transpose(0, 1)[None]).codes[0].cpu().numpy())
    return found


GAIN = (-9.0, 5.0)  # dB by which a view of a sound is softer or louder
SEEN = (None, 6, 4)  # levels that views are searched for in turn: all, and those of usual files


@torch.no_grad()
def sound_views(
    tokenizer: Tokenizer, sound: Tensor, views: int, generator: torch.Generator, segment: int
) -> list[Codes]:
    """Codes ``[K, segment]`` of the segments of a sound, int16 ``[n]``, as it is or ``views > 0`` times changed.

    A view is softer or louder, turned over or not, begins a part of a frame later, and is searched for one of ``SEEN``
    levels, which gives other codes of the same sound. The last segment of each may be shorter.
    """
    x = sound.to(tokenizer.device).float()[None, None] / 32768

    def number() -> float:
        return float(torch.rand((), generator=generator))

    found = []
    for i in range(max(1, views)):
        y = x
        if views:
            y = x[:, :, int(number() * min(tokenizer.strides[0], x.shape[2])) :]
            y = y * 10 ** ((GAIN[0] + (GAIN[1] - GAIN[0]) * number()) / 20) * (-1) ** i
        seen = {"seen": SEEN[i % len(SEEN)]} if isinstance(tokenizer, AudioGRVQ) else {}
        codes = tokenizer.encode(y.clamp(-1, 1), **seen).codes[0].cpu().numpy()
        found += [codes[:, begin : begin + segment] for begin in range(0, codes.shape[1], segment)]
    return found


class TokenStore:
    """Grids of codes, all in one flat buffer on one device.

    Args: grids: ``[K, *grid]`` each, all of the same K and number of axes.
    """

    def __init__(self, grids: Sequence[Codes], device: torch.device | str, seed: int = 0) -> None:
        self.device = torch.device(device)
        shapes = torch.tensor([g.shape[1:] for g in grids])  # [n, ndim]
        cells = shapes.prod(1)
        flat = np.concatenate([g.reshape(len(g), -1) for g in grids], axis=1)
        self.codes = torch.from_numpy(flat.astype(np.int32)).to(self.device)  # [K, cells of all grids]
        self.shapes = shapes.to(self.device)
        self.first = (cells.cumsum(0) - cells).to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def __len__(self) -> int:
        return self.codes.shape[1]

    def sample(self, n: int) -> Tensor:
        """Places ``[n]`` in the buffer, each cell of each grid as likely as any other."""
        return torch.randint(len(self), (n,), device=self.device, generator=self.generator)

    def windows(self, at: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Neighbours of cells ``at [n]``: places ``[n, P]``, whether inside ``[n, P]``, own cells ``[n, ndim]``."""
        which = torch.searchsorted(self.first, at, right=True) - 1
        shape, rest = self.shapes[which], at - self.first[which]  # [n, ndim], [n]
        own = []
        for axis in reversed(range(shape.shape[1])):
            own.append(rest % shape[:, axis])
            rest = rest // shape[:, axis]
        cell = torch.stack(own[::-1], 1)  # [n, ndim]
        there = cell[:, None] + offsets  # [n, P, ndim]
        inside = ((there >= 0) & (there < shape[:, None])).all(-1)
        place = torch.zeros_like(inside, dtype=torch.int64)
        for axis in range(shape.shape[1]):
            place = place * shape[:, None, axis] + there[..., axis]
        return torch.where(inside, place + self.first[which][:, None], 0), inside, cell


class LevelSampler:
    """Training examples of one network: windows as indices into its embedding table, and the codes to predict.

    Args:
        sizes: codebook sizes of all levels.
        order: the levels that the network sees, its own last.
        leaf: ``[N]`` of its own codes' tree.
        schedule, offsets: when cells are coded, and ``[P, ndim]`` which neighbours the network sees.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        order: Sequence[int],
        leaf: npt.NDArray[np.int64],
        schedule: Schedule,
        offsets: npt.NDArray[np.int64],
        device: torch.device | str,
    ) -> None:
        self.order, self.sizes = list(order), [sizes[j] for j in order]
        base = np.cumsum([0] + [n + 1 for n in self.sizes])
        self.base, self.outside = base[:-1].tolist(), int(base[-1])
        self.offsets = torch.from_numpy(offsets).to(device)
        self.visible = torch.from_numpy(schedule.visible(offsets)).to(device)  # [phases, P]
        self.tile = schedule.tile
        self.leaf = torch.from_numpy(leaf).to(device)

    def examples(self, store: TokenStore, at: Tensor, loss: float = 0.0) -> tuple[Tensor, Tensor]:
        """Window indices ``[n, P, k + 1]`` and leaves ``[n]`` of the codes at places ``at [n]`` of the store.

        Args: loss: share of the examples that see a random part of all codes instead of what the schedule shows. In
            half of them cells are lost with all levels, in the others each code is lost on its own.
        """
        place, inside, cell = store.windows(at, self.offsets)
        phase = torch.zeros_like(at)
        for axis, size in enumerate(self.tile):
            phase = phase * size + cell[:, axis] % size
        held = [inside] * len(self.order)
        held[-1] = self.visible[phase] & inside
        if loss:
            n, p = place.shape

            def number(*shape: int) -> Tensor:
                return torch.rand(*shape, device=at.device, generator=store.generator)

            lossy, whole, kept = number(n, 1) < loss, number(n, 1) < 0.5, number(n, 1).sqrt()
            cells = number(n, p)
            for j in range(len(self.order)):
                there = torch.where(whole, cells, number(n, p)) < kept
                if j == len(self.order) - 1:
                    there &= (self.offsets != 0).any(1)  # never the code to predict
                held[j] = torch.where(lossy, there & inside, held[j])
        columns = []
        for j, level in enumerate(self.order):
            codes = store.codes[level][place].long()
            columns.append(torch.where(held[j], codes, self.sizes[j]) + self.base[j])
        indices = torch.stack(columns, -1)
        # Outside the grid: one row that says so, and the other levels' "unknown".
        indices[..., -1] = torch.where(inside, indices[..., -1], self.outside)
        return indices, self.leaf[store.codes[self.order[-1]][at].long()]
