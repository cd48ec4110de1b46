"""Recovery points, gathered from what each part says of itself, signed, and stored one document each.

<prefix>recovery-points/<id>.json      signed
<prefix>recovery-point-pins/<id>/      signed: pins of it, see `point_pins`
<prefix>images/kept.json               signed: the images that must not expire, with when each was last seen
<prefix>images/kept.txt                the same for the registry's own clean-up: one `repository@digest` a line
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from pydantic import AwareDatetime

from actions.backup import holds
from actions.backup.crypto import signing_key
from actions.backup.escrow import escrow_objects
from actions.backup.fingerprints import fingerprint, fingerprint_key
from actions.backup.point_parts import Parts
from actions.backup.point_pins import PointPins
from actions.backup.secret_copies import copy_objects
from actions.backup.signed_document import SignedDocument, opened
from actions.buckets import Hold
from actions.errors import DrError, TemporaryError, UserError, VerificationError
from actions.points import ImagePart, PointEntry, Points, RecoveryPoint, SealedPart, SecretVersion
from actions.ports import Clock, ObjectStore, Secrets
from actions.secret_copies import SecretCopies
from actions.site import Frozen, PointsPolicy, SecretRef, Site

KIND, KEPT_KIND = "recovery-point", "images-kept"
WHAT = "Recovery point `{}`"
DEFAULT_KEPT = timedelta(days=90)
READ_AT_ONCE, READ_AT_MOST = 3, 12  # of the newest, by what the store says of their age
READERS = 16  # points read at the same time


class KeptImage(Frozen):
    """An image that runs, or ran not long ago: a recovery point may need it."""

    repository: str
    digest: str
    seen_at: AwareDatetime


class KeptImages(Frozen):
    """The images that the registry must not let go."""

    images: tuple[KeptImage, ...] = ()


class RecoveryPoints(Points):
    """Of the whole site."""

    def __init__(
        self,
        site: Site,
        parts: Parts,
        copies: SecretCopies,
        objects: ObjectStore,
        secrets: Secrets,
        clock: Clock,
    ) -> None:
        self._site, self._parts, self._copies, self._objects = site, parts, copies, objects
        self._secrets, self._clock = secrets, clock
        self._pins = PointPins(objects)

    async def gather(self, point: str, *, requested_by: str = "") -> RecoveryPoint:
        found = await self._parts.gather(point, requested_by=requested_by)
        versions, unread = await self._key_versions()
        lack = (f"Versions of {', '.join(unread)} are not known: they cannot be read here.",) if unread else ()
        return found.model_copy(update={"versions": (*found.versions, *versions), "missing": (*found.missing, *lack)})

    async def _key_versions(self) -> tuple[list[SecretVersion], list[str]]:
        """Of every key that the plan file points to, and the references that cannot be resolved here."""
        versions, unread = [], []
        signer = self._policy().signing_key
        try:
            key = fingerprint_key(await self._secrets.resolve(signer))
        except DrError:
            return [], [f"`{signer}`"]
        for reference in sorted(_keys_of(self._site)):
            try:
                value = await self._secrets.resolve(reference)
            except DrError:
                unread.append(f"`{reference}`")
                continue
            versions.append(SecretVersion(name=reference, version=fingerprint(key, value.strip())))
        return versions, unread

    async def images(self) -> Sequence[ImagePart]:
        if self._site.images is None:
            raise UserError("The plan file names no registry of the recovery region. Add `backups.images`.")
        return await self._parts.running()

    async def record(self, point: str, *, requested_by: str = "") -> RecoveryPoint:
        policy = self._policy()
        key = _key(policy, point)
        if await self._objects.head(policy.bucket, key) is not None:
            return _read(await self._objects.get(policy.bucket, key), policy, point)
        found = await self._with_sealed(await self.gather(point, requested_by=requested_by))
        signer = signing_key(await self._secrets.resolve(policy.signing_key), policy.signing_key)
        kept, doubt = await self._kept(policy, found)
        found = found.model_copy(update={"missing": (*found.missing, *doubt)})
        signed = SignedDocument.sign(KEPT_KIND, kept, signer).bytes()
        lines = "".join(f"{image.repository}@{image.digest}\n" for image in kept.images)
        await self._objects.put(policy.bucket, f"{policy.prefix}images/kept.json", signed)
        await self._objects.put(policy.bucket, f"{policy.prefix}images/kept.txt", lines.encode())
        await self._objects.put(policy.bucket, key, SignedDocument.sign(KIND, found, signer).bytes())
        return found

    async def _with_sealed(self, point: RecoveryPoint) -> RecoveryPoint:
        """With a sealed copy of what nothing else brings back, where the plan file says so."""
        sealed, missing = [], list(point.missing)
        for cluster in self._sealing():
            try:
                sealed.append(await self._sealed(point, cluster, missing))
            except DrError as error:
                missing.append(f"Secrets of `{cluster}` that nothing else brings back are not sealed: {error}")
        return point.model_copy(update={"sealed": tuple(sealed), "missing": tuple(missing)})

    async def _sealed(self, point: RecoveryPoint, cluster: str, missing: list[str]) -> SealedPart:
        now = (await self._copies.current(cluster)).secrets
        brought = {each.name: each.by for each in now if each.by}
        own = [each.name for each in now if not each.by]
        if not own:
            return SealedPart(cluster=cluster, copy_id="", sha256="", secrets=(), brought=brought)
        made = await self._copies.seal(point.id, cluster, own, requested_by=point.requested_by)
        # A try before, which died, may have sealed them: it knows nothing of one that came since.
        if late := sorted(set(own) - {each.name for each in made.secrets}):
            said = ", ".join(f"`{name}`" for name in late)
            missing.append(f"{said} came too late for this point, and is not sealed.")
        return SealedPart(cluster=cluster, copy_id=made.id, sha256=made.sha256, secrets=made.secrets, brought=brought)

    def _sealing(self) -> list[str]:
        """Clusters whose Secrets are sealed with a point."""
        policy = self._site.escrow
        return self._site.service_clusters if policy is not None and policy.secrets else []

    async def entries(self) -> Sequence[PointEntry]:
        policy = self._policy()
        listed, pins = await asyncio.gather(self._objects.list(policy.bucket, _folder(policy)), self._pins.all(policy))
        room = asyncio.Semaphore(READERS)

        async def one(key: str) -> PointEntry | None:
            async with room:
                entry = await self._entry(policy, key)
                if entry is None or not (held := pins.get(entry.point.id)):
                    return entry
                return entry.model_copy(update={"pinned": await self._pins.reason(policy, entry.point.id, held)})

        read = await asyncio.gather(*(one(facts.key) for facts in listed))
        found = [entry for entry in read if entry is not None]
        return sorted(found, key=lambda entry: entry.point.taken_at, reverse=True)

    async def find(self, point: str) -> PointEntry | None:
        policy = self._policy()
        if await self._objects.head(policy.bucket, _key(policy, point)) is None:
            return None
        entry = await self._entry(policy, _key(policy, point))
        return entry and entry.model_copy(update={"pinned": await self._pins.of(policy, point)})

    async def pin(self, point: str, *, reason: str) -> None:
        policy, known = self._policy(), (await self._known(point)).point
        # Before the document, as with backups: see `holds`.
        if reason:
            await holds.put_on(self._objects, self._needed(known))
        else:
            pinned = [each for each in await self.entries() if each.pinned and each.point.id != point]
            others = [self._needed(each.point) for each in pinned]
            if any(each.problem for each in pinned):
                # Nobody knows which escrows that one needs: whoever has damaged it must not get them let go as well.
                known = known.model_copy(update={"secrets": ()})
            needed = self._needed(known)
            free = {
                bucket: keys.difference(*(each.get(bucket, ()) for each in others)) for bucket, keys in needed.items()
            }
            await holds.take_off(self._objects, free)
            # Nothing looks for holds without a pin later: what one bucket has not let go of would stay for good.
            for left in await holds.look(self._objects, free):
                if left.problem or left.held:
                    why = left.problem or f"{left.held} objects are still held."
                    raise TemporaryError(f"Bucket `{left.bucket}` has not let go of recovery point `{point}`: {why}")
        signer = signing_key(await self._secrets.resolve(policy.signing_key), policy.signing_key)
        await self._pins.set(policy, point, reason, self._clock.now(), signer)

    async def holds(self, point: str) -> Sequence[Hold]:
        return await holds.look(self._objects, self._needed((await self._known(point)).point))

    async def _known(self, point: str) -> PointEntry:
        entry = await self.find(point)
        if entry is None:
            raise UserError(f"There is no recovery point `{point}`. Look with `/dr point list`.")
        return entry

    def _needed(self, point: RecoveryPoint) -> dict[str, set[str]]:
        """Its own document, its escrows and its sealed Secrets, by bucket. Its dumps are pinned for themselves."""
        policy, escrow = self._policy(), self._site.escrow
        needed = {policy.bucket: {_key(policy, point.id)}}
        if escrow is not None:
            for part in (each for each in point.secrets if each.escrow):
                needed.setdefault(escrow.bucket, set()).update(escrow_objects(escrow, part.cluster, part.escrow))
            for sealed in (each for each in point.sealed if each.copy_id):
                needed.setdefault(escrow.bucket, set()).update(copy_objects(escrow, sealed.cluster, sealed.copy_id))
        return needed

    async def remove(self, point: str) -> None:
        policy = self._policy()
        await self._pins.forget(policy, point)
        if self._site.escrow is not None:
            entry = await self.find(point)
            for part in () if entry is None else entry.point.sealed:
                # Before the document: what a store does not let go stays described, and is asked for again.
                await self._copies.remove(part.cluster, point)
        await self._objects.delete(policy.bucket, _key(policy, point))

    async def newest(self) -> RecoveryPoint | None:
        policy = self._policy()
        listed = await self._objects.list(policy.bucket, _folder(policy))
        keys = [facts.key for facts in sorted(listed, key=lambda facts: facts.modified_at, reverse=True)]
        # More than one: whoever can write could put an old one there again, which is then the newest object.
        for place in range(0, min(len(keys), READ_AT_MOST), READ_AT_ONCE):
            read = [await self._entry(policy, key) for key in keys[place : place + READ_AT_ONCE]]
            usable = [entry.point for entry in read if entry is not None and entry.problem is None]
            if usable:
                return max(usable, key=lambda point: point.taken_at)
        return None

    async def _entry(self, policy: PointsPolicy, key: str) -> PointEntry | None:
        """None when it was deleted since it was listed."""
        name = key.removeprefix(_folder(policy)).removesuffix(".json")
        try:
            body = await self._objects.get(policy.bucket, key)
        except UserError:
            if await self._objects.head(policy.bucket, key) is None:
                return None
            raise
        try:
            return PointEntry(point=_read(body, policy, name))
        except VerificationError as error:
            never = datetime.fromtimestamp(0, UTC)
            return PointEntry(point=RecoveryPoint(id=name, taken_at=never, moment=never), problem=str(error))

    def _policy(self) -> PointsPolicy:
        if self._site.points is None:
            raise UserError("The plan file says nothing of recovery points. Add `backups.recovery_points`.")
        return self._site.points

    async def _kept(self, policy: PointsPolicy, point: RecoveryPoint) -> tuple[KeptImages, Sequence[str]]:
        """What runs now, what ran within the time that the registry keeps images, and what a pinned point needs. And
        what is wrong with the list of before, if anything: no point must be lost for that."""
        key, now = f"{policy.prefix}images/kept.json", self._clock.now()
        before, doubt = KeptImages(), []
        if await self._objects.head(policy.bucket, key) is not None:
            body = await self._objects.get(policy.bucket, key)
            try:
                before = opened(body, KEPT_KIND, KeptImages, policy.trusted_signers, what=f"The list `{key}`")
            except VerificationError as error:
                before = await self._seen_by_points()
                doubt.append(f"{error} It was made anew from the recovery points that can be believed.")
        kept = self._site.images.retention if self._site.images is not None else DEFAULT_KEPT
        limit = now - max(kept, policy.retention)
        seen = {(image.repository, image.digest): image for image in before.images if image.seen_at >= limit}
        for image in (*await self._pinned_images(policy), *point.images):
            if image.digest and image.repository:
                known = KeptImage(repository=image.repository, digest=image.digest, seen_at=now)
                seen[image.repository, image.digest] = known
        return KeptImages(images=tuple(seen[place] for place in sorted(seen))), doubt

    async def _seen_by_points(self) -> KeptImages:
        """The list as the points tell it, each image as of the newest point that names it."""
        seen = {
            (part.repository, part.digest): KeptImage(
                repository=part.repository, digest=part.digest, seen_at=entry.point.taken_at
            )
            for entry in reversed(await self.entries())
            if entry.problem is None
            for part in entry.point.images
            if part.digest and part.repository
        }
        return KeptImages(images=tuple(seen.values()))

    async def _pinned_images(self, policy: PointsPolicy) -> list[ImagePart]:
        found: list[ImagePart] = []
        for point, held in (await self._pins.all(policy)).items():
            if await self._pins.reason(policy, point, held):
                entry = await self._entry(policy, _key(policy, point))
                found += entry.point.images if entry is not None else ()
        return found


def _keys_of(site: Site) -> set[SecretRef]:
    """References to generated keys. Connection strings are none of it: a password may be one that can be guessed."""
    found = {bucket.secret_key for bucket in site.buckets.values()}
    found |= {key for policy in site.backups.values() for key in (policy.identity, policy.signing_key)}
    found |= {key for policy in site.physical.values() for key in (policy.identity, policy.signing_key)}
    return found - {""}


def _folder(policy: PointsPolicy) -> str:
    return f"{policy.prefix}recovery-points/"


def _key(policy: PointsPolicy, point: str) -> str:
    return f"{_folder(policy)}{point}.json"


def _read(body: bytes, policy: PointsPolicy, point: str) -> RecoveryPoint:
    found = opened(body, KIND, RecoveryPoint, policy.trusted_signers, what=WHAT.format(point))
    if found.id != point:
        raise VerificationError(f"{WHAT.format(point)} is `{found.id}` in truth: somebody put it there.")
    return found
