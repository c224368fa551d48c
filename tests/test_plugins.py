"""`.tok` files in Pillow and imageio: what users of these libraries expect of a format."""

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import soundfile
from PIL import Image, ImageFile, UnidentifiedImageError

import tokodec
import tokodec.imageio  # type: ignore[import-not-found]
import tokodec.pillow  # type: ignore[import-not-found]
from tokodec.codec.cli import run
from tokodec.codec.container.read import read_tok
from tokodec.codec.media.profile import adobe_rgb
from tokodec.tests.adapted_models import saved, tiny_adapted

GRID: dict[str, Any] = {"model": "image-grid", "levels": 1}


@pytest.fixture
def photo() -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((75, 50), Image.Resampling.BICUBIC)


@pytest.fixture
def _defaults() -> Iterator[None]:
    yield
    tokodec.pillow.register()


# -------------------------------------------------------------------------------------------------------------- Pillow


def test_pillow_saves_and_opens(photo: Image.Image, tmp_path: Path) -> None:
    """The bytes are those of `encode_file`, the pixels those of `decode_file`, and opening decodes nothing."""
    photo.save(tmp_path / "a.png")
    photo.save(tmp_path / "a.tok", quality=40)
    wanted = tokodec.encode_file(tmp_path / "a.png", quality=40)
    assert (tmp_path / "a.tok").read_bytes() == wanted.data
    photo.save(tmp_path / "b.tok", bytes=700)
    assert (tmp_path / "b.tok").stat().st_size <= 700
    with Image.open(tmp_path / "a.tok") as im:
        assert (im.format, im.mode, im.size, im.get_format_mimetype()) == ("TOK", "RGB", (75, 50), "image/x-tok")
        assert im.info["model"] == "image-photo-2"
        assert im._data is not None  # type: ignore[attr-defined]
        pixels = np.asarray(im)
    assert np.array_equal(pixels, tokodec.decode_file(tmp_path / "a.tok").picture.pixels)
    assert Image.registered_extensions()[".tok"] == "TOK"
    assert Image.MIME["TOK"] == "image/x-tok"
    stream = io.BytesIO()
    photo.save(stream, "TOK", **GRID)
    stream.seek(0)
    copied = Image.open(stream).copy()
    assert copied.size == (75, 50)
    assert Image.open(tmp_path / "a.tok").resize((8, 8)).getpixel((0, 0)) is not None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_modes(photo: Image.Image, mode: str) -> None:
    picture = Image.fromarray(np.arange(75 * 50, dtype=np.uint16).reshape(50, 75)) if mode == "I;16" else photo
    picture = picture if mode == "I;16" else picture.convert("RGBA" if "A" in mode else "RGB").convert(mode)
    stream = io.BytesIO()
    picture.save(stream, "TOK", **GRID)
    found = Image.open(stream)
    assert found.mode == {"1": "L", "P": "RGB", "I;16": "L"}.get(mode, mode)
    found.load()
    if "A" in mode:
        assert np.array_equal(np.asarray(found)[..., -1], np.asarray(picture)[..., -1])


def test_metadata_is_what_codec_encode_keeps(photo: Image.Image, tmp_path: Path) -> None:
    """Profile, EXIF and XMP come back; a rotation is applied; keywords come before what the picture brings along."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>'
    photo.save(tmp_path / "a.jpg", exif=exif, icc_profile=adobe_rgb(), xmp=xmp, quality=100, subsampling=0)
    with Image.open(tmp_path / "a.jpg") as source:
        source.save(tmp_path / "a.tok", **GRID)
        source.save(tmp_path / "bare.tok", icc_profile=None, exif=b"", xmp=b"", **GRID)
    with Image.open(tmp_path / "a.tok") as im:
        assert im.size == (50, 75)
        assert im.info["icc_profile"] == adobe_rgb()
        assert im.getexif()[0x010F] == "Maker"
        assert im.getexif().get(0x0112, 1) == 1
        assert b"xmpmeta" in im.info["xmp"]
        im.save(tmp_path / "b.png", exif=im.getexif())
    words = ["encode", tmp_path / "a.jpg", "-m", "image-grid", "--levels", 1, "-o", tmp_path / "c.tok", "--quiet"]
    assert run([str(word) for word in words]) == 0
    with Image.open(tmp_path / "c.tok") as im, Image.open(tmp_path / "a.tok") as other:
        assert im.info["icc_profile"] == other.info["icc_profile"]
        assert dict(im.getexif()) == dict(other.getexif())
    with Image.open(tmp_path / "bare.tok") as im:
        assert not {"icc_profile", "exif", "xmp"} & set(im.info)


def test_what_is_not_ours_is_not_identified(photo: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "a.tok").write_bytes(b"\x89TOK nothing of the kind")
    soundfile.write(tmp_path / "a.wav", np.zeros(3000), 24000)
    tokodec.encode_file(tmp_path / "a.wav", tmp_path / "sound.tok")
    for name in ("a.tok", "sound.tok"):
        with pytest.raises(UnidentifiedImageError):
            Image.open(tmp_path / name)
    with pytest.raises(OSError, match="cannot write mode CMYK as TOK"):
        photo.convert("CMYK").save(tmp_path / "x.tok")
    with pytest.raises(OSError, match="bytes"):
        photo.save(tmp_path / "x.tok", bytes=3)
    with pytest.raises(TypeError, match="nonsense"):
        photo.save(tmp_path / "x.tok", nonsense=3)
    assert not (tmp_path / "x.tok").exists()


def test_damage_is_an_oserror(photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the header when it is opened, elsewhere when it is decoded; what is left is there for who asks for it."""
    stream = io.BytesIO()
    photo.resize((1100, 60)).save(stream, "TOK", **GRID)  # two segments
    data = bytearray(stream.getvalue())
    head = bytearray(data)
    head[20] ^= 1
    with pytest.raises(OSError, match=r"header|HEAD") as raised:
        Image.open(io.BytesIO(head))
    assert not isinstance(raised.value, UnidentifiedImageError)
    data[read_tok(bytes(data)).places[b"LAYR", 0, 1] + 12] ^= 1
    im = Image.open(io.BytesIO(data))
    with pytest.raises(OSError, match="the picture is damaged"):
        im.load()
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert np.asarray(Image.open(io.BytesIO(data))).shape == (60, 1100, 3)


@pytest.mark.usefixtures("_defaults")
def test_models_that_are_no_releases(photo: Image.Image, tmp_path: Path) -> None:
    model = tiny_adapted("image", "ResidualVQ")
    photo.save(tmp_path / "a.tok", model=model)
    with pytest.raises(OSError, match="does not come with tokodec"):
        Image.open(tmp_path / "a.tok").load()
    tokodec.pillow.register(model=model)
    assert Image.open(tmp_path / "a.tok").resize((4, 4)).size == (4, 4)
    assert saved(model, tmp_path / "mine").is_dir()


def test_importing_the_package_registers_nothing() -> None:
    code = (
        "import sys, tokodec\nfrom PIL import Image\nImage.init()\n"
        "print('TOK' in Image.OPEN, 'imageio' in sys.modules, 'tokodec.codec.plugins.pillow' in sys.modules)\n"
        "import tokodec.pillow as p, tokodec.codec.plugins.pillow as q\n"
        "print('TOK' in Image.OPEN, p is q, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False False False", "True True False"]


# ------------------------------------------------------------------------------------------------------------- imageio


def test_imageio_writes_and_reads_pictures(photo: Image.Image, tmp_path: Path) -> None:
    pixels = np.asarray(photo)
    photo.save(tmp_path / "a.png")
    iio.imwrite(tmp_path / "a.tok", pixels, **GRID)
    assert (tmp_path / "a.tok").read_bytes() == tokodec.encode_file(tmp_path / "a.png", **GRID).data
    wanted = tokodec.decode_file(tmp_path / "a.tok").picture.pixels
    assert np.array_equal(iio.imread(tmp_path / "a.tok"), wanted)
    assert [frame.shape for frame in iio.imiter(tmp_path / "a.tok")] == [(50, 75, 3)]
    assert iio.improps(tmp_path / "a.tok").shape == (50, 75, 3)
    deep = np.random.default_rng(0).integers(0, 65536, (40, 30)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    tokodec.encode_file(tmp_path / "deep.png", tmp_path / "deep.tok", lossless=True)
    assert np.array_equal(iio.imread(tmp_path / "deep.tok"), deep)
    assert [iio.improps(tmp_path / f"{name}.tok").dtype for name in ("a", "deep")] == [np.uint8, np.uint16]
    assert iio.immeta(tmp_path / "a.tok")["model"] == "image-grid"
    data = iio.imwrite("<bytes>", pixels, extension=".tok", **GRID)
    assert data == (tmp_path / "a.tok").read_bytes()
    assert np.array_equal(iio.imread(data, extension=".tok"), wanted)
    for extra, shape in ((pixels[..., 0], (50, 75)), (np.dstack([pixels, pixels[..., :1]]), (50, 75, 4))):
        iio.imwrite(tmp_path / "b.tok", extra, **GRID)
        assert iio.imread(tmp_path / "b.tok").shape == shape == iio.improps(tmp_path / "b.tok").shape


def test_imageio_writes_and_reads_videos(photo: Image.Image, tmp_path: Path) -> None:
    pixels = np.asarray(photo)
    frames = np.stack([np.roll(pixels, i, 1) for i in range(6)])
    iio.imwrite(tmp_path / "a.tok", frames, fps=12, levels=2)
    header = read_tok((tmp_path / "a.tok").read_bytes()).video
    assert (header.frames, header.tick_seconds * 12 * header.duration) == (6, header.tick_parts)
    found = iio.imread(tmp_path / "a.tok")
    assert found.shape == frames.shape == iio.improps(tmp_path / "a.tok").shape
    assert np.abs(found.astype(float) - frames).mean() < 30
    for i, frame in enumerate(iio.imiter(tmp_path / "a.tok")):
        assert np.array_equal(frame, found[i])
    assert np.array_equal(iio.imread(tmp_path / "a.tok", index=4), found[4])
    assert iio.improps(tmp_path / "a.tok", index=4).shape == (50, 75, 3)
    with pytest.raises(IndexError, match="no frame 6"):
        iio.imread(tmp_path / "a.tok", index=6)
    iio.imwrite(tmp_path / "b.tok", list(frames), fps=12, levels=2)
    assert (tmp_path / "b.tok").read_bytes() == (tmp_path / "a.tok").read_bytes()


def test_what_imageio_cannot_do(tmp_path: Path) -> None:
    iio.imwrite(tmp_path / "a.tok", np.zeros((20, 1100, 3), np.uint8), **GRID)
    data = bytearray((tmp_path / "a.tok").read_bytes())
    data[read_tok(bytes(data)).places[b"LAYR", 0, 1] + 12] ^= 1
    (tmp_path / "damaged.tok").write_bytes(data)
    with pytest.raises(OSError, match="are damaged"):
        iio.imread(tmp_path / "damaged.tok")
    (tmp_path / "b.tok").write_bytes(b"nothing of the kind")
    with pytest.raises(OSError, match=r"b\.tok"):
        iio.imread(tmp_path / "b.tok")
    for wrong in (np.zeros((20, 20, 3)), np.zeros(20, np.uint8)):
        with pytest.raises(ValueError, match="pixels are uint8"):
            iio.imwrite(tmp_path / "x.tok", wrong)
    with pytest.raises(OSError, match="quality"):
        iio.imwrite(tmp_path / "x.tok", np.zeros((20, 20, 3), np.uint8), quality=900)
