"""Training of the photo codec: its optimizer, its training step, and the one command that runs it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from tokodec.codec.metrics.distortion import distortion
from tokodec.entropy.hyperprior.net import HyperNet, HyperShape, SliceNet
from tokodec.tests.resuming import assert_goes_on
from tokodec.tokenizers.image.layers import channels_last
from tokodec.tokenizers.image.photo import ImagePhoto
from tokodec.tokenizers.image.photo_nets import ImagePhotoConfig, PhotoNets
from tokodec.train import photo as script
from tokodec.train import photo_start
from tokodec.train.graphed import UPDATES_AS_THEY_ARE, GraphedStep, GraphedUpdate
from tokodec.train.loop import optimizers_of, set_rate
from tokodec.train.muon import Muon, orthogonal
from tokodec.train.recipe import RECIPES, checked

SMALL = (
    "model.channels=[8,8] model.analysis_blocks=[1,1] model.synthesis_blocks=[1,1] entropy.hyper=4 "
    "entropy.slices=[2,3] entropy.middle=[8,8] entropy.features=8 entropy.width=16 entropy.hidden=16 "
    "entropy.blocks=1 entropy.head=8 data.crop=64 data.holdout_every=3 optim.batch=2 optim.warmup_steps=5"
)


# --------------------------------------------------------------------------------------------------------------- Muon


@pytest.mark.parametrize("shape", [(1, 30, 30), (3, 64, 16), (3, 16, 64), (2, 5, 144), (4, 1, 7)])
def test_singular_values_become_one(shape: tuple[int, ...]) -> None:
    """Nearly: the iteration is tuned for speed and ends between 0.7 and 1.2, but for values that are next to zero."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    for scale in (1e-4, 1.0, 1e4):
        found = orthogonal(scale * x)
        assert found.shape == x.shape
        values = torch.linalg.svdvals(found)
        assert values.max() < 1.25
        assert (values > 0.6).float().mean() > 0.9
        for own, matrix in zip(found, x, strict=True):  # the directions stay, and no matrix depends on another
            u, _, v = torch.linalg.svd(matrix, full_matrices=False)
            assert ((u.T @ own @ v.T).diagonal() > 0).all()
            assert torch.allclose(orthogonal(scale * matrix[None])[0], own, atol=1e-4)
    assert torch.equal(orthogonal(torch.zeros(shape)), torch.zeros(shape))


def test_small_singular_values_grow_as_well() -> None:
    """Down to a hundredth of the largest one."""
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(12, 20), full_matrices=False)
    values = torch.linalg.svdvals(orthogonal((u * torch.logspace(0, -2, 12) @ v)[None]))
    assert 0.6 < values.min() < values.max() < 1.25


def parameters() -> list[nn.Parameter]:
    """Matrices, two of them of one shape, and a kernel in another order of memory that is such a matrix, too."""
    kernel = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    return [nn.Parameter(x) for x in (torch.randn(8, 36), torch.randn(8, 36), kernel, torch.randn(20, 8))]


def test_steps_do_not_depend_on_what_is_stepped_together() -> None:
    torch.manual_seed(0)
    together = parameters()
    alone = [nn.Parameter(p.detach().clone().contiguous()) for p in together]
    unused = nn.Parameter(torch.ones(3, 3))
    first = Muon([*together, unused], lr=0.1, weight_decay=0.5)
    others = [Muon([p], lr=0.1, weight_decay=0.5) for p in alone]
    for _ in range(3):
        for p, q in zip(together, alone, strict=True):
            grad = torch.randn(p.shape)
            p.grad, q.grad = grad.contiguous(memory_format=torch.preserve_format), grad.clone()
        first.step()
        for other in others:
            other.step()
    assert all(torch.allclose(p, q, atol=1e-5) for p, q in zip(together, alone, strict=True))
    assert together[2].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(unused, torch.ones(3, 3))  # without a gradient


def test_a_step_is_momentum_made_orthogonal() -> None:
    torch.manual_seed(0)
    start = torch.randn(6, 10)
    p = nn.Parameter(start.clone())
    optimizer = Muon([p], lr=0.1, momentum=0.9, weight_decay=0.2)
    momentum, expected = torch.zeros(6, 10), start.clone()
    for _ in range(3):
        grad = torch.randn(6, 10)
        p.grad = grad.clone()
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * grad
        ahead = 0.9 * momentum + 0.1 * grad
        expected = expected * (1 - 0.1 * 0.2) - 0.1 * 0.2 * 10**0.5 * orthogonal(ahead[None])[0]
    assert torch.allclose(p, expected, atol=1e-4)
    # As large as a step of AdamW: 0.2 a weight.
    before = p.detach().clone()
    optimizer.param_groups[0]["weight_decay"] = 0.0
    optimizer.step()
    assert 0.1 < float((p.detach() - before).square().mean().sqrt()) / 0.1 < 0.25


def test_a_rate_in_a_tensor_is_that_rate() -> None:
    """Recorded steps read their rate from a tensor."""
    torch.manual_seed(0)
    plain = parameters()
    told = [nn.Parameter(p.detach().clone()) for p in plain]
    rate = torch.tensor(0.0)
    first, second = Muon(plain, lr=0.0, weight_decay=0.5), Muon(told, lr=rate, weight_decay=0.5)
    for p, q in zip(plain, told, strict=True):
        p.grad = q.grad = torch.randn(p.shape)
    for value in (0.1, 0.03):
        set_rate_of(first, value)
        set_rate_of(second, value)
        first.step()
        second.step()
    assert float(rate) == pytest.approx(0.03)
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(plain, told, strict=True))


def set_rate_of(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["base"] = 1.0
    set_rate([optimizer], value)


def updated(device: str, graphs: bool, most: float) -> tuple[Tensor, Tensor]:
    """Weights after eight updates with gradients clipped to ``most``, and the norms before."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.Linear(24, 4)).to(device)
    x, y = torch.randn(16, 8).to(device), torch.randn(16, 4).to(device)
    optim = {"lr": 0.02, "muon": 2.0, "betas": [0.9, 0.99]}
    optimizers = optimizers_of(net.named_parameters(), optim, lambda name, p: p.shape == (24, 24))
    assert [type(optimizer) for optimizer in optimizers] == [torch.optim.AdamW, Muon]
    compute = GraphedStep(net, lambda a, b: (net(a) - b).square().mean(), (x, y), graphs)
    update, norms = GraphedUpdate(compute, optimizers, most), []
    for i in range(8):
        set_rate(optimizers, 1 - i / 8)
        compute((x, y))
        norms.append(update().clone())
    return torch.cat([p.detach().flatten() for p in net.parameters()]).cpu(), torch.stack(norms).cpu()


def test_an_update_clips_and_steps() -> None:
    free, norms = updated("cpu", False, 1e9)
    assert norms[0] > norms[-1] > 0  # it learns
    clipped, first = updated("cpu", False, 1e-9)
    assert first[0] == norms[0]  # told as it was before
    assert not torch.allclose(clipped, free, atol=1e-4)


@pytest.mark.parametrize("muon", [0.0, 2.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_without_finite_gradients_is_left_out(muon: float, bad: float) -> None:
    """Neither weights nor the state of the optimizers know of it."""
    optim = {"lr": 0.1, "muon": muon, "betas": [0.9, 0.99], "weight_decay": 0.5}

    def trained(factors: list[float]) -> list[Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(channels_last(nn.Conv2d(3, 8, 3)), nn.Flatten(), nn.Linear(8, 5))
        optimizers = optimizers_of(net.named_parameters(), optim, lambda name, p: p.ndim > 1)
        x = torch.randn(4, 3, 3, 3)
        compute = GraphedStep(net, lambda x: net(x).square().mean(), (x,), False)
        update = GraphedUpdate(compute, optimizers, 1.0)
        for factor in factors:
            compute((factor * x,))
            assert bool(update().isfinite()) == (factor < 3)
        states = [v for optimizer in optimizers for state in optimizer.state.values() for v in state.values()]
        return [p.detach() for p in net.parameters()] + states

    plain, disturbed = trained([1.0, 2.0, 1.5]), trained([1.0, bad, 2.0, bad, 1.5])
    assert len(plain) == len(disturbed) > 4
    assert all(torch.equal(a, b) for a, b in zip(plain, disturbed, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recorded_updates_are_those_that_are_not_recorded() -> None:
    assert UPDATES_AS_THEY_ARE < 8
    recorded, plain = updated("cuda", True, 0.5), updated("cuda", False, 0.5)
    assert torch.allclose(recorded[0], plain[0], atol=1e-3)
    assert torch.allclose(recorded[1], plain[1], rtol=1e-2)


def test_muon_lowers_a_quadratic() -> None:
    torch.manual_seed(0)
    matrix, kernel = nn.Parameter(torch.zeros(12, 20)), nn.Parameter(torch.zeros(6, 4, 3, 3))
    goals = torch.randn(12, 20), torch.randn(6, 4, 3, 3)
    optimizer = Muon([matrix, kernel], lr=0.05)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = sum(((p - goal) ** 2).mean() for p, goal in zip((matrix, kernel), goals, strict=True))
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.02 * losses[0]
    assert losses[10] < losses[0]


# -------------------------------------------------------------------------------------------------------- training step


class Net(nn.Module):
    """A kernel in channels-last order, a matrix, a vector and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = channels_last(nn.Conv2d(3, 5, 3))
        self.linear = nn.Linear(5, 2)
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.linear(torch.tanh(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("graphs", [False, True])
def test_gradients_are_those_of_a_plain_backward_pass(graphs: bool) -> None:
    """Step after step, with settings that change; on the CPU nothing is recorded."""
    torch.manual_seed(0)
    net = Net()

    def loss(x: Tensor, goal: Tensor, squared: bool) -> Tensor:
        error = net(x) - goal
        return error.square().mean() if squared else error.abs().mean()

    def data() -> tuple[Tensor, Tensor]:
        return torch.randn(4, 3, 8, 8), torch.randn(4, 2)

    compute = GraphedStep(net, loss, data(), graphs)
    assert not compute.graphs
    for squared in (True, False, True):
        x, goal = data()
        found = compute((x, goal), squared)
        assert not found.requires_grad
        expected = loss(x, goal, squared)
        assert float(found) == pytest.approx(float(expected.detach()))
        plain = torch.autograd.grad(expected, list(net.parameters()))
        for p, grad in zip(net.parameters(), plain, strict=True):
            assert p.grad is not None
            assert torch.allclose(p.grad, grad, atol=1e-7)
            assert p.grad.stride() == p.stride()
        whole = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        assert compute.flat.numel() == whole.numel()
        assert float(compute.flat.norm()) == pytest.approx(float(whole.norm()))
    assert compute.recorded == {}


def test_gradients_are_clipped_in_place() -> None:
    net = nn.Linear(3, 1)
    compute = GraphedStep(net, lambda x: net(x).sum(), (torch.zeros(2, 3),), False)
    x = torch.tensor([[3.0, 0, 0], [0, 4, 0]])
    assert net.weight.grad is not None
    assert net.bias.grad is not None
    for most in (0.5, 100.0):
        compute((x,))
        size = 29**0.5  # of 3, 4, 0 and 2
        assert float(compute.clip(most)) == pytest.approx(size)
        factor = min(1.0, most / size)
        assert net.weight.grad.tolist()[0] == pytest.approx([3 * factor, 4 * factor, 0])
        assert net.bias.grad.tolist() == pytest.approx([2 * factor])
        assert float(compute.flat.norm()) <= most


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_gradients_that_are_not_finite_become_zero(bad: float) -> None:
    net = nn.Linear(3, 1)
    compute = GraphedStep(net, lambda x: net(x).sum(), (torch.zeros(2, 3),), False)
    compute((torch.tensor([[bad, 1, 2], [0, 4, 0]]),))
    assert not compute.clip(1.0).isfinite()
    assert torch.equal(compute.flat, torch.zeros(4))
    compute((torch.ones(2, 3),))  # and the next step is none the worse
    assert compute.clip(100.0).isfinite()
    assert net.weight.grad is not None
    assert net.weight.grad.tolist() == [[2, 2, 2]]


# ---------------------------------------------------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of smooth stripes and noise, none of them whole cells."""
    out = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i, (h, w) in enumerate([(70, 90), (80, 66), (97, 75)] * 2):
        waves = np.sin(np.arange(h)[:, None, None] / (3 + i) + np.arange(w)[None, :, None] / 7 + np.arange(3))
        pixels = 120 + 90 * waves + rng.normal(scale=8, size=(h, w, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out / f"p{i}.png")
    return out


def test_weights_of_the_rate_are_geometric_between_their_ends() -> None:
    found = script.rate_weight(torch.tensor([0.0, 0.5, 1.0]), (0.01, 1.0))
    assert found.tolist() == pytest.approx([0.01, 0.1, 1.0])


def test_pictures_are_padded_to_whole_cells() -> None:
    x = torch.rand(1, 3, 65, 128)
    found = script.padded(x)
    assert found.shape == (1, 3, 128, 128)
    assert torch.equal(found[:, :, :65], x)
    assert torch.equal(found[:, :, 65:], x[:, :, 64:].expand(-1, -1, 63, -1))
    assert torch.equal(script.padded(found), found)


@pytest.mark.parametrize("rounding", [False, True])
def test_a_codec_can_be_trained_in_all_its_parts(rounding: bool) -> None:
    torch.manual_seed(0)
    shape = HyperShape(hyper=4, slices=(2, 3), middle=(8, 8), features=8, width=16, hidden=16, blocks=1, head=8)
    config = ImagePhotoConfig(channels=(8, 8), analysis_blocks=(1, 1), synthesis_blocks=(1, 1), latents=5, hyper=4)
    codec = script.PhotoCodec(PhotoNets(config), HyperNet(shape))
    x = torch.rand(2, 3, 64, 128)
    x_hat, bits = codec(x, torch.tensor([0.0, 1.0]), rounding)
    assert (x_hat.shape, bits.shape) == (x.shape, (2,))
    assert (bits > 0).all()
    assert bits[1] > bits[0]  # the gains grow with the quality
    (bits.sum() + 1e4 * (x_hat - x).square().mean()).backward()
    for name, p in codec.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.isfinite().all()), name
    codec.eval()
    with torch.no_grad():
        whole, fewer = (codec(x, torch.tensor([0.5, 0.5]), rounding, kept)[1] for kept in (None, torch.tensor([2, 1])))
    assert fewer[0] == whole[0]
    assert fewer[1] < whole[1]


def command(*words: str) -> list[str]:
    return ["photo", "--precision", "no", "--set", *SMALL.split(), *words]


@pytest.mark.usefixtures("_trains")
def test_a_run_that_is_told_to_end_goes_on(folder: Path, tmp_path: Path) -> None:
    """With Muon, and an entropy model that rounds at the end."""
    sets = ["optim.muon=1", "data.synthetic=0", "rounding.share=0.5"]
    assert_goes_on(script.main, script.Trainer, command(*sets, "--data", str(folder))[1:], tmp_path, (3,))


@pytest.mark.usefixtures("_trains")
@pytest.mark.parametrize("muon", [0, 1])
def test_one_command_trains_and_reports(
    muon: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    out.mkdir()
    (out / "config.json").write_text("{}")  # of a model, which --force allows to overwrite
    media, test = (tmp_path / name for name in ("data", "test"))
    for place in (media, test):
        shutil.copytree(folder, place)
        (place / "p2.png").write_bytes(b"no picture")
    words = [f"optim.muon={muon}", "--data", str(media), "--test", str(test), "--minutes", "0.03", "--force"]
    monkeypatch.setattr(sys, "argv", command(*words, "--out", str(out)))
    script.main()
    lines = capsys.readouterr().out.splitlines()
    notes = [line for line in lines if "1 of 6 files cannot be read and are left out" in line]
    assert [str(place / "p2.png") in note for place, note in zip((media, test), notes, strict=True)] == [True, True]
    assert "3 pictures to train on, 2 held out" in lines[1]
    row = re.compile(r" *\w+ +\d+ quality +\d+\.\d+ bpp +\d+\.\d+ dB.*")
    assert all(row.fullmatch(line) for line in lines[-3:])
    found = json.loads((out / "training.json").read_text())
    assert len({entry["quality"] for entry in found["holdout"]}) >= 3
    assert all(entry["bpp_estimated"] > 0 and entry["psnr"] > 3 for entry in found["holdout"])
    assert [entry["quality"] for entry in found["test"]] == [entry["quality"] for entry in found["holdout"]]
    assert found["recipe"]["optim"]["muon"] == muon
    assert found["recipe"]["rate"]["lambda"] == [0.001, 0.2]
    assert checked(script.Recipe, found["recipe"]).rate.lambda_ == (0.001, 0.2)
    assert (out / script.CHECKPOINT).is_file()

    # Resuming starts from these weights: without a step they are the same.
    if not muon:
        return
    again = tmp_path / "again"
    words = ["optim.lr=0", "--data", str(folder), "--minutes", "0.01", "--resume", str(out), "--out", str(again)]
    monkeypatch.setattr(sys, "argv", command(*words))
    script.main()
    before, after = (load_file(str(path / script.CHECKPOINT)) for path in (out, again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.usefixtures("_trains")
def test_a_variant_is_trained_from_its_base(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the difference changes, and what is released is what was trained."""
    common = ["--data", str(folder), "--force"]
    monkeypatch.setattr(sys, "argv", command(*common, "--minutes", "0.01", "--out", str(tmp_path / "base")))
    script.main()
    before = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir() if path.is_file()}
    words = ["name=other", "variant.rank=2", "rounding.share=1", *common, "--resume", str(tmp_path / "base")]
    monkeypatch.setattr(sys, "argv", command(*words, "--minutes", "0.03", "--out", str(tmp_path / "other")))
    script.main()
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir() if path.is_file()}
    base, other = (ImagePhoto.from_pretrained(tmp_path / name) for name in ("base", "other"))
    assert other.name == "other"
    assert other.entropy.hash == base.entropy.hash
    checkpoint = load_file(str(tmp_path / "other" / script.CHECKPOINT))
    old, new = dict(base.named_parameters()), dict(other.named_parameters())
    for name, p in old.items():
        key = name.removeprefix("nets.").replace(".", "/")
        if p.ndim == 4:
            left, right = checkpoint[f"left.{key}"], checkpoint[f"right.{key}"]
            assert left.shape[1] == right.shape[0] == 2
            product = (left @ right).view(p.shape)
            room = 0.02 * float(left.abs().max() * right.abs().max() * 2) + 1e-6  # factors are int8 in the release
            assert torch.allclose(new[name], p + product, atol=room)
        else:
            assert torch.allclose(new[name], checkpoint[f"free.{key}"], atol=2e-3, rtol=1e-3)
    assert any(float(checkpoint[name].abs().max()) > 0 for name in checkpoint if name.startswith("left."))
    found = json.loads((tmp_path / "other" / "training.json").read_text())
    assert all(entry["bpp_estimated"] > 0 and "ms_ssim" not in entry for entry in found["holdout"])


def test_differences_start_at_zero_and_reach_every_weight() -> None:
    config = ImagePhotoConfig(channels=(8, 8), analysis_blocks=(1, 1), synthesis_blocks=(1, 1), latents=5, hyper=4)
    nets = PhotoNets(config)
    trained = script.LowRank(nets, 3)
    found = trained.weights(nets)
    assert found.keys() == {f"nets.{name}" for name, _ in nets.named_parameters()}
    assert all(torch.equal(found[f"nets.{name}"], p) for name, p in nets.named_parameters())
    sum(value.square().sum() for value in found.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in trained.parameters())
    change = trained.change()
    assert sum(name.endswith(".left") for name in change) == sum(p.ndim == 4 for p in nets.parameters())


def test_weights_are_rounded_as_a_release_rounds_them(tmp_path: Path, photo_model: Path) -> None:
    model = ImagePhoto.from_pretrained(photo_model)
    model.save_pretrained(tmp_path)
    released = ImagePhoto.from_pretrained(tmp_path).state_dict()
    shape = HyperShape(hyper=4, slices=(2, 3), middle=(8, 8), features=8, width=16, hidden=16, blocks=1, head=8)
    codec = script.PhotoCodec(model.nets, HyperNet(shape))
    found = script.as_released(codec, ImagePhoto.int8_weights, ImagePhoto.int8_largest)
    assert found.keys() == {
        name for name, p in model.named_parameters() if p.ndim >= 2 and name.startswith(ImagePhoto.int8_weights)
    }
    assert all(torch.allclose(value, released[name], atol=1e-6) for name, value in found.items())
    sum(value.sum() for value in found.values()).backward()  # type: ignore[union-attr]
    gradients = [dict(codec.named_parameters())[name].grad for name in found]
    assert all(g is not None and torch.equal(g, torch.ones_like(g)) for g in gradients)  # straight through


# --------------------------------------------------------------------------------------------------------- distortion


def test_squared_error_is_that_of_8_bit_values() -> None:
    x, x_hat = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    x_hat[1] = 2 / 255
    assert distortion("mse")(x, x_hat).tolist() == pytest.approx([0, 4])


def test_dissimilarity_pulls_towards_the_picture() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 176, 176)
    x_hat = (x + 0.1 * torch.randn_like(x)).requires_grad_()
    loss = distortion("ms-ssim")
    far = loss(x, x_hat)
    assert far.shape == (2,)
    far.sum().backward()
    assert x_hat.grad is not None
    nearer = loss(x, (x_hat - 30 * x_hat.grad).detach())
    assert bool((nearer < far).all())
    assert loss(x, x).tolist() == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.usefixtures("_trains")
def test_media_are_bounded_by_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ["--data", str(folder), "--memory", "4e-5", "--minutes", "0", "--out", str(tmp_path / "x")]
    monkeypatch.setattr(sys, "argv", command(*rest))
    script.main()
    lines = capsys.readouterr().out.splitlines()
    note = r"note: [34] of 6 files, drawn at random, are read on the way: .* --memory"
    assert any(re.match(note, line) for line in lines)


def test_an_unknown_distortion_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown distortion 'beauty': mse or ms-ssim"):
        distortion("beauty")


@pytest.mark.usefixtures("_trains")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--set optim.speed=3", "the recipe has no optim.speed"),
        ("--set speed=3", "the recipe has no speed"),
        ("--recipe nothing", "no recipe nothing: give a file or one of "),
        ("--data {missing}", "no folder"),
        ("--set data.crop=512", "no picture is at least 512 x 512"),
        ("--set entropy.slices=[]", "at least one slice"),
        ("--set model.channels=[8]", "model.channels has 2 entries, got [8]"),
        ("--resume nothing", "nothing"),
        ("--set variant.rank=2", "name it with --resume"),
        ("--set variant.rank=2 --resume {taken}", "cannot read"),
        ("--set rate.distortion=beauty", "rate.distortion is mse or ms-ssim, got 'beauty'"),
        ("--set rate.distortion=ms-ssim", "MS-SSIM takes crops of 161 pixels or more, the recipe says 64"),
        ("--set optim.lr=abc", "optim.lr is a number, got 'abc'"),
        ("--set data.synthetic=0.5", "data.synthetic is a share below 1, of crops of data.drawn pictures"),
        ("--set data.crop=100", "data.crop is a multiple of 64 pixels"),
        ("--recipe {strange}", "the recipe has an unknown setting foo: known are name, model, "),
        ("--memory 0", "--memory is above 0, got 0"),
        ("--test {missing}", "no folder"),
        ("--precision fp8", "invalid choice"),
        ("--out {taken}", "holds a model already"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    change: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    for name in (script.CHECKPOINT, "config.json"):
        (taken / name).write_bytes(b"")
    strange = tmp_path / "strange.yaml"
    strange.write_text((RECIPES / "image-photo.yaml").read_text() + "foo: 1\n")
    change = change.format(missing=tmp_path / "missing", taken=taken, strange=strange)
    words = change.replace("--set", f"--set {SMALL}").split()
    small = ["--set", *SMALL.split()] if "--set" not in words else []
    rest = ["--data", str(folder), "--out", str(tmp_path / "x"), "--minutes", "0.01", *small]
    monkeypatch.setattr(sys, "argv", ["photo", "--precision", "no", *rest, *words])
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x").exists()
    assert all(path.read_bytes() == b"" for path in taken.iterdir())


# ----------------------------------------------------------------------------------------------- a larger codec's start


def small_and_large() -> tuple[script.PhotoCodec, script.PhotoCodec]:
    """Random weights; the larger one has more of everything and reaches higher rates."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"channels": (8, 12), "analysis_blocks": (1, 1), "hyper": 4, "hyper_width": 6}
    shape = HyperShape(hyper=4, slices=(2, 3), middle=(8, 8), features=8, width=16, hidden=16, blocks=1, head=8)
    config = ImagePhotoConfig(synthesis_blocks=(1, 1), latents=5, rate_weights=(0.001, 0.1), **sizes)
    small = script.PhotoCodec(PhotoNets(config), HyperNet(shape))
    shape = HyperShape(
        hyper=4, slices=(2, 3, 4), middle=(8, 8), features=8, width=20, hidden=24, blocks=2, head=8, fine=1, state=6
    )  # fmt: skip
    config = ImagePhotoConfig(
        synthesis_blocks=(2, 1), latents=9, detail=4, rate_weights=(0.001, 0.01, 1.0), **sizes
    )  # fmt: skip
    large = script.PhotoCodec(PhotoNets(config), HyperNet(shape))
    with torch.no_grad():
        for name, p in small.named_parameters():
            if name.endswith(("expand.weight", "expand.bias")) or "points" in name:
                p.normal_(0, 0.1)
    return small, large


def test_a_larger_codec_starts_as_the_smaller_one() -> None:
    """The same latents and pictures at every rate that both have, with means for what is new."""
    small, large = small_and_large()
    photo_start.grow_nets(large.nets, small.nets)
    x = torch.rand(2, 3, 64, 64)
    qualities = torch.tensor([0.0, 3 / 7])  # 3 / 7: a control point below the bend of the rate weights
    same = photo_start.same_rate(qualities, large.nets.config.rate_weights, small.nets.config.rate_weights).float()
    assert script.rate_weight(same, (0.001, 0.1)).tolist() == pytest.approx(
        script.rate_weight(qualities, (0.001, 0.01, 1.0)).tolist()
    )
    with torch.no_grad():
        y, y_small = (codec.nets.analysis(x) for codec in (large, small))
        assert torch.allclose(y[:, :5], y_small, atol=1e-6)
        whole, before = large.nets.synthesis(y, qualities), small.nets.synthesis(y_small, same)
        assert torch.allclose(whole, before, atol=1e-4)
        for first, second in ((large.nets.gain, small.nets.gain), (large.nets.inverse_gain, small.nets.inverse_gain)):
            assert torch.allclose(first(qualities)[:, :5], second(same), rtol=1e-4)
        top = large.nets.log_gain.points[-1, :5] - small.nets.log_gain.points[-1]
    assert torch.allclose(top, torch.full((5,), 0.5 * float(torch.log(torch.tensor(10.0)))), atol=1e-5)


def test_an_entropy_model_of_more_slices_starts_with_the_layers_of_the_smaller() -> None:
    small, large = small_and_large()
    weight = small.entropy.decoder.enter.weight.detach().clone()
    photo_start.grow_entropy(large.entropy, small.entropy)
    assert torch.equal(large.entropy.decoder.enter.weight, weight)
    old, new = small.entropy.slices[1], large.entropy.slices[1]
    assert isinstance(old, SliceNet)
    assert isinstance(new, SliceNet)
    assert torch.equal(new.base.weight[:16], old.base.weight)
    assert torch.equal(new.own_of(1).weight[:16], old.own_of(1).weight)
    photo_start.turn_hats(large.entropy, (0.001, 0.01, 1.0), (0.001, 0.1))
    turned = large.entropy.decoder.enter.weight.unflatten(1, (9, -1))
    before = weight.unflatten(1, (9, -1))
    assert torch.equal(turned[:, :, :4], before[:, :, :4])  # z is read as it was
    assert torch.allclose(turned[:, :, 4], before[:, :, 4], atol=1e-6)  # and so is the lowest quality
    assert torch.allclose(turned[:, :, -1], before[:, :, -1], atol=1e-6)
    assert torch.allclose(turned[:, :, 4 + 3], before[:, :, 4 + 3], atol=1e-6)
    middle = (before[:, :, 4 + 4] + before[:, :, 4 + 5]) / 2  # 4 / 7 of the way has the lambda of 9 / 14
    assert torch.allclose(turned[:, :, 4 + 4], middle, atol=1e-6)


def test_a_codec_that_is_not_smaller_is_refused() -> None:
    small, large = small_and_large()
    with pytest.raises(ValueError, match="is larger than in the recipe"):
        photo_start.grow_nets(small.nets, PhotoNets(ImagePhotoConfig(channels=(16, 12), latents=5, hyper=4)))
    with pytest.raises(ValueError, match="quality 0 and 100 alone"):
        photo_start.grow_nets(small.nets, large.nets)


@pytest.mark.usefixtures("_trains")
def test_a_start_is_trained_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grown by one command, trained by another, with synthetic crops among the others."""
    words = [*SMALL.split(), "data.synthetic=0.5", "data.drawn=18", "rate.outlier=2.0"]
    monkeypatch.setattr(sys, "argv", command("--data", str(folder), "--minutes", "0.01", "--out", str(tmp_path / "a")))
    script.main()
    more = ["entropy.state=4", "entropy.fine=1", "rate.lambda=[0.001,0.01,1.0]"]
    start = ["--model", str(tmp_path / "a"), "--out", str(tmp_path / "start"), "--recipe", "image-photo"]
    monkeypatch.setattr(sys, "argv", ["photo_start", *start, "--set", *words, *more])
    photo_start.main()
    rest = ["--data", str(folder), "--minutes", "0.02", "--resume", str(tmp_path / "start"), "--out"]
    monkeypatch.setattr(sys, "argv", command(*words[len(SMALL.split()) :], *more, *rest, str(tmp_path / "b")))
    script.main()
    found = json.loads((tmp_path / "b" / "training.json").read_text())
    assert len(found["synthetic"]) == len(found["holdout"])
    model = ImagePhoto.from_pretrained(tmp_path / "b")
    assert model.config.rate_weights == (0.001, 0.01, 1.0)
    assert HyperShape.of_export(model.entropy.arrays()).state == 4
