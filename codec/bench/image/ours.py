"""Our models for pictures in benchmarks, and what these need of the product beyond its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ....tokenizers.image.photo import ImagePhoto
from ....tokenizers.image.sequence import ImageSequence
from ....tokenizers.tokens import Tokens
from ...container.read import read_tok
from ...container.write import write_tok
from ...decode import file_tokens
from ...errors import UsageError
from ...image.segments import image_header
from ...image.sequence import Shares
from ...models import load_model
from ...settings import Setting, rate_settings, synthesis_nets
from ..clips import Photo
from ..contender import Codec, Coded, Spec, middle, warm_up
from ..ours import Ours, decode, load_ours


class PhotoCoder(Ours):
    """A model for pictures. Its variants are its synthesis nets."""

    @property
    def by_levels(self) -> bool:
        """Whether the rate control is a few levels and not a quality."""
        return self.settings[0].control == "levels"

    def decode(self, coded: Coded, variant: str = "") -> np.ndarray:
        """Pixels ``[H, W, 3]`` uint8."""
        return decode(coded.files[0], self.model, self.device, variant).picture.pixels

    def spec(self) -> Spec:
        """The middle quality, or all levels."""
        setting = self.settings[-1] if self.by_levels else middle(self.settings)
        qualities = None if self.by_levels else [setting.value]
        arguments = {"model": self.model, "device": self.device, "qualities": qualities, "effort": self.effort}
        return Spec("image.ours:prepare", arguments, setting)


def prepare(
    model: str | None,
    device: str,
    qualities: Sequence[float] | None = None,
    strict: bool = False,
    effort: int = 0,
) -> PhotoCoder:
    """Load the model and run it once, so that no measured time holds what happens only once.

    Args:   qualities: settings of a model whose rate control they are.  effort: of such a model's encoder.
            strict: refuse them for another model.
    Raises: UsageError for settings that the model lacks.
    """
    model, device, tokenizer = load_ours(model, "image", device, effort)
    by_quality = tokenizer.rate_control == "quality"
    if strict and effort and not by_quality:
        raise UsageError(f"effort is not an option of {tokenizer.name}")
    settings = rate_settings(tokenizer, qualities if by_quality or strict else None)
    effort = effort if by_quality else 0
    coder = PhotoCoder(model, tokenizer.name, settings, device, effort=effort, variants=synthesis_nets(tokenizer))
    warm_up(Photo("warm-up", np.zeros((64, 64, 3), np.uint8)), [coder])
    return coder


@dataclass
class TokenCoder(Codec):
    """A model whose rate control is a number of tokens, all windows alike ("alike") or tokens allocated among them by
    content ("shared"). A setting is the tokens of a window, in the mean if they are shared."""

    model: str
    device: str
    name: str
    counts: tuple[int, ...]
    kind = "ours"
    described = ".tok files"

    def __post_init__(self) -> None:
        self.latest: tuple[Photo, Shares] | None = None  # the tokens of a picture serve all its settings

    @property
    def settings(self) -> tuple[Setting, ...]:
        return tuple(Setting("tokens", n) for n in self.counts)

    def shares(self, clip: Photo) -> Shares:
        if self.latest is None or self.latest[0] is not clip:
            model = load_model(self.model, self.device)
            assert isinstance(model.tokenizer, ImageSequence)

            def build(tokens: Tokens, payloads: list[list[bytes]]) -> bytes:
                return write_tok(image_header(tokens, model, len(payloads)), payloads)

            tokens, errors = model.tokenizer.encode_tiled(torch.from_numpy(clip.x.copy()))
            self.latest = clip, Shares(tokens, errors, model, build)
        return self.latest[1]

    def encode(self, clip: Photo, setting: Setting) -> Coded:
        shares, n = self.shares(clip), int(setting.value)
        kept = shares.tokens.levels(n) if self.name == "alike" else shares.shared(n * shares.windows)
        return Coded.of(shares.file(kept))

    def decode(self, coded: Coded, variant: str = "") -> np.ndarray:
        return decode(coded.files[0], self.model, self.device).picture.pixels

    def spec(self) -> None:
        """Its memory is not measured."""


def prepare_tokens(model: str | None, device: str, counts: Mapping[str, Sequence[int]]) -> list[TokenCoder]:
    """Load a model, for each way and its ``counts``, as far as the model has so many tokens. Raises UsageError for a
    model whose rate control is another one."""
    model = model or "image-1d"
    tokenizer = load_model(model, device).tokenizer
    if not isinstance(tokenizer, ImageSequence):
        raise UsageError(f"the rate of {tokenizer.name} is not a number of tokens")
    most = tokenizer.config.tokens
    return [
        TokenCoder(model, device, way, tuple(sorted({min(n, most) for n in chosen})))
        for way, chosen in counts.items()
    ]


def codes_of(data: bytes, model: str | None, device: str) -> np.ndarray:
    """All codes of a file of a picture or a sound, ``[signals, K, *grid]``."""
    tokens, _ = file_tokens(read_tok(data), model, device)
    return tokens.codes.cpu().numpy()


def batch_decoder(files: Sequence[bytes], model: str, device: str) -> Callable[[], Any]:
    """Decoding files of one size and quality: the entropy model a file after the other, pixels in one batch."""
    tokenizer = load_model(model, device).tokenizer
    assert isinstance(tokenizer, ImagePhoto)
    toks = [read_tok(data) for data in files]

    def run() -> torch.Tensor:
        latents = []
        for tok in toks:
            header = tok.picture
            payloads = tok.segment_payloads(0, header.layers)
            walk = tokenizer.entropy.decompress(payloads, header.grid, header.quality, header.layers)
            latents.append(walk.latents)
        x = tokenizer.pixels(torch.from_numpy(np.stack(latents)).to(tokenizer.device), toks[0].picture.quality)
        return (x * 255).round().byte().cpu()

    return run
