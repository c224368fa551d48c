"""Files of pictures in which some blocks are exact: text and patterns beside a photograph."""

import io
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageDraw

from tokodec.codec.container.chunks import EXCT, FRAME, chunk_at, pack_chunk
from tokodec.codec.container.read import read_tok
from tokodec.codec.decode import decode_file
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import UsageError
from tokodec.codec.image.canvas import Canvas
from tokodec.codec.info import describe
from tokodec.codec.models import load_model
from tokodec.codec.tokens import tokenize_file
from tokodec.tokenizers.image.photo import ImagePhoto, rate_weight
from tokodec.tokenizers.image.tiling import Tile

ASSETS = Path(__file__).resolve().parent.parent / "assets"
MODEL = "image-photo-2"
Pixels = npt.NDArray[np.uint8]


def mixed(mode: str = "RGB") -> Pixels:
    """A photograph, 128 x 192, between rows of text and a hatching of 2 pixels."""
    with Image.open(ASSETS / "kodim23.webp") as whole:
        photo = whole.convert("RGB").crop((100, 80, 292, 208))
    page = Image.new("RGB", (192, 256), "white")
    page.paste(photo, (0, 64))
    draw = ImageDraw.Draw(page)
    for y in range(4, 60, 12):
        draw.text((4, y), "pack my box with five dozen", fill=(0, 110, 0))
    rows, columns = np.mgrid[:64, :192]
    pixels = np.array(page)
    pixels[192:] = np.where(((rows + columns) // 2 % 2)[..., None], np.uint8(255), np.uint8(0))
    picture = Image.fromarray(pixels).convert(mode)
    return np.asarray(picture).reshape(256, 192, -1).copy()


def png(pixels: Pixels) -> io.BytesIO:
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(out, "png")
    out.seek(0)
    return out


@pytest.fixture(scope="module")
def page() -> Pixels:
    return mixed()


@pytest.fixture(scope="module")
def data(page: Pixels) -> bytes:
    return encode_file(png(page), model=MODEL, quality=60, device="cpu").data


def psnr(a: Pixels, b: Pixels) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.square(a.astype(float) - b).mean())))


def test_text_and_patterns_are_exact_and_the_photograph_is_not(page: Pixels, data: bytes) -> None:
    back = decode_file(io.BytesIO(data), device="cpu").picture.pixels
    assert np.array_equal(back[:64], page[:64])
    assert np.array_equal(back[192:], page[192:])
    assert 30 < psnr(back[64:192], page[64:192]) < 50
    told = describe(data, "page")
    assert 0 < told["exact_bytes"] < 2500
    assert told["overhead_bytes"] < 150
    lossless = io.BytesIO()
    Image.fromarray(page).save(lossless, "webp", lossless=True)
    assert len(data) < lossless.tell() / 2


def graphics() -> Pixels:
    """Lines of small text and flat shapes in a few colours, 256 x 320."""
    page = Image.new("RGB", (320, 256), (250, 250, 245))
    draw = ImageDraw.Draw(page)
    for y in range(6, 180, 14):
        draw.text((8, y), "the quick brown fox jumps over the lazy dog", fill=(20, 30, 160))
    draw.ellipse((40, 190, 140, 250), fill=(200, 30, 40))
    draw.rectangle((180, 190, 300, 246), outline=(0, 90, 20), width=3)
    return np.array(page)


@pytest.mark.parametrize("quality", [20, 90])
def test_graphics_are_exact_as_a_whole(quality: float) -> None:
    """No codes are left, and no pixel is lost: less than with codes, or with each block by itself."""
    page = graphics()
    made = encode_file(png(page), model=MODEL, quality=quality, device="cpu")
    assert made.lossless
    assert np.array_equal(decode_file(io.BytesIO(made.data), device="cpu").picture.pixels, page)
    told = describe(made.data, "page")
    assert told["exact_bytes"] + told["overhead_bytes"] == len(made.data)
    lossless = io.BytesIO()
    Image.fromarray(page).save(lossless, "webp", lossless=True, quality=100, method=5)
    assert len(made.data) < lossless.tell() + 170
    grey = encode_file(png(page.mean(2).astype(np.uint8)), model=MODEL, quality=quality, device="cpu")
    assert grey.lossless
    assert len(grey.data) < len(made.data)


def test_windows_are_exact_one_by_one() -> None:
    """One of graphics and one of a photograph: the codes of the first one's neighbours know what it shows."""
    with Image.open(ASSETS / "kodim23.webp") as whole:
        photo = np.array(whole.convert("RGB").crop((0, 100, 64, 356)))
    wide = np.concatenate([np.tile(graphics(), (1, 4, 1))[:, :1024], photo], 1)
    made = encode_file(png(wide), model=MODEL, quality=50, device="cpu")
    assert not made.lossless
    back = decode_file(io.BytesIO(made.data), device="cpu")
    assert not back.problems
    assert np.array_equal(back.picture.pixels[:, :1024], wide[:, :1024])
    assert 30 < psnr(back.picture.pixels[:, 1024:], photo) < 60


def test_a_window_is_decoded_twice_only_where_it_may_be_exact_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding is most of the work on a large photograph with a few simple blocks."""
    seen: list[Tile] = []
    decoded = Canvas.decoded

    def counted(canvas: Canvas, tile: Tile, steps: int) -> Pixels:
        seen.append(tile)
        return decoded(canvas, tile, steps)

    monkeypatch.setattr(Canvas, "decoded", counted)
    with Image.open(ASSETS / "kodim23.webp") as whole:
        photo = np.array(whole.convert("RGB").crop((100, 100, 292, 292)))
    photo[:64, :64] = graphics()[:64, :64]
    encode_file(png(photo), model=MODEL, quality=50, device="cpu")
    assert len(seen) == 1
    encode_file(png(mixed()), model=MODEL, quality=50, device="cpu")
    assert len(seen) == 3


def test_bytes_that_graphics_do_not_need_are_told() -> None:
    made = encode_file(png(graphics()), model=MODEL, size=100_000, device="cpu")
    assert made.lossless
    assert made.notes == [f"quality 100 takes {len(made.data)} of the 100000 bytes; no pixel is lost"]


def test_more_quality_is_never_worse(page: Pixels) -> None:
    found = [
        psnr(decode_file(io.BytesIO(encode_file(png(page), model=MODEL, quality=q).data)).picture.pixels, page)
        for q in (0, 20, 50, 80, 100)
    ]
    assert found == sorted(found)


def test_a_gray_picture() -> None:
    gray = mixed("L")
    back = decode_file(io.BytesIO(encode_file(png(gray), model=MODEL, quality=60).data)).picture.pixels
    assert back.shape == gray.shape
    assert np.array_equal(back[192:], gray[192:])


def test_a_size_is_kept(page: Pixels) -> None:
    done = encode_file(png(page), model=MODEL, size=4000)
    assert 3000 < len(done.data) <= 4000


def test_effort_is_for_what_is_not_exact(page: Pixels, data: bytes) -> None:
    """Windows in part exact have better codes with effort, by what the model was trained for."""
    better = encode_file(png(page), model=MODEL, quality=60, effort=2, device="cpu").data
    model = load_model(MODEL).tokenizer
    assert isinstance(model, ImagePhoto)
    weight = float(rate_weight(torch.tensor(0.6), model.config.rate_weights))
    costs = []
    for file in (data, better):
        back = decode_file(io.BytesIO(file), device="cpu").picture.pixels
        assert np.array_equal(back[192:], page[192:])
        costs.append(8 * len(file) + weight * float(np.square(back.astype(float) - page).sum()) / 3)
    assert costs[1] < 0.99 * costs[0]


def test_a_photograph_has_none() -> None:
    photo = mixed()[64:192]
    assert EXCT not in [kind for kind, _, _ in read_tok(encode_file(png(photo), model=MODEL, quality=60).data).places]


def test_a_lost_chunk_is_told(page: Pixels, data: bytes) -> None:
    at = read_tok(data).places[EXCT, 0, 0]
    found = chunk_at(data, at)
    assert found is not None
    for place in (at + 20, at + FRAME + len(found[1]) - 5):
        broken = bytearray(data)
        broken[place] ^= 1
        done = decode_file(io.BytesIO(bytes(broken)), device="cpu")
        assert done.problems
        assert psnr(done.picture.pixels[64:192], page[64:192]) > 30  # the rest is what it was


def test_a_picture_that_asks_for_much_is_damage(page: Pixels, data: bytes) -> None:
    at = read_tok(data).places[EXCT, 0, 0]
    found = chunk_at(data, at)
    assert found is not None
    payload = bytearray(found[1])
    webp = payload.index(b"VP8L")
    payload[webp + 9 : webp + 13] = struct.pack("<I", 16382 | 16382 << 14)
    hostile = data[:at] + pack_chunk(EXCT, bytes(payload)) + data[at + FRAME + len(found[1]) :]
    done = decode_file(io.BytesIO(hostile), device="cpu")
    assert done.problems == [
        "segment 0: its exact blocks are lost: a picture of exact blocks is no lossless WebP file of 192 x 256 pixels"
    ]
    assert psnr(done.picture.pixels[64:192], page[64:192]) > 30


def test_tokens_are_told_to_lack_them(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tok").write_bytes(data)
    assert tokenize_file(tmp_path / "a.tok").notes == ["blocks that are kept exactly are not part of tokens"]


# -------------------------------------------------------------------------------------------------------- --lossless


@pytest.mark.parametrize("shape", [(1, 1, 3), (70, 90), (65, 129, 3), (40, 30, 4), (30, 20, 2), (20, 1100, 3)])
def test_lossless_is_every_pixel(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    if shape[-1] in (2, 4):
        pixels[:9, :9, -1] = 0  # what lies under transparent pixels stays, too
    made = encode_file(png(pixels), model=MODEL, lossless=True, device="cpu")
    assert made.notes == []
    told = describe(made.data, "x")
    assert told["lossless"] is True
    assert "quality" not in told
    back = decode_file(io.BytesIO(made.data), device="cpu")
    assert back.problems == []
    shown, alpha = back.picture.pixels, back.picture.alpha
    whole = shown if alpha is None else np.dstack([shown, alpha])
    assert np.array_equal(whole.squeeze(), pixels.squeeze())


def test_lossless_takes_hardly_more_than_webp(page: Pixels) -> None:
    out = io.BytesIO()
    Image.fromarray(page).save(out, "WEBP", lossless=True, quality=100, method=5)
    made = encode_file(png(page), model=MODEL, lossless=True, device="cpu").data
    assert len(made) <= len(out.getvalue()) + 150


def test_what_is_exact_in_parts_has_a_quality(page: Pixels) -> None:
    told = describe(encode_file(png(page), model=MODEL, quality=60, device="cpu").data, "x")
    assert told["exact_bytes"] > 0
    assert told["quality"] == 60
    assert "lossless" not in told


def test_a_lossless_file_that_loses_its_blocks_says_so(page: Pixels) -> None:
    data = bytearray(encode_file(png(page), model=MODEL, lossless=True, device="cpu").data)
    offset = read_tok(bytes(data)).places[EXCT, 0, 0]
    data[offset + 40] ^= 1
    back = decode_file(io.BytesIO(bytes(data)), device="cpu")
    assert any("exact blocks are lost" in problem for problem in back.problems)
    assert back.picture.pixels.shape == page.shape


def test_lossless_that_cannot_be_is_refused(page: Pixels, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not quality and lossless"):
        encode_file(png(page), model=MODEL, quality=60, lossless=True, device="cpu")
    with pytest.raises(UsageError, match="effort is for codes"):
        encode_file(png(page), model=MODEL, lossless=True, effort=1, device="cpu")
    with pytest.raises(UsageError, match="lossless does not set the rate of image-grid"):
        encode_file(png(page), model="image-grid", lossless=True, device="cpu")


def test_bytes_that_are_not_used_are_told() -> None:
    grey = np.full((64, 64), 90, np.uint8)
    made = encode_file(png(grey), model=MODEL, size=900_000, device="cpu")
    assert any("of the 900000 bytes" in note for note in made.notes)
