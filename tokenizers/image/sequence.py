"""`image-1d`: a window of 256 x 256 pixels becomes a sequence of up to 256 tokens, of which any prefix is a picture.

::

    x [B,3,H,W] -> windows of 272 x 272, 256 apart -> 17 x 17 patches, and 256 queries -> transformer
    queries -> z_e [windows,D,256] -> quantizer -> codes [B,256,h,w]      h = ceil(H/256), w = ceil(W/256)
    codes[:, :n] -> z_q -> transformer over n tokens and 17 x 17 patches -> convolutions -> windows, overlapped -> x_hat

Learned queries as in TiTok (Yu et al. 2024, arXiv:2406.07550); tail token drop, which puts what matters most into the
first tokens, as in One-D-Piece (Miwa et al. 2025, arXiv:2501.10064). Windows may have different numbers of tokens:
codes of tokens that a window does without are ``ABSENT``. How many it gets is decided by what they bring
(:func:`share_tokens`), as in codecs whose granularity follows the content (Control-GIC, Li et al. 2024,
arXiv:2406.00758).

Attention sees a whole window, so here the locality rule ends at windows: a picture's codes are those of its windows,
each on its own, whatever is around them. Windows overlap by 16 pixels, over which one fades into the next.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..api import Output
from ..inputs import check_pixels, to_pictures
from ..precision import whole_float32
from ..quantize.base import ABSENT
from ..quantizers import Section, checked_section, make_quantizer
from ..tokens import Tokens
from .base import ImageTokenizer

CORE = 256  # pixels from one window to the next
MARGIN = 8  # pixels that a window sees and paints beyond its core, on each side
PATCH = 16
SIDE = (CORE + 2 * MARGIN) // PATCH  # patches along a window's edge
COARSE = 2  # the last layers work on 2 x 2 pixels
BATCH = 8  # windows that go through the nets at once
PREFIXES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)  # numbers of tokens that are tried

Codes = Literal["simvq", "lfq", "bsq"]


@dataclass(frozen=True)
class ImageSequenceConfig:
    """Sizes of an :class:`ImageSequence`."""

    width: int = 288  # of both transformers
    heads: int = 6
    analysis_blocks: int = 5
    synthesis_blocks: int = 7
    tokens: int = 256  # of a window, at most
    codes: Codes = "simvq"
    codebook_size: int = 4096  # N; a power of two for binary codes
    dim: int = 16  # D of the codewords; binary codes have log2 N
    smooth: int = 32  # channels of the convolutions that end the synthesis
    quantizer: Section | None = None  # with one codebook, see ..quantizers; None: that of codes. It says N and D then

    def __post_init__(self) -> None:
        if self.codes not in ("simvq", "lfq", "bsq"):
            raise ValueError(f"codes are simvq, lfq or bsq, got {self.codes!r}")
        if self.width % self.heads or self.width < 1:
            raise ValueError("the width is a multiple of the heads")
        if not 1 <= self.tokens <= 4096:
            raise ValueError("a window has 1 to 4096 tokens")
        if self.codes != "simvq" and self.codebook_size != 1 << self.latent_dim:
            raise ValueError("binary codes have a codebook of a power of two")
        if self.quantizer is not None:
            if self.codes != "simvq":
                raise ValueError("codes and quantizer are two words for one thing: leave codes out")
            object.__setattr__(self, "quantizer", checked_section(self.quantizer))

    @property
    def latent_dim(self) -> int:
        """Channels of the latents."""
        return self.dim if self.codes == "simvq" else self.codebook_size.bit_length() - 1

    @property
    def section(self) -> Section:
        """Of the quantizer."""
        own: Section = {} if self.codes == "simvq" else {"dim": self.latent_dim}
        return self.quantizer or {"kind": self.codes, **own}


class Block(nn.Module):
    """Pre-norm transformer block over ``[B, L, W]``, attention to all, which starts near the identity."""

    def __init__(self, width: int, heads: int, expansion: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        for last in (self.out, self.down):
            nn.init.normal_(last.weight, std=0.02)  # not zero: queries must see pictures from the first step on
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm_attention(x)).unflatten(2, (3, self.heads, -1))  # [B, L, 3, heads, W / heads]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, L, W / heads] each
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm_mlp(x)), approximate="tanh"))


def waves(tokens: int) -> Tensor:
    """Cosine waves over the patches of a window, from slow to fast, ``[tokens, SIDE * SIDE]``: the rows of an
    orthonormal DCT-II in two dimensions. Rows beyond their number are zero.
    """
    step = torch.arange(SIDE, dtype=torch.float64)
    line = torch.cos(math.pi / SIDE * (step + 0.5) * step[:, None]) * math.sqrt(2 / SIDE)
    line[0] /= math.sqrt(2)
    plane = (line[:, None, :, None] * line[None, :, None, :]).reshape(SIDE * SIDE, SIDE * SIDE)
    order = (step[:, None] ** 2 + step**2).flatten().argsort(stable=True)[:tokens]
    return F.pad(plane[order].float(), (0, 0, 0, tokens - len(order)))


def speeds(tokens: int) -> Tensor:
    """How fast the waves are, 1 to about 20, ``[tokens, 1]``: pictures hold less of a wave the faster it is."""
    place = torch.arange(tokens, dtype=torch.float32)
    return (1 + 2 * (place / math.pi).sqrt())[:, None]


class Analysis(nn.Module):
    """Windows ``[B, 3, 272, 272]`` in [-1, 1] to latents ``[B, D, tokens]``.

    A token starts as a wave over the patches, evened out, so that the untrained net is a transform already: slow waves
    first. Queries that must find out where to look stay at one grey picture for long (``train/RUNS.md``).
    """

    def __init__(self, config: ImageSequenceConfig) -> None:
        super().__init__()
        width = config.width
        self.patches = nn.Conv2d(3, width, PATCH, PATCH)
        self.places = nn.Parameter(0.02 * torch.randn(SIDE * SIDE, width))
        self.queries = nn.Parameter(0.02 * torch.randn(config.tokens, width))
        self.waves = nn.Parameter(waves(config.tokens) / SIDE * speeds(config.tokens))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.analysis_blocks))
        self.head = nn.Linear(width, config.latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)  # [B, 289, W]
        h = torch.cat([patches + self.places, self.waves @ patches + self.queries], 1)
        for block in self.blocks:
            h = block(h)
        return self.head(h[:, patches.shape[1] :]).transpose(1, 2)


class Synthesis(nn.Module):
    """Codewords ``[B, D, n]``, and which are there ``[B, n]``, to windows ``[B, 3, 272, 272]`` in [-1, 1]."""

    def __init__(self, config: ImageSequenceConfig) -> None:
        super().__init__()
        width, smooth = config.width, config.smooth
        self.enter = nn.Linear(config.latent_dim, width)
        self.queries = nn.Parameter(0.02 * torch.randn(config.tokens, width))
        self.absent = nn.Parameter(torch.zeros(width))  # in the place of a token that is not there
        self.waves = nn.Parameter(waves(config.tokens) * SIDE / speeds(config.tokens))  # back to the patches
        self.places = nn.Parameter(0.02 * torch.randn(SIDE * SIDE, width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.synthesis_blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, smooth * (PATCH // COARSE) ** 2)
        self.smooth = nn.ModuleList(nn.Conv2d(smooth, out, 3, padding=1) for out in (smooth, smooth, 3 * COARSE**2))

    def forward(self, z_q: Tensor, there: Tensor) -> Tensor:
        n = z_q.shape[2]
        tokens = torch.where(there[:, :, None], self.enter(z_q.transpose(1, 2)), 0.0)  # [B, n, W]
        patches = self.waves[:n].T @ tokens + self.places
        absent = torch.where(there[:, :, None], 0.0, self.absent)
        h = torch.cat([patches, tokens + absent + self.queries[:n]], 1)
        for block in self.blocks:
            h = block(h)
        h = self.head(self.norm(h[:, : SIDE * SIDE]))  # [B, 289, smooth * 64]
        side = PATCH // COARSE
        h = h.unflatten(1, (SIDE, SIDE)).unflatten(3, (side, side, -1)).permute(0, 5, 1, 3, 2, 4)
        h = h.flatten(4).flatten(2, 3)  # [B, smooth, 136, 136]
        first, second, last = self.smooth
        h = h + second(F.gelu(first(h), approximate="tanh"))
        return F.pixel_shuffle(last(F.gelu(h, approximate="tanh")), COARSE)


class ImageSequence(ImageTokenizer):
    """See the module's text. The rate is the number of tokens, of every window or of all together."""

    config_class = ImageSequenceConfig
    int8_weights = ("analysis.", "synthesis.")
    int8_largest = 15
    modality = "image"
    strides = (CORE, CORE)
    rate_control = "tokens"
    needs_prior = True

    config: ImageSequenceConfig

    def __init__(self, config: ImageSequenceConfig | None = None, name: str = "image-1d") -> None:
        super().__init__(config or ImageSequenceConfig(), name)
        c = self.config
        quantizer = make_quantizer(c.section, dim=c.dim, codebook_sizes=(c.codebook_size,))
        if quantizer.n_codebooks != 1:
            raise ValueError(f"quantizer has {quantizer.n_codebooks} codebooks, and a token is one code")
        if c.quantizer is not None:
            c = dataclasses.replace(c, dim=quantizer.dim, codebook_size=quantizer.codebook_sizes[0])
            self.config = c
        self.analysis = Analysis(c)
        self.quantizer = quantizer
        self.synthesis = Synthesis(c)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Of every token; all are written with the same codebook."""
        return (self.config.codebook_size,) * self.config.tokens

    def codewords(self) -> list[npt.NDArray[np.float32]] | None:
        """The same table for every token: the codebook, of binary codes all their sign vectors."""
        table = self.quantizer.tables()
        return table and table * self.config.tokens

    # ---------------------------------------------------------------- pictures and tokens

    def forward(self, x: Tensor) -> Output:
        """Pictures ``[B, 3, H, W]`` through the nets with straight-through gradients, all tokens of every window: see
        :meth:`..api.Tokenizer.forward`. Windows go through the nets at once."""
        x = to_pictures(x, self.device)
        windows = to_windows(x)  # [B, h, w, 3, 272, 272]
        out = self.quantizer(self.analysis(2 * windows.flatten(0, 2) - 1).float())  # codes [B * h * w, 1, tokens]
        x_hat = self.synthesis(out.z_q, out.codes[:, 0] != ABSENT).float()
        x_hat = from_windows((x_hat.unflatten(0, windows.shape[:3]) + 1) / 2, x.shape[2:])
        codes = out.codes[:, 0].unflatten(0, windows.shape[:3]).permute(0, 3, 1, 2)
        return Output.of(x_hat, dataclasses.replace(out, codes=codes))

    @torch.no_grad()
    def encode(self, x: Tensor, tokens: int | None = None, total: int | None = None) -> Tokens:
        """Pictures ``[B, 3, H, W]`` in [0, 1], any H and W, to tokens ``[B, n, ceil(H/256), ceil(W/256)]``.

        Args:
            tokens: of every window, 1 to 256; all if None.
            total: of all windows of a picture together, shared so that the squared error is small; one each at least.
        Returns: as many levels as the window with the most tokens has; what others do without is ``ABSENT``.
        Raises:  ValueError for other shapes, types or ranges of ``x`` (floating-point or uint8, see :mod:`..inputs`),
                 an empty picture, both numbers, or numbers out of range.
        """
        x = to_pictures(x, self.device)
        check_pixels(x)
        if tokens is not None and total is not None:
            raise ValueError("give the tokens of every window or the total, not both")
        spec = self.spec(tuple(x.shape[2:]))
        if total is not None:
            count, most = spec.grid[0] * spec.grid[1], self.config.tokens
            if not count <= total <= count * most:
                raise ValueError(f"the total of {count} windows is {count} to {count * most}, got {total}")
        codes = self.encode_codes(x, tokens)
        return Tokens(codes if total is None else self._share(x, codes, total), spec)

    def _share(self, x: Tensor, codes: Tensor, total: int) -> Tensor:
        """All codes ``[B, tokens, h, w]`` of pictures to those that are worth it, so many a picture."""
        b, most, h, w = codes.shape
        rows = codes.permute(0, 2, 3, 1).flatten(0, 2)  # [B * h * w, tokens]
        errors = self.errors(to_windows(x).flatten(0, 2), rows, inside(*x.shape[2:]).repeat(b, 1, 1))
        shares = [share_tokens(own, self.prefixes, total) for own in errors.numpy().reshape(b, h * w, -1)]
        kept = torch.from_numpy(np.stack(shares)).view(b, 1, h, w).to(codes.device)
        place = torch.arange(most, device=codes.device)[:, None, None]
        return torch.where(place < kept, codes, ABSENT)[:, : int(kept.max())].contiguous()

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Tokens to pictures ``[B, 3, H, W]`` in [0, 1].

        Raises: ValueError if the tokens are another model's.
        """
        self.check_tokens(tokens)
        return self.decode_codes(tokens.codes.to(self.device), tokens.spec.size)

    @torch.no_grad()
    def encode_codes(self, x: Tensor, tokens: int | None = None) -> Tensor:
        """Codes of :meth:`encode` without a ``total``, by tensors alone; values of ``x`` are not looked at."""
        if tokens is not None and not 1 <= tokens <= self.config.tokens:
            raise ValueError(f"tokens is 1 to {self.config.tokens}, got {tokens}")
        windows = to_windows(to_pictures(x, self.device))  # [B, h, w, 3, 272, 272]
        codes = self.codes(windows.flatten(0, 2))[:, :tokens]
        return codes.unflatten(0, windows.shape[:3]).permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def decode_codes(self, codes: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Codes ``[B, n, h, w]`` to pictures ``[B, 3, H, W]`` in [0, 1], by tensors alone.

        Args:    size: (H, W); of whole windows, ``(256 h, 256 w)``, if None.
        """
        self.require_float32()
        height, width = (None, None) if size is None else size
        return torch.cat(list(paint(self.window_rows(codes))), 2)[:, :, :height, :width]

    @torch.no_grad()
    def encode_tiled(
        self, pixels: Tensor, weigh: bool = True, progress: Callable[[float], None] | None = None
    ) -> tuple[Tokens, npt.NDArray[np.float64]]:
        """One picture, a row of windows after the other: all its tokens, and what they are worth.

        Args:    pixels: ``[H, W, C]`` uint8 on the CPU, C = 1 or 3.  weigh: compute the errors.
                 progress: called with the share that is done.
        Returns: tokens ``[1, 256, h, w]`` on the CPU; squared errors ``[h w, prefixes]`` as :meth:`errors` gives them,
                 none if not asked for.
        """
        height, width, _ = pixels.shape
        spec = self.spec((height, width))
        h, w = spec.grid
        x = pixels.permute(2, 0, 1)[None].expand(-1, 3, -1, -1)
        where = inside(height, width)
        codes, errors = [], []
        for i in range(h):
            windows = window_row(x, i)[0].to(self.device).float() / 255  # [w, 3, 272, 272]
            codes.append(self.codes(windows))
            if weigh:
                errors.append(self.errors(windows, codes[-1], where[i * w : (i + 1) * w]))
            if progress is not None:
                progress((i + 1) / h)
        grid = torch.stack(codes).cpu()  # [h, w, 256]
        found = torch.cat(errors).numpy() if errors else np.zeros((0, len(self.prefixes)))
        return Tokens(grid.permute(2, 0, 1)[None].contiguous(), spec), found

    @torch.no_grad()
    def decode_tiled(
        self, tokens: Tokens, channels: int = 3, progress: Callable[[float], None] | None = None
    ) -> Tensor:
        """Tokens ``[1, n, h, w]`` to one picture ``[H, W, channels]`` uint8 on the CPU, row by row of windows."""
        self.check_tokens(tokens)
        height, width = tokens.spec.size
        out = torch.empty(height, width, channels, dtype=torch.uint8)
        top = 0
        for strip in paint(self.window_rows(tokens.codes)):
            x_hat = strip[0] if channels == 3 else strip[0].mean(0, keepdim=True)
            target = out[top : top + x_hat.shape[1]]
            target.copy_((x_hat * 255).round().byte().permute(1, 2, 0)[: target.shape[0], :width])
            top += x_hat.shape[1]
            if progress is not None:
                progress(min(1.0, top / height))
        return out

    def encode_picture(
        self, pixels: Tensor, quality: float | None = None, progress: Callable[[float], None] | None = None
    ) -> Tokens:
        return self.encode_tiled(pixels, False, progress)[0]

    def window_rows(self, codes: Tensor) -> Iterator[Tensor]:
        """Decoded windows of codes ``[B, n, h, w]``, row after row, ``[B, w, 3, 272, 272]`` in [0, 1] each."""
        for row in codes.permute(2, 0, 3, 1).unbind():  # [B, w, n]
            yield self.windows(row.flatten(0, 1).to(self.device)).unflatten(0, row.shape[:2])

    # ---------------------------------------------------------------- windows

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Numbers of tokens that a window may get when they are shared by content."""
        return (*(n for n in PREFIXES if n < self.config.tokens), self.config.tokens)

    def codes(self, windows: Tensor) -> Tensor:
        """Windows ``[B, 3, 272, 272]`` in [0, 1] to codes ``[B, tokens]``."""
        self.require_float32()
        with whole_float32(self.device):
            parts = [self.quantizer.encode(self.analysis(2 * x - 1))[:, 0] for x in windows.split(BATCH)]
        return torch.cat(parts)

    def windows(self, codes: Tensor) -> Tensor:
        """Codes ``[B, n]`` to windows ``[B, 3, 272, 272]`` in [0, 1]."""
        with whole_float32(self.device):
            parts = [self.synthesis(self.quantizer.decode(own[:, None]), own != ABSENT) for own in codes.split(BATCH)]
        return ((torch.cat(parts) + 1) / 2).clamp(0, 1)

    @torch.no_grad()
    def errors(self, windows: Tensor, codes: Tensor, where: Tensor) -> Tensor:
        """Squared error of every window after each of :attr:`prefixes`, ``[B, prefixes]`` float64 on the CPU.

        Args: windows ``[B, 3, 272, 272]``.  codes ``[B, tokens]``.  where ``[B, 256, 256]``: what counts of the cores.
        """
        core = slice(MARGIN, MARGIN + CORE)
        found = []
        for x, own, weight in zip(windows.split(BATCH), codes.split(BATCH), where.split(BATCH), strict=True):
            weight = weight.to(x.device)
            rows = []
            for n in self.prefixes:
                x_hat = self.windows(own[:, :n])
                square = (x - x_hat)[:, :, core, core].square().sum(1)
                rows.append((square * weight).sum((1, 2), dtype=torch.float64))
            found.append(torch.stack(rows, 1).cpu())
        return torch.cat(found)


def to_windows(x: Tensor) -> Tensor:
    """Pictures ``[B, C, H, W]`` to overlapping windows ``[B, h, w, C, 272, 272]``; edges are repeated beyond."""
    return torch.stack([window_row(x, i) for i in range(-(-x.shape[2] // CORE))], 1)


def window_row(x: Tensor, i: int) -> Tensor:
    """Row i of the windows of ``[B, C, H, W]``, ``[B, w, C, 272, 272]``."""
    height, width = x.shape[2:]
    rows = torch.arange(i * CORE - MARGIN, (i + 1) * CORE + MARGIN, device=x.device).clamp(0, height - 1)
    columns = torch.arange(-MARGIN, -(-width // CORE) * CORE + MARGIN, device=x.device).clamp(0, width - 1)
    strip = x[:, :, rows[:, None], columns]  # [B, C, 272, 256 w + 16]
    return strip.unfold(3, CORE + 2 * MARGIN, CORE).permute(0, 3, 1, 2, 4)


def from_windows(windows: Tensor, size: Sequence[int]) -> Tensor:
    """Inverse of :func:`to_windows`: windows fade into each other where they overlap; ``[B, C, *size]``."""
    return torch.cat(list(paint(windows.unbind(1))), 2)[:, :, : size[0], : size[1]]


def paint(rows: Iterable[Tensor]) -> Iterator[Tensor]:
    """Rows of windows ``[B, w, C, 272, 272]`` to strips of the picture ``[B, C, *, 256 w]``, from top to bottom."""
    edge, overlap = CORE + 2 * MARGIN, 2 * MARGIN
    above, top = None, MARGIN
    for row in rows:
        b, w, c = row.shape[:3]
        fade = (torch.arange(overlap, device=row.device, dtype=row.dtype) + 0.5) / overlap
        line = torch.cat([fade, fade.new_ones(edge - 2 * overlap), fade.flip(0)])  # with its neighbours' adds up to 1
        weighted = torch.cat([row, row.new_ones(b, w, 1, edge, edge)], 2) * (line[:, None] * line)
        columns = weighted.flatten(2).transpose(1, 2)  # [B, (C + 1) 272 272, w]
        strip = F.fold(columns, (edge, w * CORE + overlap), edge, stride=CORE)  # sums and weights
        if above is not None:
            strip[:, :, :overlap] += above
        above = strip[:, :, CORE:]
        yield (strip[:, :c, top:CORE] / strip[:, c:, top:CORE])[..., MARGIN : MARGIN + w * CORE]
        top = 0
    if above is not None:
        yield (above[:, :-1, :MARGIN] / above[:, -1:, :MARGIN])[..., MARGIN:-MARGIN]


def inside(height: int, width: int) -> Tensor:
    """Which pixels of the windows' cores belong to the picture, ``[h * w, 256, 256]`` bool, window by window."""
    rows = torch.arange(-(-height // CORE) * CORE).view(-1, CORE) < height  # [h, 256]
    columns = torch.arange(-(-width // CORE) * CORE).view(-1, CORE) < width
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)


def share_tokens(errors: npt.NDArray[np.float64], prefixes: Sequence[int], total: int) -> npt.NDArray[np.int64]:
    """How many tokens each window gets.

    Args:    errors ``[windows, prefixes]``: what is left after each prefix.  total: tokens of all together.
    Returns: ``[windows]``, values of ``prefixes``, together at most ``total`` (or one each, if that is more).

    What a window gains by more tokens is taken along the lower convex hull of its errors, where it gains less and less;
    so the best steps of all windows, best first, are the allocation of least error for its size (Shoham and Gersho
    1988).
    """
    kept = [prefixes[0]] * len(errors)
    steps = []
    for i, own in enumerate(errors):
        for a, b in _hull(own, prefixes):
            steps.append(((own[b] - own[a]) / (prefixes[b] - prefixes[a]), i, b, prefixes[b] - prefixes[a]))
    left, closed = total - sum(kept), set()
    for _, i, b, cost in sorted(steps):
        if cost > left:
            closed.add(i)
        if i not in closed:
            kept[i] = prefixes[b]
            left -= cost
    return np.array(kept, dtype=np.int64)


def _hull(errors: npt.NDArray[np.float64], prefixes: Sequence[int]) -> list[tuple[int, int]]:
    """Steps (from, to) along the lower convex hull of errors over prefixes, as long as errors fall."""
    found, a = [], 0
    while a + 1 < len(prefixes):
        slopes = [(errors[b] - errors[a]) / (prefixes[b] - prefixes[a]) for b in range(a + 1, len(prefixes))]
        best = int(np.argmin(slopes))
        if slopes[best] >= 0:
            break
        found.append((a, a + 1 + best))
        a += 1 + best
    return found
