"""FORMAT.md says what the code does: its header table, constants and hex dump are compared with the container."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest

from tokodec.codec import errors
from tokodec.codec.container import chunks
from tokodec.codec.container import fields as container_fields
from tokodec.codec.registry import OTHERS

ROOT = Path(__file__).resolve().parent.parent
FORMAT = ROOT / "FORMAT.md"
SMALLEST = ROOT / "tests" / "golden" / "pixel.tok"


def allowed(f: container_fields.Field) -> str:
    """The range column of a field."""
    if f.names is not None:
        return ", ".join(f"{value} {name}" for value, name in f.names.items())
    return "" if f.kind in ("name", "hash") else f"{f.low}..{f.high}" + ", optional" * f.optional


def test_priors_of_others_are_as_it_says() -> None:
    text = FORMAT.read_text(encoding="utf-8")
    assert f"\nPriors {OTHERS[0]} to {OTHERS[-1]} belong to packages that are not ours" in text
    (field,) = (f for f in container_fields.COMMON_FIELDS if f.name == "prior")
    for known in (1, 2, 3, 4, 5, 6):
        field.check(known)
    for unknown in (0, 7, OTHERS[0] - 1, OTHERS[0], OTHERS[-1]):
        with pytest.raises(errors.HeaderError, match=f"header field prior: {unknown} is not one of 1, 2, 3, 4, 5, 6"):
            field.check(unknown)


def annotate(data: bytes) -> list[str]:
    """A commented hex dump: a line for the signature, the version, each header field and each part of a chunk."""
    lines = []
    at = 0

    def line(n: int, text: str) -> bytes:
        nonlocal at
        raw = data[at : at + n]
        lines.append(f"{at:04x}  {raw.hex(' '):<24}  {text}")
        at += n
        return raw

    line(8, "signature")
    line(1, f"version {data[8]}")
    while at < len(data):
        kind = line(4, f"chunk {data[at : at + 4].decode()}")
        (length,) = struct.unpack("<I", data[at : at + 4])
        line(4, f"  {length} bytes of payload")
        end = at + length
        if kind == chunks.HEAD:
            header = container_fields.read_header(data[at:end])
            for f in container_fields.header_fields(header.modality):
                if f.optional and at == end:
                    break
                value = getattr(header, f.name)
                sizes = {"u8": 1, "edge": 1, "u16": 2, "u32": 4, "hash": 8}
                size = 1 + len(value) if f.kind == "name" else sizes[f.kind]
                line(size, f"  {f.name} {value}")
        elif kind == chunks.LAYR:
            prefix = chunks.read_layer_prefix(data[at:end])
            assert prefix is not None
            layer, segment, size = prefix
            line(1, f"  layer {layer}")
            line(size - 1, f"  segment {segment}")
            line(end - at, "  coded codes: one 32-bit word")
        line(4, "  CRC-32 of type and payload")
    return lines


def test_the_header_table_is_the_code() -> None:
    rows = re.findall(r"^\| (\w+) \| (u8|edge|u16|u32|hash|name) \| (.*?) ?\| (.+?) \|$", FORMAT.read_text(), re.M)
    fields = [*container_fields.COMMON_FIELDS, *(f for own in container_fields.MODALITY_FIELDS.values() for f in own)]
    assert rows == [(f.name, f.kind, allowed(f), f.meaning) for f in fields]


def test_the_hex_dump_is_the_smallest_golden_file() -> None:
    dump = "```\n" + "\n".join(annotate(SMALLEST.read_bytes())) + "\n```"
    text = FORMAT.read_text()
    block = re.search(r"(?s)(## Example\n.*?)(```.*?```|HEXDUMP)", text)
    assert block is not None
    if os.environ.get("GENERATE_EXPECTED"):
        FORMAT.write_text(text.replace(block[2], dump))
        return
    assert block[2] == dump


def test_constants_chunk_types_and_errors_are_named() -> None:
    text = FORMAT.read_text()
    assert container_fields.SIGNATURE.hex(" ").upper() in text
    assert f"Version {container_fields.VERSION}." in text
    for kind in chunks.CHUNKS:
        assert f"| `{kind.decode()}` |" in text
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.FormatError) and value is not errors.FormatError:
            assert f"| `{name}` |" in text


def test_every_must_names_a_test_that_exists() -> None:
    text = FORMAT.read_text()
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", text)
    assert named
    for file, function in named:
        source = (ROOT / "tests" / file).read_text()
        assert not function or f"def {function}(" in source
    for paragraph in text.split("\n\n"):
        rules = paragraph.count("MUST") - paragraph.count("MUST, MAY") - paragraph.count("Each MUST")
        if rules > 0 and "RFC 2119" not in paragraph:
            assert "test_" in paragraph, f"no test named beside: {paragraph[:80]}"
