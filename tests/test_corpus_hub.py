"""Corpora on the hub of Hugging Face (`hf://`), of which a server of this machine stands in for what fsspec asks."""

from __future__ import annotations

import base64
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tokodec.codec.corpus.manifest import verify
from tokodec.codec.corpus.places import place_of
from tokodec.tests.test_corpus_remote import contents
from tokodec.tests.test_corpus_shards import made, write_pictures

fsspec = pytest.importorskip("fsspec")
constants: Any = pytest.importorskip("huggingface_hub.constants")


class Hub(http.server.BaseHTTPRequestHandler):
    """What is asked of the hub: what a repository is, its files, their bytes, and commits of small ones."""

    home: Path
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, found: Any, status: int = 200, **headers: str) -> None:
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def entry(self, path: Path) -> dict[str, Any]:
        kind, size = ("directory", 0) if path.is_dir() else ("file", path.stat().st_size)
        return {"path": path.relative_to(self.home).as_posix(), "oid": "0" * 40, "type": kind, "size": size}

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if place := re.fullmatch("/api/datasets/me/set/tree/main/?(.*)", path):
            folder = self.home / place[1]
            if not folder.is_dir():
                self.answer({"error": "no such entry"}, 404, X_Error_Code="EntryNotFound")
                return
            self.answer([self.entry(below) for below in sorted(folder.iterdir())])
        elif re.fullmatch("/api/datasets/me/set(/revision/main)?", path):
            self.answer({"id": "me/set", "sha": "1" * 40, "siblings": []})
        elif (place := re.fullmatch("/datasets/me/set/resolve/main/(.*)", path)) and (self.home / place[1]).is_file():
            data = (self.home / place[1]).read_bytes()
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            about: dict[str, Any] = {"ETag": '"0"', "X_Repo_Commit": "1" * 40}
            if span is None:
                self.answer(data, 200, **about)
                return
            begin, end = int(span[1]), min(len(data), int(span[2] or len(data)) + 1)
            self.answer(data[begin:end], 206, Content_Range=f"bytes {begin}-{end - 1}/{len(data)}", **about)
        else:
            self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        if "/paths-info/" in self.path:
            names = json.loads(asked)["paths"]
            self.answer([self.entry(self.home / name) for name in names if (self.home / name).exists()])
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(asked)["files"]]
            self.answer({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        else:
            lines = list(map(json.loads, asked.splitlines()))
            if any(line["key"] == "deletedFile" and not (self.home / line["value"]["path"]).exists() for line in lines):
                self.answer({"error": "no such entry"}, 404, X_Error_Code="EntryNotFound")
                return
            for line in lines:
                path = self.home / line["value"].get("path", "")
                if line["key"] == "file":
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(line["value"]["content"]))
                elif line["key"] == "deletedFile":
                    path.unlink()
            url = f"{constants.ENDPOINT}/datasets/me/set/commit/1"
            self.answer({"commitUrl": url, "commitOid": "1" * 40, "success": True})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a repository on a hub of this machine. Its files are in `repository`."""
    home = tmp_path / "repository"
    home.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Hub,), {"home": home}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name, value in {"HF_ENDPOINT": endpoint, "HF_TOKEN": "x", "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)
    yield "hf://datasets/me/set"
    server.shutdown()
    server.server_close()
    fsspec.get_filesystem_class("hf").clear_instance_cache()


def test_folders_of_the_hub_are_sources(hub: str, tiny_model: Path, tmp_path: Path) -> None:
    """Read by another process, too; and a list of URLs in a parquet file."""
    media = write_pictures(tmp_path / "repository" / "pictures", 12)
    made(media, tmp_path / "local", tiny_model)
    for workers in (0, 1):
        assert made(f"{hub}/pictures", tmp_path / str(workers), tiny_model, workers=workers).written == 12
        assert contents(tmp_path / str(workers)) == contents(tmp_path / "local")
    assert list(verify(tmp_path / "0", [f"{hub}/pictures"])) == []


def test_parquet_files_of_the_hub_are_sources(hub: str, tiny_model: Path, tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    paths = sorted(write_pictures(tmp_path / "media", 12).rglob("*.png"))
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    parquet.write_table(pa.table({"image": images}), tmp_path / "repository" / "train.parquet", row_group_size=5)
    parquet.write_table(pa.table({"image": images}), tmp_path / "train.parquet", row_group_size=5)
    for source, out in ((f"{hub}/train.parquet", tmp_path / "there"), (tmp_path / "train.parquet", tmp_path / "here")):
        assert made(source, out, tiny_model).written == 12
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_a_repository_of_the_hub_is_a_target(hub: str, tiny_model: Path, tmp_path: Path) -> None:
    """Each file is a commit, so none is there in part."""
    media = write_pictures(tmp_path / "media", 12)
    made(media, tmp_path / "local", tiny_model, shard_size="5")
    done = made(media, f"{hub}/corpus", tiny_model, shard_size="5")  # type: ignore[arg-type]
    assert (done.written, done.finished) == (12, True)
    assert contents(f"{hub}/corpus") == contents(tmp_path / "local")
    assert place_of(f"{hub}/corpus").names(".tokodec-") == []
    again = made(media, f"{hub}/corpus", tiny_model, shard_size="5", resume=True)  # type: ignore[arg-type]
    assert (again.written, again.made) == (12, 0)
    assert list(verify(f"{hub}/corpus", [str(media)], str(tiny_model))) == []
    place = place_of(f"{hub}/corpus")
    before = place.names("part-")
    (tmp_path / "repository" / "corpus" / "part-0001-0000.jsonl").write_text("of another rank")
    assert sorted(place.names("part-")) == [*before, "part-0001-0000.jsonl"]
