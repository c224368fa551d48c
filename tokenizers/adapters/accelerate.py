"""The codebooks of other libraries search by :func:`~..quantize.nearest.nearest_codeword`: `tokodec.accelerate`."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def accelerate(module: M) -> M:
    """Let all codebooks in a module of `vector-quantize-pytorch` or `transformers` search by our kernels, in place.

    >>> model = tokodec.accelerate(ResidualVQ(dim=256, num_quantizers=8, codebook_size=1024))

    Indices are those of float64 over the values that the codebook compares, ties go to the smaller: where the module's
    own float32 decides otherwise, two codewords are equally near to within its rounding. No ``[M, N]`` matrix is made,
    in training as well, whose running means are added up by index. Parameters, buffers, losses and arguments stay what
    they are; `torch.compile`, copies and other processes take the module as before.

    Left as they are: codebooks whose loss is of all distances, beam search, implicit neural codebooks and random codes.

    Returns: the module.
    Raises:  ValueError if it holds no codebook that this is for.
    """
    found = 0
    kept: set[int] = set()
    for part in module.modules():
        library = type(part).__module__.partition(".")[0]
        if library not in ("vector_quantize_pytorch", "transformers"):
            continue
        fast: Any
        if library == "transformers":
            from . import fast_codecs as fast
        else:
            from . import fast_vq as fast

            if fast.keeps_distances(part):
                kept |= {id(own) for own in part.modules()}
        kind = None if id(part) in kept else fast.faster(part)
        if kind is not None:
            part.__class__ = kind
            found += 1
    already = any(type(part).__module__.startswith(f"{__package__}.fast_") for part in module.modules())
    if not found and not already:
        raise ValueError(f"{type(module).__name__} holds no codebook of vector-quantize-pytorch or transformers")
    return module
