"""Steps on scratch instances: a server restored to a moment beside everything, looked at, promoted or removed."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal

from pydantic import Field

from actions.backup.manifest import Fingerprint
from actions.backup.physical import Check, RecoveryTarget, ScratchFacts, ScratchRequest, ScratchState
from actions.backup.scratch_place import this_machine
from actions.contract import Probe, Step
from actions.engine import Stored
from actions.engines import engine_of_step
from actions.errors import DrError, PermanentError, TemporaryError, UnknownOutcomeError, UserError, VerificationError
from actions.ports import JobKind, JobState, Ports, Progress
from actions.site import DatabaseRef, Invariant
from actions.steps import byhand
from actions.steps.comparison import compared, measured, unmet
from actions.steps.heavy import HeavyStep
from actions.steps.moments import exact
from actions.steps.phrases import counted, span
from actions.steps.standing import as_it_is
from actions.steps.stored_chain import StoredChain

CHECK_LIMIT = timedelta(hours=2)


class RestoreScratch(HeavyStep):
    """A base backup checked, unpacked, replayed to its target and checked again, and stopped there."""

    interruptible: ClassVar[bool] = True
    kind: Literal["restore_scratch"] = "restore_scratch"
    scratch: str
    server: str
    target: RecoveryTarget
    target_words: str
    backup: str
    bucket: str
    endpoint: str | None
    key: str
    sha256: str
    stanza: str = ""  # what the engine calls the server: see `Engine.label`
    # For people alone. Left out where there is none: a plan that was signed before there was one keeps its digest.
    stored: StoredChain | None = Field(default=None, exclude_if=operator.not_)
    superuser: str = Field(default="", exclude_if=operator.not_)  # where `stored` does not tell
    engine: str = Field(default="", exclude_if=operator.not_)
    amcheck: bool
    keep: timedelta | None
    mark: str

    @property
    def summary(self) -> str:
        return f"Restore server `{self.server}` from `{self.backup}` into `scratch-{self.scratch}`, {self.target_words}"

    @property
    def before(self) -> str:
        return f"no scratch instance `{self.scratch}`"

    @property
    def after(self) -> str:
        checks = "page checksums and indexes" if self.amcheck else "page checksums"
        verified = engine_of_step(self.engine, self.stanza).verified
        return f"{verified}, {checks} checked, the target proven to be reached; production is not touched"

    def by_hand(self) -> tuple[str, ...]:
        stored = Stored(
            backup=self.backup,
            label=self.stanza,
            bucket=self.bucket,
            endpoint=self.endpoint,
            key=self.key,
            sha256=self.sha256,
            superuser=self.superuser,
            chain=self.stored,
        )
        return engine_of_step(self.engine, self.stanza).restore_by_hand(stored, self.target)

    @property
    def job_kind(self) -> JobKind:
        return JobKind.SCRATCH

    def request(self) -> Mapping[str, Any]:
        asked = ScratchRequest(
            id=self.scratch,
            server=self.server,
            target=self.target,
            backup=self.backup,
            amcheck=self.amcheck,
            mark=self.mark,
            keep=self.keep,
        )
        return asked.model_dump(mode="json")

    async def effect(self, ports: Ports, job: JobState | None) -> Probe:  # noqa: ARG002 - the instance tells all
        found = await ports.scratch.find(self.scratch)
        if found is None or found.state is ScratchState.BROKEN:
            return Probe.TODO
        return Probe.DONE if found.mark == self.mark else Probe.UNKNOWN

    async def sweep(self, ports: Ports) -> None:
        found = await ports.scratch.find(self.scratch)
        if found is not None and found.mark == self.mark:
            await ports.scratch.discard(self.scratch, mark=self.mark)

    async def verify(self, ports: Ports) -> None:
        found = await instance(ports, self.scratch)
        if found.restored is None or found.mark != self.mark:
            raise VerificationError(f"Scratch instance `{self.scratch}` was not made by this plan. Ask for a new one.")

    async def outcome(self, ports: Ports) -> str:
        restored = (await instance(ports, self.scratch)).restored
        if restored is None:
            return ""
        last = "" if restored.reached_at is None else f", last commit in it {exact(restored.reached_at)}"
        took = ", ".join(f"{phase} {span(timedelta(seconds=seconds))}" for phase, seconds in restored.seconds.items())
        reached = f"Reached {restored.reached_lsn} on timeline id {restored.timeline_id}{last}. {took}".rstrip()
        return " ".join([reached, *restored.passed_over])

    async def undo(self, ports: Ports) -> None:
        await self.sweep(ports)

    def undo_by_hand(self) -> tuple[str, ...]:
        return (f"drbot restore discard {self.scratch}",)


class StartScratch(Step):
    """The instance runs on this machine, paused at its target, read only."""

    kind: Literal["start_scratch"] = "start_scratch"
    timeout: timedelta = timedelta(minutes=15)
    scratch: str

    @property
    def summary(self) -> str:
        return f"Start `scratch-{self.scratch}`, paused at its target and read only"

    @property
    def before(self) -> str:
        return "stopped"

    @property
    def after(self) -> str:
        return f"every command takes `scratch-{self.scratch}` as the name of a server"

    def by_hand(self) -> tuple[str, ...]:
        return ('pg_ctl start -w -D "$PGDATA"', "psql -XAtc 'SELECT pg_get_wal_replay_pause_state()'  # paused")

    async def probe(self, ports: Ports) -> Probe:
        found = await here(ports, self.scratch)
        return Probe.DONE if found.address and not await _broken_off(ports, found) else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - seconds
        await ports.scratch.start(self.scratch)

    async def verify(self, ports: Ports) -> None:
        found = await instance(ports, self.scratch)
        server = await ports.postgres.server(found.name)
        if found.state is ScratchState.PAUSED and not server.in_recovery:
            raise VerificationError(f"`{found.name}` is no longer in recovery: it may have left its target. Make anew.")
        if not found.address or await _broken_off(ports, found):
            raise VerificationError(f"`{found.name}` does not run as it should: look at its log.")
        if found.restored is not None and found.system_id and server.system_id != found.system_id:
            raise VerificationError(
                f"`{found.name}` answers with system id {server.system_id}, not "
                f"{found.system_id}. Look who listens on its port, then discard it and restore it again."
            )

    async def undo(self, ports: Ports) -> None:
        if await ports.scratch.find(self.scratch) is not None:
            await ports.scratch.stop(self.scratch)

    def undo_by_hand(self) -> tuple[str, ...]:
        return ('pg_ctl stop -D "$PGDATA"',)


class CheckScratch(Step):
    """The database in it can be read completely, and what differs from production is told."""

    kind: Literal["check_scratch"] = "check_scratch"
    timeout: timedelta = CHECK_LIMIT
    scratch: str
    database: str  # of the plan file
    name: str  # in PostgreSQL
    production: DatabaseRef
    invariants: tuple[Invariant, ...]
    table: str  # that it is about, where a table was harmed
    # Left out where it is not so: a plan that was signed before it could be asked for keeps its digest.
    passing: bool = Field(default=False, exclude_if=operator.not_)  # it follows afterwards: nothing is brought back

    @property
    def _ref(self) -> DatabaseRef:
        return DatabaseRef(f"scratch-{self.scratch}", self.name)

    @property
    def summary(self) -> str:
        return f"Count every table of `{self._ref}`, measure {counted(len(self.invariants), 'invariant')}, compare"

    @property
    def before(self) -> str:
        return "a server of which nothing is known"

    @property
    def after(self) -> str:
        return f"what must hold holds; known what is there and what differs from `{self.production}`"

    def by_hand(self) -> tuple[str, ...]:
        server, name = self._ref
        return (
            byhand.exact_rows(server, name),
            *(byhand.psql(server, invariant.sql, database=name) for invariant in self.invariants),
        )

    async def probe(self, ports: Ports) -> Probe:  # noqa: ARG002 - a check leaves nothing behind
        return Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002
        try:
            await self._check(ports)
        except VerificationError as error:
            await self._note(ports, problem=str(error))  # nothing is given back from it as a whole any more
            raise
        await self._note(ports)

    async def _note(self, ports: Ports, *, problem: str = "", compared: str = "") -> None:
        check = Check(at=ports.clock.now(), table=self.table, problem=problem, compared=compared)
        await ports.scratch.judge(self.scratch, self.database, check)

    async def _check(self, ports: Ports) -> None:
        found = await instance(ports, self.scratch)
        if found.restored is not None and found.restored.damage:
            raise VerificationError(f"{found.restored.damage.rstrip('.')}. Take another moment, from a base backup.")
        if found.restored is not None and not (found.restored.checked_pages or found.restored.without_checksums):
            raise VerificationError(
                f"The pages of `{found.name}` were not checked. Remove it with `/dr-restore discard {self.scratch}` "
                "and restore again."
            )
        if await ports.postgres.database(self._ref) is None:
            raise VerificationError(f"`{found.name}` holds no database `{self.name}`. Take a later moment.")
        there = await self._measured(ports)
        if self.table and self.table not in there.rows:
            raise VerificationError(f"`{found.name}` has no table `{self.table}` at its moment. Take an earlier one.")
        # What follows afterwards is judged where it is stopped, at the moment that something is brought back from.
        if not self.passing and (problems := unmet(self.invariants, there)):
            raise VerificationError(f"In `{self._ref}` {'; '.join(problems)}. {self._again()}")

    def _again(self) -> str:
        return (
            "Take another moment; or where the plan file is wrong, correct it there and have it looked at again with "
            f"`/dr-restore wake {self.scratch}`."
        )

    async def _measured(self, ports: Ports) -> Fingerprint:
        try:
            return await ports.postgres.fingerprint(self._ref, self.invariants)
        except (UserError, PermanentError) as error:  # an invariant that cannot be measured there, a closed database
            raise VerificationError(f"`{self._ref}` cannot be looked through: {error} {self._again()}") from error
        except TemporaryError as error:
            if "lock" not in str(error):
                raise
            raise VerificationError(
                f"A transaction that was not over at this moment keeps a table of `{self._ref}` locked, so nobody can "
                "read it there. Take a moment a little earlier or later."
            ) from error

    async def verify(self, ports: Ports) -> None:
        """`apply` is the check."""

    async def outcome(self, ports: Ports) -> str:
        there = await ports.postgres.fingerprint(self._ref, self.invariants)
        found = await instance(ports, self.scratch)
        words = "Production cannot be read, so nothing was compared."
        here: Fingerprint | None = None
        try:
            here = await as_it_is(ports, self.production, self.invariants)
            words = compared(there, here, about=self.table)
            await self._note(ports, compared=words)  # for those who plan with it
        except DrError:  # production may be what is lost
            pass
        told = f"{measured(there)} {words}{_unchecked(found)}"
        return told if self.passing else f"{told}{_loses(found, ports.clock.now())} {self._next(here)}"

    def _next(self, here: Fingerprint | None) -> str:
        rescue = f"`/dr-restore rescue {self.scratch} {self.table or 'TABLE'}"
        if self.table and here is not None and self.table in here.rows:
            # A table that is there is never replaced, so the command alone would put its old rows beside it.
            first = f"{rescue} --missing-rows` brings its missing rows back, {rescue} --as NAME` all of it beside it"
        else:
            first = f"{rescue}` brings a table back (`--missing-rows` its missing rows alone)"
        return (
            f"Next: {first}, `/dr-restore swap {self.scratch}` gives the whole database back, `/dr-restore promote "
            f"{self.scratch}` makes this the new primary, `/dr-restore discard {self.scratch}` removes it."
        )

    async def undo(self, ports: Ports) -> None:
        """Nothing was changed."""


class DiscardScratch(Step):
    """The instance stopped, its files removed."""

    kind: Literal["discard_scratch"] = "discard_scratch"
    timeout: timedelta = timedelta(minutes=15)
    scratch: str
    mark: str

    @property
    def summary(self) -> str:
        return f"Stop scratch instance `{self.scratch}` and remove its files"

    @property
    def before(self) -> str:
        return f"kept under the mark `{self.mark}`"

    @property
    def after(self) -> str:
        return "gone; its base backup and WAL are kept, so it can be made again"

    def by_hand(self) -> tuple[str, ...]:
        return ('pg_ctl stop -D "$PGDATA"', 'rm -r -- "$SCRATCH_FOLDER"')

    async def probe(self, ports: Ports) -> Probe:
        return await whether_removed(ports, self.scratch)

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - seconds
        await ports.scratch.discard(self.scratch, mark=self.mark)

    async def verify(self, ports: Ports) -> None:
        if await ports.scratch.find(self.scratch) is not None:
            raise VerificationError(f"Scratch instance `{self.scratch}` is still there. Look at its folder.")

    async def undo(self, ports: Ports) -> None:
        """Nothing is lost that could not be restored again; production never knew of it."""

    async def undone(self, ports: Ports) -> None:
        """There is nothing to put back."""


async def _broken_off(ports: Ports, found: ScratchFacts) -> bool:
    """Whether its promotion was begun and has not ended: the note that it was promoted is written before it is."""
    return found.state is ScratchState.PROMOTED and (await ports.postgres.server(found.name)).in_recovery


async def whether_removed(ports: Ports, scratch: str) -> Probe:
    """Raises UnknownOutcomeError for one that is not here and never was: every machine sees its own alone."""
    if await ports.scratch.find(scratch) is not None:
        return Probe.TODO
    if await ports.scratch.removed(scratch):
        return Probe.DONE
    raise UnknownOutcomeError(
        f"Scratch instance `{scratch}` is not on `{this_machine()}` and was not removed from there, so it stands on "
        "another machine, or was removed there or by hand. The timeline of this run names the machines it was on: look "
        f"there for the folder `scratch/{scratch}` in the data directory of the worker. Where it is gone, answer that "
        "this step has happened; where it stands, stop its server and remove the folder first."
    )


async def here(ports: Ports, scratch: str) -> ScratchFacts:
    """The instance, for a step that looks whether it has happened. Raises UnknownOutcomeError where nobody can see it
    from here: another worker may have taken up the run."""
    found = await ports.scratch.find(scratch)
    if found is not None:
        return found
    if await ports.scratch.removed(scratch):
        raise UnknownOutcomeError(f"Scratch instance `{scratch}` is gone: it was removed from `{this_machine()}`.")
    raise UnknownOutcomeError(
        f"Scratch instance `{scratch}` is not on `{this_machine()}`, so it cannot be told whether this has happened. "
        "The timeline of this run names the machines it was on: start the worker there and end the one here, then "
        "`/dr run again`. Where that machine is lost, so is the instance: leave the run, and restore anew."
    )


async def instance(ports: Ports, scratch: str) -> ScratchFacts:
    """The instance; VerificationError when it is gone, or was never here."""
    found = await ports.scratch.find(scratch)
    if found is None:
        raise VerificationError(await not_here(ports, scratch))
    return found


async def not_here(ports: Ports, scratch: str) -> str:
    """Why there is no such instance."""
    if await ports.scratch.removed(scratch):
        return f"Scratch instance `{scratch}` is gone. Make it again with `/dr-restore`."
    return (
        f"Scratch instance `{scratch}` is not on `{this_machine()}` and was not removed from there. If its restore has "
        "ended well, it stands on another machine or in the pod of a Job, and goes from there when its time is over. "
        "Let workers and jobs share the volume, or set `DRBOT_EXECUTOR=subprocess`."
    )


def _unchecked(found: ScratchFacts) -> str:
    if found.restored is None or not found.restored.without_checksums:
        return ""
    return (
        f" Its pages could not be checked: `{found.server}` has no page checksums. Turn them on there while it is "
        "stopped: `pg_checksums --enable`."
    )


def _loses(found: ScratchFacts, now: datetime) -> str:
    """What giving it back as a whole would lose, by the last commit that is in it."""
    reached = None if found.restored is None else found.restored.reached_at
    if reached is None:
        return ""
    return f" The last commit in it is of {exact(reached)}: given back as a whole it loses {span(now - reached)}."
