"""A chunk that only its row knows is written, read, told, and refused where it does not belong."""

from __future__ import annotations

import pytest

from tokodec.codec.container.chunks import NOTE, pack_chunk, pack_segment
from tokodec.codec.container.fields import ImageHeader
from tokodec.codec.container.read import read_tok
from tokodec.codec.container.write import write_tok
from tokodec.codec.info import describe

HEADER = ImageHeader(
    model="m", weights_hash="00" * 8, prior=1, prior_hash="00" * 8, layers=1, height=32, width=64, stride=16,
    segment=2, channels=3,
)  # fmt: skip


def test_notes_of_segments_come_back() -> None:
    data = write_tok(HEADER, [[b"abcd", b"efgh"]], note={1: b"a tree", 0: b"a house"})
    tok = read_tok(data)
    assert [tok.payload(NOTE, 0, segment) for segment in (0, 1)] == [b"a house", b"a tree"]
    assert tok.problems == []
    told = describe(data, "x.tok")
    assert told["note_bytes"] == len(b"a housea tree")
    assert len(data) == told["overhead_bytes"] + told["note_bytes"] + sum(told["layer_bytes"])


def test_a_note_of_a_segment_that_is_not_there_is_damage() -> None:
    one = ImageHeader(**{**vars(HEADER), "width": 32})
    data = write_tok(one, [[b"abcd"]])
    tok = read_tok(data[:-12] + pack_chunk(NOTE, pack_segment(1) + b"?") + data[-12:])
    assert tok.payload(NOTE, 0, 1) is None
    assert any("nOTE chunk" in problem and "does not belong there" in problem for problem in tok.problems)


def test_a_chunk_without_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="there are no chunks notes"):
        write_tok(HEADER, [[b"", b""]], notes={0: b"?"})
