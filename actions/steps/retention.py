"""Steps that delete what retention lets go, and that keep a backup from being deleted."""

from __future__ import annotations

import operator
import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import ClassVar, Literal

from pydantic import Field

from actions.backup.physical import Expiry
from actions.buckets import Hold
from actions.contract import Probe, Step
from actions.engine import Stored
from actions.engines import engine_of_step
from actions.errors import UserError, VerificationError
from actions.ports import Ports, Progress, ProgressReport
from actions.steps import byhand
from actions.steps.base_choice import usable_bases
from actions.steps.dump_expiry import OldDumps, dumps_due
from actions.steps.expiry import DeleteOld, stay
from actions.steps.holds import holds_of, lacking
from actions.steps.kept_backups import Kept, Sort, find, stays, what
from actions.steps.phrases import counted, names, size
from actions.steps.pins import Pinning


class DeleteDumps(DeleteOld):
    """Dumps older than the policy gone from the bucket and from the local copy; the last good ones stay."""

    noun: ClassVar[str] = "dump"
    kind: Literal["delete_dumps"] = "delete_dumps"
    old: OldDumps

    @property
    def summary(self) -> str:
        return f"Delete {counted(len(self.old.gone), 'old dump')} of `{self.old.database}`, {size(self.old.bytes)}"

    @property
    def before(self) -> str:
        return names(self.old.gone)

    @property
    def after(self) -> str:
        return f"gone from bucket `{self.bucket}` and the local copy{stay(self.old.kept)}"

    def by_hand(self) -> tuple[str, ...]:
        return tuple(
            byhand.aws(self.endpoint, "s3", "rm", "--recursive", f"s3://{self.bucket}/{self.prefix}{name}/")
            for name in self.old.gone
        )

    async def due(self, ports: Ports) -> OldDumps:
        return await dumps_due(ports, self.old.database)

    async def remove(self, ports: Ports, name: str) -> None:
        await ports.backups.remove(self.old.database, name)


class DeleteBases(Step):
    """Base backups and WAL that nothing rests on any more."""

    interruptible: ClassVar[bool] = True
    kind: Literal["delete_bases"] = "delete_bases"
    timeout: timedelta = timedelta(hours=2)
    server: str
    expiry: Expiry
    bucket: str
    endpoint: str | None
    prefix: str
    # Left out where there is none: a plan that was signed before there could be two keeps its digest.
    copy_bucket: str = Field(default="", exclude_if=operator.not_)
    copy_endpoint: str | None = Field(default=None, exclude_if=operator.not_)

    @property
    def summary(self) -> str:
        backups = counted(len(self.expiry.backups), "old base backup")
        wal = counted(self.expiry.segments, "WAL segment")
        return f"Delete {backups} and {wal} of server `{self.server}`, {size(self.expiry.bytes)}"

    @property
    def before(self) -> str:
        return names(self.expiry.backups) or "WAL that no base backup needs"

    @property
    def after(self) -> str:
        both = f" and `{self.copy_bucket}`" if self.copy_bucket else ""
        return f"gone from bucket `{self.bucket}`{both}{stay(self.expiry.kept)}"

    def by_hand(self) -> tuple[str, ...]:
        return (
            *(
                byhand.aws(endpoint, "s3", "ls", "--recursive", f"s3://{bucket}/{self.prefix}")
                for bucket, endpoint in ((self.bucket, self.endpoint), (self.copy_bucket, self.copy_endpoint))
                if bucket
            ),
            shlex.join(["drbot", "backup", "expire", self.server]),
        )

    async def probe(self, ports: Ports) -> Probe:
        now = await ports.physical.expiry(self.server)
        left = set(self.expiry.backups) & set(now.backups)
        return Probe.TODO if left or (self.expiry.segments and now.segments) else Probe.DONE

    async def apply(self, ports: Ports, progress: Progress) -> None:
        await ports.physical.expire(self.server, self.expiry)
        progress(ProgressReport(done=1, total=1, unit="steps", phase="delete"))

    async def verify(self, ports: Ports) -> None:
        there = {entry.manifest.id for entry in await ports.physical.catalogue(self.server)}
        now = await ports.physical.expiry(self.server)
        left = sorted(there & set(self.expiry.backups) & set(now.backups))
        if left:
            raise VerificationError(f"{names(left)} of `{self.server}` is still there. Look at the bucket's locks.")

    async def undo(self, ports: Ports) -> None:
        """What the signed plan file lets go is gone; a bucket with versions gives it back while it keeps them."""


async def is_due(ports: Ports, sort: Sort, owner: str, backup: str) -> bool:
    """Whether the policy would let it go now."""
    if sort is Sort.BASE:
        return backup in (await ports.physical.expiry(owner)).backups
    return backup in (await dumps_due(ports, owner)).gone


class DeleteBackup(Step):
    """One backup gone, by name."""

    kind: Literal["delete_backup"] = "delete_backup"
    timeout: timedelta = timedelta(hours=1)
    sort: Sort
    owner: str
    backup: str
    bucket: str
    key: str  # of its object, in a folder of its own
    endpoint: str | None
    stanza: str  # what the engine calls the server: see `Engine.label`
    # Signed with fewer signatures, for what the policy lets go anyway: then it must still be so when it is deleted.
    due: bool = Field(default=False, exclude_if=operator.not_)
    copy_bucket: str = Field(default="", exclude_if=operator.not_)  # likewise, where there is one
    copy_endpoint: str | None = Field(default=None, exclude_if=operator.not_)
    engine: str = Field(default="", exclude_if=operator.not_)  # of a base backup

    @property
    def summary(self) -> str:
        return f"Delete {what(self.sort, self.owner, self.backup)}"

    @property
    def before(self) -> str:
        return "in the catalogue"

    @property
    def after(self) -> str:
        return "gone" if self.sort is Sort.DUMP else "gone; WAL that nothing else needs goes with the next expiry"

    def by_hand(self) -> tuple[str, ...]:
        if self.sort is Sort.DUMP:
            folder = self.key.rpartition("/")[0]
            return (byhand.aws(self.endpoint, "s3", "rm", "--recursive", f"s3://{self.bucket}/{folder}/"),)
        engine = engine_of_step(self.engine, self.stanza)
        there = Stored(backup=self.backup, label=self.stanza, bucket=self.bucket, endpoint=self.endpoint, key=self.key)
        copy = replace(there, bucket=self.copy_bucket, endpoint=self.copy_endpoint)
        both = (copy, there) if self.copy_bucket else (there,)
        return tuple(line for each in both for line in engine.remove_by_hand(each))

    async def probe(self, ports: Ports) -> Probe:
        there = await find(ports, self.sort, self.owner, self.backup)
        return Probe.DONE if there is None else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:
        # It may have been pinned, or become one of the last ones, since people signed.
        if why := await stays(ports, self.sort, self.owner, self.backup):
            raise UserError(why)
        if self.due and not await is_due(ports, self.sort, self.owner, self.backup):
            named = what(self.sort, self.owner, self.backup)
            raise UserError(f"The policy does not let {named} go, so it stays. Ask for its deletion anew.")
        engine = ports.backups if self.sort is Sort.DUMP else ports.physical
        await engine.remove(self.owner, self.backup)
        progress(ProgressReport(done=1, total=1, unit="steps", phase="delete"))

    async def verify(self, ports: Ports) -> None:
        if await find(ports, self.sort, self.owner, self.backup) is not None:
            raise VerificationError(
                f"{what(self.sort, self.owner, self.backup)} is still there. Look at the bucket's locks."
            )

    async def undo(self, ports: Ports) -> None:
        """It is gone; a bucket with versions gives it back while it keeps them."""


class SetPin(Pinning):
    """On a dump or a base backup."""

    looked_at_with: ClassVar[str] = "/dr-backup status"
    kind: Literal["set_pin"] = "set_pin"
    server: str  # of a base backup; the database of a dump
    backup: str
    # Left out where it is a base backup: a plan that was signed before dumps could be pinned keeps its digest.
    sort: Sort = Field(default=Sort.BASE, exclude_if=lambda sort: sort is Sort.BASE)

    @classmethod
    def of(cls, found: Kept, reason: str) -> SetPin:
        return cls(server=found.owner, backup=found.backup, reason=reason, reason_before=found.pinned, sort=found.sort)

    @property
    def thing(self) -> str:
        return what(self.sort, self.server, self.backup)

    @property
    def words(self) -> tuple[str, ...]:
        return ("backup", self.server, self.backup)

    async def pinned(self, ports: Ports) -> str | None:
        found = await find(ports, self.sort, self.server, self.backup)
        return None if found is None else found.pinned

    async def pin(self, ports: Ports, reason: str) -> None:
        engine = ports.backups if self.sort is Sort.DUMP else ports.physical
        await engine.pin(self.server, self.backup, reason=reason)

    async def holds(self, ports: Ports) -> Sequence[Hold]:
        return await holds_of(ports, self.sort, self.server, self.backup)

    async def lacking(self, ports: Ports) -> Sequence[str]:
        return await lacking(ports, self.sort, self.server, self.backup)


async def enough_left(ports: Ports, server: str, expiry: Expiry) -> int:
    """How many usable base backups stay once this has gone."""
    entries = await ports.physical.catalogue(server)
    return sum(entry.manifest.id not in expiry.backups for entry in usable_bases(entries))
