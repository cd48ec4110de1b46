"""Steps of a restore test: a scratch instance out of the backups alone, looked through, recorded, removed."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import Field

from actions.backup.manifest import Fingerprint
from actions.backup.physical import Proof, RecoveryTarget, ScratchFacts, ScratchRequest, ScratchRestored
from actions.backup.proofs import Proofs, Tested
from actions.contract import Probe, Step
from actions.engines import engine_of, engine_of_step
from actions.errors import DrError, TemporaryError, VerificationError
from actions.ports import Ports, Progress
from actions.site import DatabaseRef, Frozen, Invariant
from actions.steps import byhand
from actions.steps.comparison import unmet
from actions.steps.engine_backup import EngineBackup
from actions.steps.idle import idle
from actions.steps.phrases import counted, names, span
from actions.steps.restore_test import ForTest, keep, passed, proof_of
from actions.steps.stored_chain import StoredChain

COPIES = "copies"
"""Of the checks: which copies of a base backup were no good, so that another one was restored."""


class RestoreForTest(ForTest):
    """The server's past in a scratch instance, which is left stopped at its target. When it cannot be restored, that is
    put on record as a failed test."""

    kind: Literal["restore_for_test"] = "restore_for_test"
    server: str
    target: RecoveryTarget
    bucket: str
    endpoint: str | None
    prefix: str
    # Left out where it is not so: a plan that was signed before it could be asked for keeps its digest.
    amcheck: bool = Field(default=False, exclude_if=operator.not_)
    engine: str = Field(default="", exclude_if=operator.not_)
    stored: StoredChain | None = Field(default=None, exclude_if=operator.not_)
    tested: EngineBackup | None = Field(default=None, exclude_if=operator.not_)  # where `stored` does not tell
    known: Mapping[str, str] = Field(default_factory=dict, exclude_if=operator.not_)  # see `Proof.known`

    @property
    def summary(self) -> str:
        return f"Restore server `{self.server}` to {self.target} into scratch instance `{self.scratch}`"

    @property
    def before(self) -> str:
        return "backups of which nobody knows whether they can be restored"

    @property
    def after(self) -> str:
        checks = "page checksums, indexes" if self.amcheck else "page checksums"
        engine = self.engine or ("" if self.tested is None else self.tested.engine)
        verified = engine_of_step(engine, "").verified
        return f"{verified}, {checks} checked, the target proven to be reached; production is not touched"

    def by_hand(self) -> tuple[str, ...]:
        if self.stored is not None:
            return self.stored.commands(self.target)
        if self.tested is not None:
            return self.tested.commands(self.target)
        return (
            byhand.aws(self.endpoint, "s3", "ls", "--recursive", f"s3://{self.bucket}/{self.prefix}"),
            f"restore the newest base backup before {self.target} into the empty folder PGDATA, and its WAL",
            'echo "archive_mode = off" >> "$PGDATA/postgresql.auto.conf" && touch "$PGDATA/recovery.signal"',
            'pg_ctl start -D "$PGDATA"',
        )

    def request(self) -> Mapping[str, Any]:
        asked = ScratchRequest(
            id=self.scratch, server=self.server, target=self.target, mark=self.mark, amcheck=self.amcheck
        )
        return asked.model_dump(mode="json")

    def policy(self, ports: Ports) -> Tested:
        return ports.site.physical_of(self.server)

    def made(self, facts: ScratchFacts) -> bool:
        return facts.restored is not None

    async def failed(self, ports: Ports, began: datetime, problem: str) -> Proof:
        newest = await _newest(ports, self.server)
        return Proof(
            id=self.scratch,
            server=self.server,
            target=self.target,
            backup="",
            proven_at=ports.clock.now(),
            rto=ports.clock.now() - began,
            rpo=timedelta(0) if newest is None else max(timedelta(0), began - newest),
            problem=problem,
            known=self.known,
        )


class ProvenDatabase(Frozen):
    """A protected database that must be found in the restored server."""

    key: str
    name: str
    invariants: tuple[Invariant, ...] = ()
    tables: int = 0  # of the newest dump; 0: nothing to compare with
    rows: int = 0


class LookThrough(Step):
    """Every protected database counted, its invariants evaluated; the result signed and kept beside the backups."""

    kind: Literal["look_through"] = "look_through"
    timeout: timedelta = timedelta(hours=2)
    server: str
    scratch: str
    mark: str
    databases: tuple[ProvenDatabase, ...]
    # Left out where it is not known: a plan that was signed before it was noted keeps its digest.
    known: Mapping[str, str] = Field(default_factory=dict, exclude_if=operator.not_)  # see `Proof.known`

    @property
    def summary(self) -> str:
        return f"Start `{self.scratch}` read only, count {counted(len(self.databases), 'database')}, record the test"

    @property
    def before(self) -> str:
        return "a restored server of which nothing is known"

    @property
    def after(self) -> str:
        return "rows, invariants, RTO and RPO measured; the signed result beside the backups"

    def by_hand(self) -> tuple[str, ...]:
        scratch = f"scratch-{self.scratch}"
        return tuple(
            line
            for item in self.databases
            for line in (
                byhand.exact_rows(scratch, item.name),
                *(byhand.psql(scratch, invariant.sql, database=item.name) for invariant in item.invariants),
            )
        ) or (byhand.psql(scratch, "SELECT pg_last_xact_replay_timestamp()"),)

    async def probe(self, ports: Ports) -> Probe:
        return Probe.DONE if await passed(ports, ports.site.physical_of(self.server), self.scratch) else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - counting gives no figures
        facts = await ports.scratch.start(self.scratch)
        if facts.mark != self.mark or facts.restored is None:
            raise VerificationError(f"Scratch instance `{self.scratch}` is not the one of this test. Test again.")
        engine = engine_of(ports.site.physical_of(self.server))
        checks, problems = _of_restore(facts.restored, engine.verified), list[str]()
        if ports.site.physical_of(self.server).amcheck:
            checks["indexes"] = _indexes(facts.restored)
        if facts.restored.passed_over:
            checks[COPIES] = " ".join(facts.restored.passed_over)
        for item in self.databases:
            try:
                found = await ports.postgres.fingerprint(DatabaseRef(facts.name, item.name), item.invariants)
            except TemporaryError:
                raise
            except DrError as error:
                problems.append(f"database `{item.name}` cannot be read: {error}")
                continue
            checks |= _counted(item, found)
            problems += _losses(item, found)
        now, rpo = ports.clock.now(), await _exposure(ports, facts, facts.restored)
        found_out = proof_of(
            facts, facts.restored, now=now, rpo=rpo, checks=checks, problems=problems, known=self.known
        )
        more = {"target": facts.restored.target, "wal_bytes": facts.restored.wal_bytes}
        proof = found_out.model_copy(update=more)
        await keep(ports, ports.site.physical_of(self.server), proof)
        if proof.problem is not None:
            raise VerificationError(
                f"The restore test of `{self.server}` failed: {proof.problem} Production was not touched. Make a new "
                f"base backup with `/dr-backup base {self.server}`, then test again."
            )

    async def verify(self, ports: Ports) -> None:
        if not await passed(ports, ports.site.physical_of(self.server), self.scratch):
            raise VerificationError(
                f"The result of restore test `{self.scratch}` is not beside the backups. Test again."
            )

    async def outcome(self, ports: Ports) -> str:
        proof = await Proofs(ports.objects, ports.secrets).find(ports.site.physical_of(self.server), self.scratch)
        if proof is None:
            return ""
        counts = [f"`{name.removesuffix(': rows')}`: {text}" for name, text in proof.checks.items() if "rows" in name]
        measured = f"RTO {span(proof.rto)}, RPO {span(proof.rpo)}, from base backup `{proof.backup}`"
        said = f"{'; '.join([measured, *counts])}."
        return f"{said} {proof.checks[COPIES]}" if COPIES in proof.checks else said

    async def undo(self, ports: Ports) -> None:
        """A recorded test is kept: it is true."""


async def _exposure(ports: Ports, facts: ScratchFacts, restored: ScratchRestored) -> timedelta:
    """What a loss of the server at the beginning of the test would have cost, as `/dr-backup status` counts it: a
    server on which nobody commits loses nothing, however old its newest commit is."""
    windows = await ports.physical.windows(facts.server)
    newest = restored.reached_at
    if not restored.target.latest or newest is None:
        newest = windows[0].newest if windows else None
    if newest is None:
        return timedelta(0)
    if restored.covered_until is not None:
        newest = max(newest, restored.covered_until)
    lost = max(timedelta(0), facts.made_at - newest)
    if not lost or restored.covered_until is not None or not windows:
        return lost
    if windows[0].newest is not None and newest < windows[0].newest:
        return lost  # something was archived since: then somebody writes
    # Where the server archives its WAL itself, its last checkpoint tells. Nothing committed since then was lost before.
    entries = await ports.physical.catalogue(facts.server)
    return timedelta(0) if await idle(ports, facts.server, windows[0], entries) else lost


async def _newest(ports: Ports, server: str) -> datetime | None:
    """The newest commit in the copy that would survive the loss of the region."""
    windows = await ports.physical.windows(server)
    return windows[0].newest if windows else None


def _of_restore(restored: ScratchRestored, verified: str) -> dict[str, str]:
    last = "no commit replayed"
    if restored.reached_at is not None:
        last = f"last commit {restored.reached_at:%Y-%m-%d %H:%M:%S.%f} UTC"
    return {
        "members": f"{verified}: `{restored.backup}` and all it rests on",
        "page checksums": _pages(restored),
        "target": f"{restored.target} reached, {last}, LSN {restored.reached_lsn}, timeline id {restored.timeline_id}",
    }


def _pages(restored: ScratchRestored) -> str:
    if restored.checked_pages:
        return "every page"
    return "not possible, the server has none" if restored.without_checksums else "not looked at"


def _indexes(restored: ScratchRestored) -> str:
    if not restored.checked_indexes:
        return "not compared: no database has the extension `amcheck`"
    return f"every one compared with its table in {names(restored.checked_indexes)}"


def _counted(item: ProvenDatabase, found: Fingerprint) -> dict[str, str]:
    rows = f"{sum(found.rows.values())} rows in {counted(len(found.rows), 'table')}"
    values = {f"{item.key}: {name}": value for name, value in found.invariants.items()}
    return {f"{item.key}: rows": rows, **values}


def _losses(item: ProvenDatabase, found: Fingerprint) -> list[str]:
    """What no change of people explains: a database that had rows in its newest dump and has none, an invariant that
    does not hold."""
    problems = []
    if item.rows and not sum(found.rows.values()):
        problems.append(f"database `{item.name}` is empty, its newest dump has {item.rows} rows")
    elif item.tables > 1 and 2 * len(found.rows) < item.tables:
        problems.append(f"database `{item.name}` has {len(found.rows)} tables, its newest dump {item.tables}")
    return [*problems, *(f"in database `{item.name}` {said}" for said in unmet(item.invariants, found))]
