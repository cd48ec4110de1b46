"""What an incremental rests on after a failover."""

from __future__ import annotations

from actions.backup.physical import BackupKind, DeadEnd
from actions.catalog.base import Base, BaseParams
from actions.steps.bases import MakeBase
from tests.contract.kit import PLAN_ID
from tests.fakes.physical_world import SERVER, with_bases
from tests.fakes.world import World

END = DeadEnd(timeline_id=1, lsn="0/6000000", forked_at="0/3000090", living=2)


async def made(world: World) -> tuple[BackupKind, str | None]:
    plan = await Base().plan(BaseParams(kind=BackupKind.INCREMENTAL), world, PLAN_ID)
    [step] = plan.steps
    assert isinstance(step, MakeBase)
    return step.backup_kind, step.parent


async def test_an_incremental_never_rests_on_a_branch_that_the_server_has_left() -> None:
    world = with_bases()
    assert await made(world) == (BackupKind.INCREMENTAL, "base-hour")
    dead = world.physical.history[SERVER].dead_ends
    dead["base-hour"] = END
    assert await made(world) == (BackupKind.INCREMENTAL, "base-full")
    dead["base-full"] = END
    assert await made(world) == (BackupKind.FULL, None)
