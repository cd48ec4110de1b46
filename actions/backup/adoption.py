"""A dump that this product did not make: tried in scratch, measured, stored anew under our keys, then catalogued."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from pathlib import Path

from actions.backup.catalogue import Catalogue, Folder
from actions.backup.crypto import Recipients, signing_key
from actions.backup.loading import Loading
from actions.backup.manifest import Globals, Manifest, Provenance, SignedManifest
from actions.backup.progress import Shown
from actions.backup.spool import Spool, SpooledArchive, Survey
from actions.backup.stages import Channel
from actions.backup.stored import StoredDumps, stored_as
from actions.backup.together import together
from actions.backup.tools import ArchiveSource, PostgresTools
from actions.backup.unpacking import Plain, Sink, unpack
from actions.errors import TemporaryError, UserError, VerificationError
from actions.ports import AdoptRequest, Clock, ObjectStore, PostgresAdmin, Progress, Secrets
from actions.site import Site


class Adoption:
    """Adopts dumps of `pg_dump -Fc`, as they are or under gzip, zstd or age."""

    def __init__(
        self,
        site: Site,
        *,
        postgres: PostgresAdmin,
        objects: ObjectStore,
        secrets: Secrets,
        clock: Clock,
        tools: PostgresTools,
        stored: StoredDumps,
        loading: Loading,
        work_directory: Path,
    ) -> None:
        self._site, self._postgres, self._objects = site, postgres, objects
        self._secrets, self._clock, self._tools = secrets, clock, tools
        self._stored, self._loading, self._work = stored, loading, work_directory
        self._catalogue = Catalogue(objects)

    async def adopt(self, request: AdoptRequest, progress: Progress) -> SignedManifest:
        """A rerun finds what it catalogued before. The scratch database is gone at the end, however it ends."""
        policy = self._site.backup(request.database)
        signed = await self._catalogue.signed(policy, request.id)
        if signed is None:
            spool = self._work / f"adopt-{request.id}.dump.age"
            try:
                signed = await self._adopt(request, spool, Shown(progress, "download", None))
            except BaseException:
                await asyncio.shield(self._loading.abandon(request.scratch, request.mark))
                raise
            finally:
                await asyncio.to_thread(spool.unlink, missing_ok=True)
        await self._postgres.discard(request.scratch, mark=request.mark)
        return signed

    async def _adopt(self, request: AdoptRequest, path: Path, shown: Shown) -> SignedManifest:
        policy, database = self._site.backup(request.database), self._site.database(request.database)
        folder, begun = Folder(policy, request.id), self._clock.now()
        recipients = Recipients(policy.recipients)
        key = signing_key(await self._secrets.resolve(policy.signing_key), policy.signing_key)
        source = await self._objects.head(policy.bucket, request.source_key)
        if source is None:
            raise UserError(
                f"Bucket `{policy.bucket}` has no object `{request.source_key}`. List it and give the exact key."
            )
        await asyncio.to_thread(self._stored.check_room, source.bytes)
        wanted = await self._globals(request)
        owners = await self._loading.owners(request.scratch.server, wanted, database.owner)
        shown.phase("download", source.bytes)
        identity, survey = await self._stored.identity(policy), Survey(follow=True)
        spool = Spool(path, identity, request.source_key)
        read = await unpack(
            spool.kept(self._objects.get_stream(policy.bucket, request.source_key)),
            backup=request.source_key,
            identity=identity,
            sink=survey,
            done=shown.bytes,
        )
        archive = SpooledArchive(spool, survey)
        contents = archive.contents
        shown.phase("restore")
        await self._loading.load(
            request.scratch,
            mark=request.mark,
            jobs=database.restore_jobs,
            archive=archive,
            owners=owners,
            cluster_globals=wanted,
            extensions=contents.extensions(),
            shown=shown,
        )
        shown.phase("check")
        fingerprint = await self._postgres.fingerprint(request.scratch, database.invariants)
        facts = await self._postgres.database(request.scratch)
        server = await self._postgres.server(request.scratch.server)
        if facts is None:
            raise TemporaryError(f"The scratch database `{request.scratch}` is gone. Adopt again.")
        shown.phase("store", read.plain_bytes)
        original = _Original()
        async with together() as group:
            group.create_task(archive.replay(original, original.stop))
            storing = group.create_task(self._stored.store(original, policy, folder, recipients, shown.bytes))
        packed, passed, upload_error = storing.result()
        if packed.plain_sha256 != read.plain_sha256:
            raise VerificationError(f"The spool file of `{request.source_key}` was changed while it was stored.")
        finished = self._clock.now()
        manifest = Manifest(
            id=request.id,
            database=request.database,
            server=database.server,
            provenance=Provenance.ADOPTED,
            system_id=server.system_id,
            server_version=version_number(contents.server_version),
            lsn="0/0",
            # The archive has the dumping machine's local time, zone unknown; it cannot be newer than the object.
            snapshot_at=min(contents.created, source.modified_at),
            finished_at=finished,
            duration_ms=int((finished - begun) / timedelta(milliseconds=1)),
            stored=stored_as(policy, folder, packed),
            plain_bytes=packed.plain_bytes,
            plain_sha256=packed.plain_sha256,
            compression="zstd",
            recipients=policy.recipients,
            database_bytes=facts.bytes,
            places=passed.noted,
            fingerprint=fingerprint,
            globals=wanted,
            tools={"pg_dump": contents.dump_version},
            requested_by=request.requested_by,
        )
        return await self._stored.publish(policy, folder, SignedManifest.sign(manifest, key), upload_error)

    async def _globals(self, request: AdoptRequest) -> Globals:
        """Roles and settings of the database as it is now, since the dump has none; none when it is gone."""
        try:
            return await self._tools.globals_of(self._site.database(request.database).ref)
        except (UserError, TemporaryError):
            return Globals(database_owner=self._site.database(request.database).owner)


class _Original(ArchiveSource, Sink):
    """The archive as it was found, on its way from the spool into the bucket."""

    def __init__(self) -> None:
        self._plain = Channel()

    def run(self, source: Plain, /) -> None:
        while block := source.get():
            self._plain.put(block)
        self._plain.end()

    def read(self, size: int, /) -> bytes:  # noqa: ARG002 - as large as it comes
        return self._plain.get()

    def finish(self) -> None:
        """Its end is a good end: the bytes were read before."""

    def stop(self) -> None:
        self._plain.stop()

    def close(self) -> None:
        self.stop()


def version_number(text: str) -> int:
    """`18.6` or `15.20 (Debian ...)` as server_version_num; 0 when it is no version."""
    match = re.match(r"(\d+)\.(\d+)", text)
    return int(match[1]) * 10000 + int(match[2]) if match else 0
