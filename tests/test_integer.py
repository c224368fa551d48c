"""Integer networks: every sum is exact, so results equal Python's integers in whatever order they are added."""

from collections.abc import Iterator
from decimal import ROUND_FLOOR, Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import torch

from tokodec.entropy import integer
from tokodec.entropy.integer import EXACT, LOGIT_MAX, ExactLinear, check_linear, exact_dtype, exp2_table, frequencies
from tokodec.entropy.tables import TOTAL

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float64]
WIDE = 1 << 25  # clamps that never clamp


def layer(weight: Any, bias: Any, shift: Any) -> dict[str, np.ndarray]:
    return {"weight": np.array(weight, np.int8), "bias": np.array(bias, np.int32), "shift": np.array(shift, np.uint8)}


def run_layer(
    arrays: dict[str, np.ndarray],
    x: np.ndarray,
    input_max: int,
    low: int = -WIDE,
    high: int = WIDE,
    dtype: torch.dtype = torch.float32,
) -> list[list[int]]:
    """What :class:`ExactLinear` makes of integers ``x``, which must be integers as well."""
    y = ExactLinear(arrays, input_max, low, high, CPU, dtype)(torch.from_numpy(x).to(dtype))
    assert y.dtype == dtype
    assert torch.equal(y, y.round())
    return [[int(v) for v in row] for row in y.tolist()]


def plain_layer(arrays: dict[str, np.ndarray], x: np.ndarray, low: int = -WIDE, high: int = WIDE) -> list[list[int]]:
    """The same in Python's integers: ``floor((W x + b) / 2^shift + 1/2)``, clamped."""
    found = []
    for row in x.tolist():
        out = []
        for weights, bias, shift in zip(*(arrays[name].tolist() for name in ("weight", "bias", "shift")), strict=True):
            total = bias + sum(w * v for w, v in zip(weights, row, strict=True))
            out.append(min(high, max(low, (2 * total + (1 << shift)) // (2 << shift))))
        found.append(out)
    return found


@pytest.fixture
def _restored() -> Iterator[None]:
    """Threads and precision of products as before."""
    backends: Any = torch.backends
    threads, precision = torch.get_num_threads(), backends.mkldnn.matmul.fp32_precision
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    backends.mkldnn.fp32_precision = "none"
    backends.mkldnn.matmul.fp32_precision = precision


# ----------------------------------------------------------------------------------------------------- exact layers


def test_rounding_is_half_up() -> None:
    x = np.arange(-5, 6)[:, None]
    assert run_layer(layer([[1]], [0], [1]), x, 5) == [[v] for v in (-2, -2, -1, -1, 0, 0, 1, 1, 2, 2, 3)]
    assert run_layer(layer([[1]], [0], [2]), x, 5) == [[v] for v in (-1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1)]
    assert run_layer(layer([[-1]], [2], [0]), x, 5) == [[v] for v in (7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("input_max", [127, 255])
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (3, 5), (97, 33), (300, 64)])
def test_layer_against_python(n_in: int, n_out: int, input_max: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(n_in + input_max)
    for low, high in ((-127, 127), (0, 255), (-WIDE, WIDE)):
        arrays = layer(
            rng.integers(-127, 128, (n_out, n_in)),
            rng.integers(-(1 << 20), 1 << 20, n_out),
            rng.integers(0, 24, n_out) if n_in < 200 else rng.integers(1, 23, n_out),
        )
        x = rng.integers(-input_max, input_max + 1, (20, n_in))
        assert run_layer(arrays, x, input_max, low, high, dtype) == plain_layer(arrays, x, low, high)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [0, 1, 7, 22, 23])
def test_layer_at_the_proved_bound(shift: int, dtype: torch.dtype) -> None:
    """Weights, inputs and bias all at their largest and of one sign, in sums that just fit; one more is refused."""
    most = (EXACT - 1 - (1 << shift >> 1)) if shift else (EXACT - 2) // 2  # of sum |w| * input_max + |b|
    signs = np.where(np.random.default_rng(shift).random(250) < 0.5, -1, 1)
    for sign in (-1, 1):
        arrays = layer([127 * signs], [0], [shift])
        arrays["bias"][0] = sign * (most - 127 * 127 * 250)
        assert abs(int(arrays["bias"][0])) > 1 << 20
        x = np.stack([127 * sign * signs, -127 * sign * signs, np.random.default_rng(1).integers(-127, 128, 250)])
        found = run_layer(arrays, x, 127, dtype=dtype)
        assert found == plain_layer(arrays, x)
        assert abs(found[0][0] - sign * most / 2**shift) <= 0.5
        arrays["bias"][0] += sign
        with pytest.raises(ValueError, match="not exact"):
            ExactLinear(arrays, 127, -WIDE, WIDE, CPU, dtype)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (layer([[1]], [0], [24]), "do not fit"),
        (layer([[1]], [0, 0], [0]), "do not fit"),
        (layer([[1]], [0], [0, 0]), "do not fit"),
        (layer([[1]], [[0]], [[0]]), "do not fit"),
        (layer([1], [0], [0]), "is weight int8"),
        (layer([[1]], [0], [0]) | {"weight": np.array([[1]], np.int16)}, "is weight int8"),
        (layer([[1]], [0], [0]) | {"weight": np.array([[1]], np.float32)}, "is weight int8"),
        (layer([[1]], [0], [0]) | {"bias": np.array([0], np.int64)}, "is weight int8"),
        (layer([[1]], [0], [0]) | {"shift": np.array([0], np.int8)}, "is weight int8"),
        (layer([[1]], [-(1 << 31)], [1]), "not exact"),
        (layer([[1]], [(1 << 31) - 1], [23]), "not exact"),
        (layer([[127] * 1041], [0], [1]), "not exact"),
        (layer([[-128] * 1033], [0], [1]), "not exact"),
        (layer([[1] * 5, [127] * 5], [0, 1 << 24], [3, 3]), "not exact"),
    ],
)
def test_layers_that_are_refused(arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_linear(arrays, 127)
    with pytest.raises(ValueError, match=message):
        ExactLinear(arrays, 127, -1, 1, CPU)


# ------------------------------------------------------------------------------------------------------ probabilities


def test_powers_of_two_against_decimal() -> None:
    """60 digits tell each value from the next half by far."""
    table = exp2_table()
    assert table.dtype == np.int64
    assert len(table) == 17 * 64 + 2
    assert (table[0], table[64], table[-2], table[-1]) == (65536, 32768, 1, 0)
    with localcontext() as context:
        context.prec = 60
        for d, value in enumerate(table.tolist()):
            exact = Decimal(2) ** (16 - Decimal(d) / 64)
            assert int((exact + Decimal("0.5")).to_integral_value(ROUND_FLOOR)) == value


def plain_frequencies(logits: list[int]) -> list[int]:
    """The docstring of :func:`frequencies` in Python's integers."""
    table = exp2_table().tolist()
    n, top = len(logits), max(logits)
    weights = [table[top - x] if top - x < len(table) else 0 for x in logits]
    found = [1 + w * ((1 << 24) - n) // sum(weights) for w in weights]
    found[logits.index(top)] += (1 << 24) - sum(found)
    return found


def as_frequencies(logits: np.ndarray, dtype: torch.dtype = torch.float32) -> np.ndarray:
    shares = frequencies(torch.from_numpy(logits).to(dtype))
    assert shares.dtype == torch.float32
    assert torch.equal(shares, shares.round())
    return shares.numpy().astype(np.int64) + 1


@pytest.mark.parametrize("spread", [0, 1, 30, 300, 3000, LOGIT_MAX])
@pytest.mark.parametrize("n", [1, 2, 3, 17, 64, 100, 255, 256])
def test_frequencies_against_python(n: int, spread: int) -> None:
    rng = np.random.default_rng(1000 * n + spread)
    logits = rng.integers(-spread, spread + 1, (200, n))
    found = as_frequencies(logits)
    assert found.tolist() == [plain_frequencies(row) for row in logits.tolist()]
    assert (found.sum(1) == TOTAL).all()
    assert found.min() >= 1
    assert np.array_equal(found, as_frequencies(logits, torch.float64))


def test_frequencies_of_hostile_logits() -> None:
    """The longest range, all the weight on the last symbol, and quotients as close to an integer as they come."""
    top = LOGIT_MAX
    for row in (
        [-top] * 255 + [top],
        [top] * 256,
        [top, -top],
        [0, -1087], [0, -1088], [0, -1089], [0, -1090],  # around the end of the table
        [0] + [-1088] * 255,
        [-64 * i for i in range(256)],
        [0, -64, -64], [0, -64, -128, -128],  # quotients of powers of two
    ):  # fmt: skip
        assert as_frequencies(np.array([row])).tolist() == [plain_frequencies(row)]
    assert as_frequencies(np.array([[-top] * 255 + [top]]))[0, -1] == TOTAL - 255
    assert as_frequencies(np.array([[0, -1089]])).tolist() == [[TOTAL - 1, 1]]


def test_what_is_left_over_goes_to_the_first_of_the_largest() -> None:
    assert as_frequencies(np.array([[5, 5, 5]])).tolist() == [[5592406, 5592405, 5592405]]
    assert as_frequencies(np.array([[-9, 5, 5, 5]])).tolist() == [plain_frequencies([-9, 5, 5, 5])]
    rng = np.random.default_rng(0)
    for n in (3, 100, 256):
        logits = rng.integers(-3, 1, (300, n))  # the largest comes many times
        assert as_frequencies(logits).tolist() == [plain_frequencies(row) for row in logits.tolist()]


def test_a_frequency_follows_its_logit() -> None:
    """64 units are a factor of two."""
    found = as_frequencies(np.array([[0, -64, -128, 0]]))[0]
    assert np.allclose(found / TOTAL, np.array([4, 2, 1, 4]) / 11, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- same everywhere


@pytest.mark.usefixtures("_restored")
def test_products_of_fewer_bits_are_avoided() -> None:
    """In whatever way they were allowed."""
    backends: Any = torch.backends
    assert exact_dtype(CPU) == torch.float32
    for precision in ("bf16", "tf32"):
        backends.mkldnn.matmul.fp32_precision = precision
        assert exact_dtype(CPU) == torch.float64
        backends.mkldnn.matmul.fp32_precision = "ieee"
        assert exact_dtype(CPU) == torch.float32
        backends.mkldnn.matmul.fp32_precision = "none"
    backends.mkldnn.fp32_precision = "bf16"
    assert exact_dtype(CPU) == torch.float64
    backends.mkldnn.fp32_precision = "none"
    for setting, dtype in (("medium", torch.float64), ("high", torch.float64), ("highest", torch.float32)):
        torch.set_float32_matmul_precision(setting)
        assert exact_dtype(CPU) == dtype


@pytest.mark.usefixtures("_restored")
def test_results_do_not_depend_on_threads() -> None:
    rng = np.random.default_rng(2)
    arrays = layer(rng.integers(-15, 16, (600, 1000)), rng.integers(-999, 999, 600), rng.integers(4, 12, 600))
    linear = ExactLinear(arrays, 127, -LOGIT_MAX, LOGIT_MAX, CPU)
    x = torch.from_numpy(rng.integers(-127, 128, (700, 1000))).float()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        y = linear(x)
        found.append((y, frequencies(y[:, :256]), linear(x[:1]), linear(x.flip(0)).flip(0)))
    (y, tables, first, turned), second = found
    assert all(torch.equal(a, b) for a, b in zip(found[0], second, strict=True))
    assert torch.equal(y, turned)  # nor on the place in a batch
    assert torch.equal(y[:1], first)
    assert y[:2].tolist() == plain_layer(arrays, x[:2].long().numpy(), -LOGIT_MAX, LOGIT_MAX)
    assert tables[0].add(1).tolist() == plain_frequencies([int(v) for v in y[0, :256]])


@pytest.mark.parametrize("input_max", [127, 255])
def test_int8_products_are_those_of_float32(input_max: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the CPU has them; elsewhere both layers are float32 and nothing is compared."""
    if not integer.int8_products(CPU):
        pytest.skip("this CPU has no exact products of int8")
    rng = np.random.default_rng(input_max)
    for n_in, n_out, rows in ((8, 1, 1), (100, 33, 17), (500, 64, 384)):
        arrays = layer(
            rng.choice([-127, 127, 3], (n_out, n_in)), rng.integers(-1000, 1000, n_out), rng.integers(1, 12, n_out)
        )
        x = rng.choice([0, input_max, 1] if input_max > 127 else [-127, 0, 127], (rows, n_in))
        layers = []
        for able in (True, False):
            monkeypatch.setattr(integer, "int8_products", lambda _, able=able: able)
            layers.append(ExactLinear(arrays, input_max, -WIDE, WIDE, CPU, input_min=0 if input_max > 127 else None))
        assert [own.int8 for own in layers] == [True, False]
        found = [own(torch.from_numpy(x).float()) for own in layers]
        assert torch.equal(*found)
