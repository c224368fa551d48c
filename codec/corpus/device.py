"""The device of a rank: tokens of what the readers give, a batch after the other in a thread of its own.

So the next batch is stacked, and the last one written, while the device computes.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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
USUAL_PIXELS = 1 << 22  # on other devices
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

    Attributes:
        computing: seconds from the first to the last step of each batch; on a GPU as its own clock tells.
    """

    def __init__(self, model: Model, options: TokenizeOptions) -> None:
        self.model, self.options = model, options
        self.batches = model.tokenizer.modality == "image" and model.tokenizer.rate_control == "levels"
        self.batch_pixels = BATCH_PIXELS.get(model.tokenizer.device.type, USUAL_PIXELS)
        self.computing = 0.0
        self._thread = ThreadPoolExecutor(1)
        self._room = threading.Semaphore(WAITING)
        self._switch = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        sys.setswitchinterval(self._switch)

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
            before = self.computing
            try:
                with self._timed():
                    found = call()
            finally:
                self._room.release()
            return found, (self.computing - before) / len(items)

        with tally.waiting("device"):
            self._room.acquire()
        future = self._thread.submit(work)
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
    def _timed(self) -> Iterator[None]:
        import torch

        if self.model.tokenizer.device.type != "cuda":
            start = time.monotonic()
            yield
            self.computing += time.monotonic() - start
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(self.model.tokenizer.device)
        begin.record(stream)
        yield
        end.record(stream)
        end.synchronize()
        self.computing += begin.elapsed_time(end) / 1000
