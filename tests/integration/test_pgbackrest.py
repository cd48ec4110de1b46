"""The pgBackRest engine on a real PostgreSQL 15: archive-push, full and diff to S3 over TLS, back to a transaction."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import psycopg
import pytest

from actions.adapters.clock import SystemClock
from actions.adapters.programs import run
from actions.backup.pgbackrest_archive import place_of
from actions.backup.pgbackrest_info import Stanza
from actions.backup.pgbackrest_keys import keys_of
from actions.backup.pgbackrest_tools import ExpireOrder
from actions.backup.physical import (
    SEGMENT,
    BackupKind,
    BaseRequest,
    Change,
    FindRequest,
    Lsn,
    PointRequest,
    RecoveryTarget,
    ScratchRequest,
    ScratchState,
)
from actions.backup.scratch_place import ScratchPlace
from actions.catalog.promote import Promote, PromoteParams
from actions.contract import Step
from actions.errors import UserError, VerificationError
from actions.ports import Ports, no_progress
from actions.runner import Outcome, Runner
from actions.site import Database, DatabaseRef, Service
from actions.steps import connected, old_primary
from actions.steps.engine_backup import EngineBackup
from actions.steps.idle import idle
from actions.steps.proving import RestoreForTest
from actions.steps.restore_scene import check_step
from actions.steps.scratch import RestoreScratch
from tests.contract.kit import MemoryJournal
from tests.fakes.world import API, World, a_world
from tests.fixtures.needed import POSTGRES_15
from tests.fixtures.pgbackrest import CIPHER_PASS, STANZA
from tests.fixtures.waiting import eventually
from tests.pgbackrest_world import MARK, SERVER, PgBackRestWorld

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("pgbackrest")]


async def test_a_rerun_finds_what_was_made(backed_up: PgBackRestWorld) -> None:
    again = await backed_up.engine.take(BaseRequest(id="base-1", server=SERVER, kind=BackupKind.FULL), no_progress)
    entries = await backed_up.engine.catalogue(SERVER)
    assert sorted(entry.manifest.id for entry in entries) == ["base-1", "diff-1"]
    assert again in entries
    diff = next(entry for entry in entries if entry.manifest.id == "diff-1")
    assert (diff.manifest.kind, diff.manifest.parent) == (BackupKind.INCREMENTAL, "base-1")
    assert diff.manifest.superuser == "postgres"
    assert diff.manifest.checksums
    assert diff.problem is None


async def test_the_window_ends_with_the_newest_commit_that_is_archived(backed_up: PgBackRestWorld) -> None:
    (window,) = await backed_up.engine.windows(SERVER)
    assert (window.bucket, window.fulls, window.incrementals, window.gaps) == (backed_up.archived.bucket, 1, 1, ())
    assert window.oldest is not None
    assert window.newest is not None
    assert datetime.now(UTC) - timedelta(minutes=5) < window.oldest < window.newest < datetime.now(UTC)
    backed_up.archived.sql("INSERT INTO ledger VALUES ('late')", "DELETE FROM ledger WHERE row = 'late'")
    assert (await backed_up.engine.windows(SERVER))[0].newest == window.newest


async def test_back_to_just_before_a_transaction(backed_up: PgBackRestWorld) -> None:
    target = RecoveryTarget(xid=backed_up.commits["d"], inclusive=False)
    request = ScratchRequest(id="s1", server=SERVER, target=target, mark=MARK)
    restored = await backed_up.engine.restore(request, no_progress)
    assert restored.backup == "diff-1"
    assert restored.checked_pages
    assert "check" in restored.seconds  # by `pg_checksums`, after the replay
    assert await backed_up.engine.restore(request, no_progress) == restored  # a rerun finds it
    try:
        started = await backed_up.scratch.start("s1")
        assert started.state is ScratchState.PAUSED
        assert await backed_up.rows("s1") == ["a", "b", "c"]
        settings = "SELECT name, setting FROM pg_settings WHERE name IN ('archive_mode', 'restore_command')"
        found = await backed_up.postgres.query(DatabaseRef("scratch-s1", "postgres"), settings)
        shown = {str(each["name"]): str(each["setting"]) for each in found}
        assert shown["archive_mode"] == "off"
        assert "pgbackrest" not in shown["restore_command"].replace(str(backed_up.directory), "")
        _no_secret_in_sight(backed_up)
    finally:
        await backed_up.scratch.discard("s1", mark=MARK)


async def a_restore(backed_up: PgBackRestWorld, target: RecoveryTarget) -> Step:
    backup = next(each for each in (await backed_up.program.info(SERVER)).backup if each.id == "diff-1")
    return RestoreScratch(
        job="j",
        scratch="s7",
        server=SERVER,
        target=target,
        target_words="before a transaction",
        backup="diff-1",
        bucket=backed_up.archived.bucket,
        endpoint=None,
        key=f"repository/backup/{STANZA}/{backup.label}/",
        sha256="",
        stanza=STANZA,
        amcheck=False,
        keep=None,
        mark=MARK,
    )


async def a_restore_test(backed_up: PgBackRestWorld, target: RecoveryTarget) -> Step:
    entries = await backed_up.engine.catalogue(SERVER)
    chosen = next(entry for entry in entries if entry.manifest.id == "diff-1")
    return RestoreForTest(
        job="j",
        scratch="s7",
        server=SERVER,
        target=target,
        bucket=backed_up.archived.bucket,
        endpoint=None,
        prefix="",
        tested=EngineBackup.of(backed_up.site, SERVER, entries, chosen),
        mark=MARK,
    )


@pytest.mark.parametrize("a_step", [a_restore, a_restore_test])
async def test_a_transaction_is_reached_by_typing_what_the_plan_says(
    backed_up: PgBackRestWorld,
    server_directory: Path,
    a_step: Callable[[PgBackRestWorld, RecoveryTarget], Awaitable[Step]],
) -> None:
    step = await a_step(backed_up, RecoveryTarget(xid=backed_up.commits["d"], inclusive=False))
    account = backed_up.archived.account
    if account is not None:
        shutil.chown(server_directory, account.uid, account.gid)
    env = {
        "PATH": f"{POSTGRES_15 / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "PGDATA": str(server_directory / "data"),
        "PGBACKREST_CONFIG": str(backed_up.archived.config),
        "PGBACKREST_REPO1_CIPHER_PASS": CIPHER_PASS,
    }

    async def type_in(*lines: str) -> str:
        script = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
        return (await run(script, env=env, cwd=server_directory, account=account, timeout=timedelta(minutes=2))).text

    *lines, asked, checked, started = step.by_hand()
    await type_in(*lines)
    try:
        while (await type_in(asked)).split("|")[0] != "paused":
            continue
        await type_in(checked, started)
        query = 'psql -XAt -h "$PGDATA" -U postgres -d postgres -c "SELECT row FROM ledger ORDER BY row"'
        assert (await type_in(query)).split() == ["a", "b", "c"]
    finally:
        await type_in('pg_ctl stop -w -m immediate -D "$PGDATA"')


async def test_one_that_follows_replays_what_pgbackrest_has_archived(backed_up: PgBackRestWorld) -> None:
    target = RecoveryTarget(xid=backed_up.commits["c"], inclusive=False)
    await backed_up.engine.restore(ScratchRequest(id="s6", server=SERVER, target=target, mark=MARK), no_progress)
    try:
        await backed_up.scratch.follow("s6", delay=timedelta(0))
        await backed_up.engine.feed(SERVER, "s6")
        facts = await backed_up.scratch.tend("s6")
        assert facts.following is not None
        assert facts.following.problem == ""

        async def shown() -> bool:
            return {"c", "d"} <= set(await backed_up.rows("s6"))

        await eventually(shown)
        await backed_up.engine.feed(SERVER, "s6")  # there is nothing new
        _no_secret_in_sight(backed_up)
        halted = await backed_up.scratch.halt("s6", RecoveryTarget(latest=True))
        assert halted.state is ScratchState.STOPPED
    finally:
        await backed_up.scratch.discard("s6", mark=MARK)


def _no_secret_in_sight(world: PgBackRestWorld) -> None:
    """Neither in an argv nor in the environment of the restored server."""
    scratch = str(world.directory / "scratch")
    for process in psutil.process_iter():
        try:
            words, environment = " ".join(process.cmdline()), json.dumps(process.environ())
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if scratch in words:
            for secret in (CIPHER_PASS, world.s3.secret_key):
                assert secret not in words
                assert secret not in environment


async def test_back_to_a_time_from_the_full_backup_and_on_as_the_new_primary(
    backed_up: PgBackRestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(old_primary, "WATCH", timedelta(seconds=2))
    monkeypatch.setattr(connected, "PATIENCE", timedelta(seconds=1))  # the application is none
    moment, server = backed_up.moments["c"], backed_up.archived.server
    request = ScratchRequest(id="s4", server=SERVER, target=RecoveryTarget(time=moment), backup="base-1", mark=MARK)
    restored = await backed_up.engine.restore(request, no_progress)
    try:
        assert (restored.backup, restored.reached_at is not None) == ("base-1", True)
        claimed = await backed_up.scratch.find("s4")
        assert claimed is not None
        assert claimed.bytes >= restored.plain_bytes * 1.05 + SEGMENT  # the WAL as well
        (entry,) = [each for each in await backed_up.engine.catalogue(SERVER) if each.manifest.id == "base-1"]
        assert restored.bytes > entry.manifest.stored.bytes
        assert restored.wal_bytes > 0
        await backed_up.scratch.start("s4")
        assert await backed_up.rows("s4") == ["a", "b", "c"]
        ports, journal = _shop(backed_up, memory := a_world()), MemoryJournal()
        await check_step(ports.site.databases["shop"], "shop", scratch="s4", table="").apply(ports, no_progress)
        plan = await Promote().plan(PromoteParams(scratch="s4"), ports, "k7m2n3p4q5")
        assert plan.stopped == ()
        result = await Runner(plan, ports, journal).run()
        assert result.outcome is Outcome.SUCCEEDED, result.message
        [said] = [line.detail for line in journal.lines if "timeline id" in line.detail]
        assert "on timeline id 2, branched off timeline id 1" in said
        assert f"`archive_command = 'pgbackrest --stanza={STANZA} archive-push %p'`" in said
        # Its shutdown has waited until pgBackRest had taken the last segment.
        assert not server.running()
        assert f"Its data is kept in `{server.data}`" in journal.lines[-1].detail
        facts = await backed_up.scratch.find("s4")
        assert facts is not None
        assert memory.cluster.configs["main", "shop", "shop-config"]["DATABASE_HOST"] == facts.address
        new = DatabaseRef("scratch-s4", "postgres")
        [row] = await backed_up.postgres.query(
            new, "SELECT pg_is_in_recovery() AS r, setting FROM pg_settings WHERE name = 'archive_mode'"
        )
        assert dict(row) == {"r": False, "setting": "off"}
    finally:
        await backed_up.scratch.stop("s4")
        await server.stop()
        await server.start()
        await backed_up.postgres.unfence(SERVER, closed=(), limit=-1)
        ScratchPlace(backed_up.directory / "scratch", "s4").remove()


def _shop(real: PgBackRestWorld, memory: World) -> Ports:
    """The server is real, the application on it is not."""
    memory.cluster.configs["main", "shop", "shop-config"]["DATABASE_HOST"] = "127.0.0.1:5432"
    service = Service(name="shop", workloads=(API,), config_map="shop-config")
    database = Database(name="postgres", server=SERVER, owner="postgres", service="shop")
    site = real.site.model_copy(
        update={
            "databases": {"shop": database},
            "services": {"shop": service},
            "clusters": memory.site.clusters,
        }
    )
    there = {part.name: getattr(memory, part.name) for part in dataclasses.fields(Ports)}
    parts = {"site": site, "postgres": real.postgres, "scratch": real.scratch, "clock": SystemClock()}
    return Ports(**{**there, **parts})


async def test_an_idle_server_is_told_from_one_whose_commits_are_not_archived(
    backed_up: PgBackRestWorld,
) -> None:
    """Once its last checkpoint is in the archive, nothing that was committed is missing there."""
    ports = _shop(backed_up, a_world())

    async def at_rest() -> bool:
        (window,) = await backed_up.engine.windows(SERVER)
        return await idle(ports, SERVER, window, await backed_up.engine.catalogue(SERVER))

    backed_up.commit("before-idle")
    assert not await at_rest()
    backed_up.archived.sql("CHECKPOINT")
    backed_up.archive()
    assert await at_rest()
    backed_up.archived.sql("SELECT count(*) FROM ledger")  # who reads commits nothing
    assert await at_rest()
    with psycopg.connect(backed_up.archived.server.dsn()) as slow:
        slow.execute("INSERT INTO ledger VALUES ('slow')")
        backed_up.archived.sql("CHECKPOINT")
        backed_up.archive()
        assert not await at_rest()  # it may be committed at any time
        slow.rollback()
    backed_up.archived.sql("CHECKPOINT")
    backed_up.archive()
    assert await at_rest()
    backed_up.commit("after-idle")
    assert not await at_rest()
    backed_up.archived.sql("DELETE FROM ledger WHERE row LIKE '%-idle'")
    backed_up.archive()


async def test_who_dropped_the_table(backed_up: PgBackRestWorld) -> None:
    request = FindRequest(server=SERVER, database="postgres", table="public.doc", changes=(Change.DROP,))
    (found,) = await backed_up.engine.find(request, no_progress)
    assert (found.change, found.before_xid) == (Change.DROP, backed_up.commits["d"])
    assert found.lost >= 1
    (point,) = await backed_up.engine.find_points(PointRequest(server=SERVER, point="before e"), no_progress)
    assert Lsn.parse(point.lsn) > Lsn.parse(found.commit_lsn)
    assert point.after_at is not None


async def test_a_target_that_no_backup_reaches_is_refused_and_leaves_nothing(backed_up: PgBackRestWorld) -> None:
    target = RecoveryTarget(time=datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(UserError, match="No base backup"):
        await backed_up.engine.restore(ScratchRequest(id="s2", server=SERVER, target=target, mark=MARK), no_progress)
    assert await backed_up.scratch.find("s2") is None


async def test_a_moment_that_the_archive_does_not_hold_is_no_success(backed_up: PgBackRestWorld) -> None:
    """PostgreSQL starts, is ready, and ends when the WAL does: that must not pass for a restore."""
    target = RecoveryTarget(time=datetime.now(UTC) + timedelta(hours=1))
    request = ScratchRequest(id="s5", server=SERVER, target=target, backup="diff-1", mark=MARK)
    with pytest.raises(UserError, match="ends before"):
        await backed_up.engine.restore(request, no_progress)
    assert await backed_up.scratch.find("s5") is None


async def test_an_incremental_needs_a_full_backup(backed_up: PgBackRestWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    stanza = await backed_up.program.info(SERVER)

    async def without_backups(server: str) -> Stanza:
        return stanza.model_copy(update={"backup": ()})

    monkeypatch.setattr(backed_up.program, "info", without_backups)
    request = BaseRequest(id="early", server=SERVER, kind=BackupKind.INCREMENTAL)
    with pytest.raises(UserError, match="no full backup"):
        await backed_up.engine.take(request, no_progress)


async def test_the_doctor_finds_what_would_lose_too_much_and_what_does_not_work(backed_up: PgBackRestWorld) -> None:
    assert await backed_up.engine.versions(SERVER) == {"pgbackrest": str(await backed_up.program.version())}
    (lack,) = await backed_up.engine.lacks(SERVER)
    assert not lack.stops
    assert "archive_timeout" in lack.next
    policy = backed_up.site.physical[SERVER]
    policy = policy.model_copy(update={"own": keys_of(policy).model_copy(update={"stanza": "other"})})
    elsewhere = backed_up.anew(backed_up.directory)
    elsewhere.site.physical[SERVER] = policy  # type: ignore[index]  # a mapping for those who read it
    assert "stanza-create" in (await elsewhere.engine.lacks(SERVER))[0].what


async def test_a_whole_backup_is_verified_and_says_when(backed_up: PgBackRestWorld) -> None:
    entry = await backed_up.engine.verify(SERVER, "base-1", no_progress)
    assert entry.verified_at is not None
    assert entry.problem is None


async def test_a_pin_keeps_a_backup(backed_up: PgBackRestWorld) -> None:
    await backed_up.engine.pin(SERVER, "base-1", reason="legal hold")
    found = {entry.manifest.id: entry for entry in await backed_up.engine.catalogue(SERVER)}
    assert found["base-1"].pinned == "legal hold"
    await backed_up.engine.pin(SERVER, "base-1", reason="")
    found = {entry.manifest.id: entry for entry in await backed_up.engine.catalogue(SERVER)}
    assert found["base-1"].pinned == ""


async def test_what_is_old_goes_with_its_wal_and_what_is_needed_stays(backed_up: PgBackRestWorld) -> None:
    """Last but one: with a retention of no time at all, the newest full backup is kept by the minimum."""
    backed_up.commit("f")
    await backed_up.engine.take(BaseRequest(id="base-2", server=SERVER, kind=BackupKind.FULL), no_progress)
    late = backed_up.at(datetime.now(UTC) + timedelta(days=60))
    await late.pin(SERVER, "diff-1", reason="legal hold")
    kept = await late.expiry(SERVER)
    assert kept.backups == ()
    assert kept.kept["diff-1"] == "pinned: legal hold"
    assert kept.kept["base-1"] == "`diff-1` rests on it"
    await late.pin(SERVER, "diff-1", reason="")
    shown = await late.expiry(SERVER)
    assert shown.backups == ("diff-1", "base-1")
    assert shown.segments > 0
    assert shown.bytes > 0
    await late.pin(SERVER, "base-1", reason="needed meanwhile")
    await late.expire(SERVER, shown)
    assert {entry.manifest.id for entry in await late.catalogue(SERVER)} == {"base-1", "base-2"}
    await late.pin(SERVER, "base-1", reason="")
    await late.expire(SERVER, await late.expiry(SERVER))
    (left,) = await late.catalogue(SERVER)
    assert (left.manifest.id, left.problem) == ("base-2", None)
    assert (await late.expiry(SERVER)).backups == ()
    (window,) = await backed_up.engine.windows(SERVER)
    assert (window.oldest, window.gaps) == (left.manifest.finished_at, ())


@pytest.mark.corruption
async def test_a_damaged_backup_is_found_named_and_refused_from_then_on(backed_up: PgBackRestWorld) -> None:
    await backed_up.engine.take(BaseRequest(id="bad-1", server=SERVER, kind=BackupKind.FULL), no_progress)
    label = next(backup.label for backup in (await backed_up.program.info(SERVER)).backup if backup.id == "bad-1")
    with damaged(backed_up, f"repository/backup/{STANZA}/{label}/bundle/1"):
        with pytest.raises(VerificationError, match="must not be used"):
            await backed_up.engine.verify(SERVER, "bad-1", no_progress)
        bad = next(entry for entry in await backed_up.engine.catalogue(SERVER) if entry.manifest.id == "bad-1")
        assert "files are not as they were stored" in (bad.problem or "")
        refused = ScratchRequest(id="s3", server=SERVER, target=RecoveryTarget(latest=True), backup="bad-1", mark=MARK)
        with pytest.raises(VerificationError):
            await backed_up.engine.restore(refused, no_progress)
    gone = ExpireOrder(repository=1, label=label, keep_wal_of=0)  # others use this repository after us
    await backed_up.program.expire(SERVER, gone, dry_run=False)


def stored_segment(world: PgBackRestWorld, name: str) -> str:
    """The key of an archived segment."""
    found = world.s3.client().list_objects_v2(Bucket=world.archived.bucket, Prefix=f"repository/archive/{STANZA}/")
    return next(each["Key"] for each in found["Contents"] if name in each["Key"])


@contextmanager
def damaged(world: PgBackRestWorld, key: str) -> Iterator[None]:
    """One of its bytes is another one meanwhile."""
    client, bucket = world.s3.client(), world.archived.bucket
    whole = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    middle = len(whole) // 2
    client.put_object(Bucket=bucket, Key=key, Body=whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :])
    try:
        yield
    finally:
        client.put_object(Bucket=bucket, Key=key, Body=whole)


async def test_one_process_brings_several_segments_as_each_of_them_is_given_out(
    backed_up: PgBackRestWorld,
) -> None:
    stanza = await backed_up.program.info(SERVER)
    archive = stanza.present(1)
    assert archive is not None
    place = place_of(stanza, archive, server=SERVER, bucket=backed_up.archived.bucket)
    names = sorted((await backed_up.program.archived(place)).segments)[-3:]
    missing = "0000000100000FFF00000001"
    folder = Path(tempfile.mkdtemp(prefix="drbot-tests-", dir=backed_up.directory))
    await backed_up.program.own(folder)
    await backed_up.program.fetch_ahead(place, [*names, missing], folder)
    assert sorted(path.name for path in await asyncio.to_thread(lambda: list(folder.iterdir()))) == names
    for name in names:
        ahead = (folder / name).read_bytes()
        assert await backed_up.program.fetch(place, name, folder)
        assert (len(ahead), ahead) == (SEGMENT, (folder / name).read_bytes())


@pytest.mark.corruption
async def test_a_damaged_segment_is_named_in_the_middle_of_the_replay(backed_up: PgBackRestWorld) -> None:
    """WAL is fetched while a server replays it: that one waits for a segment that cannot come."""
    names = []
    for _ in range(6):
        names.append(str(backed_up.archived.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")[0][0]))
        backed_up.commit(f"row-{uuid.uuid4().hex[:8]}")
        backed_up.archive()
    request = ScratchRequest(id="torn", server=SERVER, target=RecoveryTarget(latest=True), mark=MARK)
    with damaged(backed_up, stored_segment(backed_up, names[3])):
        with pytest.raises(VerificationError, match=names[3]):
            await backed_up.engine.restore(request, no_progress)
        assert await backed_up.scratch.find("torn") is None
        newest = max(await backed_up.engine.catalogue(SERVER), key=lambda entry: entry.manifest.finished_at)
        with pytest.raises(VerificationError, match=f"is whole, but WAL segment `{names[3]}` after it is damaged"):
            await backed_up.engine.verify(SERVER, newest.manifest.id, no_progress)
    restored = await backed_up.engine.restore(request, no_progress)
    assert restored.timeline_id == 1
    await backed_up.scratch.discard("torn", mark=MARK)


@pytest.mark.corruption
async def test_a_segment_that_somebody_puts_far_ahead_stops_no_restore_and_hides_no_window(
    backed_up: PgBackRestWorld,
) -> None:
    newest = str(backed_up.archived.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")[0][0])
    backed_up.commit(f"row-{uuid.uuid4().hex[:8]}")
    backed_up.archive()
    client, bucket = backed_up.s3.client(), backed_up.archived.bucket
    found = client.list_objects_v2(Bucket=bucket, Prefix=f"repository/archive/{STANZA}/")
    key = next(each["Key"] for each in found["Contents"] if newest in each["Key"])
    far = f"{newest[:8]}000000AA{newest[16:]}"
    ahead = key.replace(newest[:16], far[:16])
    [before] = await backed_up.engine.windows(SERVER)
    client.copy_object(Bucket=bucket, Key=ahead, CopySource={"Bucket": bucket, "Key": key})
    try:
        [window] = await backed_up.engine.windows(SERVER)
        assert (window.newest, window.newest_lsn, window.gaps) == (before.newest, before.newest_lsn, before.gaps)
        request = ScratchRequest(id="ahead", server=SERVER, target=RecoveryTarget(latest=True), mark=MARK)
        restored = await backed_up.engine.restore(request, no_progress)
        [said] = restored.passed_over
        assert said.startswith(f"`{far}` lies in the archive behind its end")
        await backed_up.scratch.discard("ahead", mark=MARK)
    finally:
        client.delete_object(Bucket=bucket, Key=ahead)
