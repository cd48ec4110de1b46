"""Documents that are kept beside a base backup, in every bucket of it that answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from actions.backup.crypto import signing_key
from actions.backup.native_catalogue import VERIFIED, BaseFolder
from actions.backup.native_copies import BaseVerification
from actions.backup.physical import PhysicalEntry
from actions.backup.pins import Pin, pin_name
from actions.backup.signing import Signed
from actions.errors import DrError
from actions.ports import Clock, ObjectStore, Secrets
from actions.site import PhysicalPolicy

log = logging.getLogger(__name__)


async def put_beside(objects: ObjectStore, policy: PhysicalPolicy, key: str, body: bytes) -> None:
    """Store it in every bucket of base backups; a loss of one loses none of them. Raises the first one's error where
    none takes it: what one lacks is brought to it with the next copy."""
    buckets = policy.base_buckets
    found = await asyncio.gather(*(objects.put(bucket, key, body) for bucket in buckets), return_exceptions=True)
    failed = [error for error in found if isinstance(error, BaseException)]
    for error in failed:
        if not isinstance(error, DrError) or len(failed) == len(buckets):
            raise error
        log.warning("record_not_in_every_bucket: %s: %s", key, error)


class BaseRecords:
    """Signs and stores."""

    def __init__(self, objects: ObjectStore, secrets: Secrets, clock: Clock) -> None:
        self._objects, self._secrets, self._clock = objects, secrets, clock

    async def key(self, policy: PhysicalPolicy) -> Ed25519PrivateKey:
        """Raises UserError when the reference holds none."""
        return signing_key(await self._secrets.resolve(policy.signing_key), policy.signing_key)

    async def pin(self, policy: PhysicalPolicy, backup: str, reason: str) -> None:
        now = self._clock.now()
        body = Signed[Pin].sign(Pin(backup=backup, reason=reason, at=now), await self.key(policy)).body()
        await put_beside(self._objects, policy, f"{BaseFolder(policy, backup).prefix}{pin_name(now)}", body)

    async def verified(
        self, policy: PhysicalPolicy, entry: PhysicalEntry, bucket: str, *, problem: str = "", renewed: bool = False
    ) -> datetime:
        """What a complete reading in this bucket has found; when."""
        now, backup = self._clock.now(), entry.manifest.id
        about = bucket if policy.copy_bucket else ""
        found = BaseVerification(
            backup=backup,
            manifest_sha256=entry.manifest_sha256,
            verified_at=now,
            problem=problem,
            bucket=about,
            renewed=renewed,
        )
        name = BaseFolder(policy, backup).record(VERIFIED, now, about)
        body = Signed[BaseVerification].sign(found, await self.key(policy)).body()
        await put_beside(self._objects, policy, name, body)
        return now

    async def damaged(self, policy: PhysicalPolicy, entry: PhysicalEntry, bucket: str, problem: str) -> None:
        """The same of what a restore has met, so that the next one passes it over. Whoever may only read, or cannot
        sign, leaves it at having said so."""
        log.warning("base_copy_damaged: %s in %s: %s", entry.manifest.id, bucket, problem)
        with contextlib.suppress(DrError):
            await self.verified(policy, entry, bucket, problem=problem)
