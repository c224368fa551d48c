"""tokodec: learned compression and generative tokenizers for images, audio and video.

>>> import tokodec
>>> tokodec.encode_file("photo.png", "photo.tok", quality=60)
>>> tokodec.decode_file("photo.tok", "photo.png")
>>> tokenizer = tokodec.load("image-grid")
>>> tokens = tokenizer.encode(x)          # x [B, 3, H, W] in [0, 1] -> tokens.codes [B, K, H/16, W/16] int64
>>> x_hat = tokenizer.decode(tokens)
>>> dataset = tokodec.datasets.TokenDataset("pictures", crop=256, cache="tokens")  # for torch.utils.data

Names load on first use, so that `import tokodec` does not import torch.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
import types
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .codec import datasets
    from .codec.contract import Decoded, Encoded
    from .codec.corpus import ray
    from .codec.decode import decode_file, video_frames
    from .codec.encode import encode_file
    from .codec.errors import TokodecError
    from .codec.generate.model import Generator, load_generator
    from .codec.models import load
    from .codec.options import DecodeOptions, EncodeOptions, Rate, TokenizeOptions
    from .codec.progress import Progress
    from .codec.registry import PriorKind, register_format, register_prior
    from .codec.tokens import detokenize_file, tokenize_file
    from .tokenizers.adapters.accelerate import accelerate
    from .tokenizers.adapters.factorized import adapt_compressai
    from .tokenizers.adapters.vq_pytorch import adapt
    from .tokenizers.api import Tokenizer
    from .tokenizers.processors import processor
    from .tokenizers.quantizers import QuantizerKind, register_quantizer
    from .tokenizers.registry import TokenizerKind, register_tokenizer
    from .tokenizers.tokens import Tokens, TokenSpec

# Where public names are: they load on first use.
_NAMES = {
    ".codec.contract": ("Decoded", "Encoded"),
    ".codec.decode": ("decode_file", "video_frames"),
    ".codec.encode": ("encode_file",),
    ".codec.errors": ("TokodecError",),
    ".codec.generate.model": ("Generator", "load_generator"),
    ".codec.models": ("load",),
    ".codec.options": ("DecodeOptions", "EncodeOptions", "Rate", "TokenizeOptions"),
    ".codec.progress": ("Progress",),
    ".codec.registry": ("PriorKind", "register_format", "register_prior"),
    ".codec.tokens": ("detokenize_file", "tokenize_file"),
    ".tokenizers.adapters.accelerate": ("accelerate",),
    ".tokenizers.adapters.factorized": ("adapt_compressai",),
    ".tokenizers.adapters.vq_pytorch": ("adapt",),
    ".tokenizers.api": ("Tokenizer",),
    ".tokenizers.processors": ("processor",),
    ".tokenizers.quantizers": ("QuantizerKind", "register_quantizer"),
    ".tokenizers.registry": ("TokenizerKind", "register_tokenizer"),
    ".tokenizers.tokens": ("TokenSpec", "Tokens"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "DecodeOptions",
    "Decoded",
    "EncodeOptions",
    "Encoded",
    "Generator",
    "PriorKind",
    "Progress",
    "QuantizerKind",
    "Rate",
    "TokenSpec",
    "TokenizeOptions",
    "Tokenizer",
    "TokenizerKind",
    "Tokens",
    "TokodecError",
    "__version__",
    "accelerate",
    "adapt",
    "adapt_compressai",
    "datasets",
    "decode_file",
    "detokenize_file",
    "encode_file",
    "load",
    "load_generator",
    "processor",
    "ray",
    "register_format",
    "register_prior",
    "register_quantizer",
    "register_tokenizer",
    "tokenize_file",
    "video_frames",
]


# Modules that have a short name: they load on first use, too.
_MODULES = {
    "datasets": ".codec.datasets",
    "imageio": ".codec.plugins.imageio",
    "pillow": ".codec.plugins.pillow",
    "ray": ".codec.corpus.ray",
}


class _Modules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `tokodec.datasets`, which is `tokodec.codec.datasets`: so that `from tokodec.datasets import ...` works."""

    def __init__(self) -> None:
        self.specs: dict[str, ModuleSpec | None] = {}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, short = name.rpartition(".")
        return ModuleSpec(name, self) if package == __name__ and short in _MODULES else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        module = importlib.import_module(_MODULES[spec.name.rpartition(".")[2]], __name__)
        self.specs[module.__name__] = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self.specs[module.__name__]  # it has been executed, under its own name


sys.meta_path.append(_Modules())


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
