"""Autoencoders around a quantizer of `vector-quantize-pytorch`: VectorQuantize, ResidualVQ, GroupedResidualVQ, SimVQ,
FSQ, LFQ, ResidualFSQ.

::

    x -> analysis -> z [B, D, *grid] -> rows [B, n, D] -> quantizer -> indices -> codes [B, K, *grid]
    codes -> quantizer -> rows -> z_q [B, D, *grid] -> synthesis -> x_hat

Levels of residual quantizers are nested: without the last ones a signal is coarser. Those of GroupedResidualVQ are of
its groups in turn. Heads of VectorQuantize and codebooks of FSQ and LFQ stand side by side: a cell that lacks one of
them is the zero vector.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .. import weights
from ..api import Output
from ..audio.base import AudioTokenizer
from ..folders import HUB, find_model
from ..precision import whole_float32
from ..video.base import VideoTokenizer
from .base import AdaptedImage, WholeWeights

RESIDUAL, GROUPED = ("ResidualVQ", "ResidualFSQ"), "GroupedResidualVQ"
SINGLE = ("VectorQuantize", "SimVQ", "FSQ", "LFQ")
# Settings of their layout, and the values with which they take rows [B, n, D].
ROWS = {
    "accept_image_fmap": False, "accept_3d_fmap": False, "channel_last": True, "channel_first": False,
    "is_channel_first": False,
}  # fmt: skip

Modules = tuple[nn.Module, nn.Module, nn.Module]


class Codebooks:
    """A quantizer as levels of codes, coarse to fine. Raises ValueError for one that is not known here."""

    def __init__(self, quantizer: Any) -> None:
        known = (*RESIDUAL, GROUPED, *SINGLE)
        names = [base.__name__ for base in type(quantizer).__mro__]  # an accelerated one is a subclass
        self.kind = next((name for name in names if name in known), "")
        if not self.kind:
            raise ValueError(f"a quantizer is one of {', '.join(known)}, got {names[0]}")
        self.quantizer = quantizer

    @contextmanager
    def rows(self, training: bool = False) -> Iterator[None]:
        """While it takes rows, whatever its layout else; and learns nothing unless ``training``."""
        q, before = self.quantizer, self.quantizer.training
        kept = [(m, name, getattr(m, name)) for m in q.modules() for name in ROWS if hasattr(m, name)]
        for module, name, _ in kept:
            setattr(module, name, ROWS[name])
        q.train(training)
        try:
            yield
        finally:
            for module, name, value in kept:
                setattr(module, name, value)
            q.train(before)

    @property
    def sizes(self) -> tuple[int, ...]:
        q = self.quantizer
        if self.kind == GROUPED:
            return tuple(n for n in sizes_of(q.rvqs[0]) for _ in q.rvqs)
        if self.kind in RESIDUAL:
            return sizes_of(q)
        return (q.codebook_size,) * getattr(q, "num_codebooks", getattr(q, "heads", 1))

    def codewords(self) -> list[npt.NDArray[np.float32]] | None:
        """The table of every level; None if codewords depend on the levels before."""
        q = self.quantizer
        parts = q.rvqs if self.kind == GROUPED else [q]
        if getattr(parts[0], "implicit_neural_codebook", False):
            return None
        with torch.no_grad():
            if self.kind == "ResidualFSQ":
                tables = [[book * scale for book, scale in zip(q.codebooks, q.scales, strict=True)]]
            elif self.kind in (*RESIDUAL, GROUPED):
                tables = [list(part.codebooks) for part in parts]
            else:
                book = q.implicit_codebook if self.kind == "FSQ" else q.codebook
                tables = [list(book) if book.ndim == 3 else [book] * len(self.sizes)]
        return [t.detach().float().cpu().numpy() for level in zip(*tables, strict=True) for t in level]

    def codes_of(self, indices: Tensor, grid: Sequence[int]) -> Tensor:
        """What it gives for rows, ``[B, n]``, ``[B, n, K]`` or ``[G, B, n, K]``, to codes ``[B, K, *grid]``."""
        if self.kind == GROUPED:
            indices = indices.permute(1, 2, 3, 0).flatten(2)  # [B, n, K*G], levels of the groups in turn
        elif indices.ndim == 2:
            indices = indices[..., None]
        return indices.long().movedim(2, 1).unflatten(2, grid)

    def encode(self, z: Tensor) -> Tensor:
        """Latents ``[B, D, *grid]`` to codes ``[B, K, *grid]``."""
        with self.rows():
            return self.codes_of(self.quantizer(z.flatten(2).mT)[1], z.shape[2:])

    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``[B, k, *grid]`` to latents ``[B, D, *grid]``."""
        grid, q = codes.shape[2:], self.quantizer
        absent = codes.new_full((len(codes), len(self.sizes) - codes.shape[1], *grid), -1)
        indices = torch.cat([codes, absent], 1).flatten(2).mT  # [B, n, K]
        with self.rows():
            if self.kind == GROUPED:
                z_q = q.get_output_from_indices(list(indices.unflatten(2, (-1, len(q.rvqs))).unbind(3)))
            elif self.kind in RESIDUAL:
                z_q = q.get_output_from_indices(indices)
            else:
                there = (indices >= 0).all(2, keepdim=True)
                indices = indices.clamp_min(0) if len(self.sizes) > 1 else indices.clamp_min(0)[..., 0]
                lookup = q.get_output_from_indices if self.kind == "VectorQuantize" else q.indices_to_codes
                z_q = torch.where(there, lookup(indices), 0.0)
        return z_q.mT.unflatten(2, grid)

    def forward(self, z: Tensor, training: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Latents to quantized ones with gradients, codes, and the sum of its losses."""
        with self.rows(training):
            z_q, indices, *losses = self.quantizer(z.flatten(2).mT)
        loss = sum((own.float().sum() for own in losses), torch.zeros((), device=z.device))
        return z_q.mT.unflatten(2, z.shape[2:]), self.codes_of(indices, z.shape[2:]), loss


def sizes_of(quantizer: Any) -> tuple[int, ...]:
    """Codebook sizes of a residual quantizer."""
    return tuple(level.codebook_size for level in quantizer.layers)


# ---------------------------------------------------------------------------------------------------------- tokenizers


@dataclass(frozen=True)
class AdaptedConfig:
    """Nothing: a subclass with settings has a configuration of its own."""


class VQTokenizer(WholeWeights):
    """A tokenizer of three modules. Somebody else's is a subclass that makes them in :meth:`build`."""

    config_class: ClassVar[type[Any]] = AdaptedConfig
    extra = "vector-quantize"
    analysis: nn.Module
    quantizer: nn.Module
    synthesis: nn.Module

    def __init__(self, config: Any = None, name: str = "adapted", modules: Modules | None = None) -> None:
        super().__init__(self.config_class() if config is None else config, name)
        self.analysis, self.quantizer, self.synthesis = modules or self.build()
        _ = self.books  # says if the quantizer is not known

    def build(self) -> Modules:
        """Encoder, quantizer and decoder, by ``self.config``."""
        raise ValueError(f"{type(self).__name__} has no modules: they are code, make it with tokodec.adapt")

    def load_code(self, name: str) -> str:
        if type(self).build is not VQTokenizer.build:
            return super().load_code(name)
        names = ("modality", "strides", "sample_rate", "name", "pixels", "context")
        usual = {own: parameter.default for own, parameter in inspect.signature(adapt).parameters.items()}
        said = [f"{own}={value!r}" for own in names if (value := getattr(self, own)) != usual[own]]
        return f"tokodec.adapt(encoder, quantizer, decoder, {', '.join(said)}, weights_from={name!r})"

    @property
    def books(self) -> Codebooks:
        return Codebooks(self.quantizer)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self.books.sizes

    def codewords(self) -> list[npt.NDArray[np.float32]] | None:
        return self.books.codewords()

    def to_net(self, x: Tensor) -> Tensor:
        """A signal in the range that the analysis net takes."""
        return x

    def from_net(self, x: Tensor) -> Tensor:
        """What the synthesis net makes in the range of signals."""
        return x

    def encode_codes(self, x: Tensor) -> Tensor:
        with whole_float32(self.device):
            return self.books.encode(self.analysis(self.to_net(x)))

    def decode_codes(self, codes: Tensor) -> Tensor:
        with whole_float32(self.device):
            return self.from_net(self.synthesis(self.books.decode(codes)))

    def save_pretrained(self, folder: str | Path) -> str:
        """As ever; entropy models that come to lie in the folder are this tokenizer's from now on."""
        weights_hash = super().save_pretrained(folder)
        self._source = Path(folder)
        return weights_hash

    def forward(self, x: Tensor) -> Output:
        """For training: the losses of the quantizer are "auxiliary", weighted as it weights them itself."""
        z_q, codes, loss = self.books.forward(self.analysis(self.to_net(x)), self.training)
        none = torch.zeros_like(loss)
        losses = {"commitment": none, "codebook": none, "auxiliary": loss}
        return Output(self.from_net(self.synthesis(z_q)), codes, losses)


class VQImage(VQTokenizer, AdaptedImage):
    """Pictures. ``pixels``: the range that its nets take."""

    to_net, from_net = AdaptedImage.to_net, AdaptedImage.from_net


class VQAudio(VQTokenizer, AudioTokenizer):
    """Sounds. ``context``: frames on both sides that a frame's codes and samples depend on."""


class VQVideo(VQTokenizer, VideoTokenizer):
    """Clips."""


CLASSES: dict[str, type[VQTokenizer]] = {"image": VQImage, "audio": VQAudio, "video": VQVideo}


def adapt(
    encoder: nn.Module, quantizer: nn.Module, decoder: nn.Module, *, modality: str, strides: Sequence[int],
    sample_rate: float | None = None, name: str = "adapted", pixels: tuple[float, float] = (0.0, 1.0),
    context: int = 16, weights_from: str | Path | None = None,
) -> VQTokenizer:  # fmt: skip
    """A tokenizer around a quantizer of `vector-quantize-pytorch`.

    >>> tokenizer = tokodec.adapt(encoder, ResidualVQ(...), decoder, modality="image", strides=(8, 8))
    >>> tokodec.encode_file("photo.png", "photo.tok", model=tokenizer)

    Args:
        encoder: signals ``[B, 3, H, W]``, ``[B, 1, n]`` or ``[B, 3, T, H, W]`` of whole cells to ``[B, D, *grid]``.
        quantizer: of ``D`` channels; in which layout it takes them does not matter.
        decoder: ``[B, D, *grid]`` to signals.
        modality: "image", "audio" or "video".
        strides: signal samples of a grid cell along every axis.
        sample_rate: of sounds, whole hertz.
        name: that files will have.
        pixels: the range of pixels that encoder and decoder take.
        context: of sounds, frames on both sides that a frame depends on; long sounds are cut into blocks.
        weights_from: a folder that ``save_pretrained`` of such a tokenizer wrote, or `hf:USER/MODEL`.

    Returns: a tokenizer of the modules themselves, not of copies; in evaluation mode.
    Raises:  ValueError if they do not fit each other, or the folder.
    """
    if modality not in CLASSES:
        raise ValueError(f"a modality is one of {', '.join(CLASSES)}, got {modality!r}")
    if (modality == "audio") != (sample_rate is not None):
        raise ValueError("sounds have a sample_rate, pictures and clips have none")
    made: Any = CLASSES[modality](name=name, modules=(encoder, quantizer, decoder))
    made.strides, made.sample_rate = tuple(strides), sample_rate
    made.pixels, made.context = pixels, context
    if weights_from is not None:
        hub = str(weights_from).startswith(HUB)
        folder = find_model(weights_from) if hub else Path(weights_from)
        state, _ = weights.load_hashed(folder / weights.WEIGHTS_FILE)
        try:
            made.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{folder} holds weights of other modules: {error}") from error
        made._source = folder
    tokenizer: VQTokenizer = made.eval()
    return tokenizer
