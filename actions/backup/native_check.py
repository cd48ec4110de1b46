"""A stored base backup read completely, in every bucket that has it; what is found is recorded beside it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from actions.backup.native_fetch import BaseFetch
from actions.backup.native_records import BaseRecords
from actions.backup.physical import PhysicalEntry
from actions.backup.physical_tools import PhysicalTools
from actions.backup.progress import Shown
from actions.errors import DrError, TemporaryError, UserError, VerificationError
from actions.ports import Progress
from actions.site import PhysicalPolicy


class Checking:
    """`work_directory` takes what is unpacked."""

    def __init__(self, fetch: BaseFetch, records: BaseRecords, tools: PhysicalTools, work_directory: Path) -> None:
        self._fetch, self._records, self._tools, self._work = fetch, records, tools, work_directory

    async def verify(self, policy: PhysicalPolicy, entry: PhysicalEntry, progress: Progress) -> PhysicalEntry:
        """Raises VerificationError where one bucket has it damaged, once the others were read as well."""
        if entry.problem is not None:
            raise VerificationError(entry.problem)
        await self._records.key(policy)  # before gigabytes are read that nobody could sign for
        buckets = entry.whole_in
        shown = Shown(progress, "verify", entry.manifest.stored.bytes * len(buckets))
        failed: dict[str, DrError] = {}
        good: list[str] = []
        for number, bucket in enumerate(buckets):
            before = number * entry.manifest.stored.bytes

            def done(stored: int, before: int = before) -> None:
                shown.bytes(before + stored)

            try:
                await self._one(policy, entry, bucket, done, opened=not good)
            except DrError as error:
                failed[bucket] = error
            else:
                good.append(bucket)
                entry = entry.model_copy(update={"verified_at": await self._records.verified(policy, entry, bucket)})
        if failed:
            raise _said(entry, failed, good)
        return entry

    async def _one(
        self, policy: PhysicalPolicy, entry: PhysicalEntry, bucket: str, done: Callable[[int], None], *, opened: bool
    ) -> None:
        """Once one was opened, the others need only have the same bytes."""
        into = self._work / f"verify-{entry.manifest.id}"
        await asyncio.to_thread(shutil.rmtree, into, ignore_errors=True)
        try:
            identity = await self._fetch.identity(policy)
            try:
                if opened:
                    await self._fetch.read(policy, entry.manifest, bucket, identity, into, done)
                else:
                    await self._fetch.check(policy, entry.manifest, bucket, done)
            except VerificationError as error:
                # Whoever restores next must not have to find it out anew.
                await self._records.verified(policy, entry, bucket, problem=str(error))
                raise
            if opened:
                await self._tools.check_files(policy.server, entry.manifest.id, into)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, into, ignore_errors=True))


def _said(entry: PhysicalEntry, failed: Mapping[str, DrError], good: Sequence[str]) -> DrError:
    first = next(iter(failed.values()))
    if len(entry.whole_in) == 1:
        return first
    found = failed.values()
    kind: type[DrError] = TemporaryError if any(isinstance(error, TemporaryError) for error in found) else UserError
    if any(isinstance(error, VerificationError) for error in found):
        kind = VerificationError
    said = [f"Bucket `{bucket}`: {error}" for bucket, error in failed.items()]
    said += [f"Bucket `{bucket}` has it whole, and restores use that." for bucket in good]
    return kind(" ".join(said))
