"""Steps that make and check base backups. They change nothing of production."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from actions.backup.physical import BackupKind, BaseRequest, PhysicalEntry
from actions.contract import Probe
from actions.engine import Copied, Stored, Wanted
from actions.engines import engine_of_step
from actions.errors import TemporaryError, VerificationError
from actions.ports import JobKind, JobState, Ports
from actions.steps.heavy import HeavyStep, ReadingStep
from actions.steps.phrases import counted, names


class MakeBase(HeavyStep):
    """A base backup in the catalogue, under an id that the plan chose."""

    interruptible: ClassVar[bool] = True
    kind: Literal["make_base"] = "make_base"
    server: str
    backup: str
    backup_kind: BackupKind
    parent: str | None
    engine: str
    stanza: str  # what that engine calls the server: see `Engine.label`
    bucket: str
    endpoint: str | None
    prefix: str
    recipients: tuple[str, ...]
    requested_by: str

    @property
    def summary(self) -> str:
        rests = "" if self.parent is None else f", the pages changed since `{self.parent}`"
        if rests and engine_of_step(self.engine, self.stanza).full_instead:
            rests += ", or all pages where the server cannot tell those"
        return f"Make {self.backup_kind} backup `{self.backup}` of server `{self.server}`{rests}"

    @property
    def before(self) -> str:
        return f"no base backup `{self.backup}`"

    @property
    def after(self) -> str:
        sealed = f"encrypted to {len(self.recipients)} recipient(s), signed"
        return f"base backup `{self.backup}` in bucket `{self.bucket}`, {sealed}"

    def by_hand(self) -> tuple[str, ...]:
        wanted = Wanted(
            server=self.server,
            backup=self.backup,
            kind=self.backup_kind,
            label=self.stanza,
            bucket=self.bucket,
            endpoint=self.endpoint,
            prefix=self.prefix,
            recipients=self.recipients,
        )
        return engine_of_step(self.engine, self.stanza).take_by_hand(wanted)

    @property
    def job_kind(self) -> JobKind:
        return JobKind.BASE

    def request(self) -> Mapping[str, Any]:
        asked = BaseRequest(
            id=self.backup,
            server=self.server,
            kind=self.backup_kind,
            parent=self.parent,
            requested_by=self.requested_by,
        )
        return asked.model_dump(mode="json")

    async def effect(self, ports: Ports, job: JobState | None) -> Probe:  # noqa: ARG002 - the catalogue tells all
        # The manifest is written last: an entry means the backup is whole.
        return Probe.TODO if await base(ports, self.server, self.backup) is None else Probe.DONE

    async def verify(self, ports: Ports) -> None:
        await usable_base(ports, self.server, self.backup)

    async def outcome(self, ports: Ports) -> str:
        entry = await base(ports, self.server, self.backup)
        if entry is None:
            return ""
        said, into = [], entry.manifest.stored.bucket
        if entry.manifest.full_because:
            said.append(f"A full backup was made instead of an incremental. {entry.manifest.full_because}")
        if not engine_of_step(self.engine, self.stanza).one_bucket and into != self.bucket:
            said.append(f"It was made into bucket `{into}`, since `{self.bucket}` did not answer.")
        return " ".join(said)

    async def undo(self, ports: Ports) -> None:
        """Nothing of production was changed; the backup is kept, since deleting backups is an action of its own."""


class CopyBases(HeavyStep):
    """The base backup in the second bucket as well, with whatever earlier runs could not bring there."""

    interruptible: ClassVar[bool] = True
    kind: Literal["copy_bases"] = "copy_bases"
    server: str
    backup: str
    bucket: str
    endpoint: str | None
    copy_bucket: str
    copy_endpoint: str | None
    prefix: str
    engine: str = Field(default="", exclude_if=operator.not_)  # older plans have none, and keep their digest

    @property
    def summary(self) -> str:
        return (
            f"Copy `{self.backup}`, and what earlier runs have left over, so that `{self.bucket}` and "
            f"`{self.copy_bucket}` both have it"
        )

    @property
    def before(self) -> str:
        return f"`{self.backup}` in one bucket alone"

    @property
    def after(self) -> str:
        return f"`{self.backup}` in both, with the same signed manifest"

    def by_hand(self) -> tuple[str, ...]:
        copied = Copied(
            server=self.server,
            backup=self.backup,
            prefix=self.prefix,
            bucket=self.bucket,
            endpoint=self.endpoint,
            into=self.copy_bucket,
            into_endpoint=self.copy_endpoint,
        )
        return engine_of_step(self.engine, "").copy_by_hand(copied)

    @property
    def job_kind(self) -> JobKind:
        return JobKind.BASE_COPY

    def request(self) -> Mapping[str, Any]:
        return {"server": self.server, "backup": self.backup}

    async def effect(self, ports: Ports, job: JobState | None) -> Probe:  # noqa: ARG002 - the buckets tell all
        return Probe.DONE if (await ports.physical.uncopied(self.server)).complete else Probe.TODO

    async def verify(self, ports: Ports) -> None:
        left = await ports.physical.uncopied(self.server)
        for bucket, why in left.silent.items():
            raise TemporaryError(f"Whether `{bucket}` has base backup `{self.backup}` cannot be looked at: {why}")
        if self.backup in left.backups:
            raise VerificationError(
                f"Base backup `{self.backup}` was copied, and {names(left.backups[self.backup])} lacks something of "
                "it. Look who deletes there; the next base backup copies it again."
            )

    async def outcome(self, ports: Ports) -> str:
        left = len((await ports.physical.uncopied(self.server)).backups)
        return f"{counted(left, 'older base backup')} left for the next run." if left else ""

    async def undo(self, ports: Ports) -> None:
        """A copy is kept, as the backup is."""


class CheckBase(ReadingStep):
    """The whole stored object read, both hashes and every file in it checked."""

    interruptible: ClassVar[bool] = True
    kind: Literal["check_base"] = "check_base"
    server: str
    backup: str
    bucket: str
    endpoint: str | None
    key: str
    sha256: str
    # Left out where the plan was signed before they were there: it keeps its digest.
    engine: str = Field(default="", exclude_if=operator.not_)
    stanza: str = Field(default="", exclude_if=operator.not_)  # what that engine calls the server

    @property
    def summary(self) -> str:
        return f"Read base backup `{self.backup}` of `{self.server}` completely and check every file"

    @property
    def before(self) -> str:
        return f"stored object `{self.key}`, SHA-256 {self.sha256[:12]} by its manifest"

    @property
    def after(self) -> str:
        return "the result of the check recorded beside it"

    def by_hand(self) -> tuple[str, ...]:
        stored = Stored(
            backup=self.backup,
            label=self.stanza,
            bucket=self.bucket,
            endpoint=self.endpoint,
            key=self.key,
            sha256=self.sha256,
        )
        return engine_of_step(self.engine, self.stanza).check_by_hand(stored)

    @property
    def job_kind(self) -> JobKind:
        return JobKind.BASE_VERIFY

    def request(self) -> Mapping[str, Any]:
        return {"server": self.server, "backup": self.backup}

    async def verify(self, ports: Ports) -> None:
        entry = await usable_base(ports, self.server, self.backup)
        if entry.verified_at is None:
            raise VerificationError(
                f"Base backup `{self.backup}` was read but the result was not recorded. Check it again."
            )


async def base(ports: Ports, server: str, backup: str) -> PhysicalEntry | None:
    """The entry of the catalogue, whatever its state."""
    return next((entry for entry in await ports.physical.catalogue(server) if entry.manifest.id == backup), None)


async def usable_base(ports: Ports, server: str, backup: str) -> PhysicalEntry:
    """The entry; VerificationError when it is not there or must not be used."""
    entry = await base(ports, server, backup)
    if entry is None:
        raise VerificationError(f"Base backup `{backup}` of `{server}` is not in the catalogue. Make a new one.")
    if entry.problem is not None:
        raise VerificationError(f"Base backup `{backup}` of `{server}` must not be used: {entry.problem}")
    return entry
