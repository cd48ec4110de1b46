"""One database as a scratch instance has it, beside production's: what a plan that gives it back is made from."""

from __future__ import annotations

from datetime import timedelta

from actions.backup.manifest import Fingerprint
from actions.backup.physical import ScratchFacts
from actions.contract import Finding, Observation, Precondition, Step, Verdict
from actions.errors import UserError
from actions.ports import DatabaseFacts, MeasuredLoad, Ports, WorkloadFacts
from actions.site import Database, DatabaseRef, Frozen
from actions.steps.choice import SWITCH, estimate_words, load_rate
from actions.steps.comparison import differences, shown, unmet
from actions.steps.facts import CLOSED, DatabaseIs, DiskFree, NamesFree, ServerIs
from actions.steps.forecasts import patience, rto_findings
from actions.steps.heavy import job_timeout
from actions.steps.moments import exact
from actions.steps.naming import beside_job_name, quarantine_name, restore_name, scratch_mark
from actions.steps.phrases import counted, size, span
from actions.steps.scene import DISK_MARGIN, Application, Target, application_of, target_of
from actions.steps.scratch_copies import CompareScratch, CopyDatabase
from actions.steps.scratch_facts import ScratchIs
from actions.steps.standing import as_it_is, database_of, sound
from actions.steps.switch import Switch

SHOWN = 5

COMPARE_LIMIT = timedelta(minutes=10)


class SwapScene(Frozen):
    """A scratch instance, the database in it, and the one of production that it would replace."""

    facts: ScratchFacts
    key: str
    database: Database
    source: DatabaseRef
    shown: DatabaseFacts  # the database in the instance
    home: Target
    application: Application | None
    there: Fingerprint
    here: Fingerprint | None
    last: MeasuredLoad | None = None  # of the database, out of a dump

    @property
    def production(self) -> DatabaseFacts | None:
        return self.home.database(self.database.name)

    @property
    def needed(self) -> int:
        return self.shown.bytes * 13 // 10 + DISK_MARGIN

    @property
    def moment(self) -> str:
        restored = self.facts.restored
        if restored is None:
            return "an unknown moment"
        return str(restored.target) if restored.reached_at is None else exact(restored.reached_at)

    @property
    def workloads(self) -> tuple[WorkloadFacts, ...]:
        """Those that are stopped meanwhile."""
        return () if self.application is None else self.application.workloads

    def into(self, plan_id: str) -> DatabaseRef:
        """The copy beside production."""
        return DatabaseRef(self.database.server, restore_name(self.database.name, plan_id))

    def copied(self, plan_id: str, number: int) -> tuple[Step, Step]:
        """Copied beside production as job `number` of the plan, and compared."""
        into, mark = self.into(plan_id), scratch_mark(plan_id)
        copy = CopyDatabase(
            job=beside_job_name(plan_id, number),
            source=self.source,
            database=self.key,
            into=into,
            owner=self.database.owner,
            mark=mark,
            jobs=self.database.restore_jobs,
            timeout=job_timeout(self.estimate),
        )
        compare = CompareScratch(
            source=self.source,
            into=into,
            mark=mark,
            invariants=self.database.invariants,
            timeout=patience(self.estimate, at_least=COMPARE_LIMIT),
        )
        return copy, compare

    def switch(self, plan_id: str) -> Switch:
        """From the copy to an application that works on it."""
        return Switch(
            plan_id=plan_id,
            home=self.database.ref,
            production=self.production,
            target=self.database.ref,
            system_id=self.home.server.system_id,
            copy_name=self.into(plan_id).name,
            copy_mark=scratch_mark(plan_id),
            aside=quarantine_name(self.database.name, plan_id),
            owner=self.database.owner,
            application=self.application,
            workloads=self.workloads,
        )

    def preconditions(self, plan_id: str) -> tuple[Precondition, ...]:
        """What people sign of the instance, the server and the database."""
        server, into = self.home.server, self.into(plan_id)
        return (
            ScratchIs.of(self.facts, sound=True),
            ServerIs.of(server, serves=True),
            DatabaseIs(target=self.database.ref, oid=None if self.production is None else self.production.oid),
            NamesFree(server=into.server, names=(into.name, quarantine_name(self.database.name, plan_id))),
            DiskFree(server=into.server, at_least=self.needed),
        )

    @property
    def estimate(self) -> timedelta:
        """Of copying and comparing, at the rate of the last load of this database where one was measured."""
        return timedelta(seconds=2 * self.shown.bytes // load_rate(self.last))

    @property
    def takes(self) -> timedelta:
        """Until the application works on it."""
        return self.estimate + SWITCH

    @property
    def forecast(self) -> str:
        """`2 min 10 s to copy and compare 3.1 GB at the 34 MB/s of the restore of 2026-11-02, RTO 30 min`."""
        rate = estimate_words(self.last)
        return f"{span(self.takes)} to copy, compare and switch, {rate}, RTO {span(self.database.rto)}"


async def look_at(ports: Ports, scratch: str, wanted: str | None) -> SwapScene:
    """Raises UserError with the next thing to do when the instance does not show the database."""
    facts = await sound(ports, scratch)
    key, database = database_of(ports, facts, wanted)
    source = DatabaseRef(facts.name, database.name)
    shown = await ports.postgres.database(source)
    if shown is None:
        raise UserError(f"`{facts.name}` holds no database `{database.name}`. Restore to a later moment.")
    home = await target_of(ports, database.server)
    here = home.database(database.name)
    return SwapScene(
        facts=facts,
        key=key,
        database=database,
        source=source,
        shown=shown,
        home=home,
        application=None if database.service is None else await application_of(ports, database.service),
        there=await ports.postgres.fingerprint(source, database.invariants),
        # A closed one cannot be read; it is set aside as it is.
        here=None
        if here is None or not here.allows_connections
        else await as_it_is(ports, database.ref, database.invariants),
        last=await ports.runs.last_load(key),
    )


def swap_loss(scene: SwapScene, ports: Ports) -> str:
    """One sentence: the moment, and how much is later than it."""
    reached = None if scene.facts.restored is None else scene.facts.restored.reached_at
    if reached is None:
        return f"Everything written after {scene.moment} is set aside with the present database."
    lost = ports.clock.now() - reached
    word = "beyond" if lost > scene.database.rpo else "within"
    return (
        f"Restores the state of {scene.moment}, loses {span(lost)} (RPO {span(scene.database.rpo)}: {word}); what is "
        "there now is kept in quarantine."
    )


def swap_findings(scene: SwapScene) -> list[Finding]:
    """What keeps the swap, and what only production has."""
    found, home = [], scene.home.server
    if home.in_recovery:
        text = f"Server `{home.name}` is a standby and cannot be written to."
        found.append(Finding(check="server", verdict=Verdict.STOP, detail=text, hint="Promote it first."))
    if scene.home.closed:
        found.append(Finding(check="server", verdict=Verdict.STOP, detail=CLOSED.format(home.name)))
    if home.free_bytes is not None and home.free_bytes < scene.needed:
        found.append(
            Finding(
                check="disk",
                verdict=Verdict.STOP,
                detail=f"`{home.name}` has {size(home.free_bytes)} of disk free, needed are {size(scene.needed)}.",
                hint="Free or add disk, or rescue single tables with `/dr-restore rescue`.",
            )
        )
    if problems := unmet(scene.database.invariants, scene.there):
        text = f"In `{scene.source}` {'; '.join(problems)}."
        hint = "Restore another moment; or where the plan file is wrong, correct it there, then ask again."
        found.append(Finding(check="invariants", verdict=Verdict.STOP, detail=text, hint=hint))
    lost = _fewer(scene)
    if lost:
        found.append(Finding(check="rows", verdict=Verdict.WARN, detail=f"Only in production now: {lost}."))
    if scene.application is None:
        text = f"The plan file names no service for `{scene.key}`: nothing is stopped or checked."
        found.append(Finding(check="application", verdict=Verdict.WARN, detail=text))
    else:
        for ref in scene.application.missing:
            text = f"{ref} does not exist: it is neither stopped nor started."
            found.append(Finding(check="application", verdict=Verdict.WARN, detail=text))
    return found + rto_findings(scene.takes, scene.database.rto, scene.forecast, instead=_quicker(scene))


def _quicker(scene: SwapScene) -> str:
    promoted = (
        ""
        if scene.database.service is None
        else (f" `/dr-restore promote {scene.facts.id}` copies nothing: it takes all databases of the server along.")
    )
    return f"Single tables come back sooner: `/dr-restore rescue {scene.facts.id} TABLE`.{promoted}"


def _fewer(scene: SwapScene) -> str:
    """Tables of which production has more rows than the instance."""
    if scene.here is None:
        return ""
    more = {name: count - scene.there.rows.get(name, 0) for name, count in scene.here.rows.items()}
    words = [f"{counted(count, 'row')} of `{name}`" for name, count in sorted(more.items()) if count > 0]
    rest = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + rest


def swap_observations(scene: SwapScene) -> tuple[Observation, ...]:
    """Both sides, and what comes back."""
    production, here = scene.production, scene.here
    rows = sum(scene.there.rows.values())
    lines = [
        ("there", f"{counted(len(scene.there.rows), 'table')}, {counted(rows, 'row')}, {size(scene.shown.bytes)}"),
        ("production", "does not exist" if production is None else size(production.bytes)),
        ("forecast", scene.forecast),
        ("old database", f"kept in quarantine for {span(scene.database.quarantine)}"),
    ]
    if here is not None:
        lines.insert(1, ("difference", shown(differences(scene.there, here)) or "none in rows, invariants and schema"))
        back = [name for name, count in scene.there.rows.items() if here.rows.get(name, -1) < count]
        lines.insert(
            1, ("comes back", ", ".join(f"`{name}`" for name in back[:SHOWN]) or "no table has more rows there")
        )
    return tuple(Observation(name=name, value=value) for name, value in lines)
