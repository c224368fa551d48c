"""Quantizers: one small class each, one interface (:class:`~.base.Quantizer`)."""

from .base import (
    ABSENT,
    CodebookUsage,
    Gradient,
    Quantizer,
    QuantizerOutput,
    UsageReport,
    pass_gradient,
    rotation_trick,
    straight_through,
)
from .binary import BSQ, LFQ
from .codebook import CodebookQuantizer
from .fsq import FSQ
from .nearest import Backend, Metric, nearest_codeword, prepare_codebook, residual_codewords
from .prepared import PreparedQuantizer
from .residual import GroupResidualQuantizer, ResidualQuantizer
from .scalar import ScalarQuantizer
from .simvq import FullVQ, SimVQ, VQBridge
from .vq import EMAVQ, VQ, kmeans

__all__ = [
    "ABSENT",
    "BSQ",
    "EMAVQ",
    "FSQ",
    "LFQ",
    "VQ",
    "Backend",
    "CodebookQuantizer",
    "CodebookUsage",
    "FullVQ",
    "Gradient",
    "GroupResidualQuantizer",
    "Metric",
    "PreparedQuantizer",
    "Quantizer",
    "QuantizerOutput",
    "ResidualQuantizer",
    "ScalarQuantizer",
    "SimVQ",
    "UsageReport",
    "VQBridge",
    "kmeans",
    "nearest_codeword",
    "pass_gradient",
    "prepare_codebook",
    "residual_codewords",
    "rotation_trick",
    "straight_through",
]
