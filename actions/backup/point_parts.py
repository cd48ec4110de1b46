"""What each part of a site says of itself now, for a recovery point. Reads; changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Generic, NamedTuple, TypeVar

from actions.backup.windows import Stretch, ends_of, reachable
from actions.bucket_ports import Buckets, Files
from actions.drift import SERVER_TYPES
from actions.errors import DrError, UserError
from actions.escrow import Escrow, uncovered
from actions.images import ImageName, Registry, kept_in
from actions.manifests import KindName, LiveObjects, Manifests
from actions.points import (
    ContainerImage,
    DatabasePart,
    FilesPart,
    ImagePart,
    ManifestsPart,
    RecoveryPoint,
    SecretsPart,
    SecretVersion,
    WorkloadPart,
)
from actions.ports import BackupEngine, Clock, Cluster, PhysicalBackups
from actions.site import FilesPolicy, Site

T = TypeVar("T")


class Told(NamedTuple, Generic[T]):
    """An answer, and what it lacks."""

    found: T
    missing: Sequence[str]


SECRET, SEALED_SECRET = KindName("v1", "Secret"), KindName("bitnami.com/v1alpha1", "SealedSecret")


class Parts:
    """The ports a recovery point is gathered from."""

    def __init__(
        self,
        site: Site,
        *,
        backups: BackupEngine,
        physical: PhysicalBackups,
        files: Files,
        buckets: Buckets,
        cluster: Cluster,
        escrow: Escrow,
        manifests: Manifests,
        registry: Registry,
        live: LiveObjects,
        clock: Clock,
    ) -> None:
        self._site, self._backups, self._physical = site, backups, physical
        self._files, self._buckets, self._cluster = files, buckets, cluster
        self._escrow, self._mirrors, self._registry, self._clock = escrow, manifests, registry, clock
        self._live = live

    async def gather(self, point: str, *, requested_by: str) -> RecoveryPoint:
        now = self._clock.now()
        sealing = [name for name, cluster in sorted(self._site.clusters.items()) if cluster.sealed_secrets]
        # All at the same time: one store that hangs must not use up the time of the others.
        async with asyncio.TaskGroup() as group:
            asked_databases = group.create_task(self._each(sorted(self._site.databases), self._database))
            asked_images = group.create_task(self._told(lambda _: self.running()))
            asked_workloads = group.create_task(self._told(lambda _: self._workloads()))
            asked_manifests = group.create_task(self._told(self._manifests))
            asked_secrets = group.create_task(self._each(sealing, self._secrets))
            asked_versions = group.create_task(self._each(sorted(self._namespaces()), self._versions))
        databases, images, workloads = asked_databases.result(), asked_images.result(), asked_workloads.result()
        manifests, secrets, versions = asked_manifests.result(), asked_secrets.result(), asked_versions.result()
        parts = [each for each in databases.found if each is not None]
        moment = min((part.moment for part, _ in parts), default=now)
        files = await self._each(
            sorted(self._site.files), lambda missing, name: self._files_part(missing, self._site.files[name], moment)
        )
        missing = [
            *databases.missing,
            *_unreached(parts, moment),
            *files.missing,
            *images.missing,
            *(part.problem for part in images.found or () if part.problem),
            *workloads.missing,
            *manifests.missing,
            *secrets.missing,
            *versions.missing,
        ]
        return RecoveryPoint(
            id=point,
            taken_at=now,
            moment=moment,
            databases=tuple(part for part, _ in parts),
            files=tuple(part for part in files.found if part is not None),
            images=tuple(images.found or ()),
            workloads=tuple(workloads.found or ()),
            workloads_read=workloads.found is not None,
            manifests=tuple(manifests.found or ()),
            secrets=tuple(part for part in secrets.found if part is not None),
            versions=tuple(version for found in versions.found for version in found or []),
            references=tuple(sorted(self._references())),
            missing=tuple(dict.fromkeys(missing)),
            requested_by=requested_by,
        )

    async def running(self) -> list[ImagePart]:
        """Every image that runs in the namespaces of the services, in init containers as well, and those that the
        mirrored manifests name beside them, looked for in the registry. A mirror that cannot be read is one with a
        problem."""
        services = self._site.services.values()
        found: set[str] = set()
        wanted: set[str] = set()
        for cluster, namespace in sorted({(ref.cluster, ref.namespace) for each in services for ref in each.workloads}):
            facts = await self._cluster.overview(cluster, namespace)
            running = {image for pod in facts.pods for image in (*pod.images, *pod.init_images)}
            # What is stopped, or a CronJob between two jobs, would run by what it asks for.
            asked = {image for each in facts.workloads for image in (*each.images, *each.init_images)}
            wanted |= running | asked
            found |= running | {image for image in asked if not any(_one_repository(image, run) for run in running)}
        unread = []
        for name in sorted(self._site.manifests):
            try:
                found |= set(await self._mirrors.images(name)) - wanted
            except DrError as error:
                unread.append(ImagePart(image=f"manifests {name}", problem=str(error), unread=True))
        return [*unread, *await asyncio.gather(*(self._image(image) for image in sorted(found)))]

    # ------------------------------------------------------------ one part each

    async def _told(self, ask: Callable[[list[str]], Awaitable[T]]) -> Told[T | None]:
        """What was answered, None where nothing was, and what lacks of it, in sentences."""
        missing: list[str] = []
        try:
            return Told(await ask(missing), missing)
        except DrError as error:
            return Told(None, [*missing, str(error)])

    async def _each(
        self, names: Iterable[str], ask: Callable[[list[str], str], Awaitable[T | None]]
    ) -> Told[Sequence[T | None]]:
        """One answer for each name."""

        async def one(name: str) -> Told[T | None]:
            return await self._told(lambda missing: ask(missing, name))

        asked = await asyncio.gather(*map(one, names))
        return Told([each.found for each in asked], [said for each in asked for said in each.missing])

    async def _database(self, missing: list[str], name: str) -> tuple[DatabasePart, Sequence[Stretch]]:
        """With what its WAL leads to, where it has some."""
        database = self._site.databases[name]
        dumps = []
        if name in self._site.backups:
            dumps = [entry.manifest for entry in await self._backups.catalogue(name) if entry.problem is None]
        newest = dumps[0] if dumps else None
        if database.server in self._site.physical:
            reached = await self._told(lambda _: self._reached(database.server))
            missing += reached.missing
            if reached.found is not None:
                stretches, bucket = reached.found
                part = DatabasePart(
                    database=name,
                    server=database.server,
                    moment=stretches[-1].end,
                    by_wal=True,
                    backup=newest.id if newest is not None else "",
                    bucket=bucket,
                )
                return part, stretches
        if newest is None:
            raise UserError(f"Database `{name}` has no usable backup at all.")
        part = DatabasePart(
            database=name,
            server=database.server,
            moment=newest.snapshot_at,
            by_wal=False,
            backup=newest.id,
            bucket=newest.stored.bucket,
        )
        return part, ()

    async def _reached(self, server: str) -> tuple[Sequence[Stretch], str]:
        """The moments that would survive the loss of the region, and where: those that a base backup leads to, so none
        behind a gap, however much of it is archived."""
        entries = await self._physical.catalogue(server)
        for window in await self._physical.windows(server):
            if stretches := reachable(window, ends_of(entries, window)):
                return stretches, window.bucket
        raise UserError(f"No moment of server `{server}` can be reached from its WAL archive.")

    async def _files_part(self, missing: list[str], policy: FilesPolicy, moment: datetime) -> FilesPart:
        versioned = (await self._buckets.facts(policy.bucket)).versioning is True
        usable = [copy.manifest for copy in await self._files.copies(policy.name) if copy.problem is None]
        if not usable and policy.copy_bucket:
            missing.append(f"`{policy.name}` has no copy in another region.")
        if not usable and not versioned:
            missing.append(f"`{policy.name}` cannot be brought back at all: its bucket keeps no versions.")
        return FilesPart(
            name=policy.name,
            bucket=policy.bucket,
            as_of=moment if versioned else None,
            copy_id=usable[0].id if usable else "",
            copy_of=usable[0].state_of if usable else None,
        )

    async def _image(self, text: str) -> ImagePart:
        image, policy = ImageName.parse(text), self._site.images
        if policy is None:
            return ImagePart(image=text, digest=image.digest)
        repository = kept_in(image, policy)
        if repository is None:
            problem = f"Image `{text}` has no place in the recovery region: no `mirrors` of the plan fits."
            return ImagePart(image=text, digest=image.digest, problem=problem)
        try:
            facts = await self._registry.find(repository, image.digest or image.tag or "latest")
        except DrError as error:
            said = str(error)
            return ImagePart(image=text, repository=repository, digest=image.digest, problem=said, unread=True)
        if facts is None:
            problem = f"Image `{text}` is not in the registry of the recovery region (`{repository}`)."
            return ImagePart(image=text, repository=repository, digest=image.digest, problem=problem)
        lacks = f"{len(facts.missing)} part(s) of image `{text}` are missing in the registry (`{repository}`)."
        tagged = f"Image `{text}` is known by tag alone: nobody knows which digest that was."
        problem = lacks if facts.missing else "" if image.digest else tagged
        return ImagePart(
            image=text,
            repository=repository,
            digest=image.digest or facts.digest,
            held=not facts.missing,
            problem=problem,
        )

    async def _workloads(self) -> list[WorkloadPart]:
        """The images of every workload, by digest where what runs under the name says which."""
        refs = {ref for service in self._site.services.values() for ref in service.workloads}
        found = []
        for cluster, namespace in sorted({(ref.cluster, ref.namespace) for ref in refs}):
            facts = await self._cluster.overview(cluster, namespace)
            running = {image for pod in facts.pods for image in pod.images}
            asked = {image for workload in facts.workloads for image in workload.images}
            found += [
                WorkloadPart(
                    ref=workload.ref,
                    containers=tuple(
                        ContainerImage(name=name, image=image, digest=_digest(image, asked, running))
                        for name, image in workload.containers.items()
                    ),
                )
                for workload in facts.workloads
                if workload.ref in refs
            ]
        return sorted(found, key=lambda part: part.ref)

    async def _manifests(self, missing: list[str]) -> Sequence[ManifestsPart]:
        """What the controllers say they have applied. A workload that none owns is not described by a commit."""
        found: dict[tuple[str, str], ManifestsPart] = {}
        for ref in sorted({ref for service in self._site.services.values() for ref in service.workloads}):
            try:
                workload = await self._cluster.workload(ref)
            except DrError as error:
                missing.append(str(error))
                continue
            if workload is None:
                continue
            owner = workload.gitops
            if owner is None or not owner.revision:
                missing.append(f"No GitOps controller tells which commit {ref} is of.")
                continue
            name = f"{owner.tool} {owner.kind} {owner.namespace}/{owner.name}"
            part = ManifestsPart(cluster=ref.cluster, controller=name, revision=owner.revision)
            found[ref.cluster, name] = part
        return [found[key] for key in sorted(found)]

    async def _secrets(self, missing: list[str], cluster: str) -> SecretsPart | None:
        entries = await self._escrow.entries(cluster)
        usable = [entry.manifest for entry in entries if entry.problem is None]
        lacking = uncovered(await self._escrow.current(cluster), entries)
        if lacking:
            missing.append(f"{len(lacking)} sealing key(s) of `{cluster}` are in no escrow: it could not be decrypted.")
        if not usable:
            return None
        held = tuple(sorted(key.fingerprint for key in usable[0].keys))
        return SecretsPart(cluster=cluster, escrow=usable[0].id, keys=held)

    def _namespaces(self) -> dict[str, set[str]]:
        """Where services run, by cluster."""
        found: dict[str, set[str]] = {}
        for service in self._site.services.values():
            for ref in service.workloads:
                found.setdefault(ref.cluster, set()).add(ref.namespace)
        return found

    async def _versions(self, missing: list[str], cluster: str) -> list[SecretVersion]:
        """What the server counts for every Secret and SealedSecret of people. Values do not come so far."""
        live = await self._live.read(cluster, (SECRET, SEALED_SECRET), sorted(self._namespaces()[cluster]))
        missing += [f"Versions of {kind.kind}s of `{cluster}` are not known: {said}" for kind, said in live.refused]
        found = []
        for each in live.objects:
            metadata = each["metadata"]
            if each.get("type") not in SERVER_TYPES and "resourceVersion" in metadata:
                name = f"{each['kind']} {cluster}/{metadata.get('namespace')}/{metadata['name']}"
                found.append(
                    SecretVersion(name=name, version=f"{metadata['resourceVersion']} of {metadata.get('uid', '')}")
                )
        return sorted(found, key=lambda version: version.name)

    def _references(self) -> set[str]:
        """Names of secrets, as the plan writes them; a name is no secret."""
        found = {server.admin_dsn for server in self._site.servers.values()}
        found |= {service.database_dsn for service in self._site.services.values() if service.database_dsn}
        found |= {
            key for bucket in self._site.buckets.values() for key in (bucket.access_key, bucket.secret_key) if key
        }
        return found | {policy.identity for policy in self._site.backups.values() if policy.identity}


def _unreached(parts: Iterable[tuple[DatabasePart, Sequence[Stretch]]], moment: datetime) -> Iterator[str]:
    """Databases whose WAL leads elsewhere than to the moment of all of them, which is that of the one that lags most:
    it may be from before their oldest base backup, or within a gap."""
    for part, stretches in parts:
        if part.by_wal and not any(each.start <= moment <= each.end for each in stretches):
            led = " and ".join(f"from {_said(each.start)} to {_said(each.end)}" for each in stretches[-2:])
            rest = f"its dump `{part.backup}` is left" if part.backup else "nothing of it is"
            yield (
                f"Database `{part.database}` cannot be brought back to {_said(moment)}, the moment of this point: its "
                f"WAL leads {led}. For this point {rest}."
            )


def _said(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _digest(asked: str, others: Iterable[str], running: Iterable[str]) -> str:
    """The one digest that runs under this name. Empty when none does, or several do, or when the repository is asked
    for under several names (what runs does not say under which): nobody knows which it was then."""
    own = ImageName.parse(asked).digest
    if not own and len({asked} | {other for other in others if _one_repository(asked, other)}) > 1:
        return ""
    there = {ImageName.parse(image).digest for image in running if _one_repository(asked, image)}
    return own or (there.pop() if len(there) == 1 else "")


def _one_repository(asked: str, running: str) -> bool:
    """Whether a running image is what was asked for; the runtime adds the host where none was named."""
    one, other = ImageName.parse(asked), ImageName.parse(running)
    return one.repository == other.repository and one.host in ("", other.host)
