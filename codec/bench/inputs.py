"""Inputs of benchmarks: pictures, `.tok` and token files as codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...entropy.context.prior import ContextPrior
from ...entropy.prior import Codes, Prior, check_codes
from ...entropy.static import STATIC_FILE, StaticPrior
from ...tokenizers.folders import find_model
from ...tokenizers.tokens import Tokens, TokenSpec
from ..container.fields import ImageHeader
from ..container.write import write_tok
from ..corpus.token_files import TOKEN_SUFFIXES, load_tokens
from ..errors import FormatError, MediaError, ModelError, UsageError, WeightsMismatchError
from ..image.segments import segment_cells
from ..models import weights_hash_of
from ..provenance import origin
from ..tokens import tokenize_file
from .timing import torch_versions

Columns = list[list[bytes]]  # payloads [s][k] of segment s and level k


@dataclass(frozen=True)
class Input:
    """Codes of one picture."""

    name: str
    codes: Codes  # [k, h, w]
    spec: TokenSpec

    def header(self, prior: Prior, layers: int) -> ImageHeader:
        """Header of a file with the first ``layers`` levels, as `codec encode` writes it."""
        height, width = self.spec.size
        return ImageHeader(
            model=self.spec.model, weights_hash=self.spec.weights_hash, prior=prior.wire_id, prior_hash=prior.hash,
            layers=layers, height=height, width=width, stride=self.spec.strides[0],
            segment=segment_cells(self.spec.strides[0]), channels=3,
        )  # fmt: skip

    def segments(self, prior: Prior) -> list[Codes]:
        """The codes in the parts that are coded on their own, ``[k, <=64, <=64]`` each."""
        header = self.header(prior, len(self.codes))
        boxes = map(header.segment_box, range(header.n_segments))
        return [self.codes[:, top:bottom, left:right] for top, left, bottom, right in boxes]

    def compress(self, prior: Prior) -> Columns:
        return [prior.compress(codes) for codes in self.segments(prior)]

    def bits(self, prior: Prior) -> np.ndarray:
        """What the prior estimates for each level, ``[k]`` float64."""
        total: np.ndarray = np.sum([prior.bits(codes) for codes in self.segments(prior)], axis=0)
        return total

    def file_bytes(self, prior: Prior, columns: Columns, layers: int) -> int:
        """Size of the whole file with the first ``layers`` levels."""
        return len(write_tok(self.header(prior, layers), [list(row) for row in zip(*columns, strict=True)][:layers]))


# --------------------------------------------------------------------------------------------------- the inputs


def load_priors(name: str, device: str) -> tuple[Path, StaticPrior, ContextPrior]:
    """Folder of a model and both of its entropy models; without static tables codes have fixed lengths.

    Raises: ModelError if it has no context prior.
    """
    try:
        folder = find_model(name)
        context = ContextPrior.from_pretrained(folder, device)
        there = (folder / STATIC_FILE).is_file()
        static = StaticPrior.from_pretrained(folder) if there else StaticPrior.uniform(context.codebook_sizes)
    except (OSError, ValueError) as error:
        raise ModelError(" ".join(str(error).split())) from error
    if static.codebook_sizes != context.codebook_sizes:
        raise ModelError(f"the entropy models in {folder} have different codebook sizes")
    return folder, static, context


def input_files(inputs: Sequence[Path], suffixes: Sequence[str], what: str) -> list[Path]:
    """Files in the order given; a folder stands for the files in it with one of the suffixes, by name.

    Raises: UsageError for a folder without any.
    """
    files = []
    for path in inputs:
        inside = [path]
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and p.is_file())
        if not inside:
            raise UsageError(f"no {what} in {path}")
        files += inside
    return files


def read_tokens(path: Path, model: str | None, device: str) -> Tokens:
    """Of a medium, a `.tok` file or a file of tokens. Raises a TokodecError, for a damaged one too."""
    if path.suffix.lower() in TOKEN_SUFFIXES:
        return load_tokens(path)
    done = tokenize_file(path, model=model, device=device)
    if done.problems:
        raise FormatError(f"{path}: {done.problems[0]}; only intact files are compared")
    return done.tokens


def read_input(path: Path, model: str | None, device: str, weights_hash: str, prior: Prior) -> Input:
    """Codes of a picture, a `.tok` file or a file of tokens. Raises a TokodecError if not whole, or another model's."""
    tokens = read_tokens(path, model, device)
    spec = tokens.spec
    if spec.weights_hash != weights_hash:
        raise WeightsMismatchError(
            f"{path}: tokens of {spec.model} {spec.weights_hash}, the model at hand has {weights_hash};"
            " give the right folder with --model"
        )
    found = Input(path.name, tokens.codes[0].numpy(), spec)
    if spec.modality != "image" or len(tokens.codes) != 1:
        raise MediaError(f"{path}: these are not the tokens of one picture")
    try:
        check_codes(found.codes, prior.codebook_sizes)
    except ValueError as error:
        raise MediaError(f"{path}: {error}") from error
    if found.header(prior, 1).grid != found.codes.shape[1:]:
        raise MediaError(f"{path}: these are not the tokens of one picture")
    return found


def read_inputs(paths: Sequence[Path], model: str | None, device: str, folder: Path, prior: Prior) -> list[Input]:
    """Raises a TokodecError for the first input that cannot be read, or if they have different numbers of levels."""
    weights_hash = weights_hash_of(folder)
    inputs = [read_input(path, model, device, weights_hash, prior) for path in paths]
    for path, found in zip(paths, inputs, strict=True):
        if len(found.codes) != len(inputs[0].codes):
            raise UsageError(
                f"{path} has {len(found.codes)} levels, {paths[0]} has {len(inputs[0].codes)}: give inputs of one kind"
            )
    return inputs


def priors_origin(folder: Path, static: Prior, context: Prior, device: str) -> dict[str, Any]:
    """What was measured, where, and when: the start of a report."""
    place = origin(device)
    return {
        "model": folder.name,
        "weights_hash": weights_hash_of(folder),
        "prior_hashes": {"static": static.hash, "context": context.hash},
        **place,
        "versions": place["versions"] | torch_versions("numpy", "constriction", "compressai"),
    }
