"""Restore a server to a moment: in a scratch instance, where it can be looked at; production is not touched.

What is then given back, and how, is a plan of its own, made from what is there: `restore.rescue`, `restore.swap` and
`restore.promote`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar

from pydantic import Field

from actions.backup.physical import Change
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
from actions.ports import Ports
from actions.site import Frozen
from actions.steps.aiming import MomentParams, aim_of, unseen_findings
from actions.steps.finding import around, around_place, line, moments_of, newest
from actions.steps.forecasts import rto_findings
from actions.steps.moments import exact, moment_of
from actions.steps.naming import label
from actions.steps.phrases import size
from actions.steps.recovery import Aim, aim_before, loss_words
from actions.steps.restore_scene import (
    RestoreScene,
    Wish,
    branch_findings,
    look,
    page_findings,
    quicker,
    room_findings,
    scratch_steps,
)
from actions.steps.scratch import CheckScratch, RestoreScratch, StartScratch
from actions.steps.scratch_facts import BaseIs, ScratchRoom


class PointParams(MomentParams):
    """Which database's server, and the moment."""

    database: str = Field(min_length=1)
    backup: str | None = None  # base to start from; None: the newest before the moment
    amcheck: bool = False
    keep: int | None = Field(default=None, ge=1, le=30 * 24)  # hours; None: as long as the plan file says


class RestorePoint(Action[PointParams]):
    """A server as it was at a moment, started in scratch, checked and compared with production."""

    name: ClassVar[str] = "restore.point"
    summary: ClassVar[str] = "Restore a server to a moment in a scratch instance, beside production, and compare"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = PointParams
    steps: ClassVar[tuple[type[Step], ...]] = (RestoreScratch, StartScratch, CheckScratch)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (BaseIs, ScratchRoom)

    async def plan(self, params: PointParams, ports: Ports, plan_id: str) -> Plan:
        database = ports.site.database(params.database)
        aim, others = await aim_of(params, ports, database=params.database, plan_id=plan_id)
        scene = await look(ports, database, aim, backup=params.backup)
        base = scene.base.manifest
        keep = None if params.keep is None else timedelta(hours=params.keep)
        wish = Wish(database=params.database, aim=aim, amcheck=params.amcheck, keep=keep)
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Restore `{database.server}` to {aim.words} in scratch instance `scratch-{plan_id}`",
            risk=self.risk,
            target=params.database,
            params=params.model_dump(mode="json"),
            locks=(Lock(key=f"scratch:{plan_id}"), Lock(key=f"physical:{database.server}", exclusive=False)),
            steps=scratch_steps(ports, scene, wish, plan_id),
            preconditions=(
                BaseIs(server=database.server, backup=base.id, manifest_sha256=scene.base.manifest_sha256),
                ScratchRoom(scratch=plan_id, at_least=scene.room),
            ),
            made_at=ports.clock.now(),
            findings=await _findings(ports, params.database, scene, aim, plan_id),
            observations=_observations(ports, scene, aim),
            alternatives=tuple(line(moment, ports.clock.now()) for moment in others),
            estimate=scene.forecast.total,
            phases=scene.forecast.phases,
            data_loss=f"Nothing by this plan. Given back as a whole: {loss_words(aim, ports.clock.now())}.",
        )


async def _findings(ports: Ports, key: str, scene: RestoreScene, aim: Aim, plan_id: str) -> tuple[Finding, ...]:
    found = [*branch_findings(scene), *page_findings(scene), *await room_findings(ports, scene.room, plan_id)]
    takes, rto = scene.forecast.total, scene.database.rto
    if takes > rto:
        found += rto_findings(takes, rto, scene.forecast.words(rto), instead=await quicker(ports, key, scene, aim))
    found += unseen_findings(aim)
    if aim.target.time is not None and aim.at is not None:
        found.append(
            Finding(
                check="clock",
                verdict=Verdict.OK,
                detail=f"Commits up to {exact(aim.at)} by the server's own clock are in, later ones are not.",
            )
        )
    return tuple(found)


def _observations(ports: Ports, scene: RestoreScene, aim: Aim) -> tuple[Observation, ...]:
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
    elif aim.place is not None:
        lines.insert(1, ("committed around it", around_place(aim.place)))
    return tuple(Observation(name=name, value=value) for name, value in lines)


class FindParams(Frozen):
    """Which table was harmed, and how; by a DROP, TRUNCATE or DELETE when none is named."""

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
