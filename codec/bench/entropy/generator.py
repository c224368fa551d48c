"""A generator as an entropy model, beside the priors that files have, on the same tokens; and how fast it samples.

Every signal's codes are cut to whole windows of the generator. It sees each window on its own; the context prior is
measured on the same windows, and on the same codes in the segments that files have, which is how it is used. All
numbers are code lengths of models: only the integer priors make files.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console

from ....entropy.prior import Codes
from ....tokenizers.quantize.base import ABSENT
from ....tokenizers.tokens import Tokens
from ...corpus.token_files import TOKEN_SUFFIXES
from ...errors import MediaError, UsageError, WeightsMismatchError
from ...generate.bits import code_bits, priors_of, whole_windows
from ...generate.files import load_pair
from ...generate.model import Generator, Uncached
from ...media.audio import AUDIO_SUFFIXES_IN
from ...media.read_image import IMAGE_SUFFIXES_IN
from ...models import Model, pick_device
from ...provenance import origin
from ...registry import default_generator
from ..inputs import input_files, read_tokens
from ..options import GeneratorOptions
from ..report import json_file, plain_console, print_table, said, table_of
from ..run import torch_threads

if TYPE_CHECKING:
    from ...generate.bits import BitsRow


LENGTHS = 16  # passes without the cache that are timed, at lengths spaced evenly


@dataclass(frozen=True)
class Speed:
    """Sampling with and without kept keys and values, the same samples."""

    samples: int
    ids: int  # of a sample
    cached_s: float
    uncached_s: float
    passes: int  # without the cache, that were timed; the others are taken to be like them

    def as_json(self) -> dict[str, float]:
        """With ids a second, and how many times as fast the cache is."""
        total = self.samples * self.ids
        rates = {"cached_ids_s": total / self.cached_s, "uncached_ids_s": total / self.uncached_s}
        return asdict(self) | rates | {"ratio": self.uncached_s / self.cached_s}


@torch.no_grad()
def sampling_speed(generator: Generator, samples: int, full: bool, seed: int) -> Speed:
    """Time a whole window with the cache, then passes without it."""
    length = len(generator.order(generator.window))

    def drawn(use_cache: bool) -> tuple[float, Tokens]:
        random = torch.Generator().manual_seed(seed)
        begin = now(generator)
        found = generator.sample(samples, generator=random, use_cache=use_cache)
        return now(generator) - begin, found

    grid = [1] * len(generator.window)  # a short one first, for what happens once only
    spec = dataclasses.replace(generator.config.window, size=generator.config.window.strides)
    short = Tokens(torch.full((1, generator.config.levels, *grid), ABSENT), spec)
    generator.sample(samples, short)
    if generator.device.type == "cuda":  # kernels are chosen for the shapes of the window
        drawn(True)
    cached, tokens = drawn(True)
    ids = generator.ids(tokens.codes.to(generator.device))
    if full:
        uncached, passes = drawn(False)[0], length
    else:
        walk = Uncached(generator, generator.order(generator.window))
        ends = np.linspace(1, length, min(LENGTHS, length)).round().astype(int).tolist()
        walk(ids, length)
        begin = now(generator)
        for end in ends:
            walk(ids, end)
        uncached, passes = (now(generator) - begin) / len(ends) * length, len(ends)
    return Speed(samples, length, cached, uncached, passes)


def now(generator: Generator) -> float:
    """Seconds, when the device has done what it was given."""
    if generator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def read_codes(path: Path, loaded: Model, tokenizer: str, device: str) -> list[Codes]:
    """Codes ``[K, *grid]`` of every signal in a file. Raises a TokodecError."""
    tokens = read_tokens(path, tokenizer, device)
    own = loaded.tokenizer
    if (tokens.spec.model, tokens.spec.weights_hash) != (own.name, own.weights_hash):
        theirs = f"{tokens.spec.model} {tokens.spec.weights_hash}"
        raise WeightsMismatchError(f"{path}: tokens of {theirs}, not of {own.name} {own.weights_hash}")
    if int(tokens.codes.min()) < 0:
        raise MediaError(f"{path}: some codes are absent")
    return list(tokens.codes.cpu().numpy())


def bench_generator(options: GeneratorOptions) -> dict[str, Any]:
    """Bits under the generator and under the priors, and sampling speed; print tables and write JSON.

    Returns: what the JSON file holds.
    Raises:  a TokodecError.
    """
    device, tokenizer = pick_device(options.device), options.tokenizer
    suffixes = (*IMAGE_SUFFIXES_IN, *AUDIO_SUFFIXES_IN, ".tok", *TOKEN_SUFFIXES)
    paths = input_files(options.inputs, suffixes, "media or tokens")[: options.limit]
    console = plain_console()
    with torch_threads(options.threads), json_file(options.out) as write, torch.no_grad():
        generator, loaded = load_pair(options.model or default_generator("image"), tokenizer, device)
        home = tokenizer or generator.config.window.model
        grids, names, short = [], [], 0
        for path in paths:
            found = [whole_windows(generator, codes) for codes in read_codes(path, loaded, home, device)]
            grids += [codes for codes in found if codes is not None]
            names += [path.name] * any(codes is not None for codes in found)
            short += sum(codes is None for codes in found)
        if not grids:
            raise UsageError(f"no input holds a whole window of {' x '.join(map(str, generator.window))} cells")
        priors = priors_of(home, device)
        rows = code_bits(generator, priors, grids)
        speed = sampling_speed(generator, options.samples, options.full, options.seed)
        windows = sum(math.prod(c.shape[1:]) for c in grids) // math.prod(generator.window)
        report: dict[str, Any] = {
            "generator": generator.name,
            "weights_hash": generator.weights_hash,
            "tokenizer": loaded.tokenizer.name,
            "tokenizer_hash": loaded.tokenizer.weights_hash,
            "prior_hashes": {name: prior.hash for name, prior in priors.items()},
            **origin(device),
            "inputs": names,
            "windows": windows,
            "too_small": short,
            "seed": options.seed,
            "bits": [asdict(row) for row in rows],
            "speed": speed.as_json(),
        }
        what = f"{windows} windows of {len(grids)} signals, {short} too small"
        said(console, f"{generator.name} {generator.weights_hash}: {what}")
        print_bits(rows, console)
        print_speed(report["speed"], console)
        write(report)
    return report


def print_bits(rows: Sequence[BitsRow], console: Console) -> None:
    levels = [(f"level {k + 1}", f"{{levels[{k}]:.3f}}") for k in range(len(rows[0].levels))]
    columns = [("model", "{model}"), *levels, ("a cell", "{cell:.3f}"), ("an id", "{token:.3f}")]
    entries = [vars(r) | {"share": r.cell / rows[0].cell if rows[0].cell else None} for r in rows]
    table = table_of(entries, [*columns, ("of the generator", "{share:.1%}")])
    print_table(console, table, "bits a code, the same tokens")


def print_speed(speed: Mapping[str, Any], console: Console) -> None:
    rows = [
        {"way": name, "seconds": speed[f"{key}_s"], "rate": speed[f"{key}_ids_s"]}
        for name, key in (("with KV cache", "cached"), ("without", "uncached"))
    ]
    columns = [("", "{way}"), ("seconds", "{seconds:.2f}"), ("ids/s", "{rate:.0f}")]
    print_table(console, table_of(rows, columns), f"sampling, {speed['samples']} x {speed['ids']} ids")
    few = f"{speed['passes']} passes at evenly spaced lengths"
    timed = "all passes" if speed["passes"] == speed["ids"] else few
    said(console, f"{speed['ratio']:.1f} times as fast with the cache; without it {timed} were timed")
