"""checkpoints: what the log has signed. Whoever holds the tree's tracking row is the one who may sign."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from domain.transparency import checkpoint, merkle, note, succession
from domain.transparency.checkpoint import Checkpoint
from domain.transparency.merkle import ProofRejected
from domain.transparency.note import MalformedNote, Signer, VerifierKey
from projections import transparency
from projections.transparency import Connect, Connection

LOCK_TREE = "SELECT position FROM projection_tracking WHERE name = 'transparency' FOR UPDATE SKIP LOCKED"
NEWEST = "SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1"
OF_SIZE = "SELECT note FROM checkpoints WHERE size = %s"
INSERT = "INSERT INTO checkpoints (size, root, signed_at, note) VALUES (%s, %s, %s, %s)"
DATABASE_TIME = "SELECT clock_timestamp()"

KEYS = "SELECT verifier_key, announcement, announced_at, retired_at FROM checkpoint_keys ORDER BY announced_at, key_id"
INSERT_KEY = "INSERT INTO checkpoint_keys (key_id, verifier_key, announcement) VALUES (%s, %s, %s)"
RETIRE_KEY = "UPDATE checkpoint_keys SET retired_at = now() WHERE key_id = %s AND retired_at IS NULL"

CHANNEL = "checkpoint"
WISH = "SELECT pg_notify('checkpoint', '')"
"""Ask whoever follows the log to sign now."""


class CheckpointRefused(Exception):
    """Nothing was signed, because it would contradict what was signed before, or because of the keys."""


class Notary(Protocol):
    """Holds the private keys, and remembers outside of the database what it signed last."""

    def signers(self, *, may_create: bool) -> Sequence[Signer]:
        """The keys that sign now, the oldest first. Raises ValueError, with what to do, when they cannot be used."""
        ...

    def last_signed(self) -> str | None: ...

    def remember(self, signed: str) -> None:
        """Keep a note that is about to be published, durably."""
        ...


class PublishedKey(NamedTuple):
    """A public key as it is published; ``announcement`` is a note signed by it and by its predecessors."""

    key: VerifierKey
    announcement: str
    announced_at: datetime
    retired_at: datetime | None


def publish(connection: Connection, notary: Notary) -> str | None:
    """Sign the tree as it stands now, and return the note; None when there is nothing new, or somebody else is at it.

    The newest checkpoint, from the database as well as from the notary's own memory, must be a beginning of what is
    signed now. So no two roots are ever signed for one size, even when the database was rewritten or restored.

    Raises:
        CheckpointRefused: that does not hold, or the keys cannot be used.
        TreeDamaged: the stored tree has lost hashes.
    """
    with connection.transaction():
        locked = connection.execute(LOCK_TREE).fetchone()
        newest = newest_note(connection)
        if locked is None or locked[0] == (_read(newest).size if newest else 0):
            return None
        signers = published_signers(connection, notary)
        remembered = notary.last_signed()
        size = int(locked[0])
        [root] = transparency.roots(connection, [(0, size)])
        for known in (newest, remembered):
            if known is not None:
                _require_growth(connection, _read(known), size, root)
        if remembered is not None and _read(remembered).size == size:
            signed = remembered  # it was signed, and the database failed before it was published
        else:
            row = connection.execute(DATABASE_TIME).fetchone()
            assert row is not None
            made = Checkpoint(signers[0].key.name, size, root, row[0])
            signed = str(checkpoint.sign(made, signers))
            notary.remember(signed)
        connection.execute(INSERT, (size, root, _read(signed).signed_at, signed))
    return signed


def _require_growth(connection: Connection, known: Checkpoint, size: int, root: bytes) -> None:
    if known.size > size:
        raise CheckpointRefused(
            f"a checkpoint of {known.size} events was signed, but the log has {size}: "
            "it was cut, or an old copy was restored"
        )
    proof = transparency.roots(connection, merkle.consistency_ranges(known.size, size))
    try:
        merkle.verify_consistency(old_size=known.size, new_size=size, old_root=known.root, new_root=root, proof=proof)
    except ProofRejected:
        raise CheckpointRefused(
            f"the log of {size} events does not begin with the {known.size} events that were signed: it was rewritten"
        ) from None


def published_signers(connection: Connection, notary: Notary) -> Sequence[Signer]:
    """The notary's keys, all of them published; the first keys of a log are published here.

    Raises:
        CheckpointRefused: the keys cannot be used, or one is not a key of this log.
    """
    published = keys(connection)
    try:
        signers = notary.signers(may_create=not published)
    except ValueError as error:
        raise CheckpointRefused(str(error)) from None
    if not published:
        for signer in signers:
            connection.execute(INSERT_KEY, (signer.key.key_id.hex(), str(signer.key), ""))
        return signers
    active = {entry.key for entry in published if entry.retired_at is None}
    foreign = [signer.key for signer in signers if signer.key not in active]
    if foreign:
        raise CheckpointRefused(
            f"key {foreign[0].key_id.hex()} is not among the published keys of this log; "
            "use the published key file, or announce a key with 'darkbloomd audit announce-key'"
        )
    return signers


def _read(signed: str) -> Checkpoint:
    try:
        return checkpoint.read(note.parse(signed))
    except MalformedNote as error:
        raise CheckpointRefused(f"the last signed checkpoint cannot be read: {error}") from None


# --- keys ------------------------------------------------------------------------------------------------------------


def keys(connection: Connection) -> list[PublishedKey]:
    """Every key that this log ever published, the oldest first."""
    return [_key(row) for row in connection.execute(KEYS).fetchall()]


def announce(connection: Connection, signers: Sequence[Signer], successor: Signer) -> str:
    """Publish a successor, signed by the present keys and by itself. Returns the note."""
    signed = str(succession.announce(signers, successor))
    connection.execute(INSERT_KEY, (successor.key.key_id.hex(), str(successor.key), signed))
    return signed


def retire(connection: Connection, key: VerifierKey) -> bool:
    """Mark a key as one that signs no more; False when it is not one that does."""
    return connection.execute(RETIRE_KEY, (key.key_id.hex(),)).rowcount == 1


def _key(row: tuple[Any, ...]) -> PublishedKey:
    verifier_key, *rest = row
    return PublishedKey(note.parse_verifier_key(verifier_key), *rest)


# --- reading ---------------------------------------------------------------------------------------------------------


def newest_note(connection: Connection) -> str | None:
    row = connection.execute(NEWEST).fetchone()
    return str(row[0]) if row else None


class StoredCheckpoints:
    """The checkpoints for a gateway."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect

    async def note(self, size: int | None = None) -> str | None:
        """The newest signed checkpoint, or the one of exactly that size."""
        async with self._connect() as connection:
            if size is None:
                cursor = await connection.execute(NEWEST, prepare=True)
            else:
                cursor = await connection.execute(OF_SIZE, (size,), prepare=True)
            row = await cursor.fetchone()
        return str(row[0]) if row else None

    async def keys(self) -> list[PublishedKey]:
        async with self._connect() as connection:
            return [_key(row) for row in await (await connection.execute(KEYS)).fetchall()]

    async def wish(self) -> None:
        """Ask for a checkpoint now."""
        async with self._connect() as connection:
            await connection.execute(WISH)
