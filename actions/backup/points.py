"""Recovery points, gathered from what each part says of itself, signed, and stored one document each.

<prefix>recovery-points/<id>.json      signed
<prefix>images/kept.json               signed: the images that must not expire, with when each was last seen
<prefix>images/kept.txt                the same for the registry's own clean-up: one `repository@digest` a line
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from pydantic import AwareDatetime

from actions.backup.crypto import signing_key
from actions.backup.point_parts import Parts
from actions.backup.signed_document import SignedDocument, opened
from actions.errors import DrError, UserError, VerificationError
from actions.points import ImagePart, PointEntry, Points, RecoveryPoint, SecretVersion
from actions.ports import Clock, ObjectStore, Secrets
from actions.site import Frozen, PointsPolicy, SecretRef, Site

KIND, KEPT_KIND = "recovery-point", "images-kept"
WHAT = "Recovery point `{}`"
DEFAULT_KEPT = timedelta(days=90)


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

    def __init__(self, site: Site, parts: Parts, objects: ObjectStore, secrets: Secrets, clock: Clock) -> None:
        self._site, self._parts, self._objects = site, parts, objects
        self._secrets, self._clock = secrets, clock

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
        found = await self.gather(point, requested_by=requested_by)
        signer = signing_key(await self._secrets.resolve(policy.signing_key), policy.signing_key)
        kept = await self._kept(policy, found)
        signed = SignedDocument.sign(KEPT_KIND, kept, signer).bytes()
        lines = "".join(f"{image.repository}@{image.digest}\n" for image in kept.images)
        await self._objects.put(policy.bucket, f"{policy.prefix}images/kept.json", signed)
        await self._objects.put(policy.bucket, f"{policy.prefix}images/kept.txt", lines.encode())
        await self._objects.put(policy.bucket, key, SignedDocument.sign(KIND, found, signer).bytes())
        return found

    async def entries(self) -> Sequence[PointEntry]:
        policy = self._policy()
        prefix = f"{policy.prefix}recovery-points/"
        found = []
        for facts in await self._objects.list(policy.bucket, prefix):
            name = facts.key.removeprefix(prefix).removesuffix(".json")
            try:
                point = _read(await self._objects.get(policy.bucket, facts.key), policy, name)
                found.append(PointEntry(point=point))
            except VerificationError as error:
                never = datetime.fromtimestamp(0, UTC)
                nothing = RecoveryPoint(id=name, taken_at=never, moment=never)
                found.append(PointEntry(point=nothing, problem=str(error)))
        return sorted(found, key=lambda entry: entry.point.taken_at, reverse=True)

    def _policy(self) -> PointsPolicy:
        if self._site.points is None:
            raise UserError("The plan file says nothing of recovery points. Add `backups.recovery_points`.")
        return self._site.points

    async def _kept(self, policy: PointsPolicy, point: RecoveryPoint) -> KeptImages:
        """What runs now, and what ran within the time that the registry keeps images."""
        key, now = f"{policy.prefix}images/kept.json", self._clock.now()
        before = KeptImages()
        if await self._objects.head(policy.bucket, key) is not None:
            body = await self._objects.get(policy.bucket, key)
            before = opened(body, KEPT_KIND, KeptImages, policy.trusted_signers, what=f"The list `{key}`")
        limit = now - (self._site.images.retention if self._site.images is not None else DEFAULT_KEPT)
        seen = {(image.repository, image.digest): image for image in before.images if image.seen_at >= limit}
        for image in point.images:
            if image.digest and image.repository:
                known = KeptImage(repository=image.repository, digest=image.digest, seen_at=now)
                seen[image.repository, image.digest] = known
        return KeptImages(images=tuple(seen[key] for key in sorted(seen)))


def fingerprint_key(signing_key: str) -> bytes:
    """What values are fingerprinted under: nobody without the signing key can try values against a fingerprint."""
    return hmac.digest(signing_key.strip().encode(), b"superprismora-dr recovery-point fingerprint", "sha256")


def fingerprint(key: bytes, value: str) -> str:
    """`hmac 0123456789abcdef by 01234567`: of the value, and of the key it was made under."""
    return f"hmac {hmac.digest(key, value.encode(), 'sha256').hex()[:16]} by {hashlib.sha256(key).hexdigest()[:8]}"


def _keys_of(site: Site) -> set[SecretRef]:
    """References to generated keys. Connection strings are none of it: a password may be one that can be guessed."""
    found = {bucket.secret_key for bucket in site.buckets.values()}
    found |= {key for policy in site.backups.values() for key in (policy.identity, policy.signing_key)}
    found |= {key for policy in site.physical.values() for key in (policy.identity, policy.signing_key)}
    return found - {""}


def _key(policy: PointsPolicy, point: str) -> str:
    return f"{policy.prefix}recovery-points/{point}.json"


def _read(body: bytes, policy: PointsPolicy, point: str) -> RecoveryPoint:
    found = opened(body, KIND, RecoveryPoint, policy.trusted_signers, what=WHAT.format(point))
    if found.id != point:
        raise VerificationError(f"{WHAT.format(point)} is `{found.id}` in truth: somebody put it there.")
    return found
