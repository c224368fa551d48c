"""Peak memory of one codec on one picture, sound or video: encoding and decoding each in a process of their own.

The figures are of whole processes, Python and libraries included; a process that only starts and reads the file is
the floor to compare with.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TokodecError
from .process import _PROBE

if TYPE_CHECKING:
    from .image.compressai import Baseline
    from .image.ours import Coder
    from .image.peers import Peer

# Weighed as processes of `codec` are, with one codec in place of the command line.
_CHILD = _PROBE.rpartition("from tokodec.codec.cli")[0] + (
    "from tokodec.codec.bench.memory import child\nchild(*sys.argv[1:])\n"
)
START = "start-up"


def weigh(
    picture: Path, threads: int, coder: Coder, peers: list[Peer], baselines: list[Baseline]
) -> list[dict[str, Any]]:
    """Peak memory of every codec at the middle one of its settings, ours with all levels where levels are the dial.

    Args:    picture: file that is coded.  threads: of PyTorch and of the peers.
    Returns: dicts with "codec", "synthesis", "encode_mib", "decode_mib" (peak resident memory of the process) and
             "gpu_mib" (what PyTorch held on the GPU at most, None on the CPU); the first is :data:`START`.
    Raises:  TokodecError if a process fails.
    """
    middle = coder.settings[-1] if coder.by_levels else coder.settings[len(coder.settings) // 2]
    ours = {"model": coder.model, "levels": middle.levels, "quality": middle.quality, "device": coder.device}
    ours["effort"] = coder.effort
    jobs: list[dict[str, Any]] = [{"kind": "start", "codec": START, "synthesis": ""}]
    for synthesis in coder.synthesis:
        jobs.append({"kind": "ours", "codec": coder.name, "synthesis": synthesis, **ours})
    for peer in peers:
        quality = peer.curve[len(peer.curve) // 2]
        jobs.append({"kind": "peer", "codec": peer.name, "synthesis": "", "quality": quality})
    for baseline in baselines:
        jobs.append({"kind": "baseline", "codec": baseline.name, "synthesis": "", "device": baseline.device})
    return weigh_jobs(jobs, picture, threads)


def weigh_jobs(jobs: list[dict[str, Any]], source: Path, threads: int) -> list[dict[str, Any]]:
    """What :func:`weigh` returns, for jobs that :func:`child` understands, on the file ``source``."""
    found = []
    encoded: dict[str, tuple[float, float | None]] = {}  # once for all synthesis nets
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs:
            coded = Path(folder) / "coded"
            job["threads"] = threads
            if job["codec"] not in encoded:
                encoded[job["codec"]] = _run(job, "encode", source, coded)
            encode_mib, gpu_encode = decode_mib, gpu_decode = encoded[job["codec"]]
            if job["kind"] != "start":
                decode_mib, gpu_decode = _run(job, "decode", source, coded)
            gpu = None if gpu_encode is None or gpu_decode is None else max(gpu_encode, gpu_decode)
            found.append(
                {"codec": job["codec"], "synthesis": job["synthesis"], "encode_mib": encode_mib,
                 "decode_mib": decode_mib, "gpu_mib": gpu}
            )  # fmt: skip
    return found


def _run(job: dict[str, Any], step: str, source: Path, coded: Path) -> tuple[float, float | None]:
    """MiB of one process, in memory and on the GPU."""
    report = coded.with_name("peak")
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(report), json.dumps(job), step, str(source), str(coded)],
        capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TokodecError(f"weighing {job['codec']} failed: {last}")
    return int(report.read_text()) / 1024, json.loads(done.stdout.splitlines()[-1])


def child(text: str, step: str, source: str, coded: str) -> None:
    """In the process that is weighed: one step of one codec; prints the peak on the GPU in MiB, or null."""
    job = json.loads(text)
    work = _sound_step if job.get("sound") else _video_step if job.get("video") else _picture_step
    work(job, step, source, Path(coded))
    print(json.dumps(_gpu_mib(job.get("device"))))


def _picture_step(job: dict[str, Any], step: str, picture: str, file: Path) -> None:
    from ..container.fields import MAX_PIXELS
    from ..media.read_image import read_image
    from ..metrics.picture import as_rgb

    size = (0, 0)
    x = None
    if step == "encode" or job["kind"] == "baseline":
        x = as_rgb(read_image(Path(picture), picture, MAX_PIXELS).pixels)
        size = x.shape[:2]
    if job["kind"] == "ours":
        from .image.ours import Coder, Setting, decode_ours, encode_ours

        setting = Setting(job["levels"], job["quality"])
        _set_threads(job["threads"])
        coder = Coder(job["model"], job["codec"], (setting,), (job["synthesis"],), job["device"], job["effort"])
        if x is not None:
            file.write_bytes(encode_ours(x, coder, setting)[0])
        else:
            decode_ours(file.read_bytes(), coder, job["synthesis"])
    elif job["kind"] == "peer":
        from .image.peers import PeerSearch, decode_peer, find_peers

        (peer,) = find_peers([job["codec"]], job["threads"])
        if x is not None:
            file.write_bytes(PeerSearch(peer, x, job["threads"]).encode(job["quality"]).data)
        else:
            decode_peer(file.read_bytes())
    elif job["kind"] == "baseline":
        from .image.compressai import from_text, load_baseline, to_text

        _set_threads(job["threads"])
        baseline = load_baseline(job["codec"], job["device"])
        if step == "encode" and x is not None:
            file.write_text(to_text(baseline.compress(x)[0]))
        else:
            baseline.decompress(from_text(file.read_text()), *size)


def _sound_step(job: dict[str, Any], step: str, sound: str, file: Path) -> None:
    from .clips import read_clip

    clip = read_clip(Path(sound), job["max_seconds"])
    if job["kind"] == "ours":
        from .audio.ours import SoundCoder, decode_sound, encode_sound

        _set_threads(job["threads"])
        coder = SoundCoder(job["model"], job["codec"], (job["kbps"],), job["device"], job["effort"])
        if step == "encode":
            file.write_bytes(encode_sound(clip.wav, coder, job["kbps"]).data)
        else:
            decode_sound(file.read_bytes(), coder)
    elif job["kind"] == "peer":
        from .audio.opus import decode_opus, encode_opus

        if step == "encode":
            file.write_bytes(encode_opus(clip.x, job["kbps"]).data)
        else:
            decode_opus(file.read_bytes())
    elif job["kind"] == "baseline":
        import numpy as np

        from .audio.neural import load_sound_baseline

        _set_threads(job["threads"])
        baseline = load_sound_baseline(job["codec"], job["device"])
        if step == "encode":
            file.write_bytes(baseline.encode(clip.x).astype(np.int16).tobytes())
        else:
            codes = np.frombuffer(file.read_bytes(), np.int16).astype(np.int64)
            baseline.decode(codes.reshape(baseline.codebooks, -1))


def _video_step(job: dict[str, Any], step: str, source: str, file: Path) -> None:
    from .videos import Coded, VideoCodec, VideoSetting, read_video

    codec: VideoCodec
    if job["kind"] == "start":
        read_video(Path(source), job["frames"])
        return
    if job["kind"] == "peer":
        from .video.peers import find_video_peer

        codec = find_video_peer(job["codec"], job["threads"])
    else:
        from .video.ours import prepare_frames, prepare_video

        _set_threads(job["threads"])
        ours = job["kind"] == "ours"
        codec = prepare_video(*job["arguments"]) if ours else prepare_frames(*job["arguments"])
    if step == "encode":
        coded = codec.encode(read_video(Path(source), job["frames"]), VideoSetting(*job["setting"]))
        file.write_text(json.dumps({"n": coded.n, "every": coded.every, "files": [f.hex() for f in coded.files]}))
    else:
        found = json.loads(file.read_text())
        coded = Coded(tuple(map(bytes.fromhex, found["files"])), found["n"], found["every"])
        for _ in codec.decode(coded):
            pass


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _gpu_mib(device: str | None) -> float | None:
    if device != "cuda":
        return None
    import torch

    return torch.cuda.max_memory_allocated() / 2**20
