"""The file format: exact bytes, inverse pairs, every limit, and what becomes of a file that is not quite right."""

import random
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tokodec.codec.container import chunks as container_chunks
from tokodec.codec.container.chunks import (
    ALPH,
    EXIF,
    FRAME,
    HEAD,
    ICCP,
    INDEX_ENTRY,
    INDX,
    LAYR,
    TEND,
    chunk_at,
    compress_metadata,
    decompress_metadata,
    pack_chunk,
    pack_layer_prefix,
    read_layer_prefix,
    scan,
)
from tokodec.codec.container.fields import (
    COMMON_FIELDS,
    MODALITY_FIELDS,
    SIGNATURE,
    ImageHeader,
    header_fields,
    read_header,
    write_header,
)
from tokodec.codec.container.read import TokFile, read_tok
from tokodec.codec.container.write import write_tok
from tokodec.codec.errors import ChunkError, HeaderError, LimitError, TokodecError, TruncatedError
from tokodec.codec.info import describe

START = len(SIGNATURE) + 1
HEADER = ImageHeader("tiny", "0123456789abcdef", "fedcba9876543210", 3, 20, 33, 16, 64, 3)
WIDE = replace(HEADER, height=24, width=1044)  # 2 x 66 cells: two segments


def layers_of(header: ImageHeader, seed: int = 0) -> list[list[bytes]]:
    rng = random.Random(seed)
    return [[rng.randbytes(4 * rng.randrange(1, 9)) for _ in range(header.n_segments)] for _ in range(header.layers)]


def chunks_of(data: bytes) -> list[tuple[int, bytes, bytes]]:
    """(offset, type, payload) of every chunk of an intact file, by an independent walk."""
    found, at = [], START
    while at < len(data):
        length = struct.unpack_from("<I", data, at + 4)[0]
        payload = data[at + 8 : at + 8 + length]
        assert struct.unpack_from("<I", data, at + 8 + length)[0] == zlib.crc32(data[at : at + 4] + payload)
        found.append((at, data[at : at + 4], payload))
        at += 12 + length
    assert at == len(data)
    return found


def joined(chunks: list[tuple[int, bytes, bytes]]) -> bytes:
    return SIGNATURE + b"\1" + b"".join(pack_chunk(kind, payload) for _, kind, payload in chunks)


def assert_holds(tok: TokFile, layers: list[list[bytes]]) -> None:
    for k, row in enumerate(layers):
        for s, payload in enumerate(row):
            assert tok.payload(LAYR, k, s) == payload


def random_header(rng: random.Random) -> ImageHeader:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    name = rng.choice(letters) + "".join(rng.choices(letters + "._/-", k=rng.randrange(64)))
    return ImageHeader(
        model=name,
        weights_hash=rng.randbytes(8).hex(),
        prior_hash=rng.randbytes(8).hex(),
        layers=rng.choice([1, 64, rng.randint(1, 64)]),
        height=rng.choice([1, 1 << 20, rng.randint(1, 1 << 20)]),
        width=rng.choice([1, 1 << 20, rng.randint(1, 1 << 20)]),
        stride=rng.randint(1, 64),
        segment=rng.randint(1, 128),
        channels=rng.choice([1, 3]),
        alpha=rng.randrange(2),
        bit_depth=rng.choice([8, 16]),
        quality=rng.choice([0, 1, 10_000, rng.randint(0, 10_000)]),
        prior=rng.randint(1, 3),
    )


# ------------------------------------------------------------------------------------------------------ exact bytes


def test_exact_cost() -> None:
    """What a file costs beside its payloads. A change of these numbers is a change of the format."""
    assert START == 9
    assert FRAME == 12
    assert len(pack_layer_prefix(0, 0)) == 2
    assert INDEX_ENTRY.size == 17
    assert len(write_header(HEADER)) == 37
    header = replace(HEADER, layers=1)
    assert len(write_tok(header, [[b""]])) == 9 + (12 + 37) + (12 + 2) + 12 == 84
    assert len(write_tok(HEADER, [[b""]] * 3)) == 112
    assert len(write_tok(replace(HEADER, quality=1), [[b""]] * 3)) == 114
    assert len(write_tok(WIDE, [[b"", b""]] * 3)) == 9 + 49 + 6 * 14 + (12 + 7 * 17) + (12 + 8) == 293
    assert len(write_tok(HEADER, [[b"12345678"]] * 3)) == 112 + 24


def test_header_is_the_sum_of_its_fields() -> None:
    sizes = {"u8": 1, "edge": 1, "u16": 2, "u32": 4, "hash": 8, "name": 1 + len("tiny")}
    assert len(write_header(replace(HEADER, quality=1))) == sum(sizes[f.kind] for f in header_fields(1))
    assert len(write_header(HEADER)) == sum(sizes[f.kind] for f in header_fields(1) if not f.optional)
    assert [f.name for f in header_fields(1)] == [f.name for f in COMMON_FIELDS + MODALITY_FIELDS[1]]
    assert {f.name for f in header_fields(1)} == set(vars(HEADER))


def test_smallest_file_to_the_byte() -> None:
    header = ImageHeader("m", "0123456789abcdef", "fedcba9876543210", 1, 2, 3, 16, 64, 1)
    expected = (
        b"\x89TOK\r\n\x1a\n" b"\x01"
        b"HEAD" b"\x22\0\0\0"
        b"\x01" b"\x01m" b"\x01\x23\x45\x67\x89\xab\xcd\xef" b"\x01" b"\xfe\xdc\xba\x98\x76\x54\x32\x10" b"\x01"
        b"\2\0\0\0" b"\3\0\0\0" b"\x10" b"\x40" b"\x01" b"\x00" b"\x08" b"\xaa\x5e\xa9\xc5"
        b"LAYR" b"\x06\0\0\0" b"\0" b"\0" b"abcd" b"\x62\x9a\x00\x9c"
        b"TEND" b"\0\0\0\0" b"\xc0\xef\x31\x0c"
    )  # fmt: skip
    assert write_tok(header, [[b"abcd"]]) == expected


LAYER_PREFIXES: list[tuple[int, int, bytes]] = [
    (0, 0, b"\0\0"),
    (3, 1, b"\3\1"),
    (63, 127, b"\x3f\x7f"),
    (0, 128, b"\0\x80\1"),
    (255, 300, b"\xff\xac\2"),
    (0, 16383, b"\0\xff\x7f"),
    (0, 16384, b"\0\x80\x80\1"),
    (0, (1 << 21) - 1, b"\0\xff\xff\x7f"),
    (0, 1 << 21, b"\0\x80\x80\x80\1"),
    (0, (1 << 28) - 1, b"\0\xff\xff\xff\x7f"),
    (0, 1 << 28, b"\0\x80\x80\x80\x80\1"),
    (7, (1 << 32) - 1, b"\7\xff\xff\xff\xff\x0f"),
]


@pytest.mark.parametrize(("layer", "segment", "prefix"), LAYER_PREFIXES)
def test_layer_prefix_to_the_byte(layer: int, segment: int, prefix: bytes) -> None:
    assert pack_layer_prefix(layer, segment) == prefix
    for rest in (b"", b"\0", b"\x80\xff", b"coded codes"):
        assert read_layer_prefix(prefix + rest) == (layer, segment, len(prefix))
    for n in range(len(prefix)):
        assert read_layer_prefix(prefix[:n]) is None


@pytest.mark.parametrize(
    "segment",
    [
        b"\x80\0",  # 0 in two bytes
        b"\xff\0",  # 127 in two
        b"\x80\x80\0",
        b"\xff\xff\xff\xff\0",  # 2^28 - 1 in five
        b"\x80\x80\x80\x80\x10",  # 2^32
        b"\xff\xff\xff\xff\x7f",  # 2^35 - 1
        b"\x80\x80\x80\x80\x80\1",  # 2^35, six bytes
        b"\x80\x80\x80\x80\x80\0",
        b"\xff" * 9,  # no end
        b"\x80",  # cut off
        b"",
    ],
)
def test_layer_prefix_that_is_not_canonical_is_refused(segment: bytes) -> None:
    """As damage of its chunk: told, and the chunk ignored, whether the index or a walk leads there."""
    rest = b"" if len(segment) < 2 else b"four"
    assert read_layer_prefix(b"\0" + segment + rest) is None
    tok = with_extra(pack_chunk(LAYR, b"\0" + segment + rest))
    assert tok.problems == [f"LAYR chunk at byte {START + FRAME + 37} does not tell its layer and segment"]
    assert_holds(tok, layers_of(HEADER))
    data = write_tok(WIDE, layers_of(WIDE))
    entries: list[tuple[bytes, int, int, int]] = [*INDEX_ENTRY.iter_unpack(chunks_of(data)[-2][2])]
    end = chunks_of(data)[-2][0]
    bad = pack_chunk(LAYR, b"\0" + segment + rest)
    entries[1] = (LAYR, 0, 0, end)
    index = pack_chunk(INDX, b"".join(INDEX_ENTRY.pack(*entry) for entry in entries))
    tok = read_tok(data[:end] + bad + index + pack_chunk(TEND, struct.pack("<Q", end + len(bad))))
    assert tok.indexed
    assert tok.payload(LAYR, 0, 0) is None
    assert tok.problems == [f"LAYR chunk at byte {end} is not layer 0 of segment 0"]


@pytest.mark.parametrize(("layer", "segment"), [(0, -1), (0, 1 << 32), (-1, 0), (256, 0)])
def test_layer_prefix_out_of_range_is_not_written(layer: int, segment: int) -> None:
    with pytest.raises(ValueError, match=r"segment|range\(0, 256\)"):
        pack_layer_prefix(layer, segment)


def test_files_of_many_segments() -> None:
    """Prefixes of two and of three bytes, with the index and without."""
    header = replace(HEADER, layers=1, height=16, width=16 * 130, segment=1)
    layers = [[bytes([s]) for s in range(130)]]
    data = write_tok(header, layers)
    assert len(data) == 9 + 49 + 128 * 15 + 2 * 16 + (12 + 131 * 17) + (12 + 8)
    assert_holds(read_tok(data), layers)
    assert_holds(read_tok(joined(chunks_of(data)[:-2])), layers)


def test_chunk_of_every_length() -> None:
    for n in (0, 1, 2, 255, 256, 70000):
        chunk = pack_chunk(b"abCD", bytes(n))
        assert len(chunk) == n + FRAME
        assert chunk_at(b"??" + chunk + b"?", 2) == (b"abCD", bytes(n))
        assert chunk_at(chunk, 1) is None
        assert chunk_at(chunk[:-1], 0) is None
    assert chunk_at(pack_chunk(b"a1CD", b""), 0) is None  # types are letters
    assert chunk_at(chunk, -1) is None
    assert chunk_at(b"before" + chunk, -len(chunk)) is None  # Python would count from the end
    assert chunk_at(chunk, 10**18) is None


def test_no_torch_is_needed() -> None:
    code = (
        "import sys, tokodec.codec.container, tokodec.codec.info;"
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ----------------------------------------------------------------------------------------------------------- header


def test_header_round_trip() -> None:
    rng = random.Random(0)
    for _ in range(500):
        header = random_header(rng)
        payload = write_header(header)
        assert read_header(payload) == header
        if header.quality:
            assert read_header(payload + rng.randbytes(rng.randrange(9))) == header  # how a header may grow


def test_header_cut_anywhere_is_refused() -> None:
    payload = write_header(HEADER)
    for n in range(len(payload)):
        with pytest.raises(HeaderError):
            read_header(payload[:n])


def test_optional_field() -> None:
    """Quality: left out if it is 0, 0 if it is missing, and never half there."""
    bare = write_header(HEADER)
    assert HEADER.quality == 0
    assert read_header(bare) == read_header(bare + b"\0\0") == read_header(bare + b"\0\0more") == HEADER
    for quality, raw in ((1, b"\1\0"), (255, b"\xff\0"), (256, b"\0\1"), (9050, b"\x5a\x23"), (10_000, b"\x10\x27")):
        header = replace(HEADER, quality=quality)
        assert write_header(header) == bare + raw
        assert read_header(bare + raw) == read_header(bare + raw + b"more") == header
        assert read_tok(write_tok(header, layers_of(header))).header == header
        with pytest.raises(HeaderError, match="ends inside field quality"):
            read_header(bare + raw[:1])
    for raw in (b"\x11\x27", b"\xff\xff"):
        with pytest.raises(HeaderError, match=r"quality: \d+ is not in 0\.\.10000"):
            read_header(bare + raw)


def test_only_the_last_fields_are_optional() -> None:
    assert not any(f.optional for f in COMMON_FIELDS)
    for fields in MODALITY_FIELDS.values():
        flags = [f.optional for f in fields]
        assert flags == sorted(flags)
        assert all(f.kind in ("u8", "u16", "u32") and f.low == 0 for f in fields if f.optional)  # 0 is a value of them


OUT_OF_RANGE: list[tuple[str, Any]] = [
    ("modality", 0), ("modality", 4), ("modality", 255),
    ("model", ""), ("model", "x" * 65), ("model", "a b"), ("model", "../x"), ("model", "caf\u00e9"), ("model", 3),
    ("model", "a\n"), ("weights_hash", ""), ("weights_hash", "0123456789ABCDEF"), ("weights_hash", "0" * 15),
    ("weights_hash", "0" * 17), ("weights_hash", "g" * 16), ("prior_hash", "0" * 14), ("prior_hash", None),
    ("prior", 0), ("prior", 7), ("layers", 0), ("layers", 65), ("layers", -1), ("layers", 1.0),
    ("height", 0), ("height", (1 << 20) + 1), ("width", 0), ("width", (1 << 20) + 1), ("stride", 0), ("stride", 257),
    ("segment", 0), ("segment", 129), ("channels", 0), ("channels", 2), ("channels", 4), ("alpha", 2), ("alpha", -1),
    ("bit_depth", 0), ("bit_depth", 10), ("bit_depth", "8"),
    ("quality", -1), ("quality", 10_001), ("quality", 50.0), ("quality", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_header_field_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(HeaderError, match=name):
        replace(HEADER, **{name: value})


def test_every_field_has_a_case_above() -> None:
    assert {name for name, _ in OUT_OF_RANGE} == {f.name for f in header_fields(1)}


def test_reader_checks_what_the_writer_checks() -> None:
    """Every byte of the header set to every value: a header that can be written, or HeaderError."""
    for payload in (write_header(HEADER), write_header(replace(HEADER, quality=7500))):
        refused = 0
        for at in range(len(payload)):
            for value in range(256):
                changed = payload[:at] + bytes([value]) + payload[at + 1 :]
                try:
                    header = read_header(changed)
                except HeaderError:
                    refused += 1
                else:
                    assert changed.startswith(write_header(header))
        assert refused > 1000


def test_grid_and_segments() -> None:
    assert HEADER.grid == (2, 3)
    assert HEADER.n_segments == 1
    assert HEADER.segment_box(0) == (0, 0, 2, 3)
    assert [WIDE.segment_box(s) for s in range(WIDE.n_segments)] == [(0, 0, 2, 64), (0, 64, 2, 66)]
    for size in (1, 15, 16, 17, 64 * 16, 64 * 16 + 1, 129 * 16):
        header = replace(HEADER, height=size, width=300, segment=7)
        cells: set[tuple[int, int]] = set()
        for s in range(header.n_segments):
            top, left, bottom, right = header.segment_box(s)
            box = {(y, x) for y in range(top, bottom) for x in range(left, right)}
            assert box
            assert not box & cells
            cells |= box
        assert len(cells) == header.grid[0] * header.grid[1]  # every cell once


# ------------------------------------------------------------------------------------------------------ whole files


def test_round_trip() -> None:
    for header, alpha, icc, exif in (
        (HEADER, None, None, None),
        (WIDE, None, b"profile" * 50, None),
        (replace(HEADER, alpha=1), b"png", b"profile", b"II*\0"),
        (replace(WIDE, alpha=1, segment=3), b"png", None, b"MM\0*"),
    ):
        layers = layers_of(header)
        tok = read_tok(write_tok(header, layers, alpha, icc=icc, exif=exif))
        assert tok.header == header
        assert tok.complete
        assert_holds(tok, layers)
        assert tok.payload(ALPH) == alpha
        assert tok.metadata(ICCP) == icc
        assert tok.metadata(EXIF) == exif
        assert tok.problems == []
        assert tok.indexed == (header.n_segments > 1)


def test_writer_refuses_what_does_not_fit_the_header() -> None:
    for layers in ([], [[b""]] * 2, [[b""]] * 4, [[b""], [b""], []], [[b"", b""]] * 3):
        with pytest.raises(ValueError, match="need 3 layers of 1 segments"):
            write_tok(HEADER, layers)
    with pytest.raises(ValueError, match="alpha"):
        write_tok(HEADER, layers_of(HEADER), b"alpha")
    with pytest.raises(ValueError, match="alpha"):
        write_tok(replace(HEADER, alpha=1), layers_of(HEADER))
    with pytest.raises(ValueError, match="there are no chunks exif2"):
        write_tok(HEADER, layers_of(HEADER), exif2=b"II*\0")


def test_layers_are_coarse_to_fine_over_all_segments() -> None:
    """So that a file that is cut off is coarser everywhere, instead of ending at some row."""
    header = replace(WIDE, alpha=1)
    data = write_tok(header, layers_of(header), b"alpha", icc=b"icc", exif=b"exif")
    order = [(kind, payload[0], payload[1]) if kind == LAYR else (kind,) for _, kind, payload in chunks_of(data)]
    assert order == [
        (HEAD,), (ICCP,), (EXIF,), (LAYR, 0, 0), (LAYR, 0, 1), (ALPH,), (LAYR, 1, 0), (LAYR, 1, 1), (LAYR, 2, 0),
        (LAYR, 2, 1), (INDX,), (TEND,),
    ]  # fmt: skip


def test_index_points_at_every_chunk() -> None:
    header = replace(WIDE, alpha=1)
    data = write_tok(header, layers_of(header), b"alpha", icc=b"icc", exif=b"exif")
    *chunks, index, end = chunks_of(data)
    assert struct.unpack("<Q", end[2]) == (index[0],)
    entries = list(INDEX_ENTRY.iter_unpack(index[2]))
    assert len(entries) == len(chunks)
    for (kind, layer, segment, offset), chunk in zip(entries, chunks, strict=True):
        assert (offset, kind) == chunk[:2]
        if kind == LAYR:
            assert chunk[2][:2] == bytes([layer, segment])
        else:
            assert layer == segment == 0


def places(tok: TokFile) -> dict[tuple[bytes, int, int], int]:
    """Where layers and metadata lie: a rebuilt index does not list the header, but the old index if it is intact."""
    return {key: offset for key, offset in tok.places.items() if key[0] not in (HEAD, INDX)}


def test_a_reader_needs_no_index() -> None:
    layers = layers_of(WIDE)
    data = write_tok(WIDE, layers, icc=b"icc")
    indexed = read_tok(data)
    *chunks, _, _ = chunks_of(data)
    bare = read_tok(joined([*chunks, (0, TEND, b"")]))
    assert indexed.indexed
    assert not bare.indexed
    assert bare.complete
    assert places(bare) == places(indexed)
    assert bare.problems == []


def test_a_damaged_index_is_rebuilt() -> None:
    """Any byte of index and end chunk changed: the same layers are found, and the damage is told or harmless."""
    layers = layers_of(WIDE)
    data = write_tok(WIDE, layers)
    expected = places(read_tok(data))
    index = chunks_of(data)[-2][0]
    for at in range(index, len(data)):
        tok = read_tok(data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :])
        assert places(tok) == expected
        assert not tok.indexed
        assert tok.problems
        assert_holds(tok, layers)


def index_with(entries: list[tuple[bytes, int, int, int]]) -> bytes:
    """The file of :data:`WIDE` with another index, its checksums right."""
    data = write_tok(WIDE, layers_of(WIDE))
    *chunks, index, _ = chunks_of(data)
    payload = b"".join(INDEX_ENTRY.pack(*entry) for entry in entries)
    return joined([*chunks, (0, INDX, payload), (0, TEND, struct.pack("<Q", index[0]))])


def test_an_index_that_lies_is_not_believed() -> None:
    data = write_tok(WIDE, layers_of(WIDE))
    entries: list[tuple[bytes, int, int, int]] = [*INDEX_ENTRY.iter_unpack(chunks_of(data)[-2][2])]
    assert read_tok(index_with(entries)).indexed
    for lie in (
        (LAYR, 3, 0, 100),  # a layer that the header does not have
        (LAYR, 0, 2, 100),  # a segment that the picture does not have
        (ICCP, 0, 0, 1 << 40),  # beyond the file
        (ICCP, 0, 0, len(data) - 30),  # behind the index
        entries[1],  # twice
        (ICCP, 0, 0, entries[1][3]),  # a chunk that is another one as well
        (ICCP, 0, 0, entries[1][3] + 2),  # or shares bytes with it: to check all of them would take very long
        (ICCP, 0, 1, 100),
        (ALPH, 0, 0, 100),  # the header says that there is none
    ):
        tok = read_tok(index_with([*entries, lie]))
        assert not tok.indexed
        assert_holds(tok, layers_of(WIDE))
        assert tok.problems == []


def test_an_index_that_points_elsewhere_costs_those_chunks_only() -> None:
    data = write_tok(WIDE, layers_of(WIDE))
    entries: list[tuple[bytes, int, int, int]] = [*INDEX_ENTRY.iter_unpack(chunks_of(data)[-2][2])]
    entries[1], entries[2] = (*entries[1][:3], entries[2][3]), (*entries[2][:3], entries[1][3])
    tok = read_tok(index_with(entries))
    assert tok.payload(LAYR, 0, 0) is None
    assert tok.payload(LAYR, 0, 1) is None
    assert tok.payload(LAYR, 1, 1) == layers_of(WIDE)[1][1]
    assert len(tok.problems) == 2


# ------------------------------------------------------------------------------------------- chunks out of the usual


def with_extra(chunk: bytes, header: ImageHeader = HEADER, after: bytes = HEAD) -> TokFile:
    """A file with ``chunk`` put behind the first chunk of type ``after``."""
    data = write_tok(header, layers_of(header))
    at = next(at + FRAME + len(payload) for at, kind, payload in chunks_of(data) if kind == after)
    return read_tok(data[:at] + chunk + data[at:])


def test_unknown_ancillary_chunk_is_skipped() -> None:
    for after in (HEAD, LAYR):
        tok = with_extra(pack_chunk(b"fuTR", b"anything"), after=after)
        assert tok.problems == []
        assert tok.complete
        assert_holds(tok, layers_of(HEADER))


def test_unknown_critical_chunk_is_refused() -> None:
    with pytest.raises(ChunkError, match="WXYZ"):
        with_extra(pack_chunk(b"WXYZ", b""))
    data = write_tok(WIDE, layers_of(WIDE))
    entries: list[tuple[bytes, int, int, int]] = [*INDEX_ENTRY.iter_unpack(chunks_of(data)[-2][2])]
    with pytest.raises(ChunkError, match="WXYZ"):
        read_tok(index_with([*entries, (b"WXYZ", 0, 0, 100)]))
    assert read_tok(index_with([*entries, (b"wXYZ", 0, 0, 100)])).indexed


@pytest.mark.parametrize(
    "chunk",
    [
        pack_chunk(LAYR, pack_layer_prefix(3, 0) + b"four"),  # the header has layers 0 to 2
        pack_chunk(LAYR, pack_layer_prefix(0, 1) + b"four"),  # there is one segment
        pack_chunk(LAYR, b"\0"),  # too short for its prefix
        pack_chunk(LAYR, b"\0\x80\0four"),  # segment 0, but not in the shortest form
        pack_chunk(HEAD, write_header(HEADER)),
        pack_chunk(ALPH, b"alpha"),  # the header says there is none
    ],
)
def test_misplaced_chunk_is_told_and_ignored(chunk: bytes) -> None:
    tok = with_extra(chunk)
    assert len(tok.problems) == 1
    assert f"at byte {START + FRAME + len(write_header(HEADER))} " in tok.problems[0]
    assert_holds(tok, layers_of(HEADER))


def test_of_two_equal_chunks_the_first_counts() -> None:
    tok = with_extra(pack_chunk(LAYR, pack_layer_prefix(0, 0) + b"other"))
    assert tok.payload(LAYR, 0, 0) == b"other"
    assert len(tok.problems) == 1
    assert "does not belong there" in tok.problems[0]


def test_bytes_after_the_end_are_told() -> None:
    for header in (HEADER, WIDE):
        tok = read_tok(write_tok(header, layers_of(header)) + b"trailing")
        assert tok.problems == ["8 bytes follow the end of the file"]
        assert_holds(tok, layers_of(header))


def test_index_and_scan_agree_on_files_cut_before_their_end() -> None:
    data = write_tok(WIDE, layers_of(WIDE))
    tok = read_tok(data[: chunks_of(data)[-2][0]])
    assert not tok.complete
    assert "cut off" in tok.problems[0]
    assert_holds(tok, layers_of(WIDE))


def test_scan_finds_what_lies_behind_a_damaged_length() -> None:
    """Also many of them in a row, each of which claims to be as long as it can."""
    header = replace(HEADER, height=16 * 40, width=16, segment=1, layers=1)
    layers = layers_of(header)
    data = bytearray(write_tok(header, layers))
    chunks = chunks_of(bytes(data))
    for at, _, _ in chunks[5:35]:
        data[at + 4 : at + 8] = b"\xff\xff\xff\x7f"
    cut = bytes(data[: chunks[-2][0]])  # no index
    tok = read_tok(cut)
    lost = {segment for _, _, segment in set(places(read_tok(write_tok(header, layers)))) - set(places(tok))}
    assert lost == set(range(4, 34))
    assert any(problem.startswith("bytes ") for problem in tok.problems)


def test_scan_does_bounded_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is all chunk types with lengths that reach its end asks for quadratic work, and does not get it."""
    n = 40_000
    parts = [LAYR + struct.pack("<I", max(0, 8 * (n - i) - 12)) for i in range(n)]
    data = b"".join(parts)
    calls = 0
    original = zlib.crc32

    def counting(payload: bytes, value: int = 0) -> int:
        nonlocal calls
        calls += len(payload)
        return original(payload, value)

    monkeypatch.setattr(zlib, "crc32", counting)
    assert [kind for _, kind, _ in scan(data, 0)] == [None]
    assert calls <= 8 * len(data)


# ------------------------------------------------------------------------------------------------- limits, metadata


def test_limits() -> None:
    data = write_tok(HEADER, layers_of(HEADER))
    read_tok(data, max_pixels=20 * 33)
    with pytest.raises(LimitError, match="33 x 20"):
        read_tok(data, max_pixels=20 * 33 - 1)


def test_too_little_left() -> None:
    header = replace(HEADER, height=16, width=16 * 16, segment=1, layers=1)
    data = write_tok(header, layers_of(header))
    chunks = chunks_of(data)[:-2]
    assert read_tok(joined(chunks[:3])).problems  # 2 of 16 are 1 in 8
    with pytest.raises(TruncatedError, match="1 of 16 segments"):
        read_tok(joined(chunks[:2]))


def test_metadata() -> None:
    for block in (b"", b"x", random.Random(0).randbytes(5000), bytes(100_000)):
        assert decompress_metadata(compress_metadata(block)) == block
    for bad in (b"", b"no zlib", compress_metadata(b"whole")[:-1], b"\0" * 20):
        with pytest.raises(ChunkError):
            decompress_metadata(bad)


def test_metadata_bomb_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokodec.codec.container.chunks.MAX_METADATA", 1 << 20)
    assert len(decompress_metadata(zlib.compress(bytes(1 << 20)))) == 1 << 20
    with pytest.raises(ChunkError, match="larger"):
        decompress_metadata(zlib.compress(bytes((1 << 20) + 1)))
    tok = with_extra(pack_chunk(ICCP, zlib.compress(bytes(64 << 20))))
    assert tok.metadata(ICCP) is None
    assert len(tok.problems) == 1


def test_damaged_metadata_costs_the_metadata_only() -> None:
    tok = with_extra(pack_chunk(EXIF, b"no zlib stream"))
    assert tok.metadata(EXIF) is None
    assert tok.metadata(ICCP) is None  # there is none: no problem
    assert len(tok.problems) == 1
    assert_holds(tok, layers_of(HEADER))


def test_the_limit_of_metadata_holds_for_the_writer() -> None:
    """What is written can be read: a larger block is refused, not written in vain."""
    block = bytes(container_chunks.MAX_METADATA + 1)
    with pytest.raises(TokodecError, match="16 MiB"):
        write_tok(HEADER, layers_of(HEADER), icc=block)


# ------------------------------------------------------------------------------------------------------------- info


def test_describe(golden: Path) -> None:
    data = (golden / "segments.tok").read_bytes()
    found = describe(data, "x.tok")
    header = read_tok(data).header
    assert list(found)[:2] == ["file", "version"]
    assert found["modality"] == "image"
    assert found["channels"] == "rgb"
    assert (found["height"], found["width"], found["segments"]) == (24, 1044, 2)
    assert found["bytes"] == len(data)
    assert found["bpp"] == pytest.approx(8 * len(data) / (24 * 1044), abs=1e-6)
    assert found["overhead_bytes"] == 293
    assert sum(found["layer_bytes"]) + 293 == len(data)
    assert {f.name for f in header_fields(header.modality)} - {"quality"} < set(found)
    assert found["complete"] is True
    assert found["problems"] == []


def test_describe_shows_the_quality_if_there_is_one() -> None:
    assert "quality" not in describe(write_tok(HEADER, layers_of(HEADER)), "x.tok")
    for quality, shown in ((1, 0.01), (7550, 75.5), (10_000, 100)):
        header = replace(HEADER, quality=quality)
        found = describe(write_tok(header, layers_of(header)), "x.tok")
        assert found["quality"] == shown
        assert list(found).index("quality") == list(found).index("bit_depth") + 1


def test_describe_counts_every_byte_once(golden: Path) -> None:
    data = (golden / "extras.tok").read_bytes()
    found = describe(data, "x.tok")
    extras = found["icc_bytes"] + found["exif_bytes"] + found["alpha_bytes"]
    assert min(found["icc_bytes"], found["exif_bytes"], found["alpha_bytes"]) > 0
    assert found["overhead_bytes"] + sum(found["layer_bytes"]) + extras == len(data)
    plain, packet = write_tok(HEADER, layers_of(HEADER)), b"<x:xmpmeta/>"
    told = describe(write_tok(HEADER, layers_of(HEADER), xmp=packet), "x.tok")
    assert told["xmp_bytes"] == len(compress_metadata(packet))
    assert told["overhead_bytes"] == describe(plain, "x.tok")["overhead_bytes"] + FRAME


def test_describe_tells_damage_and_names_the_file(golden: Path) -> None:
    data = (golden / "segments.tok").read_bytes()
    assert describe(data[:-40], "x.tok")["complete"] is False
    assert describe(data[:-40], "x.tok")["problems"]
    with pytest.raises(TokodecError, match=r"^x\.tok: "):
        describe(b"what", "x.tok")
