"""Copies of files in another region, and files brought back: the `Files` port over the stores of the site."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from actions.backup.crypto import signing_key
from actions.backup.file_catalogue import FileCatalogue, Place
from actions.backup.file_copying import Copying
from actions.backup.file_returning import Returning
from actions.bucket_ports import Buckets, Files
from actions.buckets import (
    BringBack,
    CopiesExpiry,
    FilesCopy,
    FilesCopyRequest,
    FilesDifference,
    FilesManifest,
    FilesSource,
)
from actions.errors import UserError, VerificationError
from actions.ports import Clock, ObjectFacts, ObjectStore, Progress, ProgressReport, Secrets
from actions.site import FilesPolicy, Site

UNCLAIMED = timedelta(days=2)
"""How long an object that no copy lists is left: a copy may be under way, and puts its objects there first."""


class FileCopies(Files):
    """All file policies of the site."""

    def __init__(self, site: Site, *, objects: ObjectStore, buckets: Buckets, secrets: Secrets, clock: Clock) -> None:
        self._site, self._objects, self._buckets = site, objects, buckets
        self._secrets, self._clock = secrets, clock
        self._catalogue = FileCatalogue(objects, buckets)

    async def copies(self, name: str) -> Sequence[FilesCopy]:
        return await self._catalogue.copies(self._site.files_of(name))

    async def copy(self, request: FilesCopyRequest, progress: Progress) -> FilesCopy:
        policy = self._site.files_of(request.name)
        if not policy.copy_bucket:
            raise UserError(f"The plan file has no `copy_to` for `{policy.name}`, so nothing is copied.")
        found = await self._catalogue.find(policy, request.id)
        if found is not None and found.problem is None:
            return found
        key = signing_key(await self._secrets.resolve(policy.signing_key), policy.signing_key)
        copying = Copying(
            policy,
            request,
            key,
            objects=self._objects,
            buckets=self._buckets,
            clock=self._clock,
            progress=progress,
        )
        await copying.make()
        made = await self._catalogue.find(policy, request.id)
        if made is None or made.problem is not None:
            raise VerificationError(
                f"Copy `{request.id}` was made, but its manifest does not check: is `signers` of the plan file the "
                "public half of the signing key?"
            )
        return made

    async def difference(self, source: FilesSource) -> FilesDifference:
        return await self._returning(source.name).difference(source)

    async def bring_back(self, request: BringBack, progress: Progress) -> FilesDifference:
        return await self._returning(request.source.name).bring_back(request, progress)

    async def take_back(self, request: BringBack, progress: Progress) -> FilesDifference:
        return await self._returning(request.source.name).take_back(request, progress)

    async def expiry(self, name: str) -> CopiesExpiry:
        policy = self._site.files_of(name)
        if not policy.copy_bucket:
            return CopiesExpiry(name=name)
        copies = await self._catalogue.copies(policy)
        old = self._old(policy, copies)
        spare = await self._spare(policy, copies, old)
        return CopiesExpiry(
            name=name,
            copies=tuple(copy.id for copy in old),
            objects=len(spare),
            bytes=sum(facts.bytes for facts in spare),
        )

    async def expire(self, expiry: CopiesExpiry, progress: Progress) -> None:
        policy = self._site.files_of(expiry.name)
        if not policy.copy_bucket:
            return
        place = Place(policy)
        copies = await self._catalogue.copies(policy)
        due = {copy.id for copy in self._old(policy, copies)}
        if young := [copy.manifest.id for copy in copies if copy.manifest.id in set(expiry.copies) - due]:
            raise UserError(f"Copy `{young[0]}` is not to be deleted: it is younger than the plan says, or the newest.")
        old = [copy.manifest for copy in copies if copy.manifest.id in expiry.copies]
        spare = await self._spare(policy, copies, old)
        for copy in expiry.copies:
            # The manifest first: what is left of a copy without one does not count as a copy.
            await self._objects.delete(place.bucket, place.manifest(copy))
            for facts in await self._objects.list(place.bucket, place.folder(copy)):
                await self._objects.delete(place.bucket, facts.key)
        for number, facts in enumerate(spare, 1):
            await self._objects.delete(place.bucket, facts.key)
            progress(ProgressReport(done=number, total=len(spare), unit="steps", phase="expire"))

    # ------------------------------------------------------------ inside

    def _returning(self, name: str) -> Returning:
        return Returning(self._site.files_of(name), self._objects, self._buckets, self._catalogue)

    def _old(self, policy: FilesPolicy, copies: Sequence[FilesCopy]) -> list[FilesManifest]:
        """Over their time. The newest usable one stays whatever its age, and so do the newest that holds a file, since
        a bucket that was emptied is copied as it is, and what cannot be believed: its age is not known."""
        limit = self._clock.now() - policy.retention
        usable = [copy.manifest for copy in copies if copy.problem is None]
        full = next((manifest for manifest in usable if manifest.objects), None)
        return [manifest for manifest in usable[1:] if manifest.state_of < limit and manifest is not full]

    async def _spare(
        self, policy: FilesPolicy, copies: Sequence[FilesCopy], old: Sequence[FilesManifest]
    ) -> list[ObjectFacts]:
        """The objects that no remaining copy lists. Raises VerificationError when a remaining list cannot be read: then
        nobody knows what it needs."""
        place, limit = Place(policy), self._clock.now() - UNCLAIMED
        gone = {manifest.id for manifest in old}
        if broken := [copy.manifest.id for copy in copies if copy.problem is not None]:
            raise VerificationError(
                f"Copy `{broken[0]}` cannot be read, so nobody knows what it needs, and nothing is deleted. Look at it."
            )
        needed: set[str] = set()
        for copy in copies:
            if copy.manifest.id not in gone:
                parts = await self._catalogue.parts(policy, copy.manifest)
                needed |= {entry.stored for part in parts for entry in part.entries}
        there = await self._objects.list(place.bucket, place.objects)
        return [facts for facts in there if facts.key not in needed and facts.modified_at < limit]
