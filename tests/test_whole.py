"""Lossless files: every sample of 8 and 16 bits, of gray and colour, with and without alpha; and a largest error."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from tokodec.codec.container.chunks import EXCT
from tokodec.codec.container.read import read_tok
from tokodec.codec.decode import decode_file
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import UsageError
from tokodec.codec.image.exact import unpack_exact
from tokodec.codec.image.whole import bits_of, pack_whole, pixel_coder, unpack_whole
from tokodec.codec.media.picture import Picture
from tokodec.codec.media.read_image import read_image
from tokodec.codec.media.write_image import write_image
from tokodec.entropy.pixels.net import CODED

ASSETS = Path(__file__).resolve().parent.parent / "assets"
MODEL = "image-photo-2"
Samples = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


def photo(channels: int = 3, bits: int = 8) -> Samples:
    """A part of a photograph, 40 x 60; 16 bits have noise in the lower ones."""
    with Image.open(ASSETS / "kodim23.webp") as whole:
        pixels = np.asarray(whole.convert("RGB"))[200:240, 200:260, :channels]
    if bits == 8:
        return pixels.copy()
    noise = np.random.default_rng(0).integers(0, 64, pixels.shape)
    return (pixels.astype(np.uint16) * 256 + noise).astype(np.uint16)


def file_of(pixels: Samples, alpha: Samples | None = None, suffix: str = "png") -> io.BytesIO:
    out = io.BytesIO()
    depth = 8 * pixels.itemsize
    assert write_image(Picture(pixels, alpha, bit_depth=depth), out, suffix, f"x.{suffix}") == []
    out.seek(0)
    return out


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_every_sample_comes_back_from_a_file(tmp_path: Path, bits: int, channels: int, has_alpha: bool) -> None:
    pixels = photo(channels, bits)
    alpha: Any = None
    if has_alpha:
        alpha = np.random.default_rng(1).integers(0, 1 << bits, pixels.shape[:2]).astype(pixels.dtype)
        alpha[:20] = 0  # colours under what is transparent stay
    made = encode_file(file_of(pixels, alpha), model=MODEL, lossless=True, device="cpu")
    assert (made.notes, made.problems) == ([], [])
    back = decode_file(io.BytesIO(made.data), device="cpu")
    assert (back.notes, back.problems) == ([], [])
    shown = back.picture
    assert shown.pixels.dtype == pixels.dtype
    assert np.array_equal(shown.pixels, pixels)
    assert (shown.alpha is None) == (alpha is None)
    assert alpha is None or shown.alpha is None or np.array_equal(shown.alpha, alpha)
    out = tmp_path / "back.png"
    assert decode_file(io.BytesIO(made.data), out, device="cpu").notes == []
    again = read_image(out, "back.png", 10**6, deep=True)
    assert again.pixels.dtype == pixels.dtype
    assert np.array_equal(again.pixels, pixels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("rate", [{"lossless": True}, {"max_error": 2}])
def test_a_gpu_gives_the_same_file_and_samples(bits: int, channels: int, rate: dict[str, Any]) -> None:
    pixels = photo(channels, bits)
    alpha: Any = np.random.default_rng(1).integers(0, 1 << bits, pixels.shape[:2]).astype(pixels.dtype)
    data = [encode_file(file_of(pixels, alpha), model=MODEL, device=d, **rate).data for d in ("cpu", "cuda")]
    assert data[0] == data[1]
    shown = [decode_file(io.BytesIO(data[0]), device=device).picture for device in ("cpu", "cuda")]
    assert np.array_equal(shown[0].pixels, shown[1].pixels)
    assert rate == {"max_error": 2} or np.array_equal(shown[1].pixels, pixels)
    assert all(picture.alpha is not None and np.array_equal(picture.alpha, alpha) for picture in shown)


@pytest.mark.parametrize(("bits", "error"), [(8, 1), (8, 4), (16, 1)])
def test_no_sample_is_further_off_than_was_allowed(bits: int, error: int) -> None:
    pixels = photo(3, bits)
    lossless = encode_file(file_of(pixels), model=MODEL, lossless=True, device="cpu").data
    made = encode_file(file_of(pixels), model=MODEL, max_error=error, device="cpu").data
    assert len(made) < len(lossless) - 500
    back = decode_file(io.BytesIO(made), device="cpu").picture.pixels
    step = 1 if bits == 8 else 257
    assert 0 < np.abs(back.astype(int) - pixels).max() <= error * step


def test_photographs_take_less_than_webp_and_drawings_as_much() -> None:
    payload, _ = pack_whole(photo())
    assert bits_of(payload, (40, 60)) == 8
    webp = io.BytesIO()
    Image.fromarray(photo()).save(webp, "WEBP", lossless=True, quality=100, method=6)
    assert len(payload) < len(webp.getvalue())
    hatching = np.kron(np.indices((20, 30)).sum(0)[..., None] % 2 * [255, 0, 90], np.ones((2, 2, 1))).astype(np.uint8)
    payload, _ = pack_whole(hatching)
    assert bits_of(payload, (40, 60)) is None
    assert np.array_equal(unpack_exact(payload, (40, 60))[1], hatching)


def test_payloads_of_the_nets_alone_are_read() -> None:
    """Method 1, which was written before there were corrections."""
    payload, _ = pack_whole(photo())
    assert payload[1] == 2
    planes = photo().transpose(2, 0, 1)[list(CODED)].astype(np.uint16)
    old = payload[:1] + b"\1" + payload[2:13] + pixel_coder().compress(planes, 8)
    assert np.array_equal(unpack_whole(old, (40, 60), 3), photo())


def test_readers_of_blocks_take_it_for_damage() -> None:
    """As FORMAT.md says of a map without blocks."""
    with pytest.raises(ValueError, match="does not fit its window"):
        unpack_exact(pack_whole(photo())[0], (40, 60))


@pytest.mark.parametrize("place", [0, 1, 3, 4, 12])
def test_payloads_that_are_none_are_refused(place: int) -> None:
    payload = bytearray(pack_whole(photo())[0])
    assert np.array_equal(unpack_whole(bytes(payload), (40, 60), 3), photo())
    with pytest.raises(ValueError, match="payload"):
        unpack_whole(bytes(payload[: 1 + place]), (40, 60), 3)
    payload[1 + place] ^= 0x55
    with pytest.raises(ValueError, match=r"unknown|nets|payload"):
        unpack_whole(bytes(payload), (40, 60), 3)


def test_damage_is_told() -> None:
    data = bytearray(encode_file(file_of(photo(3, 16)), model=MODEL, lossless=True, device="cpu").data)
    data[read_tok(bytes(data)).places[EXCT, 0, 0] + 60] ^= 1
    back = decode_file(io.BytesIO(bytes(data)), device="cpu")
    assert any("exact blocks are lost" in problem for problem in back.problems)
    assert back.picture.pixels.shape == (40, 60, 3)


def test_several_windows() -> None:
    pixels: Any = np.tile(photo(), (1, 18, 1))[:24]  # 1080 pixels wide
    data = encode_file(file_of(pixels), model=MODEL, lossless=True, device="cpu").data
    assert np.array_equal(decode_file(io.BytesIO(data), device="cpu").picture.pixels, pixels)


@pytest.mark.parametrize("suffix", ["tif", "ppm"])
def test_other_files_of_16_bits(tmp_path: Path, suffix: str) -> None:
    pixels = photo(3, 16)
    data = encode_file(file_of(pixels, suffix=suffix), model=MODEL, lossless=True, device="cpu").data
    out = tmp_path / f"back.{suffix}"
    assert decode_file(io.BytesIO(data), out, device="cpu").notes == []
    assert np.array_equal(read_image(out, out.name, 10**6, deep=True).pixels, pixels)
    notes = decode_file(io.BytesIO(data), tmp_path / "back.webp", device="cpu").notes
    assert notes == ["16 bits per sample reduced to 8: .webp holds no more"]


def test_what_cannot_be_is_refused() -> None:
    for error in (0, 33):
        with pytest.raises(UsageError, match="max-error is 1 to 32"):
            encode_file(file_of(photo()), model=MODEL, max_error=error, device="cpu")
    with pytest.raises(UsageError, match="not lossless and max-error"):
        encode_file(file_of(photo()), model=MODEL, lossless=True, max_error=1, device="cpu")
    with pytest.raises(UsageError, match="max-error does not set the rate of image-grid"):
        encode_file(file_of(photo()), model="image-grid", max_error=1, device="cpu")
    deep = io.BytesIO(b"P5\n20 20\n1023\n" + bytes(800))
    with pytest.raises(UsageError, match="8 or 16 bits"):
        encode_file(deep, model=MODEL, lossless=True, device="cpu")
