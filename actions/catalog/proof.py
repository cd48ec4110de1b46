"""The restore test: whether the backups alone bring the server back, and how long that takes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from typing import ClassVar

from actions.backup.chain import base_for
from actions.backup.physical import PhysicalEntry, Proof, RecoveryTarget, RecoveryWindow
from actions.backup.proofs import Proofs
from actions.contract import Action, DrillOf, Lock, Observation, Plan, Precondition, Risk, Step
from actions.engines import engine_of
from actions.errors import UserError
from actions.ports import Ports
from actions.site import Database, Frozen
from actions.steps.base_choice import server_named
from actions.steps.choice import usable_entries
from actions.steps.engine_backup import EngineBackup
from actions.steps.forecasts import patience
from actions.steps.heavy import job_timeout
from actions.steps.naming import job_name, scratch_mark
from actions.steps.page_checksums import backup_findings
from actions.steps.phrases import moment, span
from actions.steps.proving import LookThrough, ProvenDatabase, RemoveScratch, RestoreForTest
from actions.steps.recovery import Aim, Forecast, forecast, measured
from actions.steps.scratch import CHECK_LIMIT
from actions.steps.windows import a_moment, ends_of, reachable


class When(StrEnum):
    """What is restored: the newest moment there is, or any moment of the recovery window."""

    LATEST = "latest"
    RANDOM = "random"


class ProveParams(Frozen):
    """Which server (by its name or a database's; the only one when none is named), and to which moment."""

    server: str | None = None
    moment: When = When.LATEST


class Prove(Action[ProveParams]):
    """Restore into a scratch instance, look through it, record what was found and measured, remove it."""

    name: ClassVar[str] = "backup.prove"
    summary: ClassVar[str] = "Test that the backups of a server can be restored, and measure how long it takes"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = ProveParams
    steps: ClassVar[tuple[type[Step], ...]] = (RestoreForTest, LookThrough, RemoveScratch)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = ()
    drillable: ClassVar[DrillOf | None] = DrillOf.SERVER

    async def plan(self, params: ProveParams, ports: Ports, plan_id: str) -> Plan:
        server = server_named(ports.site, params.server)
        policy = ports.site.physical_of(server)
        entries = await ports.physical.catalogue(server)
        windows = await ports.physical.windows(server)
        target, base = _target(server, entries, windows, params.moment, plan_id)
        tests = await Proofs(ports.objects, ports.secrets).newest(policy, limit=10)
        takes = _forecast(server, entries, base, target, windows, tests)
        mark = scratch_mark(plan_id)
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
            timeout=job_timeout(takes.total),
        )
        look = LookThrough(
            server=server,
            scratch=plan_id,
            mark=mark,
            databases=tuple([await _proven(ports, key, database) for key, database in protected.items()]),
            timeout=patience(takes.counting, at_least=CHECK_LIMIT),
        )
        good = [test for test in tests if test.problem is None]
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
            made_at=ports.clock.now(),
            findings=() if base is None else tuple(backup_findings(server, base.manifest.id, base.manifest.checksums)),
            observations=(
                Observation(name="last test", value=_words(tests)),
                Observation(name="last that passed", value=_words(good)),
            ),
            estimate=good[0].rto if good else takes.total or None,
        )


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
