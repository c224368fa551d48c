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
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .codec import datasets
    from .codec.contract import Decoded, Encoded
    from .codec.decode import decode_file
    from .codec.encode import encode_file
    from .codec.errors import TokodecError
    from .codec.generate.model import Generator, load_generator
    from .codec.models import load
    from .tokenizers.api import Tokenizer
    from .tokenizers.tokens import Tokens, TokenSpec

_HOMES = {
    "Decoded": ".codec.contract",
    "decode_file": ".codec.decode",
    "Encoded": ".codec.contract",
    "encode_file": ".codec.encode",
    "TokodecError": ".codec.errors",
    "Generator": ".codec.generate.model",
    "load_generator": ".codec.generate.model",
    "load": ".codec.models",
    "Tokenizer": ".tokenizers.api",
    "Tokens": ".tokenizers.tokens",
    "TokenSpec": ".tokenizers.tokens",
}
_MODULES = {"datasets": ".codec.datasets"}

__all__ = [
    "Decoded",
    "Encoded",
    "Generator",
    "TokenSpec",
    "Tokenizer",
    "Tokens",
    "TokodecError",
    "__version__",
    "datasets",
    "decode_file",
    "encode_file",
    "load",
    "load_generator",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name], __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
