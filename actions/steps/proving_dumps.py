"""Steps of a restore test of a dump: loaded completely into an empty server, compared with its manifest, recorded."""

from __future__ import annotations

import operator
import shlex
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from actions.backup.dump_test import DumpLoaded, DumpTest
from actions.backup.manifest import Fingerprint
from actions.backup.physical import SCRATCH, Proof, ScratchFacts
from actions.backup.proofs import Proofs, Tested
from actions.contract import Probe, Step
from actions.errors import DrError, TemporaryError, VerificationError
from actions.ports import CatalogueEntry, Ports, Progress, ProgressReport
from actions.site import DatabaseRef, Invariant
from actions.steps import byhand
from actions.steps.comparison import unmet
from actions.steps.copies import SHOWN_DIFFERENCES
from actions.steps.dumps import fetched
from actions.steps.known_backups import to_restore
from actions.steps.phrases import counted, names, span
from actions.steps.restore_test import ForTest, keep, passed, proof_of
from actions.steps.scratch import instance

ROWS = "rows"
"""Of the checks: what was counted."""


class LoadForTest(ForTest):
    """A dump in an empty scratch instance, which is left stopped."""

    kind: Literal["load_for_test"] = "load_for_test"
    database: str
    server: str
    backup: str
    name: str
    jobs: int
    amcheck: bool
    bucket: str
    endpoint: str | None
    key: str
    sha256: str
    snapshot_at: AwareDatetime
    following: AwareDatetime  # when the next dump comes
    known: Mapping[str, str] = Field(default_factory=dict, exclude_if=operator.not_)  # see `Proof.known`

    @property
    def summary(self) -> str:
        return (
            f"Check signature and hashes of `{self.backup}`, load it completely into an empty server, scratch instance "
            f"`{self.scratch}`"
        )

    @property
    def before(self) -> str:
        return "a dump of which nobody knows whether it can be loaded"

    @property
    def after(self) -> str:
        indexes = ", indexes compared with their tables" if self.amcheck else ""
        return f"every object of it made again as an unprivileged role{indexes}; production is not touched"

    def by_hand(self) -> tuple[str, ...]:
        server = f"{SCRATCH}{self.scratch}"
        target = byhand.conninfo(server, self.name)
        return (
            *fetched(self.bucket, self.endpoint, self.key, self.sha256),
            'initdb -D "$PGDATA" --data-checksums && pg_ctl start -D "$PGDATA"',
            byhand.psql(server, f"CREATE DATABASE {byhand.identifier(self.name)} TEMPLATE template0"),
            shlex.join(
                ["pg_restore", "--exit-on-error", "--no-owner", "-j", str(self.jobs), "-d", target, "backup.dump"]
            ),
        )

    def request(self) -> Mapping[str, Any]:
        asked = DumpTest(
            id=self.scratch,
            database=self.database,
            backup=self.backup,
            name=self.name,
            mark=self.mark,
            jobs=self.jobs,
            amcheck=self.amcheck,
        )
        return asked.model_dump(mode="json")

    def policy(self, ports: Ports) -> Tested:
        return ports.site.backup(self.database)

    def made(self, facts: ScratchFacts) -> bool:
        return facts.loaded is not None

    async def failed(self, ports: Ports, began: datetime, problem: str) -> Proof:
        now = ports.clock.now()
        return Proof(
            id=self.scratch,
            server=self.server,
            database=self.database,
            backup=self.backup,
            proven_at=now,
            rto=now - began,
            rpo=max(timedelta(0), self.following - self.snapshot_at),
            problem=problem,
            known=self.known,
        )


class CompareForTest(Step):
    """The loaded database counted and compared with the signed manifest of its dump; the result signed and kept beside
    the dumps."""

    kind: Literal["compare_for_test"] = "compare_for_test"
    database: str
    server: str
    scratch: str
    mark: str
    backup: str
    manifest_sha256: str
    name: str
    invariants: tuple[Invariant, ...]
    tables: int
    amcheck: bool
    following: AwareDatetime  # when the next dump comes
    known: Mapping[str, str] = Field(default_factory=dict, exclude_if=operator.not_)  # see `Proof.known`

    @property
    def _ref(self) -> DatabaseRef:
        return DatabaseRef(f"{SCRATCH}{self.scratch}", self.name)

    @property
    def summary(self) -> str:
        return f"Count `{self._ref}`, compare it with the manifest of `{self.backup}`, record the test"

    @property
    def before(self) -> str:
        return "a loaded database of which nothing is known"

    @property
    def after(self) -> str:
        equal = f"rows of {counted(self.tables, 'table')}, sequences, schema hash and invariants equal"
        return f"{equal}; RTO and RPO measured; the signed result beside the dumps"

    def by_hand(self) -> tuple[str, ...]:
        server, name = self._ref
        return (
            byhand.exact_rows(server, name),
            *(byhand.psql(server, invariant.sql, database=name) for invariant in self.invariants),
        )

    async def probe(self, ports: Ports) -> Probe:
        return Probe.DONE if await self._passed(ports) else Probe.TODO

    async def _passed(self, ports: Ports) -> bool:
        return await passed(ports, ports.site.backup(self.database), self.scratch)

    async def apply(self, ports: Ports, progress: Progress) -> None:
        facts = await instance(ports, self.scratch)
        loaded = facts.loaded
        if facts.mark != self.mark or loaded is None or loaded.backup != self.backup:
            raise VerificationError(f"Scratch instance `{self.scratch}` is not the one of this test. Test again.")
        entry = await self._entry(ports)
        await ports.scratch.start(self.scratch)
        checks, problems = self._of_load(loaded), list[str]()
        done, total = 0, sum(entry.manifest.fingerprint.rows.values())

        def count(rows: int) -> None:
            nonlocal done
            done += rows
            progress(ProgressReport(done=done, total=total, unit="rows", phase="count"))

        try:
            # Measured here: what a load says of its own work is no proof.
            found = await ports.postgres.fingerprint(self._ref, self.invariants, counted=count)
        except TemporaryError:
            raise
        except DrError as error:
            problems.append(f"database `{self.name}` cannot be read: {error}")
        else:
            rows = counted(sum(found.rows.values()), "row")
            checks |= {ROWS: f"{rows} in {counted(len(found.rows), 'table')}", **self._measured(found)}
            wrong = entry.manifest.fingerprint.differences(found)
            more = f"; and {len(wrong) - SHOWN_DIFFERENCES} more" if len(wrong) > SHOWN_DIFFERENCES else ""
            if wrong:
                problems.append(f"it is not what its manifest promises: {'; '.join(wrong[:SHOWN_DIFFERENCES])}{more}")
            problems += unmet(self.invariants, found)
        now, rpo = ports.clock.now(), max(timedelta(0), self.following - entry.manifest.snapshot_at)
        found_out = proof_of(facts, loaded, now=now, rpo=rpo, checks=checks, problems=problems, known=self.known)
        proof = found_out.model_copy(update={"database": self.database})
        await keep(ports, ports.site.backup(self.database), proof)
        if proof.problem is not None:
            raise VerificationError(
                f"The restore test of dump `{self.backup}` failed: {proof.problem} Production was not touched. Make a "
                f"new dump with `/dr-backup run {self.database}`, then test again."
            )

    def _measured(self, found: Fingerprint) -> dict[str, str]:
        return {f"{self.database}: {name}": value for name, value in found.invariants.items()}

    async def _entry(self, ports: Ports) -> CatalogueEntry:
        entry = await to_restore(ports, self.database, self.backup)
        if entry.manifest_sha256 != self.manifest_sha256:
            raise VerificationError(f"The manifest of `{self.backup}` was changed since the test began. Test again.")
        return entry

    def _of_load(self, loaded: DumpLoaded) -> dict[str, str]:
        checks = {"dump": f"signature, SHA-256 of the stored and of the plain bytes, every entry: `{loaded.backup}`"}
        if self.amcheck:
            checked = names(loaded.checked_indexes)
            none = "not compared: it has no extension `amcheck`"
            checks["indexes"] = f"every one compared with its table in {checked}" if checked else none
        return checks

    async def verify(self, ports: Ports) -> None:
        if not await self._passed(ports):
            raise VerificationError(f"The result of restore test `{self.scratch}` is not beside the dumps. Test again.")

    async def outcome(self, ports: Ports) -> str:
        proof = await Proofs(ports.objects, ports.secrets).find(ports.site.backup(self.database), self.scratch)
        if proof is None:
            return ""
        counts = proof.checks.get(ROWS, "")
        return f"RTO {span(proof.rto)}, RPO {span(proof.rpo)}, by dump `{proof.backup}`; `{self.database}`: {counts}."

    async def undo(self, ports: Ports) -> None:
        """A recorded test is kept: it is true."""
