"""What every PhysicalBackups keeps: the fake, and each engine on real servers, in its case of `physical_cases`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from actions.backup.physical import BackupKind, Place, PlaceRequest, RecoveryTarget, ScratchState
from actions.engines import engines
from actions.errors import DrError, UserError, VerificationError
from actions.ports import ProgressReport, no_progress
from tests.contract.physical_cases import CASES, FAKE, MARK, TWO_BUCKETS, World
from tests.fakes.physical_world import FAR

MARKS = {
    FAKE: (),
    **{name: (pytest.mark.integration, pytest.mark.xdist_group(name)) for name in ("pgbackrest", "folder")},
}


@pytest.fixture(params=[pytest.param(name, marks=MARKS.get(name, pytest.mark.integration)) for name in CASES])
async def world(request: pytest.FixtureRequest, server_directory: Path) -> AsyncIterator[World]:
    async with CASES[request.param](request, server_directory) as made:
        yield made


def test_every_engine_has_a_case() -> None:
    assert set(engines()) <= set(CASES)


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


async def test_where_a_replay_would_stop_is_told_with_what_was_committed_around_it(world: World) -> None:
    async def place(**target: object) -> Place:
        request = PlaceRequest(server=world.server, target=RecoveryTarget.model_validate(target))
        (found,) = await world.port.find_places(request, no_progress)
        return found

    told = await place(time=world.between)
    assert told.before_at is not None
    assert told.after_at is not None
    assert told.before_at <= world.between < told.after_at
    assert told.lost >= 1
    same = ("before_xid", "before_at", "after_xid", "after_at", "lost")
    by_xid = await place(xid=told.before_xid)
    by_lsn = await place(lsn=by_xid.lsn)
    for other in (by_xid, by_lsn):
        assert {name: getattr(other, name) for name in same} == {name: getattr(told, name) for name in same}
    assert (await place(xid=told.before_xid, inclusive=False)).lost == told.lost + 1
    nowhere = PlaceRequest(server=world.server, target=RecoveryTarget(name="no such point"))
    assert list(await world.port.find_places(nowhere, no_progress)) == []
    restored = await world.port.restore(world.request(), no_progress)
    assert restored.reached_at == told.before_at


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
    # None of these buckets has Object Lock, which is said; an engine that sets no holds says nothing.
    assert not any(
        hold.held or hold.lockable or hold.problem for hold in await world.port.holds(world.server, world.newest)
    )
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


@pytest.fixture(params=[pytest.param(name, marks=MARKS.get(name, pytest.mark.integration)) for name in TWO_BUCKETS])
async def two(request: pytest.FixtureRequest, server_directory: Path) -> AsyncIterator[World]:
    """The same where each base backup is to be in a second bucket as well, and none is there yet."""
    async with TWO_BUCKETS[request.param](request, server_directory) as made:
        yield made


def test_every_engine_that_copies_into_a_second_bucket_has_a_case() -> None:
    assert {engine.name for engine in engines().values() if not engine.one_bucket} <= set(TWO_BUCKETS)


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
