"""Which files the tables had when a backup was made: WAL names files, and pgBackRest does not know tables.

Kept beside the repository, in the bucket that the plan file names, signed: <prefix>pgbackrest/<server>/<label>.json
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from actions.backup.crypto import signing_key
from actions.backup.signing import Signed
from actions.errors import UserError, VerificationError
from actions.ports import ObjectStore, Secrets
from actions.site import Frozen, PhysicalPolicy

log = logging.getLogger(__name__)

READERS = 8


class Relations(Frozen):
    """Of one backup, by its label."""

    label: str
    system_id: str
    database_oids: Mapping[str, int]
    relfilenodes: Mapping[str, Mapping[str, int]]  # database -> "schema.table" -> relfilenode


class RelationRecords:
    """Reads and writes them."""

    def __init__(self, objects: ObjectStore, secrets: Secrets) -> None:
        self._objects, self._secrets = objects, secrets

    async def write(self, policy: PhysicalPolicy, relations: Relations) -> None:
        key = signing_key(await self._secrets.resolve(policy.signing_key), policy.signing_key)
        body = Signed[Relations].sign(relations, key).body()
        await self._objects.put(policy.bucket, _key(policy, relations.label), body)

    async def read(self, policy: PhysicalPolicy, labels: Sequence[str], system_id: str) -> Sequence[Relations]:
        """Those there are, in the order of the labels. One that is not ours, or another server's, is passed over."""
        room = asyncio.Semaphore(READERS)

        async def one(label: str) -> Relations | None:
            name = _key(policy, label)
            async with room:
                try:
                    body = await self._objects.get(policy.bucket, name)
                    found = Signed[Relations].parse(body, policy.trusted_signers, what=f"`{name}`")
                except (UserError, VerificationError) as error:
                    log.warning("relations_passed_over: %s", error)
                    return None
            return found if (found.label, found.system_id) == (label, system_id) else None

        return [found for found in await asyncio.gather(*map(one, labels)) if found is not None]

    async def delete(self, policy: PhysicalPolicy, label: str) -> None:
        await self._objects.delete(policy.bucket, _key(policy, label))


def _key(policy: PhysicalPolicy, label: str) -> str:
    return f"{policy.prefix}pgbackrest/{policy.server}/{label}.json"
