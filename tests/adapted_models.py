"""Models of other libraries, small and with random weights, for the tests of adapters."""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tokodec

CODECS = ("encodec", "dac", "mimi")


def tiny_codec(kind: str, seed: int = 0) -> Any:
    """A model of `transformers` for sounds, in evaluation mode."""
    transformers: Any = importlib.import_module("transformers")
    torch.manual_seed(seed)
    if kind == "encodec":
        model = transformers.EncodecModel(
            transformers.EncodecConfig(
                num_filters=4, hidden_size=16, upsampling_ratios=[4, 4, 5, 4], codebook_size=64, num_lstm_layers=1,
                target_bandwidths=[2.0, 3.0],
            )
        )  # fmt: skip
    elif kind == "dac":
        model = transformers.DacModel(
            transformers.DacConfig(
                encoder_hidden_size=8, decoder_hidden_size=64, downsampling_ratios=[2, 4, 5, 8], n_codebooks=3,
                codebook_size=64, codebook_dim=4, sampling_rate=16000,
            )
        )  # fmt: skip
    else:
        model = transformers.MimiModel(
            transformers.MimiConfig(
                num_filters=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                head_dim=16, intermediate_size=32, codebook_size=64, codebook_dim=16, num_quantizers=4,
                vector_quantization_hidden_dimension=16, upsampling_ratios=[8, 5, 4], upsample_groups=32,
                sliding_window=25,
            )
        )  # fmt: skip
    for name, buffer in model.named_buffers():
        if name.endswith(("embed", "embed_sum")):  # zeros until a checkpoint is loaded
            buffer.copy_(torch.randn_like(buffer) * 0.3)
    return model.eval()


def tiny_vqgan(seed: int = 0) -> Any:
    """`VQModel` of `diffusers`, 4 pixels a cell, 32 codewords."""
    diffusers: Any = importlib.import_module("diffusers")
    torch.manual_seed(seed)
    sides = 3
    return diffusers.VQModel(
        block_out_channels=(8,) * sides, down_block_types=("DownEncoderBlock2D",) * sides,
        up_block_types=("UpDecoderBlock2D",) * sides, norm_num_groups=4, num_vq_embeddings=32,
    ).eval()  # fmt: skip


def tiny_quantizer(kind: str, dim: int = 8, **more: Any) -> nn.Module:
    """A quantizer of `vector-quantize-pytorch`."""
    settings: dict[str, dict[str, Any]] = {
        "VectorQuantize": {"dim": dim, "codebook_size": 32},
        "ResidualVQ": {"dim": dim, "codebook_size": 16, "num_quantizers": 3},
        "GroupedResidualVQ": {"dim": dim, "groups": 2, "codebook_size": 16, "num_quantizers": 3},
        "SimVQ": {"dim": dim, "codebook_size": 32},
        "FSQ": {"levels": [5, 4, 3], "dim": dim},
        "LFQ": {"dim": dim, "codebook_size": 32},
        "ResidualFSQ": {"levels": [5, 3], "dim": dim, "num_quantizers": 3},
    }
    made: nn.Module = getattr(importlib.import_module("vector_quantize_pytorch"), kind)(**settings[kind] | more)
    return made


def tiny_nets(modality: str, dim: int = 8) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """Encoder, decoder and strides: one convolution each."""
    conv: Any = {"image": nn.Conv2d, "audio": nn.Conv1d, "video": nn.Conv3d}[modality]
    back: Any = {"image": nn.ConvTranspose2d, "audio": nn.ConvTranspose1d, "video": nn.ConvTranspose3d}[modality]
    strides = {"image": (8, 8), "audio": (80,), "video": (2, 8, 8)}[modality]
    channels = 1 if modality == "audio" else 3
    return conv(channels, dim, strides, strides), back(dim, channels, strides, strides), strides


def tiny_adapted(modality: str, kind: str, seed: int = 0, **more: Any) -> Any:
    """A tokenizer around a quantizer of `vector-quantize-pytorch`."""
    torch.manual_seed(seed)
    encoder, decoder, strides = tiny_nets(modality)
    rate = 16000.0 if modality == "audio" else None
    quantizer = tiny_quantizer(kind, **more)
    return tokodec.adapt(encoder, quantizer, decoder, modality=modality, strides=strides, sample_rate=rate)


class EntropyBottleneck(nn.Module):
    """What a tokenizer needs of that of CompressAI, with tables of random frequencies, 2^16 in all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.quantiles = nn.Parameter(torch.randn(channels, 1, 3))
        for name in ("_offset", "_quantized_cdf", "_cdf_length"):
            self.register_buffer(name, torch.IntTensor())

    def update(self) -> None:
        channels = len(self.quantiles)
        self._offset = -torch.randint(2, 5, (channels,), dtype=torch.int32)
        lengths = torch.randint(6, 12, (channels,), dtype=torch.int32)  # one more than frequencies
        cdf = torch.zeros(channels, int(lengths.max()), dtype=torch.int32)
        for row, n in zip(cdf, lengths.tolist(), strict=True):
            inner = torch.randperm((1 << 16) - 1)[: n - 2].sort().values + 1
            row[1 : n - 1], row[n - 1] = inner.int(), 1 << 16
        self._quantized_cdf, self._cdf_length = cdf, lengths

    def symbols(self, y: Tensor) -> Tensor:
        """What `compress` gives to its coder, and `decompress` gets back."""
        return (y - self.quantiles[:, :, 1:2]).round().int()


class FactorizedPrior(nn.Module):
    """What a tokenizer needs of that of CompressAI; two convolutions each way."""

    downsampling_factor = 16

    def __init__(self, N: int, M: int) -> None:
        super().__init__()
        self.N, self.M = N, M
        self.entropy_bottleneck = EntropyBottleneck(M)
        self.g_a = nn.Sequential(nn.Conv2d(3, N, 4, 4), nn.GELU(), nn.Conv2d(N, M, 4, 4))
        self.g_s = nn.Sequential(nn.ConvTranspose2d(M, N, 4, 4), nn.GELU(), nn.ConvTranspose2d(N, 3, 4, 4))


def tiny_factorized(seed: int = 0) -> Any:
    """A model with 70 latents, more than a file has layers, of which some exceed their tables."""
    torch.manual_seed(seed)
    model = FactorizedPrior(8, 70)
    model.entropy_bottleneck.update()
    last: Any = model.g_a[2]
    last.weight.data *= 40
    return model.eval()


def signals(modality: str, n: int = 2, seed: int = 0) -> Tensor:
    """Noise that is loud here and quiet there, of sizes that fill no whole cells."""
    shape = {"image": (3, 45, 60), "audio": (1, 4321), "video": (3, 5, 20, 30)}[modality]
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))
    return x - 0.5 if modality == "audio" else x


def saved(model: Any, folder: Path) -> Path:
    """A folder as the library of a model writes it."""
    model.save_pretrained(folder)
    return folder


class Encoding:
    """What a worker does with its samples."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, items: list[tuple[Tensor]]) -> Tensor:
        return self.model.encode(torch.stack([x for (x,) in items])).codes
