"""A server that archives by itself and on which nobody writes is not behind; one of which that is not known is."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from actions import registry
from actions.backup.pgbackrest_keys import PgBackRestKeys
from actions.backup.proofs import Proofs
from actions.catalog.backup_status import Backups, BackupsParams
from actions.catalog.proof import ProveParams
from actions.site import DatabaseRef
from actions.steps.health import health
from actions.steps.idle import LAST_CHECKPOINT, idle
from tests.contract.kit import PLAN_ID, MemoryJournal, run
from tests.fakes.physical_world import with_bases
from tests.fakes.world import World

HOURS = timedelta(hours=5)
REST = {
    "standby": False,
    "system_id": "7000000000000000001",
    "redo": "0/4FFFF00",
    "timeline_id": 1,
    "next_xid": "0:1001",
    "oldest": "1001",
    "following": "1001",
    "prepared": 0,
}


def a_shop() -> World:
    world = with_bases()
    world.postgres.add(DatabaseRef("primary", "postgres"))
    return world


def archiving_itself() -> World:
    """The newest commit is archived up to 0/5000000; since then five hours have gone by."""
    world = a_shop()
    policy = world.site.physical_of("primary").model_copy(
        update={"engine": "pgbackrest", "own": PgBackRestKeys(stanza="main")}
    )
    world = replace(world, site=world.site.model_copy(update={"physical": {"primary": policy}}))
    world.clock.advance(HOURS)
    return world


async def loses(world: World, **changes: object) -> timedelta | None:
    world.postgres.answers["pg_control_checkpoint"] = [{**REST, **changes}]
    [bases] = (await health(world)).bases
    return bases.exposure(world.clock.now())


async def test_nothing_is_lost_where_nothing_was_committed_since() -> None:
    world = archiving_itself()
    assert await loses(world) == timedelta(0)
    report = await Backups().read(BackupsParams(), world)
    assert "0 s would be lost now (RPO 15 min: within)" in report.lines[0]
    assert "The server has committed nothing since." in report.lines[0]
    assert "wal-lag" not in {finding.check for finding in report.findings}
    # The epoch of transaction numbers is in both; at a shutdown nobody is under way where nothing can be prepared.
    assert await loses(world, next_xid="2:7", oldest="7", following=str((2 << 32) + 7)) == timedelta(0)
    assert await loses(world, oldest="0") == timedelta(0)
    assert await loses(world, redo="0/5000000") == timedelta(0)


@pytest.mark.parametrize(
    "changes",
    [
        {"following": "1002"},  # a transaction has ended since the checkpoint
        {"oldest": "990"},  # one was under way there, and may have been committed since
        {"oldest": "0", "prepared": 10},  # a prepared one outlives a shutdown
        {"redo": "0/5000028"},  # the checkpoint is not archived
        {"timeline_id": 2},  # the server has gone another way
        {"standby": True},
        {"system_id": "42"},  # another server answers there
    ],
)
async def test_it_counts_from_the_newest_commit_where_that_is_not_known(changes: dict[str, Any]) -> None:
    assert await loses(archiving_itself(), **changes) == HOURS + timedelta(seconds=2)


async def test_it_counts_from_the_newest_commit_where_the_server_is_silent() -> None:
    world = archiving_itself()
    world.postgres.answers["pg_control_checkpoint"] = [REST]
    world.postgres.servers["primary"].down = True
    [bases] = (await health(world)).bases
    assert bases.exposure(world.clock.now()) == HOURS + timedelta(seconds=2)


async def test_with_an_archiver_of_ours_it_is_the_archiver_who_knows() -> None:
    world = a_shop()
    world.postgres.answers["pg_control_checkpoint"] = [REST]
    [window] = await world.physical.windows("primary")
    assert await idle(world, "primary", window, await world.physical.catalogue("primary"))
    assert not (await health(world)).bases[0].idle
    assert "pg_control_checkpoint()" in LAST_CHECKPOINT


@pytest.mark.parametrize(
    ("changes", "lost"), [({}, timedelta(0)), ({"following": "1002"}, HOURS + timedelta(seconds=2))]
)
async def test_a_restore_test_counts_as_the_status_does(changes: dict[str, Any], lost: timedelta) -> None:
    world = archiving_itself()
    assert await loses(world, **changes) == lost
    plan = await registry.action("backup.prove").plan(ProveParams(), world, PLAN_ID)
    assert (await run(plan, world, MemoryJournal())).message == ""
    [proof] = await Proofs(world.objects, world.secrets).newest(world.site.physical_of("primary"))
    assert proof.rpo == lost
