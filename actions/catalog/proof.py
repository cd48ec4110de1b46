"""The restore test: whether the backups alone bring the server, or a dump its database, back, and how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import Field

from actions.backup import dump_scratch
from actions.backup.chain import base_for
from actions.backup.physical import PhysicalEntry, Proof, RecoveryTarget, RecoveryWindow
from actions.backup.proofs import Proofs
from actions.backup.windows import a_moment, ends_of, reachable
from actions.contract import Action, DrillOf, Finding, Lock, Observation, Plan, Precondition, Risk, Step
from actions.engines import engine_of
from actions.errors import UserError
from actions.ports import CatalogueEntry, Ports
from actions.schedules import Schedule
from actions.site import BackupPolicy, Database, Frozen, Site
from actions.steps import upgrades
from actions.steps.base_choice import server_named
from actions.steps.choice import chosen, restore_estimate, usable_entries
from actions.steps.engine_backup import EngineBackup
from actions.steps.forecasts import patience
from actions.steps.heavy import job_timeout
from actions.steps.naming import job_name, scratch_mark
from actions.steps.page_checksums import backup_findings
from actions.steps.phrases import moment, names, span
from actions.steps.proving import LookThrough, ProvenDatabase, RestoreForTest
from actions.steps.proving_dumps import CompareForTest, LoadForTest
from actions.steps.recovery import Aim, Forecast, forecast, measured
from actions.steps.restore_scene import room_findings, room_for
from actions.steps.restore_test import RemoveScratch
from actions.steps.scratch import CHECK_LIMIT
from actions.steps.scratch_facts import ScratchRoom


class When(StrEnum):
    """What is restored: the newest moment there is, or any moment of the recovery window."""

    LATEST = "latest"
    RANDOM = "random"


NEWEST = "newest"
"""For `ProveParams.dump`: the newest usable one."""


class ProveParams(Frozen):
    """Which server (by its name or a database's; the only one when none is named), and to which moment; or, with
    `dump`, which dump of a database. A database that has dumps alone is tested by its newest one."""

    server: str | None = None
    moment: When = When.LATEST
    # Left out where none is asked for: a request that was stored before it could be stays the same.
    dump: str | None = Field(default=None, exclude_if=lambda dump: dump is None)


class Prove(Action[ProveParams]):
    """Restore into a scratch instance, or load a dump into one, look through it, record what was found and measured,
    remove it."""

    name: ClassVar[str] = "backup.prove"
    summary: ClassVar[str] = "Test that backups or a dump can be restored, and measure how long it takes"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = ProveParams
    steps: ClassVar[tuple[type[Step], ...]] = (
        RestoreForTest,
        LookThrough,
        LoadForTest,
        CompareForTest,
        RemoveScratch,
    )
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (ScratchRoom,)
    drillable: ClassVar[DrillOf | None] = DrillOf.SERVER

    async def plan(self, params: ProveParams, ports: Ports, plan_id: str) -> Plan:
        database = _dumped(ports.site, params)
        if database is not None:
            return await self._of_dump(database, params, ports, plan_id)
        server = server_named(ports.site, params.server)
        policy = ports.site.physical_of(server)
        entries = await ports.physical.catalogue(server)
        windows = await ports.physical.windows(server)
        target, base = _target(server, entries, windows, params.moment, plan_id)
        tests = await Proofs(ports.objects, ports.secrets).newest(policy, limit=10)
        takes = _forecast(server, entries, base, target, windows, tests)
        mark, known = scratch_mark(plan_id), await upgrades.of_bases(ports, server)
        protected = {
            key: database for key, database in sorted(ports.site.databases.items()) if database.server == server
        }
        restore = RestoreForTest(
            job=job_name(plan_id, 1),
            server=server,
            scratch=plan_id,
            mark=mark,
            target=target,
            bucket=policy.bucket,
            endpoint=ports.site.endpoint_of(policy.bucket),
            prefix=policy.prefix,
            amcheck=policy.amcheck,
            engine=policy.engine,
            stored=None if base is None else engine_of(policy).chain(ports.site, server, entries, base),
            tested=None if base is None else EngineBackup.of(ports.site, server, entries, base),
            known=known,
            timeout=job_timeout(takes.total),
        )
        look = LookThrough(
            server=server,
            scratch=plan_id,
            mark=mark,
            databases=tuple([await _proven(ports, key, database) for key, database in protected.items()]),
            known=known,
            timeout=patience(takes.counting, at_least=CHECK_LIMIT),
        )
        good = [test for test in tests if test.problem is None]
        room = 0 if base is None else room_for(base)
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Test the restore of server `{server}` to {target}",
            risk=self.risk,
            target=server,
            params=params.model_dump(mode="json"),
            # A restore in earnest, which takes a database for itself, makes the test give way.
            locks=(
                *(Lock(key=f"database:{key}", exclusive=False) for key in protected),
                Lock(key=f"proof:{server}"),
            ),
            steps=(restore, look, RemoveScratch(scratch=plan_id, mark=mark)),
            preconditions=(ScratchRoom(scratch=plan_id, at_least=room),),
            made_at=ports.clock.now(),
            findings=(
                *await _room_findings(ports, room, plan_id),
                *(() if base is None else backup_findings(server, base.manifest.id, base.manifest.checksums)),
            ),
            observations=(
                Observation(name="last test", value=_words(tests)),
                Observation(name="last that passed", value=_words(good)),
            ),
            estimate=good[0].rto if good else takes.total or None,
        )

    async def _of_dump(self, key: str, params: ProveParams, ports: Ports, plan_id: str) -> Plan:
        database, policy = ports.site.database(key), ports.site.backup(key)
        if params.moment is not When.LATEST:
            raise UserError(f"A dump of `{key}` shows one moment, so none can be drawn. Leave `random` out.")
        entries = await ports.backups.catalogue(key)
        entry = chosen(key, entries, backup=None if params.dump in (None, NEWEST) else params.dump, before=None)
        if entry.problem is not None:
            raise UserError(f"Dump `{entry.manifest.id}` must not be used: {entry.problem} Test another one.")
        tests = await Proofs(ports.objects, ports.secrets).newest(policy, limit=10)
        good = [test for test in tests if test.problem is None]
        takes = restore_estimate(entry, await ports.runs.last_load(key))
        room = dump_scratch.room_for(entry.manifest)
        physical = ports.site.physical.get(database.server)
        shared: dict[str, Any] = {
            "database": key,
            "server": database.server,
            "scratch": plan_id,
            "mark": scratch_mark(plan_id),
            "backup": entry.manifest.id,
            "name": _name(database.name),
            "amcheck": physical is not None and physical.amcheck,
            "following": _following(policy, entries, entry, ports.clock.now()),
            "known": await upgrades.of_dumps(ports, key),
        }
        stored = entry.manifest.stored
        load = LoadForTest(
            **shared,
            job=job_name(plan_id, 1),
            jobs=database.restore_jobs,
            bucket=stored.bucket,
            endpoint=ports.site.endpoint_of(stored.bucket),
            key=stored.key,
            sha256=stored.sha256,
            snapshot_at=entry.manifest.snapshot_at,
            timeout=job_timeout(takes),
        )
        compare = CompareForTest(
            **shared,
            manifest_sha256=entry.manifest_sha256,
            invariants=database.invariants,
            tables=len(entry.manifest.fingerprint.rows),
            timeout=patience(takes, at_least=CHECK_LIMIT),
        )
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Test that dump `{entry.manifest.id}` of database `{key}` can be loaded",
            risk=self.risk,
            target=key,
            params=params.model_dump(mode="json"),
            # One test after the other for each server: they share the machine, and measure it.
            locks=(Lock(key=f"database:{key}", exclusive=False), Lock(key=f"proof:{database.server}")),
            steps=(load, compare, RemoveScratch(scratch=plan_id, mark=scratch_mark(plan_id))),
            preconditions=(ScratchRoom(scratch=plan_id, at_least=room),),
            made_at=ports.clock.now(),
            findings=tuple(await _room_findings(ports, room, plan_id)),
            observations=(
                Observation(name="dump of", value=moment(entry.manifest.snapshot_at)),
                Observation(name="last test", value=_words(tests)),
                Observation(name="last that passed", value=_words(good)),
            ),
            estimate=good[0].rto if good else takes,
        )


async def _room_findings(ports: Ports, room: int, plan_id: str) -> Sequence[Finding]:
    """What would make it fail once it runs. Where a prover apart runs it, its machine is looked at when it begins."""
    return () if ports.site.prover_apart else await room_findings(ports, room, plan_id)


def _dumped(site: Site, params: ProveParams) -> str | None:
    """The database whose dump is tested; None where base backups are. Raises UserError with those there are."""
    named, wanted = params.server, params.dump is not None
    if not wanted and (bool(site.physical) if named is None else _has_bases(site, named)):
        return None
    if named in site.backups:
        return named
    there = sorted(site.backups) if named is None else _on(site, named)
    if len(there) == 1:
        return there[0]
    if not there and not wanted:
        return None  # whoever looks for the server tells which there are
    known = names(there or sorted(site.backups)) or "none"
    raise UserError(f"Name the database whose dump is to be tested; those with dumps: {known}.")


def _has_bases(site: Site, named: str) -> bool:
    database = site.databases.get(named)
    return named in site.physical or (database is not None and database.server in site.physical)


def _on(site: Site, server: str) -> list[str]:
    """The databases with dumps that are on this server."""
    return sorted(key for key in site.backups if site.database(key).server == server)


def _name(database: str) -> str:
    """In an empty server, which has a database `postgres` of its own."""
    return f"{database}_dump" if database in ("postgres", "template0", "template1") else database


def _following(
    policy: BackupPolicy, entries: Sequence[CatalogueEntry], entry: CatalogueEntry, now: datetime
) -> datetime:
    """When the dump after this one was made, or is due: until then a loss of the database costs everything since this
    one."""
    later = [each.manifest.snapshot_at for each in usable_entries(entries, before=None)]
    after = min((at for at in later if at > entry.manifest.snapshot_at), default=None)
    return after or Schedule(policy.schedule).after(now)


def _forecast(
    server: str,
    entries: Sequence[PhysicalEntry],
    base: PhysicalEntry | None,
    target: RecoveryTarget,
    windows: Sequence[RecoveryWindow],
    tests: Sequence[Proof],
) -> Forecast:
    """Every database of the server is counted. Nothing is forecast where nobody knows what is going to be restored."""
    if base is None:
        return Forecast(total=timedelta(0), measured=False)
    aim = Aim(target=target, at=target.time)
    return forecast(entries, base, aim, windows, measured(server, (), tests), counted=base.manifest.server_bytes)


def _target(
    server: str, entries: Sequence[PhysicalEntry], windows: Sequence[RecoveryWindow], when: When, seed: str
) -> tuple[RecoveryTarget, PhysicalEntry | None]:
    """And what it is restored from, as it stands now. Raises UserError where nothing can be reached at all."""
    if not ends_of(entries) or not windows:
        raise UserError(
            f"Server `{server}` has no usable base backup, so there is nothing to test. Make one with "
            f"`/dr-backup base {server}`."
        )
    target = RecoveryTarget(latest=True)
    if when is When.RANDOM:
        if windows[0].problem:
            raise UserError(windows[0].problem)
        chosen = a_moment(reachable(windows[0], ends_of(entries, windows[0])), seed)
        if chosen is None:
            raise UserError(
                f"Bucket `{windows[0].bucket}` holds no recovery window of server `{server}`. Look with "
                "`/dr-backup status`, and test the newest moment meanwhile."
            )
        target = RecoveryTarget(time=chosen, timeline_id=windows[0].timeline_id or None)
    return target, base_for(entries, target, windows[0].dead_ends)


async def _proven(ports: Ports, key: str, database: Database) -> ProvenDatabase:
    """With what the newest usable dump, made by other means, says of it."""
    entries = await ports.backups.catalogue(key) if key in ports.site.backups else ()
    rows = next((entry.manifest.fingerprint.rows for entry in usable_entries(entries, before=None)), {})
    return ProvenDatabase(
        key=key, name=database.name, invariants=database.invariants, tables=len(rows), rows=sum(rows.values())
    )


def _words(tests: Sequence[Proof]) -> str:
    if not tests:
        return "never"
    test = tests[0]
    result = f"passed in {span(test.rto)}" if test.problem is None else f"failed: {test.problem}"
    return f"{moment(test.proven_at)}, {result}"
