"""Signed facts about base backups, scratch instances and single tables, read again right before the first step."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field

from actions.backup.physical import ScratchFacts, ScratchState
from actions.backup.tables import TableName
from actions.contract import Precondition
from actions.ports import Ports
from actions.site import DatabaseRef
from actions.steps.phrases import counted, size


class BaseIs(Precondition):
    """The base backup is in the catalogue, byte for byte the signed manifest, and may be used."""

    kind: Literal["base_is"] = "base_is"
    server: str
    backup: str
    manifest_sha256: str

    @property
    def summary(self) -> str:
        return f"Base backup `{self.backup}` still verifies, manifest SHA-256 {self.manifest_sha256[:12]}"

    async def violation(self, ports: Ports) -> str | None:
        entries = await ports.physical.catalogue(self.server)
        entry = next((entry for entry in entries if entry.manifest.id == self.backup), None)
        if entry is None:
            return f"Base backup `{self.backup}` is no longer in the catalogue."
        if entry.problem is not None:
            return f"Base backup `{self.backup}` must no longer be used: {entry.problem}"
        if entry.manifest_sha256 != self.manifest_sha256:
            return f"The manifest of `{self.backup}` was changed since it was signed for."
        return None


class ScratchRoom(Precondition):
    """The budget of scratch instances has room for one more."""

    spent: ClassVar[bool] = True
    kind: Literal["scratch_room"] = "scratch_room"
    scratch: str  # the one to be made, which does not count
    at_least: int  # bytes

    @property
    def summary(self) -> str:
        return f"Scratch instances have room for one more of {size(self.at_least)}"

    async def violation(self, ports: Ports) -> str | None:
        return await no_room(ports, self.scratch, self.at_least)


class ScratchIs(Precondition):
    """The instance is there, as it was restored, at the place it was signed for."""

    kind: Literal["scratch_is"] = "scratch_is"
    scratch: str
    mark: str
    system_id: str
    reached_lsn: str
    promoted: bool = False  # whether it may have been promoted, by this very plan
    timeline_id: int = Field(default=0, exclude_if=operator.not_)  # that it was restored on
    stays: bool = Field(default=False, exclude_if=operator.not_)  # what it is: nothing is promoted by this plan
    sound: bool = Field(default=False, exclude_if=operator.not_)  # it is given back as a whole

    @classmethod
    def of(cls, facts: ScratchFacts, *, promoted: bool = False, stays: bool = False, sound: bool = False) -> Self:
        """As it is now."""
        return cls(
            scratch=facts.id,
            mark=facts.mark,
            system_id=facts.system_id,
            reached_lsn="" if facts.restored is None else facts.restored.reached_lsn,
            promoted=promoted,
            timeline_id=0 if facts.restored is None else facts.restored.timeline_id,
            stays=stays,
            sound=sound,
        )

    @property
    def summary(self) -> str:
        return f"Scratch instance `{self.scratch}` (system id {self.system_id}) stands at {self.reached_lsn}"

    @property
    def acts_on(self) -> str:
        if not self.promoted or self.stays:
            return ""  # it is read alone
        along = f" of timeline id {self.timeline_id}" if self.timeline_id else ""
        return f"`scratch-{self.scratch}`, which becomes the primary as of {self.reached_lsn}{along}"

    async def violation(self, ports: Ports) -> str | None:
        found = await ports.scratch.find(self.scratch)
        if found is None:
            return f"Scratch instance `{self.scratch}` is gone."
        reached = "" if found.restored is None else found.restored.reached_lsn
        if (found.mark, found.system_id, reached) != (self.mark, self.system_id, self.reached_lsn):
            return f"Scratch instance `{self.scratch}` is another one: system id {found.system_id}, at {reached}."
        if found.state is ScratchState.FOLLOWING:
            return f"Scratch instance `{self.scratch}` follows the archive: it left the moment that was signed for."
        if found.state is ScratchState.PROMOTED and not self.promoted:
            return f"Scratch instance `{self.scratch}` was promoted: it no longer shows the moment that was signed for."
        if self.sound and found.problem and found.state is not ScratchState.PROMOTED:
            return f"Scratch instance `{self.scratch}` did not pass a check since it was signed for: {found.problem}"
        return None


class TableIs(Precondition):
    """The table is the same one, or is still missing."""

    spent: ClassVar[bool] = True
    kind: Literal["table_is"] = "table_is"
    database: DatabaseRef
    table: TableName
    oid: int | None

    @property
    def summary(self) -> str:
        return f"Table `{self.table}` of `{self.database}` {self._state(self.oid)}"

    @staticmethod
    def _state(oid: int | None) -> str:
        return "does not exist" if oid is None else f"has oid {oid}"

    async def violation(self, ports: Ports) -> str | None:
        facts = await ports.tables.facts(self.database, self.table)
        found = None if facts is None else facts.oid
        if found == self.oid:
            return None
        signed = self._state(self.oid)
        return f"Table `{self.table}` of `{self.database}` {self._state(found)}, signed was that it {signed}."


async def no_room(ports: Ports, scratch: str, needed: int) -> str | None:
    """Why another scratch instance does not fit into the budget of the plan file, or onto this machine; None when it
    does."""
    budget = ports.site.scratch
    others = [
        facts  # a promoted one is a server of its own: no part of the budget
        for facts in await ports.scratch.instances()
        if facts.id != scratch and facts.state is not ScratchState.PROMOTED
    ]
    if len(others) >= budget.instances:
        return (
            f"There are {counted(len(others), 'scratch instance')} already, the plan file allows {budget.instances}. "
            + _way_out(others, "backups.scratch.instances")
        )
    taken = sum(facts.bytes for facts in others)
    if taken + needed > budget.disk:
        return (
            f"Scratch instances take {size(taken)}, this one needs {size(needed)}, the plan file allows "
            f"{size(budget.disk)}. " + _way_out(others, "backups.scratch.disk")
        )
    return await ports.scratch.lacking(needed) or None


def _way_out(others: Sequence[ScratchFacts], limit: str) -> str:
    free = sorted(
        (facts for facts in others if facts.state is not ScratchState.RESTORING), key=lambda each: each.made_at
    )
    if not free:
        return f"None can be discarded now. Wait for the restore that is at work, or raise `{limit}`."
    oldest, *more = (facts.id for facts in free)
    also = f" (or {', '.join(f'`{each}`' for each in more)})" if more else ""
    return f"Remove one, the oldest with `/dr-restore discard {oldest}`{also}, or raise `{limit}`."
