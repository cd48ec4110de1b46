"""The record under load: appends from several writers, how soon they are sealed, how long a verification
of a million entries takes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import psycopg
import pytest
import pytest_asyncio
from sqlalchemy import text

from actions.adapters.clock import SystemClock
from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.witness_file import FileWitness
from benchmarks.table import milliseconds
from bot.services.record.export import write_log
from bot.services.record.sealer import EVERY
from bot.verify import checkpoints, database, export
from bot.verify.findings import Verdict
from bot.verify.sources import checkpoints as lines_of
from storage.session import Database
from tests.fixtures.ledger import LedgerForTests

pytestmark = pytest.mark.bench

WRITERS = 4
SECONDS = 15
ENTRIES = int(os.environ.get("ENTRIES", "1000000"))


@pytest_asyncio.fixture
async def durable(server_directory: Path) -> AsyncIterator[Database]:
    """A server of its own that writes to the disk before it answers."""
    async with EmbeddedPostgres(server_directory / "durable", settings={"max_wal_size": "4GB"}) as server:
        made = Database(server.dsn())
        await made.migrate()
        yield made
        await made.dispose()


async def test_appends_are_sealed_soon(durable: Database, tmp_path: Path) -> None:
    """Every append is a transaction of its own. Delay: from the leaf's time to the time of the checkpoint over it."""
    ledger = LedgerForTests(durable, SystemClock())
    witness = FileWitness("file", tmp_path / "witness.jsonl")
    ledger.kept.append(witness)  # type: ignore[arg-type]
    ledger.every = EVERY
    written = 0

    async def write() -> None:
        nonlocal written
        statement = "INSERT INTO timeline_entry (kind, actor, occurred_at, text) VALUES ('note', 'Olivia', now(), %s)"
        async with await psycopg.AsyncConnection.connect(durable.url, autocommit=True) as connection:
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                await connection.execute(statement, ["the vendor says that the disk of the primary is lost"])
                written += 1

    begun = time.monotonic()
    async with ledger.sealing():
        await asyncio.gather(*(write() for _ in range(WRITERS)))
        rate = written / (time.monotonic() - begun)
        async with asyncio.timeout(30):
            while not await ledger.is_up_to_date(witness):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    async with durable.session() as session:
        query = """
            SELECT extract(epoch FROM c.at - l.at)::float8 FROM sealed_leaf s JOIN leaf l ON l.id = s.leaf_id
            JOIN LATERAL (SELECT at FROM checkpoint WHERE size > s.position ORDER BY size LIMIT 1) c ON true
            WHERE l.kind = 'timeline_entry'
        """
        delays = list((await session.execute(text(query))).scalars())
    await ledger.as_clock.dispose()
    print(f"appends from {WRITERS} writers: {rate:.0f} a second, {written} in all, limit 1000")
    milliseconds("sealed after", delays, 2000)
    assert len(delays) == written
    assert rate >= 1000
    assert max(delays) < 2


async def test_a_million_entries_are_verified(durable: Database, tmp_path: Path) -> None:
    ledger = LedgerForTests(durable, SystemClock())
    path = tmp_path / "witness.jsonl"
    witness = FileWitness("file", path)
    async with durable.session() as session:
        await session.execute(
            text(
                "INSERT INTO timeline_entry (kind, actor, occurred_at, text, data) "
                "SELECT 'note', 'Olivia', now(), 'the vendor says that disk ' || n || ' of the primary is lost', "
                "jsonb_build_object('n', n, 'plan', md5(n::text)) FROM generate_series(1, :entries) n"
            ),
            {"entries": ENTRIES},
        )
    sealer = ledger.sealer()
    begun = time.monotonic()
    while await sealer.seal():
        pass
    print(f"sealed {ENTRIES} entries at once: {time.monotonic() - begun:.1f} s")
    await sealer.publish(witness, after=0)
    log = tmp_path / "log.jsonl"
    with log.open("w") as stream:
        begun = time.monotonic()
        await write_log(ledger.as_clock, stream.write)
        print(f"exported: {time.monotonic() - begun:.1f} s, {log.stat().st_size / 1e6:.0f} MB")
    await ledger.as_clock.dispose()
    async with durable.engine.connect() as connection:
        await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(text("VACUUM ANALYZE"))
    for name in ("database", "export"):
        begun, worked = time.monotonic(), time.process_time() + await _server_worked(durable)
        verdict = await asyncio.to_thread(_verified, name, ledger, durable.url, path, log)
        taken = time.monotonic() - begun
        worked = time.process_time() + await _server_worked(durable) - worked
        print(
            f"verified {verdict.entries} entries of the {name}: {taken:.1f} s, limit 20 s for a million; "
            f"{worked:.1f} s of processor, load {os.getloadavg()[0]:.1f}"
        )
        assert verdict.good, list(verdict.lines())
        assert verdict.entries == verdict.witnessed == ENTRIES + 1
        assert taken < 20 * ENTRIES / 1_000_000


async def _server_worked(database: Database) -> float:
    """Seconds of processor of the server's sessions that have ended."""
    async with database.session() as session:
        directory = str(await session.scalar(text("SHOW data_directory")))
    pid = int(await asyncio.to_thread(lambda: Path(directory, "postmaster.pid").read_text().split()[0]))
    times = psutil.Process(pid).cpu_times()
    return float(times.children_user + times.children_system)


def _verified(name: str, ledger: LedgerForTests, url: str, witness: Path, log: Path) -> Verdict:
    verdict = Verdict()
    key = checkpoints.public_key(ledger.public)
    witnessed = checkpoints.read(lines_of(str(witness)), [key], verdict)
    if name == "database":
        database.verify(url, witnessed, verdict)
    else:
        export.verify(log, witnessed, [key], verdict)
    return verdict
