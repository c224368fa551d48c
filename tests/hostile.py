"""What the tests of hostile and damaged files share: mutations with a fixed seed, and the memory that a call takes."""

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokodec.codec.errors import TokodecError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
NESTED = "[" * 100_000 + "]" * 100_000  # deeper than Python's parser goes
OTHERS: tuple[Any, ...] = (0, -1, 1, 2**31, 2**63, 10**30, 1e300, float("nan"), True, None)
OTHERS += ("", "x", [], {}, [0], [[1]], {"a": 1})


def high_water() -> int:
    """The most bytes that this process held at once since :func:`peak_memory` began."""
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    assert found
    return int(found[1]) << 10


def peak_memory(work: Callable[..., object], *arguments: object) -> int:
    """Bytes that ``work`` held at most, beyond what was held before it began."""
    CLEAR.write_text("5")
    before = high_water()
    work(*arguments)
    return high_water() - before


def attempt(work: Callable[..., Any], *arguments: object) -> tuple[Any, str]:
    """What ``work`` gives and "", or None and the line that refuses it. Anything but a named error passes through."""
    try:
        return work(*arguments), ""
    except TokodecError as error:
        text = str(error)
        assert text, "an error says nothing"
        assert "\n" not in text
        return None, text


def refused(work: Callable[..., Any], *arguments: object) -> str:
    """The line in which ``work`` is refused, "" if it is not."""
    return attempt(work, *arguments)[1]


def refused_within(work: Callable[..., Any], *arguments: object) -> tuple[str, int]:
    """The line in which ``work`` is refused, and the bytes that it held at most."""
    told: list[str] = []

    def run() -> None:
        told.append(refused(work, *arguments))

    held = peak_memory(run)
    return told[0], held


def mutations(data: bytes, n: int, seed: int) -> Iterator[bytes]:
    """Damaged copies of a file: bits, bytes, cuts, insertions and parts that are zeros."""
    dice = random.Random(seed)
    for i in range(n):
        out = bytearray(data)
        for _ in range(dice.choice((1, 1, 2, 4, 16))):
            at = dice.randrange(len(out))
            match (i + dice.randrange(2)) % 6:
                case 0:
                    out[at] ^= 1 << dice.randrange(8)
                case 1:
                    out[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
                case 2:
                    del out[at : at + dice.randrange(1, 9)]
                case 3:
                    out[at:at] = dice.randbytes(dice.randrange(1, 9))
                case 4:
                    out[at : at + 8] = dice.choice((b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f"))
                case _:
                    del out[max(1, at) :]
            if not out:
                out = bytearray(b"\0")
        yield bytes(out)


def json_mutations(text: str, n: int, seed: int) -> Iterator[str]:
    """JSON texts in which one value is another one, or gone, or nested very deeply."""
    dice = random.Random(seed)
    for _ in range(n):
        value = json.loads(text)
        places = list(_places(value))
        holder, key = dice.choice(places)
        if dice.randrange(6) == 0:
            del holder[key]
        else:
            holder[key] = dice.choice(OTHERS)
        yield json.dumps(value)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])
