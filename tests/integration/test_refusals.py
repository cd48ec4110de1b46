"""Dumps that must not be trusted, disks that are full, worlds that moved: a clear sentence, production untouched."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pyrage
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg import sql

from actions.backup.manifest import SignedManifest
from bot.demo.plan import BUCKET
from bot.services.cards import PlanCard
from tests.fixtures.world import LEDGER, LONGEST, End, FaultWorld
from tests.nasty_database import NAME as NASTY

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.xdist_group("faults"),
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="session"),
]


class Stored:
    """One backup of the ledger in the bucket, to be tampered with."""

    def __init__(self, world: FaultWorld, backup: str) -> None:
        self._client = world.objects.client()
        self.backup = backup
        self.prefix = f"backups/dumps/{LEDGER}/{backup}/"
        self._copies = world.var / "copies"

    def read(self, name: str) -> bytes:
        return self._client.get_object(Bucket=BUCKET, Key=self.prefix + name)["Body"].read()

    def write(self, name: str, body: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=self.prefix + name, Body=body)

    def remove(self) -> None:
        for name in ("manifest.json", "dump.age"):
            self._client.delete_object(Bucket=BUCKET, Key=self.prefix + name)

    def flip_a_byte(self) -> None:
        body = bytearray(self.read("dump.age"))
        body[len(body) // 2] ^= 0x01
        self.write("dump.age", bytes(body))

    def cut(self) -> None:
        """In the local copy as well, which would do instead."""
        self.write("dump.age", self.read("dump.age")[:-100])
        for local in self._local("dump.age"):
            local.rename(local.with_suffix(".whole"))
            local.write_bytes(local.with_suffix(".whole").read_bytes()[:-100])

    def mend(self) -> None:
        """The local copy as it was."""
        for local in self._local("dump.whole"):
            local.replace(local.with_suffix(".age"))

    def _local(self, name: str) -> list[Path]:
        return [path for path in self._copies.rglob(name) if path.parent.name == self.backup]

    def forge(self) -> None:
        """A manifest of our own about the same object, well formed and signed by a key of our own."""
        manifest = SignedManifest.model_validate_json(self.read("manifest.json")).manifest
        forged = SignedManifest.sign(manifest, Ed25519PrivateKey.generate())
        self.write("manifest.json", forged.model_dump_json().encode())


@pytest_asyncio.fixture(loop_scope="session")
async def stored(world: FaultWorld) -> AsyncIterator[Stored]:
    """A backup beside the world's own, to be harmed; whole again afterwards, for it may be the newest."""
    found = Stored(world, await world.second(LEDGER))
    whole = {name: found.read(name) for name in ("manifest.json", "dump.age")}
    yield found
    found.mend()
    for name, body in whole.items():
        found.write(name, body)


async def untouched(world: FaultWorld, card: PlanCard, oid: int) -> None:
    """Production is the same database, open, and nothing of the run is left beside it."""
    assert (await world.databases())[LEDGER] == oid
    async with await psycopg.AsyncConnection.connect(world.production.dsn(LEDGER)) as connection:
        row = await (await connection.execute("SELECT count(*) FROM books.entry")).fetchone()
    assert row == (20_000,)
    assert await world.set_aside(card) == []
    assert await world.leftovers() == []
    steps = {item.step for item in await world.journal(card)}
    assert steps <= {0}


# ---------------------------------------------------------------- dumps that must not be trusted


async def test_flipped_byte_is_found_before_production_is_touched(world: FaultWorld, stored: Stored) -> None:
    oid = (await world.databases())[LEDGER]
    stored.flip_a_byte()
    card = await world.restoring(LEDGER, backup=stored.backup)
    end = await world.ended(card)
    assert end.state == "failed"
    assert "is not what was stored" in end.message or "do not have the size and SHA-256" in end.message
    assert stored.backup in end.message
    await untouched(world, card, oid)


@pytest.mark.parametrize(("harm", "word"), [("cut", "bytes, its manifest says"), ("forge", "does not trust")])
async def test_truncated_object_and_forged_manifest_cannot_be_planned(
    world: FaultWorld, stored: Stored, harm: str, word: str
) -> None:
    getattr(stored, harm)()
    said = await world.refused("restore.dump", typed=LEDGER, database=LEDGER, backup=stored.backup)
    assert word in said
    # Without a name another one is taken.
    card = await world.planned("restore.dump", typed=LEDGER, database=LEDGER)
    assert stored.backup not in card.summary


@pytest.mark.parametrize(("harm", "word"), [("cut", "bytes, its manifest says"), ("forge", "does not trust")])
async def test_harm_after_the_plan_was_made_stops_the_run(
    world: FaultWorld, stored: Stored, harm: str, word: str
) -> None:
    oid = (await world.databases())[LEDGER]
    card = await world.planned("restore.dump", typed=LEDGER, database=LEDGER, backup=stored.backup)
    getattr(stored, harm)()
    await world.approve(card)
    end = await world.ended(card)
    assert end.state == "stale"
    assert word in end.message
    await untouched(world, card, oid)


async def test_wrong_identity(world: FaultWorld) -> None:
    oid = (await world.databases())[LEDGER]
    right = world.keys.identity.read_text()
    world.keys.identity.write_text(f"{pyrage.x25519.Identity.generate()}\n")
    try:
        card = await world.restoring(LEDGER)
        end = await world.ended(card)
    finally:
        world.keys.identity.write_text(right)
    assert end.state == "failed"
    assert "cannot open backup" in end.message
    assert "AGE-SECRET-KEY" not in end.message
    await untouched(world, card, oid)


# ---------------------------------------------------------------- the world moved


async def test_backup_is_deleted_after_the_plan_was_made(world: FaultWorld, stored: Stored) -> None:
    oid = (await world.databases())[LEDGER]
    card = await world.planned("restore.dump", typed=LEDGER, database=LEDGER, backup=stored.backup)
    stored.remove()
    await world.approve(card)
    assert await world.ended(card) == End("stale", f"Backup `{stored.backup}` is no longer in the catalogue.")
    await untouched(world, card, oid)


async def test_database_is_made_anew_after_the_plan_was_made(world: FaultWorld) -> None:
    old = (await world.databases())[LEDGER]
    card = await world.planned("restore.dump", typed=LEDGER, database=LEDGER)
    await world.make_ledger()
    new = (await world.databases())[LEDGER]
    await world.approve(card)
    end = await world.ended(card)
    assert end.state == "stale"
    assert f"has oid {new}" in end.message
    assert f"has oid {old}" in end.message
    await untouched(world, card, new)


async def test_two_restores_of_one_database_never_overlap(world: FaultWorld) -> None:
    await world.working(2)
    oid = (await world.databases())[LEDGER]
    first = await world.planned("restore.dump", typed=LEDGER, database=LEDGER)
    second = await world.planned("restore.dump", typed=LEDGER, database=LEDGER)
    await asyncio.gather(world.approve(first), world.approve(second))
    ends = {card.plan_id: await world.ended(card) for card in (first, second)}
    assert sorted(end.state for end in ends.values()) == ["stale", "succeeded"]
    [stale] = [end for end in ends.values() if end.state == "stale"]
    assert f"signed was that it has oid {oid}" in stale.message
    overlaps = await world.remembered(
        "SELECT count(*) FROM run a JOIN run b ON a.id < b.id"
        " AND tstzrange(a.started_at, a.ended_at) && tstzrange(b.started_at, b.ended_at)"
        " WHERE a.id = ANY(%s) AND b.id = ANY(%s)",
        list(ends),
        list(ends),
    )
    assert overlaps == [(0,)]
    assert [await world.set_aside(card) != [] for card in (first, second)].count(True) == 1
    assert await world.leftovers() == []


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", [NASTY, LONGEST], ids=["quotes", "63 bytes"])
async def test_names_with_quotes_spaces_and_unicode(world: FaultWorld, name: str) -> None:
    oid = (await world.databases())[name]
    before = await contents(world, name)
    async with await psycopg.AsyncConnection.connect(world.production.dsn(name), autocommit=True) as connection:
        await connection.execute("CREATE TABLE public.harm (x int)")
    card = await world.restoring(name)
    assert await world.ended(card) == End("succeeded", "")
    assert await contents(world, name) == before
    [aside] = await world.set_aside(card)
    assert (await world.databases())[aside] == oid
    assert len(aside.encode()) <= 63
    assert await world.leftovers() == []


async def contents(world: FaultWorld, name: str) -> list[tuple[str, int]]:
    """Every logged table of the database with its rows: a crash of the server empties the others."""
    tables = """
        SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'r' AND c.relpersistence = 'p'
           AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1, 2
    """
    found = []
    async with await psycopg.AsyncConnection.connect(world.production.dsn(name)) as connection:
        for place in await (await connection.execute(tables)).fetchall():
            query = sql.SQL("SELECT count(*) FROM ONLY {}").format(sql.Identifier(*place))
            row = await (await connection.execute(query)).fetchone()
            assert row is not None
            found.append((".".join(place), int(row[0])))
    return found


# ---------------------------------------------------------------- full disks


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A disk of 64 KiB at the place. Skips where this account may not mount one."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no right to mount a small disk: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


async def test_spool_disk_is_full(world: FaultWorld) -> None:
    oid = (await world.databases())[LEDGER]
    with small_disk(world.var / "jobs"):  # every job spools into its own folder
        card = await world.restoring(LEDGER)
        end = await world.ended(card)
        await untouched(world, card, oid)
    assert end.state == "failed"
    assert f"The disk of `{world.var / 'jobs'}/" in end.message
    assert "/spool` has" in end.message
    assert "Free space there" in end.message


async def test_disk_of_the_local_copies_is_full(world: FaultWorld) -> None:
    known = world.stored(LEDGER)
    with small_disk(world.var / "copies"):
        card = await world.planned("backup.dump", database=LEDGER)
        end = await world.ended(card)
        assert await world.leftovers() == []
    assert end.state == "failed"
    assert "is full. Free space there, then try again." in end.message
    assert [key for key in world.stored(LEDGER) if key.endswith("manifest.json")] == [
        key for key in known if key.endswith("manifest.json")
    ]
    assert world.half_uploads() == 0


async def test_disk_of_the_jobs_is_full(world: FaultWorld) -> None:
    oid = (await world.databases())[LEDGER]
    with small_disk(world.var / "jobs"):
        (world.var / "jobs" / "ballast").write_bytes(b"\0" * 60 * 1024)
        card = await world.restoring(LEDGER)
        end = await world.ended(card)
        await untouched(world, card, oid)
    assert end.state == "failed"
    assert f"`{world.var / 'jobs'}` cannot be written (No space left on device)" in end.message
    assert "Free space there" in end.message
