"""Tokens in files of their own, `.npz` and `.safetensors`: integers for other programs, not compressed by a prior.

Both hold an array ``codes [B, K, *grid]`` int32 and a text ``spec``, the fields of :class:`TokenSpec` as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MediaError, WeightsMismatchError

if TYPE_CHECKING:
    from ...tokenizers.api import Tokenizer
    from ...tokenizers.tokens import Tokens, TokenSpec


TOKEN_SUFFIXES = (".npz", ".safetensors")


def check_weights(spec: TokenSpec, tokenizer: Tokenizer, name: str = "") -> None:
    """Raise WeightsMismatchError if the tokens (of the file ``name``) are another model's."""
    if tokenizer.weights_hash != spec.weights_hash:
        raise WeightsMismatchError(
            f"{name + ': ' if name else ''}tokens of {spec.model} {spec.weights_hash},"
            f" the {tokenizer.name} at hand has {tokenizer.weights_hash}; give the right folder with --model"
        )


def dump_tokens(tokens: Tokens, suffix: str) -> bytes:
    """Bytes of a `.npz` or `.safetensors` file; see the module's text for the schema."""
    import numpy as np
    import safetensors.numpy

    codes = np.ascontiguousarray(tokens.codes.cpu().numpy(), dtype=np.int32)  # safetensors would mix other layouts up
    spec = json.dumps(dataclasses.asdict(tokens.spec))
    if suffix == ".safetensors":
        return safetensors.numpy.save({"codes": codes}, metadata={"spec": spec})
    buffer = BytesIO()
    np.savez_compressed(buffer, codes=codes, spec=np.array(spec))
    return buffer.getvalue()


def token_modality(src: str | Path) -> str:
    """What the tokens of a file are of; "image" if it does not say, reading it will tell what is wrong."""
    try:
        return load_tokens(src).spec.modality
    except MediaError:
        return "image"


def load_tokens(src: str | Path) -> Tokens:
    """Read what :func:`dump_tokens` wrote. Raises MediaError for anything else; nothing is unpickled."""
    import numpy as np
    import torch
    from safetensors import SafetensorError, safe_open

    from ...tokenizers.tokens import Tokens

    path = Path(src)
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(str(path), "np") as file:
                codes, text = file.get_tensor("codes"), (file.metadata() or {})["spec"]
        else:
            with np.load(path, allow_pickle=False) as arrays:
                codes, text = arrays["codes"], str(arrays["spec"][()])
        spec = parse_spec(json.loads(text))
        if codes.dtype != np.int32:
            raise ValueError(f"codes are {codes.dtype}, not int32")
        return Tokens(torch.from_numpy(codes.astype(np.int64)), spec)
    except OSError as error:
        raise MediaError(f"cannot read {src}: {error.strerror or error}") from error
    except (SafetensorError, zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, EOFError) as error:
        raise MediaError(f"{src} is not a file of tokens: {error}") from error


def parse_spec(fields: dict[str, Any]) -> TokenSpec:
    """A spec from what :func:`dataclasses.asdict` makes of it, by way of JSON.

    Raises: ValueError, TypeError or AttributeError if it is none.
    """
    from ...tokenizers.tokens import TokenSpec

    found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    spec = TokenSpec(**found)
    if not all(isinstance(n, int) and n > 0 for n in (*spec.size, *spec.strides, *spec.codebook_sizes)):
        raise ValueError("the spec holds a size that is not positive")
    if spec.first is not None and not (isinstance(spec.first, int) and 1 <= spec.first <= spec.strides[0]):
        raise ValueError("the first cell of the spec is not 1 to a stride long")
    return spec
