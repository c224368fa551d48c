"""CompressAI and us: its checkpoints, transforms with its names, our photo codecs as its models.

Where CompressAI is installed, its own modules are what ours are compared with; the rest of the tests runs without it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tokodec
from tokodec.entropy.hyperprior.export import export_hyperprior
from tokodec.entropy.hyperprior.net import HyperNet, HyperShape
from tokodec.entropy.hyperprior.prior import HyperPrior
from tokodec.tests.compression_models import checkpoint, disturbed
from tokodec.tokenizers.adapters.compressai import LAMBDAS, ZooName, constants, part_of, read_checkpoint, zoo_model
from tokodec.tokenizers.image.hyperprior import HyperpriorNets, ImageHyperprior, ImageHyperpriorConfig
from tokodec.tokenizers.image.photo import ImagePhoto, pad_to_cells, rate_weight
from tokodec.tokenizers.image.photo_nets import POINTS, ImagePhotoConfig
from tokodec.tokenizers.image.transforms import ARCHITECTURES, GDN
from tokodec.train.compression_model import PhotoMeanScale, PhotoModel
from tokodec.train.photo import Rate
from tokodec.train.photo_compressai import config_of, look_at, set_gains, slices_of, take_over

SHAPE = HyperShape(hyper=8, slices=(3, 5), middle=(8, 8), features=8, width=16, hidden=16, blocks=1, head=8)


# -------------------------------------------------------------------------------------------------------- state dicts


def test_names_of_older_versions(tmp_path: Path) -> None:
    """Of data-parallel training, of bottlenecks that had lists or single parameters, of skip connections."""
    names = {
        "module.g_a.0.weight": "g_a.0.weight",
        "module.entropy_bottleneck._biases.0": "entropy_bottleneck.biases.0",
        "entropy_bottleneck._bias1": "entropy_bottleneck.biases.1",
        "entropy_bottleneck._matrices.2": "entropy_bottleneck.matrices.2",
        "latent_codec.hyper.entropy_bottleneck._matrix3": "latent_codec.hyper.entropy_bottleneck.matrices.3",
        "entropy_bottleneck._factors.0": "entropy_bottleneck.factors.0",
        "entropy_bottleneck._factor1": "entropy_bottleneck.factors.1",
        "entropy_bottleneck.matrices.4": "entropy_bottleneck.matrices.4",
        "g_a.0.downsample.weight": "g_a.0.skip.weight",
        "h_a.0._bias": "h_a.0._bias",
    }
    state = {name: torch.full((2,), float(i)) for i, name in enumerate(names)}
    about = {"epoch": 7, "loss": torch.tensor(1.0), "optimizer": {"state": {}}, "lr_scheduler": {"best": float("inf")}}
    torch.save({**about, "state_dict": state}, tmp_path / "a.pth.tar")
    torch.save({"network": state}, tmp_path / "b.pth")
    torch.save(state, tmp_path / "c.pth")
    save_file(state, str(tmp_path / "d.safetensors"))
    for path in sorted(tmp_path.iterdir()):
        found = read_checkpoint(path)
        assert list(found) == list(names.values()) or path.suffix == ".safetensors"
        assert {name: float(t[0]) for name, t in found.items()} == {new: i for i, new in enumerate(names.values())}


class Code:
    pass


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    """Nothing is unpickled."""
    path = tmp_path / "a.pth.tar"
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        read_checkpoint(path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": Code()}, path)
    with pytest.raises(ValueError, match="holds more than tensors and plain values, which may be code"):
        read_checkpoint(path)
    for nothing in ({"epoch": 3}, {}, [1], {"state_dict": {"a": 1}}):
        torch.save(nothing, path)
        with pytest.raises(ValueError, match="is no checkpoint of CompressAI: it has no state_dict of tensors"):
            read_checkpoint(path)
    for name in ("a.pth.tar", "a.safetensors"):
        (tmp_path / name).write_bytes(b"nothing of that kind")
        with pytest.raises(ValueError, match=rf"{re.escape(name)} (cannot be read|holds more)"):
            read_checkpoint(tmp_path / name)


def test_names_of_the_zoo() -> None:
    assert ZooName.of("compressai:mbt2018-mean:4") == ("mbt2018-mean", 4)
    assert ZooName.of("compressai:mbt2018-mean").lmbda("mse") == 0
    assert ZooName.of("compressai:mbt2018-mean:8").lmbda("ms-ssim") == LAMBDAS["ms-ssim"][7]
    for wrong in ("mbt2018-mean:4", "compressai:", "compressai:mbt2018:9", "compressai:mbt2018:x"):
        with pytest.raises(ValueError, match="a model of CompressAI is compressai:NAME or compressai:NAME:QUALITY"):
            ZooName.of(wrong)


# --------------------------------------------------------------------------------------------------------- transforms


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_transforms_are_those_of_compressai(name: str) -> None:
    """With weights of its models they compute what these do."""
    pytest.importorskip("compressai")
    net = disturbed(zoo_model(ZooName(name, 1), pretrained=False), 0.02)
    state = net.state_dict()
    config = config_of(name, state, Rate("mse", (0.001, 0.1), 0.5, 1e9, 0.0))
    assert (config.channels, config.latents) == (net.N, net.M)
    nets = HyperpriorNets(config)
    take_over(nets, state)
    x = torch.rand(1, 3, 64, 128)
    with torch.no_grad():
        y = net.g_a(x)
        assert torch.allclose(nets.g_a(x), y, atol=1e-5)
        assert torch.allclose(nets.g_s(y), net.g_s(y), atol=1e-5)
        if hasattr(net, "h_a"):
            wanted = net.h_a(y.abs() if name == "bmshj2018-hyperprior" else y)
            assert torch.allclose(nets.hyper_analysis(y), wanted, atol=1e-5)
    assert not set(constants(part_of(state, "g_a."))) & {key for key, _ in nets.g_a.named_parameters()}


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_a_tile_needs_no_more_than_the_halo(name: str) -> None:
    """What changes further away changes nothing; what changes at half of it does."""
    own = ARCHITECTURES[name]
    g_a, g_s, _ = (disturbed(net) for net in own.make(8, 8))
    cells = 2 * max(own.halos) + 3
    middle = cells // 2
    for net, halo, shape, stride, size in ((g_a, own.halos[0], 3, 16, 16 * cells), (g_s, own.halos[1], 8, 1, cells)):
        x = torch.rand(1, shape, 3 * stride, size)
        before = net(x)
        out = before.shape[3] // cells  # columns of a cell
        reach = [halo // 2, halo + 1]
        changes = []
        for cell in (middle + n for n in reach):
            other = x.clone()
            other[..., cell * stride : (cell + 1) * stride] += 1
            columns = slice(middle * out, (middle + 1) * out)
            changes.append(float((net(other) - before)[..., columns].abs().max()))
        assert changes[1] == 0, halo
        assert changes[0] > 0, halo


def test_gradients_of_gdn_lead_back_over_its_bounds() -> None:
    torch.manual_seed(0)
    gdn = GDN(3)
    with torch.no_grad():
        gdn.gamma[0, 1] = -1.0
    x = torch.randn(2, 3, 4, 4)
    gdn(x).square().sum().backward()
    assert gdn.gamma.grad is not None
    assert gdn.gamma.grad[0, 1] < 0  # a larger one would lower the sum
    gdn.zero_grad()
    (-gdn(x).square().sum()).backward()
    assert gdn.gamma.grad is None or gdn.gamma.grad[0, 1] == 0
    inverse = GDN(3, inverse=True)
    assert torch.allclose(inverse(x) * GDN(3)(x), x * x, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert gdn(x.bfloat16()).dtype == torch.float32


def test_what_is_taken_over() -> None:
    state, rate = checkpoint(), Rate("mse", (0.0018, 0.18), 0.5, 1e9, 0.0)
    nets = HyperpriorNets(config_of("mbt2018-mean", state, rate))
    take_over(nets, state)
    assert all(torch.equal(state[key], p) for key, p in nets.named_parameters() if "log_" not in key)
    none = {key: t for key, t in state.items() if not key.startswith("h_a")}
    take_over(nets, none)  # a model without a hyperprior
    with pytest.raises(ValueError, match=r"the checkpoint is not of cheng2020-anchor: it has no g_a\.0\.weight"):
        config_of("cheng2020-anchor", {}, rate)
    lacking = {key: t for key, t in state.items() if not key.startswith("g_s")}
    with pytest.raises(ValueError, match=r"the checkpoint is not of mbt2018: g_s: Missing key.*0\.weight"):
        take_over(HyperpriorNets(ImageHyperpriorConfig("mbt2018", 8, 12)), lacking)
    with pytest.raises(ValueError, match="as many channels as the nets"):
        HyperpriorNets(ImageHyperpriorConfig("cheng2020-attn", 8, 12))
    wrongs: list[dict[str, Any]] = [
        {"architecture": "vgg"},
        {"channels": 0},
        {"latents": 10**6},
        {"distortion": "x"},
        {"rate_weights": (1.0,)},
    ]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"unknown|channels and latents|two positive"):
            ImageHyperpriorConfig(**{"architecture": "mbt2018", **wrong})


@torch.no_grad()
def test_the_gain_is_one_where_the_checkpoint_was_trained() -> None:
    """And steps go with the root of lambda."""
    weights = (0.0018, 0.18)
    nets = HyperpriorNets(ImageHyperpriorConfig("mbt2018-mean", 8, 12, rate_weights=weights))
    set_gains(nets, 0.018)
    for quality in torch.linspace(0, 1, 8)[:, None]:
        wanted = (float(rate_weight(quality, weights)) / 0.018) ** 0.5
        assert nets.gain(quality).flatten().tolist() == pytest.approx([wanted] * 12)
        assert nets.inverse_gain(quality).flatten().tolist() == pytest.approx([1 / wanted] * 12)
    assert float(nets.gain(torch.tensor([0.5]))[0, 0]) == pytest.approx(1)
    set_gains(nets, 0.0)
    assert float(nets.gain(torch.tensor([0.5]))[0, 0]) == pytest.approx(1)


def test_a_codec_starts_with_channels_in_order() -> None:
    """Those of most energy first; pixels and hyper latents are those of before; z is where its density is."""
    from tokodec.train.photo import PhotoCodec

    nets: Any = HyperpriorNets(ImageHyperpriorConfig("bmshj2018-hyperprior", 8, 8))
    take_over(nets, checkpoint("bmshj2018-hyperprior", 8, 8))
    x, quality = torch.rand(2, 3, 64, 64), torch.tensor([0.3, 0.6])
    with torch.no_grad():
        for p in nets.h_a[-1].parameters():
            p.mul_(20)
        y, z, x_hat = nets.g_a(x), nets.h_a(nets.g_a(x).abs()), nets.g_s(nets.g_a(x))
    entropy = HyperNet(SHAPE)
    codec = PhotoCodec(nets, entropy)

    def z_bits() -> float:
        with torch.no_grad():
            return float(-torch.log2(entropy.density(z.permute(0, 2, 3, 1).round()).clamp_min(1e-9)).sum())

    before = z_bits()
    look_at(codec, [x])
    ours = nets.analysis(2 * x - 1)
    spread = ours.var((0, 2, 3))
    assert (spread.diff() <= 1e-6).all()
    assert torch.equal(ours.sort(1).values, nets.g_a((2 * x - 1 + 1) / 2).sort(1).values)
    assert torch.allclose(nets.hyper_analysis(ours), z, atol=1e-4)
    assert torch.allclose((nets.synthesis(ours, quality) + 1) / 2, x_hat, atol=1e-4)
    assert torch.allclose(ours, y[:, nets.order], atol=1e-5)
    assert z_bits() < 0.9 * before


def test_slices_have_all_channels() -> None:
    assert slices_of((16, 16, 32, 64), 192) == [16, 16, 32, 64, 64]
    assert slices_of((16, 16, 32, 64, 64), 192) == [16, 16, 32, 64, 64]
    assert slices_of((16, 16, 32, 64), 20) == [16, 4]
    assert slices_of((16,), 3) == [3]


# ------------------------------------------------------------------------------------------------------------- models


def hyperprior_model(name: str = "mbt2018-mean") -> ImageHyperprior:
    model = ImageHyperprior(ImageHyperpriorConfig(name, 8, 8), "mine")  # type: ignore[arg-type]
    take_over(model.nets, checkpoint(name, 8, 8))  # type: ignore[arg-type]
    return with_entropy(model)


@torch.no_grad()
def with_entropy(model: Any) -> Any:
    """The same with latents of the size that an entropy model of random weights expects, at medium qualities."""
    nets = model.nets
    size = nets.analysis(2 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 1).std((0, 2, 3))
    nets.log_gain.points.copy_(torch.linspace(-2, 2, POINTS)[:, None] - size.log())
    nets.log_inverse.points.copy_(-nets.log_gain.points)
    torch.manual_seed(1)
    model.set_entropy(HyperPrior(export_hyperprior(HyperNet(SHAPE))))
    return model.eval()


def photo() -> ImagePhoto:
    torch.manual_seed(0)
    sizes = {"channels": (8, 8), "analysis_blocks": (1, 1), "synthesis_blocks": (1, 1), "hyper_width": 8}
    model = ImagePhoto(ImagePhotoConfig(latents=8, hyper=8, **sizes), "tiny")  # type: ignore[arg-type]
    disturbed(model.nets, 0.1)
    return with_entropy(model)


@pytest.mark.parametrize("name", ["bmshj2018-hyperprior", "cheng2020-attn"])
def test_a_model_with_its_transforms_makes_files(name: str, tmp_path: Path) -> None:
    """As `image-photo` does: its weights are kept to the last bit, its tables are integers, tiles are the whole."""
    import numpy as np
    from PIL import Image

    model = hyperprior_model(name)
    assert model.save_pretrained(tmp_path / "mine") == model.weights_hash
    again: Any = tokodec.load(tmp_path / "mine", "cpu")
    assert type(again) is ImageHyperprior
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    waves = np.sin(np.arange(150)[:, None, None] / 5 + np.arange(100)[:, None] / 9 + np.arange(3))
    pixels = (127 + 80 * waves + np.random.default_rng(0).normal(scale=9, size=(150, 100, 3))).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    encoded = tokodec.encode_file(tmp_path / "a.png", tmp_path / "a.tok", model=again, quality=40)
    tokens = tokodec.tokenize_file(tmp_path / "a.png", model=again, quality=40).tokens
    assert torch.equal(tokodec.tokenize_file(tmp_path / "a.tok", model=again).tokens.codes, tokens.codes)
    assert (tokens.codes[0] != tokens.codes[0, :, :1, :1]).any()
    decoded = tokodec.decode_file(tmp_path / "a.tok", model=str(tmp_path / "mine"))
    assert not decoded.problems
    assert np.array_equal(decoded.picture.pixels, again.decode_picture(tokens).numpy())
    assert len(encoded.data) < pixels.size
    y = again.latents(pad_to_cells(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255))[0]
    tiled = again.analyse_tiled(torch.from_numpy(pixels), cells=3)
    assert np.allclose(tiled, y.detach().numpy(), atol=1e-4)
    painted = again.synthesise_tiled(tiled, 4000, (150, 100))
    parts = again.synthesise_tiled(tiled, 4000, (150, 100), cells=3)
    assert (painted.int() - parts.int()).abs().max() <= 1


@pytest.mark.parametrize("make", [photo, hyperprior_model], ids=["photo", "hyperprior"])
def test_a_photo_codec_as_a_compression_model(make: Any) -> None:
    """In evaluation mode what it estimates is what it codes; what it codes comes back."""
    model = make()
    net = PhotoModel(model, 60).eval()
    x = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = net(x)
    assert out["x_hat"].shape == x.shape
    assert {k: tuple(v.shape) for k, v in out["likelihoods"].items()} == {"y": (2, 8, 4, 8), "z": (2, 8, 1, 2)}
    assert all(((p > 0) & (p <= 1)).all() for p in out["likelihoods"].values())
    coded = net.compress(x)
    assert (len(coded["strings"]), len(coded["strings"][0]), tuple(coded["shape"])) == (1, 2, (1, 2))
    back = net.decompress(**coded)["x_hat"]
    assert torch.allclose(back, out["x_hat"].clamp(0, 1), atol=1e-4)
    bits = sum(float(-torch.log2(p).sum()) for p in out["likelihoods"].values())
    measured = 8 * sum(map(len, coded["strings"][0]))
    assert measured == pytest.approx(bits, rel=0.3)  # random weights: many latents are far from what is expected
    tokens = model.encode(x, quality=60)
    assert torch.allclose(model.decode(tokens), back, atol=1e-4)
    net.quality = 5
    assert sum(map(len, net.compress(x)["strings"][0])) < measured / 2
    with pytest.raises(ValueError, match="H and W multiples of 64"):
        net(x[..., :100])
    net.quality = 101
    with pytest.raises(ValueError, match="quality is 0 to 100"):
        net(x)


def test_a_compression_model_trains_and_comes_home(tmp_path: Path) -> None:
    """Every weight gets a gradient; tables follow the weights by update(); the tokenizer has both."""
    net = PhotoModel(photo(), 60).train()
    x = torch.rand(2, 3, 64, 64)
    assert not net.update()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(2):
        out = net(x)
        bits = -torch.stack([torch.log2(p).sum() for p in out["likelihoods"].values()]).sum() / x[:, 0].numel()
        optimizer.zero_grad()
        (bits + 100 * (out["x_hat"] - x).square().mean()).backward()
        assert all(p.grad is not None for p in net.parameters())
        optimizer.step()
    assert net.update(force=True)
    net.eval()
    with torch.no_grad():
        assert torch.allclose(net.decompress(**net.compress(x))["x_hat"], net(x)["x_hat"].clamp(0, 1), atol=1e-4)
    home = net.tokenizer("home")
    home.save_pretrained(tmp_path / "home")
    assert isinstance(tokodec.load(tmp_path / "home", "cpu"), ImagePhoto)
    other = PhotoModel(photo(), 60).eval()
    other.load_state_dict(net.state_dict())
    with pytest.raises(ValueError, match=r"there are no tables of these weights yet: call update\(\) first"):
        other.compress(x)
    assert other.update()
    assert other.compress(x)["strings"] == net.compress(x)["strings"]


def test_ours_is_one_of_theirs() -> None:
    models = pytest.importorskip("compressai.models")
    net = PhotoModel(photo())
    assert isinstance(net, models.CompressionModel)
    assert net.aux_loss() == 0


def test_their_entropy_models_for_our_nets() -> None:
    """Both have gradients, and quantiles those of the auxiliary loss."""
    sizes = {"channels": [8, 8], "analysis_blocks": [1, 1], "synthesis_blocks": [1, 1], "latents": 6, "hyper": 4}
    try:
        import compressai  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="needs the package compressai"):
            PhotoMeanScale(**sizes)
        return
    net = PhotoMeanScale(**sizes)
    out = net(torch.rand(1, 3, 64, 64))
    (out["x_hat"].mean() - sum(torch.log2(p).mean() for p in out["likelihoods"].values()) + net.aux_loss()).backward()
    lacking = {name for name, p in net.named_parameters() if p.grad is None}
    assert lacking == set()
    assert {k: tuple(v.shape) for k, v in out["likelihoods"].items()} == {"y": (1, 6, 4, 4), "z": (1, 4, 1, 1)}
