"""From a sound file's bytes to what Whisper hears: 16,000 samples a second in one channel. Nothing touches the disk.

WAV is read here. Everything else goes through ffmpeg, where it is installed.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal import resample_poly

from agent.errors import FormatNotServed, JobRefused

SAMPLE_RATE = 16_000
MINUTES_MAX = 120
DECODE_SECONDS_MAX = 120.0

Samples = npt.NDArray[np.float32]

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_TOO_LONG = f"file: it is longer than {MINUTES_MAX} minutes"


def samples_of(content: bytes, audio_format: str) -> Samples:
    """Raises JobRefused when this machine cannot read the file, or it is too long."""
    samples = _read_wav(content) if audio_format == "wav" and content[:4] == b"RIFF" else None
    if samples is None:
        samples = _through_ffmpeg(content)
    if not samples.size:
        raise JobRefused("file: there is no sound in it")
    if samples.size > MINUTES_MAX * 60 * SAMPLE_RATE:
        raise JobRefused(_TOO_LONG)
    return samples


def _read_wav(content: bytes) -> Samples | None:
    """None for a WAV of a coding that only ffmpeg knows."""
    at, layout = 12, None
    while at + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, at)
        body = content[at + 8 : at + 8 + size]
        if name == b"fmt " and len(body) >= 16:
            layout = struct.unpack_from("<HHIIHH", body)
            if layout[0] == _EXTENSIBLE and len(body) >= 26:
                layout = (struct.unpack_from("<H", body, 24)[0], *layout[1:])
        elif name == b"data" and layout is not None:
            return _pcm(content[at + 8 :] if size in (0, 0xFFFFFFFF) else body, *layout)
        at += 8 + size + size % 2
    raise JobRefused("file: it is not a complete WAV file")


def _pcm(data: bytes, coding: int, channels: int, rate: int, _: int, frame_bytes: int, bits: int) -> Samples | None:
    if not (channels and rate and 1_000 <= rate <= 384_000) or frame_bytes * 8 != bits * channels:
        raise JobRefused("file: its header does not describe a sound")
    if len(data) // frame_bytes > MINUTES_MAX * 60 * rate:
        raise JobRefused(_TOO_LONG)
    data = data[: len(data) // frame_bytes * frame_bytes]
    flat: npt.NDArray[np.floating[Any]]
    if coding == _FLOAT and bits == 32:
        flat = np.frombuffer(data, "<f4").astype(np.float32)
    elif coding == _PCM and bits == 8:
        flat = np.frombuffer(data, np.uint8).astype(np.float32) / 128 - 1
    elif coding == _PCM and bits == 24:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        flat = wide.view("<i4").ravel().astype(np.float32) / 2**31
    elif coding == _PCM and bits in (16, 32):
        flat = np.frombuffer(data, f"<i{bits // 8}").astype(np.float32) / 2 ** (bits - 1)
    else:
        return None
    mono = np.nan_to_num(flat.reshape(-1, channels).mean(axis=1))
    return _resampled(np.clip(mono, -1, 1).astype(np.float32), rate)


def _resampled(samples: Samples, rate: int) -> Samples:
    if rate == SAMPLE_RATE or not samples.size:
        return samples
    common = gcd(rate, SAMPLE_RATE)
    resampled: Samples = resample_poly(samples, SAMPLE_RATE // common, rate // common).astype(np.float32)
    return resampled


def _through_ffmpeg(content: bytes) -> Samples:
    program = shutil.which("ffmpeg")
    if program is None:
        raise FormatNotServed
    with _as_input(content) as (source, options):
        command = [program, "-nostdin", "-hide_banner", "-loglevel", "quiet", "-protocol_whitelist", "file,pipe,fd"]
        command += ["-i", source, "-vn", "-t", str(MINUTES_MAX * 60 + 1), "-ac", "1", "-ar", str(SAMPLE_RATE)]
        command += ["-f", "s16le", "pipe:1"]
        try:
            done = subprocess.run(command, check=False, capture_output=True, timeout=DECODE_SECONDS_MAX, **options)
        except subprocess.TimeoutExpired:
            raise JobRefused("file: reading it takes too long") from None
    if done.returncode or not done.stdout:
        raise JobRefused("file: it is damaged, or not of the format that its name says")
    return (np.frombuffer(done.stdout, "<i2") / 32768).astype(np.float32)


@contextmanager
def _as_input(content: bytes) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """What ffmpeg reads from, and how to start it. Only a file that can be searched serves an MP4 whose index stands at
    its end; where there are no files in memory, such a one is refused."""
    if not hasattr(os, "memfd_create"):
        yield "pipe:0", {"input": content}
        return
    with os.fdopen(os.memfd_create("sound"), "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}", {"pass_fds": (file.fileno(),)}
