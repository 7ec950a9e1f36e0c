"""Where a coordinator gets the key that consumers seal to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.settings import Settings
from api.bootstrap import rotate_sealing_key, transport_keys_of
from domain.errors import InvalidRequest

MNEMONIC = "abandon " * 11 + "about"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def settings_of(data_dir: Path, **values: Any) -> Settings:
    return Settings(data_dir=data_dir, **values)


def test_a_developer_gets_a_key_that_stays(data_dir: Path) -> None:
    first, again = transport_keys_of(settings_of(data_dir)), transport_keys_of(settings_of(data_dir))
    assert first is not None
    assert again is not None
    assert first.current.kid == again.current.kid
    assert (data_dir / "sealing.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("values", [{"environment": "production"}, {"database_url": "postgresql://x"}])
def test_nothing_is_made_where_others_would_need_the_same(data_dir: Path, values: dict[str, Any]) -> None:
    assert transport_keys_of(settings_of(data_dir, **values)) is None
    assert not data_dir.exists()


def test_a_key_that_an_operator_made_is_used_in_production(data_dir: Path) -> None:
    settings = settings_of(data_dir, environment="production")
    made = rotate_sealing_key(settings)
    keys = transport_keys_of(settings)
    assert keys is not None
    assert keys.current.kid == made.kid


def test_words_are_enough(data_dir: Path) -> None:
    keys = transport_keys_of(settings_of(data_dir, database_url="postgresql://x", mnemonic=MNEMONIC))
    assert keys is not None
    assert keys.current.kid == "96293a4d0473cb36"
    assert MNEMONIC not in repr(settings_of(data_dir, mnemonic=MNEMONIC))


@pytest.mark.parametrize(
    "values",
    [
        {"environment": "production", "sealing_key_file": "missing.key"},
        {"mnemonic": "three words only"},
        {"mnemonic": MNEMONIC, "previous_mnemonic": "three words only"},
    ],
)
def test_a_key_that_cannot_be_used_ends_the_start(data_dir: Path, values: dict[str, Any]) -> None:
    if "sealing_key_file" in values:
        values = values | {"sealing_key_file": data_dir / "missing.key"}
    with pytest.raises(InvalidRequest):
        transport_keys_of(settings_of(data_dir, **values))


def test_what_comes_from_words_is_not_rotated_in_a_file(data_dir: Path) -> None:
    with pytest.raises(InvalidRequest, match="SEALING_KEY_FILE"):
        rotate_sealing_key(settings_of(data_dir, mnemonic=MNEMONIC))
