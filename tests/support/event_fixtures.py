"""Stored events of every version of every topic, and the shape that each version promises.

``tests/fixtures/events/<topic>/v<N>.json`` has the exact bytes of one stored event, ``v<N>.shape.json`` its members
with their types. Such bytes stand in logs and under signatures, so these files are never edited: an event that changes
gets a new version, an upcast from the one before, and two new files, which ``make event-fixtures`` writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec

from domain import events
from domain.eventsourced import Actor, DomainEvent

FOLDER = Path(__file__).parents[1] / "fixtures" / "events"
MOMENT = datetime(2026, 5, 1, 12, 0, 0, 250_001, tzinfo=UTC)


class StoredEvent(NamedTuple):
    topic: str
    version: int
    state: bytes


def stored_events(folder: Path = FOLDER) -> list[StoredEvent]:
    """Every fixture, oldest versions first."""
    found = [
        StoredEvent(file.parent.name, int(file.stem.removeprefix("v")), file.read_bytes())
        for file in folder.glob("*/v*.json")
        if not file.stem.endswith(".shape")
    ]
    return sorted(found)


def current_of(topic: str) -> bytes:
    """The stored event of a topic's newest version."""
    return max(stored for stored in stored_events() if stored.topic == topic).state


# --- shapes ----------------------------------------------------------------------------------------------------------


def shape_of(kind: Any) -> Any:
    """What is stored for a type: a struct as its members in their order, a list in brackets, a map in braces."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = get_type_hints(kind)
        return {field.encode_name: shape_of(hints[field.name]) for field in msgspec.structs.fields(kind)}
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple:
        return [shape_of(inner[0])]
    if origin is dict:
        return {f"<{shape_of(inner[0])}>": shape_of(inner[1])}
    if origin in (Union, UnionType):
        return " | ".join(str(shape_of(one)) for one in inner)
    return "null" if kind is NoneType else kind.__name__


def shape_text(cls: type[DomainEvent]) -> str:
    return json.dumps(shape_of(cls), indent=2) + "\n"


# --- what is missing or changed --------------------------------------------------------------------------------------


def problems(folder: Path = FOLDER) -> Iterator[str]:
    """Everything that keeps an old log from being read, in words that say what to do."""
    for cls in events.EVENT_CLASSES:
        for version in range(1, cls.SCHEMA_VERSION + 1):
            if not _file(folder, cls, version, ".json").exists():
                yield f"{cls.TOPIC} version {version} has no fixture"
        for version in range(1, cls.SCHEMA_VERSION):
            if (cls.TOPIC, version) not in events.UPCASTS:
                yield f"{cls.TOPIC} has no upcast from version {version}"
        shape = _file(folder, cls, cls.SCHEMA_VERSION, ".shape.json")
        if shape.exists() and shape.read_text() != shape_text(cls):
            yield f"{cls.TOPIC} has other members than version {cls.SCHEMA_VERSION} promises: give it a new version"
    known = {(cls.TOPIC, version) for cls in events.EVENT_CLASSES for version in range(1, cls.SCHEMA_VERSION + 1)}
    for topic, version, _ in stored_events(folder):
        if (topic, version) not in known:
            yield f"{topic} version {version} was stored once and is known no more"
    newest = {(cls.TOPIC, cls.SCHEMA_VERSION) for cls in events.EVENT_CLASSES}
    for topic, version in sorted(events.UPCASTS.keys() - (known - newest)):
        yield f"there is an upcast from {topic} version {version}, which has no next one"


def _file(folder: Path, cls: type[DomainEvent], version: int, suffix: str) -> Path:
    return folder / cls.TOPIC / f"v{version}{suffix}"


# --- writing what is missing -----------------------------------------------------------------------------------------


def example_of(name: str, kind: Any) -> Any:
    """A plausible value for a member, the same each time."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = get_type_hints(kind)
        return kind(**{field.name: example_of(field.name, hints[field.name]) for field in msgspec.structs.fields(kind)})
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple:
        return (example_of(name, inner[0]),)
    if origin is dict:
        return {"one": example_of("one", inner[-1])}
    if origin in (Union, UnionType):
        return example_of(name, inner[0])
    plain: dict[Any, Any] = {
        UUID: UUID(int=0x1234),
        datetime: MOMENT,
        str: name.replace("_", "-"),
        int: 100 + len(name),
        bool: False,
        NoneType: None,
    }
    return plain[kind]


def write_missing(folder: Path = FOLDER) -> list[Path]:
    """Write the files of current versions that are not there; nothing that exists is touched."""
    written: list[Path] = []
    for cls in events.EVENT_CLASSES:
        hints = get_type_hints(cls)
        members = {name: example_of(name, hints[name]) for name in cls.__struct_fields__}
        members |= {"originator_version": 1, "schema_version": cls.SCHEMA_VERSION, "actor": Actor("consumer", "ada")}
        for suffix, content in ((".json", events.encode(cls(**members))), (".shape.json", shape_text(cls).encode())):
            file = _file(folder, cls, cls.SCHEMA_VERSION, suffix)
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
                written.append(file)
    return written


if __name__ == "__main__":
    for file in write_missing():
        print(f"wrote {file.relative_to(FOLDER)}")
    for problem in problems():
        print(problem)
