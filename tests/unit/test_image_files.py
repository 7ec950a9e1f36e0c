"""Images behind signed URLs: for an hour, within bounds, for nobody without the signature."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from api.consumer.image_files import FILE_SECONDS, ImageFiles


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def files(clock: Clock) -> ImageFiles:
    return ImageFiles(clock, bytes_max=100)


def parts(url: str) -> tuple[str, str, str]:
    query = parse_qs(urlsplit(url).query)
    return urlsplit(url).path, query["exp"][0], query["sig"][0]


def test_an_image_is_found_by_its_url_until_its_hour_is_over(files: ImageFiles, clock: Clock) -> None:
    name, expires_at, signature = parts(files.keep(b"image"))
    assert int(expires_at) == clock.now + FILE_SECONDS
    clock.now += FILE_SECONDS - 1
    assert files.find(name, expires_at, signature) == b"image"
    clock.now += 1
    assert files.find(name, expires_at, signature) is None


def test_a_signature_holds_for_its_name_and_time_alone(files: ImageFiles) -> None:
    name, expires_at, signature = parts(files.keep(b"image"))
    other, _, other_signature = parts(files.keep(b"other"))
    for broken in (
        (other, expires_at, signature),
        (name, expires_at, other_signature),
        (name, str(int(expires_at) + 1), signature),
        (name, expires_at, ""),
        (name, expires_at, "ä"),
        (name, "", signature),
    ):
        assert files.find(*broken) is None


def test_another_process_knows_none_of_them(files: ImageFiles, clock: Clock) -> None:
    assert ImageFiles(clock).find(*parts(files.keep(b"image"))) is None


def test_the_oldest_make_room(files: ImageFiles) -> None:
    urls = [parts(files.keep(b"x" * 40)) for _ in range(3)]
    assert [files.find(*url) is None for url in urls] == [True, False, False]
    files.keep(b"x" * 200)
    assert all(files.find(*url) is None for url in urls)


def test_what_expired_is_gone_without_anybody_asking(files: ImageFiles, clock: Clock) -> None:
    files.keep(b"x" * 60)
    clock.now += FILE_SECONDS
    files.forget_expired()
    assert parts(files.keep(b"y" * 100)) is not None
