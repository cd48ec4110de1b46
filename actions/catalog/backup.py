"""Backups: make one, check one, take in a dump that others made."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import ClassVar

from pydantic import Field

from actions.backup.catalogue import Folder
from actions.backup.manifest import Manifest
from actions.backup.stored import put_right
from actions.contract import Action, DrillOf, Finding, Lock, Observation, Plan, Precondition, Risk, Step, Verdict
from actions.errors import DrError, UserError, adding
from actions.ports import CatalogueEntry, Ports
from actions.site import BackupPolicy, DatabaseRef, Frozen
from actions.steps.choice import READ_RATE, chosen, dump_estimate, usable_entries
from actions.steps.dumps import AdoptDump, MakeDump, UploadCopy, VerifyBackup, unsent
from actions.steps.facts import BackupIs, DatabaseIs, NamesFree, ObjectIs
from actions.steps.naming import adopt_name, backup_id, job_name, scratch_mark
from actions.steps.phrases import counted, moment, size


class DumpParams(Frozen):
    """Which database is dumped, and for whom."""

    database: str = Field(min_length=1)
    requested_by: str = ""


class Dump(Action[DumpParams]):
    """A logical dump of one database, encrypted, in the bucket, with a signed manifest."""

    name: ClassVar[str] = "backup.dump"
    summary: ClassVar[str] = "Dump a database now, encrypted, into its bucket"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = DumpParams
    steps: ClassVar[tuple[type[Step], ...]] = (MakeDump,)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (DatabaseIs,)

    async def plan(self, params: DumpParams, ports: Ports, plan_id: str) -> Plan:
        database = ports.site.database(params.database)
        policy = ports.site.backup(params.database)
        facts = await ports.postgres.database(database.ref)
        if facts is None:
            raise UserError(
                f"Database `{database.ref}` does not exist, so it cannot be dumped. Restore it with `restore.dump`."
            )
        entries, silent = await _entries(ports, policy)
        step = MakeDump(
            job=job_name(plan_id, 1),
            database=params.database,
            source=database.ref,
            backup=backup_id(params.database, plan_id),
            bucket=policy.bucket,
            endpoint=ports.site.endpoint_of(policy.bucket),
            prefix=policy.prefix,
            recipients=policy.recipients,
            requested_by=params.requested_by,
            copy_only=silent is not None,
        )
        server = await ports.postgres.server(database.server)
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Dump database `{params.database}` as `{step.backup}`"
            + ("" if silent is None else ", into the local copy alone"),
            risk=self.risk,
            target=params.database,
            params=params.model_dump(mode="json"),
            locks=(
                Lock(key=f"database:{params.database}", exclusive=False),
                Lock(key=f"dump:{params.database}"),
            ),
            steps=(step,),
            preconditions=(DatabaseIs(target=database.ref, oid=facts.oid),),
            made_at=ports.clock.now(),
            findings=(*_silence(silent, step), *_dump_findings(entries, server.version)),
            observations=(
                Observation(name="database", value=size(facts.bytes)),
                Observation(name="newest backup", value=_newest(entries) if silent is None else "not known now"),
            ),
            estimate=dump_estimate(entries, facts.bytes),
        )


async def _entries(ports: Ports, policy: BackupPolicy) -> tuple[Sequence[CatalogueEntry], DrError | None]:
    """The catalogue. A bucket that is silent or refuses is no reason to go without one where there is a local copy."""
    try:
        return await ports.backups.catalogue(policy.database), None
    except DrError as error:
        if policy.local_directory is None:
            raise
        return (), error


def _silence(error: DrError | None, step: MakeDump) -> tuple[Finding, ...]:
    if error is None:
        return ()
    return (
        Finding(
            check="bucket",
            verdict=Verdict.WARN,
            detail=f"{error} The dump goes into the local copy alone, which may be lost together with this machine.",
            hint=f"Once the bucket answers, `/dr-backup upload {step.database} {step.backup}` brings it there.",
        ),
    )


def _newest(entries: Sequence[CatalogueEntry]) -> str:
    fit = usable_entries(entries, before=None)
    return f"`{fit[0].manifest.id}`, {moment(fit[0].manifest.snapshot_at)}" if fit else "none"


def _dump_findings(entries: Sequence[CatalogueEntry], server_version: int) -> tuple[Finding, ...]:
    """pg_dump refuses a server of a newer major version than its own; the newest manifest tells which one ran."""
    fit = usable_entries(entries, before=None)
    tool = fit[0].manifest.tools.get("pg_dump", "") if fit else ""
    major = tool.split(".")[0]
    if not major.isdecimal() or int(major) >= server_version // 10000:
        return ()
    return (
        Finding(
            check="tools",
            verdict=Verdict.WARN,
            detail=f"The server is PostgreSQL {server_version // 10000}, the newest dump was made by pg_dump {tool}.",
            hint="Name the server's own tools in the plan file if this dump fails.",
        ),
    )


def _unusable(entry: CatalogueEntry) -> Finding:
    return Finding(
        check="backup",
        verdict=Verdict.STOP,
        detail=f"Backup `{entry.manifest.id}` must not be used: {entry.problem}",
        hint="Verify another one, or make a new dump.",
    )


class UploadParams(Frozen):
    """Which dump of the local copy; the newest that the bucket lacks when none is named."""

    database: str = Field(min_length=1)
    backup: str | None = None


class Upload(Action[UploadParams]):
    """Bring a dump that is in the local copy alone into the bucket."""

    name: ClassVar[str] = "backup.upload"
    summary: ClassVar[str] = "Bring a dump that is in the local copy alone into its bucket"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = UploadParams
    steps: ClassVar[tuple[type[Step], ...]] = (UploadCopy,)

    async def plan(self, params: UploadParams, ports: Ports, plan_id: str) -> Plan:
        ports.site.database(params.database)
        policy = ports.site.backup(params.database)
        manifest = _copy(params, await _unsent(ports, policy, params))
        step = UploadCopy(
            job=job_name(plan_id, 1),
            database=params.database,
            backup=manifest.id,
            bucket=policy.bucket,
            endpoint=ports.site.endpoint_of(policy.bucket),
            key=manifest.stored.key,
            path=str(Folder(policy, manifest.id).local_dump),
            sha256=manifest.stored.sha256,
        )
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Upload backup `{manifest.id}` of `{params.database}` from the local copy",
            risk=self.risk,
            target=manifest.id,
            params=params.model_copy(update={"backup": manifest.id}).model_dump(mode="json"),
            locks=(Lock(key=f"dump:{params.database}"),),
            steps=(step,),
            made_at=ports.clock.now(),
            observations=(
                Observation(name="local copy", value=size(manifest.stored.bytes)),
                Observation(name="state of", value=moment(manifest.snapshot_at)),
            ),
            estimate=timedelta(seconds=1 + manifest.stored.bytes // READ_RATE),
        )


async def _unsent(ports: Ports, policy: BackupPolicy, params: UploadParams) -> Sequence[Manifest]:
    """What the bucket lacks. Raises its own error, with what there is and what to do, while it does not say."""
    try:
        return await unsent(ports, params.database)
    except DrError as error:
        copies = [entry.manifest for entry in await ports.backups.copies(params.database)]
        named = "" if params.backup is None else f" {params.backup}"
        again = f"`/dr-backup upload {params.database}{named}`"
        held = (
            f"The local copy `{policy.local_directory}` holds {counted(len(copies), 'dump')} of `{params.database}`, "
            f"the newest `{copies[0].id}`; nothing of them is lost by that. {put_right(error)}, ask again: {again}."
            if copies
            else f"The local copy of `{params.database}` holds no whole dump either: make one with "
            f"`/dr-backup run {params.database}`."
        )
        raise adding(error, f"Nothing was uploaded: what the bucket lacks is not known. {held}") from error


def _copy(params: UploadParams, copies: Sequence[Manifest]) -> Manifest:
    found = next((copy for copy in copies if params.backup in (None, copy.id)), None)
    if found is not None:
        return found
    what = "no whole dump" if params.backup is None else f"no whole dump `{params.backup}`"
    raise UserError(
        f"The local copy of `{params.database}` holds {what} that the bucket lacks. "
        f"Look with `/dr-backup list {params.database}`."
    )


class VerifyParams(Frozen):
    """Which backup is checked; the newest when none is named."""

    database: str = Field(min_length=1)
    backup: str | None = None


class Verify(Action[VerifyParams]):
    """Read a stored backup completely and check it against its manifest."""

    name: ClassVar[str] = "backup.verify"
    summary: ClassVar[str] = "Read a stored backup completely and check its signature and hashes"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = VerifyParams
    steps: ClassVar[tuple[type[Step], ...]] = (VerifyBackup,)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (BackupIs,)
    drillable: ClassVar[DrillOf | None] = DrillOf.DATABASE

    async def plan(self, params: VerifyParams, ports: Ports, plan_id: str) -> Plan:
        ports.site.database(params.database)
        ports.site.backup(params.database)
        entries = await ports.backups.catalogue(params.database)
        entry = chosen(params.database, entries, backup=params.backup, before=None)
        manifest = entry.manifest
        step = VerifyBackup(
            job=job_name(plan_id, 1),
            database=params.database,
            backup=manifest.id,
            bucket=manifest.stored.bucket,
            endpoint=ports.site.endpoint_of(manifest.stored.bucket),
            key=manifest.stored.key,
            sha256=manifest.stored.sha256,
        )
        checked = "never" if entry.verified_at is None else moment(entry.verified_at)
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Verify backup `{manifest.id}` of `{params.database}`",
            risk=self.risk,
            target=manifest.id,
            params=params.model_dump(mode="json"),
            locks=(Lock(key=f"backup:{manifest.id}", exclusive=False),),
            steps=(step,),
            preconditions=(
                BackupIs(database=params.database, backup=manifest.id, manifest_sha256=entry.manifest_sha256),
            ),
            made_at=ports.clock.now(),
            findings=() if entry.problem is None else (_unusable(entry),),
            observations=(
                Observation(name="stored", value=size(manifest.stored.bytes)),
                Observation(name="state of", value=moment(manifest.snapshot_at)),
                Observation(name="verified before", value=checked),
            ),
            estimate=timedelta(seconds=1 + manifest.stored.bytes // READ_RATE),
        )


class AdoptParams(Frozen):
    """A dump in the database's bucket that this product did not make."""

    database: str = Field(min_length=1)
    source_key: str = Field(min_length=1)
    requested_by: str = ""


class Adopt(Action[AdoptParams]):
    """Restore a found dump in scratch, measure it, and catalogue it as adopted."""

    name: ClassVar[str] = "backup.adopt"
    summary: ClassVar[str] = "Try out a dump made by other means and take it into the catalogue as adopted"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = AdoptParams
    steps: ClassVar[tuple[type[Step], ...]] = (AdoptDump,)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (ObjectIs, NamesFree)

    async def plan(self, params: AdoptParams, ports: Ports, plan_id: str) -> Plan:
        database = ports.site.database(params.database)
        policy = ports.site.backup(params.database)
        found = await ports.objects.head(policy.bucket, params.source_key)
        if found is None:
            raise UserError(
                f"Bucket `{policy.bucket}` has no object `{params.source_key}`. Upload the dump there first: "
                f"`aws s3 cp FILE s3://{policy.bucket}/{params.source_key}`."
            )
        scratch = DatabaseRef(database.server, adopt_name(database.name, plan_id))
        step = AdoptDump(
            job=job_name(plan_id, 1),
            database=params.database,
            backup=backup_id(params.database, plan_id),
            bucket=policy.bucket,
            endpoint=ports.site.endpoint_of(policy.bucket),
            source_key=params.source_key,
            scratch=scratch,
            mark=scratch_mark(plan_id),
            requested_by=params.requested_by,
        )
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Adopt `{params.source_key}` as backup `{step.backup}` of `{params.database}`",
            risk=self.risk,
            target=params.database,
            params=params.model_dump(mode="json"),
            locks=(
                Lock(key=f"database:{params.database}", exclusive=False),
                Lock(key=f"dump:{params.database}"),
            ),
            steps=(step,),
            preconditions=(
                ObjectIs(bucket=policy.bucket, key=params.source_key, bytes=found.bytes),
                NamesFree(server=database.server, names=(scratch.name,)),
            ),
            made_at=ports.clock.now(),
            findings=(
                Finding(
                    check="origin",
                    verdict=Verdict.WARN,
                    detail="Nobody attests what this dump holds: it is measured after a restore, not when it was made.",
                    hint="Compare the rows it reports with what you expect before you restore it.",
                ),
            ),
            observations=(
                Observation(name="object", value=size(found.bytes)),
                Observation(name="written", value=moment(found.modified_at)),
            ),
        )
