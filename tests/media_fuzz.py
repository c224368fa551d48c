"""Mutated media through the readers, in a child process: no signal, no hang, and no error without a name.

By hand: ``python tests/media_fuzz.py --seeds 1000`` (each container; a seed that fails is printed, and its file kept).
The quick suite runs a few seeds, see test_media_fuzz.py.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageCms

SECONDS = 20.0  # that one file may take
VIDEOS = {  # name: codec of the picture, of the sound, muxer
    "a.mp4": ("libx264", "aac", "mp4"),
    "frag.mp4": ("libx264", "aac", "mp4"),
    "a.mov": ("mpeg4", "pcm_s16le", "mov"),
    "a.mkv": ("libx264", "flac", "matroska"),
    "a.webm": ("libvpx-vp9", "libopus", "webm"),
    "a.avi": ("mjpeg", "mp2", "avi"),
    "a.ts": ("mpeg2video", "mp2", "mpegts"),
    "a.mpg": ("mpeg1video", "mp2", "mpeg"),
    "a.flv": ("flv", "aac", "flv"),
    "a.wmv": ("wmv2", "wmav2", "asf"),
    "a.gif": ("gif", None, "gif"),
    "a.y4m": ("rawvideo", None, "yuv4mpegpipe"),
    "a.ivf": ("libvpx", None, "ivf"),
    "a.h264": ("libx264", None, "h264"),
}
SOUNDS = {
    "a.wav": ("pcm_s16le", "wav"),
    "adpcm.wav": ("adpcm_ms", "wav"),
    "a.aiff": ("pcm_s16be", "aiff"),
    "a.caf": ("pcm_s24le", "caf"),
    "a.w64": ("pcm_s16le", "w64"),
    "a.au": ("pcm_s16be", "au"),
    "a.voc": ("pcm_s16le", "voc"),
    "a.flac": ("flac", "flac"),
    "a.mp3": ("libmp3lame", "mp3"),
    "a.aac": ("aac", "adts"),
    "a.ac3": ("ac3", "ac3"),
    "a.opus": ("libopus", "ogg"),
    "a.m4a": ("alac", "ipod"),
    "a.tta": ("tta", "tta"),
    "a.wv": ("wavpack", "wv"),
    "a.mka": ("libopus", "matroska"),
}
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {  # name: Pillow's name, options; "m" stands for metadata
    "a.png": ("PNG", {"m": True}),
    "a.jpg": ("JPEG", {"m": True}),
    "prog.jpg": ("JPEG", {"progressive": True, "restart_marker_rows": 1}),
    "a.webp": ("WEBP", {"m": True}),
    "lossless.webp": ("WEBP", {"lossless": True}),
    "a.avif": ("AVIF", {"m": True, "speed": 10}),
    "a.tif": ("TIFF", {"tiffinfo": {700: b"<x/>", 271: "Maker"}}),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "jpeg.tif": ("TIFF", {"compression": "jpeg"}),
    "a.bmp": ("BMP", {}),
    "still.gif": ("GIF", {"comment": b"said"}),
    "a.ppm": ("PPM", {}),
}
NAMES = [*VIDEOS, *SOUNDS, *PICTURES]
_CRC = [i << 24 for i in range(256)]
for _ in range(8):
    _CRC = [(crc << 1 & 0xFFFFFFFF) ^ (0x04C11DB7 if crc >> 31 else 0) for crc in _CRC]
_FORMATS = {"mjpeg": "yuvj420p", "gif": "rgb8", "rawvideo": "yuv444p"}


def sample(name: str) -> bytes:
    """A valid file: 12 frames of 48 x 32, and 0.5 s of two tones; or one picture of that size."""
    if name in PICTURES:
        return _picture(*PICTURES[name])
    rate = 48000
    picture, sound, muxer = VIDEOS.get(name) or (None, *SOUNDS[name])
    buffer = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov"} if name == "frag.mp4" else {}
    with av.open(buffer, "w", format=muxer, options=options) as container:
        packets: list[Any] = []
        video: Any = None if picture is None else container.add_stream(picture, rate=25)
        audio: Any = None if sound is None else container.add_stream(sound, rate=rate, layout="stereo")
        if video is not None:
            video.width, video.height, video.pix_fmt = 48, 32, _FORMATS.get(str(picture), "yuv420p")
            if picture == "libx264":
                video.codec_context.options = {"g": "4"}
            y, x = np.mgrid[:32, :48]
            for i in range(12):
                rgb = np.stack([(x * 5 + 9 * i) % 256, (y * 7) % 256, (x * y + i) % 256], 2).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=video.pix_fmt)
                frame.pts, frame.time_base = i, Fraction(1, 25)
                packets += video.encode(frame)
            packets += video.encode(None)
        if audio is not None:
            audio.bit_rate = 96_000
            t = np.arange(rate // 2) / rate
            x = (0.4 * np.sin(2 * np.pi * np.array([[440], [660]]) * t)).astype(np.float32)
            heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(x.T.reshape(1, -1)), "flt", "stereo")
            heard.sample_rate, heard.pts, heard.time_base = rate, 0, Fraction(1, rate)
            packets += [*audio.encode(heard), *audio.encode(None)]
        for packet in sorted(packets, key=lambda p: (p.dts or 0) * p.time_base):
            container.mux(packet)
    return buffer.getvalue()


def _picture(kind: str, options: dict[str, Any]) -> bytes:
    y, x = np.mgrid[:32, :48]
    im = Image.fromarray(np.stack([x * 5, y * 7, x + y], -1).astype(np.uint8))
    own = {key: value for key, value in options.items() if key != "m"}
    if "m" in options:
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 6, "Maker"
        exif.get_ifd(0x8769)[0x9003] = "2024:01:01 10:00:00"
        own["exif"] = exif
        own["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        own |= {} if kind == "PNG" else {"xmp": b"<x/>"}
    buffer = io.BytesIO()
    im.save(buffer, kind, **own)
    return buffer.getvalue()


def mutated(data: bytes, seed: int) -> bytes:
    """One of many ways in which a file can be wrong, mostly near its beginning, where structure is."""
    rng = np.random.default_rng(seed)
    out = bytearray(data)

    def place() -> int:
        limit = len(out) if rng.random() < 0.5 else min(len(out), 1024)
        return int(rng.integers(max(1, limit)))

    for _ in range(int(rng.integers(1, 9))):
        at, n = place(), int(2 ** rng.uniform(0, 8))
        kind = rng.integers(7)
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out[at : at + n] = rng.integers(0, 256, len(out[at : at + n]), dtype=np.uint8).tobytes()
        elif kind == 2:
            out[at : at + n] = bytes([int(rng.choice([0, 255, 127, 128]))]) * len(out[at : at + n])
        elif kind == 3:
            del out[at : at + n]
        elif kind == 4:
            out[at:at] = out[place() :][:n]
        elif kind == 5 and len(out) >= 8:
            at = min(at, len(out) - 4)
            order = "big" if rng.random() < 0.5 else "little"
            value = int(rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, int(rng.integers(1 << 32))]))
            out[at : at + 4] = value.to_bytes(4, order)  # type: ignore[arg-type]
        else:
            del out[max(16, int(rng.integers(len(out) + 1))) :]
        if not out:
            out += b"\0"
    return with_checksums(out) if data.startswith(b"OggS") and seed % 2 else bytes(out)


def with_checksums(ogg: bytearray) -> bytes:
    """Ogg whose pages have the checksums of what is in them (RFC 3533, 6), so that more than those is looked at."""
    at = ogg.find(b"OggS")
    while 0 <= at < len(ogg) - 27:
        page = ogg[at : at + 27 + ogg[at + 26] + sum(ogg[at + 27 : at + 27 + ogg[at + 26]])]
        page[22:26] = bytes(4)
        crc = 0
        for byte in page:
            crc = (crc << 8 & 0xFFFFFFFF) ^ _CRC[crc >> 24 ^ byte]
        ogg[at + 22 : at + 26] = crc.to_bytes(4, "little")
        at = ogg.find(b"OggS", at + 4)
    return bytes(ogg)


def read(data: bytes) -> str:
    """What became of a file: what was read of it, or the name of the error. Raises what has no name."""
    from tokodec.codec.errors import TokodecError
    from tokodec.codec.media.audio import AudioReader
    from tokodec.codec.media.kind import media_kind
    from tokodec.codec.media.read_image import read_image
    from tokodec.codec.media.read_video import VideoReader

    try:
        kind, source = media_kind(io.BytesIO(data))
        if kind == "audio":
            with AudioReader(source, "x", 1 << 22) as reader:
                return f"{sum(block.shape[1] for block in reader.blocks())} samples"
        raw = data[:1] == b"\0" and b"\0\0\0\1" in data[:64]  # H.264, which is a video by its suffix only
        if kind == "video" or raw:
            with VideoReader(source, "x", 1 << 18) as video:
                frames = sum(1 for _, frame in zip(range(300), video, strict=False) if frame.duration > 0)
                if video.has_sound:
                    with video.sound(1 << 22)[0] as sound:
                        return f"{frames} frames, {sum(block.shape[1] for block in sound.blocks())} samples"
                return f"{frames} frames"
        height, width = read_image(source, "x", 1 << 22).pixels.shape[:2]
        return f"{height * width} pixels"
    except TokodecError as error:
        if "\n" in str(error) or "[Errno" in str(error):
            raise AssertionError(f"not one line of words: {error}") from error
        return type(error).__name__


def _child(cases: list[str]) -> None:
    av.logging.set_level(None)
    files: dict[str, bytes] = {}
    for case in cases:
        name, seed = case.split(":")
        print(case, flush=True)  # so that the parent knows which one a signal belongs to
        print(read(mutated(files.setdefault(name, sample(name)), int(seed))), flush=True)


def outcomes(command: list[str], cases: list[str], seconds: float) -> Iterator[tuple[str, str, bool]]:
    """Cases, one a line, given to a child that prints each and then a line on it, and the rest to another child after
    each case that ends it: by a signal, an error, or because it takes too long.

    Yields: the case, what was printed of it or how the child ended, and whether it did not end.
    """
    while cases:
        with (
            tempfile.TemporaryFile("w+") as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            given.write("\n".join(cases))
            given.seek(0)
            process = subprocess.Popen(command, stdin=given, stdout=out, stderr=err)
            at, done, rest, since, over = 0, 0, b"", time.monotonic(), False
            while not over:
                over = process.poll() is not None
                time.sleep(0 if over else 0.05)
                while new := os.pread(out.fileno(), 1 << 20, at):  # the child shares the position in the file
                    at, rest, since = at + len(new), rest + new, time.monotonic()
                *lines, rest = rest.split(b"\n")
                whole = len(lines) // 2 * 2
                for said in lines[1:whole:2]:
                    yield cases[done], said.decode(), True
                    done += 1
                rest = b"\n".join([*lines[whole:], rest])
                if time.monotonic() - since > seconds:
                    process.kill()
                    process.wait()
            err.seek(0)
            last = err.read().decode(errors="replace").strip().split("\n")[-1]
        cases = cases[done:]
        if cases:
            yield cases[0], f"exit {process.returncode}: {last}", False
            cases = cases[1:]


def in_child(cases: list[str]) -> Iterator[tuple[str, str, bool]]:
    """The outcomes of cases ``name:seed``; a case whose child ends by a signal, an error or its time has failed."""
    return outcomes([sys.executable, __file__, "--child"], cases, SECONDS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--names", nargs="*", default=NAMES)
    parser.add_argument("--keep", type=Path, help="folder for files that fail")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        _child(sys.stdin.read().split())
        return 0
    count = 0
    print("| file | mutated | read | refused by name | failed |\n| --- | --- | --- | --- | --- |", flush=True)
    for name in given.names:
        cases = [f"{name}:{seed}" for seed in range(given.first, given.first + given.seeds)]
        whole = refused = 0
        for case, said, well in in_child(cases):
            whole += well and said[0].isdigit()
            refused += well and not said[0].isdigit()
            if well:
                continue
            print(f"{case}: {said}", flush=True)
            if given.keep:
                given.keep.mkdir(parents=True, exist_ok=True)
                seed = case.split(":")[1]
                (given.keep / f"{seed}-{name}").write_bytes(mutated(sample(name), int(seed)))
        count += (failed := len(cases) - whole - refused)
        print(f"| {name} | {len(cases)} | {whole} | {refused} | {failed} |", flush=True)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
