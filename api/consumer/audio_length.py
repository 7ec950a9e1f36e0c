"""How long a sound is, as its own headers say: nothing is decoded.

Only what the container itself states is believed. The rest of the formats is estimated by whoever asks.
"""

from __future__ import annotations

import struct

_MP3_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MP3_KBITS_LOW = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_MP4_BOXES_MAX = 10_000


def length_ms(content: bytes) -> int | None:
    """Milliseconds, rounded up; None when nobody can tell. Whatever the bytes are, this returns."""
    try:
        seconds = _length(content)
    except (struct.error, ArithmeticError, IndexError, ValueError):
        return None
    return None if seconds is None else max(1, -int(-seconds * 1000 // 1))


def _length(content: bytes) -> float | None:
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE":
        return _wav(content)
    if content[:4] == b"fLaC":
        return _flac(content)
    if content[:4] == b"OggS":
        return _ogg(content)
    if content[4:8] == b"ftyp":
        return _mp4(content)
    if content[:3] == b"ID3" or (len(content) > 2 and content[0] == 0xFF and content[1] & 0xE0 == 0xE0):
        return _mp3(content)
    return None


def _wav(content: bytes) -> float | None:
    at, bytes_per_second = 12, 0
    while at + 8 <= len(content):
        name, size = content[at : at + 4], struct.unpack_from("<I", content, at + 4)[0]
        if name == b"fmt ":
            bytes_per_second = struct.unpack_from("<I", content, at + 16)[0]
        elif name == b"data":
            # A writer that streams does not know the size and says 0 or the highest number.
            there = len(content) - at - 8
            return min(size or there, there) / bytes_per_second
        at += 8 + size + size % 2
    return None


def _flac(content: bytes) -> float | None:
    packed = int.from_bytes(content[18:26], "big")
    rate, samples = packed >> 44, packed & (2**36 - 1)
    return samples / rate if samples else None


def _ogg(content: bytes) -> float | None:
    last = content.rfind(b"OggS")
    samples = struct.unpack_from("<q", content, last + 6)[0]
    first = content[27 + content[26] :][:64]
    if first.startswith(b"OpusHead"):
        rate = 48_000
    elif first.startswith(b"\x01vorbis"):
        rate = struct.unpack_from("<I", first, 12)[0]
    else:
        return None
    return samples / rate if samples > 0 else None


def _mp4(content: bytes) -> float | None:
    at, end = 0, len(content)
    for _ in range(_MP4_BOXES_MAX):
        if at + 8 > end:
            return None
        size, name = struct.unpack_from(">I4s", content, at)
        head = 8
        if size == 1:
            size, head = struct.unpack_from(">Q", content, at + 8)[0], 16
        if name == b"moov":
            at, end = at + head, min(end, at + size) if size else end
            continue
        if name == b"mvhd":
            wide = content[at + head] == 1
            scale, ticks = struct.unpack_from(">IQ" if wide else ">II", content, at + head + (20 if wide else 12))
            return float(ticks / scale) if ticks else None
        if size < head:
            return None
        at += size
    return None


def _mp3(content: bytes) -> float | None:
    at = 0
    if content[:3] == b"ID3":
        a, b, c, d = content[6:10]
        at = 10 + (a << 21 | b << 14 | c << 7 | d)
    header = struct.unpack_from(">I", content, at)[0]
    version, layer, bits, rate = header >> 19 & 3, header >> 17 & 3, header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or layer != 1 or bits in (0, 15) or rate == 3:
        return None
    sample_rate = _MP3_RATES[version][rate]
    mono = header >> 6 & 3 == 3
    tag = at + 4 + ((17 if mono else 32) if version == 3 else (9 if mono else 17))
    if content[tag : tag + 4] in (b"Xing", b"Info") and content[tag + 7] & 1:
        frames = struct.unpack_from(">I", content, tag + 8)[0]
        return float(frames * (1152 if version == 3 else 576) / sample_rate)
    kbits = (_MP3_KBITS if version == 3 else _MP3_KBITS_LOW)[bits]
    return (len(content) - at) / (kbits * 125)
