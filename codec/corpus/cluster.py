"""All ranks of a corpus on a Ray cluster: `codec tokenize ... --ray [ADDRESS]`.

::

    driver    starts an actor for each rank, again if it or its machine dies; what it had written is kept
    rank      an actor with a GPU if there are some: the run of :mod:`.run`, as without Ray
    readers   tasks that read and decode media, on any machine that has CPUs for the rank

A rank and its readers have a placement group, which Ray grants as a whole or not at all: ranks that wait cannot take
the CPUs away that others need to go on.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import MediaError, ModelError, UsageError, one_line
from ..progress import SILENT, Progress
from .manifest import MANIFEST, read_json, shards_of
from .places import Place, place_of
from .readers import Loaded, Readers, reader_versions
from .tally import Tally

if TYPE_CHECKING:
    from ..options import CorpusOptions, TokenizeOptions

LOCAL = "local"
MOST_DEATHS = 4  # of a rank one after the other, without a shard between them
MOST_ITEMS = 16  # of a task: to begin one takes about a millisecond
SECONDS = 1.0  # between two looks at the ranks
A = TypeVar("A")
B = TypeVar("B")


@dataclass
class ClusterTally(Tally):
    """What all ranks have done.

    Attributes:
        world, ended: ranks, and those that have done their work.  running: samples that the others have.
        restarts: of ranks that died.
    """

    world: int = 0
    ended: int = 0
    running: int = 0
    restarts: int = 0

    def add(self, done: Tally) -> None:
        """A rank has ended."""
        self.ended += 1
        for name in ("written", "made", "failed", "damaged", "shards", "hours"):
            setattr(self, name, getattr(self, name) + getattr(done, name))

    @property
    def note(self) -> str:
        """Speed, and how the ranks are."""
        rate = (self.made + self.running) / max(1e-9, self.seconds)
        again = f", {self.restarts} started again" if self.restarts else ""
        return f"{rate:.1f} samples/s, {self.ended} of {self.world} ranks ended{again}"


def _ray() -> Any:
    """The package. Raises UsageError without it."""
    try:
        import ray

        return ray
    except ImportError as error:
        raise UsageError(f"--ray needs Ray ({one_line(error)}): pip install 'tokodec[ray]'") from error


def tokenize_on_ray(
    sources: Sequence[str],
    folder: str | Path,
    options: CorpusOptions,
    tokenize: TokenizeOptions,
    progress: Progress = SILENT,
) -> ClusterTally:
    """Run :func:`.run.tokenize_corpus` for all ranks, on the cluster ``options.ray``.

    Every machine of it needs the same versions of tokodec and of the decoders, and sees the same sources and folder.
    Without ``options.world`` there are as many ranks as the cluster has room for; a run that is resumed keeps those
    that it had. The shards are those of the same ranks without Ray.

    Raises: UsageError if Ray or the cluster is not there or too small, or as ``tokenize_corpus``; MediaError if a rank
            died ``MOST_DEATHS`` times and got nothing done, once the others have ended.
    """
    ray = _ray()
    if tokenize.model is not None and not isinstance(tokenize.model, str):
        raise UsageError("a model on a cluster is a name or a folder, which every machine can read")
    if tokenize.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"a device of a cluster is auto, cpu or cuda, got {tokenize.device!r}")
    with _connected(ray, options):
        needed = _bundles(ray, options, tokenize)
        room = _room(ray, needed)
        world = options.world or _world(place_of(folder), options) or room
        tokenize = replace(tokenize, device="cuda" if "GPU" in needed[0] else "cpu")
        return _Driver(ray, (list(sources), str(folder), options, tokenize), needed).run(world, progress)


@contextlib.contextmanager
def _connected(ray: Any, options: CorpusOptions) -> Iterator[None]:
    """In a session with the cluster: that of this process if there is one, or a new one for as long as it takes."""
    if ray.is_initialized():
        yield
        return
    address = options.ray or os.environ.get("RAY_ADDRESS") or LOCAL
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # what matters comes as an error of Python as well
    about: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "error"}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of this goes anywhere
        about |= {"num_cpus": max(os.cpu_count() or 1, 1 + options.workers), "include_dashboard": False}
    else:
        _refuse_silence(address)
    try:
        ray.init(**about)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:  # also a wrong token
        hint = "is RAY_AUTH_TOKEN the one that it was started with?"
        raise UsageError(f"cannot join a Ray cluster at {address}: {one_line(error)[:200]}; {hint}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _refuse_silence(address: str) -> None:
    """Raise UsageError if nobody at host and port speaks HTTP/2, as Ray does, which itself would try for minutes.

    Source: RFC 9113, section 3.4: both sides begin with a frame of settings, whose type is 4.
    """
    place = re.fullmatch(r"(?:ray://)?\[?([^/]*?)\]?:(\d+)", address)
    if place is None or os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    try:
        with socket.create_connection((place[1], int(place[2])), timeout=5) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            if connection.recv(9, socket.MSG_WAITALL)[3:4] != b"\4":
                raise ConnectionError("what is there is something else")
    except (OSError, OverflowError) as error:
        raise UsageError(f"no Ray cluster answers at {address}: {one_line(error)}") from error


def _bundles(ray: Any, options: CorpusOptions, tokenize: TokenizeOptions) -> list[dict[str, float]]:
    """What a rank and each of its readers need. A rank has a GPU if the cluster has some, or is told to."""
    gpu = tokenize.device == "cuda" or (tokenize.device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1)
    return [{"CPU": 1.0, "GPU": 1.0} if gpu else {"CPU": 1.0}, *[{"CPU": 1.0}] * options.workers]


def _room(ray: Any, needed: list[dict[str, float]]) -> int:
    """Ranks that the cluster can run at a time."""
    there = ray.cluster_resources()
    rooms = {kind: there.get(kind, 0) // sum(bundle.get(kind, 0) for bundle in needed) for kind in needed[0]}
    scarce = min(rooms, key=rooms.__getitem__)
    if rooms[scarce] < 1:
        wanted = sum(bundle.get(scarce, 0) for bundle in needed)
        raise UsageError(f"a rank and its readers want {wanted:g} {scarce}, the cluster has {there.get(scarce, 0):g}")
    return int(rooms[scarce])


def _world(place: Place, options: CorpusOptions) -> int:
    """Ranks of the corpus that is gone on with; 0 if there is none."""
    if not options.resume or not place.has(MANIFEST):
        return 0
    return int(read_json(place, MANIFEST)["fingerprint"]["world"])


@dataclass
class _Attempt:
    """A rank that is being run.

    Attributes:
        deaths: of the rank without a shard between them.  shards: that were there before.
        asked: the answer to come of how many samples it has done.  seen: the last such answer.
    """

    rank: int
    deaths: int
    shards: int
    actor: Any
    group: Any
    asked: Any
    seen: int = 0


class _Driver:
    """Starts ranks, watches them, and starts those again that died. needed: by a rank, see :func:`_bundles`."""

    def __init__(self, ray: Any, plan: tuple[list[str], str, CorpusOptions, TokenizeOptions], needed: Any) -> None:
        self.ray, self.plan, self.needed = ray, plan, needed
        self.place = place_of(plan[1])
        self.running: dict[Any, _Attempt] = {}
        self.failures: list[str] = []

    def run(self, world: int, progress: Progress) -> ClusterTally:
        tally = ClusterTally(world=world)
        resume = self.plan[2].resume
        try:
            for rank in range(world):
                self._start(rank, world, resume)
            while self.running:
                for result in self.ray.wait(list(self.running), timeout=SECONDS)[0]:
                    self._end(result, tally)
                tally.running = sum(map(self._seen, self.running.values()))
                progress.update(note=tally.note)
        finally:
            for attempt in self.running.values():
                self._clear(attempt)
        if self.failures:
            raise MediaError(self.failures[0])
        return tally

    def _start(self, rank: int, world: int, resume: bool, deaths: int = 0) -> None:
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group = placement_group(self.needed, strategy="PACK")
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        gpus = self.needed[0].get("GPU", 0)
        about = {"num_cpus": 1, "num_gpus": gpus, "max_concurrency": 2, "scheduling_strategy": place}
        actor = self.ray.remote(Rank).options(**about).remote(str(Path.cwd()))
        sources, folder, options, tokenize = self.plan
        options = replace(options, ray=None, rank=rank, world=world, resume=resume)
        result = actor.run.remote(sources, folder, options, tokenize)
        shards = len(shards_of(self.place, rank))
        attempt = _Attempt(rank, deaths, shards, actor=actor, group=group, asked=actor.samples.remote())
        self.running[result] = attempt

    def _end(self, result: Any, tally: ClusterTally) -> None:
        """Take what a rank has done; start it again if it died. Raises what the user did wrong."""
        attempt = self.running.pop(result)
        self._clear(attempt)
        try:
            tally.add(self.ray.get(result))
            return
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, (UsageError, ModelError)):
                raise error.cause from None
            problem = one_line(error.cause)
        except self.ray.exceptions.RayError as error:
            problem = one_line(error)
        deaths = 1 if len(shards_of(self.place, attempt.rank)) > attempt.shards else attempt.deaths + 1
        if deaths >= MOST_DEATHS:
            often = f"rank {attempt.rank} died {deaths} times in a row without a new shard"
            self.failures.append(f"{often}: {problem[:300]}")
            return
        tally.restarts += 1
        tally.made += attempt.seen
        self._start(attempt.rank, tally.world, True, deaths)

    def _seen(self, attempt: _Attempt) -> int:
        """Samples that a rank had done when it answered last."""
        if self.ray.wait([attempt.asked], timeout=0)[0]:
            with contextlib.suppress(self.ray.exceptions.RayError):
                attempt.seen = self.ray.get(attempt.asked)
                attempt.asked = attempt.actor.samples.remote()
        return attempt.seen

    def _clear(self, attempt: _Attempt) -> None:
        """Give back what an attempt had, whatever is left of it."""
        from ray.util.placement_group import remove_placement_group

        self.ray.kill(attempt.actor)
        remove_placement_group(attempt.group)


class Rank(Progress):
    """An actor that runs a rank, and can be asked meanwhile. folder: where paths begin."""

    def __init__(self, folder: str) -> None:
        self.folder, self.seen = folder, 0

    def run(self, sources: list[str], folder: str, options: CorpusOptions, tokenize: TokenizeOptions) -> Tally:
        from .run import tokenize_corpus

        _go_to(self.folder)
        readers = TaskReaders if options.workers else Readers
        return tokenize_corpus(sources, folder, options, tokenize, self, readers=readers)

    def update(self, share: float | None = None, *, frames: int | None = None, note: str = "") -> None:
        self.seen += 1

    def samples(self) -> int:
        return self.seen


class TaskReaders(Readers):
    """Calls of a function in tasks of Ray, within the placement group of the actor that makes them."""

    def __init__(self, workers: int, ahead: int, processes: bool = True) -> None:
        from ray.util import get_current_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        super().__init__(0, ahead)
        self.ray = _ray()
        self.chunk = min(MOST_ITEMS, max(1, ahead // (2 * workers)))
        group = get_current_placement_group()
        place = "DEFAULT" if group is None else PlacementGroupSchedulingStrategy(group)
        self.task = self.ray.remote(call_all).options(num_cpus=1, max_retries=1, scheduling_strategy=place)

    def map(self, call: Callable[[A], B], items: Iterable[A], crashed: B) -> Iterator[tuple[A, B]]:
        waiting: deque[tuple[list[A], Any]] = deque()
        items = iter(items)
        while chunk := list(islice(items, self.chunk)):
            waiting.append((chunk, self._begin(call, chunk)))
            if len(waiting) * self.chunk >= self.ahead:
                yield from self._first(call, waiting, crashed)
        while waiting:
            yield from self._first(call, waiting, crashed)

    def _begin(self, call: Callable[[A], B], chunk: list[A]) -> Any:
        return self.task.remote(str(Path.cwd()), reader_versions(), call, chunk)

    def _first(self, call: Callable[[A], B], waiting: deque[tuple[list[A], Any]], crashed: B) -> list[tuple[A, B]]:
        """The results that are next. Where a task died again and again, each of its items has another alone."""
        chunk, result = waiting.popleft()
        try:
            return list(zip(chunk, map(_owned, self.ray.get(result)), strict=True))
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self.ray.exceptions.RayError:
            if len(chunk) == 1:
                return [(chunk[0], crashed)]
            alone = (deque([([item], self._begin(call, [item]))]) for item in chunk)
            return list(chain.from_iterable(self._first(call, one, crashed) for one in alone))


def call_all(folder: str, versions: dict[str, str | None], call: Callable[[A], B], items: list[A]) -> list[B]:
    """In a task: results of calls. Raises UsageError if other decoders are installed than where the rank is."""
    if versions != reader_versions():
        raise UsageError(f"machines of the cluster differ: {reader_versions()} and {versions}, and so would tokens")
    _go_to(folder)
    return list(map(call, items))


def _owned(result: B) -> B:
    """Without arrays that lie in memory of Ray, which nobody may write to."""
    if isinstance(result, Loaded) and result.pixels is not None:
        return replace(result, pixels=result.pixels.copy())
    return result


def _go_to(folder: str) -> None:
    """Paths begin in this folder, if it is there: it need not be where all are URLs."""
    with contextlib.suppress(OSError):
        os.chdir(folder)
