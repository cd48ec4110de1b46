"""A restore into a scratch instance: what it is made from, its steps, and what would be quicker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from actions.backup.physical import DeadEnd, PhysicalEntry, RecoveryWindow, ScratchFacts, ScratchState
from actions.backup.proofs import Proofs
from actions.backup.windows import dead_ends
from actions.contract import Finding, Step, Verdict
from actions.engines import engine_of
from actions.errors import DrError, UserError
from actions.ports import Ports
from actions.site import Database, Frozen
from actions.steps.choice import restore_estimate, usable_entries
from actions.steps.forecasts import patience
from actions.steps.heavy import job_timeout
from actions.steps.moments import exact
from actions.steps.naming import job_name, scratch_mark
from actions.steps.page_checksums import backup_findings
from actions.steps.phrases import span
from actions.steps.recovery import Aim, Forecast, Measured, base_for, forecast, measured, unreachable
from actions.steps.scratch import CHECK_LIMIT, CheckScratch, RestoreScratch, StartScratch
from actions.steps.scratch_facts import no_room
from actions.steps.standby import halting, may_halt
from actions.steps.stored_chain import StoredChain

RECENT = 10  # restore tests that are looked through for measured rates
ROOM = 1.3
"""A scratch instance takes its databases, the WAL beside them, and for a while a part of what it is made of."""


class Wish(Frozen):
    """What is asked for."""

    database: str  # its key in the plan file
    aim: Aim
    amcheck: bool = False
    keep: timedelta | None = None  # None: as long as the plan file says
    follows: bool = False  # afterwards: this is no moment to bring anything back from


class RestoreScene(Frozen):
    """What the plan is made from beside the aim."""

    database: Database
    base: PhysicalEntry
    dead_end: DeadEnd | None  # of the base
    instead: str  # a base backup that leads to the target along what the server went on with; "" when there is none
    windows: tuple[RecoveryWindow, ...]
    instances: tuple[ScratchFacts, ...]
    forecast: Forecast
    rates: tuple[Measured, ...]
    counted: int  # bytes of the database that is looked through
    room: int  # bytes
    stored: StoredChain | None  # None: only the engine can read it


def room_for(base: PhysicalEntry) -> int:
    """Bytes that an instance made of this base backup may take."""
    return int(max(base.manifest.server_bytes, base.manifest.plain_bytes) * ROOM)


async def look(ports: Ports, database: Database, aim: Aim, *, backup: str | None) -> RestoreScene:
    server, policy = database.server, ports.site.physical_of(database.server)
    entries = await ports.physical.catalogue(server)
    windows = tuple(await ports.physical.windows(server))
    dead = dead_ends(windows)
    base = base_for(server, entries, aim, backup=backup, dead=dead)
    why = unreachable(server, windows, base, aim)
    if why is not None:
        raise UserError(why)
    instances = tuple(await ports.scratch.instances())
    tests = await Proofs(ports.objects, ports.secrets).newest(policy, limit=RECENT)
    # Beside the backup itself nothing tells of a test that a prover of its own has signed.
    proven = [
        base.proven_at,
        *(test.proven_at for test in tests if (test.backup, test.problem) == (base.manifest.id, None)),
    ]
    base = base.model_copy(update={"proven_at": max((at for at in proven if at is not None), default=None)})
    rates, counted = measured(server, instances, tests), await _counted(ports, database, base)
    return RestoreScene(
        database=database,
        base=base,
        dead_end=dead.get(base.manifest.id),
        instead=_instead(server, entries, aim, dead),
        windows=windows,
        instances=instances,
        forecast=forecast(entries, base, aim, windows, rates, counted=counted),
        rates=tuple(rates),
        counted=counted,
        room=room_for(base),
        stored=engine_of(policy).chain(ports.site, server, entries, base),
    )


async def _counted(ports: Ports, database: Database, base: PhysicalEntry) -> int:
    """Bytes of the database that is looked through; all of its server's where that does not answer."""
    try:
        facts = await ports.postgres.database(database.ref)
    except DrError:
        facts = None
    return base.manifest.server_bytes if facts is None else facts.bytes


def _instead(server: str, entries: Sequence[PhysicalEntry], aim: Aim, dead: Mapping[str, DeadEnd]) -> str:
    if aim.target.timeline_id in {end.timeline_id for end in dead.values()}:
        return ""  # what is asked for is of the branch itself
    living = [entry for entry in entries if entry.manifest.id not in dead]
    try:
        return base_for(server, living, aim, backup=None).manifest.id
    except UserError:
        return ""


def branch_findings(scene: RestoreScene) -> list[Finding]:
    """That the base leads to the end of a branch which the server has left."""
    end, base = scene.dead_end, scene.base.manifest.id
    if end is None:
        return []
    return [
        Finding(
            check="timeline",
            verdict=Verdict.WARN,
            detail=(
                f"Base backup `{base}` ends on the dead branch of timeline {end.timeline_id}, whose WAL ends at "
                f"{end.lsn}. The server went on with timeline {end.living} from {end.forked_at}: everything committed "
                "there since is not in this restore."
            ),
            hint=(
                f"Use base backup `{scene.instead}`: say it with `--from {scene.instead}`."
                if scene.instead
                else "No other base backup leads to what is asked for. For what comes from now on take a new one: "
                f"`/dr-backup base {scene.database.server}`."
            ),
        )
    ]


def page_findings(scene: RestoreScene) -> list[Finding]:
    """Whether the pages of what is restored can be checked."""
    return backup_findings(scene.database.server, scene.base.manifest.id, scene.base.manifest.checksums)


def scratch_steps(ports: Ports, scene: RestoreScene, wish: Wish, plan_id: str) -> tuple[Step, ...]:
    """Restored, started and checked, under the plan's own id."""
    database, base, aim = scene.database, scene.base.manifest, wish.aim
    policy = ports.site.physical_of(database.server)
    return (
        RestoreScratch(
            job=job_name(plan_id, 1),
            scratch=plan_id,
            server=database.server,
            target=aim.target,
            target_words=aim.words,
            backup=base.id,
            bucket=scene.base.bucket,
            endpoint=ports.site.endpoint_of(scene.base.bucket),
            key=base.stored.key,
            sha256=base.stored.sha256,
            engine=policy.engine,
            stanza=engine_of(policy).label(policy),
            stored=scene.stored,
            superuser="" if scene.stored is not None else base.superuser,
            amcheck=wish.amcheck or policy.amcheck,
            keep=wish.keep,
            mark=scratch_mark(plan_id),
            timeout=job_timeout(scene.forecast.total),
        ),
        StartScratch(scratch=plan_id),
        check_step(
            database,
            wish.database,
            scratch=plan_id,
            table=aim.table,
            passing=wish.follows,
            counting=scene.forecast.counting,
        ),
    )


def check_step(
    database: Database,
    key: str,
    *,
    scratch: str,
    table: str,
    passing: bool = False,
    counting: timedelta = timedelta(0),
) -> CheckScratch:
    """`key`: of the database in the plan file. `table`: that it is about, where one was harmed."""
    return CheckScratch(
        scratch=scratch,
        database=key,
        name=database.name,
        production=database.ref,
        invariants=database.invariants,
        table=table,
        passing=passing,
        timeout=patience(counting, at_least=CHECK_LIMIT),
    )


async def room_findings(ports: Ports, room: int, plan_id: str) -> list[Finding]:
    """That a scratch instance of so many bytes cannot be made now."""
    why = await no_room(ports, plan_id, room)
    return [] if why is None else [Finding(check="room", verdict=Verdict.STOP, detail=why)]


async def quicker(ports: Ports, key: str, scene: RestoreScene, aim: Aim) -> str:
    """What can be had within the RTO."""
    ways = []
    for facts in scene.instances:
        if facts.server == scene.database.server and may_halt(facts, aim):
            base = scene.base.manifest
            takes = halting(facts, aim, scene.rates, size=base.server_bytes or base.plain_bytes, counted=scene.counted)
            what = f"`/dr-restore halt {facts.id}` takes {span(takes.total)}"
            ways.append(f"`{facts.name}` follows and is before it: {what}")
        shows = facts.restored is not None and facts.state is not ScratchState.FOLLOWING
        reached = facts.restored.reached_at if facts.restored is not None and shows else None
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
        return f"Nothing quicker is there. For the next time keep one ready: `/dr-restore follow {key} --delay 4h`."
    return f"Quicker: {'; '.join(ways)}."
