"""Steps that make, check and adopt dumps. They change nothing of production."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from actions.backup.manifest import Manifest
from actions.backup.stored import put_right
from actions.contract import Probe
from actions.errors import DrError, VerificationError, adding
from actions.ports import AdoptRequest, CatalogueEntry, DumpRequest, JobKind, JobPhase, JobState, Ports, Progress
from actions.site import DatabaseRef
from actions.steps import byhand
from actions.steps.heavy import HeavyStep, ReadingStep
from actions.steps.known_backups import checked
from actions.steps.new_databases import is_there


class MakeDump(HeavyStep):
    """A dump in the catalogue, under an id that the plan chose."""

    interruptible: ClassVar[bool] = True
    kind: Literal["make_dump"] = "make_dump"
    database: str
    source: DatabaseRef
    backup: str
    bucket: str
    endpoint: str | None
    prefix: str
    recipients: tuple[str, ...]
    requested_by: str
    copy_only: bool = False  # the bucket did not answer when this was planned

    @property
    def summary(self) -> str:
        where = "the local copy alone" if self.copy_only else f"bucket `{self.bucket}`"
        return f"Dump database `{self.source}` into {where} as `{self.backup}`"

    @property
    def before(self) -> str:
        return f"no backup `{self.backup}`"

    @property
    def after(self) -> str:
        sealed = f"encrypted to {len(self.recipients)} recipient(s), signed"
        if self.copy_only:
            upload = f"`/dr-backup upload {self.database} {self.backup}`"
            return f"complete in the local copy, {sealed}; not in the bucket until {upload}"
        return f"backup `{self.backup}` in the catalogue, {sealed}"

    def by_hand(self) -> tuple[str, ...]:
        recipients = " ".join(f"-r {shlex.quote(item)}" for item in self.recipients)
        source = shlex.quote(byhand.conninfo(self.source.server, self.source.name))
        target = f"s3://{self.bucket}/{self.prefix}manual/{self.backup}.dump.age"
        return (
            f"pg_dump -Fc --compress=none -d {source} | zstd -1 | age {recipients} > {self.backup}.dump.age",
            byhand.aws(self.endpoint, "s3", "cp", f"{self.backup}.dump.age", target),
        )

    @property
    def job_kind(self) -> JobKind:
        return JobKind.DUMP

    def request(self) -> Mapping[str, Any]:
        asked = DumpRequest(
            id=self.backup, database=self.database, requested_by=self.requested_by, copy_only=self.copy_only
        )
        return asked.model_dump(mode="json")

    async def effect(self, ports: Ports, job: JobState | None) -> Probe:  # noqa: ARG002 - the catalogue tells all
        # The manifest is written last: an entry means the dump is whole.
        if self.copy_only:
            return Probe.DONE if await in_the_copy(ports, self.database, self.backup) else Probe.TODO
        return Probe.TODO if await ports.backups.find(self.database, self.backup) is None else Probe.DONE

    async def verify(self, ports: Ports) -> None:
        if not self.copy_only:
            await usable(ports, self.database, self.backup)
        elif not await in_the_copy(ports, self.database, self.backup):
            raise VerificationError(f"The local copy holds no whole backup `{self.backup}`. Look at its disk.")

    async def undo(self, ports: Ports) -> None:
        """Nothing of production was changed; the dump is kept, since deleting backups is an action of its own."""


class UploadCopy(HeavyStep):
    """A dump of the local copy, brought into the bucket it could not be stored in."""

    kind: Literal["upload_copy"] = "upload_copy"
    database: str
    backup: str
    bucket: str
    endpoint: str | None
    key: str
    path: str
    sha256: str

    @property
    def summary(self) -> str:
        return f"Upload backup `{self.backup}` of `{self.database}` from the local copy into bucket `{self.bucket}`"

    @property
    def before(self) -> str:
        return f"whole in the local copy, SHA-256 {self.sha256[:12]} by its manifest; not in the bucket"

    @property
    def after(self) -> str:
        return f"backup `{self.backup}` in the catalogue"

    def by_hand(self) -> tuple[str, ...]:
        folder, target = self.path.rpartition("/")[0], f"s3://{self.bucket}/{self.key.rpartition('/')[0]}"
        return (
            f"echo {shlex.quote(f'{self.sha256}  {self.path}')} | sha256sum -c",
            byhand.aws(self.endpoint, "s3", "cp", self.path, f"s3://{self.bucket}/{self.key}"),
            byhand.aws(self.endpoint, "s3", "cp", f"{folder}/manifest.json", f"{target}/manifest.json"),
        )

    @property
    def job_kind(self) -> JobKind:
        return JobKind.UPLOAD

    def request(self) -> Mapping[str, Any]:
        return {"database": self.database, "backup": self.backup}

    async def effect(self, ports: Ports, job: JobState | None) -> Probe:  # noqa: ARG002 - the catalogue tells all
        try:
            return Probe.TODO if await ports.backups.find(self.database, self.backup) is None else Probe.DONE
        except DrError as error:
            again = f"{put_right(error)}, ask again: `/dr-backup upload {self.database} {self.backup}`."
            raise adding(error, f"The local copy `{self.path}` stays as it is. {again}") from error

    async def verify(self, ports: Ports) -> None:
        await usable(ports, self.database, self.backup)

    async def undo(self, ports: Ports) -> None:
        """The backup is kept in both places, since deleting backups is an action of its own."""


class VerifyBackup(ReadingStep):
    """The whole stored object read, both hashes checked, the archive listed."""

    interruptible: ClassVar[bool] = True
    kind: Literal["verify_backup"] = "verify_backup"
    database: str
    backup: str
    bucket: str
    endpoint: str | None
    key: str
    sha256: str

    @property
    def summary(self) -> str:
        return f"Read backup `{self.backup}` of `{self.database}` completely and check its hashes"

    @property
    def before(self) -> str:
        return f"stored object `{self.key}`, SHA-256 {self.sha256[:12]} by its manifest"

    @property
    def after(self) -> str:
        return "the result of the check recorded beside it"

    def by_hand(self) -> tuple[str, ...]:
        return (*fetched(self.bucket, self.endpoint, self.key, self.sha256), "pg_restore --list backup.dump | head -20")

    @property
    def job_kind(self) -> JobKind:
        return JobKind.VERIFY

    def request(self) -> Mapping[str, Any]:
        return {"database": self.database, "backup": self.backup}

    async def verify(self, ports: Ports) -> None:
        entry = await usable(ports, self.database, self.backup)
        if entry.verified_at is None:
            raise VerificationError(
                f"Backup `{self.backup}` was read but the result was not recorded. Verify it again."
            )


class AdoptDump(HeavyStep):
    """A dump of other origin, restored in scratch, measured, then catalogued as adopted."""

    kind: Literal["adopt_dump"] = "adopt_dump"
    database: str
    backup: str
    bucket: str
    endpoint: str | None
    source_key: str
    scratch: DatabaseRef
    mark: str
    requested_by: str

    @property
    def summary(self) -> str:
        return f"Restore `{self.source_key}` into scratch `{self.scratch}` and catalogue it as `{self.backup}`"

    @property
    def before(self) -> str:
        return f"object `{self.source_key}` in bucket `{self.bucket}`, not in the catalogue"

    @property
    def after(self) -> str:
        return f"backup `{self.backup}` in the catalogue, adopted; the scratch database is gone"

    def by_hand(self) -> tuple[str, ...]:
        server, name = self.scratch
        return (
            byhand.aws(self.endpoint, "s3", "cp", f"s3://{self.bucket}/{self.source_key}", "backup.dump"),
            byhand.psql(server, f"CREATE DATABASE {byhand.identifier(name)} TEMPLATE template0"),
            shlex.join(["pg_restore", "--exit-on-error", "-d", byhand.conninfo(server, name), "backup.dump"]),
            byhand.psql(server, f"DROP DATABASE {byhand.identifier(name)}"),
        )

    @property
    def job_kind(self) -> JobKind:
        return JobKind.ADOPT

    def request(self) -> Mapping[str, Any]:
        asked = AdoptRequest(
            id=self.backup,
            database=self.database,
            source_key=self.source_key,
            scratch=self.scratch,
            mark=self.mark,
            requested_by=self.requested_by,
        )
        return asked.model_dump(mode="json")

    async def effect(self, ports: Ports, job: JobState | None) -> Probe:  # noqa: ARG002 - the catalogue tells all
        if await ports.backups.find(self.database, self.backup) is None:
            return Probe.TODO
        # Catalogued but the scratch copy left behind: the job died between the two.
        return Probe.TODO if await self._leftover(ports) else Probe.DONE

    async def apply(self, ports: Ports, progress: Progress) -> None:
        job = await ports.executor.find(self.job)
        running = job is not None and job.phase is JobPhase.RUNNING
        if not running and await ports.backups.find(self.database, self.backup) is not None:
            await self.sweep(ports)  # catalogued already; only the scratch copy is left to remove
            return
        await super().apply(ports, progress)

    async def sweep(self, ports: Ports) -> None:
        if await self._leftover(ports):
            await ports.postgres.discard(self.scratch, mark=self.mark)

    async def _leftover(self, ports: Ports) -> bool:
        return await is_there(ports, self.scratch, self.mark)

    async def verify(self, ports: Ports) -> None:
        await usable(ports, self.database, self.backup)

    async def undo(self, ports: Ports) -> None:
        """Nothing of production was changed; the catalogue entry is kept."""


async def in_the_copy(ports: Ports, database: str, backup: str) -> bool:
    """Whether the local copy holds this backup, whole and signed."""
    return any(entry.manifest.id == backup for entry in await ports.backups.copies(database))


async def unsent(ports: Ports, database: str) -> list[Manifest]:
    """What the local copy holds and the bucket lacks, newest first. Raises TemporaryError while that is silent."""
    stored = {entry.manifest.id for entry in await ports.backups.catalogue(database)}
    copies = [entry.manifest for entry in await ports.backups.copies(database)]
    return [manifest for manifest in copies if manifest.id not in stored]


async def usable(ports: Ports, database: str, backup: str) -> CatalogueEntry:
    """The catalogue entry; VerificationError when it is not there or must not be used."""
    return checked(await ports.backups.find(database, backup), database, backup)


def fetched(bucket: str, endpoint: str | None, key: str, sha256: str) -> tuple[str, ...]:
    """Commands that bring a stored dump here and open it as `backup.dump`."""
    return (
        byhand.aws(endpoint, "s3", "cp", f"s3://{bucket}/{key}", "backup.dump.age"),
        f"echo {shlex.quote(sha256 + '  backup.dump.age')} | sha256sum -c",
        'age -d -i "$AGE_IDENTITY_FILE" backup.dump.age | zstd -d > backup.dump',
    )
