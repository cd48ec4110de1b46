"""The cases in which every action is held to its laws."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

from actions.backup.physical import BackupKind
from actions.buckets import FilesCopyRequest
from actions.catalog.application import ResumeParams, RolloutParams, ScaleParams
from actions.catalog.backup import AdoptParams, DumpParams, UploadParams, VerifyParams
from actions.catalog.base import BaseParams, CheckBaseParams
from actions.catalog.escrow import EscrowParams
from actions.catalog.files import CopyParams, UndeleteParams
from actions.catalog.files import RestoreParams as RestoreFilesParams
from actions.catalog.manifests import MirrorParams
from actions.catalog.plan_file import ActivateParams
from actions.catalog.point import PointParams
from actions.catalog.point_restore import RestorePointParams
from actions.catalog.points import RecordParams
from actions.catalog.promote import PromoteParams
from actions.catalog.proof import ProveParams, When
from actions.catalog.record_retention import (
    ExpireEscrowsParams,
    ExpirePointsParams,
    PinPointParams,
    UnpinPointParams,
)
from actions.catalog.rescue import RescueParams
from actions.catalog.restore import RestoreParams
from actions.catalog.retention import DeleteParams, ExpireParams, PinParams, UnpinParams
from actions.catalog.run import AnswerParams, RunParams
from actions.catalog.scratch import ScratchParams
from actions.catalog.standby import FollowParams, HaltParams
from actions.catalog.swap import SwapParams
from actions.contract import JournalState, Lock, Plan, Risk
from actions.ports import no_progress
from actions.steps.workloads import ScaleWorkload
from tests.contract.kit import ActionCase
from tests.fakes.history import (
    POINT,
    SCRATCH_ID,
    with_a_point,
    with_a_point_in_git,
    with_a_point_of_dumps,
    with_a_scratch,
    with_a_scratch_and_a_primary_in_the_cluster,
    with_a_standby,
    with_an_unseen_scratch,
    with_history,
    with_old_records,
    with_old_sealed_copies,
    with_sealed_secrets,
    with_secrets,
)
from tests.fakes.manifests import an_entry
from tests.fakes.physical_world import with_bases, with_old_backups, with_two_buckets
from tests.fakes.s3 import MemoryObject
from tests.fakes.world import ADOPTABLE, API, HEALTH, START, World, a_world, damage_files

QUOTES = "sh\"op'; DROP DATABASE x; --"
UNICODE = "größe ☃"
LONG = "d" * 60 + 'ü"'
"""63 bytes, the most PostgreSQL takes."""


def with_found_dump(database: str = "shop") -> World:
    """A world with a dump in the bucket that others made."""
    world = a_world(database=database)
    world.objects.buckets["backups"][ADOPTABLE] = MemoryObject(b"PGDMP", START)
    return world


def with_a_local_copy(*, away: bool, backup: str | None = None) -> World:
    """A shop that keeps local copies, with a bucket that does not answer, or one that lacks a dump of the copy."""
    world = a_world(local=True)
    world.backups.away = away
    if backup is not None:
        at = START.replace(hour=9)
        world.backups.local["shop", backup] = an_entry(id=backup, database="shop", snapshot_at=at, finished_at=at)
    return world


def with_gitops_held() -> World:
    """An earlier plan has scaled `api` and left its controller suspended."""
    world = a_world()
    held = world.cluster.workloads[API]
    assert held.gitops is not None
    held.gitops = held.gitops.model_copy(update={"suspended": True, "mark": ASKED})
    return world


def with_full_disk() -> World:
    """Too little room on the primary for a copy."""
    world = a_world()
    world.postgres.servers["primary"].free_bytes = 1_000_000_000
    return world


def with_dead_primary() -> World:
    """The primary does not answer at all."""
    world = a_world()
    world.postgres.servers["primary"].down = True
    return world


def with_a_scratch_and_a_dead_primary() -> World:
    """An instance from before the primary was lost."""
    world = with_a_scratch()
    world.postgres.servers["primary"].down = True
    return world


def with_a_scratch_and_a_supervised_primary() -> World:
    """An instance whose primary is started again by somebody as soon as it ends."""
    world = with_a_scratch()
    world.postgres.servers["primary"].supervised = True
    return world


def sick(*, missing: bool = False) -> World:
    """The application does not answer once it is started again."""
    world = a_world(missing=missing)
    world.service.answers[HEALTH] = "it answers 500"
    return world


def with_a_broken_image() -> World:
    """No pod of the application becomes ready, before as after."""
    world = a_world()
    world.cluster.workloads[API].broken = True
    return world


def with_old_copies() -> World:
    """Files that were copied 40 and 31 days ago, before one was deleted and one replaced."""
    world = a_world(files_damaged=False)

    async def copy() -> None:
        for days in (40, 31):
            world.clock.advance(-timedelta(days=days))
            await world.files.copy(FilesCopyRequest(id=f"uploads-{days}", name="uploads"), no_progress)
            world.clock.advance(timedelta(days=days))

    with ThreadPoolExecutor(max_workers=1) as pool:  # worlds are made within a running loop
        pool.submit(asyncio.run, copy()).result()
    damage_files(world.buckets)
    return world


SCALED = ScaleWorkload(ref=API, replicas_before=3, replicas=5)
ASKED = "k3m3n3p3q3"
"""Another run, about which some actions decide."""


def with_a_run(state: str, *lines: JournalState, optional: bool = False, scaled: int = 3) -> World:
    """A world in which a run scales the application and has come so far."""
    world = a_world(gitops=False)
    world.cluster.workloads[API].replicas = scaled
    plan = Plan(
        id=ASKED,
        action="application.scale",
        summary="Scale `api` of service `shop` to 5",
        risk=Risk.DISRUPTIVE,
        target="shop",
        params={"service": "shop", "workload": "api", "replicas": 5},
        locks=(Lock(key="service:shop"),),
        steps=(SCALED.model_copy(update={"optional": optional}),),
        made_at=START,
    )
    world.runs.add(plan, state, *((0, line) for line in lines), message="Is it scaled?")
    return world


def that_asks(*, optional: bool = False) -> World:
    """That run asks about its only step."""
    return with_a_run("asking", JournalState.APPLYING, JournalState.ASKING, optional=optional)


def that_failed() -> World:
    """That run has failed and was put back."""
    lines = (JournalState.APPLYING, JournalState.FAILED, JournalState.UNDOING, JournalState.UNDONE)
    return with_a_run("failed", *lines)


def that_succeeded() -> World:
    """That run has scaled the application."""
    return with_a_run("succeeded", JournalState.APPLYING, JournalState.VERIFIED, scaled=5)


FENCE = frozenset({"fence_primary", "see_connected", "stop_primary"})
"""Once promoted, nothing is put back: the old primary stays closed, and people are asked."""
RESUME = frozenset({"resume_gitops"})
SEE = frozenset({"see_connected"})
"""The application works on the spare server by then."""
POINT_ASKS = frozenset({"bring_back_files", "compare_point", "resume_gitops"})
"""The databases stand by then: people decide whether that is undone."""
GIT_ASKS = POINT_ASKS | {"return_keys", "restart_workload"}
"""Nothing has stopped yet: people decide whether the rest is worth having without the keys."""
NEXT_VERSION = "name: shop\nowner: somebody else\n"

CASES = (
    ActionCase("dump", "backup.dump", DumpParams(database="shop"), a_world),
    ActionCase("dump-quotes", "backup.dump", DumpParams(database=QUOTES), partial(a_world, database=QUOTES)),
    ActionCase("dump-no-bucket", "backup.dump", DumpParams(database="shop"), partial(with_a_local_copy, away=True)),
    ActionCase(
        "upload",
        "backup.upload",
        UploadParams(database="shop"),
        partial(with_a_local_copy, away=False, backup="b-here"),
    ),
    ActionCase("verify", "backup.verify", VerifyParams(database="shop"), a_world),
    ActionCase("verify-named", "backup.verify", VerifyParams(database="shop", backup="b-old"), a_world),
    ActionCase("adopt", "backup.adopt", AdoptParams(database="shop", source_key=ADOPTABLE), with_found_dump),
    ActionCase(
        "adopt-long",
        "backup.adopt",
        AdoptParams(database=LONG, source_key=ADOPTABLE),
        partial(with_found_dump, LONG),
    ),
    ActionCase("base", "backup.base", BaseParams(), with_bases),
    ActionCase("base-first", "backup.base", BaseParams(kind=BackupKind.INCREMENTAL), partial(with_bases, bases=False)),
    ActionCase("base-copied", "backup.base", BaseParams(), with_two_buckets),
    ActionCase("incremental", "backup.base", BaseParams(server="shop", kind=BackupKind.INCREMENTAL), with_bases),
    ActionCase("check-base", "backup.check_base", CheckBaseParams(server="primary"), with_bases),
    ActionCase("prove", "backup.prove", ProveParams(), with_bases),
    ActionCase("prove a dump", "backup.prove", ProveParams(), a_world),
    ActionCase("prove a named dump", "backup.prove", ProveParams(server="shop", dump="b-old"), with_bases),
    ActionCase("expire", "backup.expire", ExpireParams(), with_old_backups),
    ActionCase("expire-server", "backup.expire", ExpireParams(server="shop"), with_old_backups),
    *(
        ActionCase(name, "backup.delete", DeleteParams(server="shop", backup=backup), with_old_backups, undoable=False)
        for name, backup in (
            ("delete-dump", "b-ancient"),
            ("delete-base", "base-ancient"),
            ("delete-young", "base-hour"),
        )
    ),
    ActionCase("pin", "backup.pin", PinParams(server="shop", backup="base-full", why="case 4711"), with_bases),
    ActionCase("pin-dump", "backup.pin", PinParams(server="shop", backup="b-old", why="case 4711"), a_world),
    ActionCase("unpin", "backup.unpin", UnpinParams(server="primary", backup="base-pinned"), with_old_backups),
    ActionCase("prove-random", "backup.prove", ProveParams(moment=When.RANDOM), with_bases),
    ActionCase("restore", "restore.dump", RestoreParams(database="shop"), a_world, asks=RESUME),
    ActionCase(
        "restore-missing", "restore.dump", RestoreParams(database="shop"), partial(a_world, missing=True), asks=RESUME
    ),
    ActionCase(
        "restore-suspect", "restore.dump", RestoreParams(database="shop", instance_suspect=True), a_world, asks=SEE
    ),
    ActionCase("restore-full-disk", "restore.dump", RestoreParams(database="shop"), with_full_disk, asks=SEE),
    ActionCase("restore-dead-primary", "restore.dump", RestoreParams(database="shop"), with_dead_primary, asks=SEE),
    ActionCase(
        "restore-without-service", "restore.dump", RestoreParams(database="shop"), partial(a_world, service=False)
    ),
    ActionCase(
        "restore-quotes",
        "restore.dump",
        RestoreParams(database=QUOTES, backup="b-old"),
        partial(a_world, database=QUOTES, gitops=False),
    ),
    ActionCase(
        "restore-unicode",
        "restore.dump",
        RestoreParams(database=UNICODE),
        partial(a_world, database=UNICODE, gitops=False, service=False),
    ),
    ActionCase(
        "restore-long-missing",
        "restore.dump",
        RestoreParams(database=LONG),
        partial(a_world, database=LONG, missing=True, gitops=False, service=False),
    ),
    *(
        ActionCase(f"point-{name}", "restore.point", PointParams(database="shop", **given), with_history)
        for name, given in (
            ("time", {"at": "09:30"}),
            ("lsn", {"lsn": "0/4000100"}),
            ("delete", {"before_delete": "users"}),
            ("latest", {"latest": True, "keep": 48}),
        )
    ),
    ActionCase(
        "rescue-rows",
        "restore.rescue",
        RescueParams(scratch=SCRATCH_ID, table="users", missing_rows=True),
        with_a_scratch,
    ),
    ActionCase("follow", "restore.follow", FollowParams(database="shop"), with_history),
    ActionCase("follow-behind", "restore.follow", FollowParams(database="shop", delay="30m"), with_history),
    ActionCase(
        "follow-instead",
        "restore.follow",
        FollowParams(database="shop", instead_of=SCRATCH_ID),
        with_a_standby,
        undoable=False,
    ),
    ActionCase("halt-time", "restore.halt", HaltParams(scratch=SCRATCH_ID, at="09:30"), with_a_standby),
    ActionCase("halt-delete", "restore.halt", HaltParams(scratch=SCRATCH_ID, before_delete="users"), with_a_standby),
    ActionCase("rescue-copy", "restore.rescue", RescueParams(scratch=SCRATCH_ID, table="users"), with_a_scratch),
    ActionCase(
        "rescue-table",
        "restore.rescue",
        RescueParams(scratch=SCRATCH_ID, table="orders"),
        partial(with_a_scratch, dropped="public.orders"),
    ),
    ActionCase("swap", "restore.swap", SwapParams(scratch=SCRATCH_ID), with_a_scratch, asks=RESUME),
    ActionCase(
        "recovery-point", "restore.recovery_point", RestorePointParams(point=POINT), with_a_point, asks=POINT_ASKS
    ),
    ActionCase(
        "recovery-point-named",
        "restore.recovery_point",
        RestorePointParams(point=POINT, scratch=SCRATCH_ID),
        with_a_point,
        asks=POINT_ASKS,
    ),
    ActionCase(
        "recovery-point-dumps",
        "restore.recovery_point",
        RestorePointParams(point=POINT),
        with_a_point_of_dumps,
        asks=POINT_ASKS,
    ),
    ActionCase(
        "recovery-point-git",
        "restore.recovery_point",
        RestorePointParams(point=POINT),
        with_a_point_in_git,
        asks=GIT_ASKS,
    ),
    ActionCase(
        "recovery-point-secrets",
        "restore.recovery_point",
        RestorePointParams(point=POINT, secret="database"),
        with_sealed_secrets,
        asks=POINT_ASKS | {"return_secrets"},
    ),
    ActionCase("promote", "restore.promote", PromoteParams(scratch=SCRATCH_ID), with_a_scratch, asks=FENCE, final=True),
    ActionCase(
        "promote-supervised-primary",
        "restore.promote",
        PromoteParams(scratch=SCRATCH_ID),
        with_a_scratch_and_a_supervised_primary,
        asks=FENCE,
        final=True,
    ),
    ActionCase(
        "promote-primary-in-the-cluster",
        "restore.promote",
        PromoteParams(scratch=SCRATCH_ID),
        with_a_scratch_and_a_primary_in_the_cluster,
        asks=FENCE,
        final=True,
    ),
    ActionCase(
        "promote-dead-primary",
        "restore.promote",
        PromoteParams(scratch=SCRATCH_ID, old_primary_is_dead=True),
        with_a_scratch_and_a_dead_primary,
        asks=FENCE,
        final=True,
    ),
    ActionCase(
        "scratch-start", "scratch.start", ScratchParams(scratch=SCRATCH_ID), partial(with_a_scratch, running=False)
    ),
    ActionCase("scratch-start-unseen", "scratch.start", ScratchParams(scratch=SCRATCH_ID), with_an_unseen_scratch),
    ActionCase("scratch-discard", "scratch.discard", ScratchParams(scratch=SCRATCH_ID), with_a_scratch, undoable=False),
    ActionCase("copy-files", "files.copy", CopyParams(name="uploads"), a_world),
    ActionCase("copy-files-again", "files.copy", CopyParams(name="uploads"), with_old_copies),
    ActionCase(
        "restore-files",
        "files.restore",
        RestoreFilesParams(name="uploads", into="backups"),
        with_old_copies,
        undoable=False,
    ),
    ActionCase(
        "restore-files-replacing",
        "files.restore",
        RestoreFilesParams(name="uploads", prefix="a/", replace=True),
        with_old_copies,
        undoable=False,
    ),
    ActionCase("undelete", "files.undelete", UndeleteParams(name="uploads", at="9:00"), a_world, undoable=False),
    ActionCase(
        "undelete-uncopied",
        "files.undelete",
        UndeleteParams(name="uploads", at="4h ago", prefix="a/", replace=True),
        partial(a_world, copied=False),
        undoable=False,
    ),
    ActionCase(
        "undelete-replacing",
        "files.undelete",
        UndeleteParams(name="uploads", at="4h ago", prefix="a/", replace=True),
        a_world,
        undoable=False,
    ),
    ActionCase("record-point", "point.record", RecordParams(), a_world),
    ActionCase("record-secrets", "point.record", RecordParams(), with_secrets),
    ActionCase("expire-points", "point.expire", ExpirePointsParams(), partial(with_old_records, pinned=True)),
    ActionCase("pin-point", "point.pin", PinPointParams(point="point-1", why="case 4711"), with_old_records),
    ActionCase("unpin-point", "point.unpin", UnpinPointParams(point="point-0"), partial(with_old_records, pinned=True)),
    ActionCase("expire-escrows", "secrets.expire", ExpireEscrowsParams(), partial(with_old_records, recorded=(4,))),
    ActionCase("mirror", "manifests.mirror", MirrorParams(), partial(a_world, mirrored=True)),
    ActionCase("escrow", "secrets.escrow", EscrowParams(), a_world),
    ActionCase("expire-copies", "secrets.expire", ExpireEscrowsParams(), with_old_sealed_copies),
    ActionCase("scale", "application.scale", ScaleParams(service="shop", workload="api", replicas=5), a_world),
    ActionCase("scale-down", "application.scale", ScaleParams(service="shop", workload="worker", replicas=0), a_world),
    ActionCase("rollout", "application.rollout", RolloutParams(service="shop"), a_world, asks=RESUME, undoable=False),
    ActionCase(
        "resume", "application.resume", ResumeParams(service="shop"), with_gitops_held, asks=RESUME, undoable=False
    ),
    *(
        ActionCase(f"answer-{word}", f"run.{word}", AnswerParams(run=ASKED), that_asks)
        for word in ("happened", "repeat", "undo", "leave")
    ),
    ActionCase("answer-skip", "run.skip", AnswerParams(run=ASKED, step=1), partial(that_asks, optional=True)),
    ActionCase("retry", "run.retry", RunParams(run=ASKED), that_failed),
    ActionCase("undo-finished", "run.undo_finished", RunParams(run=ASKED), that_succeeded, undoable=False),
    ActionCase("activate", "plan.activate", ActivateParams(document=NEXT_VERSION), a_world, undoable=False),
)

SICK_CASES = (
    ActionCase("sick", "restore.dump", RestoreParams(database="shop"), sick),
    ActionCase("sick-missing", "restore.dump", RestoreParams(database="shop"), partial(sick, missing=True)),
    ActionCase("sick-suspect", "restore.dump", RestoreParams(database="shop", instance_suspect=True), sick),
    ActionCase(
        "sick-git",
        "restore.recovery_point",
        RestorePointParams(point=POINT),
        partial(with_a_point_in_git, health="it answers 500"),
    ),
    ActionCase(
        "sick-secrets",
        "restore.recovery_point",
        RestorePointParams(point=POINT, secret="database"),
        partial(with_sealed_secrets, health="it answers 500"),
    ),
    ActionCase("broken-image", "restore.dump", RestoreParams(database="shop"), with_a_broken_image),
    ActionCase(
        "broken-scale",
        "application.scale",
        ScaleParams(service="shop", workload="api", replicas=5),
        with_a_broken_image,
    ),
)
"""Runs that fail by themselves and put back what they did."""
