"""What all quantizers share: the interface, gradient estimators and codebook telemetry."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor, nn

Gradient = Literal["straight-through", "rotation"]
Cluster = Callable[[Tensor, int], Tensor]  # rows [M, D] and a number n to centres [n, D], such as k-means

Q = TypeVar("Q", bound="Quantizer")

# A code that is not there: a level that was dropped or lost. It adds the zero vector.
ABSENT = -1

# Implicit codebooks (binary, finite scalar) up to this size have their codewords counted in training.
MAX_COUNTED = 1 << 18


@dataclass
class QuantizerOutput:
    """What a quantizer returns in training.

    Attributes:
        z_q: ``[B, D, *grid]`` quantized latents, with the gradient estimator attached.
        codes: ``[B, K, *grid]`` int64; ``ABSENT`` where a level was dropped.
        commitment_loss: scalar, pulls the encoder to the codewords (codewords detached).
        codebook_loss: scalar, pulls the codewords to the encoder (encoder detached); zero if nothing is learned so.
        auxiliary_loss: scalar, what else a quantizer asks for (the entropy penalty of binary codes); zero by default.
    """

    z_q: Tensor
    codes: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor
    auxiliary_loss: Tensor = field(default_factory=lambda: torch.zeros(()))


class Quantizer(nn.Module, abc.ABC):
    """Maps latents ``[B, D, *grid]`` to codes ``[B, K, *grid]`` and back, for a grid of any rank.

    Subclasses set :attr:`dim` and :attr:`codebook_sizes`, and define :meth:`forward`, :meth:`encode` and
    :meth:`decode`; what else models, trainers and entropy models ask has defaults here. Kinds that recipes can name
    are in :mod:`..quantizers`.

    Latents may be of any floating-point type, and weights as well (``.bfloat16()``); quantized latents and losses are
    float32, whatever autocast says.
    """

    #: Buffers that stay float32 whatever type the module is cast to.
    float32_buffers: tuple[str, ...] = ()
    #: Buffers that only training needs: a release leaves them out, and :meth:`restart` makes them anew.
    training_buffers: tuple[str, ...] = ()
    #: Whether a release keeps its weights to the last bit; else they are rounded (tables, :mod:`..weights`).
    whole_weights: bool = False
    #: Whether training changes codewords by other means than gradients (moving averages, revival), on the host: then
    #: a step is no CUDA graph, and :meth:`freeze` is needed to stop it.
    moves: bool = False
    frozen: bool = False

    dim: int  # D, channels of the latents
    codebook_sizes: tuple[int, ...]  # N of each of the K codebooks

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Quantizer:
        held = {name: getattr(self, name) for name in self.float32_buffers}
        super()._apply(fn, recurse)
        for name, before in held.items():
            after = getattr(self, name)
            if after.dtype != before.dtype:
                setattr(self, name, before.to(after.device))
        return self

    @property
    def n_codebooks(self) -> int:
        return len(self.codebook_sizes)

    @property
    def n_groups(self) -> int:
        """Codebooks that together are one level."""
        return 1

    @property
    def parts(self) -> Sequence[Quantizer]:
        """The quantizers with a codebook each that this one is made of, in the order of the codes."""
        return [self]

    @property
    def cascade(self) -> Sequence[Quantizer]:
        """:attr:`parts`, if each searches a table for what those before it left over, so that the search can count
        bits (``penalty``); else none."""
        return []

    @abc.abstractmethod
    def forward(self, z_e: Tensor, *, n_codes: Tensor | None = None) -> QuantizerOutput:
        """Quantize for training: latents ``[B, D, *grid]`` to :class:`QuantizerOutput`.

        n_codes: ``[B]`` int64, how many codebooks each batch element keeps; as the quantizer is set if None.
        """

    @abc.abstractmethod
    def encode(self, z_e: Tensor) -> Tensor:
        """Latents ``[B, D, *grid]`` to codes ``[B, K, *grid]`` int64."""

    @abc.abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``[B, k, *grid]`` int64, the first ``k <= K`` codebooks, to latents ``[B, D, *grid]``."""

    def search(self, z_e: Tensor, n_codes: int | None = None, beams: int = 1, seen: int | None = None) -> Tensor:
        """The first ``n_codes`` codes of :meth:`encode`, all if None.

        beams, seen: of residual search, see :func:`~.beam.beam_codewords`; others do without.
        """
        return self.encode(z_e)[:, :n_codes]

    def encode_after(
        self, z_e: Tensor, before: Tensor, discounts: Tensor, n_levels: int | None = None
    ) -> Tensor:
        """As :meth:`search`, where the codes ``before`` may be kept, see :meth:`~.residual.ResidualQuantizer`; here
        they never are."""
        return self.search(z_e, n_levels)

    @torch.no_grad()
    def errors(self, z_e: Tensor, codes: Tensor) -> Tensor:
        """Squared error of latents ``[B, D, *grid]`` after the first 1, 2, ... of ``codes [B, k, *grid]``,
        ``[B, k, *grid]``."""
        made = (self.decode(codes[:, : k + 1]) for k in range(codes.shape[1]))
        return torch.stack([(z_e - z_q).square().sum(1) for z_q in made], 1)

    @torch.no_grad()
    def tables(self) -> list[npt.NDArray[np.float32]] | None:
        """The table ``[N_k, D_k]`` of every codebook, for entropy models; None where there is none, or too large."""
        if self.n_codebooks > 1 or self.codebook_sizes[0] > MAX_COUNTED:
            return None
        device = next((t.device for t in (*self.parameters(), *self.buffers())), torch.device("cpu"))
        codes = torch.arange(self.codebook_sizes[0], device=device)
        return [self.decode(codes[:, None]).float().cpu().numpy()]

    @torch.no_grad()
    def start(self, rows: Tensor, cluster: Cluster, first: int = 0) -> None:
        """Begin with codewords that suit latents ``rows [M, D]``, from level ``first`` on, where there are tables."""

    def fold(self) -> None:
        """Replace a codebook that is computed by its codewords: same codes, nothing left to compute."""

    def restart(self) -> None:
        """Set :attr:`training_buffers` to where training begins with the codewords as they are."""

    def freeze(self) -> None:
        """From now on codewords change by gradients alone, in training mode too."""
        for part in self.parts:
            if part.moves:
                part.frozen = True
                part.eval()

    def train(self: Q, mode: bool = True) -> Q:
        return super().train(mode and not self.frozen)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        missing: list[str] = more[2]
        before = len(missing)
        super()._load_from_state_dict(state_dict, prefix, *more)
        names = {prefix + name for name in self.training_buffers}
        if names and names <= set(missing[before:]):  # of a release
            missing[before:] = [name for name in missing[before:] if name not in names]
            self.restart()

    def check_codes(self, codes: Tensor) -> None:
        """Raise ValueError unless ``codes [B, k, *grid]`` are int64 within ``[ABSENT, N_k)`` and ``1 <= k <= K``.

        Traced code (`torch.compile`, `torch.export`) has no place for an error that depends on values: there only types
        and shapes are checked, and a code outside its codebook is an error of the look-up.
        """
        if codes.dtype != torch.int64 or codes.ndim < 2:
            raise ValueError(f"codes must be int64 [B, K, *grid], got {codes.dtype} {tuple(codes.shape)}")
        if not 1 <= codes.shape[1] <= self.n_codebooks:
            raise ValueError(f"{codes.shape[1]} levels of codes, but the quantizer has {self.n_codebooks}")
        if torch.compiler.is_compiling() or codes.numel() == 0:
            return
        sizes = codes.new_tensor(self.codebook_sizes[: codes.shape[1]])
        top = codes.movedim(1, 0).flatten(1).amax(1)  # [k]
        if bool((top >= sizes).any()) or int(codes.amin()) < ABSENT:
            raise ValueError(f"a code lies outside its codebook {self.codebook_sizes}")


def keep_codes(quantizer: Quantizer, z_e: Tensor, out: QuantizerOutput, n_codes: Tensor | None) -> QuantizerOutput:
    """What ``out`` is if batch elements keep their first ``n_codes [B]`` codes alone; losses stay those of all."""
    if n_codes is None:
        return out
    n = n_codes.view(-1, *[1] * (z_e.ndim - 1))  # [B, 1, ...]
    place = torch.arange(quantizer.n_codebooks, device=z_e.device).view(1, -1, *[1] * (z_e.ndim - 2))
    codes = torch.where(place < n, out.codes, ABSENT)
    z_q = torch.where(n < quantizer.n_codebooks, straight_through(z_e.float(), quantizer.decode(codes)), out.z_q)
    return replace(out, z_q=z_q, codes=codes)


def channels_last_rows(z: Tensor) -> Tensor:
    """``[B, D, *grid] -> [B * prod(grid), D]``."""
    return rearrange(z, "b d ... -> (b ...) d")


def rows_to_grid(rows: Tensor, like: Tensor) -> Tensor:
    """``[B * prod(grid), D] -> [B, D, *grid]`` with B and grid of ``like [B, ?, *grid]``."""
    return rows.reshape(like.shape[0], *like.shape[2:], rows.shape[-1]).movedim(-1, 1)


def straight_through(z_e: Tensor, z_q: Tensor) -> Tensor:
    """Value of ``z_q``, gradient of ``z_e`` (Bengio et al., arXiv:1308.3432). Any equal shapes."""
    return z_q.detach() + (z_e - z_e.detach())  # the bracket is an exact zero, so the value is z_q to the bit


def rotation_trick(z_e: Tensor, z_q: Tensor, eps: float = 1e-6) -> Tensor:
    """Value of ``z_q``; the gradient is rotated and rescaled from the codeword to the encoder output.

    Args:    z_e, z_q: ``[..., D]``.
    Source:  Fifty et al., arXiv:2410.06424, eq. (4): R = I - 2 r r^T + 2 q e^T with r = (e + q) / |e + q|, held
             constant.
    Differs: where e and q are opposite (|e + q| < eps) R is undefined; there only the rescaling stays.
    """
    e, q = z_e.detach(), z_q.detach()
    e_norm, q_norm = e.norm(dim=-1, keepdim=True), q.norm(dim=-1, keepdim=True)
    e_unit, q_unit = e / e_norm.clamp_min(eps), q / q_norm.clamp_min(eps)
    r = e_unit + q_unit
    r_norm = r.norm(dim=-1, keepdim=True)
    r = torch.where(r_norm > eps, r / r_norm.clamp_min(eps), torch.zeros_like(r))
    along_r = (z_e * r).sum(-1, keepdim=True)
    along_e = (z_e * e_unit).sum(-1, keepdim=True)
    rotated = z_e - 2 * along_r * r + 2 * along_e * q_unit
    rotated = torch.where(r_norm > eps, rotated, z_e)
    out = rotated * (q_norm / e_norm.clamp_min(eps))
    return straight_through(out, z_q)  # the line above is only there for its gradient


def pass_gradient(z_e: Tensor, z_q: Tensor, how: Gradient) -> Tensor:
    """Attach the gradient estimator ``how`` to rows ``z_e, z_q [..., D]``."""
    if how == "straight-through":
        return straight_through(z_e, z_q)
    if how == "rotation":
        return rotation_trick(z_e, z_q)
    raise ValueError(f"unknown gradient estimator {how!r}: use 'straight-through' or 'rotation'")


@dataclass(frozen=True)
class UsageReport:
    """Codebook telemetry over the codes counted since the last reset.

    Attributes:
        usage: share of codewords used at least once, in [0, 1].
        perplexity: exp of the entropy of the code histogram, in [1, N].
        dead: codewords seen fewer than ``dead_below`` times.
        total: number of codes counted.
    """

    usage: float
    perplexity: float
    dead: int
    total: int


class CodebookUsage(nn.Module):
    """Counts how often each codeword is chosen. The counts are a buffer that is not saved with the weights."""

    counts: Tensor

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(codebook_size, dtype=torch.long), persistent=False)

    @torch.no_grad()
    def update(self, indices: Tensor) -> None:
        """Count ``indices`` of any shape; ``ABSENT`` is skipped."""
        flat = indices.flatten()
        # Not bincount: on CUDA it waits for the device, once for each level of each training step.
        self.counts.index_add_(0, flat.clamp_min(0), (flat >= 0).to(self.counts.dtype))

    def reset(self) -> None:
        self.counts.zero_()

    def report(self, dead_below: int = 1) -> UsageReport:
        counts = self.counts.double()
        total = counts.sum()
        p = counts / total.clamp_min(1)
        entropy = -(p * p.clamp_min(1e-30).log()).sum()
        return UsageReport(
            usage=float((counts > 0).double().mean()),
            perplexity=float(entropy.exp()) if total > 0 else 0.0,
            dead=int((counts < dead_below).sum()),
            total=int(total),
        )
