"""`codec bench prior` and `codec bench conceal`: bytes are those of files, hashes those of tables, fillers fill."""

import hashlib
import io
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokodec.codec import provenance
from tokodec.codec.bench import inputs as prior_inputs
from tokodec.codec.bench import timing
from tokodec.codec.bench.entropy import conceal, large, prior
from tokodec.codec.bench.entropy.conceal import FILLERS, KINDS, copy_nearest, lose, nearest_held
from tokodec.codec.bench.entropy.large import LARGE_CODERS, compressai_ans, time_large
from tokodec.codec.bench.entropy.prior import Agreement, agreement, hash_of_hashes, round_trip, time_prior
from tokodec.codec.bench.inputs import Input, load_priors
from tokodec.codec.bench.options import ConcealOptions, PriorOptions
from tokodec.codec.cli import run
from tokodec.codec.corpus.token_files import dump_tokens
from tokodec.codec.decode import decode_file
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import ModelError
from tokodec.codec.models import load_model
from tokodec.codec.tokens import tokenize_file
from tokodec.entropy.context.net import ContextNet, LevelShape
from tokodec.entropy.context.prior import ContextPrior
from tokodec.entropy.prior import Codes, Prior
from tokodec.entropy.schedule import offsets_within, refinement
from tokodec.entropy.static import StaticPrior
from tokodec.tokenizers.image.grid import ImageGrid
from tokodec.tokenizers.tokens import Tokens

SIZES = {"a.png": (40, 70), "b.png": (70, 40), "c.png": (40, 70)}  # height, width
FEW = ["--device", "cpu", "--seconds", "0.001"]


def random_context(seed: int, tokenizer: ImageGrid) -> ContextPrior:
    torch.manual_seed(seed)
    codewords = tokenizer.codewords() or []
    schedules = [refinement(2, steps) for steps in (8, 4, 2)]
    offsets = [offsets_within(2, (1.0, 1.0))] * 3
    net = ContextNet(codewords, schedules, offsets, [LevelShape(8, 16, 16, 1, 8)] * 3)
    return ContextPrior(net.export())


@pytest.fixture(autouse=True)
def no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "commit", lambda: "0" * 40)


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` with a context prior of random weights."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(tiny_model, folder)
    random_context(0, ImageGrid.from_pretrained(folder)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, (name, (height, width)) in enumerate(SIZES.items()):
        rows, columns = np.mgrid[:height, :width]
        noise = np.random.default_rng(i).integers(0, 64, (height, width, 3))
        Image.fromarray((2 * rows[..., None] + columns[..., None] % 64 + noise).astype(np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def inputs(pictures: Path, model: Path) -> list[Input]:
    folder, static, _ = load_priors(str(model), "cpu")
    return prior_inputs.read_inputs([pictures / name for name in SIZES], str(model), "cpu", folder, static)


def with_codes(codes: Codes, like: Input) -> Tokens:
    return Tokens(torch.from_numpy(codes[None]), like.spec)


def same_grid(inputs: list[Input]) -> Codes:
    assert inputs[0].codes.shape == inputs[2].codes.shape == (3, 3, 5)
    return inputs[0].codes


# --------------------------------------------------------------------------------------------------- bench prior


@pytest.fixture(scope="module")
def report(pictures: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("out") / "out.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "commit", lambda: "0" * 40)
        assert run(["bench", "prior", str(pictures), "--model", str(model), "--out", str(out), *FEW]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_bytes_are_those_of_encoded_files(report: dict[str, Any], pictures: Path, model: Path) -> None:
    assert [row["levels"] for row in report["files"]] == [1, 2, 3]
    context, estimate = ContextPrior.from_pretrained(model), np.zeros(3)
    for name in SIZES:
        estimate += context.bits(tokenize_file(pictures / name, model=str(model)).tokens.codes[0].numpy())
    for row in report["files"]:
        for kind in ("static", "context"):
            files = [encode_file(pictures / n, model=str(model), levels=row["levels"], prior=kind) for n in SIZES]
            assert row[f"{kind}_bytes"] == pytest.approx(np.mean([len(file.data) for file in files]))
        assert row["saved"] == pytest.approx(1 - row["context_bytes"] / row["static_bytes"])
        assert row["estimate_bytes"] == pytest.approx(estimate[: row["levels"]].sum() / 8 / 3)
        assert row["payload_excess"] == pytest.approx(row["payload_bytes"] / row["estimate_bytes"] - 1)
        assert row["file_excess"] == pytest.approx(row["context_bytes"] / row["estimate_bytes"] - 1)
        assert row["context_bytes"] > row["payload_bytes"] >= row["estimate_bytes"]


def test_bits_are_those_of_the_priors(report: dict[str, Any], inputs: list[Input], model: Path) -> None:
    priors = {"static": StaticPrior.from_pretrained(model), "context": ContextPrior.from_pretrained(model)}
    cells = sum(found.codes[0].size for found in inputs)
    for kind, own in priors.items():
        want = np.sum([own.bits(found.codes) for found in inputs], axis=0) / cells
        assert [row[f"{kind}_bits"] for row in report["levels"]] == pytest.approx(list(want))
    assert [row["codes"] for row in report["levels"]] == [cells] * 3


def test_the_hash_is_that_of_the_tables(
    report: dict[str, Any], inputs: list[Input], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = ContextPrior.from_pretrained(model)
    hashes = [context.tables_hash(found.codes) for found in inputs]
    want = hashlib.sha256("".join(hashes).encode()).hexdigest()
    assert report["tables_sha256"] == want
    assert [(found["name"], found["tables_sha256"]) for found in report["inputs"]] == [
        (name, [one]) for name, one in zip(SIZES, hashes, strict=True)
    ]
    for i, found in enumerate(inputs):  # files of all kinds hold the same codes
        tokens = with_codes(found.codes, found)
        (tmp_path / f"{i}.npz").write_bytes(dump_tokens(tokens, ".npz"))
        (tmp_path / f"{i}.safetensors").write_bytes(dump_tokens(tokens, ".safetensors"))
    for suffix in ("npz", "safetensors"):
        files = [str(tmp_path / f"{i}.{suffix}") for i in range(3)]
        assert run(["bench", "prior", *files, "--model", str(model), *FEW]) == 0
        assert f"\ntables SHA-256 {want}\n" in capsys.readouterr().out
    assert hash_of_hashes([[hashes[1]], [hashes[0]]]) != hash_of_hashes([[hashes[0]], [hashes[1]]])
    assert hash_of_hashes([["ab"], ["cd"]]) == hashlib.sha256(b"abcd").hexdigest()


def test_tok_files_hold_the_same_codes(
    report: dict[str, Any], pictures: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in SIZES:
        encode_file(pictures / name, tmp_path / Path(name).with_suffix(".tok"), model=str(model), device="cpu")
    assert run(["bench", "prior", str(tmp_path), "--model", str(model), *FEW]) == 0
    assert report["tables_sha256"] in capsys.readouterr().out


def test_large_grids_are_coded_in_segments(model: Path, inputs: list[Input], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior_inputs, "segment_cells", lambda stride: 2)
    context = ContextPrior.from_pretrained(model)
    parts = inputs[0].segments(context)
    assert [part.shape[1:] for part in parts] == [(2, 2), (2, 2), (2, 1), (1, 2), (1, 2), (1, 1)]
    assert np.array_equal(parts[3], inputs[0].codes[:, 2:, :2])
    assert inputs[0].bits(context) == pytest.approx(np.sum([context.bits(part) for part in parts], axis=0))
    assert prior.table_hashes(inputs[:1], context) == [[context.tables_hash(part) for part in parts]]
    assert round_trip(context, parts).exact


def test_report_says_what_and_where(report: dict[str, Any], model: Path) -> None:
    assert (report["model"], report["commit"], report["seed"]) == ("tiny", "0" * 40, 0)
    assert report["prior_hashes"]["context"] == ContextPrior.from_pretrained(model).hash
    assert report["machine"]["device"] == "cpu"
    assert report["versions"]["torch"] == torch.__version__
    assert report["cuda_and_cpu"] is None
    assert "large" not in report
    assert [row["prior"] for row in report["speed"]] == ["static", "context"]
    for row in report["speed"]:
        for way in ("compress", "decompress"):
            assert 0 < row[f"{way}_ms_25"] <= row[f"{way}_ms"] <= row[f"{way}_ms_75"]
            assert row[f"{way}_codes_s"] > 0
        assert row["exact"] == 3


class FalsePrior(StaticPrior):
    """Forgets the first code."""

    def decompress(self, payloads: Any, grid: tuple[int, ...]) -> Codes:
        codes = super().decompress(payloads, grid)
        codes.flat[0] ^= 1
        return codes


def test_codes_that_do_not_come_back_are_counted(model: Path, inputs: list[Input]) -> None:
    tables = StaticPrior.from_pretrained(model).tables
    false = FalsePrior(tables)
    false.hash = "0" * 16
    row = time_prior("false", false, inputs, 1e-6)
    assert (row.exact, row.runs) == (0, 10)  # two sizes, five runs each
    assert agreement(inputs, false, false) == Agreement(3, 3, 0, 0)


def test_agreement_counts_bytes_and_codes(model: Path, inputs: list[Input]) -> None:
    one = ContextPrior.from_pretrained(model)
    assert agreement(inputs, one, one.to("cpu")) == Agreement(3, 3, 3, 3)
    other = random_context(1, ImageGrid.from_pretrained(model))
    other.hash = one.hash
    assert agreement(inputs, one, other) == Agreement(3, 0, 0, 0)


def test_on_cuda_both_devices_are_compared(
    inputs: list[Input],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a CPU in the place of the GPU."""
    load = load_priors
    monkeypatch.setattr(prior, "pick_device", lambda device: "cuda")
    monkeypatch.setattr(prior, "load_priors", lambda name, device: load(name, "cpu"))
    monkeypatch.setattr(provenance, "machine", lambda device: {"device": "a GPU", "torch_threads": 1})
    (tmp_path / "a.npz").write_bytes(dump_tokens(with_codes(inputs[0].codes, inputs[0]), ".npz"))
    report = prior.bench_prior(PriorOptions(inputs=[tmp_path / "a.npz"], model=str(model), seconds=1e-6))
    assert report["cuda_and_cpu"] == {"inputs": 1, "bytes": 1, "there": 1, "back": 1}
    printed = capsys.readouterr().out
    assert "cuda and cpu: equal bytes for 1 of 1 inputs\n" in printed
    assert "payloads of cuda on the cpu: equal codes for 1 of 1 inputs\n" in printed
    assert "payloads of the cpu on cuda: equal codes for 1 of 1 inputs\n" in printed


def test_warm_up_reaches_cuda_graphs(model: Path, inputs: list[Input], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every size of input is coded at least four times before the clock starts, on whatever machine."""
    seen: list[tuple[str, tuple[int, ...]]] = []

    class Watched(StaticPrior):
        def compress(self, codes: Codes) -> list[bytes]:
            seen.append(("compress", codes.shape))
            return super().compress(codes)

    clock = iter(range(10**6))

    def perf_counter() -> int:
        seen.append(("clock", ()))
        return next(clock)

    watched = Watched(StaticPrior.from_pretrained(model).tables)
    watched.hash = "0" * 16
    monkeypatch.setattr(prior, "time", SimpleNamespace(perf_counter=perf_counter))
    row = time_prior("watched", watched, inputs, 1e-6)
    assert 2 * timing.WARM_UP >= 4
    assert [entry for entry in seen if entry[0] == "compress"] == [("compress", (3, 3, 5))] * 7 + [
        ("compress", (3, 5, 3))
    ] * 7
    assert (row.runs, row.compress_ms, row.decompress_ms) == (10, 1000, 1000)
    assert row.compress_codes_s == pytest.approx(45)


def test_large_codebooks_are_timed_or_say_why(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    shape = LevelShape(4, 8, 8, 1, 4)
    monkeypatch.setattr(large, "LARGE", {300: shape, 1 << 16: shape})
    monkeypatch.setattr(large, "LARGE_GRID", (6, 5))
    before = torch.get_rng_state()
    for n in large.LARGE:
        rows = {name: time_large(name, n, 1e-6, "cpu") for name in LARGE_CODERS}
        ours, constriction, own, shared = rows.values()
        assert (ours.reason, constriction.reason) == (None, None)
        assert (ours.symbols, constriction.symbols) == (30, 256)
        assert ours.tables_mib == pytest.approx(4 * 30 * (16 + 32 if n == 300 else 512) / 2**20)
        assert constriction.tables_mib == pytest.approx(4 * 30 * n / 2**20)
        for row in (ours, constriction):
            found = row.compress_codes_s, row.decompress_codes_s, row.codes_s
            rates = [rate for rate in found if rate is not None and math.isfinite(rate)]
            assert 1 / rates[2] == pytest.approx(1 / rates[0] + 1 / rates[1])
        try:
            compressai_ans()
        except ImportError:
            assert own.reason == shared.reason == "absent: No module named 'compressai.ans'"
        else:
            assert (own.reason is None) == (shared.reason is None) == (n == 300)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_large_coder_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(n: int, device: str) -> large.Pair:
        raise RuntimeError("first line\nsecond line")

    def false(n: int, device: str) -> large.Pair:
        return large.Pair(np.zeros(3, int), lambda: None, lambda payload: [0, 1, 0], 0.0)

    monkeypatch.setattr(large, "LARGE_CODERS", {"broken": broken, "false": false})
    assert time_large("broken", 2, 1, "cpu").reason == "failed: RuntimeError: first line second line"
    assert time_large("false", 2, 1, "cpu").reason == "failed: other codes came back"


def test_cli_times_large_codebooks(
    pictures: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (large, prior):
        monkeypatch.setattr(module, "LARGE", {300: LevelShape(4, 8, 8, 1, 4)})
    threads, out = torch.get_num_threads(), tmp_path / "out.json"
    arguments = ["--model", str(model), "--threads", "1", "--large", "--out", str(out), *FEW]
    assert run(["bench", "prior", str(pictures / "a.png"), *arguments]) == 0
    assert torch.get_num_threads() == threads
    report = json.loads(out.read_text())
    assert report["machine"]["torch_threads"] == 1
    assert [row["coder"] for row in report["large"]] == list(LARGE_CODERS)
    assert report["large"][0]["symbols"] == 64 * 64
    printed = capsys.readouterr().out
    assert "ours, network included" in printed
    assert "tables SHA-256 " in printed


# ------------------------------------------------------------------------------------------------- bench conceal


def test_three_kinds_of_loss() -> None:
    codes = np.arange(4 * 50 * 50).reshape(4, 50, 50)
    lost = {kind: lose(codes, kind, 0.2, np.random.default_rng(0)) < 0 for kind in KINDS}
    for kind, own in lost.items():
        damaged = lose(codes, kind, 0.2, np.random.default_rng(0))
        assert np.array_equal(damaged[~own], codes[~own])
        assert (damaged[own] == -1).all()
        assert own[0].mean() == pytest.approx(0.2, abs=0.03)
    assert len({own.tobytes() for own in lost["codes"]}) == 4
    assert all(np.array_equal(own, lost["cells"][0]) for own in lost["cells"])
    assert (lost["later"][1:] >= lost["later"][:-1]).all()
    assert lost["later"][3].mean() == pytest.approx(1 - 0.8**4, abs=0.03)
    assert np.array_equal(lost["later"], np.logical_or.accumulate(lost["codes"], axis=0))
    with pytest.raises(ValueError, match="no kind of loss 'all'"):
        lose(codes, "all", 0.2, np.random.default_rng(0))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.95])
def test_the_nearest_cell_is_found(share: float) -> None:
    rng = np.random.default_rng(int(100 * share))
    for shape in ((1, 1), (1, 40), (13, 17), (30, 6)):
        held = rng.random(shape) < share
        found = nearest_held(held)
        cells = np.argwhere(held)  # raster order
        if not len(cells):
            assert (found == -1).all()
            continue
        every = np.moveaxis(np.indices(shape), 0, -1)
        squared = np.square(every[:, :, None] - cells).sum(-1)
        assert np.array_equal(found, (cells @ (shape[1], 1))[squared.argmin(-1)])  # argmin: the first of equals


def test_nearest_copies_level_by_level() -> None:
    codes = np.array([[[7, -1, -1, 4]], [[-1, 5, -1, -1]], [[-1, -1, -1, -1]]])
    assert copy_nearest(codes).tolist() == [[[7, 7, 4, 4]], [[5, 5, 5, 5]], [[-1, -1, -1, -1]]]


def test_fillers_keep_what_is_there_and_fill_what_they_say(model: Path, inputs: list[Input]) -> None:
    _, static, context = load_priors(str(model), "cpu")
    tokenizer = load_model(str(model), "cpu").tokenizer
    codewords = tokenizer.codewords()
    assert codewords is not None
    ways = conceal.fillers(static, context, codewords)
    assert tuple(ways) == FILLERS
    codes = same_grid(inputs)
    damaged = lose(codes, "codes", 0.4, np.random.default_rng(0))
    lost = damaged < 0
    assert lost.any(axis=(1, 2)).all()
    before = damaged.copy()
    for name, fill in ways.items():
        filled = fill(damaged)
        assert np.array_equal(damaged, before), name
        assert np.array_equal(filled[~lost], codes[~lost]), name
        assert (filled[0] >= 0).all(), name
        if name in ("most probable", "nearest"):
            assert (filled >= 0).all(), name
    filled = ways["mean"](damaged)
    assert (filled[1:][lost[1:]] == -1).all()
    share = static.tables[0] / static.tables[0].sum()
    centre = (share[:, None] * codewords[0]).sum(0)
    (own,) = set(filled[0][lost[0]].tolist())
    assert own == np.linalg.norm(codewords[0] - centre, axis=1).argmin()


def test_conceal_measures_what_it_saves(pictures: Path, model: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "out.json", tmp_path / "new" / "folder"
    paths = [pictures / "b.png", pictures / "a.png"]
    arguments = [*map(str, paths), "--model", str(model), "--share", "0.5", "--seed", "3", "--device", "cpu"]
    assert run(["bench", "conceal", *arguments, "--out", str(out), "--save", str(folder)]) == 0
    report = json.loads(out.read_text())
    assert (report["share"], report["seed"], report["commit"]) == (0.5, 3, "0" * 40)
    assert report["pictures"] == ["b.png", "a.png"]
    assert len(report["fills"]) == 2 * len(KINDS) * len(FILLERS)

    def psnr(name: str) -> float:
        x, x_hat = (np.asarray(Image.open(p)).astype(float) for p in (paths[0], folder / f"b-{name}.png"))
        return float(10 * np.log10(255**2 / np.square(x - x_hat).mean()))

    assert sorted(p.name for p in folder.iterdir()) == sorted(
        f"b-{name.replace(' ', '-')}.png" for name in ("intact", *FILLERS)
    )
    assert report["intact_psnr"][0] == pytest.approx(psnr("intact"))
    tok = io.BytesIO(encode_file(paths[0], model=str(model), device="cpu").data)
    decoded = decode_file(tok, model=str(model), synthesis="faithful", device="cpu").picture.pixels
    assert np.array_equal(np.asarray(Image.open(folder / "b-intact.png")), decoded)
    first = {f["filler"]: f for f in report["fills"] if (f["picture"], f["kind"]) == ("b.png", "cells")}
    for name in FILLERS:
        assert first[name]["psnr"] == pytest.approx(psnr(name.replace(" ", "-")))
        assert first[name]["drop"] == pytest.approx(psnr("intact") - first[name]["psnr"], abs=1e-5)
    means = {(m["kind"], m["filler"]): m for m in report["means"]}
    assert list(means) == [(kind, name) for kind in KINDS for name in FILLERS]
    for (kind, name), mean in means.items():
        own = [f["drop"] for f in report["fills"] if (f["kind"], f["filler"]) == (kind, name)]
        assert mean["drop"] == pytest.approx(np.mean(own), abs=1e-6)
        assert mean["of_nearest"] == pytest.approx(mean["drop"] / means[kind, "nearest"]["drop"], rel=1e-5)

    again = tmp_path / "again.json"
    assert run(["bench", "conceal", *arguments, "--out", str(again)]) == 0
    assert json.loads(again.read_text())["fills"] == report["fills"]


def test_a_loss_of_nothing_costs_nothing(pictures: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ["--model", str(model), "--share", "1e-9", "--device", "cpu", "--out", str(out)]
    assert run(["bench", "conceal", str(pictures / "a.png"), *arguments]) == 0
    for mean in json.loads(out.read_text())["means"]:
        assert (mean["lost"], mean["drop"], mean["of_nearest"]) == (0, 0, None)


def test_everything_lost_is_still_decoded(pictures: Path, model: Path) -> None:
    report = conceal.bench_conceal(
        ConcealOptions(pictures=[pictures / "a.png"], share=1 - 1e-12, model=str(model), device="cpu")
    )
    assert {mean["lost"] for mean in report["means"]} == {1.0}
    assert all(math.isfinite(fill["psnr"]) for fill in report["fills"])


# --------------------------------------------------------------------------------------------------- bad input


def test_users_mistakes_are_one_line(
    pictures: Path, model: Path, tiny_model: Path, inputs: list[Input], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    picture = str(pictures / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nothing")
    (tmp_path / "file").write_text("")
    codes = inputs[0].codes
    absent = codes.copy()
    absent[2, 0, 0] = -1
    (tmp_path / "absent.npz").write_bytes(dump_tokens(with_codes(absent, inputs[0]), ".npz"))
    (tmp_path / "two.npz").write_bytes(dump_tokens(with_codes(codes[:2], inputs[0]), ".npz"))
    batch = Tokens(torch.from_numpy(np.stack([codes, codes])), inputs[0].spec)
    (tmp_path / "batch.npz").write_bytes(dump_tokens(batch, ".npz"))
    encode_file(picture, tmp_path / "whole.tok", model=str(model), device="cpu")
    data = (tmp_path / "whole.tok").read_bytes()
    (tmp_path / "cut.tok").write_bytes(data[:-20])
    encode_file(picture, tmp_path / "static.tok", model=str(model), prior="static", device="cpu")
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "context.safetensors").write_bytes(b"nothing")
    own = ["--model", str(model), "--device", "cpu"]
    for match, arguments in (
        ("no such file", ["prior", str(tmp_path / "nowhere.png"), *own]),
        ("no such file", ["prior", str(tmp_path / "nowhere.npz"), *own]),
        ("no pictures, .tok files or tokens in", ["prior", str(tmp_path / "empty"), *own]),
        ("is not a file of tokens", ["prior", str(tmp_path / "bad.npz"), *own]),
        ("bad.png", ["prior", str(tmp_path / "bad.png"), *own]),
        ("level 3 holds a code outside [0, 16)", ["prior", str(tmp_path / "absent.npz"), *own]),
        ("not the tokens of one picture", ["prior", str(tmp_path / "batch.npz"), *own]),
        ("two.npz has 2 levels", ["prior", picture, str(tmp_path / "two.npz"), *own]),
        ("only intact files are compared", ["prior", str(tmp_path / "cut.tok"), *own]),
        ("the model at hand has", ["prior", str(tmp_path / "absent.npz"), "--device", "cpu"]),
        ("unknown device", ["prior", picture, "--model", str(model), "--device", "abacus"]),
        ("no model", ["prior", picture, "--model", str(tmp_path / "nowhere"), "--device", "cpu"]),
        ("cannot read entropy model", ["prior", picture, "--model", str(tiny_model), "--device", "cpu"]),
        ("cannot read entropy model", ["conceal", picture, "--model", str(broken), "--device", "cpu"]),
        ("does not exist", ["prior", picture, *own, "--out", str(tmp_path / "none" / "out.json")]),
        ("threads", ["prior", picture, *own, "--threads", "0"]),
        ("seconds", ["prior", picture, *own, "--seconds", "0"]),
        ("seconds", ["prior", picture, *own, "--seconds", "nan"]),
        ("missing argument", ["prior", *own]),
        ("above 0 and below 1, got 0", ["conceal", picture, *own, "--share", "0"]),
        ("above 0 and below 1, got 1", ["conceal", picture, *own, "--share", "1"]),
        ("above 0 and below 1, got nan", ["conceal", picture, *own, "--share", "nan"]),
        ("seed", ["conceal", picture, *own, "--seed", "-1"]),
        ("no pictures in", ["conceal", str(tmp_path / "empty"), *own]),
        ("bad.png", ["conceal", str(tmp_path / "bad.png"), *own]),
        ("cannot make the folder", ["conceal", picture, *own, "--save", str(tmp_path / "file" / "x")]),
    ):
        assert run(["bench", *arguments]) == 2, arguments
        said = capsys.readouterr().err.strip()
        assert match in said.lower() or match in said, (arguments, said)
        assert "\n" not in said
    assert run(["bench", "prior", str(tmp_path / "static.tok"), *own, "--seconds", "0.001"]) == 0


def test_priors_must_belong_together(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(model, folder)
    StaticPrior.from_counts([np.zeros(n) for n in (64, 32, 8)]).save_pretrained(folder)
    with pytest.raises(ModelError, match="different codebook sizes"):
        load_priors(str(folder), "cpu")


def test_both_priors_keep_the_contract(model: Path) -> None:
    """What the bench relies on: loaded directly, whatever `load_model` prefers."""
    _, static, context = load_priors(str(model), "cpu")
    priors: list[Prior] = [static, context]
    assert [own.wire_id for own in priors] == [1, 2]
    assert all(len(own.hash) == 16 for own in priors)
