"""Standard streams, pipes, devices and signals, as a shell gives them to the process."""

import io
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tokodec.codec.cli import run
from tokodec.codec.corpus.token_files import load_tokens
from tokodec.codec.corpus.webdataset import read_webdataset
from tokodec.codec.errors import LimitError, SignatureError
from tokodec.codec.tokens import tokenize_file

pytestmark = pytest.mark.skipif(os.name != "posix", reason="shells and signals of POSIX")
CODEC = f"{shlex.quote(sys.executable)} -c 'from tokodec.codec.cli import main; main()'"


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash; CODEC stands for the command line, and a failure anywhere in a pipe counts."""
    line = "set -o pipefail; " + command.replace("CODEC", CODEC)
    return subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, timeout=120)


@pytest.fixture
def tok(golden: Path) -> str:
    return shlex.quote(str(golden / "pixel.tok"))


def decode(golden: Path) -> str:
    return f"CODEC decode --device cpu --model {shlex.quote(str(golden / 'tiny'))}"


def assert_one_line(done: subprocess.CompletedProcess[bytes], code: int, words: bytes) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.count(b"\n") == 1, done.stderr
    assert words in done.stderr


def test_a_reader_that_has_seen_enough_is_no_fault(golden: Path, tmp_path: Path, tok: str) -> None:
    many = " ".join([tok] * 300)
    done = shell(f"CODEC info --json {many} | head -c 10", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b'{"file": "'[:10], b"")
    done = shell(f"{decode(golden)} --quiet {tok} -o - | head -c 0", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only: there is no such device")
def test_full_outputs_are_one_line(golden: Path, tmp_path: Path, tok: str) -> None:
    done = shell(f"CODEC info {tok} > /dev/full", tmp_path)
    assert_one_line(done, 2, b"codec: cannot write standard output: no space left on device")
    done = shell(f"{decode(golden)} --quiet {tok} -o - > /dev/full", tmp_path)
    assert_one_line(done, 2, b"codec: cannot write standard output: no space left on device")
    done = shell(f"{decode(golden)} --quiet {tok} -o /dev/full --format png", tmp_path)
    assert_one_line(done, 2, b"codec: cannot write /dev/full: no space left on device")
    assert list(tmp_path.iterdir()) == []


def test_closed_streams(golden: Path, tmp_path: Path, tok: str) -> None:
    """They are refused by name, and files that are opened do not take their places."""
    done = shell("CODEC info - <&-", tmp_path)
    assert_one_line(done, 2, b"codec: cannot read standard input: it is closed")
    done = shell(f"CODEC info {tok} >&-", tmp_path)
    assert_one_line(done, 2, b"codec: cannot write standard output: it is closed")
    done = shell(f"CODEC info {tok} nowhere.tok 2>&-", tmp_path)
    assert (done.returncode, done.stderr) == (2, b"")
    assert b"nowhere" not in done.stdout  # messages never go there
    assert done.stdout.startswith(b"file")
    done = shell(f"{decode(golden)} {tok} -o a.png <&- >&- 2>&-", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_pipes_by_name(golden: Path, tmp_path: Path, tok: str) -> None:
    done = shell(f"{decode(golden)} --quiet <(cat {tok}) -o a.png", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    done = shell(f"{decode(golden)} --quiet {tok} -o /dev/stdout --format png | cat > b.png", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    done = shell("CODEC info /dev/zero", tmp_path)
    assert_one_line(done, 2, b"not a .tok file")


def test_pipes_are_tokenized_and_streams_without_end_refused(golden: Path, tmp_path: Path, tok: str) -> None:
    code = """
import subprocess, sys
from tokodec.codec.cli import run
model, tok, png = sys.argv[1:]
for command, source in (("tokenize", tok), ("tokenize", png), ("encode", png)):
    with subprocess.Popen(["cat", source], stdout=subprocess.PIPE) as cat:
        out = f"{command}-{source[-3:]}." + ("npz" if command == "tokenize" else "tok")
        assert run([command, f"/dev/fd/{cat.stdout.fileno()}", "-o", out, "-m", model, "--quiet"]) == 0
sys.stdin = open("/dev/zero")
for command, source in (("tokenize", "/dev/zero"), ("encode", "-"), ("detokenize", "/dev/zero")):
    assert run([command, source, "-o", "none.npz" if command == "tokenize" else "none.tok", "-m", model]) == 2
"""
    shell(f"{decode(golden)} --quiet {tok} -o a.png", tmp_path)
    python = [sys.executable, "-c", code, str(golden / "tiny"), str(golden / "pixel.tok"), "a.png"]
    done = subprocess.run(python, cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line.split(b" ", 2)[2] for line in done.stderr.splitlines()] == [
        b"is not a picture in a known format (PNG, JPEG, WebP, AVIF, HEIC, TIFF, BMP, GIF, PPM)",
        b"input is not a picture in a known format (PNG, JPEG, WebP, AVIF, HEIC, TIFF, BMP, GIF, PPM)",
        b"is not a file of tokens: it begins otherwise",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.png", "encode-png.tok", "tokenize-png.npz", "tokenize-tok.npz",
    ]  # fmt: skip


class Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False


@pytest.mark.parametrize("format", ["npz", "safetensors"])
def test_tokens_go_through_standard_streams(
    format: str, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def through(data: bytes, *words: object, model: str = "tiny") -> bytes:
        out = Pipe()
        with monkeypatch.context() as patch:
            for name, pipe in (("stdin", Pipe(data)), ("stdout", out)):
                patch.setattr(sys, name, SimpleNamespace(buffer=pipe))
            assert run([*map(str, words), "-m", str(golden / model), "--quiet"]) == 0
        return out.getvalue()

    tok, held = golden / "pixel.tok", tmp_path / f"a.{format}"
    data = tok.read_bytes()
    tokens = through(data, "tokenize", "-", "--format", format)
    assert through(b"", "tokenize", tok, "-o", held) == b""
    for made in (held.read_bytes(), through(b"", "tokenize", tok, "--format", format, "-o", "-")):
        assert torch.equal(load_tokens(io.BytesIO(made)).codes, load_tokens(io.BytesIO(tokens)).codes)
    assert through(tokens, "detokenize", "-", "--format", "tok") == data
    png = through(tokens, "detokenize", "-")
    assert png == through(data, "decode", "-") == through(b"", "detokenize", held, "-o", "-")
    assert load_tokens(io.BytesIO(through(png, "tokenize", "-", "--format", format))).spec.size == (1, 1)
    through(data, "tokenize", "-", "-o", tmp_path / "b.tar")
    assert [name for name, _ in read_webdataset(tmp_path / "b.tar")] == ["stdin"]
    sound = through((golden / "sound" / "mono.tok").read_bytes(), "tokenize", "-", "--format", format, model="sound")
    assert through(sound, "detokenize", "-", model="sound")[:4] == b"RIFF"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Pipe(b"no tokens")))
    assert run(["detokenize", "-", "-o", str(tmp_path / "c.png")]) == 2
    assert capsys.readouterr().err == "codec: standard input is not a file of tokens: it begins otherwise\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [held.name, "b.tar"]


def test_tokenize_reads_no_more_than_it_may(golden: Path, tmp_path: Path) -> None:
    tokens, none = tmp_path / "a.npz", tmp_path / "none.tok"
    tokenize_file(golden / "gray.tok", tokens, model=str(golden / "tiny"), device="cpu")
    height, width = tokenize_file(tokens, max_pixels=10**6).tokens.spec.size
    assert tokenize_file(tokens, max_pixels=height * width).tokens.spec.size == (height, width)
    with pytest.raises(LimitError, match=f"{height * width} pixels are over the limit of {height * width - 1}"):
        tokenize_file(tokens, max_pixels=height * width - 1)
    with none.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(SignatureError, match=r"none\.tok: not a \.tok file"):
        tokenize_file(none)


WAITS = """
import sys, time
from pathlib import Path
from tokodec.codec.files import atomic_output
from tokodec.codec.terminal import run_process

def run(arguments):
    with atomic_output(Path("a.tok"), force=False) as file:
        file.write(b"half")
        file.flush()
        print("ready", flush=True)
        time.sleep(60)

sys.exit(run_process(run, []))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_leave_nothing_behind(name: str, tmp_path: Path) -> None:
    number = getattr(signal, name)
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # the tests themselves may run under nohup
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (128 + number, b"", f"codec: stopped by {name}\n".encode())
    assert list(tmp_path.iterdir()) == []


def test_nohup_is_respected(tmp_path: Path) -> None:
    process = subprocess.Popen(
        ["bash", "-c", f"trap '' HUP; exec {shlex.quote(sys.executable)} -c {shlex.quote(WAITS)}"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
