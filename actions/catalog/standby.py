"""A server kept ready, replaying, optionally hours behind: a delayed standby out of the archive, which becomes the
restore where a download would take longer than the RTO."""

from __future__ import annotations

import operator
from datetime import datetime, timedelta
from typing import ClassVar

from pydantic import Field

from actions.backup.physical import Lsn, RecoveryTarget, ScratchFacts
from actions.contract import Action, Finding, Lock, Observation, Plan, Precondition, Risk, Step, Verdict
from actions.errors import DrError, UserError
from actions.ports import Ports
from actions.site import Database, Frozen
from actions.steps.aiming import MomentParams, aim_of, unseen_findings
from actions.steps.finding import around_place, point_ahead
from actions.steps.forecasts import patience, rto_findings
from actions.steps.moments import delay_of, exact
from actions.steps.naming import label, scratch_mark
from actions.steps.phrases import span
from actions.steps.recovery import Aim, loss_words, measured
from actions.steps.restore_scene import (
    RestoreScene,
    Wish,
    branch_findings,
    check_step,
    look,
    page_findings,
    room_findings,
    scratch_steps,
)
from actions.steps.scratch import CheckScratch, RestoreScratch, StartScratch
from actions.steps.scratch_facts import BaseIs, ScratchRoom
from actions.steps.standby import (
    HALT_LIMIT,
    FollowsBefore,
    FollowScratch,
    HaltScratch,
    ReplaceStandby,
    already_past,
    behind,
    halting,
    replayed,
    state_words,
)
from actions.steps.standing import database_of, known

LONGEST = timedelta(days=7)
NOTHING_NEARER = (
    "Nothing is nearer to it. For the next time follow with a shorter `--delay`: less is left to be replayed."
)


class FollowParams(Frozen):
    """Which database's server."""

    database: str = Field(min_length=1)
    delay: str | None = None  # `4h`; None: it replays at once, or as the one whose place it takes
    # Left out where it takes nobody's place: a plan that was signed before it could be asked for keeps its digest.
    instead_of: str | None = Field(default=None, exclude_if=operator.not_)


class Follow(Action[FollowParams]):
    """Restored in scratch, checked, and from then on a standby that replays what the archive gains."""

    name: ClassVar[str] = "restore.follow"
    summary: ClassVar[str] = "Keep a restored server ready that replays the archive, optionally hours behind"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = FollowParams
    steps: ClassVar[tuple[type[Step], ...]] = (
        RestoreScratch,
        StartScratch,
        CheckScratch,
        FollowScratch,
        ReplaceStandby,
    )
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (BaseIs, ScratchRoom)

    async def plan(self, params: FollowParams, ports: Ports, plan_id: str) -> Plan:
        database = ports.site.database(params.database)
        old = None if params.instead_of is None else await _standby(ports, params.instead_of, database.server)
        kept = timedelta(0) if old is None or old.following is None else old.following.delay
        delay = kept if params.delay is None else delay_of(params.delay)
        if delay > LONGEST:
            raise UserError(f"{span(delay)} is more than {span(LONGEST)}: restore from a base backup instead.")
        others = [facts for facts in await ports.scratch.instances() if facts.following is not None]
        aim = await _begin(ports, database.server, delay)
        scene = await look(ports, database, aim, backup=None)
        base = scene.base.manifest
        scene = scene.model_copy(update={"room": scene.room + _wal_of(scene, delay)})
        follow = FollowScratch(scratch=plan_id, delay=delay, mark=scratch_mark(plan_id))
        wish = Wish(database=params.database, aim=aim, follows=True)
        place = "" if old is None else f", in the place of `{old.name}`"
        steps: tuple[Step, ...] = (*scratch_steps(ports, scene, wish, plan_id), follow)
        if old is not None:
            replaced = ReplaceStandby(scratch=old.id, mark=old.mark, server=database.server, new=plan_id)
            steps = (*steps, replaced)
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Keep `scratch-{plan_id}` as a standby of `{database.server}`{behind(delay)}, out of the archive"
            f"{place}",
            risk=self.risk,
            target=params.database,
            params=params.model_dump(mode="json"),
            locks=(
                Lock(key=f"scratch:{plan_id}"),
                *(() if old is None else (Lock(key=f"scratch:{old.id}"),)),
                Lock(key=f"physical:{database.server}", exclusive=False),
            ),
            steps=steps,
            preconditions=(
                BaseIs(server=database.server, backup=base.id, manifest_sha256=scene.base.manifest_sha256),
                ScratchRoom(scratch=plan_id, at_least=scene.room),
            ),
            made_at=ports.clock.now(),
            findings=(
                *branch_findings(scene),
                *page_findings(scene),
                *await room_findings(ports, scene.room, plan_id),
                _kept(delay),
            ),
            observations=_observations(scene, others),
            estimate=scene.forecast.total,
            phases=scene.forecast.phases,
            data_loss="Nothing: production is not touched.",
        )


async def _standby(ports: Ports, scratch: str, server: str) -> ScratchFacts:
    """The one whose place is taken. Raises UserError unless it follows this server."""
    facts = await known(ports, scratch)
    if facts.following is None or facts.following.halting is not None:
        raise UserError(f"`{facts.name}` does not follow, so nothing takes its place. See `/dr-restore scratch`.")
    if facts.server != server:
        raise UserError(f"`{facts.name}` follows server `{facts.server}`. Name a database of that server.")
    return facts


async def _begin(ports: Ports, server: str, delay: timedelta) -> Aim:
    """Where it begins: so long ago, that it holds nothing younger; at the end of the archive where that is older."""
    at = ports.clock.now() - delay
    newest = max((each.newest for each in await ports.physical.windows(server) if each.newest), default=None)
    if not delay or newest is None or newest <= at:
        return Aim(target=RecoveryTarget(latest=True))
    return Aim(target=RecoveryTarget(time=at), at=at)


def _wal_of(scene: RestoreScene, delay: timedelta) -> int:
    """Bytes of WAL that it keeps unreplayed, at the rate that the server wrote since the base backup."""
    base, newest = (
        scene.base.manifest,
        max(
            (each for each in scene.windows if each.newest_lsn and each.newest is not None),
            key=lambda each: Lsn.parse(each.newest_lsn),
            default=None,
        ),
    )
    if newest is None or newest.newest is None or newest.newest <= base.started_at:
        return 0
    written = max(0, Lsn.parse(newest.newest_lsn) - Lsn.parse(base.start_lsn))
    return round(written * (delay / (newest.newest - base.started_at)))


def _kept(delay: timedelta) -> Finding:
    wal = f" and {span(delay)} of WAL" if delay else ""
    return Finding(
        check="kept",
        verdict=Verdict.OK,
        detail=f"It keeps its room{wal} on the worker's disk until `/dr-restore discard`; it is not removed by itself.",
    )


def _observations(scene: RestoreScene, others: list[ScratchFacts]) -> tuple[Observation, ...]:
    lines = [("forecast", scene.forecast.words(scene.database.rto)), ("base", f"`{scene.base.manifest.id}`")]
    lines += [(each.name, state_words(each, each.following)) for each in others if each.following is not None]
    return tuple(Observation(name=name, value=value) for name, value in lines)


class HaltParams(MomentParams):
    """Which instance, and the moment."""

    scratch: str = Field(min_length=1)
    database: str | None = None  # where its server has several


class Halt(Action[HaltParams]):
    """A following instance stopped at a moment that it has not replayed: a restore to it, without a download."""

    name: ClassVar[str] = "restore.halt"
    summary: ClassVar[str] = "Stop an instance that follows at a moment, so that it becomes the restore to it"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = HaltParams
    steps: ClassVar[tuple[type[Step], ...]] = (HaltScratch, StartScratch, CheckScratch)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (FollowsBefore,)

    async def plan(self, params: HaltParams, ports: Ports, plan_id: str) -> Plan:
        facts = await known(ports, params.scratch)
        told = facts.following
        if told is None:
            raise UserError(f"`{facts.name}` does not follow, so it stands at its moment. See `/dr-restore scratch`.")
        key, database = database_of(ports, facts, params.database)
        if params.name is not None:
            point = await point_ahead(ports, facts.server, params.name, told, job=label("drbot", plan_id, "find"))
            aim = Aim(target=point.target, at=point.before_at, lsn=point.lsn, point=point.name)
        else:
            aim, _ = await aim_of(params, ports, database=key, plan_id=plan_id)
        target = aim.stop
        if target is None:
            raise UserError(
                "A replay is stopped at `--at`, `--lsn`, `--name`, `--latest` or before what harmed a table. Use one."
            )
        if (why := already_past(facts, told, target)) is not None:
            raise UserError(why)
        size, counted = await _sizes(ports, facts, database)
        takes = halting(facts, aim, measured(facts.server, [facts], ()), size=size, counted=counted)
        now = ports.clock.now()
        forecast = takes.words(database.rto)
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Stop `{facts.name}` at {aim.words}, as the restore of `{facts.server}` to it",
            risk=self.risk,
            target=facts.id,
            params=params.model_dump(mode="json"),
            locks=(Lock(key=f"scratch:{facts.id}"),),
            steps=(
                HaltScratch(
                    scratch=facts.id,
                    server=facts.server,
                    target=target,
                    target_words=aim.words,
                    delay=told.delay,
                    timeout=patience(takes.stop, at_least=HALT_LIMIT),
                ),
                StartScratch(scratch=facts.id),
                check_step(database, key, scratch=facts.id, table=aim.table, counting=takes.counting),
            ),
            preconditions=(FollowsBefore.of(facts, target),),
            made_at=now,
            findings=(
                *_told(told.problem),
                *_due(aim, told.delay, now),
                *unseen_findings(aim),
                *rto_findings(takes.total, database.rto, forecast, instead=NOTHING_NEARER),
            ),
            observations=(
                Observation(name="replayed", value=replayed(told)),
                Observation(name="recommended", value=loss_words(aim, now)),
                *(
                    ()
                    if aim.place is None
                    else (Observation(name="committed around it", value=around_place(aim.place)),)
                ),
                Observation(name="forecast", value=forecast),
                Observation(name="archive read", value=_read(told.fed_at)),
            ),
            estimate=takes.total,
            data_loss=f"Nothing by this plan. Given back as a whole: {loss_words(aim, now)}.",
        )


async def _sizes(ports: Ports, facts: ScratchFacts, database: Database) -> tuple[int, int]:
    """Bytes of all its databases, and of this one; where it does not answer what its restore was given room for."""
    try:
        found = {each.name: each.bytes for each in await ports.postgres.databases(facts.name)}
    except DrError:
        return facts.bytes, facts.bytes
    return sum(found.values()), found.get(database.name, 0)


def _read(at: datetime | None) -> str:
    return "not yet" if at is None else exact(at)


SOON = timedelta(minutes=30)


def _due(aim: Aim, delay: timedelta, now: datetime) -> tuple[Finding, ...]:
    """That it will have replayed the moment before long, which nothing brings back."""
    at = aim.target.time if aim.moment is None else aim.moment.committed_at
    if at is None or not delay or at + delay > now + SOON:
        return ()
    left = at + delay - now
    when = f"in {span(left)}, at {exact(at + delay)}" if left > timedelta(0) else f"since {exact(at + delay)}"
    detail = f"It is due to replay beyond that moment {when}. A replay never goes back."
    return (Finding(check="time left", verdict=Verdict.WARN, detail=detail, hint="Sign and run this before then."),)


def _told(problem: str) -> tuple[Finding, ...]:
    """It can be stopped all the same; whoever reads the plan must know what is not in it."""
    hint = "What was brought before is here, and nothing later."
    return (Finding(check="archive", verdict=Verdict.WARN, detail=problem, hint=hint),) if problem else ()
