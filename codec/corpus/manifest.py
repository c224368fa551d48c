"""What a folder of shards says of itself: what its tokens were made with, a row for each sample, and what failed.

::

    _manifest.json           written first: all that decides tokens; at the end also the shards and what is in them
    part-RRRR-SSSS.*         shard S of rank R
    part-RRRR-SSSS.jsonl     a row for each of its samples; appears last, so a shard with rows is whole
    _rank-RRRR.json          written when the rank has ended: counts, seconds, machine, versions
    errors-RRRR.jsonl        samples of the rank that failed: key, source, reason
    errors.jsonl, _SUCCESS   at the end

A row: ``key``, ``source``, ``sha256`` (of the medium), ``codes`` (:func:`.token_files.checksum` of the tokens),
``device`` and ``seconds`` (of reading and decoding, and its share of the batch). Model, weights and versions are in the
manifest: all rows of a corpus share them.
"""

from __future__ import annotations

import json
import os
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MediaError, OutputExistsError, UsageError, one_line
from ..models import load_model
from .places import Place, move, place_of
from .shards import SHARD_SUFFIXES, Shard, open_shard
from .sources import list_samples
from .token_files import checksum, spec_text

if TYPE_CHECKING:
    from ...tokenizers.tokens import Tokens
    from ..models import Model

FORMAT = "tokodec shards 1"
MOST_OPEN = 8  # shards of a corpus
MANIFEST, SUCCESS, ERRORS = "_manifest.json", "_SUCCESS", "errors.jsonl"
ROWS = ".jsonl"  # after the name of a shard


def shard_name(rank: int, number: int) -> str:
    return f"part-{rank:04}-{number:04}"


def rank_file(rank: int) -> str:
    return f"_rank-{rank:04}.json"


def errors_file(rank: int) -> str:
    return f"errors-{rank:04}.jsonl"


def codes_hash(tokens: Tokens) -> str:
    """Of the spec and the codes, in whatever format they are stored."""
    import numpy as np

    return checksum(spec_text(tokens.spec), tokens.codes.cpu().numpy().astype(np.int32))


def write_json(place: Place, name: str, content: dict[str, Any], force: bool = True) -> None:
    with place.outputs([name], force) as (file,):
        file.write((json.dumps(content, indent=1) + "\n").encode())


def read_json(place: Place, name: str) -> dict[str, Any]:
    """Raises MediaError if it is missing or damaged."""
    with place.open(name) as file:
        try:
            content = json.loads(file.read())
        except (OSError, ValueError) as error:
            raise MediaError(f"cannot read {place.name}/{name}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise MediaError(f"cannot read {place.name}/{name}: it holds no object")
    return content


def read_lines(place: Place, name: str) -> Iterator[dict[str, Any]]:
    """Objects of a file of JSON lines. Raises MediaError."""
    with place.open(name) as file:
        try:
            yield from map(json.loads, file)
        except (OSError, ValueError) as error:
            raise MediaError(f"cannot read {place.name}/{name}: {one_line(error)}") from error


def begin(place: Place, fingerprint: dict[str, Any]) -> None:
    """Write the manifest of a new corpus; of one that is there, compare. Ranks may do this at the same time.

    Raises: UsageError in one line if it was begun with anything else.
    """
    with suppress(OutputExistsError):
        if not place.has(MANIFEST):
            write_json(place, MANIFEST, {"format": FORMAT, "fingerprint": fingerprint}, force=False)
    there = read_json(place, MANIFEST).get("fingerprint", {})  # that of another rank, which may have been quicker
    wanted = json.loads(json.dumps(fingerprint))
    differing = [name for name in {**there, **wanted} if there.get(name) != wanted.get(name)]
    if differing:
        name = differing[0]
        raise UsageError(
            f"{place.name} was begun with {name} {there.get(name)}, not {wanted.get(name)}: its tokens would not be"
            " alike; give the same options, or another folder"
        )


def shards_of(place: Place, rank: int) -> list[str]:
    """Files of rows of the whole shards of a rank, in order."""
    return place.names(f"part-{rank:04}-", ROWS)


def finish(folder: str | Path | Place, others: Sequence[str | Path] = ()) -> dict[str, Any]:
    """Put the shards of all ranks together, once they have all ended: the whole manifest, errors, and ``_SUCCESS``.

    Args:    folder: or URL.  others: those that ranks without a common disk wrote to; their files are moved.
    Returns: the manifest.
    Raises:  UsageError if a rank has not ended, or folders are of different corpora.
    """
    place = place_of(folder)
    for other in map(place_of, others):
        if other.same_as(place):
            raise UsageError(f"{other.name} is the folder that the others are moved to")
        begin(place, read_json(other, MANIFEST)["fingerprint"])
        names = [name for start in ("part-", "errors-", "_rank-") for name in other.names(start)]
        for name in sorted(names, key=lambda name: (name.startswith("_rank-"), name.endswith(ROWS))):
            move(name, other, place)
    manifest = read_json(place, MANIFEST)
    world = int(manifest["fingerprint"]["world"])
    ended = place.names("_rank-", ".json")
    if missing := [rank for rank in range(world) if rank_file(rank) not in ended]:
        first = f"of {world} ranks {len(missing)} have not ended, the first is rank {missing[0]}"
        raise UsageError(f"{place.name}: {first}")
    ranks = [read_json(place, rank_file(rank)) for rank in range(world)]
    manifest["shards"] = [shard for rank in ranks for shard in rank["shards"]]
    manifest["samples"] = sum(n for _, n in manifest["shards"])
    manifest["failed"] = sum(rank["failed"] for rank in ranks)
    manifest["seconds"] = sum(rank["seconds"] for rank in ranks)
    with place.outputs([ERRORS]) as (errors,):
        for rank in range(world):
            with place.open(errors_file(rank)) as file:
                shutil.copyfileobj(file, errors)
    place.tidy()
    write_json(place, MANIFEST, manifest)
    with place.outputs([SUCCESS]):
        pass
    return manifest


class Corpus:
    """A finished folder of shards, read by number; a shard is opened when it is needed, and the last ones are kept.

    Args: folder: or URL.  model: of `.tok` shards, if it is no release.

    Attributes:
        fingerprint: what its tokens were made with.
        shards: name and number of samples of each.
    """

    def __init__(self, folder: str | Path | Place, model: Model | None = None) -> None:
        self.place = place_of(folder)
        self._held: dict[tuple[int, int], Shard] = {}
        self._numbers: dict[str, int] | None = None
        if not self.place.has(SUCCESS):
            raise UsageError(
                f"{self.place.name} is not a finished corpus: run its ranks with --resume, or codec corpus merge"
            )
        manifest = read_json(self.place, MANIFEST)
        if manifest.get("format") != FORMAT:
            raise MediaError(f"{self.place.name}: its format is {manifest.get('format')!r}, not {FORMAT!r}")
        self.fingerprint: dict[str, Any] = manifest["fingerprint"]
        self.shards: list[tuple[str, int]] = [(str(name), int(n)) for name, n in manifest["shards"]]
        self.model = model
        self._ends = list(accumulate(n for _, n in self.shards))

    def __len__(self) -> int:
        return sum(n for _, n in self.shards)

    def __getstate__(self) -> dict[str, Any]:
        """Without open files, for other processes."""
        return {**self.__dict__, "_held": {}}

    def sample(self, i: int) -> tuple[str, Tokens]:
        """Key and tokens of sample i, counted through all shards. Raises MediaError if it cannot be read."""
        number = bisect_right(self._ends, i)
        key = number, os.getpid()  # a forked process would share the place in the file
        shard = self._held.pop(key, None) or self.shard(number)
        self._held[key] = shard
        if len(self._held) > MOST_OPEN:
            del self._held[next(iter(self._held))]
        i -= self._ends[number] - self.shards[number][1]
        return shard.keys[i], shard.tokens(i)

    def tokens(self, key: str) -> Tokens:
        """Of the sample with a key. The first call reads all rows; keys stay in memory.

        Raises: KeyError if there is none.
        """
        if self._numbers is None:
            keys = (row["key"] for number in range(len(self.shards)) for row in self.rows(number))
            self._numbers = {found: i for i, found in enumerate(keys)}
        return self.sample(self._numbers[key])[1]

    def shard(self, number: int) -> Shard:
        """Raises MediaError if it is missing or damaged."""
        name, n = self.shards[number]
        format = self.fingerprint["format"]
        folder = self.place.local([name + suffix for suffix in SHARD_SUFFIXES[format]])
        shard = open_shard(folder / name, format, self.model)
        if len(shard.keys) != n:
            raise MediaError(f"{self.place.name}/{name}: {len(shard.keys)} samples, not the {n} of the manifest")
        return shard

    def rows(self, number: int) -> Iterable[dict[str, Any]]:
        return read_lines(self.place, self.shards[number][0] + ROWS)


def verify(folder: str | Path, sources: Sequence[str] = (), model: str | None = None) -> Iterator[str]:
    """What is wrong with a corpus, a line each: nothing, if every sample is there once and its codes have their hash.

    Args:    sources: what it was made of; then every sample of them must be there, or among the errors, and no other.
             model: of `.tok` shards, if it is no release.
    Raises:  UsageError if it is not finished. Memory: the keys.
    """
    corpus = Corpus(folder)
    if corpus.fingerprint["format"] == "tok":
        corpus.model = load_model(model or corpus.fingerprint["model"])
    failed = [row["key"] for row in read_lines(corpus.place, ERRORS)]
    keys: set[str] = set()
    listed = {name for name, _ in corpus.shards}
    there = [name.removesuffix(ROWS) for name in corpus.place.names("part-", ROWS)]
    yield from (f"{name}: not in the manifest" for name in there if name not in listed)
    for number, (name, n) in enumerate(corpus.shards):
        try:
            rows, shard = list(corpus.rows(number)), corpus.shard(number)
            if len(rows) != n or [row["key"] for row in rows] != shard.keys:
                yield f"{name}: its samples are not those of its rows"
                continue
            for i, row in enumerate(rows):
                if row["key"] in keys:
                    yield f"{name}: {row['key']} is there twice"
                keys.add(row["key"])
                if codes_hash(shard.tokens(i)) != row["codes"]:
                    yield f"{name}: {row['key']}: its codes have another hash"
        except MediaError as error:
            yield str(error)
    if sources:
        suffixes = tuple(corpus.fingerprint["suffixes"])
        wanted = {sample.key for sample in list_samples(sources, suffixes)}
        yield from (f"{key}: missing" for key in sorted(wanted - keys - set(failed)))
        yield from (f"{key}: not in the sources" for key in sorted(keys - wanted))


def summary(folder: str | Path) -> dict[str, Any]:
    """What a folder of shards holds, also of one that is not finished. Raises MediaError if it is none."""
    place = place_of(folder)
    fingerprint = read_json(place, MANIFEST)["fingerprint"]
    rows = place.names("part-", ROWS)
    return {
        **fingerprint,
        "finished": place.has(SUCCESS),
        "ranks ended": len(place.names("_rank-", ".json")),
        "shards": len(rows),
        "samples": sum(1 for name in rows for _ in read_lines(place, name)),
        "failed": sum(1 for name in place.names("errors-", ROWS) for _ in read_lines(place, name)),
        "bytes": sum(map(place.size, place.names("part-"))),
    }
