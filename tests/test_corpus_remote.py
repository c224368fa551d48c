"""Corpora by URL: a service that fails now and then gives what the local disk does, byte for byte."""

from __future__ import annotations

import functools
import http.server
import itertools
import json
import logging
import os
import socket
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from tokodec.codec import cli
from tokodec.codec.corpus import places, remote, run
from tokodec.codec.corpus.manifest import Corpus, verify
from tokodec.codec.corpus.places import place_of
from tokodec.codec.corpus.run import tokenize_corpus
from tokodec.codec.datasets import ShardSampler, TokenDataset
from tokodec.codec.errors import MediaError, UsageError
from tokodec.codec.models import load_model
from tokodec.codec.options import CORPUS_FORMATS, CorpusOptions, TokenizeOptions
from tokodec.tests.test_corpus_shards import made, write_pictures

fsspec = pytest.importorskip("fsspec")
FAULTS = (500, 503, None)  # answers; None: the connection is cut


class Faulty:
    """A WSGI application of which one request in twenty fails before it is looked at."""

    def __init__(self, app: Any) -> None:
        self.app, self.requests, self.faults = app, itertools.count(1), 0
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            fault = next(self.requests) % 20 == 0
            status = FAULTS[self.faults % len(FAULTS)]
            self.faults += fault
        if not fault:
            answer: Iterable[bytes] = self.app(environ, start_response)
            return answer
        if status is None:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        start_response(f"{status or 500} Fault", [("Content-Length", "0"), ("Connection", "close")])
        return [b""]


@pytest.fixture(scope="module")
def service() -> Iterator[Faulty]:
    """An S3 server on this machine with a bucket, which fails. Packages that try again themselves do so once."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        names = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**names, "AWS_MAX_ATTEMPTS": "1"}.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        fsspec.filesystem("s3").mkdir("bucket")
        faulty = server._server.app = Faulty(server._server.app)
        yield faulty
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in a folder, a tar of some, and a list of all."""
    folder = tmp_path_factory.mktemp("media")
    paths = sorted(write_pictures(folder / "pictures", 40).rglob("*.png"))
    with tarfile.open(folder / "some.tar", "w") as tar:
        for path in paths[:12]:
            tar.add(path, f"train/{path.name}")
    names = [path.relative_to(folder).as_posix() for path in paths]
    (folder / "list.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / "urls.txt").write_text("".join(f"s3://bucket/{name}\n" for name in names))
    return folder


def contents(folder: str | Path) -> dict[str, Any]:
    """All shards of a corpus, with rows but for times, sources and devices."""
    place = place_of(folder)
    found: dict[str, Any] = {}
    for name in place.names("part-"):
        with place.open(name) as file:
            found[name] = file.read()
        if name.endswith(".jsonl"):
            rows = map(json.loads, found[name].splitlines())
            found[name] = [(row["key"], row["sha256"], row["codes"]) for row in rows]
    return found


@pytest.fixture(scope="module")
def uploaded(service: Faulty, media: Path) -> str:
    for path in media.rglob("*"):
        if path.is_file():
            target = f"bucket/{path.relative_to(media).as_posix()}"
            remote.retried(functools.partial(fsspec.filesystem("s3").put_file, str(path), target))
    return "s3://bucket"


@pytest.mark.parametrize("format", CORPUS_FORMATS)
def test_a_service_that_fails_gives_the_same_bytes(
    format: str, service: Faulty, uploaded: str, media: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """As source and as target; one request in twenty fails."""
    out, options = f"s3://bucket/{format}", CorpusOptions(format=format, shard_size="9", workers=format == "tok")
    tokenize = TokenizeOptions(model=str(tiny_model), device="cpu")
    before = service.faults
    sources = [f"{uploaded}/list.txt", f"{uploaded}/some.tar"]
    done = tokenize_corpus(sources, out, options, tokenize)
    assert (done.written, done.failed, done.finished) == (52, 0, True)
    assert service.faults > before + 3
    tokenize_corpus([str(media / "list.txt"), str(media / "some.tar")], tmp_path, options, tokenize)
    assert contents(out) == contents(tmp_path)
    assert list(verify(out, sources, str(tiny_model))) == []


def test_shards_are_the_same_files(
    service: Faulty, uploaded: str, media: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Of a tar, whose keys are the same in both places; a run that broke off goes on."""
    made(media / "some.tar", tmp_path, tiny_model, shard_size="5")
    url, after = "s3://bucket/again", run._next
    with pytest.MonkeyPatch.context() as patch:
        seen = itertools.count()

        def broken(*args: Any) -> Any:
            if next(seen) == 7:
                raise MediaError("cannot write: gone")
            return after(*args)

        patch.setattr(run, "_next", broken)
        with pytest.raises(MediaError, match="gone"):
            made(f"{uploaded}/some.tar", url, tiny_model, shard_size="5")  # type: ignore[arg-type]
    assert place_of(url).names("part-") == ["part-0000-0000.jsonl", "part-0000-0000.tar"]
    with pytest.raises(UsageError, match="--resume"):
        made(f"{uploaded}/some.tar", url, tiny_model, shard_size="5")  # type: ignore[arg-type]
    done = made(f"{uploaded}/some.tar", url, tiny_model, shard_size="5", resume=True)  # type: ignore[arg-type]
    assert (done.written, done.finished) == (12, True)
    assert contents(url) == contents(tmp_path)


def test_training_reads_shards_of_a_service(
    service: Faulty, uploaded: str, media: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in two workers, which share what was fetched; no more shards than allowed lie on the local disk."""
    made(f"{uploaded}/pictures", "s3://bucket/set", tiny_model, shard_size="5")  # type: ignore[arg-type]
    monkeypatch.setattr(places, "MOST_KEPT", 3)
    dataset = TokenDataset("s3://bucket/set", str(tiny_model), device="cpu")
    files = TokenDataset(media / "pictures", str(tiny_model), device="cpu")
    for workers in (0, 2):
        loader = DataLoader(dataset, batch_size=None, num_workers=workers)
        assert all(torch.equal(codes, files[i]) for i, codes in enumerate(loader))
    assert len(list(ShardSampler(dataset, rank=0, world=2))) == 20
    kept = dataset.corpora[0].place._kept  # type: ignore[attr-defined]
    assert len(list(kept.glob("part-*"))) == 3
    del dataset, loader
    assert not kept.exists()


def test_commands_take_urls(uploaded: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in range(2):
        arguments = ["tokenize", f"{uploaded}/urls.txt", "-o", f"s3://bucket/rank{rank}", "-m", str(tiny_model)]
        options = ["--format", "tok", "--rank", str(rank), "--world", "2", "--workers", "0", "--device", "cpu"]
        assert cli.run([*arguments, *options]) == 0
    assert cli.run(["corpus", "merge", "s3://bucket/rank0", "s3://bucket/rank1"]) == 0
    assert place_of("s3://bucket/rank1").names("part-") == []
    capsys.readouterr()
    assert cli.run(["corpus", "show", "s3://bucket/rank0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["failed"], found["finished"]) == (40, 0, True)
    assert cli.run(["corpus", "verify", "s3://bucket/rank0", f"{uploaded}/urls.txt", "-m", str(tiny_model)]) == 0
    assert cli.run(["corpus", "show", "s3://bucket/nothing"]) == 2
    assert "s3://bucket/nothing/_manifest.json: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_other_file_systems(scheme: str, media: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Files are written beside and renamed; what a killed process left is removed."""
    url = f"{scheme}://{tmp_path}/out"
    beside = f".tokodec-{'0' * 16}-part-0000-0000.tar.tmp"
    place = place_of(url)
    place.make()
    with place.outputs([beside]) as (file,):
        file.write(b"half of it")
    os.utime(tmp_path / "out" / beside, (0, 0)) if scheme == "file" else None
    assert place.names(".tokodec-") == [beside]
    made(media / "pictures", url, tiny_model, shard_size="9")  # type: ignore[arg-type]
    assert place.names(".tokodec-") == []
    made(media / "pictures", tmp_path / "local", tiny_model, shard_size="9")
    assert contents(url) == contents(tmp_path / "local")
    assert len(Corpus(url, load_model(str(tiny_model)))) == 40


def test_folders_and_lists_of_a_web_server(media: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Of which fsspec reads the links of a page."""
    pytest.importorskip("aiohttp")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(media)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        for name in ("pictures", "list.txt", "some.tar"):  # this server gives no parts of files
            made(f"{url}/{name}", tmp_path / name, tiny_model)
            made(media / name, tmp_path / f"local-{name}", tiny_model)
            assert contents(tmp_path / name) == contents(tmp_path / f"local-{name}")
    finally:
        server.shutdown()
        server.server_close()


def test_what_another_attempt_would_not_change_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)

    def call(errors: list[Exception]) -> str:
        if errors:
            raise errors.pop()
        return "done"

    errors: list[Exception] = [OSError("reset"), TimeoutError()]
    assert remote.retried(lambda: call(errors)) == "done"
    assert len(waits) == 2
    assert waits[1] > waits[0] > 0
    with pytest.raises(FileNotFoundError):
        remote.retried(lambda: call([FileNotFoundError()]))
    assert len(waits) == 2
    with pytest.raises(OSError, match="no route"):
        remote.retried(lambda: call([RuntimeError("no route")]))
    assert len(waits) == 2 + remote.ATTEMPTS - 1
