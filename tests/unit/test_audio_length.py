"""How long a sound is, from its headers alone."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.consumer.audio_length import length_ms


def wav(seconds: float, *, size: int | None = None) -> bytes:
    data = b"\0" * round(seconds * 32_000)
    layout = struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)
    head = b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<I", 16) + layout
    return head + b"data" + struct.pack("<I", len(data) if size is None else size) + data


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + name + content


def mp4(*, wide: bool = False, mdat: bytes = b"") -> bytes:
    times = struct.pack(">QQIQ", 0, 0, 600, 1_500) if wide else struct.pack(">IIII", 0, 0, 600, 1_500)
    header = bytes((1 if wide else 0, 0, 0, 0)) + times + b"\0" * 80
    return box(b"ftyp", b"M4A ") + box(b"mdat", mdat) + box(b"moov", box(b"mvhd", header))


def ogg(first: bytes, samples: int) -> bytes:
    def page(granule: int, content: bytes) -> bytes:
        return b"OggS\0\0" + struct.pack("<q", granule) + b"\0" * 12 + b"\x01" + bytes((len(content),)) + content

    return page(0, first) + page(samples, b"x")


FLAC = b"fLaC" + b"\0" * 14 + ((44_100 << 44) | 88_200).to_bytes(8, "big") + b"\0" * 16
MP3_FRAME = 0xFFFB9000  # MPEG 1, layer III, 128 kbit/s, 44.1 kHz, stereo


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (wav(1.5), 1_500),
        (wav(2, size=0), 2_000),
        (wav(2, size=0xFFFFFFFF), 2_000),
        (wav(1, size=10**9), 1_000),
        (FLAC, 2_000),
        (mp4(), 2_500),
        (mp4(wide=True, mdat=b"moovmvhd" * 100), 2_500),
        (ogg(b"OpusHead\x01\x02", 48_000 * 3), 3_000),
        (ogg(b"\x01vorbis" + struct.pack("<IBI", 0, 2, 44_100), 44_100), 1_000),
        (struct.pack(">I", MP3_FRAME) + b"\0" * 15_996, 1_000),
        (b"ID3\x04\0\0" + bytes((0, 0, 1, 0)) + b"\0" * 128 + struct.pack(">I", MP3_FRAME) + b"\0" * 15_996, 1_000),
        (struct.pack(">I", MP3_FRAME) + b"\0" * 32 + b"Xing" + struct.pack(">II", 1, 100), 2_613),
    ],
)
def test_a_header_says_how_long_the_sound_is(content: bytes, expected: int) -> None:
    assert length_ms(content) == expected


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"RIFF",
        b"RIFF\0\0\0\0WAVE",
        wav(1)[:20] + b"\0" * 30,
        b"fLaC",
        b"OggS",
        mp4()[:50],
        b"\x1aE\xdf\xa3" * 10,
        struct.pack(">I", 0xFFFBF000),
        box(b"ftyp", b"") + struct.pack(">I4s", 0, b"free") * 10,
    ],
)
def test_what_a_header_does_not_say_is_not_guessed(content: bytes) -> None:
    assert length_ms(content) is None


@given(st.sampled_from((b"RIFF\0\0\0\0WAVE", b"fLaC", b"OggS", b"\0\0\0\x08ftyp", b"ID3", b"\xff\xfb")), st.binary())
def test_no_bytes_break_it(head: bytes, rest: bytes) -> None:
    found = length_ms(head + rest)
    assert found is None or found >= 1


@given(st.integers(0, 2_000), st.integers(0, 255))
def test_a_damaged_file_of_any_format_breaks_nothing(at: int, byte: int) -> None:
    for content in (wav(0.05), FLAC, mp4(), ogg(b"OpusHead", 100)):
        damaged = bytearray(content)
        damaged[at % len(damaged)] = byte
        found = length_ms(bytes(damaged))
        assert found is None or found >= 1
