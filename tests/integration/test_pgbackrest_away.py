"""S3 goes away under pgBackRest, for seconds here and for two minutes in `make soak`: a restore waits and goes on
where it was; what does not wait fails with a sentence, leaves nothing behind, and is done by the next try."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from actions.adapters.clock import SystemClock
from actions.backup.patience import PATIENCE
from actions.backup.physical import BackupKind, BaseRequest, RecoveryTarget, ScratchRequest
from actions.contract import Plan, Risk
from actions.errors import TemporaryError
from actions.ports import Ports, no_progress
from actions.runner import Outcome, Runner
from actions.steps.scratch import RestoreScratch
from tests.contract.kit import MemoryJournal
from tests.fakes.executor import MemoryExecutor
from tests.fakes.world import a_world
from tests.fixtures.away import AWAY
from tests.fixtures.pgbackrest import STANZA, configure
from tests.fixtures.proxy import Proxy
from tests.fixtures.shared_s3 import S3
from tests.fixtures.waiting import eventually
from tests.pgbackrest_world import MARK, SERVER, PgBackRestWorld

pytestmark = [pytest.mark.integration, pytest.mark.corruption, pytest.mark.xdist_group("pgbackrest")]

IN_THE_MIDDLE = 1 << 20  # bytes, of 3 MB that a backup has


class Road(Proxy):
    """Is cut once so many more bytes have passed, for a while."""

    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port)
        self.passed = 0  # bytes since it was told to leave
        self._left: int | None = None
        self._away = timedelta()
        self._leaving: asyncio.Task[None] | None = None

    def leave_after(self, size: int, away: timedelta) -> None:
        self.passed, self._left, self._away = 0, size, away

    async def is_back(self) -> bool:
        return self._leaving is not None and self._leaving.done()

    def _passing(self, size: int) -> None:
        self.passed += size
        if self._left is not None:
            self._left -= size
            if self._left <= 0:
                self._left, self._leaving = None, asyncio.create_task(self._leave())

    async def _leave(self) -> None:
        await self.cut()
        await asyncio.sleep(self._away.total_seconds())
        self.heal()


@pytest.fixture
async def tls_road(s3: S3) -> AsyncIterator[Road]:
    async with Road(s3.tls_port) as road:
        yield road


@pytest.fixture
async def far(
    backed_up: PgBackRestWorld, s3: S3, tls_road: Road, server_directory: Path
) -> AsyncIterator[PgBackRestWorld]:
    """The server and its repository, which the bot reaches over the road; the server archives past it."""
    async with backed_up.borrowed(server_directory) as world:
        archived = replace(world.archived, config=world.archived.config.with_name("far.conf"))
        configure(archived, replace(s3, tls_port=tls_road.port))
        yield replace(world, archived=archived)


@dataclass(frozen=True)
class Past:
    """A base backup of its own, since other tests let theirs expire, and a row that was committed after it."""

    backup: str
    target: RecoveryTarget  # just before that row
    rows: list[str]  # of then


@pytest.fixture
async def past(far: PgBackRestWorld, backed_up: PgBackRestWorld) -> Past:
    backup, row = f"far-{uuid.uuid4().hex[:8]}", f"row-{uuid.uuid4().hex[:8]}"
    await backed_up.engine.take(BaseRequest(id=backup, server=SERVER, kind=BackupKind.FULL), no_progress)
    rows = sorted(str(each[0]) for each in far.archived.sql("SELECT row FROM ledger"))
    far.commit(row)
    far.archive()
    return Past(backup, RecoveryTarget(xid=far.commits[row], inclusive=False), rows)


@pytest.mark.parametrize("away", AWAY)
async def test_a_restore_goes_on_where_it_was(
    far: PgBackRestWorld, past: Past, tls_road: Road, away: timedelta
) -> None:
    world = replace(far, patience=PATIENCE)
    [size] = [
        each.manifest.stored.bytes for each in await far.engine.catalogue(SERVER) if each.manifest.id == past.backup
    ]
    cut = size * 3 // 4  # late: on a busy machine much of what has passed has not been written down yet
    tls_road.leave_after(cut, away)
    begun = time.monotonic()
    request = ScratchRequest(id="far", server=SERVER, target=past.target, backup=past.backup, mark=MARK)
    restored = await world.engine.restore(request, no_progress)
    assert time.monotonic() - begun > away.total_seconds()
    assert await tls_road.is_back()
    try:
        assert tls_road.passed < restored.bytes + cut
        await far.scratch.start("far")
        assert await far.rows("far") == past.rows
    finally:
        await far.scratch.discard("far", mark=MARK)


async def test_one_that_does_not_wait_leaves_nothing_and_its_step_tries_again(
    far: PgBackRestWorld, past: Past, tls_road: Road
) -> None:
    """pgBackRest waits by itself for a store that it cannot reach, not for one that leaves in the middle of a file."""
    away = timedelta(seconds=1)
    request = ScratchRequest(id="torn", server=SERVER, target=past.target, mark=MARK)
    tls_road.leave_after(IN_THE_MIDDLE, away)
    with pytest.raises(TemporaryError, match=r"pgBackRest could not restore .*object store does not answer"):
        await far.engine.restore(request, no_progress)
    assert await far.scratch.find("torn") is None
    assert list((far.directory / "scratch").glob("torn*")) == []
    await eventually(tls_road.is_back)

    ports, executor = _ports(far)
    tls_road.leave_after(IN_THE_MIDDLE, away)
    result = await Runner(await _plan(far, past), ports, MemoryJournal()).run()
    assert result.outcome is Outcome.SUCCEEDED, result.message
    assert len(executor.starts) > 1
    try:
        await far.scratch.start("s7")
        assert await far.rows("s7") == past.rows
    finally:
        await far.scratch.discard("s7", mark=MARK)


@pytest.mark.parametrize("away", AWAY)
async def test_a_backup_is_whole_or_none(far: PgBackRestWorld, tls_road: Road, away: timedelta) -> None:
    request = BaseRequest(id="far-1", server=SERVER, kind=BackupKind.FULL)
    tls_road.leave_after(IN_THE_MIDDLE, away)
    failed = ""
    try:
        await far.engine.take(request, no_progress)
    except TemporaryError as error:
        failed = str(error)
    if failed:  # it was away for longer than pgBackRest waits; the step would try again
        assert "pgBackRest could not make a full backup" in failed
        await eventually(tls_road.is_back, within=away.total_seconds() + 30)
        assert "far-1" not in {entry.manifest.id for entry in await far.engine.catalogue(SERVER)}
        await far.engine.take(request, no_progress)
    assert await tls_road.is_back()
    [entry] = [entry for entry in await far.engine.catalogue(SERVER) if entry.manifest.id == "far-1"]
    assert entry.problem is None
    assert (await far.engine.verify(SERVER, "far-1", no_progress)).problem is None


async def _plan(far: PgBackRestWorld, past: Past) -> Plan:
    backup = next(each for each in (await far.program.info(SERVER)).backup if each.id == past.backup)
    step = RestoreScratch(
        job="j",
        scratch="s7",
        server=SERVER,
        target=past.target,
        target_words="before a transaction",
        backup=past.backup,
        bucket=far.archived.bucket,
        endpoint=None,
        key=f"repository/backup/{STANZA}/{backup.label}/",
        sha256="",
        stanza=STANZA,
        amcheck=False,
        keep=None,
        mark=MARK,
    )
    return Plan(
        id="k7m2n3p4q5",
        action="restore.point",
        summary="Restore",
        risk=Risk.REVERSIBLE,
        target=SERVER,
        params={},
        steps=(step,),
        made_at=datetime.now(UTC),
    )


def _ports(far: PgBackRestWorld) -> tuple[Ports, MemoryExecutor]:
    memory = a_world()
    executor = MemoryExecutor(replace(memory.executor._engines, physical=far.engine))
    parts: dict[str, Any] = {part.name: getattr(memory, part.name) for part in fields(Ports)}
    parts |= {"site": far.site, "postgres": far.postgres, "scratch": far.scratch, "physical": far.engine}
    return Ports(**{**parts, "executor": executor, "clock": SystemClock()}), executor
