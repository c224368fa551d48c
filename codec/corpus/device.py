"""The device of a rank: tokens of what the readers give, a batch after the other in a thread of its own.

So the next batch is stacked, and the last one written, while the device computes. On a CPU several threads do so, with
a share of its cores each: nets of one medium alone keep few cores busy.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import is_out_of_memory
from ..image.format import image_tokenizer
from ..options import TokenizeOptions
from ..tokens import first_levels, tokenize_file
from .readers import Loaded, reason

if TYPE_CHECKING:
    from torch import Tensor

    from ...tokenizers.tokens import Tokens
    from ..models import Model
    from .sources import Sample
    from .tally import Tally

WINDOW = 512  # samples that are batched, written and repeated together
BATCH_PIXELS = {"cuda": 1 << 24}  # of pictures that are encoded at once
USUAL_PIXELS = 1 << 20  # on other devices, where more gain nothing
HELD_PIXELS = 1 << 26  # of pictures that wait for others of their size
WAITING = 3  # batches that are ready for the device
SWITCH = 2e-4  # seconds that a thread of Python keeps others from running; the usual 5 ms would leave a GPU idle


@dataclass
class Pending:
    """A sample whose tokens are being made.

    Attributes:
        future: the results of its batch, and seconds for each of them.  place: of this one.
    """

    sample: Sample
    loaded: Loaded
    future: Future[tuple[list[Tokens | str], float]] | None = None
    place: int = 0

    @property
    def done(self) -> bool:
        return self.future is not None and self.future.done()

    def result(self) -> tuple[Sample, Loaded, Tokens | str]:
        """The tokens, or the reason why there are none, once they are there."""
        assert self.future is not None
        found, seconds = self.future.result()
        return self.sample, replace(self.loaded, seconds=self.loaded.seconds + seconds), found[self.place]


class Device:
    """Tokenizes samples.

    Args: workers: that read on this machine. On a CPU their cores are for this as well, as it takes most of the time.
    Attributes:
        lanes: threads that compute at the same time.
        computing: seconds from the first to the last step of each batch, in the mean of the lanes; on a GPU as its own
            clock tells.
    """

    def __init__(self, model: Model, options: TokenizeOptions, workers: int = 0) -> None:
        import torch

        from ...tokenizers.precision import whole_float32

        self.model, self.options = model, options
        self.batches = model.tokenizer.modality == "image" and model.tokenizer.rate_control == "levels"
        kind = model.tokenizer.device.type
        self.batch_pixels = BATCH_PIXELS.get(kind, USUAL_PIXELS)
        self._torch_threads = torch.get_num_threads()
        self.lanes, threads = lanes_of(kind, workers, self._torch_threads, _cores())
        torch.set_num_threads(threads)
        self._whole = ExitStack()
        if self.lanes > 1:  # one lane would end this setting, which is of the process, while another computes
            self._whole.enter_context(whole_float32(model.tokenizer.device))
        self.computing = 0.0
        self._threads = ThreadPoolExecutor(self.lanes, initializer=torch.set_num_threads, initargs=(threads,))
        self._room = threading.Semaphore(WAITING + self.lanes - 1)
        self._lock = threading.Lock()
        self._switch = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH)

    def close(self) -> None:
        import torch

        self._threads.shutdown(cancel_futures=True)
        self._whole.close()
        sys.setswitchinterval(self._switch)
        torch.set_num_threads(self._torch_threads)

    def window(self, results: Iterator[tuple[Sample, Loaded]], tally: Tally) -> list[Pending]:
        """Hand over the results of a window, pictures of one size together; how long that waits is told to ``tally``.

        A batch goes when it is large enough, or the window ends. So the same windows are the same batches.
        """
        window: list[Pending] = []
        sizes: dict[tuple[int, ...], list[Pending]] = {}
        held = 0
        while len(window) < WINDOW:
            with tally.waiting("readers"):
                found = next(results, None)
            if found is None:
                break
            sample, loaded = found
            item = Pending(replace(sample, data=None), loaded)
            window.append(item)
            if item.loaded.pixels is None or not self.batches:
                self._submit(tally, [item], functools.partial(self._single, item.sample, item.loaded))
                continue
            shape = item.loaded.pixels.shape
            area = shape[0] * shape[1]
            sizes.setdefault(shape, []).append(item)
            held += area
            if (len(sizes[shape]) + 1) * area > self.batch_pixels:
                held -= len(sizes[shape]) * area
                self._batch(tally, sizes.pop(shape))
            elif held > HELD_PIXELS:
                shape = max(sizes, key=lambda shape: len(sizes[shape]) * shape[0] * shape[1])
                held -= len(sizes[shape]) * shape[0] * shape[1]
                self._batch(tally, sizes.pop(shape))
        for batch in sizes.values():
            self._batch(tally, batch)
        return window

    def _batch(self, tally: Tally, batch: list[Pending]) -> None:
        import torch

        pixels = [torch.from_numpy(item.loaded.pixels) for item in batch]
        pinned = self.model.tokenizer.device.type == "cuda"
        x = torch.empty(len(pixels), *pixels[0].shape, dtype=torch.uint8, pin_memory=pinned)
        torch.stack(pixels, out=x)  # [B, H, W, C]
        self._submit(tally, batch, functools.partial(self._encode, x))

    def _submit(self, tally: Tally, items: list[Pending], call: Callable[[], list[Tokens | str]]) -> None:
        def work() -> tuple[list[Tokens | str], float]:
            try:
                with self._timed() as seconds:
                    found = call()
            finally:
                self._room.release()
            with self._lock:
                self.computing += seconds[0] / self.lanes
            return found, seconds[0] / len(items)

        with tally.waiting("device"):
            self._room.acquire()
        future = self._threads.submit(work)
        for place, item in enumerate(items):
            item.loaded = replace(item.loaded, pixels=None, data=None)
            item.future, item.place = future, place

    def _encode(self, x: Tensor) -> list[Tokens | str]:
        """Tokens of pictures ``[B, H, W, C]`` of one size: those that each has alone."""
        import torch

        from ...tokenizers.tokens import Tokens

        try:
            with torch.no_grad():
                pixels = x.to(self.model.tokenizer.device, non_blocking=True).permute(0, 3, 1, 2)  # [B, C, H, W]
                made = self.model.tokenizer.encode(pixels.expand(-1, 3, -1, -1).float() / 255).to("cpu")
            made = first_levels(made, self.options.levels)
            return [Tokens(codes, made.spec) for codes in made.codes.split(1)]
        except Exception as error:
            if len(x) > 1 and is_out_of_memory(error):
                return [tokens for half in x.chunk(2) for tokens in self._encode(half)]
            return [reason(error)] * len(x)

    def _single(self, sample: Sample, loaded: Loaded) -> list[Tokens | str]:
        """Tokens of what is in no batch."""
        import torch

        if loaded.problem:
            return [loaded.problem]
        try:
            if loaded.pixels is not None:
                pixels = torch.from_numpy(loaded.pixels)
                tokens = image_tokenizer(self.model).encode_picture(pixels, self.options.quality)
                return [first_levels(tokens, self.options.levels)]
            assert loaded.data is not None
            done = tokenize_file(loaded.data, options=self.options)
            return [done.problems[0] if done.problems else done.tokens]
        except Exception as error:  # as in the readers
            return [reason(error)]

    @contextmanager
    def _timed(self) -> Iterator[list[float]]:
        """A list that holds the seconds of the body when that has ended."""
        import torch

        seconds: list[float] = []
        if self.model.tokenizer.device.type != "cuda":
            start = time.monotonic()
            yield seconds
            seconds.append(time.monotonic() - start)
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(self.model.tokenizer.device)
        begin.record(stream)
        yield seconds
        end.record(stream)
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000)


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lanes_of(kind: str, workers: int, threads: int, cores: int) -> tuple[int, int]:
    """Lanes of a device of this kind, and threads of PyTorch in each.

    A CPU has one lane and another for each worker, but no more than it has cores, or PyTorch has threads if those are
    more. Anything else has one.

    Args: threads: of PyTorch now.  cores: that this process may use.
    """
    if kind != "cpu":
        return 1, threads
    most = max(threads, min(1 + workers, cores))
    lanes = min(1 + workers, most)
    return lanes, max(1, most // lanes)
