"""Damaged files: a coarser picture, a picture with named damage, or one error of ours; never anything else.

Most cases stop at the codes, since synthesis nets take any codes; some hundreds go all the way to pixels.
"""

import io
import random
import shutil
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tokodec.codec.container.chunks import FRAME, LAYR, pack_chunk, pack_layer_prefix, read_layer_prefix
from tokodec.codec.container.fields import SIGNATURE, ImageHeader, write_header
from tokodec.codec.container.read import read_tok
from tokodec.codec.container.write import write_tok
from tokodec.codec.decode import decode_file, file_tokens
from tokodec.codec.errors import FormatError, ModelError
from tokodec.codec.image.segments import compress_tokens, fewest_levels
from tokodec.codec.media.write_image import encode_alpha
from tokodec.codec.models import Model, load_model
from tokodec.entropy.context.net import ContextNet, LevelShape
from tokodec.entropy.context.prior import ContextPrior
from tokodec.entropy.schedule import offsets_within, refinement
from tokodec.tokenizers.image.grid import ImageGrid
from tokodec.tokenizers.tokens import Tokens

START = len(SIGNATURE) + 1


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Model:
    return load_model(str(tiny_model))


def image_grid(model: Model) -> ImageGrid:
    assert isinstance(model.tokenizer, ImageGrid)
    return model.tokenizer


def make_file(model: Model, height: int, width: int, segment: int = 64, extras: bool = False) -> bytes:
    """A file of random codes, as likely as the prior thinks."""
    rng = np.random.default_rng(height * width)
    grid = (-(-height // 16), -(-width // 16))
    codes = np.stack([rng.choice(n, grid) for n in model.prior.codebook_sizes])
    header = ImageHeader(
        "tiny", model.tokenizer.weights_hash, model.prior.hash, 3, height, width, 16, segment, 3, int(extras),
        prior=model.prior.wire_id,
    )  # fmt: skip
    layers: list[list[bytes]] = [[], [], []]
    for s in range(header.n_segments):
        top, left, bottom, right = header.segment_box(s)
        for row, payload in zip(layers, model.prior.compress(codes[:, top:bottom, left:right]), strict=True):
            row.append(payload)
    alpha = encode_alpha(np.full((height, width), 7, np.uint8)) if extras else None
    return write_tok(header, layers, alpha, **({"icc": b"profile", "exif": b"II*\0"} if extras else {}))


@pytest.fixture(scope="module")
def one(tiny: Model) -> bytes:
    """One segment, three levels."""
    return make_file(tiny, 70, 50)


@pytest.fixture(scope="module")
def many(tiny: Model) -> bytes:
    """3 x 2 segments, three levels, alpha, profile, EXIF and index."""
    return make_file(tiny, 90, 50, segment=2, extras=True)


def codes_of(data: bytes, model: Path) -> tuple[Tokens, list[str]]:
    tok = read_tok(data, 1 << 20)
    tokens, _ = file_tokens(tok, str(model), "cpu")
    return tokens, tok.problems


def chunk_offsets(data: bytes) -> dict[tuple[bytes, int, int], tuple[int, int]]:
    """Where the chunks of an intact file lie: (type, layer, segment) -> (start, end)."""
    found, at = {}, START
    while at < len(data):
        kind, length = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        prefix = read_layer_prefix(data[at + 8 : at + 8 + length]) if kind == LAYR else (0, 0, 0)
        assert prefix is not None
        layer, segment, _ = prefix
        found[kind, layer, segment] = (at, at + FRAME + length)
        at += FRAME + length
    return found


def check(data: bytes, whole: torch.Tensor, model: Path) -> str:
    """Decode damaged ``data`` to codes; returns "same", "told" or the error's name, and fails for anything else."""
    try:
        tokens, problems = codes_of(data, model)
    except (FormatError, ModelError) as error:
        return type(error).__name__ if "\n" not in str(error) else "error of several lines"
    if problems:
        return "told"
    assert torch.equal(tokens.codes, whole)
    return "same"


# ------------------------------------------------------------------------------------------------------ cut short


@pytest.mark.parametrize("which", ["one", "many"])
def test_every_length(which: str, tiny_model: Path, request: pytest.FixtureRequest) -> None:
    """A file that is cut off anywhere is a coarser picture, and never coarser than a shorter cut."""
    data: bytes = request.getfixturevalue(which)
    whole, _ = codes_of(data, tiny_model)
    last_levels, last_cells, seen = 0, 0, set()
    refused: list[str] = []
    longest_refused = 0
    for n in range(len(data)):
        try:
            tokens, problems = codes_of(data[:n], tiny_model)
        except FormatError as error:
            refused.append(type(error).__name__)
            longest_refused = n
            continue
        assert problems
        levels = fewest_levels(tokens)
        cells = int((tokens.codes >= 0).sum())
        assert levels >= last_levels
        assert cells >= last_cells
        last_levels, last_cells = levels, cells
        seen.add(levels)
        # What is there is right, but for whole segments that are not there yet.
        if which == "one":
            assert torch.equal(tokens.codes, whole.codes[:, :levels])
    assert seen == {1, 2, 3}
    assert set(refused) == {"SignatureError", "TruncatedError"}
    assert refused.count("SignatureError") == 1  # no bytes at all
    assert len(refused) == chunk_offsets(data)[LAYR, 0, 0][1]  # one segment in six is enough
    assert longest_refused == len(refused) - 1  # once something can be decoded, every longer cut can
    assert last_cells == whole.codes.numel()


def test_cut_before_the_end_chunk_loses_nothing(many: bytes, tiny_model: Path) -> None:
    whole, problems = codes_of(many, tiny_model)
    assert problems == []
    for kind in (b"iNDX", b"TEND"):
        tokens, problems = codes_of(many[: chunk_offsets(many)[kind, 0, 0][0]], tiny_model)
        assert torch.equal(tokens.codes, whole.codes)
        assert len(problems) == 1


def test_cut_to_pixels(many: bytes, tiny_model: Path) -> None:
    decoded = 0
    for n in range(0, len(many), 17):
        try:
            done = decode_file(io.BytesIO(many[:n]), model=str(tiny_model), device="cpu")
        except FormatError:
            continue
        decoded += 1
        assert done.problems
        assert done.picture.pixels.shape == (90, 50, 3)
        with pytest.raises(FormatError):
            decode_file(io.BytesIO(many[:n]), model=str(tiny_model), device="cpu", strict=True)
    assert decoded > 20


# -------------------------------------------------------------------------------------------------- flipped bits


@pytest.mark.parametrize("which", ["one", "many"])
def test_every_flipped_bit(which: str, tiny_model: Path, request: pytest.FixtureRequest) -> None:
    """Signature, version, header, frames, payloads, index: no bit can change without being noticed."""
    data: bytes = request.getfixturevalue(which)
    whole = codes_of(data, tiny_model)[0].codes
    header_end = chunk_offsets(data)[b"HEAD", 0, 0][1]
    # What is left of a single segment without its first layer is nothing at all.
    needed = header_end if which == "many" else chunk_offsets(data)[LAYR, 0, 0][1]
    found: dict[str, int] = {}
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            result = check(bytes(changed), whole, tiny_model)
            found[result] = found.get(result, 0) + 1
            assert (at >= needed) == (result in ("told", "same")), f"byte {at}, bit {bit}: {result}"
            assert result != "TruncatedError" or header_end <= at < needed or at in range(13, 17)  # length of HEAD
            # Metadata and alpha are not asked for here: an index that is intact leads past them.
            assert result != "same" or which == "many"
    assert {"SignatureError", "VersionError", "HeaderError", "told"} <= set(found)


def test_flipped_bits_to_pixels(many: bytes, tiny_model: Path) -> None:
    """All the way, where metadata and alpha are asked for: every flipped bit behind the header is told."""
    rng = random.Random(0)
    header_end = chunk_offsets(many)[b"HEAD", 0, 0][1]
    for _ in range(150):
        changed = bytearray(many)
        changed[rng.randrange(header_end, len(many))] ^= 1 << rng.randrange(8)
        done = decode_file(io.BytesIO(bytes(changed)), model=str(tiny_model), device="cpu")
        assert done.problems
        assert done.picture.pixels.shape == (90, 50, 3)


# -------------------------------------------------------------------------------------------- damage costs its own


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("where", ["type", "length", "long length", "payload", "checksum"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_damaged_chunk_costs_its_own_segment(
    where: str, layer: int, indexed: bool, many: bytes, tiny_model: Path, tiny: Model
) -> None:
    offsets = chunk_offsets(many)
    data = many if indexed else many[: offsets[b"iNDX", 0, 0][0]] + pack_chunk(b"TEND", b"")
    whole = codes_of(many, tiny_model)[0].codes
    header = read_tok(many).picture
    for segment in range(header.n_segments):
        start, end = offsets[LAYR, layer, segment]
        changed = bytearray(data)
        if where == "long length":
            changed[start + 4 : start + 8] = b"\xff\xff\xff\xff"
        else:
            changed[{"type": start, "length": start + 4, "payload": start + 12, "checksum": end - 1}[where]] ^= 0x10
        tokens, problems = codes_of(bytes(changed), tiny_model)
        assert problems
        expected = whole.clone()
        top, left, bottom, right = header.segment_box(segment)
        expected[:, layer:, top:bottom, left:right] = -1
        if layer == 0:
            codewords = tiny.tokenizer.codewords()
            filled = tiny.prior.conceal(np.full((3, 1, 1), -1), codewords)
            expected[:, :1, top:bottom, left:right] = int(filled[0, 0, 0])
        assert torch.equal(tokens.codes, expected)


def test_a_lost_layer_leaves_the_finer_ones_unused(one: bytes, tiny_model: Path) -> None:
    """The residual of a residual that is not there would be noise."""
    start, end = chunk_offsets(one)[LAYR, 1, 0]
    tokens, problems = codes_of(one[:start] + one[end:], tiny_model)
    assert tokens.n_levels == 1
    assert any("decoded from 1 of 3 layers" in problem for problem in problems)


def test_a_payload_that_does_not_decode_costs_its_layer(many: bytes, tiny_model: Path) -> None:
    """Right checksum, wrong payload: from a writer that is not ours."""
    whole = codes_of(many, tiny_model)[0].codes
    start, end = chunk_offsets(many)[LAYR, 1, 3]
    for payload in (b"abc", b"\0\0\0\0", b"long" * 50):
        data = many[:start] + pack_chunk(LAYR, pack_layer_prefix(1, 3) + payload) + many[end:]
        tokens, problems = codes_of(data, tiny_model)
        assert any("segment 3" in problem for problem in problems)
        expected = whole.clone()
        top, left, bottom, right = read_tok(many).picture.segment_box(3)
        expected[:, 1:, top:bottom, left:right] = -1
        assert torch.equal(tokens.codes, expected)


def test_payloads_of_no_bytes_are_codes(one: bytes, tiny_model: Path, tiny: Model) -> None:
    """Codes of 0 take no bytes at all; that is not a missing layer."""
    header = read_tok(one).picture
    codes = np.zeros((3, *header.grid), np.int64)
    codes[2] = 5
    payloads = tiny.prior.compress(codes)
    assert payloads[0] == payloads[1] == b""
    tokens, problems = codes_of(write_tok(header, [[payload] for payload in payloads]), tiny_model)
    assert problems == []
    assert np.array_equal(tokens.codes[0].numpy(), codes)


def test_damaged_alpha_and_metadata_are_told(many: bytes, tiny_model: Path) -> None:
    intact = decode_file(io.BytesIO(many), model=str(tiny_model), device="cpu")
    assert intact.problems == []
    assert intact.picture.alpha is not None
    for kind, word in ((b"ALPH", "alpha"), (b"iCCP", "iCCP"), (b"eXIF", "eXIF")):
        changed = bytearray(many)
        changed[chunk_offsets(many)[kind, 0, 0][1] - 1] ^= 1
        done = decode_file(io.BytesIO(bytes(changed)), model=str(tiny_model), device="cpu")
        assert any(word in problem for problem in done.problems)
        assert np.array_equal(done.picture.pixels, intact.picture.pixels)
        assert (done.picture.alpha is None, done.picture.icc is None, done.picture.exif is None) == (
            kind == b"ALPH", kind == b"iCCP", kind == b"eXIF",
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------- random corruption


def damage(data: bytes, rng: random.Random) -> bytes:
    """One to three accidents: flipped bytes, overwritten runs, insertions, deletions, swapped blocks."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(out))
        n = rng.choice([1, 4, 12, rng.randrange(1, 80)])
        kind = rng.randrange(6)
        if kind == 0:
            for _ in range(rng.randrange(1, 9)):
                out[rng.randrange(len(out))] ^= rng.randrange(1, 256)
        elif kind == 1:
            out[at : at + n] = rng.randbytes(len(out[at : at + n]))
        elif kind == 2:
            out[at : at + n] = bytes(len(out[at : at + n]))
        elif kind == 3:
            out[at:at] = rng.choice([rng.randbytes(n), b"LAYR" + rng.randbytes(n), bytes(out[at : at + n])])
        elif kind == 4:
            del out[at : at + n]
        else:
            other = rng.randrange(len(out))
            a, b = min(at, other), max(at, other)
            n = min(n, b - a)
            out[a : a + n], out[b : b + n] = out[b : b + n], out[a : a + n]
        if not out:
            break
    return bytes(out)


def behind_the_header(data: bytes, rng: random.Random) -> bytes:
    end = chunk_offsets(data)[b"HEAD", 0, 0][1]
    return data[:end] + damage(data[end:], rng)


@pytest.mark.parametrize("which", ["one", "many"])
def test_random_corruption(which: str, tiny_model: Path, request: pytest.FixtureRequest) -> None:
    data: bytes = request.getfixturevalue(which)
    whole = codes_of(data, tiny_model)[0].codes
    rng = random.Random(which)
    found: dict[str, int] = {}
    began = time.process_time()
    slowest = 0.0
    for i in range(1500):
        before = time.process_time()
        result = check(behind_the_header(data, rng) if i % 3 else damage(data, rng), whole, tiny_model)
        slowest = max(slowest, time.process_time() - before)
        found[result] = found.get(result, 0) + 1
    assert found["told"] > 500
    assert slowest < 2
    assert time.process_time() - began < 60


def test_random_corruption_to_pixels(many: bytes, one: bytes, tiny_model: Path) -> None:
    rng = random.Random(3)
    intact = {data: decode_file(io.BytesIO(data), model=str(tiny_model), device="cpu") for data in (one, many)}
    decoded = 0
    for i in range(200):
        data = (one, many)[i % 2]
        try:
            done = decode_file(io.BytesIO(behind_the_header(data, rng)), model=str(tiny_model), device="cpu")
        except FormatError:
            continue
        decoded += 1
        assert done.picture.pixels.shape == intact[data].picture.pixels.shape
        if not done.problems:
            assert np.array_equal(done.picture.pixels, intact[data].picture.pixels)
    assert decoded > 100


# ------------------------------------------------------------------------------------------------- a context prior


@pytest.fixture(scope="module")
def context_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context prior of random weights beside the static one."""
    folder = tmp_path_factory.mktemp("context") / "tiny"
    shutil.copytree(tiny_model, folder)
    torch.manual_seed(0)
    sizes = load_model(str(tiny_model)).prior.codebook_sizes
    offsets, shape = offsets_within(2, (1.0, 1.0)), LevelShape(features=8, width=16, hidden=16, blocks=1, digit=8)
    schedules = [*(refinement(2, n) for n in (8, 4, 2)), refinement(2, 1)]
    codewords = [np.zeros((n, 0)) for n in sizes]
    net = ContextNet(codewords, schedules, [offsets] * len(schedules), [shape] * len(schedules))
    ContextPrior(net.export()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def many_context(context_model: Path) -> bytes:
    """3 x 2 segments, coded with the context prior."""
    return make_file(load_model(str(context_model)), 90, 50, segment=2, extras=True)


def test_the_context_prior_is_the_default(many_context: bytes, context_model: Path, tiny_model: Path) -> None:
    model = load_model(str(context_model))
    assert isinstance(model.prior, ContextPrior)
    header = read_tok(many_context).picture
    assert (header.prior, header.prior_hash) == (model.prior.wire_id, model.prior.hash)
    tokens, problems = codes_of(many_context, context_model)
    assert problems == []
    assert fewest_levels(tokens) == 3
    with pytest.raises(ModelError, match="entropy model"):  # it is not that of the model without it
        codes_of(many_context, tiny_model)


def test_a_damaged_chunk_of_the_context_prior_costs_its_own_segment(many_context: bytes, context_model: Path) -> None:
    whole = codes_of(many_context, context_model)[0].codes
    header = read_tok(many_context).picture
    for layer in range(3):
        for segment in range(header.n_segments):
            changed = bytearray(many_context)
            changed[chunk_offsets(many_context)[LAYR, layer, segment][1] - 1] ^= 1
            tokens, problems = codes_of(bytes(changed), context_model)
            assert problems
            top, left, bottom, right = header.segment_box(segment)
            inside = torch.zeros(whole.shape[2:], dtype=torch.bool)
            inside[top:bottom, left:right] = True
            assert torch.equal(tokens.codes[..., ~inside], whole[..., ~inside])
            own = tokens.codes[..., inside][0]
            assert torch.equal(own[:layer], whole[0, :layer][:, inside])
            assert (own[max(layer, 1) :] == -1).all()
            assert layer or (int(own[0].min()) >= 0 and int(own[0].max()) < 64)  # filled


def test_random_corruption_of_a_context_coded_file(many_context: bytes, context_model: Path) -> None:
    whole = codes_of(many_context, context_model)[0].codes
    rng = random.Random(5)
    found: dict[str, int] = {}
    for _ in range(150):
        result = check(behind_the_header(many_context, rng), whole, context_model)
        found[result] = found.get(result, 0) + 1
    assert found["told"] > 100


def test_hostile_payloads_of_a_context_coded_file(many_context: bytes, context_model: Path) -> None:
    """Right checksums around random words: what does not decode is told, what does is codes."""
    tok = read_tok(many_context)
    offsets = chunk_offsets(many_context)
    rng = random.Random(6)
    told = 0
    for _ in range(100):
        layer, segment = rng.randrange(3), rng.randrange(tok.picture.n_segments)
        start, end = offsets[LAYR, layer, segment]
        payload = pack_layer_prefix(layer, segment) + rng.randbytes(4 * rng.randrange(6))
        tokens, problems = codes_of(
            many_context[:start] + pack_chunk(LAYR, payload) + many_context[end:], context_model
        )
        told += bool(problems)
        assert tokens.codes.shape == (1, 3, 6, 4)
    assert told > 50


def hostile_files(model: Model) -> Iterator[bytes]:
    """Chunks with right checksums and random contents: what a fuzzer behind the checksums would write."""
    rng = random.Random(4)
    header = ImageHeader("tiny", model.tokenizer.weights_hash, model.prior.hash, 3, 70, 50, 16, 2, 3, 1)
    head = bytearray(write_header(header))
    for _ in range(400):
        changed = bytearray(head)
        if rng.random() < 0.3:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        out = SIGNATURE + b"\1" + pack_chunk(b"HEAD", bytes(changed))
        for _ in range(rng.randrange(20)):
            kind = rng.choice([LAYR, LAYR, LAYR, b"ALPH", b"iCCP", b"eXIF", b"iNDX", b"TEND", b"fuZZ"])
            payload = rng.randbytes(4 * rng.randrange(20))
            if kind == LAYR and rng.random() < 0.9:
                payload = pack_layer_prefix(rng.randrange(4), rng.randrange(7)) + payload
            elif kind in (b"iCCP", b"eXIF") and rng.random() < 0.5:
                payload = zlib.compress(payload)
            out += pack_chunk(kind, payload)
        yield out


def test_hostile_files(tiny: Model, tiny_model: Path) -> None:
    decoded = 0
    for data in hostile_files(tiny):
        try:
            done = decode_file(io.BytesIO(data), model=str(tiny_model), device="cpu", max_pixels=1 << 16)
        except (FormatError, ModelError):
            continue
        decoded += 1
        assert done.problems
    assert decoded > 50


def test_codes_survive_the_way_through_a_file(one: bytes, tiny_model: Path) -> None:
    tokens, problems = codes_of(one, tiny_model)
    assert problems == []
    assert write_tok(read_tok(one).header, compress_tokens(tokens, load_model(str(tiny_model)))) == one


def test_bytes_that_moved_under_an_intact_index_are_found_again(many: bytes, tiny_model: Path) -> None:
    offsets = chunk_offsets(many)
    early, late = offsets[b"iCCP", 0, 0][0], offsets[LAYR, 2, 5][0]
    moved = many[:early] + b"1234567" + many[early:late] + many[late + 7 :]  # as long as before, so the end fits
    tok = read_tok(moved)
    tokens, _ = file_tokens(tok, str(tiny_model), "cpu")
    whole, _ = file_tokens(read_tok(many), str(tiny_model), "cpu")
    changed = (tokens.codes != whole.codes).any(1)[0]
    assert tok.problems
    assert int(changed.sum()) <= 4  # one segment of 2 x 2 cells lost its last layer, everything else was found


def test_a_file_cannot_make_us_open_a_folder_or_a_hub(
    many: bytes, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)  # a folder "tiny" lies right here
    with pytest.raises(ModelError, match="tiny, which does not come with tokodec; give its folder with --model"):
        decode_file(io.BytesIO(many), device="cpu")
    assert decode_file(io.BytesIO(many), model="./tiny", device="cpu").problems == []
