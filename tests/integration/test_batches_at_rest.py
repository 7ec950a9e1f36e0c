"""Files and batches in the database: who can read them, and who works on them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from uuid import UUID, uuid4

import psycopg
import pytest

from adapters.crypto.transport import KeyRing, TransportKey, TransportKeys
from adapters.postgres.batches import StoredBatches
from adapters.postgres.files import StoredFiles
from adapters.postgres.pool import make_async_pool
from domain import batches as rules
from domain.batches import BatchLost, Line
from domain.errors import Conflict, EncryptionUnavailable, KidMismatch
from domain.keys import Caller
from tests.unit.test_transport_keys import KEY

CREDENTIAL = "eigeninference-secret"
SECRET = b"the-secret-of-a-prompt"
CALLER = Caller("account", "key")
STRANGER = Caller("account", "another key of the account")


class Scene:
    def __init__(self, dsn: str, files: StoredFiles, batches: StoredBatches) -> None:
        self.dsn = dsn
        self.files = files
        self.batches = batches

    async def started(self, *lines: bytes) -> UUID:
        return await self.batches.create(
            CALLER,
            CREDENTIAL,
            endpoint="/v1/chat/completions",
            input_file_id="file-x",
            lines=lines or (SECRET,),
            errors=(),
            metadata={"m": SECRET.decode()},
        )

    def gateway(self) -> UUID:
        gateway_id = uuid4()
        self.run(
            "INSERT INTO gateways (gateway_id, internal_url, lease_until) VALUES (%s, '', now() + interval '1 hour')",
            gateway_id,
        )
        return gateway_id

    def run(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def everything(self) -> str:
        return str([self.run(f"SELECT t::text FROM {table} t") for table in ("files", "batches", "batch_lines")])


@pytest.fixture
async def scene(database: str) -> AsyncGenerator[Scene, None]:
    async with make_async_pool(database, size_max=3) as pool:
        yield Scene(database, StoredFiles(pool), StoredBatches(pool, TransportKeys(lambda: KeyRing(KEY))))


class TestFiles:
    async def test_only_the_key_that_uploaded_a_file_opens_it(self, scene: Scene) -> None:
        made = await scene.files.put(CALLER, CREDENTIAL, SECRET.decode(), SECRET)
        assert await scene.files.find(CALLER, CREDENTIAL, made.file_id) == made
        assert await scene.files.content(CALLER, CREDENTIAL, made.file_id) == SECRET
        assert await scene.files.find(STRANGER, CREDENTIAL, made.file_id) is None
        assert await scene.files.content(STRANGER, CREDENTIAL, made.file_id) is None
        assert not await scene.files.delete(STRANGER, made.file_id)
        with pytest.raises(ValueError, match="not sealed to this credential"):
            await scene.files.content(CALLER, "another secret", made.file_id)
        for form in (SECRET.decode(), SECRET.hex()):
            assert form not in scene.everything()

    async def test_a_key_has_so_many_files_and_no_more(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("adapters.postgres.files.FILES_MAX", 2)
        for _ in range(2):
            await scene.files.put(CALLER, CREDENTIAL, "a", b"x")
        with pytest.raises(Conflict):
            await scene.files.put(CALLER, CREDENTIAL, "a", b"x")
        await scene.files.put(STRANGER, CREDENTIAL, "a", b"x")

    async def test_a_file_past_its_time_is_not_there_and_then_gone(self, scene: Scene) -> None:
        made = await scene.files.put(CALLER, CREDENTIAL, "a", b"x")
        scene.run("UPDATE files SET expires_at = now() - interval '1 s'")
        assert await scene.files.find(CALLER, CREDENTIAL, made.file_id) is None
        await scene.batches.forget_old()
        assert scene.run("SELECT * FROM files") == []


class TestBatches:
    async def test_a_gateway_reads_the_lines_with_the_key_and_nobody_without(self, scene: Scene) -> None:
        batch_id = await scene.started(SECRET, b"second")
        [work] = await scene.batches.take(scene.gateway(), [], 5)
        assert (work.batch_id, work.account_id, work.key_id) == (batch_id, "account", "key")
        work.unlock()
        assert [line.text for line in await work.lines("waiting", 5)] == [SECRET, b"second"]
        for form in (SECRET.decode(), SECRET.hex()):
            assert form not in scene.everything()

    async def test_with_another_key_it_is_lost_and_without_one_there_are_no_batches(
        self, scene: Scene, database: str
    ) -> None:
        await scene.started()
        async with make_async_pool(database, size_max=2) as pool:
            other = StoredBatches(pool, TransportKeys(lambda: KeyRing(TransportKey(b"n" * 32))))
            [work] = await other.take(scene.gateway(), [], 5)
            with pytest.raises(KidMismatch):
                work.unlock()
            none = StoredBatches(pool, None)
            assert await none.take(scene.gateway(), [], 5) == []
            with pytest.raises(EncryptionUnavailable):
                await Scene(database, scene.files, none).started()

    async def test_two_living_gateways_never_have_the_same_batch(self, scene: Scene) -> None:
        batch_id = await scene.started(SECRET, b"second")
        one, other = scene.gateway(), scene.gateway()
        [work] = await scene.batches.take(one, [], 5)
        assert await scene.batches.take(other, [], 5) == []
        assert await scene.batches.take(one, [batch_id], 5) == []
        assert len(await scene.batches.take(one, [], 5)) == 1  # its own, after it let go of it
        scene.run("UPDATE gateways SET lease_until = now() - interval '1 s' WHERE gateway_id = %s", one)
        [mine] = await scene.batches.take(other, [], 5)
        work.unlock()
        mine.unlock()
        line, second = await mine.lines("waiting", 2)
        assert await mine.begin(line) == 1
        for change in (
            work.state(),
            work.begin(second),
            work.put_back(line),
            work.keep_draft(line, b"x"),
            work.finish(line, b"x", failed=False),
            work.end("completed"),
        ):
            with pytest.raises(BatchLost):
                await change
        await mine.keep_draft(line, b"draft")
        assert await mine.lines("running", 5) == [Line(1, 1, SECRET, b"draft")]

    async def test_a_line_is_begun_once_and_finished_once(self, scene: Scene) -> None:
        await scene.started()
        [work] = await scene.batches.take(scene.gateway(), [], 5)
        work.unlock()
        [line] = await work.lines("waiting", 1)
        assert await work.begin(line) == 1
        with pytest.raises(BatchLost):
            await work.begin(line)
        await work.put_back(line)
        assert await work.begin(line) == 2
        await work.finish(line, b"{}", failed=False)
        with pytest.raises(BatchLost):
            await work.finish(line, b"{}", failed=True)

    async def test_at_its_end_all_is_erased_but_what_the_consumer_alone_can_open(self, scene: Scene) -> None:
        batch_id = await scene.started(b"one", b"two", b"three")
        [work] = await scene.batches.take(scene.gateway(), [], 5)
        work.unlock()
        first, second, _ = await work.lines("waiting", 5)
        await work.finish(first, SECRET, failed=False)
        await work.finish(second, b"refused", failed=True)
        await work.end("cancelled")
        assert scene.run("SELECT 1 FROM batch_lines WHERE sealed IS NOT NULL OR draft IS NOT NULL") == []
        assert scene.run("SELECT wrapped_key, gateway_id FROM batches") == [(None, None)]
        batch = await scene.batches.find(CALLER, CREDENTIAL, batch_id)
        assert batch is not None
        assert (batch.total, batch.completed, batch.failed, batch.status) == (3, 1, 1, "cancelled")
        assert batch.output_file_id is not None
        assert batch.error_file_id is not None
        assert await scene.files.content(CALLER, CREDENTIAL, batch.output_file_id) == SECRET + b"\n"
        assert await scene.files.content(CALLER, CREDENTIAL, batch.error_file_id) == b"refused\n"
        file = await scene.files.find(CALLER, CREDENTIAL, batch.output_file_id)
        assert file is not None
        assert (file.size_bytes, file.purpose) == (len(SECRET) + 1, "batch_output")
        assert await scene.files.delete(CALLER, batch.output_file_id)
        assert scene.run("SELECT count(*) FROM batch_lines WHERE result IS NOT NULL") == [(1,)]
        assert await scene.batches.find(STRANGER, CREDENTIAL, batch_id) is None

    async def test_a_key_has_so_many_unfinished_batches_and_no_more(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("adapters.postgres.batches.BATCHES_MAX", 1)
        await scene.started()
        with pytest.raises(Conflict):
            await scene.started()

    async def test_old_batches_are_forgotten_with_their_files(self, scene: Scene) -> None:
        await scene.started()
        [work] = await scene.batches.take(scene.gateway(), [], 5)
        work.unlock()
        [line] = await work.lines("waiting", 5)
        await work.finish(line, b"{}", failed=False)
        await work.end("completed")
        await scene.batches.forget_old()
        assert len(scene.run("SELECT 1 FROM files")) == 1
        scene.run("UPDATE batches SET finished_at = now() - make_interval(secs => %s)", rules.FILE_SECONDS + 1)
        await scene.batches.forget_old()
        assert [scene.run(f"SELECT 1 FROM {table}") for table in ("files", "batches", "batch_lines")] == [[], [], []]
