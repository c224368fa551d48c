"""Videos of `video-fit`: media file to `.tok` and back, a golden file, rates, segments, damage, and users' mistakes."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tokodec.codec.container.chunks import HEAD, LAYR
from tokodec.codec.container.fields import write_header
from tokodec.codec.container.read import read_tok
from tokodec.codec.container.write import write_video
from tokodec.codec.contract import Encoded
from tokodec.codec.decode import decode_file, video_frames
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import ChunkError, RateError, UsageError
from tokodec.codec.info import describe
from tokodec.codec.media.read_video import VideoReader
from tokodec.codec.media.write_video import VideoWriter
from tokodec.codec.video.fit import format as fit_video
from tokodec.codec.video.fit.optimize import Fit
from tokodec.codec.video.fit.payload import read_fitted

GOLDEN = Path(__file__).resolve().parent / "golden" / "fit"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())
Pixels = npt.NDArray[np.uint8]


def media(frames: int = 9, height: int = 26, width: int = 38) -> bytes:
    """A .y4m clip: waves that stand still and a square that moves."""
    y, x = np.mgrid[:height, :width]
    file = io.BytesIO()
    with VideoWriter(file, ".y4m", "clip", height, width, Fraction(1, 25), Fraction(25), None, Fraction(1)) as writer:
        for t in range(frames):
            gray = 128 + 70 * np.sin(y / 5) * np.cos(x / 7)
            gray[5:12, 3 + t : 10 + t] = 230
            pixels = np.repeat(gray[..., None], 3, axis=2).round().astype(np.uint8)
            writer.write(pixels, Fraction(t, 25), Fraction(1, 25))
    return file.getvalue()


def frames_of(data: bytes) -> list[Pixels]:
    with VideoReader(io.BytesIO(data), "clip") as reader:
        return [frame.pixels for frame in reader]


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits of so many steps, however long that takes."""

    def run(fit: Fit, seconds: float, report: Callable[..., None], most: int | None = None) -> None:
        for i in range(60):
            fit.step(i / 60)

    monkeypatch.setattr(Fit, "run", run)


def encode(data: bytes, **options: Any) -> Encoded:
    return encode_file(io.BytesIO(data), model="video-fit", device="cpu", **options)


def test_the_golden_file_decodes_to_its_integers_and_pixels() -> None:
    tok = read_tok((GOLDEN / "clip.tok").read_bytes())
    header = tok.video
    payload = tok.payload(LAYR)
    assert payload is not None
    fitted = read_fitted(payload, header.frames, header.height, header.width)
    grids = b"".join(grid.astype("<i4").tobytes() for own in fitted.grids for grid in own)
    assert hashlib.sha256(grids).hexdigest() == EXPECTED["grids"]
    weights = b"".join(w.integers.astype("<i4").tobytes() + bytes([w.exponent]) for w in fitted.weights.values())
    assert hashlib.sha256(weights).hexdigest() == EXPECTED["weights"]
    found = np.concatenate([pixels for _, pixels in video_frames(tok, device="cpu")])
    with Image.open(GOLDEN / "clip.png") as im:
        assert np.abs(np.asarray(im.convert("RGB")).astype(int) - found).max() <= 1


@pytest.mark.usefixtures("few_steps")
def test_a_video_comes_back() -> None:
    source = media()
    done = encode(source, quality=30)
    assert (done.frames, done.quality, done.seconds) == (9, 30, pytest.approx(0.36))
    told = describe(done.data, "clip")
    assert (told["model"], told["prior"], told["segments"], told["problems"]) == ("video-fit", "fit", 1, [])
    out = io.BytesIO()
    decoded = decode_file(io.BytesIO(done.data), out, format=".y4m", device="cpu")
    assert not decoded.problems
    x, x_hat = np.stack(frames_of(source)), np.stack(frames_of(out.getvalue()))
    assert x_hat.shape == x.shape
    assert np.square(x.astype(float) - x_hat).mean() < x.astype(float).var() / 3
    part = io.BytesIO()
    decode_file(io.BytesIO(done.data), part, format=".y4m", device="cpu", start=0.12, end=0.2)
    assert np.abs(np.stack(frames_of(part.getvalue())).astype(int) - x_hat[3:5]).max() <= 2


@pytest.mark.usefixtures("few_steps")
def test_segments_are_on_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_video, "SEGMENT", 4)
    data = encode(media()).data
    tok = read_tok(data)
    assert (tok.video.segment, tok.video.n_segments) == (3, 3)
    whole = [pixels for _, pixels in video_frames(tok, device="cpu")]
    payloads = [tok.payload(LAYR, 0, s) or b"" for s in range(3)]
    damaged = read_tok(write_video(tok.video, [payloads[0], payloads[1][:-4], payloads[2]]))
    found = [pixels for _, pixels in video_frames(damaged, device="cpu")]
    assert len(damaged.problems) == 1
    assert "frames 3 to 5 are lost" in damaged.problems[0]
    for i, (a, b) in enumerate(zip(found, whole, strict=True)):
        assert np.array_equal(a, whole[2] if 3 <= i < 6 else b)


def test_so_many_bytes_in_all() -> None:
    done = encode(media(), size=2500, minutes=0.05)
    assert len(done.data) <= 2500
    assert done.quality is not None
    with pytest.raises(RateError, match="without any picture"):
        encode(media(), size=100, minutes=0.01)


@pytest.mark.usefixtures("few_steps")
def test_a_header_that_lies_is_refused() -> None:
    tok = read_tok(encode(media(frames=2)).data)
    payload = tok.payload(LAYR) or b""
    for field, value in (("model", "video-grid"), ("weights_hash", "1" * 16), ("prior_hash", "1" * 16)):
        data = write_video(type(tok.video)(**{**vars(tok.video), field: value}), [payload])
        with pytest.raises(ChunkError, match="without hashes"):
            decode_file(io.BytesIO(data), device="cpu")
    picture = read_tok((GOLDEN.parent / "pixel.tok").read_bytes()).picture
    head = write_header(type(picture)(**{**vars(picture), "prior": 5}))
    data = (GOLDEN.parent / "pixel.tok").read_bytes()
    at = data.index(HEAD)
    from tokodec.codec.container.chunks import pack_chunk

    with pytest.raises(ChunkError, match="not a video"):
        decode_file(io.BytesIO(data[:at] + pack_chunk(HEAD, head) + data[at + 12 + len(head) :]), device="cpu")


def test_what_users_do_wrong() -> None:
    source = media(frames=2)
    for options, message in (
        ({"levels": 2}, "does not set the rate of video-fit"),
        ({"tokens": 2}, "does not set the rate of video-fit"),
        ({"minutes": 0.0}, "minutes must be positive"),
        ({"prior": "static"}, "prior is not an option of video-fit"),
        ({"effort": 2}, "effort is not an option of video-fit"),
    ):
        with pytest.raises(UsageError, match=message):
            encode(source, **options)
    tok = (GOLDEN / "clip.tok").read_bytes()
    for choice in ({"levels": 1}, {"model": "image-grid"}):
        (name,) = choice
        with pytest.raises(UsageError, match=f"^{name} cannot be chosen: a file of video-fit holds its own networks"):
            decode_file(io.BytesIO(tok), io.BytesIO(), format=".mp4", device="cpu", **choice)
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "png")
    with pytest.raises(UsageError, match="video-fit is a model for video"):
        encode(picture.getvalue())
    with pytest.raises(UsageError, match="minutes is not an option of image-photo-2"):
        encode_file(io.BytesIO(picture.getvalue()), minutes=1.0)
