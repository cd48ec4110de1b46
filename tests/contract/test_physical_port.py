"""What every PhysicalBackups keeps: the fake, the native engine and pgBackRest on real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from actions.backup.physical import BackupKind, BaseRequest, RecoveryTarget, ScratchRequest, ScratchState
from actions.errors import DrError, UserError, VerificationError
from actions.ports import PhysicalBackups, ProgressReport, Scratch, no_progress
from tests.fakes.history import with_history
from tests.fakes.physical import MemoryPhysical
from tests.fakes.physical_world import FAR, with_two_buckets
from tests.fakes.s3 import MemoryObjects
from tests.fixtures.physical import Past
from tests.pgbackrest_world import SERVER as ARCHIVED_SERVER
from tests.pgbackrest_world import PgBackRestWorld
from tests.physical_world import BUCKET, SERVER, PhysicalWorld

MARK = "drbot:scratch:contract"


@dataclass
class World:
    port: PhysicalBackups
    scratch: Scratch
    server: str
    newest: str  # the newest full backup
    between: datetime  # a moment that the window holds
    real: PhysicalWorld | None = None
    pgbackrest: PgBackRestWorld | None = None

    async def take(self, backup: str, kind: BackupKind = BackupKind.FULL, parent: str | None = None) -> None:
        if self.real is not None:
            await self.real.take(backup, kind, parent)
        else:
            request = BaseRequest(id=backup, server=self.server, kind=kind, parent=parent)
            await self.port.take(request, no_progress)

    def damage(self, backup: str) -> None:
        """Make the backup unusable, so that the catalogue tells."""
        if self.pgbackrest is not None:
            self.pgbackrest.denounce(backup)
        elif self.real is not None:
            objects = self.real.objects.buckets[BUCKET]  # type: ignore[attr-defined]  # the fake that the world is made of
            for key in [key for key in objects if key.endswith(f"/{backup}/base.age")]:
                del objects[key]
        else:
            assert isinstance(self.port, MemoryPhysical)
            self.port.spoil(self.server, backup, f"The object of base backup `{backup}` is missing.")

    def request(self, **changes: object) -> ScratchRequest:
        values = {"id": "s1", "server": self.server, "target": RecoveryTarget(time=self.between), "mark": MARK}
        return ScratchRequest.model_validate(values | changes)


ARCHIVED = pytest.param("pgbackrest", marks=[pytest.mark.integration, pytest.mark.xdist_group("pgbackrest")])


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration), ARCHIVED])
async def world(request: pytest.FixtureRequest, server_directory: Path) -> AsyncIterator[World]:
    if request.param == "fake":
        memory = with_history()
        commits = memory.physical.history["primary"].commits
        yield World(memory.physical, memory.scratch, "primary", "base-new", commits[-2].at)
        return
    if request.param == "pgbackrest":
        backed_up: PgBackRestWorld = request.getfixturevalue("backed_up")
        async with backed_up.borrowed(server_directory) as other:
            usable = [entry for entry in await other.engine.catalogue(ARCHIVED_SERVER) if entry.problem is None]
            newest = next(entry.manifest.id for entry in usable if entry.manifest.kind is BackupKind.FULL)
            between = other.moment_between()
            yield World(other.engine, other.scratch, ARCHIVED_SERVER, newest, between, pgbackrest=other)
        return
    past: Past = request.getfixturevalue("past")
    real = past.anew(server_directory)
    yield World(real.engine, real.scratch, SERVER, "full", past.commits[4].after, real)


async def test_the_catalogue_is_newest_first_and_hides_nothing(world: World) -> None:
    entries = await world.port.catalogue(world.server)
    ends = [entry.manifest.finished_at for entry in entries]
    assert ends == sorted(ends, reverse=True)
    assert all(entry.problem is None for entry in entries)
    world.damage(world.newest)
    found = {entry.manifest.id: entry.problem for entry in await world.port.catalogue(world.server)}
    assert set(found) == {entry.manifest.id for entry in entries}
    assert world.newest in (found[world.newest] or "")
    with pytest.raises(VerificationError):
        await world.port.verify(world.server, world.newest, no_progress)
    with pytest.raises(VerificationError):
        await world.port.restore(world.request(backup=world.newest), no_progress)
    assert list(await world.scratch.instances()) == []


async def test_a_backup_is_made_once_and_an_incremental_names_its_parent(world: World) -> None:
    await world.take("b-full")
    first = (await world.port.catalogue(world.server))[0]
    assert (first.manifest.id, first.manifest.kind, first.manifest.parent) == ("b-full", BackupKind.FULL, None)
    await world.take("b-full")
    assert (await world.port.catalogue(world.server))[0] == first
    await world.take("b-next", BackupKind.INCREMENTAL)
    second = (await world.port.catalogue(world.server))[0]
    assert (second.manifest.id, second.manifest.parent) == ("b-next", "b-full")
    with pytest.raises(UserError, match="no base backup `nothing`"):
        await world.take("b-odd", BackupKind.INCREMENTAL, "nothing")
    world.damage("b-full")
    with pytest.raises(VerificationError):
        await world.take("b-bad", BackupKind.INCREMENTAL, "b-full")


async def test_a_verification_is_kept_and_reported(world: World) -> None:
    reports: list[ProgressReport] = []
    entry = await world.port.verify(world.server, world.newest, reports.append)
    assert entry.verified_at is not None
    assert reports[-1].done == reports[-1].total
    kept = {each.manifest.id: each.verified_at for each in await world.port.catalogue(world.server)}
    assert kept[world.newest] == entry.verified_at
    with pytest.raises(UserError, match="no base backup `nothing`"):
        await world.port.verify(world.server, "nothing", no_progress)


async def test_a_restore_leaves_a_stopped_instance_and_a_rerun_finds_it(world: World) -> None:
    reports: list[ProgressReport] = []
    restored = await world.port.restore(world.request(), reports.append)
    assert restored.reached_at is not None
    assert restored.reached_at <= world.between
    assert (restored.id, restored.checked_pages) == ("s1", True)
    facts = await world.scratch.find("s1")
    assert facts is not None
    assert (facts.state, facts.mark, facts.restored) == (ScratchState.STOPPED, MARK, restored)
    assert reports
    assert await world.port.restore(world.request(), no_progress) == restored


async def test_a_moment_before_all_backups_is_refused(world: World) -> None:
    early = RecoveryTarget(time=world.between - timedelta(days=365))
    with pytest.raises(UserError):
        await world.port.restore(world.request(target=early), no_progress)
    assert list(await world.scratch.instances()) == []


async def test_the_window_holds_what_can_be_reached(world: World) -> None:
    (window,) = await world.port.windows(world.server)
    assert window.oldest is not None
    assert window.newest is not None
    assert window.oldest <= world.between <= window.newest
    assert window.fulls >= 1
    assert window.gaps == ()


async def test_pins_and_expiry(world: World) -> None:
    await world.port.pin(world.server, world.newest, reason="evidence of incident 7")
    pinned = {entry.manifest.id: entry.pinned for entry in await world.port.catalogue(world.server)}
    assert pinned[world.newest] == "evidence of incident 7"
    await world.port.pin(world.server, world.newest, reason="")
    assert all(entry.pinned == "" for entry in await world.port.catalogue(world.server))
    with pytest.raises(DrError):
        await world.port.pin(world.server, "nothing", reason="x")
    expiry = await world.port.expiry(world.server)
    assert expiry.backups == ()
    before = await world.port.catalogue(world.server)
    await world.port.expire(world.server, expiry)
    assert await world.port.catalogue(world.server) == before


async def test_one_backup_is_deleted_by_name_unless_it_is_needed(world: World) -> None:
    await world.take("b-full")
    await world.take("b-next", BackupKind.INCREMENTAL)
    with pytest.raises(UserError, match="`b-next` rests on base backup `b-full`"):
        await world.port.remove(world.server, "b-full")
    await world.port.pin(world.server, "b-next", reason="case 4711")
    with pytest.raises(UserError, match="is pinned: case 4711"):
        await world.port.remove(world.server, "b-next")
    await world.port.pin(world.server, "b-next", reason="")

    for _ in range(2):
        await world.port.remove(world.server, "b-next")
    world.damage("b-full")
    await world.port.remove(world.server, "b-full")

    left = {entry.manifest.id for entry in await world.port.catalogue(world.server)}
    assert not left & {"b-full", "b-next"}
    assert world.newest in left


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
async def two(request: pytest.FixtureRequest, server_directory: Path) -> World:
    """The same where each base backup is to be in a second bucket as well, and none is there yet."""
    if request.param == "fake":
        memory = with_two_buckets()
        return World(memory.physical, memory.scratch, "primary", "base-full", memory.clock.now())
    past: Past = request.getfixturevalue("past")
    real = past.anew(server_directory)
    assert isinstance(real.objects, MemoryObjects)
    real.objects.buckets[FAR] = {}
    changes: dict[str, object] = {"copy_bucket": FAR}
    real = replace(real, policy_changes=changes)
    return World(real.engine, real.scratch, SERVER, "full", past.commits[4].after, real)


async def test_what_lacks_in_the_second_bucket_is_told_and_brought_there_once(two: World) -> None:
    before = {entry.manifest.id for entry in await two.port.catalogue(two.server)}
    left = await two.port.uncopied(two.server)
    assert {backup: tuple(buckets) for backup, buckets in left.backups.items()} == dict.fromkeys(before, (FAR,))
    assert next(iter(left.backups)) == two.newest  # what nothing can be restored without goes first
    assert (left.complete, dict(left.silent), dict(left.spoiled)) == (False, {}, {})

    reports: list[ProgressReport] = []
    assert set(await two.port.copy(two.server, two.newest, reports.append)) == before
    assert reports
    assert (await two.port.uncopied(two.server)).complete
    assert {len(entry.whole_in) for entry in await two.port.catalogue(two.server)} == {2}
    assert list(await two.port.copy(two.server, two.newest, no_progress)) == []
    with pytest.raises(UserError, match="no base backup `nothing`"):
        await two.port.copy(two.server, "nothing", no_progress)

    await two.take("b-new")
    assert dict((await two.port.uncopied(two.server)).backups) == {"b-new": (FAR,)}


async def test_an_engine_with_one_bucket_lacks_nothing(world: World) -> None:
    assert (await world.port.uncopied(world.server)).complete


async def test_a_server_without_base_backups(world: World) -> None:
    with pytest.raises(UserError, match="no base backup for server"):
        await world.port.catalogue("nowhere")
