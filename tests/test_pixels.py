"""The coder of pixels: every value comes back, or within its error; integers are those of the float twin."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from tokodec.entropy.pixels.coder import PIXELS_FILE, PixelCoder, reflected
from tokodec.entropy.pixels.net import CODED, LEVELS, SIZES, PixelNets, PixelShape, inputs_of
from tokodec.entropy.pixels.tables import (
    FRACTIONS,
    N_TABLES,
    SCALE_MAX,
    SCALE_MIN,
    TAIL_RATIO,
    TAIL_WEIGHTS,
    TAILS,
    pixel_table,
    reaches,
)
from tokodec.entropy.prior import read_prior_arrays

ASSETS = Path(__file__).resolve().parent.parent / "assets"
Planes = npt.NDArray[np.uint16]


@pytest.fixture(scope="module")
def nets() -> PixelNets:
    torch.manual_seed(3)
    return PixelNets(PixelShape(hidden=16, predictors=3))


@pytest.fixture(scope="module")
def coder(nets: PixelNets) -> PixelCoder:
    return PixelCoder(nets.export())


def photo(height: int, width: int) -> Planes:
    with Image.open(ASSETS / "kodim23.webp") as whole:
        pixels = np.asarray(whole.convert("RGB"))[100 : 100 + height, 60 : 60 + width]
    return pixels.transpose(2, 0, 1)[list(CODED)].astype(np.uint16)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (3, 1, 9), (1, 9, 1), (3, 2, 2), (1, 7, 4), (3, 2, 33)])
@pytest.mark.parametrize(("bits", "error"), [(8, 0), (8, 3), (16, 0), (16, 771)])
def test_small_pictures_come_back(coder: PixelCoder, shape: tuple[int, int, int], bits: int, error: int) -> None:
    planes = np.random.default_rng(1).integers(0, 1 << bits, shape).astype(np.uint16)
    back = coder.decompress(coder.compress(planes, bits, error), shape, bits, error)
    assert np.abs(back.astype(int) - planes).max() <= error


@pytest.mark.parametrize(("bits", "error"), [(8, 0), (8, 1), (8, 6), (16, 0), (16, 257)])
def test_a_photograph_comes_back(coder: PixelCoder, bits: int, error: int) -> None:
    planes = photo(40, 56)
    if bits == 16:
        noise = np.random.default_rng(2).integers(0, 200, planes.shape) * (planes > 0)
        planes = (planes * 257 - noise).astype(np.uint16)
    payload = coder.compress(planes, bits, error)
    back = coder.decompress(payload, planes.shape, bits, error)
    off = np.abs(back.astype(int) - planes).max()
    assert off == error if error == 1 else off <= error
    assert len(payload) < planes.size * bits / 8


@pytest.mark.parametrize(("bits", "error"), [(8, 0), (8, 2), (16, 0)])
def test_a_fitted_photograph_comes_back_and_is_smaller(coder: PixelCoder, bits: int, error: int) -> None:
    """Steps of 1024 values or more have corrections, here those of the finest level alone."""
    planes = photo(64, 66)
    if bits == 16:
        noise = np.random.default_rng(2).integers(0, 200, planes.shape) * (planes > 0)
        planes = (planes * 257 - noise).astype(np.uint16)
    plain, fitted = (coder.compress(planes, bits, error, fitted) for fitted in (False, True))
    side = sum(inputs_of(phase, channel) + 1 + SIZES for phase in range(3) for channel in range(3))
    assert int.from_bytes(fitted[6:8], "little") == side
    assert len(fitted) < len(plain)
    back = coder.decompress(fitted, planes.shape, bits, error, fitted=True)
    assert np.abs(back.astype(int) - planes).max() <= error
    with pytest.raises(ValueError, match="payload"):
        coder.decompress(fitted[:6] + (side - 1).to_bytes(2, "little") + fitted[8:], planes.shape, bits, error, True)
    with pytest.raises(ValueError, match="payload"):
        coder.decompress(fitted[: 8 + side - 1], planes.shape, bits, error, True)
    small = coder.compress(planes[:, :40, :40], bits, error, fitted=True)
    assert small[6:8] == b"\0\0"
    assert small[:6] + small[8:] == coder.compress(planes[:, :40, :40], bits, error)


@pytest.mark.parametrize("bits", [8, 16])
def test_extremes_come_back(coder: PixelCoder, bits: int) -> None:
    chance = np.random.default_rng(4)
    ends = np.kron(chance.integers(0, 2, (3, 9, 8)), np.ones((1, 3, 3)))
    planes = (ends * ((1 << bits) - 1)).astype(np.uint16)
    assert np.array_equal(coder.decompress(coder.compress(planes, bits), planes.shape, bits), planes)
    planes = np.tile(planes, (1, 3, 3))[:, :66, :64]
    assert np.array_equal(coder.decompress(coder.compress(planes, bits, 0, True), planes.shape, bits, 0, True), planes)


def test_larger_errors_take_fewer_bytes(coder: PixelCoder) -> None:
    sizes = [len(coder.compress(photo(40, 56), 8, error)) for error in (0, 1, 2, 4, 8)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 2


def test_payloads_are_what_the_twin_says() -> None:
    """Bits of the finest levels as they are trained, and those of payloads of the released nets."""
    arrays, hash = read_prior_arrays(ASSETS / "image-lossless", PIXELS_FILE)
    shape = PixelShape(len(arrays["c0p0.middle.bias"]), len(arrays["c0p0.predict.bias"]))
    nets = PixelNets(shape)
    nets.load_export(arrays)
    coder, planes = PixelCoder(arrays, hash), photo(64, 64)
    with torch.no_grad():
        bits = nets(torch.from_numpy(planes.astype(np.float32))[None], True)
    coarse = planes[:, :: 1 << LEVELS, :: 1 << LEVELS]
    fine = 8 * (len(coder.compress(planes, 8)) - len(coder.compress(coarse, 8)))
    assert float(bits.sum()) == pytest.approx(fine, rel=0.01)


def test_damage_is_refused_or_wrong_but_bounded(coder: PixelCoder) -> None:
    planes = photo(16, 16)
    payload = coder.compress(planes, 8)
    for broken in (b"", payload[:3], payload[:-1]):
        with pytest.raises(ValueError, match="payload"):
            coder.decompress(broken, planes.shape, 8)
    chance = np.random.default_rng(0)
    for _ in range(8):
        flipped = bytearray(payload)
        flipped[chance.integers(6, len(payload) - 4)] ^= 1 << chance.integers(8)
        try:
            back = coder.decompress(bytes(flipped), planes.shape, 8)
        except ValueError:
            continue
        assert back.shape == planes.shape
        assert back.max() < 256
    with pytest.raises(ValueError, match="1 or 3 channels"):
        coder.compress(np.zeros((2, 4, 4), dtype=np.uint16), 8)


def test_arrays_that_do_not_fit_are_refused(nets: PixelNets) -> None:
    arrays = nets.export()
    with pytest.raises(ValueError, match="lacks"):
        PixelCoder({name: a for name, a in arrays.items() if name != "c1p2.middle.bias"})
    with pytest.raises(ValueError, match="fit"):
        PixelCoder(arrays | {"c0p0.predict.weight": arrays["c0p0.predict.weight"][:, 1:]})
    with pytest.raises(ValueError, match="not exact"):
        PixelCoder(arrays | {"c0p0.enter.bias": arrays["c0p0.enter.bias"] + np.int32(1 << 24)})


def test_exports_load_back(nets: PixelNets) -> None:
    again = PixelNets(nets.shape)
    again.load_export(nets.export())
    for name, array in again.export().items():
        assert np.array_equal(array, nets.export()[name]), name


def test_tables_are_the_distributions_that_nets_learn() -> None:
    chance = np.random.default_rng(0)
    for number in [0, N_TABLES - 1, *chance.integers(0, N_TABLES, 40).tolist()]:
        rest, tail = divmod(number, TAILS)
        scale, fraction = divmod(rest, FRACTIONS)
        assert SCALE_MIN <= scale + SCALE_MIN <= SCALE_MAX
        reach = int(reaches()[number])
        edges = np.arange(-reach, reach + 2) - 0.5 - fraction / FRACTIONS
        unit = 2.0 ** ((scale + SCALE_MIN) / 8)
        below = [1 / (1 + np.exp(-edges / (unit * ratio))) for ratio in (1, TAIL_RATIO)]
        weight = TAIL_WEIGHTS[tail] / 256
        mass = np.diff((1 - weight) * below[0] + weight * below[1])
        table = pixel_table(number)
        assert table.size == 2 * reach + 3
        assert np.abs(table[1:-1] / 2**24 - mass).max() < 2e-3
        assert (mass * np.log2(np.maximum(mass, 1e-12) / (table[1:-1] / 2**24))).sum() < 1e-3


def test_tables_never_change() -> None:
    """They are part of the format."""
    digest = hashlib.sha256()
    for number in range(0, N_TABLES, 97):
        digest.update(pixel_table(number).astype("<i4").tobytes())
    assert digest.hexdigest()[:16] == "97b410eb02685201"


def test_mirrors_keep_parity() -> None:
    for n in range(2, 12):
        places = reflected(n)
        assert ((places - (np.arange(-3, n + 3))) % 2 == 0).all()
        assert places.min() >= 0
        assert places.max() < n
