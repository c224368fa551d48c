"""`image-1d`: windows, prefixes, shares of tokens, and the command that trains it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tokodec
from tokodec.codec.bench.image.allocation import bench_allocation
from tokodec.codec.bench.options import AllocationOptions
from tokodec.codec.container.read import read_tok
from tokodec.codec.container.write import write_tok
from tokodec.codec.decode import decode_file, file_tokens
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import RateError, UsageError
from tokodec.codec.image.segments import compress_tokens
from tokodec.codec.media.picture import Picture
from tokodec.codec.metrics.picture import psnr
from tokodec.codec.provenance import as_json
from tokodec.codec.tokens import detokenize_file, tokenize_file
from tokodec.tests.resuming import assert_goes_on
from tokodec.tokenizers.api import Tokenizer
from tokodec.tokenizers.image.sequence import (
    CORE,
    MARGIN,
    SIDE,
    ImageSequence,
    ImageSequenceConfig,
    from_windows,
    inside,
    share_tokens,
    to_windows,
    waves,
)
from tokodec.tokenizers.quantize.base import ABSENT
from tokodec.tokenizers.sequence import Sequencer
from tokodec.train import image_1d as script

GOLDEN = Path(__file__).resolve().parent / "golden" / "sequence"
EXPECTED: dict[str, dict[str, Any]] = json.loads((GOLDEN / "expected.json").read_text())
SMALL = ImageSequenceConfig(16, 2, 1, 1, 12, "simvq", 32, 4, 8)


def small(codes: str = "simvq", seed: int = 0) -> ImageSequence:
    """An untrained model whose blocks do something: they start near the identity."""
    torch.manual_seed(seed)
    model = ImageSequence(ImageSequenceConfig(16, 2, 1, 1, 12, codes, 32, 4, 8)).eval()  # type: ignore[arg-type]
    for name, p in model.named_parameters():
        if ".blocks." in name and name.endswith(("out.weight", "down.weight")):
            torch.nn.init.normal_(p, std=0.3)
    return model


def picture(height: int, width: int, seed: int = 0, batch: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, -(-height // 16), -(-width // 16), generator=g)
    return torch.nn.functional.interpolate(coarse, scale_factor=16, mode="bilinear")[:, :, :height, :width]


# ------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("size", [(1, 1), (256, 256), (257, 255), (300, 700)])
def test_windows_give_the_picture_back(size: tuple[int, int]) -> None:
    x = picture(*size, batch=2)
    windows = to_windows(x)
    assert windows.shape == (2, -(-size[0] // CORE), -(-size[1] // CORE), 3, CORE + 2 * MARGIN, CORE + 2 * MARGIN)
    assert torch.allclose(from_windows(windows, size), x, atol=1e-6)


def test_windows_fade_into_each_other() -> None:
    """A dark and a bright window: a straight ramp over 16 pixels around the border, and nothing else."""
    windows = torch.zeros(1, 1, 2, 3, 272, 272)
    windows[:, :, 1] = 1
    row = from_windows(windows, (256, 512))[0, 0, 100]
    assert not row[: 256 - MARGIN].any()
    assert bool((row[256 + MARGIN :] == 1).all())
    ramp = row[256 - MARGIN : 256 + MARGIN]
    assert torch.allclose(ramp, (torch.arange(16) + 0.5) / 16)


def test_only_pixels_of_the_picture_count() -> None:
    where = inside(300, 500)
    assert where.shape == (4, CORE, CORE)
    assert [int(w.sum()) for w in where] == [256 * 256, 256 * 244, 44 * 256, 44 * 244]
    assert bool(where[3, :44, :244].all())


# -------------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("size", [(100, 300), (530, 256)])
def test_row_by_row_is_the_whole(size: tuple[int, int]) -> None:
    model = small()
    pixels = (255 * picture(*size)[0].permute(1, 2, 0)).round().byte()
    x = pixels.permute(2, 0, 1)[None].float() / 255
    shares: list[float] = []
    tokens, errors = model.encode_tiled(pixels, progress=shares.append)
    whole = model.encode(x)
    assert torch.equal(tokens.codes, whole.codes)
    assert shares[-1] == 1
    windows = to_windows(x).flatten(0, 2)
    want = model.errors(windows, model.codes(windows), inside(*size)).numpy()
    assert np.allclose(errors, want)
    decoded = model.decode_tiled(tokens)
    assert decoded.shape == (*size, 3)
    assert torch.equal(decoded, (model.decode(whole)[0] * 255).round().byte().permute(1, 2, 0))
    gray = model.decode_tiled(tokens, 1)
    assert gray.shape == (*size, 1)
    assert int((gray[..., 0].int() - decoded.float().mean(2).round().int()).abs().max()) <= 1


@pytest.mark.parametrize("codes", ["simvq", "lfq", "bsq"])
def test_round_trip_of_odd_sizes_and_batches(codes: str) -> None:
    model = small(codes)
    x = picture(300, 513, batch=2)
    tokens = model.encode(x)
    assert tokens.codes.shape == (2, 12, 2, 3)
    assert tokens.spec.codebook_sizes == (32,) * 12
    assert model.decode(tokens).shape == x.shape
    alone = model.encode(x[1:])
    assert torch.equal(alone.codes[0], tokens.codes[1])
    assert torch.allclose(model.decode(alone)[0], model.decode(tokens)[1], atol=1e-5)


def test_a_window_knows_nothing_of_the_others() -> None:
    model = small()
    x = picture(512, 512)
    other = x.clone()
    other[:, :, :, 256 + MARGIN :] = 0.3
    same = model.encode(x).codes == model.encode(other).codes
    assert bool(same[..., 0].all())
    assert not bool(same[..., 1].all())


def test_a_prefix_is_what_encoding_to_so_many_tokens_gives() -> None:
    model = small()
    x = picture(256, 300)
    whole, few = model.encode(x), model.encode(x, 5)
    assert torch.equal(whole.levels(5).codes, few.codes)
    cut = whole.codes.clone()
    cut[:, 5:] = ABSENT  # dropped tokens are as good as tokens that are not there at all
    a, b = model.decode(few), model.decode(type(whole)(cut, whole.spec))
    assert a.shape == b.shape
    for wrong in (0, 13):
        with pytest.raises(ValueError, match="tokens is 1 to 12"):
            model.encode(x, wrong)


def test_the_total_is_kept_and_goes_where_it_helps() -> None:
    model = small()
    x = torch.cat([picture(256, 256), torch.full((1, 3, 256, 256), 0.5)], 3)
    tokens = model.encode(x, total=15)
    counts = (tokens.codes != ABSENT).sum(1)[0, 0].tolist()
    assert 2 <= sum(counts) <= 15
    assert min(counts) >= 1
    for w, n in enumerate(counts):  # the tokens of a window are a prefix
        own = tokens.codes[0, :, 0, w]
        assert bool((own[:n] >= 0).all())
        assert bool((own[n:] == ABSENT).all())
    for wrong in (1, 25):
        with pytest.raises(ValueError, match="total of 2 windows is 2 to 24"):
            model.encode(x, total=wrong)
    with pytest.raises(ValueError, match="not both"):
        model.encode(x, 3, 5)
    sequencer = Sequencer(model.codebook_sizes, "interleaved", shared=True)
    assert torch.equal(sequencer.unflatten(sequencer.flatten(tokens), tokens.spec).codes, tokens.codes)


def test_shares_are_the_best_of_all() -> None:
    """Against brute force over all shares of three windows."""
    rng = np.random.default_rng(0)
    prefixes = (1, 2, 4, 6)
    for _ in range(20):
        gains = np.sort(rng.random((3, 3)), axis=1)[:, ::-1] * np.diff(prefixes)  # convex: each step gains less
        errors = np.concatenate([np.full((3, 1), 9.0), 9 - gains.cumsum(1)], 1)
        for total in (3, 7, 12, 18):
            found = share_tokens(errors, prefixes, total)
            assert found.sum() <= total
            index = [prefixes.index(n) for n in found]
            mine = errors[range(3), index].sum()
            room = found.sum()
            best = min(
                errors[0, a] + errors[1, b] + errors[2, c]
                for a in range(4) for b in range(4) for c in range(4)
                if prefixes[a] + prefixes[b] + prefixes[c] <= room
            )  # fmt: skip
            assert mine == pytest.approx(best)
    jump = np.array([[9.0, 8.9, 8.8, 0.0], [9.0, 8.0, 7.5, 7.4]])  # the first window gains only at the end
    assert share_tokens(jump, prefixes, 7).tolist() == [6, 1]
    assert share_tokens(np.array([[1.0, 1.0, 2.0, 1.5]]), prefixes, 6).tolist() == [1]  # nothing to gain


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, ImageSequence)
    again = ImageSequence.from_pretrained(tmp_path)
    x = picture(256, 256)
    assert torch.equal(loaded.encode(x).codes, again.encode(x).codes)
    with pytest.raises(ValueError, match="given to"):
        small().decode(loaded.encode(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": "fsq"}, "codes are simvq, lfq or bsq"),
        ({"heads": 5}, "multiple of the heads"),
        ({"tokens": 0}, "1 to 4096 tokens"),
        ({"codes": "lfq", "codebook_size": 1000}, "power of two"),
    ],
)
def test_sizes_without_sense(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSequenceConfig(**change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pictures are a float tensor \[B, 3, H, W\]"):
        small().encode(torch.zeros(3, 8, 8))


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_files(name: str, sequence_model: Path) -> None:
    """Codes to the last one, and the file of these codes to the last byte; pixels may round differently elsewhere."""
    want, data = EXPECTED[name], (GOLDEN / f"{name}.tok").read_bytes()
    assert len(data) == want["bytes"]
    tok = read_tok(data)
    tokens, model = file_tokens(tok, str(sequence_model), "cpu")
    assert list(tokens.codes.shape) == want["shape"]
    assert hashlib.sha256(tokens.codes.numpy().astype("<i4").tobytes()).hexdigest()[:32] == want["codes"]
    assert write_tok(tok.picture, compress_tokens(tokens, model)) == data
    x_hat = decode_file(io.BytesIO(data), model=str(sequence_model), device="cpu").picture.pixels
    assert list(x_hat.shape) == want["size"]
    some = x_hat[:: x_hat.shape[0] // 3, :: x_hat.shape[1] // 5].ravel().astype(int)
    assert int(np.abs(some - want["pixels"]).max()) <= 1


def source(height: int = 300, width: int = 530) -> io.BytesIO:
    pixels = (255 * picture(height, width, 3)[0].permute(1, 2, 0)).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


def test_files_give_tokens_and_pixels_back(sequence_model: Path) -> None:
    """All tokens, then fewer: what the file decodes to is what its tokens decode to."""
    model = ImageSequence.from_pretrained(sequence_model)
    x = torch.from_numpy(np.array(Image.open(source()))).permute(2, 0, 1)[None].float() / 255
    for total in (None, 30, 6):
        done = encode_file(source(), model=str(sequence_model), tokens=total)
        assert done.tokens == 72 if total is None else 6 <= (done.tokens or 0) <= (total or 0)
        tok = read_tok(done.data)
        tokens, _ = file_tokens(tok, str(sequence_model))
        want = model.encode(x) if total is None else model.encode(x, total=total)
        assert torch.equal(tokens.codes, want.codes)
        decoded = decode_file(io.BytesIO(done.data), model=str(sequence_model))
        pixels = (model.decode(want)[0] * 255).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(decoded.picture.pixels, pixels)
        assert (decoded.levels, decoded.layers, decoded.problems) == (1, 1, [])


def test_sizes_and_qualities(sequence_model: Path) -> None:
    whole = encode_file(source(), model=str(sequence_model))
    totals = [encode_file(source(), model=str(sequence_model), tokens=n) for n in (6, 14, 21, 36, 72)]
    assert max(t.tokens or 0 for t in totals) == 72
    for most in (len(whole.data) - 1, 120, len(totals[0].data)):  # payloads grow by four bytes at a time
        done = encode_file(source(), model=str(sequence_model), size=most)
        assert most - 32 < len(done.data) <= most
        assert (done.tokens or 0) >= max(t.tokens or 0 for t in totals if len(t.data) <= most - 8 or t is totals[0])
    by_quality = [encode_file(source(), model=str(sequence_model), quality=q).tokens for q in (0, 50, 100)]
    assert by_quality == [6, totals[2].tokens, 72]  # 6 windows of the square root of 12 tokens: 21
    with pytest.raises(RateError, match="smallest file takes"):
        encode_file(source(), model=str(sequence_model), size=50)
    for words, message in (
        ({"levels": 2}, "levels does not set the rate of tiny-sequence"),
        ({"tokens": 5}, "tokens of a picture of 6 windows are 6 to 72"),
        ({"tokens": 0}, "tokens must be positive"),
        ({"tokens": 9, "size": 100}, "give one of"),
        ({"effort": 2}, "effort is not an option of tiny-sequence"),
    ):
        with pytest.raises(UsageError, match=message):
            encode_file(source(), model=str(sequence_model), **words)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="tokens does not set the rate of image-photo-2"):
        encode_file(source(), tokens=9)
    with pytest.raises(UsageError, match="one synthesis net only"):
        decode_file(io.BytesIO(whole.data), model=str(sequence_model), synthesis="sharp")


def test_tokens_as_files(sequence_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(source().read())
    done = encode_file(tmp_path / "a.png", tmp_path / "a.tok", model=str(sequence_model), tokens=40)
    tokenize_file(tmp_path / "a.tok", tmp_path / "a.npz", model=str(sequence_model))
    detokenize_file(tmp_path / "a.npz", tmp_path / "b.tok", str(sequence_model))
    assert (tmp_path / "b.tok").read_bytes() == done.data
    picture_of_tokens = detokenize_file(tmp_path / "a.npz", None, str(sequence_model)).media
    decoded = decode_file(tmp_path / "a.tok", model=str(sequence_model)).picture
    assert isinstance(picture_of_tokens, Picture)
    assert np.array_equal(picture_of_tokens.pixels, decoded.pixels)
    assert tokenize_file(tmp_path / "a.png", None, model=str(sequence_model)).tokens.n_levels == 12


def test_as_a_dataset(sequence_model: Path, folder: Path) -> None:
    """A sequence a window for generators: places in order, one vocabulary for all."""
    dataset = tokodec.datasets.TokenDataset(folder, str(sequence_model), device="cpu")
    assert [tuple(dataset[i].shape) for i in range(len(dataset))] == [(12, 2, 2)] * 3
    x = torch.from_numpy(np.array(Image.open(folder / "1.png"))).permute(2, 0, 1)[None].float() / 255
    assert torch.equal(dataset[1], ImageSequence.from_pretrained(sequence_model).encode(x).codes[0])


def test_damage_stays_in_its_segment(sequence_model: Path) -> None:
    """A picture of two segments, the second one damaged: the first is as it was, the second one something."""
    whole = encode_file(source(200, 2500), model=str(sequence_model))
    tok = read_tok(whole.data)
    assert tok.header.n_segments == 2
    want, _ = file_tokens(tok, str(sequence_model))
    payload = tok.segment_payloads(1, 1)[0]
    at = whole.data.index(payload)
    broken = whole.data[: at + 2] + bytes([whole.data[at + 2] ^ 4]) + whole.data[at + 3 :]
    decoded = decode_file(io.BytesIO(broken), model=str(sequence_model))
    assert decoded.problems
    tokens, _ = file_tokens(read_tok(broken), str(sequence_model))
    assert torch.equal(tokens.codes[..., :8], want.codes[..., :8])
    assert bool((tokens.codes[:, 0, :, 8:] >= 0).all())
    assert not bool((tokens.codes[:, 1:, :, 8:] >= 0).any())


def test_bench_of_token_allocation(
    sequence_model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = AllocationOptions(folder=folder, out=tmp_path / "out", model=str(sequence_model), device="cpu")
    report = bench_allocation(replace(options, limit=1, show="0.png"))
    assert [(row["way"], row["tokens"]) for row in report["means"]] == [("alike", 12), ("shared", 12)]
    assert len(report["rows"]) == 2
    for row in report["rows"]:
        done = encode_file(folder / row["picture"], model=str(sequence_model))
        x = np.array(Image.open(folder / row["picture"]))
        decoded = decode_file(io.BytesIO(done.data), model=str(sequence_model)).picture.pixels
        if row["way"] == "alike":
            assert row["bytes"] == len(done.data)
            assert row["psnr"] == pytest.approx(psnr(x, decoded))
        else:  # tokens that make it worse are left out
            assert row["bytes"] <= len(done.data)
            assert row["psnr"] >= psnr(x, decoded)
    assert json.loads((tmp_path / "out" / "shares.json").read_text())["rows"] == json.loads(as_json(report))["rows"]
    assert Image.open(tmp_path / "out" / "sheet-1.png").size == (600, 280)
    assert "no figure" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"nothing\.png is not among"):
        bench_allocation(replace(options, show="nothing.png"))
    with pytest.raises(UsageError, match="not a number of tokens"):
        bench_allocation(replace(options, model="image-photo"))


# --------------------------------------------------------------------------------------------------------- one command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        pixels = (255 * picture(280, 300, i)[0].permute(1, 2, 0)).round().byte().numpy()
        Image.fromarray(pixels).save(out / f"{i}.png")
    return out


WORDS = (
    "model.width=16 model.heads=2 model.analysis_blocks=1 model.synthesis_blocks=1 model.tokens=20 model.dim=4 "
    "model.codebook_size=16 model.smooth=8 data.holdout_every=3 optim.batch=2 optim.warmup_steps=5"
)


@pytest.mark.usefixtures("_trains")
@pytest.mark.parametrize("codes", ["simvq", "bsq"])
def test_one_command_trains_and_reports(
    codes: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    words = ["image_1d", "--precision", "no", "--set", *WORDS.split(), f"model.codes={codes}", "--data", str(folder)]
    monkeypatch.setattr(sys, "argv", [*words, "--test", str(folder), "--minutes", "0.05", "--out", str(out)])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    assert "2 pictures to train on, 1 held out" in lines[0]
    assert re.fullmatch(r" +test +16 tokens +\d+\.\d+ dB", lines[-1])
    found = json.loads((out / "training.json").read_text())
    assert [row["tokens"] for row in found["test"]] == [16]
    assert 0 < found["codebook_usage"] <= 1
    assert 0 <= found["bits"] <= 4
    model = ImageSequence.from_pretrained(out)
    monkeypatch.setattr(sys, "argv", [*words, "--minutes", "0", "--resume", str(out), "--out", str(tmp_path / "b")])
    script.main()
    assert ImageSequence.from_pretrained(tmp_path / "b").weights_hash == model.weights_hash


@pytest.mark.usefixtures("_trains")
def test_steps_bring_the_picture_nearer() -> None:
    """The losses and the gradients of all parts belong together: two crops are told apart, and known."""
    torch.manual_seed(0)
    net = script.Autoencoder(ImageSequence(SMALL).train())
    x = torch.cat([0.5 * picture(272, 272), 1 - 0.5 * picture(272, 272)])
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    errors = []
    for step in range(60):
        x_hat, commitment, codebook, _ = net(x, torch.tensor([12, 3]), step >= 20)
        error = (x - x_hat).square().mean()
        optimizer.zero_grad()
        (10 * error + 0.25 * commitment + codebook).backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.25 * errors[0]


def test_an_untrained_net_is_a_transform() -> None:
    """Tokens start as waves over the patches, slow ones first, and the way back is their inverse."""
    basis = waves(SIDE * SIDE)
    assert torch.allclose(basis @ basis.T, torch.eye(SIDE * SIDE), atol=1e-5)
    turns = (basis.view(-1, SIDE, SIDE)[:, 0].diff(dim=1).sign().diff(dim=1) != 0).sum(1)
    assert int(turns[:9].max()) <= 2
    assert torch.equal(waves(12), basis[:12])
    assert not waves(SIDE * SIDE + 5)[-5:].any()
    config = ImageSequenceConfig(16, 2, 1, 1, SIDE * SIDE, "simvq", 32, 4, 8)
    model = ImageSequence(config)
    assert torch.allclose(model.synthesis.waves.T @ model.analysis.waves, torch.eye(SIDE * SIDE), atol=1e-5)


@pytest.mark.usefixtures("_trains")
def test_a_run_that_is_told_to_end_goes_on(folder: Path, tmp_path: Path) -> None:
    """Before and after latents are quantized."""
    words = ["--precision", "no", "--data", str(folder), "--set", *WORDS.split(), "quantized_from=0.5"]
    assert_goes_on(script.main, script.Trainer, words, tmp_path, (2, 3))


@pytest.mark.usefixtures("_trains")
def test_codewords_start_when_quantizing_does(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From half of the time on latents are quantized; the codewords begin as means of what the nets make of crops."""
    starts: list[tuple[Tensor, Tensor]] = []
    kmeans = script.kmeans

    def watched(rows: Tensor, n: int) -> Tensor:
        starts.append((rows, found := kmeans(rows, n)))
        return found

    monkeypatch.setattr(script, "kmeans", watched)
    words = ["image_1d", "--precision", "no", "--set", *WORDS.split(), "quantized_from=0.5", "--data", str(folder)]
    monkeypatch.setattr(sys, "argv", [*words, "--steps", "4", "--out", str(tmp_path / "out")])
    script.main()
    ((rows, words_found),) = starts
    assert rows.shape == (min(16 * 16, 40 * 2 * 20), 4)
    assert words_found.shape == (16, 4)
    assert float(torch.cdist(rows, words_found).min(1).values.square().mean()) < float(rows.var(0).sum())
    assert "from here on quantized" in capsys.readouterr().out


def test_crops_keep_all_numbers_of_tokens() -> None:
    trainer = script.Trainer.__new__(script.Trainer)
    trainer.model, trainer.device = small(), torch.device("cpu")
    trainer.generator = torch.Generator().manual_seed(0)
    trainer.recipe = SimpleNamespace(data=SimpleNamespace(whole=0.25))
    kept = trainer.kept(4000)
    counts = torch.bincount(kept, minlength=13)
    assert counts[0] == 0
    assert len(counts) == 13
    assert int(counts[1:].min()) > 50
    assert 0.25 < float(counts[12]) / 4000 < 0.35
