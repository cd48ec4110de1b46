"""Restore a server to a moment: in a scratch instance, where it can be looked at; production is not touched.

What is then given back, and how, is a plan of its own, made from what is there: `restore.rescue`, `restore.swap` and
`restore.promote`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import ClassVar, Self

from pydantic import Field, model_validator

from actions.backup.physical import Change, Moment, PhysicalEntry, RecoveryTarget, RecoveryWindow, ScratchFacts
from actions.backup.proofs import Proofs
from actions.backup.tables import TableName
from actions.contract import (
    Action,
    Finding,
    Lock,
    Observation,
    Plan,
    Precondition,
    Query,
    Report,
    Risk,
    Step,
    Verdict,
)
from actions.errors import DrError, UserError
from actions.ports import Ports
from actions.site import Database, EngineKind, Frozen
from actions.steps.choice import restore_estimate, usable_entries
from actions.steps.finding import AROUND, around, line, moments_of, newest
from actions.steps.moments import exact, moment_of
from actions.steps.naming import job_name, label, scratch_mark
from actions.steps.phrases import size, span
from actions.steps.recovery import Aim, Forecast, aim_before, base_for, forecast, loss_words, measured, unreachable
from actions.steps.scratch import CheckScratch, RestoreScratch, StartScratch
from actions.steps.scratch_facts import BaseIs, ScratchRoom, no_room

RECENT = 10  # restore tests that are looked through for measured rates
ROOM = 1.3
"""A scratch instance takes its databases, the WAL beside them, and for a while a part of what it is made of."""


class PointParams(Frozen):
    """The moment: exactly one of them, but `xid` also picks one of several transactions that harmed a table."""

    database: str = Field(min_length=1)
    at: str | None = None  # as people write it; UTC unless it says otherwise
    lsn: str | None = None
    xid: int | None = Field(default=None, ge=3)  # 0, 1 and 2 are no transactions
    name: str | None = Field(default=None, min_length=1, max_length=63)  # of pg_create_restore_point
    before_drop: str | None = None  # the table
    before_delete: str | None = None
    before_truncate: str | None = None
    before_update: str | None = None
    latest: bool = False
    backup: str | None = None  # base to start from; None: the newest before the moment
    amcheck: bool = False
    keep: int | None = Field(default=None, ge=1, le=30 * 24)  # hours; None: as long as the plan file says

    @model_validator(mode="after")
    def _one(self) -> Self:
        harms = [self.before_drop, self.before_delete, self.before_truncate, self.before_update]
        given = [self.at, self.lsn, self.name, *harms, self.latest or None]
        count = sum(value is not None for value in given)
        if count + (self.xid is not None and not any(harms)) != 1:
            raise ValueError(
                "give one moment: --at, --lsn, --xid, --name, --before-drop, --before-delete, --before-truncate, "
                "--before-update or --latest"
            )
        return self

    @property
    def harm(self) -> tuple[Change, str] | None:
        """What to look for, and the table."""
        harms = {
            Change.DROP: self.before_drop,
            Change.DELETE: self.before_delete,
            Change.TRUNCATE: self.before_truncate,
            Change.UPDATE: self.before_update,
        }
        return next(((change, table) for change, table in harms.items() if table is not None), None)


class RestorePoint(Action[PointParams]):
    """A server as it was at a moment, started in scratch, checked and compared with production."""

    name: ClassVar[str] = "restore.point"
    summary: ClassVar[str] = "Restore a server to a moment in a scratch instance, beside production, and compare"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = PointParams
    steps: ClassVar[tuple[type[Step], ...]] = (RestoreScratch, StartScratch, CheckScratch)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (BaseIs, ScratchRoom)
    drillable: ClassVar[bool] = True

    async def plan(self, params: PointParams, ports: Ports, plan_id: str) -> Plan:
        database = ports.site.database(params.database)
        policy = ports.site.physical_of(database.server)
        aim, others = await _aim(params, ports, plan_id)
        scene = await _look(ports, database, aim, params)
        mark = scratch_mark(plan_id)
        base = scene.base.manifest
        bucket = ports.site.buckets.get(base.stored.bucket)
        steps: tuple[Step, ...] = (
            RestoreScratch(
                job=job_name(plan_id, 1),
                scratch=plan_id,
                server=database.server,
                target=aim.target,
                target_words=aim.words,
                backup=base.id,
                bucket=base.stored.bucket,
                endpoint=None if bucket is None else bucket.endpoint,
                key=base.stored.key,
                sha256=base.stored.sha256,
                stanza=policy.stanza if policy.engine is EngineKind.PGBACKREST else "",
                amcheck=params.amcheck or ports.site.physical_of(database.server).amcheck,
                keep=None if params.keep is None else timedelta(hours=params.keep),
                mark=mark,
            ),
            StartScratch(scratch=plan_id),
            CheckScratch(
                scratch=plan_id,
                database=params.database,
                name=database.name,
                production=database.ref,
                invariants=database.invariants,
                table=aim.table,
            ),
        )
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Restore `{database.server}` to {aim.words} in scratch instance `scratch-{plan_id}`",
            risk=self.risk,
            target=params.database,
            params=params.model_dump(mode="json"),
            locks=(Lock(key=f"scratch:{plan_id}"), Lock(key=f"physical:{database.server}", exclusive=False)),
            steps=steps,
            preconditions=(
                BaseIs(server=database.server, backup=base.id, manifest_sha256=scene.base.manifest_sha256),
                ScratchRoom(scratch=plan_id, at_least=scene.room),
            ),
            made_at=ports.clock.now(),
            findings=await _findings(ports, params.database, scene, aim, plan_id),
            observations=_observations(ports, scene, aim),
            alternatives=tuple(line(moment, ports.clock.now()) for moment in others),
            estimate=scene.forecast.total,
            data_loss=f"Nothing by this plan. Given back as a whole: {loss_words(aim, ports.clock.now())}.",
        )


class _Scene(Frozen):
    """What the plan is made from beside the aim."""

    database: Database
    base: PhysicalEntry
    windows: tuple[RecoveryWindow, ...]
    instances: tuple[ScratchFacts, ...]
    forecast: Forecast
    room: int  # bytes


async def _look(ports: Ports, database: Database, aim: Aim, params: PointParams) -> _Scene:
    server = database.server
    entries = await ports.physical.catalogue(server)
    base = base_for(server, entries, aim, backup=params.backup)
    windows = tuple(await ports.physical.windows(server))
    why = unreachable(server, windows, base, aim)
    if why is not None:
        raise UserError(why)
    instances = tuple(await ports.scratch.instances())
    tests = await Proofs(ports.objects, ports.secrets).newest(ports.site.physical_of(server), limit=RECENT)
    return _Scene(
        database=database,
        base=base,
        windows=windows,
        instances=instances,
        forecast=forecast(entries, base, aim, windows, measured(server, instances, tests)),
        room=int(max(base.manifest.server_bytes, base.manifest.plain_bytes) * ROOM),
    )


async def _aim(params: PointParams, ports: Ports, plan_id: str) -> tuple[Aim, Sequence[Moment]]:
    """The target, and the other moments that were found."""
    if params.harm is not None:
        change, text = params.harm
        table = TableName.parse(text)
        database = ports.site.database(params.database)
        found = await moments_of(ports, database, table, (change,), job=label("drbot", plan_id, "find"))
        chosen = newest(found, table, (change,))
        if params.xid is not None:
            chosen = _picked(found, params.xid, change, table)
        others = [moment for moment in found if moment != chosen][:AROUND]
        return aim_before(chosen, str(table)), others
    if params.at is not None:
        at = moment_of(params.at, ports.clock.now())
        return Aim(target=RecoveryTarget(time=at), at=at), ()
    target = RecoveryTarget(lsn=params.lsn, xid=params.xid, name=params.name, latest=params.latest)
    return Aim(target=target, lsn=params.lsn), ()


def _picked(found: Sequence[Moment], xid: int, change: Change, table: TableName) -> Moment:
    for moment in found:
        if moment.xid == xid:
            return moment
    known = ", ".join(str(moment.xid) for moment in found[:AROUND])
    raise UserError(f"Transaction {xid} is no {change.upper()} of `{table}` that is archived. There are: {known}.")


async def _findings(ports: Ports, key: str, scene: _Scene, aim: Aim, plan_id: str) -> tuple[Finding, ...]:
    found: list[Finding] = []
    why = await no_room(ports, plan_id, scene.room)
    if why is not None:
        found.append(Finding(check="room", verdict=Verdict.STOP, detail=why))
    rto = scene.database.rto
    if scene.forecast.total > rto:
        found.append(
            Finding(
                check="RTO",
                verdict=Verdict.WARN,
                detail=f"The RTO cannot be met by this: {scene.forecast.words(rto)}.",
                hint=await _quicker(ports, key, scene, aim),
            )
        )
    if aim.target.time is not None and aim.at is not None:
        found.append(
            Finding(
                check="clock",
                verdict=Verdict.OK,
                detail=f"Commits up to {exact(aim.at)} by the server's own clock are in, later ones are not.",
            )
        )
    return tuple(found)


async def _quicker(ports: Ports, key: str, scene: _Scene, aim: Aim) -> str:
    """What can be had within the RTO."""
    ways = []
    for facts in scene.instances:
        reached = None if facts.restored is None else facts.restored.reached_at
        if facts.server == scene.database.server and reached is not None and (aim.at is None or reached <= aim.at):
            ways.append(f"`{facts.name}` is there already, of {exact(reached)}")
    if key in ports.site.backups:
        try:
            dumps = usable_entries(await ports.backups.catalogue(key), before=aim.at)
        except DrError:
            dumps = ()
        if dumps:
            needs = restore_estimate(dumps[0], await ports.runs.last_load(key))
            if needs <= scene.database.rto:
                taken = exact(dumps[0].manifest.snapshot_at)
                ways.append(f"the dump of {taken} takes {span(needs)}: `/dr-restore {key}`")
    if not ways:
        return "Nothing quicker is there. Keep a scratch instance ready for the next time (`--keep HOURS`)."
    return f"Quicker: {'; '.join(ways)}."


def _observations(ports: Ports, scene: _Scene, aim: Aim) -> tuple[Observation, ...]:
    base, rto = scene.base.manifest, scene.database.rto
    proven = "never proven" if scene.base.proven_at is None else f"proven {exact(scene.base.proven_at)}"
    newest_commit = max((window.newest for window in scene.windows if window.newest), default=None)
    lines = [
        ("recommended", loss_words(aim, ports.clock.now())),
        ("forecast", scene.forecast.words(rto)),
        ("base", f"`{base.id}` ({base.kind}), {exact(base.finished_at)}, {proven}"),
        ("newest archived commit", "none" if newest_commit is None else exact(newest_commit)),
        ("room", f"{size(scene.room)} of {size(ports.site.scratch.disk)}, {len(scene.instances)} instances now"),
    ]
    if aim.moment is not None:
        lines.insert(1, ("committed around it", around(aim.moment)))
    return tuple(Observation(name=name, value=value) for name, value in lines)


class FindParams(Frozen):
    """Which table was harmed, and how; any way when none is named."""

    database: str = Field(min_length=1)
    table: str = Field(min_length=1)
    change: Change | None = None
    since: str | None = None


class FindMoment(Query[FindParams]):
    """What harmed a table, newest first, with what was committed around it and what each moment loses."""

    name: ClassVar[str] = "restore.find"
    summary: ClassVar[str] = "Find when a table was dropped, truncated or deleted from, in the archived WAL"
    params = FindParams

    async def read(self, params: FindParams, ports: Ports) -> Report:
        database, table = ports.site.database(params.database), TableName.parse(params.table)
        ports.site.physical_of(database.server)
        changes = (Change.DROP, Change.TRUNCATE, Change.DELETE) if params.change is None else (params.change,)
        now = ports.clock.now()
        since = None if params.since is None else moment_of(params.since, now)
        job = label("drbot", "find", params.database, str(table), f"{now:%Y%m%d%H%M%S%f}")
        moments = await moments_of(ports, database, table, changes, job=job, since=since)
        best = newest(moments, table, changes)
        aim = aim_before(best, str(table))
        return Report(
            title=f"Restore to {aim.words}: {loss_words(aim, now)}",
            lines=(
                around(best),
                f"`/dr-restore {params.database} --before-{best.change} {table}` shows it in a scratch instance.",
            ),
            columns=("change", "committed", "transaction", "rows", "LSN", "commits since"),
            rows=tuple(
                (
                    item.change,
                    exact(item.committed_at),
                    str(item.xid),
                    str(item.rows or ""),
                    item.commit_lsn,
                    str(item.lost),
                )
                for item in moments
            ),
        )
