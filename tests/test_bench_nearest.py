"""`codec bench nearest`: what counts as wrong, and that no peer is dropped in silence."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from tokodec.codec import provenance
from tokodec.codec.bench.search import nearest
from tokodec.codec.bench.search import peers as nearest_peers
from tokodec.codec.bench.search import step as nearest_step
from tokodec.codec.bench.search.nearest import (
    SHAPES,
    Limits,
    bench_case,
    count_wrong,
    make_case,
    parse_shapes,
)
from tokodec.codec.bench.search.peers import PEERS, Peer, Shape, best_distances, distances
from tokodec.codec.bench.timing import Search
from tokodec.codec.cli import run
from tokodec.codec.errors import UsageError
from tokodec.tokenizers.image.grid import ImageGridConfig
from tokodec.tokenizers.quantize import codebook as codebook_module
from tokodec.tokenizers.quantize import nearest as nearest_module

ULP = 2.0**-23  # of float32 at one


@pytest.fixture(autouse=True)
def no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "commit", lambda: "0" * 40)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latents") / "latents.safetensors"
    torch.manual_seed(0)
    save_file({"z": torch.randn(40, 5).half(), "codebook": torch.randn(7, 5)}, path)
    return path


def test_shapes_are_parsed() -> None:
    assert parse_shapes("4096x1024x8, 1x2x3") == [(4096, 1024, 8), (1, 2, 3)]
    assert str(Shape(4096, 1024, 8)) == "4096x1024x8"
    assert [len(parse_shapes(SHAPES[device])) for device in ("cuda", "cpu")] == [7, 4]


@pytest.mark.parametrize("text", ["", "4096x1024", "1x2x3x4", "0x1x1", "-1x1x1", "axbxc", "1x2x3,", "1x2x3;4x5x6"])
def test_bad_shapes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a shape: write rows") as caught:
        parse_shapes(text)
    assert "\n" not in str(caught.value)


def test_only_what_is_clearly_farther_is_wrong() -> None:
    # Squared distances to zero: 1, 1 (a tie), just above 1 + 2 ulp, just above 1 + 4 ulp, 4.
    codebook = torch.tensor([[1.0], [-1.0], [1 + ULP], [1 + 2 * ULP], [2.0]])
    z = torch.zeros(5, 1)
    best = best_distances(z, codebook)
    assert best.tolist() == [1.0] * 5
    indices = torch.arange(5)
    wrong = [count_wrong(z[:1], codebook, indices[i : i + 1], best[:1]) for i in range(5)]
    assert [count for count, _ in wrong] == [0, 0, 0, 1, 1]
    assert [ulps for _, ulps in wrong] == pytest.approx([0, 0, 2, 4, 3 / ULP], rel=1e-5)
    assert count_wrong(z, codebook, indices, best)[0] == 2


def test_a_codeword_that_does_not_exist_is_wrong() -> None:
    z = codebook = torch.tensor([[0.0], [1.0]])
    best = best_distances(z, codebook)
    assert best.tolist() == [0, 0]
    assert count_wrong(z, codebook, torch.tensor([0, 1]), best) == (0, 0)
    assert count_wrong(z, codebook, torch.tensor([1, 1]), best)[0] == 1  # the best distance is 0
    assert count_wrong(z, codebook, torch.tensor([-1, 2]), best) == (2, math.inf)


def test_best_distances_are_those_of_the_definition() -> None:
    torch.manual_seed(0)
    z, codebook = torch.randn(300, 3) + 1000, torch.randn(50, 3) + 1000  # far from zero, where expansions suffer
    all_distances = (z.double()[:, None] - codebook.double()).square().sum(-1)
    best = best_distances(z, codebook)
    assert torch.allclose(best, all_distances.amin(-1), rtol=1e-12, atol=0)
    assert torch.equal(distances(z, codebook, all_distances.argmin(-1)), best)


def test_large_codebooks_are_checked_on_some_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "LARGE_CODEBOOK", 16)
    monkeypatch.setattr(nearest, "CHECKED_ROWS", 10)
    case = make_case(Shape(30, 16, 2), 0, "cpu")
    assert case.rows is not None
    assert len(case.best) == len(case.rows.unique()) == 10
    assert torch.equal(best_distances(case.z, case.codebook)[case.rows], case.best)
    assert len(make_case(Shape(30, 15, 2), 0, "cpu").best) == 30
    assert {result.wrong for result in bench_case(case, None, 0.001, "cpu").results} <= {0, None}


def test_inputs_depend_on_the_seed_alone() -> None:
    a, b, c = (make_case(Shape(20, 10, 4), seed, "cpu") for seed in (1, 1, 2))
    assert torch.equal(a.z, b.z)
    assert torch.equal(a.codebook, b.codebook)
    assert not torch.equal(a.z, c.z)


def test_the_floor_is_the_largest_of_three() -> None:
    limits = Limits(bytes_per_s=1e12, flop_per_s=1e15, processors=100, clock_hz=1e9, clock_source="test")
    floors = limits.floors(Shape(1 << 20, 1 << 10, 12))
    assert floors["copy"] == pytest.approx(1e3 * (4 * 12 * ((1 << 20) + (1 << 10)) + (8 << 20)) / 1e12)
    assert floors["matmul"] == pytest.approx(1e3 * 2 * (1 << 30) * 16 / 1e15)  # 12 + 4 columns
    assert floors["compare"] == pytest.approx(1e3 * (1 << 30) / 6.4e12)
    assert limits.floors(Shape(1, 1, 13))["matmul"] == pytest.approx(1e3 * 2 * 32 / 1e15)


def test_cli_writes_everything(latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    tf32 = torch.backends.cuda.matmul.allow_tf32
    arguments = ["--device", "cpu", "--shapes", "64x32x4", "--seconds", "0.01", "--seed", "3"]
    assert run(["bench", "nearest", *arguments, "--latents", str(latents), "--out", str(out)]) == 0
    assert torch.backends.cuda.matmul.allow_tf32 == tf32
    report = json.loads(out.read_text())
    assert (report["seed"], report["dtype"], report["machine"]["device"]) == (3, "float32", "cpu")
    assert report["versions"]["torch"] == torch.__version__
    assert [(case["shape"], case["real"]) for case in report["cases"]] == [("64x32x4", False), ("40x7x5", True)]
    for case in report["cases"]:
        results: dict[str, dict[str, Any]] = {result["peer"]: result for result in case["results"]}
        assert list(results) == [peer.name for peer in PEERS]
        for result in results.values():
            assert (result["ms"] is None) == (result["reason"] is not None)
        for name in ("ours", "cdist", "matmul", "vector-quantize-pytorch"):
            result = results[name]
            assert result["reason"] is None
            assert result["wrong"] == 0
            assert 0 < result["ms_25"] <= result["ms"] <= result["ms_75"]
            assert result["tflops"] == pytest.approx(2 * case["m"] * case["n"] * case["d"] / result["ms"] / 1e9)
            assert result["over_ours"] == pytest.approx(result["ms"] / results["ours"]["ms"])
        assert results["ours"]["backend"] == "reference"
        assert results["cdist"]["backend"] is None
        assert results["flash-kmeans"]["reason"] == "absent: needs CUDA"
        assert results["compiled"]["reason"] == "not asked for: --compile"
        assert case["cdist_over_ours"] == results["cdist"]["over_ours"]
        assert case["checked"] == case["m"]
        assert case["floor_ms"] is None
    assert "step" not in report
    printed = capsys.readouterr().out
    assert "ours (reference)" in printed
    assert "seed 3, float32" in printed
    assert "40x7x5 real" in printed
    assert printed.count("flash-kmeans: absent: needs CUDA") == 1
    assert printed.count("vector-quantize-pytorch  ") == 2


def test_peers_that_fail_are_listed_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(z: Tensor, codebook: Tensor) -> Search:
        raise ImportError("No module named 'nowhere'")

    def broken(z: Tensor, codebook: Tensor) -> Search:
        raise RuntimeError("first line\n  second line " + 300 * "x")

    def misshapen(z: Tensor, codebook: Tensor) -> Search:
        return lambda: torch.zeros(3, dtype=torch.long)

    def false(z: Tensor, codebook: Tensor) -> Search:
        return lambda: torch.full((len(z),), len(codebook), dtype=torch.int32)

    peers = [Peer(found.__name__, found) for found in (missing, broken, misshapen, false)]
    monkeypatch.setattr(nearest, "PEERS", (*peers, PEERS[-1]))
    results = {r.peer: r for r in bench_case(make_case(Shape(20, 10, 4), 0, "cpu"), None, 0.001, "cpu").results}
    assert list(results) == ["missing", "broken", "misshapen", "false", "ours"]
    assert results["missing"].reason == "absent: No module named 'nowhere'"
    assert results["broken"].reason is not None
    assert results["broken"].reason.startswith("failed: RuntimeError: first line second line xxx")
    assert len(results["broken"].reason) < 200
    assert results["misshapen"].reason == "gave indices of shape [3]"
    assert results["misshapen"].ms is None
    assert (results["false"].wrong, results["false"].worst_ulp) == (20, math.inf)
    assert results["ours"].wrong == 0


def test_peers_that_need_too_long_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(Shape(20, 10, 4), 0, "cpu")
    for name, value, reason in (("PATIENCE", 0.0, "one search takes"), ("ONLY_OURS", 200, "2.0e+02 scores: only ours")):
        with monkeypatch.context() as patch:
            patch.setattr(nearest, name, value)
            results = {r.peer: r for r in bench_case(case, None, 0.001, "cpu").results}
        assert str(results["cdist"].reason).startswith(reason)
        assert results["cdist"].ms is None
        assert results["ours"].ms is not None


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(nearest_peers.WORKSPACE, "cpu", 24 * 10 * 7)  # 7 rows at a time, or 42
    case = make_case(Shape(50, 10, 4), 0, "cpu")
    want = (case.z[:, None] - case.codebook).square().sum(-1).argmin(-1)
    for peer in PEERS:
        if peer.name in ("cdist", "matmul", "vector-quantize-pytorch", "ours"):
            with torch.no_grad():
                assert torch.equal(peer.prepare(case.z, case.codebook)(), want), peer.name


TINY_NET = ImageGridConfig(
    channels=(4, 4, 4), analysis_blocks=(0, 0, 1), synthesis_blocks=(1, 0, 0), dim=3, codebook_sizes=(8, 4),
    synthesis=("faithful",),
)  # fmt: skip
TINY = nearest_step.Sizes(
    dim=4, codebook_sizes=(16, 8), grid=(2, 3, 3), encode=((1, 2, 3), (2, 3, 3)), net=TINY_NET, crops=(2, 32)
)


def test_cli_times_whole_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(nearest_step.SIZES, "cpu", TINY)
    out = tmp_path / "out.json"
    arguments = ["--device", "cpu", "--shapes", "64x32x4", "--seconds", "0.001", "--step", "--out", str(out)]
    assert run(["bench", "nearest", *arguments]) == 0
    report = json.loads(out.read_text())["step"]
    assert report["sizes"]["net"]["codebook_sizes"] == [8, 4]
    results = report["results"]
    assert [(r["step"], r["rows"], r["search"], r["backend"]) for r in results] == [
        (step, rows, search, backend)
        for step, rows in (
            ("quantizer, training", 18), ("net, training", 8), ("quantizer, encode", 6), ("quantizer, encode", 18),
        )
        for search, backend in (("ours", "reference"), ("matmul", None))
    ]  # fmt: skip
    for i, result in enumerate(results):
        assert result["reason"] is None
        assert 0 < result["ms_25"] <= result["ms"] <= result["ms_75"]
        assert 0 < result["search_share"] < 1
        assert result["over_ours"] == pytest.approx(result["ms"] / results[i - i % 2]["ms"])
    printed = capsys.readouterr().out
    assert printed.count("ours (reference)") == 5
    assert "quantizer (16, 8) x 4, net (8, 4) x 3, 2 crops of 32" in printed


def test_steps_are_the_same_with_both_searches() -> None:
    before = codebook_module.nearest_codeword, nearest_module.nearest_codeword, nearest_module._subtract_codewords
    for _, _, make in nearest_step.steps(TINY, "cpu"):
        found = []
        for name in ("ours", "matmul"):
            torch.manual_seed(0)
            step = make()
            calls: list[tuple[nearest_step.Mark, nearest_step.Mark]] = []
            with nearest_step.search_by(name, calls):
                found.append(torch.stack([step() for _ in range(3)]).double())
            assert len(calls) == 3 * 2  # steps, levels
        assert found[0].isfinite().all()
        assert torch.allclose(found[0], found[1])
    after = codebook_module.nearest_codeword, nearest_module.nearest_codeword, nearest_module._subtract_codewords
    assert after == before


def test_the_peer_of_steps_is_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_step, "SCORES", 10 * 7)  # 7 rows at a time
    case = make_case(Shape(50, 10, 4), 0, "cpu")
    penalty = torch.rand(10) * 4
    want = nearest_module.nearest_codeword(case.z, case.codebook, penalty=penalty)
    assert not torch.equal(want, nearest_module.nearest_codeword(case.z, case.codebook))
    assert torch.equal(nearest_step.matmul_codeword(case.z, case.codebook, penalty=penalty), want)
    with pytest.raises(ValueError, match="metric"):
        nearest_step.matmul_codeword(case.z, case.codebook, "cosine")


def test_a_step_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Tensor:
        raise RuntimeError("nothing\nworks")

    monkeypatch.setattr(nearest_step, "matmul_codeword", broken)
    random_state = torch.get_rng_state()
    results = nearest_step.bench_steps(TINY, 0.001, 0, "cpu")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [(r.ms is None, r.reason) for r in results] == 4 * [
        (False, None), (True, "failed: RuntimeError: nothing works")
    ]  # fmt: skip


def test_steps_have_the_sizes_of_the_recipe() -> None:
    recipe = Path(nearest_step.__file__).parents[3] / "train" / "recipes" / "image-grid.yaml"
    model = yaml.safe_load(recipe.read_text())["model"]
    for name in ("channels", "analysis_blocks", "synthesis_blocks", "dim", "codebook_sizes"):
        value = getattr(nearest_step.NET, name)
        assert model[name] == (list(value) if isinstance(value, tuple) else value)
    assert nearest_step.NET.synthesis[0] == model["synthesis"][0]


def test_users_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for name, tensors in {
        "one": {"z": torch.zeros(2, 2)},
        "unlike": {"z": torch.zeros(2, 2), "codebook": torch.zeros(2, 3)},
        "integers": {"z": torch.zeros(2, 2).long(), "codebook": torch.zeros(2, 2)},
        "infinite": {"z": torch.full((2, 2), math.inf), "codebook": torch.zeros(2, 2)},
    }.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    few = ["--device", "cpu", "--shapes", "2x2x2", "--seconds", "0.001"]
    for match, arguments in (
        ("'2x2' is not a shape", ["--shapes", "2x2", "--device", "cpu"]),
        ("unknown device", ["--device", "abacus"]),
        ("cannot make the inputs of", ["--device", "cpu", "--shapes", "100000000000x100000000000x1000"]),
        ("does not exist", [*few, "--out", str(tmp_path / "nowhere" / "out.json")]),
        ("no such file", [*few, "--latents", str(tmp_path / "nowhere.safetensors")]),
        ("not a safetensors file", [*few, "--latents", str(tmp_path / "bad.safetensors")]),
        ("no tensor codebook", [*few, "--latents", str(tmp_path / "one.safetensors")]),
        ("need z [M, D]", [*few, "--latents", str(tmp_path / "unlike.safetensors")]),
        ("need z [M, D]", [*few, "--latents", str(tmp_path / "integers.safetensors")]),
        ("not finite", [*few, "--latents", str(tmp_path / "infinite.safetensors")]),
        ("seconds", [*few, "--seconds", "0"]),
    ):
        assert run(["bench", "nearest", *arguments]) == 2, arguments
        said = capsys.readouterr().err.strip()
        assert match in said
        assert "\n" not in said
